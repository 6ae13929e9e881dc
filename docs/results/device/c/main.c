/* classify [FILE]: the logits of each image in FILE, or in the standard input, one line an image.
 *
 * FILE is a binary PGM or PPM image of 8 bits (P5 or P6) of the model's size, whose bytes become
 * values from 0 to 1; or raw float32 values in this machine's byte order, channel after channel and
 * row after row, of any number of images.
 */
#include <stdio.h>
#include <string.h>

#include "model.h"

static float input[ATMC_MODEL_INPUTS], output[ATMC_MODEL_OUTPUTS];

static int fail(const char *problem)
{
    fprintf(stderr, "classify: %s\n", problem);
    return 1;
}

static void print_logits(void)
{
    size_t i;
    atmc_model_run(input, output);
    for (i = 0; i < ATMC_MODEL_OUTPUTS; i++)
        printf("%.9g%c", (double)output[i], i + 1 < ATMC_MODEL_OUTPUTS ? ' ' : '\n');
}

/* A number of the head of a PGM or PPM image; comments are skipped. */
static unsigned read_number(FILE *file)
{
    unsigned number = 0;
    int c = fgetc(file);
    while (c == '#' || c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        if (c == '#')
            while (c != '\n' && c != EOF)
                c = fgetc(file);
        c = fgetc(file);
    }
    for (; c >= '0' && c <= '9' && number < 100000; c = fgetc(file))
        number = 10 * number + (unsigned)(c - '0');
    return number;
}

static int read_image(FILE *file, int type)
{
    const unsigned channels = type == '6' ? 3 : 1;
    const unsigned width = read_number(file), height = read_number(file);
    const unsigned most = read_number(file);
    size_t channel, i;
    if (channels != ATMC_MODEL_CHANNELS || width != ATMC_MODEL_WIDTH ||
        height != ATMC_MODEL_HEIGHT)
        return fail("the image has another size, or other channels, than the model");
    if (most < 1 || most > 255)
        return fail("the image has not 8 bits a value");
    for (i = 0; i < ATMC_MODEL_INPUTS / ATMC_MODEL_CHANNELS; i++)
        for (channel = 0; channel < ATMC_MODEL_CHANNELS; channel++) {
            const int c = fgetc(file);
            if (c == EOF)
                return fail("the image is cut off");
            input[channel * (ATMC_MODEL_INPUTS / ATMC_MODEL_CHANNELS) + i] =
                (float)c / (float)most;
        }
    print_logits();
    return 0;
}

int main(int count, char **arguments)
{
    FILE *file = count > 1 ? fopen(arguments[1], "rb") : stdin;
    size_t size;
    unsigned char head[3];
    if (file == NULL)
        return fail("the file cannot be opened");
    if (atmc_model_init() != ATMC_END)
        return fail("the artifact is damaged");
    size = fread(head, 1, sizeof head, file);
    if (size == sizeof head && head[0] == 'P' && (head[1] == '5' || head[1] == '6') &&
        (head[2] == ' ' || head[2] == '\n'))
        return read_image(file, head[1]);
    memcpy(input, head, size);
    while ((size += fread((char *)input + size, 1, sizeof input - size, file)) == sizeof input) {
        print_logits();
        size = 0;
    }
    return size > 0 ? fail("the input is no whole number of images") : 0;
}
