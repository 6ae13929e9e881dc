/* Decoder of atmc artifacts, format version 1 (docs/FORMAT.md). C99, no allocation, no state of
 * its own.
 *
 *     atmc_decoder decoder;
 *     atmc_entry entry;
 *     status = atmc_open(&decoder, data, size, work, words, ATMC_MAX_ELEMENTS);
 *     while (status == ATMC_OK && (status = atmc_next(&decoder, &entry)) == ATMC_OK)
 *         ... use the entry ...
 *     if (status != ATMC_END)
 *         ... refuse what was decoded ...
 *
 * The decoder is safe on any bytes: it writes to its arguments and to the work buffer alone, and
 * refuses what the format does not allow, except in metadata and names, which it does not parse.
 * On a core of a desktop computer it takes up to about 40 ns for each element that the file claims
 * to have (at most max_elements), 6 us for each row of an order that carries bits, and 5 us for
 * each byte; usually it takes a tenth of that.
 *
 * Results are the same to the bit on every machine. Positions depend on arithmetic in double
 * (docs/FORMAT.md, "chances"): it must be IEEE 754 binary64, rounded to nearest, with each
 * operation rounded on its own. So compile without -ffast-math or any part of it, and on x86 for
 * SSE2 instead of the x87 unit (-m32: -msse2 -mfpmath=sse).
 */
#ifndef ATMC_DECODE_H
#define ATMC_DECODE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The most that max_elements can be. */
#define ATMC_MAX_ELEMENTS ((uint32_t)1 << 28)
#define ATMC_MAX_DIMENSIONS 32

typedef enum {
    ATMC_OK,
    ATMC_END,             /* after the last entry: the whole file was sound */
    ATMC_FOREIGN,         /* not an atmc file */
    ATMC_VERSION,         /* an atmc file of another version: byte 3 of the file says which */
    ATMC_DAMAGED,         /* the format does not allow this */
    ATMC_TOO_LARGE,       /* more than max_elements, or a file of 2^31 bytes or more */
    ATMC_TOO_LITTLE_WORK /* words_needed says how many words allow the decoder to go on */
} atmc_status;

typedef enum { ATMC_WEIGHT, ATMC_DENSE, ATMC_INTEGERS } atmc_kind;
typedef enum { ATMC_NO_IDENTITY, ATMC_LEFT, ATMC_RIGHT } atmc_identity;
typedef enum { ATMC_NO_METADATA, ATMC_MODEL_NAME, ATMC_JSON } atmc_metadata_kind;

/* U, V or C as a sparse matrix, compressed by rows. The groups of a weight lie below each other.
 *
 * Nonzeros i of row r are those with starts[r] <= i < starts[r + 1], and their columns,
 * atmc_column(factor, i), ascend. With a codebook, the value of nonzero i is
 * levels[codes[i]] * 2^exponent, exactly. Without, it is the float32 with the bits bits[i].
 * atmc_value(factor, i) is the value in both cases. If nonzeros is 0, all pointers are NULL.
 */
typedef struct {
    uint32_t rows, columns, nonzeros;
    const uint32_t *starts; /* rows + 1 */
    const uint8_t *indices; /* of atmc_column: uint16_t if there are at most 2^16 columns */
    int has_codebook;       /* format 0 in the file */
    uint32_t level_count;   /* 1 to 256 */
    int level_bits, exponent;
    const int32_t *levels; /* ascending, none is 0 */
    const uint8_t *codes;
    const uint32_t *bits;
} atmc_factor;

/* A tensor of the file. Its name is the element of `names` in the decoder with the same index.
 *
 * A weight is W = U V + C, (I + U) V + C with ATMC_LEFT, U (I + V) + C with ATMC_RIGHT, group by
 * group. Its axes are (out, in / groups, kernel), or (in, out / groups, kernel) if transposed;
 * rows of W are outputs, columns are inputs and kernel.
 */
typedef struct {
    atmc_kind kind;
    uint32_t index;
    uint32_t dimensions, shape[ATMC_MAX_DIMENSIONS];
    uint32_t size; /* number of elements of that shape */

    /* of a weight */
    uint32_t groups, rank;
    int transposed;
    atmc_identity identity;
    atmc_factor u, v, c;

    /* ATMC_DENSE: bits of a float32 for each element; ATMC_INTEGERS: the lower and the upper half
     * of an int64 (two's complement) for each. C order. atmc_float and atmc_integer read them.
     */
    const uint32_t *words;
} atmc_entry;

typedef struct {
    const uint8_t *rest, *carried;
    uint32_t rest_size, carried_bits, size, next;
    uint64_t lower, range, point;
    atmc_status status;
} atmc_coder;

typedef struct {
    /* Results of atmc_open. Metadata and names lie in the work buffer and are not parsed here:
     * a model's name in ASCII, or JSON in UTF-8. Names are a JSON array of strings, and NULL if
     * the file has none.
     */
    uint32_t entries;
    atmc_metadata_kind metadata_kind;
    const uint8_t *metadata, *names;
    uint32_t metadata_size, names_size;
    uint64_t words_needed;

    /* private */
    uint32_t *work;
    uint32_t words, base, bottom, top, peak;
    uint32_t max_elements, elements_left, index;
    int weight_seen;
    uint32_t outputs, live_outputs, carried_at, carried_bits;
    atmc_coder structure, values;
    atmc_status status;
} atmc_decoder;

/* Check the file, and read everything but values to find out how much work memory it takes.
 *
 * data: the file; it must stay in place while the decoder is in use, like the work buffer.
 * work, words: a buffer of so many uint32_t for metadata, names and one entry at a time.
 * max_elements: limit of the elements of all tensors together, with zeros, and those of U and V
 *     (FORMAT.md, "Limits"); at most ATMC_MAX_ELEMENTS. Time and memory grow with it.
 *
 * With ATMC_TOO_LITTLE_WORK, try again with words_needed words, or twice as many as before if that
 * is more. With ATMC_OK, words_needed is the least number that suffices for this file, the same on
 * every machine, and atmc_next never fails for lack of work.
 */
atmc_status atmc_open(atmc_decoder *decoder, const uint8_t *data, size_t size, uint32_t *work,
                      size_t words, uint32_t max_elements);

/* Read the next entry. It stays valid until the next call, and is not valid at all with any status
 * but ATMC_OK. After the last entry the status is ATMC_END: only then is it known that the whole
 * file is sound. ATMC_END and errors repeat.
 */
atmc_status atmc_next(atmc_decoder *decoder, atmc_entry *entry);

/* Column of a nonzero. */
static inline uint32_t atmc_column(const atmc_factor *factor, uint32_t nonzero)
{
    uint32_t column;
    uint16_t narrow;
    if (factor->columns > 65536) {
        memcpy(&column, factor->indices + 4 * (size_t)nonzero, sizeof column);
        return column;
    }
    memcpy(&narrow, factor->indices + 2 * (size_t)nonzero, sizeof narrow);
    return narrow;
}

/* Value of a nonzero. */
float atmc_value(const atmc_factor *factor, uint32_t nonzero);

/* The factor as a dense matrix of rows * columns values, row by row. */
void atmc_expand(const atmc_factor *factor, float *values);

/* Element of an entry of kind ATMC_DENSE. */
float atmc_float(const atmc_entry *entry, uint32_t element);

/* Element of an entry of kind ATMC_INTEGERS. */
int64_t atmc_integer(const atmc_entry *entry, uint32_t element);

#ifdef __cplusplus
}
#endif

#endif
