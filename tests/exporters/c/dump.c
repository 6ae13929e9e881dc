/* Decodes files from stdin and prints all that the decoder says of them.
 *
 * Input: max_elements, then for each file its size and its bytes. Output: for each file the number
 * of words that follow and the words. Numbers are 4 bytes, little-endian.
 */
#include "atmc_decode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t *output;
static size_t output_size, output_room;

static void fail(const char *message)
{
    fprintf(stderr, "%s\n", message);
    abort();
}

static void *allocate(size_t size)
{
    /* Of just this size, so that the sanitizer sees every access outside. */
    void *memory = malloc(size > 0 ? size : 1);
    if (memory == NULL)
        fail("out of memory");
    return memory;
}

static void put(uint32_t word)
{
    if (output_size == output_room) {
        output_room = 2 * output_room + 1024;
        output = realloc(output, output_room * sizeof *output);
        if (output == NULL)
            fail("out of memory");
    }
    output[output_size++] = word;
}

static void put_bytes(const uint8_t *bytes, uint32_t count)
{
    uint32_t i;
    put(count);
    for (i = 0; i < count; i++)
        put(bytes[i]);
}

static void put_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put(bits);
}

static void put_factor(const atmc_factor *f)
{
    uint32_t i, row;
    put(f->rows);
    put(f->columns);
    put((uint32_t)f->has_codebook);
    put(f->nonzeros);
    if (f->nonzeros == 0) {
        if (f->starts || f->indices || f->levels || f->codes || f->bits)
            fail("pointers of an empty factor");
    } else {
        if (f->starts[0] != 0 || f->starts[f->rows] != f->nonzeros)
            fail("starts");
        for (row = 0; row < f->rows; row++)
            for (i = f->starts[row]; i < f->starts[row + 1]; i++) {
                put(row);
                put(atmc_column(f, i));
                put_float(atmc_value(f, i));
            }
        if (f->has_codebook) {
            put((uint32_t)f->level_bits);
            put((uint32_t)f->exponent);
            put(f->level_count);
            for (i = 0; i < f->level_count; i++)
                put((uint32_t)f->levels[i]);
            for (i = 0; i < f->nonzeros; i++)
                put(f->codes[i]);
        }
    }
    if (f->rows * f->columns <= 4096) {
        float *values = allocate(f->rows * f->columns * sizeof *values);
        atmc_expand(f, values);
        for (i = 0; i < f->rows * f->columns; i++)
            put_float(values[i]);
        free(values);
    }
}

static void put_entry(const atmc_entry *e)
{
    uint32_t i;
    put((uint32_t)e->kind);
    put(e->index);
    put(e->dimensions);
    for (i = 0; i < e->dimensions; i++)
        put(e->shape[i]);
    put(e->size);
    if (e->kind == ATMC_WEIGHT) {
        put(e->groups);
        put((uint32_t)e->transposed);
        put((uint32_t)e->identity);
        put(e->rank);
        put_factor(&e->u);
        put_factor(&e->v);
        put_factor(&e->c);
        return;
    }
    for (i = 0; i < e->size; i++) {
        if (e->kind == ATMC_DENSE) {
            put_float(atmc_float(e, i));
        } else {
            uint64_t value = (uint64_t)atmc_integer(e, i);
            put((uint32_t)value);
            put((uint32_t)(value >> 32));
        }
    }
}

static atmc_status dump(const uint8_t *data, size_t size, uint32_t *work, size_t words,
                        uint32_t max_elements, size_t *needed)
{
    atmc_decoder d;
    atmc_entry entry;
    atmc_status status = atmc_open(&d, data, size, work, words, max_elements);
    *needed = (size_t)d.words_needed;
    if (status != ATMC_OK) {
        if (atmc_next(&d, &entry) != status)
            fail("an error does not repeat");
        return status;
    }
    put((uint32_t)d.metadata_kind);
    put_bytes(d.metadata, d.metadata_size);
    put(d.names != NULL);
    put_bytes(d.names, d.names_size);
    put(d.entries);
    while ((status = atmc_next(&d, &entry)) == ATMC_OK)
        put_entry(&entry);
    if (atmc_next(&d, &entry) != status)
        fail("the end does not repeat");
    return status;
}

/* All that the decoder says of a file, in output. */
static void answer(const uint8_t *data, size_t size, uint32_t max_elements)
{
    size_t words = 0, needed = 0;
    atmc_status status = ATMC_TOO_LITTLE_WORK;
    uint32_t *work = NULL;
    while (status == ATMC_TOO_LITTLE_WORK) {
        work = allocate(words * sizeof *work);
        output_size = 0;
        put(0); /* the status */
        status = dump(data, size, work, words, max_elements, &needed);
        free(work);
        if (status == ATMC_TOO_LITTLE_WORK) {
            if (needed <= words)
                fail("words_needed does not grow");
            words = needed > 2 * words ? needed : 2 * words;
        }
    }
    output[0] = (uint32_t)status;
    if (status == ATMC_END) {
        size_t before = output_size, again;
        work = allocate(needed * sizeof *work);
        if (dump(data, size, work, needed, max_elements, &again) != ATMC_END || again != needed)
            fail("words_needed does not suffice");
        output_size = before;
        if (needed > 0 &&
            dump(data, size, work, needed - 1, max_elements, &again) != ATMC_TOO_LITTLE_WORK)
            fail("words_needed is too much");
        free(work);
        output_size = before;
    }
    put((uint32_t)needed);
}

#ifdef FUZZ

/* Under a checksum that is right, so that decoding goes past it; the bytes are what follows. */
int LLVMFuzzerTestOneInput(const uint8_t *stream, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *stream, size_t size)
{
    uint8_t *data = allocate(8 + size);
    uint32_t crc = 0xFFFFFFFF;
    size_t i;
    int bit;
    memcpy(data, "atm\1", 4);
    memcpy(data + 8, stream, size);
    for (i = 0; i < 8 + size; i++) {
        if (i >= 4 && i < 8)
            continue;
        crc ^= data[i];
        for (bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    for (i = 0; i < 4; i++)
        data[4 + i] = (uint8_t)(~crc >> 8 * i);
    answer(data, 8 + size, 1 << 16);
    free(data);
    return 0;
}

#else

static int read_number(uint32_t *number)
{
    unsigned char bytes[4];
    if (fread(bytes, 1, 4, stdin) != 4)
        return 0;
    *number = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
              (uint32_t)bytes[3] << 24;
    return 1;
}

static void print_number(uint32_t number)
{
    int i;
    for (i = 0; i < 4; i++)
        putchar((int)(number >> 8 * i & 255));
}

int main(void)
{
    uint32_t max_elements, size;
    if (!read_number(&max_elements))
        fail("no max_elements");
    while (read_number(&size)) {
        uint8_t *data = allocate(size);
        size_t i;
        if (fread(data, 1, size, stdin) != size)
            fail("a file is cut short");
        answer(data, size, max_elements);
        free(data);
        print_number((uint32_t)output_size);
        for (i = 0; i < output_size; i++)
            print_number(output[i]);
    }
    free(output);
    return 0;
}

#endif
