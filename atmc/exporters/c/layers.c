/* The parts of model.c: atmc export copies those that a network needs, in this order. */

/* part types */
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

/* part pack */
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

/* part pack_rows pack */
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

/* part pack_columns pack */
/* Line g * columns + j is column j of group g. Starts are zeros before. */
static void pack_columns(const atmc_factor *f, uint32_t groups, atmc_start *starts,
                         atmc_place *places, uint8_t *codes, float *values)
{
    const uint32_t lines = groups * f->columns, rows = f->rows / groups;
    uint32_t row, i, line;
    for (row = 0; row < f->rows; row++)
        for (i = f->starts[row]; i < f->starts[row + 1]; i++)
            starts[row / rows * f->columns + atmc_column(f, i) + 1]++;
    for (line = 0; line < lines; line++)
        starts[line + 1] = (atmc_start)(starts[line + 1] + starts[line]);
    for (row = 0; row < f->rows; row++)
        for (i = f->starts[row]; i < f->starts[row + 1]; i++) {
            line = row / rows * f->columns + atmc_column(f, i);
            places[starts[line]] = (atmc_place)row;
            pack_value(f, i, starts[line]++, codes, values);
        }
    /* Each start is now the next one's. */
    for (line = lines; line > 0; line--)
        starts[line] = starts[line - 1];
    starts[0] = 0;
}

/* part pack_dense */
static void pack_dense(const atmc_entry *e, float *values)
{
    uint32_t i;
    for (i = 0; i < e->size; i++)
        values[i] = atmc_float(e, i);
}

/* part start */
/* Every output is the bias of its channel, or 0. */
static void start(const float *bias, uint32_t channels, uint32_t plane, float *output)
{
    uint32_t channel, i;
    for (channel = 0; channel < channels; channel++)
        for (i = 0; i < plane; i++)
            *output++ = bias != NULL ? bias[channel] : 0.0f;
}

/* part linear_rows types */
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

/* part linear_product types */
/* output += (I + U) V input with ATMC_LEFT, U (I + V) input with ATMC_RIGHT, else U V input. */
static void linear_product(const matrix *u, const matrix *v, uint32_t rank, atmc_identity identity,
                           const float *input, float *output)
{
    uint32_t line, i;
    for (line = 0; line < rank; line++) {
        float sum = identity == ATMC_RIGHT ? input[line] : 0.0f;
        for (i = v->starts[line]; i < v->starts[line + 1]; i++)
            sum += value_of(v, i) * input[v->places[i]];
        if (identity == ATMC_LEFT)
            output[line] += sum;
        for (i = u->starts[line]; i < u->starts[line + 1]; i++)
            output[u->places[i]] += value_of(u, i) * sum;
    }
}

/* part window */
/* A kernel that slides over the planes of an input. */
typedef struct {
    int32_t height, width, out_height, out_width;
    int32_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
} window;

/* part add_tap window */
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

/* part conv_rows types add_tap */
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

/* part conv_product types add_tap */
/* output += (I + U) V input with ATMC_LEFT, U (I + V) input with ATMC_RIGHT, else U V input, one
 * inner unit after the other, in `plane`.
 */
static void conv_product(const window *w, const matrix *u, const matrix *v, uint32_t groups,
                         uint32_t rank, uint32_t inputs, atmc_identity identity,
                         const float *input, float *plane, float *output)
{
    const uint32_t size = (uint32_t)(w->out_height * w->out_width);
    uint32_t line, i, k;
    for (line = 0; line < groups * rank; line++) {
        const float *from = input + line / rank * inputs;
        if (identity != ATMC_LEFT && u->starts[line] == u->starts[line + 1])
            continue;
        for (k = 0; k < size; k++)
            plane[k] = 0.0f;
        if (identity == ATMC_RIGHT)
            add_tap(w, from, line % rank, 1.0f, plane);
        for (i = v->starts[line]; i < v->starts[line + 1]; i++)
            add_tap(w, from, v->places[i], value_of(v, i), plane);
        if (identity == ATMC_LEFT)
            for (k = 0; k < size; k++)
                output[line * size + k] += plane[k];
        for (i = u->starts[line]; i < u->starts[line + 1]; i++) {
            const float value = value_of(u, i);
            float *to = output + u->places[i] * size;
            for (k = 0; k < size; k++)
                to[k] += value * plane[k];
        }
    }
}

/* part batch_norm */
/* Without a variance it is 1, without a mean 0. */
static void batch_norm(const float *mean, const float *variance, const float *scale,
                       const float *shift, float epsilon, uint32_t channels, uint32_t plane,
                       const float *input, float *output)
{
    uint32_t channel, i;
    for (channel = 0; channel < channels; channel++) {
        const float deviation = sqrtf((variance != NULL ? variance[channel] : 1.0f) + epsilon);
        const float a = (scale != NULL ? scale[channel] : 1.0f) / deviation;
        const float b = (shift != NULL ? shift[channel] : 0.0f) -
                        (mean != NULL ? mean[channel] * a : 0.0f);
        for (i = 0; i < plane; i++)
            *output++ = a * *input++ + b;
    }
}

/* part clip */
static int32_t clip(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* part max_pool window clip */
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

/* part avg_pool window clip */
/* A sum is divided by `divisor`; if that is 0 by the number of values, and with `padded` of the
 * padding around them as well.
 */
static void avg_pool(const window *w, uint32_t channels, int padded, int32_t divisor,
                     const float *input, float *output)
{
    int32_t y, x, in_y, in_x;
    for (; channels > 0; channels--, input += w->height * w->width)
        for (y = 0; y < w->out_height; y++)
            for (x = 0; x < w->out_width; x++) {
                const int32_t top = y * w->stride_y - w->pad_y, left = x * w->stride_x - w->pad_x;
                const int32_t below = clip(top + w->kernel_y, 0, w->height + w->pad_y);
                const int32_t right = clip(left + w->kernel_x, 0, w->width + w->pad_x);
                const int32_t first_y = clip(top, 0, w->height), end_y = clip(below, 0, w->height);
                const int32_t first_x = clip(left, 0, w->width), end_x = clip(right, 0, w->width);
                int32_t count = (end_y - first_y) * (end_x - first_x);
                float sum = 0.0f;
                for (in_y = first_y; in_y < end_y; in_y++)
                    for (in_x = first_x; in_x < end_x; in_x++)
                        sum += input[in_y * w->width + in_x];
                if (divisor != 0)
                    count = divisor;
                else if (padded)
                    count = (below - top) * (right - left);
                *output++ = sum / (float)count;
            }
}

/* part adaptive_pool window */
/* The largest value of each part of a plane, or their mean. Parts may overlap. */
static void adaptive_pool(const window *w, uint32_t channels, int largest, const float *input,
                          float *output)
{
    int32_t y, x, in_y, in_x;
    for (; channels > 0; channels--, input += w->height * w->width)
        for (y = 0; y < w->out_height; y++)
            for (x = 0; x < w->out_width; x++) {
                const int32_t first_y = y * w->height / w->out_height;
                const int32_t first_x = x * w->width / w->out_width;
                const int32_t end_y = ((y + 1) * w->height + w->out_height - 1) / w->out_height;
                const int32_t end_x = ((x + 1) * w->width + w->out_width - 1) / w->out_width;
                float sum = 0.0f, most = -INFINITY;
                for (in_y = first_y; in_y < end_y; in_y++)
                    for (in_x = first_x; in_x < end_x; in_x++) {
                        const float value = input[in_y * w->width + in_x];
                        sum += value;
                        most = value > most ? value : most;
                    }
                sum /= (float)((end_y - first_y) * (end_x - first_x));
                *output++ = largest ? most : sum;
            }
}
