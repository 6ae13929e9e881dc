/* Written by atmc export, format c. Do not edit. */
#include "model.h"

#include <math.h>

typedef uint16_t atmc_place;
typedef uint16_t atmc_start;

/* A sparse matrix as lines: rows, or the columns of U. Nonzeros starts[i] to starts[i + 1] - 1 lie
 * in line i. A place is the column of a row, or the row of a column. With codes, values are levels.
 */
typedef struct {
    const atmc_start *starts;
    const atmc_place *places;
    const uint8_t *codes;
    const float *values;
} matrix;

static float value_of(const matrix *m, uint32_t nonzero)
{
    return m->values[m->codes != NULL ? m->codes[nonzero] : nonzero];
}

static int fits(const atmc_factor *f, uint32_t rows, uint32_t columns, uint32_t nonzeros,
                uint32_t levels)
{
    return f->rows == rows && f->columns == columns && f->nonzeros == nonzeros &&
           (f->has_codebook ? f->level_count == levels : levels == 0);
}

/* The value of nonzero i, which becomes nonzero `to` of a matrix. */
static void pack_value(const atmc_factor *f, uint32_t i, uint32_t to, uint8_t *codes, float *values)
{
    if (codes == NULL) {
        values[to] = atmc_value(f, i);
    } else {
        codes[to] = f->codes[i];
        values[codes[to]] = atmc_value(f, i);
    }
}

static void pack_rows(const atmc_factor *f, atmc_start *starts, atmc_place *places, uint8_t *codes,
                      float *values)
{
    uint32_t i;
    for (i = 0; i <= f->rows; i++)
        starts[i] = (atmc_start)f->starts[i];
    for (i = 0; i < f->nonzeros; i++) {
        places[i] = (atmc_place)atmc_column(f, i);
        pack_value(f, i, i, codes, values);
    }
}

static void pack_dense(const atmc_entry *e, float *values)
{
    uint32_t i;
    for (i = 0; i < e->size; i++)
        values[i] = atmc_float(e, i);
}

/* Every output is the bias of its channel, or 0. */
static void start(const float *bias, uint32_t channels, uint32_t plane, float *output)
{
    uint32_t channel, i;
    for (channel = 0; channel < channels; channel++)
        for (i = 0; i < plane; i++)
            *output++ = bias != NULL ? bias[channel] : 0.0f;
}

/* output += m input */
static void linear_rows(const matrix *m, uint32_t rows, const float *input, float *output)
{
    uint32_t row, i;
    for (row = 0; row < rows; row++) {
        float sum = output[row];
        for (i = m->starts[row]; i < m->starts[row + 1]; i++)
            sum += value_of(m, i) * input[m->places[i]];
        output[row] = sum;
    }
}

/* A kernel that slides over the planes of an input. */
typedef struct {
    int32_t height, width, out_height, out_width;
    int32_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
} window;

/* The outputs first to end - 1 along an axis read the input and not the padding around it. */
static void inside(int32_t offset, int32_t size, int32_t stride, int32_t outputs, int32_t *first,
                   int32_t *end)
{
    *first = offset < 0 ? (-offset + stride - 1) / stride : 0;
    *end = offset < size ? (size - 1 - offset) / stride + 1 : 0;
    if (*end > outputs)
        *end = outputs;
}

/* plane += value * the input as one weight sees it: of one channel, moved by a place of the kernel.
 */
static void add_tap(const window *w, const float *input, uint32_t column, float value, float *plane)
{
    const uint32_t taps = (uint32_t)(w->kernel_y * w->kernel_x);
    const int32_t tap = (int32_t)(column % taps);
    const int32_t offset_y = tap / w->kernel_x * w->dilation_y - w->pad_y;
    const int32_t offset_x = tap % w->kernel_x * w->dilation_x - w->pad_x;
    int32_t y, end_y, x, first_x, end_x;
    inside(offset_y, w->height, w->stride_y, w->out_height, &y, &end_y);
    inside(offset_x, w->width, w->stride_x, w->out_width, &first_x, &end_x);
    input += (int32_t)(column / taps) * w->height * w->width;
    for (; y < end_y; y++) {
        const int32_t from = (y * w->stride_y + offset_y) * w->width + offset_x;
        float *to = plane + y * w->out_width;
        for (x = first_x; x < end_x; x++)
            to[x] += value * input[from + x * w->stride_x];
    }
}

/* output += m input for the rows from `row` to `end` - 1. Each group has `rows` rows and `inputs`
 * input values.
 */
static void conv_rows(const window *w, const matrix *m, uint32_t row, uint32_t end, uint32_t rows,
                      uint32_t inputs, const float *input, float *output)
{
    const int32_t plane = w->out_height * w->out_width;
    uint32_t i;
    for (; row < end; row++, output += plane)
        for (i = m->starts[row]; i < m->starts[row + 1]; i++)
            add_tap(w, input + row / rows * inputs, m->places[i], value_of(m, i), output);
}

static int32_t clip(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

static int32_t first_inside(int32_t from, int32_t step)
{
    while (from < 0)
        from += step;
    return from;
}

static void max_pool(const window *w, uint32_t channels, const float *input, float *output)
{
    int32_t y, x, in_y, in_x;
    for (; channels > 0; channels--, input += w->height * w->width)
        for (y = 0; y < w->out_height; y++)
            for (x = 0; x < w->out_width; x++) {
                const int32_t top = y * w->stride_y - w->pad_y, left = x * w->stride_x - w->pad_x;
                const int32_t first_y = first_inside(top, w->dilation_y);
                const int32_t first_x = first_inside(left, w->dilation_x);
                const int32_t end_y = clip(top + w->kernel_y * w->dilation_y, 0, w->height);
                const int32_t end_x = clip(left + w->kernel_x * w->dilation_x, 0, w->width);
                float largest = -INFINITY;
                for (in_y = first_y; in_y < end_y; in_y += w->dilation_y)
                    for (in_x = first_x; in_x < end_x; in_x += w->dilation_x) {
                        const float value = input[in_y * w->width + in_x];
                        largest = value > largest ? value : largest;
                    }
                *output++ = largest;
            }
}

static const uint8_t artifact[1722] = {
    97, 116, 109, 1, 110, 29, 28, 200, 116, 238, 232, 198, 180, 112, 76, 164, 41, 236, 170, 240,
    209, 135, 173, 69, 178, 98, 30, 33, 217, 224, 136, 191, 159, 184, 63, 184, 56, 200, 204, 242,
    200, 11, 60, 88, 46, 252, 92, 144, 170, 91, 87, 208, 106, 8, 137, 192, 252, 82, 191, 179, 222,
    151, 87, 208, 104, 19, 211, 81, 203, 244, 74, 142, 109, 210, 217, 198, 102, 100, 123, 31, 7,
    146, 79, 134, 30, 253, 210, 33, 135, 228, 42, 145, 238, 114, 133, 57, 190, 100, 28, 133, 96,
    191, 88, 212, 130, 173, 76, 38, 101, 28, 169, 4, 238, 171, 45, 205, 13, 242, 126, 250, 245, 155,
    203, 200, 250, 250, 229, 143, 48, 2, 51, 109, 26, 78, 242, 94, 41, 235, 255, 41, 222, 178, 249,
    16, 217, 18, 13, 28, 193, 49, 149, 240, 139, 16, 15, 133, 54, 65, 138, 17, 184, 7, 109, 30, 236,
    94, 219, 0, 35, 109, 138, 200, 238, 155, 54, 209, 154, 44, 199, 52, 249, 223, 216, 223, 61, 151,
    28, 232, 135, 193, 0, 212, 180, 165, 24, 205, 224, 177, 24, 132, 197, 91, 99, 161, 122, 39, 163,
    78, 145, 33, 158, 139, 226, 238, 73, 210, 221, 168, 44, 150, 12, 0, 8, 7, 0, 250, 146, 38, 6,
    114, 61, 74, 48, 113, 230, 84, 110, 29, 247, 65, 245, 103, 158, 175, 58, 138, 35, 7, 132, 163,
    210, 94, 249, 211, 122, 250, 126, 85, 181, 179, 221, 188, 233, 9, 222, 198, 172, 233, 76, 7, 47,
    15, 2, 28, 125, 227, 30, 222, 59, 49, 99, 1, 105, 206, 96, 67, 72, 104, 218, 5, 28, 236, 185,
    55, 220, 245, 160, 227, 128, 31, 91, 206, 216, 91, 119, 203, 75, 25, 167, 201, 129, 246, 205,
    89, 65, 29, 120, 25, 66, 221, 235, 45, 22, 67, 50, 71, 12, 134, 6, 175, 186, 89, 56, 161, 20,
    134, 205, 183, 115, 71, 198, 26, 226, 26, 139, 84, 238, 151, 85, 164, 58, 147, 129, 143, 6, 50,
    249, 22, 214, 101, 145, 95, 37, 157, 87, 195, 136, 135, 119, 251, 161, 242, 184, 22, 214, 77,
    202, 191, 213, 170, 195, 18, 115, 65, 144, 180, 213, 50, 179, 7, 121, 175, 160, 129, 210, 157,
    39, 85, 116, 249, 3, 86, 59, 12, 155, 216, 155, 14, 125, 135, 154, 35, 136, 224, 3, 193, 68,
    137, 77, 33, 185, 166, 179, 72, 9, 217, 67, 49, 157, 188, 75, 243, 185, 34, 56, 224, 90, 144,
    149, 210, 143, 1, 124, 40, 231, 125, 153, 228, 147, 167, 217, 172, 183, 161, 144, 66, 193, 133,
    89, 202, 186, 132, 75, 198, 191, 176, 20, 217, 190, 139, 176, 65, 196, 61, 131, 98, 183, 157,
    85, 60, 48, 76, 254, 84, 230, 42, 89, 58, 83, 23, 83, 59, 139, 112, 67, 96, 32, 92, 119, 175, 9,
    95, 149, 75, 245, 21, 62, 208, 6, 220, 82, 212, 112, 36, 16, 164, 3, 56, 187, 94, 63, 215, 50,
    188, 237, 73, 177, 213, 191, 128, 155, 200, 130, 34, 1, 165, 108, 49, 77, 111, 96, 5, 192, 51,
    24, 248, 89, 166, 114, 44, 5, 7, 7, 178, 222, 10, 61, 89, 176, 204, 227, 122, 246, 237, 248, 95,
    14, 102, 138, 48, 202, 131, 8, 18, 41, 153, 239, 230, 99, 246, 143, 143, 10, 194, 67, 90, 242,
    208, 59, 62, 153, 187, 82, 126, 201, 225, 163, 19, 236, 13, 182, 154, 129, 97, 75, 211, 71, 203,
    203, 8, 11, 75, 40, 255, 205, 120, 193, 61, 52, 217, 53, 204, 202, 3, 241, 48, 153, 147, 174,
    188, 86, 65, 201, 73, 231, 123, 243, 236, 14, 85, 156, 184, 142, 227, 238, 11, 22, 183, 53, 227,
    59, 134, 124, 108, 169, 7, 76, 127, 249, 205, 17, 61, 62, 32, 43, 214, 149, 107, 171, 114, 193,
    105, 215, 80, 208, 146, 183, 52, 3, 43, 178, 148, 254, 197, 203, 16, 234, 73, 172, 75, 124, 44,
    181, 185, 103, 16, 169, 181, 107, 69, 79, 126, 36, 26, 126, 101, 34, 149, 87, 251, 233, 111, 0,
    3, 181, 145, 35, 190, 79, 192, 214, 185, 162, 40, 212, 108, 249, 87, 242, 35, 178, 193, 68, 178,
    140, 93, 225, 17, 179, 73, 200, 28, 4, 229, 115, 187, 50, 10, 199, 61, 55, 51, 85, 171, 117, 33,
    82, 35, 82, 57, 179, 221, 222, 6, 6, 177, 16, 241, 56, 236, 21, 157, 224, 22, 34, 174, 199, 125,
    252, 124, 2, 122, 99, 62, 93, 55, 47, 236, 188, 160, 20, 72, 4, 111, 206, 76, 10, 193, 200, 177,
    140, 71, 13, 130, 88, 229, 204, 164, 123, 143, 12, 36, 237, 58, 83, 69, 37, 152, 94, 4, 36, 186,
    177, 146, 9, 35, 192, 240, 194, 243, 247, 140, 95, 115, 155, 74, 193, 116, 200, 166, 227, 253,
    24, 21, 56, 232, 240, 128, 162, 193, 197, 89, 59, 139, 38, 223, 29, 204, 191, 202, 1, 172, 198,
    71, 203, 67, 187, 206, 249, 167, 117, 98, 99, 234, 225, 163, 148, 244, 107, 173, 15, 47, 86, 27,
    189, 204, 183, 113, 16, 61, 204, 107, 183, 187, 23, 117, 60, 117, 179, 132, 185, 12, 30, 169,
    189, 66, 24, 219, 112, 252, 155, 142, 10, 122, 242, 240, 32, 160, 43, 22, 100, 39, 177, 141,
    193, 184, 75, 23, 90, 12, 191, 224, 197, 49, 201, 224, 79, 177, 50, 98, 17, 225, 47, 163, 129,
    239, 57, 13, 232, 35, 209, 144, 216, 119, 85, 59, 38, 112, 208, 11, 173, 230, 84, 28, 53, 32,
    86, 221, 100, 141, 77, 207, 40, 108, 3, 80, 60, 33, 190, 70, 121, 246, 49, 56, 207, 22, 198,
    249, 88, 166, 183, 232, 20, 25, 154, 206, 67, 171, 20, 147, 23, 6, 44, 218, 58, 252, 70, 85,
    240, 202, 197, 211, 187, 143, 166, 171, 147, 250, 30, 249, 227, 195, 226, 126, 111, 121, 90,
    100, 135, 58, 178, 218, 184, 214, 211, 249, 10, 129, 177, 0, 139, 13, 213, 138, 225, 161, 68,
    223, 244, 27, 253, 72, 158, 144, 236, 130, 75, 150, 47, 119, 29, 71, 234, 171, 131, 69, 168, 95,
    206, 121, 156, 155, 124, 194, 230, 49, 0, 174, 218, 253, 197, 52, 195, 113, 91, 17, 95, 153, 69,
    112, 105, 136, 142, 245, 149, 74, 158, 104, 236, 131, 175, 131, 69, 195, 188, 145, 213, 121,
    179, 239, 8, 174, 184, 198, 91, 189, 141, 203, 152, 76, 74, 231, 22, 28, 43, 214, 91, 145, 213,
    194, 98, 140, 90, 39, 246, 167, 224, 194, 208, 246, 181, 119, 3, 165, 189, 69, 162, 28, 239,
    143, 219, 39, 215, 149, 229, 206, 224, 139, 249, 14, 248, 101, 95, 89, 171, 209, 69, 186, 27,
    18, 95, 48, 134, 143, 150, 109, 32, 172, 147, 75, 68, 126, 197, 48, 220, 66, 255, 139, 175, 203,
    166, 121, 91, 232, 231, 129, 233, 43, 128, 37, 179, 25, 107, 99, 62, 141, 231, 84, 183, 252,
    207, 108, 87, 195, 187, 214, 217, 255, 55, 202, 92, 227, 186, 95, 117, 46, 139, 157, 113, 230,
    66, 255, 112, 39, 91, 241, 49, 79, 179, 79, 131, 57, 111, 68, 31, 205, 104, 107, 93, 206, 163,
    6, 124, 236, 186, 151, 44, 184, 75, 17, 192, 44, 209, 157, 240, 205, 83, 187, 16, 5, 93, 143,
    31, 228, 65, 120, 193, 140, 123, 39, 177, 130, 124, 225, 41, 170, 50, 200, 2, 242, 12, 189, 245,
    184, 136, 27, 249, 130, 137, 201, 116, 174, 54, 176, 14, 238, 223, 253, 188, 115, 43, 135, 193,
    252, 2, 38, 185, 130, 58, 21, 174, 117, 234, 217, 225, 186, 65, 214, 154, 222, 161, 220, 245,
    104, 198, 177, 225, 181, 112, 158, 27, 73, 108, 117, 154, 71, 157, 24, 170, 166, 95, 145, 177,
    45, 202, 79, 221, 15, 81, 146, 231, 85, 236, 57, 198, 171, 225, 94, 132, 209, 57, 171, 113, 216,
    108, 109, 118, 19, 21, 242, 109, 238, 162, 233, 38, 112, 91, 160, 92, 101, 86, 47, 160, 52, 118,
    42, 147, 62, 81, 148, 212, 117, 95, 13, 72, 11, 71, 205, 118, 36, 79, 154, 201, 240, 9, 137, 95,
    46, 131, 51, 204, 87, 155, 19, 35, 45, 237, 226, 90, 123, 24, 92, 117, 75, 128, 74, 117, 249,
    156, 31, 100, 63, 149, 16, 220, 233, 236, 150, 161, 95, 228, 12, 113, 125, 44, 55, 74, 55, 124,
    119, 126, 60, 164, 21, 204, 55, 153, 149, 37, 200, 175, 102, 17, 149, 148, 134, 95, 106, 228,
    65, 114, 171, 127, 138, 121, 181, 151, 63, 189, 146, 65, 3, 99, 98, 154, 81, 82, 106, 109, 48,
    96, 143, 210, 70, 232, 104, 194, 121, 38, 107, 198, 117, 126, 195, 127, 160, 7, 193, 91, 237,
    133, 37, 225, 243, 61, 24, 60, 152, 123, 166, 129, 109, 7, 196, 68, 17, 61, 177, 114, 87, 246,
    233, 131, 162, 1, 138, 64, 4, 185, 164, 196, 104, 151, 61, 203, 133, 231, 202, 114, 0, 1, 72,
    110, 77, 88, 198, 121, 150, 133, 27, 184, 154, 19, 111, 107, 208, 81, 84, 86, 59, 134, 233, 156,
    44, 17, 38, 235, 88, 5, 119, 164, 91, 80, 247, 73, 193, 64, 42, 122, 176, 19, 230, 148, 121,
    101, 77, 103, 45, 168, 67, 130, 166, 105, 118, 13, 71, 90, 94, 177, 181, 110, 1, 144, 215, 227,
    157, 30, 9, 246, 224, 146, 173, 225, 92, 40, 15, 253, 34, 24, 193, 108, 102, 203, 103, 78, 108,
    162, 118, 190, 23, 206, 92, 123, 199, 41, 5, 96, 195, 9, 236, 10, 252, 79, 238, 215, 30, 223,
    214, 115, 180, 196, 230, 121, 218, 92, 9, 126, 0, 95, 210, 123, 197, 136, 104, 16, 63, 85, 209,
    74, 82, 120, 161, 79, 182, 130, 208, 209, 198, 58, 11, 255, 208, 187, 112, 100, 69, 85, 80, 191,
    115, 103, 137, 208, 42, 211, 102, 178, 42, 125, 152, 253, 154,
};


/* The work of the decoder, then activations. */
static union {
    uint32_t work[2261];
    float values[3744];
} memory;

/* Decoded weights. */
static atmc_start net_conv1_weight_c_starts[21];
static atmc_place net_conv1_weight_c_places[14];
static uint8_t net_conv1_weight_c_codes[14];
static float net_conv1_weight_c_values[9];
static float net_conv1_bias[20];
static atmc_start net_conv2_weight_c_starts[51];
static atmc_place net_conv2_weight_c_places[407];
static uint8_t net_conv2_weight_c_codes[407];
static float net_conv2_weight_c_values[16];
static float net_conv2_bias[50];
static atmc_start net_fc1_weight_c_starts[501];
static atmc_place net_fc1_weight_c_places[653];
static uint8_t net_fc1_weight_c_codes[653];
static float net_fc1_weight_c_values[8];
static float net_fc1_bias[500];
static atmc_start net_fc2_weight_c_starts[11];
static atmc_place net_fc2_weight_c_places[304];
static uint8_t net_fc2_weight_c_codes[304];
static float net_fc2_weight_c_values[8];
static float net_fc2_bias[10];
static const matrix net_conv1_weight_c = {
    net_conv1_weight_c_starts, net_conv1_weight_c_places, net_conv1_weight_c_codes, net_conv1_weight_c_values,
};
static const matrix net_conv2_weight_c = {
    net_conv2_weight_c_starts, net_conv2_weight_c_places, net_conv2_weight_c_codes, net_conv2_weight_c_values,
};
static const matrix net_fc1_weight_c = {
    net_fc1_weight_c_starts, net_fc1_weight_c_places, net_fc1_weight_c_codes, net_fc1_weight_c_values,
};
static const matrix net_fc2_weight_c = {
    net_fc2_weight_c_starts, net_fc2_weight_c_places, net_fc2_weight_c_codes, net_fc2_weight_c_values,
};

static const window net_conv1_window = {28, 28, 24, 24, 5, 5, 1, 1, 0, 0, 1, 1};
static const window net_max_pool2d_window = {24, 24, 12, 12, 2, 2, 2, 2, 0, 0, 1, 1};
static const window net_conv2_window = {12, 12, 8, 8, 5, 5, 1, 1, 0, 0, 1, 1};
static const window net_max_pool2d_1_window = {8, 8, 4, 4, 2, 2, 2, 2, 0, 0, 1, 1};

atmc_status atmc_model_init(void)
{
    atmc_decoder decoder;
    atmc_entry entry;
    atmc_status status = atmc_open(&decoder, artifact, sizeof artifact, memory.work,
                                   sizeof memory.work / sizeof *memory.work, ATMC_MAX_ELEMENTS);
    while (status == ATMC_OK && (status = atmc_next(&decoder, &entry)) == ATMC_OK)
        switch (entry.index) {
        case 0: /* conv1.weight */
            if (!(fits(&entry.c, 20, 25, 14, 9)))
                return ATMC_DAMAGED;
            pack_rows(&entry.c,
                net_conv1_weight_c_starts, net_conv1_weight_c_places, net_conv1_weight_c_codes, net_conv1_weight_c_values);
            break;
        case 1: /* conv1.bias */
            if (!(entry.size == 20))
                return ATMC_DAMAGED;
            pack_dense(&entry, net_conv1_bias);
            break;
        case 2: /* conv2.weight */
            if (!(fits(&entry.c, 50, 500, 407, 16)))
                return ATMC_DAMAGED;
            pack_rows(&entry.c,
                net_conv2_weight_c_starts, net_conv2_weight_c_places, net_conv2_weight_c_codes, net_conv2_weight_c_values);
            break;
        case 3: /* conv2.bias */
            if (!(entry.size == 50))
                return ATMC_DAMAGED;
            pack_dense(&entry, net_conv2_bias);
            break;
        case 4: /* fc1.weight */
            if (!(fits(&entry.c, 500, 800, 653, 8)))
                return ATMC_DAMAGED;
            pack_rows(&entry.c,
                net_fc1_weight_c_starts, net_fc1_weight_c_places, net_fc1_weight_c_codes, net_fc1_weight_c_values);
            break;
        case 5: /* fc1.bias */
            if (!(entry.size == 500))
                return ATMC_DAMAGED;
            pack_dense(&entry, net_fc1_bias);
            break;
        case 6: /* fc2.weight */
            if (!(fits(&entry.c, 10, 500, 304, 8)))
                return ATMC_DAMAGED;
            pack_rows(&entry.c,
                net_fc2_weight_c_starts, net_fc2_weight_c_places, net_fc2_weight_c_codes, net_fc2_weight_c_values);
            break;
        case 7: /* fc2.bias */
            if (!(entry.size == 10))
                return ATMC_DAMAGED;
            pack_dense(&entry, net_fc2_bias);
            break;
        default: /* in no use here */
            break;
        }
    return status;
}

void atmc_model_run(const float input[ATMC_MODEL_INPUTS], float output[ATMC_MODEL_OUTPUTS])
{
    float *const values = memory.values;
    uint32_t i;
    uint32_t channel;
    /* Conv2d conv1: 1x28x28 to 20x24x24; max_pool2d: 20x24x24 to 20x12x12 */
    for (channel = 0; channel < 20; channel++) {
        start(net_conv1_bias + channel, 1, 576, values + 2880);
        conv_rows(&net_conv1_window, &net_conv1_weight_c, channel, channel + 1, 20, 784, input, values + 2880);
        max_pool(&net_max_pool2d_window, 1, values + 2880, values + 0 + channel * 144);
    }
    /* relu: 20x12x12 to 20x12x12 */
    for (i = 0; i < 2880; i++) {
        const float x = (values + 0)[i];
        (values + 0)[i] = x < 0.0f ? 0.0f : x;
    }
    /* Conv2d conv2: 20x12x12 to 50x8x8; max_pool2d: 50x8x8 to 50x4x4 */
    for (channel = 0; channel < 50; channel++) {
        start(net_conv2_bias + channel, 1, 64, values + 3680);
        conv_rows(&net_conv2_window, &net_conv2_weight_c, channel, channel + 1, 50, 2880, values + 0, values + 3680);
        max_pool(&net_max_pool2d_1_window, 1, values + 3680, values + 2880 + channel * 16);
    }
    /* relu: 50x4x4 to 50x4x4 */
    for (i = 0; i < 800; i++) {
        const float x = (values + 2880)[i];
        (values + 2880)[i] = x < 0.0f ? 0.0f : x;
    }
    /* Linear fc1: 800 to 500 */
    start(net_fc1_bias, 500, 1, values + 0);
    linear_rows(&net_fc1_weight_c, 500, values + 2880, values + 0);
    /* relu: 500 to 500 */
    for (i = 0; i < 500; i++) {
        const float x = (values + 0)[i];
        (values + 0)[i] = x < 0.0f ? 0.0f : x;
    }
    /* Linear fc2: 500 to 10 */
    start(net_fc2_bias, 10, 1, output);
    linear_rows(&net_fc2_weight_c, 10, values + 0, output);
}
