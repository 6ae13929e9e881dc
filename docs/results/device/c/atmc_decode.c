/* Decoder of atmc artifacts; names in quotes are sections of docs/FORMAT.md. */
#include "atmc_decode.h"

#include <float.h>
#include <string.h>

/* "Chances" need these types; other ones would decode other positions. */
#if FLT_RADIX != 2 || FLT_MANT_DIG != 24 || DBL_MANT_DIG != 53
#error "atmc_decode.c needs IEEE 754 float and double"
#endif
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 1 && FLT_EVAL_METHOD != 16
#error "double must be evaluated as double: on x86 compile with -msse2 -mfpmath=sse"
#endif
#ifdef __FAST_MATH__
#error "atmc_decode.c needs exact floating point: compile without -ffast-math"
#endif

#define TOTAL ((uint32_t)1 << 24) /* of the frequencies of a symbol */
#define MAX_RUN 4096
#define MAX_LEVELS 256
#define MAX_COLUMNS ((uint32_t)1 << 20)
#define MAX_BATCH ((uint32_t)1 << 16)
#define MAX_ORDERED ((uint32_t)1 << 16)
#define ORDER_RUN 1024
#define SCALES 39
#define MEAN_SCALE 11

/* ---- The stream ---- */

static void fail(atmc_coder *c, atmc_status status)
{
    if (c->status == ATMC_OK)
        c->status = status;
}

/* The carried bits come first, then those of the rest; zeros follow. */
static uint32_t byte_at(const atmc_coder *c, uint32_t i)
{
    uint32_t whole = c->carried_bits / 8, shift = c->carried_bits % 8, byte = 0;
    if (i < whole + (shift > 0))
        byte = c->carried[i];
    if (i >= whole) {
        if (i - whole < c->rest_size)
            byte |= (uint32_t)c->rest[i - whole] << shift;
        if (i > whole && i - whole - 1 < c->rest_size)
            byte |= (uint32_t)c->rest[i - whole - 1] >> (8 - shift);
    }
    return byte & 255;
}

static void take_in(atmc_coder *c, int bytes)
{
    for (; bytes > 0; bytes--)
        c->point = c->point << 8 | byte_at(c, c->next++);
}

static void start_coder(atmc_coder *c, const uint8_t *carried, uint32_t carried_bits,
                        const uint8_t *rest, uint32_t rest_size)
{
    c->carried = carried;
    c->carried_bits = carried_bits;
    c->rest = rest;
    c->rest_size = rest_size;
    c->size = rest_size + carried_bits / 8 + (carried_bits % 8 > 0);
    c->next = 0;
    c->lower = c->point = 0;
    c->range = UINT64_MAX;
    c->status = ATMC_OK;
    take_in(c, 8);
}

/* Where the point lies among the 2^24 parts of the range. */
static uint32_t quantile(atmc_coder *c)
{
    uint64_t q = (c->point - c->lower) / (c->range >> 24);
    if (q >= TOTAL) {
        fail(c, ATMC_DAMAGED);
        q = 0;
    }
    return (uint32_t)q;
}

/* Go on behind the symbol of this cumulative and frequency. */
static void narrow(atmc_coder *c, uint32_t cumulative, uint32_t frequency)
{
    uint64_t scale = c->range >> 24;
    c->lower += scale * cumulative;
    c->range = scale * frequency;
    if (c->range >> 32 == 0) {
        c->lower <<= 32;
        c->range <<= 32;
        take_in(c, 4);
        /* Whole words stay in the stream, so that it is at least as long as what was shifted out:
         * without this, the zeros behind the end could be decoded forever.
         */
        if (c->next - 8 > c->size)
            fail(c, ATMC_DAMAGED);
    }
}

static uint32_t uniform(atmc_coder *c, uint32_t n)
{
    uint32_t each = TOTAL / n, symbol;
    if (n == 1)
        return 0;
    symbol = quantile(c) / each;
    if (symbol >= n - 1) {
        symbol = n - 1;
        narrow(c, each * symbol, TOTAL - each * symbol);
    } else {
        narrow(c, each * symbol, each);
    }
    return c->status == ATMC_OK ? symbol : 0;
}

/* Width is at most 64. */
static uint64_t read_bits(atmc_coder *c, unsigned width)
{
    uint64_t value = 0;
    while (width > 0) {
        unsigned digit = (width - 1) % 16 + 1;
        value = value << digit | uniform(c, (uint32_t)1 << digit);
        width -= digit;
    }
    return value;
}

static uint64_t golomb(atmc_coder *c, unsigned order)
{
    unsigned length = order;
    while (uniform(c, 2)) {
        if (++length > 63) {
            fail(c, ATMC_DAMAGED);
            return 0;
        }
    }
    return ((uint64_t)1 << length) + read_bits(c, length) - ((uint64_t)1 << order);
}

static unsigned bit_length(uint64_t value)
{
    unsigned length = 0;
    for (; value > 0; value >>= 1)
        length++;
    return length;
}

/* The maximum is a number of elements, and so the value is. */
static uint32_t bounded(atmc_coder *c, uint32_t maximum)
{
    unsigned length;
    uint64_t value;
    if (maximum == 0 || uniform(c, 2) == 0)
        return 0;
    length = uniform(c, bit_length(maximum));
    value = ((uint64_t)1 << length) + read_bits(c, length);
    if (value > maximum) {
        fail(c, ATMC_DAMAGED);
        return 0;
    }
    return (uint32_t)value;
}

static int read_bit(atmc_coder *c, uint32_t chance)
{
    uint32_t zero = 1 + (uint32_t)((uint64_t)(TOTAL - chance) * (TOTAL - 2) >> 24);
    uint64_t scale = c->range >> 24, offset = c->point - c->lower;
    if (offset < scale * zero) {
        narrow(c, 0, zero);
        return 0;
    }
    if (offset >= scale << 24)
        fail(c, ATMC_DAMAGED);
    narrow(c, zero, TOTAL - zero);
    return c->status == ATMC_OK;
}

/* Length of a stream that ends here, if its bytes are those that an encoder writes.
 *
 * The encoder writes the first multiple P of 2^drop, not below lower, with the largest drop. As
 * point - lower < range always holds, all bytes are right if point - lower is P - lower.
 */
static uint32_t end_of(atmc_coder *c, int followed)
{
    uint64_t offset = c->point - c->lower;
    unsigned bytes;
    if (!followed) {
        uint64_t gap = 0 - c->lower; /* drop = 64 */
        if (gap < c->range) {
            if (offset != gap)
                fail(c, ATMC_DAMAGED);
            return c->next - 8;
        }
    }
    for (bytes = 1; bytes <= 8; bytes++) {
        uint64_t cell = (uint64_t)1 << (64 - 8 * bytes);
        uint64_t gap = (0 - c->lower) & (cell - 1);
        if (followed ? gap + cell <= c->range : gap < c->range) {
            if (followed ? offset < gap || offset - gap >= cell : offset != gap)
                fail(c, ATMC_DAMAGED);
            break;
        }
    }
    return c->next - 8 + bytes;
}

/* The end of the last stream is that of the file. */
static void finish(atmc_coder *c)
{
    uint32_t end = end_of(c, 0), i;
    uint64_t bits = 8 * (uint64_t)end;
    uint64_t rest = bits > c->carried_bits ? (bits - c->carried_bits + 7) / 8 : 0;
    if (rest != c->rest_size)
        fail(c, ATMC_DAMAGED);
    for (i = end; i < c->size; i++)
        if (byte_at(c, i) != 0)
            fail(c, ATMC_DAMAGED);
}

/* ---- Work memory: entries grow from the bottom, scratch from the top ---- */

static int failed(const atmc_decoder *d)
{
    return d->status != ATMC_OK || d->structure.status != ATMC_OK || d->values.status != ATMC_OK;
}

static int reserve(atmc_decoder *d, uint32_t words)
{
    uint64_t used = (uint64_t)(d->words - d->top) + d->bottom + words;
    uint32_t of_entry = d->words - d->top + d->bottom - d->base;
    if (used > d->words_needed)
        d->words_needed = used;
    if (failed(d))
        return 0;
    if (words > d->top - d->bottom) {
        d->status = ATMC_TOO_LITTLE_WORK;
        return 0;
    }
    if (of_entry + words > d->peak)
        d->peak = of_entry + words;
    return 1;
}

/* NULL if there is no room, or something has failed before. */
static uint32_t *for_entry(atmc_decoder *d, uint32_t words)
{
    if (!reserve(d, words))
        return NULL;
    d->bottom += words;
    return d->work + d->bottom - words;
}

static uint32_t *scratch(atmc_decoder *d, uint32_t words)
{
    if (!reserve(d, words))
        return NULL;
    d->top -= words;
    return d->work + d->top;
}

/* Words are the only type of the work buffer; bytes may lie in words of any type. */
static uint32_t words_of_bytes(uint32_t bytes)
{
    return bytes / 4 + (bytes % 4 > 0);
}

/* ---- "subset(k, N)" ---- */

typedef struct {
    atmc_coder *coder;
    uint32_t size, left, missing, place; /* places; members and coded places not yet read */
    uint32_t longest, miss, tail, extra; /* tail: cumulative of the longest run */
    int complement;
    uint32_t cursor, hole;
} subset;

/* Frequency of a run, given what is left of 2^32 before and after it. */
static uint32_t run_frequency(const subset *s, uint64_t before, uint64_t after)
{
    return 1 + (uint32_t)((before - after) * (TOTAL - s->longest - 1) >> 32);
}

/* Runs are searched one by one: so no table is needed, and it takes no longer than the places that
 * are skipped.
 */
static uint32_t read_run(subset *s)
{
    uint32_t q = quantile(s->coder), cumulative = 0, run = 0;
    uint64_t left = (uint64_t)1 << 32;
    if (q >= s->tail) {
        narrow(s->coder, s->tail, TOTAL - s->tail);
        return s->longest;
    }
    for (;; run++) {
        uint64_t after = left * s->miss >> 24;
        uint32_t frequency = run_frequency(s, left, after) + (run == 0 ? s->extra : 0);
        if (q - cumulative < frequency) {
            narrow(s->coder, cumulative, frequency);
            return run;
        }
        cumulative += frequency;
        left = after;
    }
}

/* The next coded place; the size after the last one, and after damage. */
static uint32_t next_coded(subset *s)
{
    while (s->missing > 0 && s->coder->status == ATMC_OK) {
        uint32_t run = read_run(s);
        uint32_t step = run < s->longest ? run + 1 : run;
        if (step > s->size - s->place) {
            fail(s->coder, ATMC_DAMAGED);
            break;
        }
        s->place += step;
        if (run < s->longest) {
            s->missing--;
            return s->place - 1;
        }
    }
    return s->size;
}

static void start_subset(subset *s, atmc_coder *c, uint32_t count, uint32_t size)
{
    uint32_t coded = count < size - count ? count : size - count, i;
    s->coder = c;
    s->size = size;
    s->left = count;
    s->missing = coded;
    s->place = s->cursor = 0;
    s->complement = coded < count;
    if (coded > 0) {
        uint64_t left = (uint64_t)1 << 32, first = 0;
        uint64_t p = (((uint64_t)coded << 24) + size / 2) / size;
        s->longest = 1;
        while (s->longest < MAX_RUN && s->longest <= size / coded / 2)
            s->longest *= 2;
        s->miss = TOTAL - (uint32_t)(p > 0 ? p : 1);
        s->tail = 0;
        for (i = 0; i < s->longest; i++) {
            uint64_t after = left * s->miss >> 24;
            if (i == 0)
                first = left - after;
            s->tail += run_frequency(s, left, after);
            left = after;
        }
        /* The largest weight is that of the run 0 or of the longest. */
        s->extra = first >= left ? TOTAL - s->tail - run_frequency(s, left, 0) : 0;
        s->tail += s->extra;
    }
    s->hole = s->complement ? next_coded(s) : 0;
}

/* To be called just as often as the subset has members: the last call reads what is left. */
static uint32_t next_member(subset *s)
{
    uint32_t member;
    s->left--;
    if (!s->complement)
        return next_coded(s);
    while (s->cursor == s->hole && s->hole < s->size) {
        s->cursor++;
        s->hole = next_coded(s);
    }
    member = s->cursor++;
    if (s->left == 0)
        while (s->missing > 0 && next_coded(s) < s->size)
            continue;
    return member;
}

/* ---- "codes" ---- */

#define CODE_TABLE (MAX_LEVELS + 1) /* words */

typedef struct {
    atmc_coder *coder;
    uint32_t levels;
    uint32_t *table; /* cumulatives of the codes and the total; NULL: all equally likely */
} codes;

static uint64_t token_weight(uint32_t token, unsigned mantissa)
{
    uint32_t exponent = token >> mantissa, shift = exponent > 1 ? exponent - 1 : 0;
    return (uint64_t)(token - (shift << mantissa)) << shift;
}

/* The token whose weight is nearest to the count, the larger of two. */
static uint32_t nearest_token(uint32_t count, unsigned mantissa)
{
    uint32_t token = 1;
    while (token_weight(token, mantissa) < count)
        token++;
    if (token_weight(token, mantissa) - count > count - token_weight(token - 1, mantissa))
        token--;
    return token;
}

/* table: CODE_TABLE words. */
static void start_codes(codes *s, atmc_coder *c, uint32_t count, uint32_t levels, uint32_t *table)
{
    unsigned choice, order, mantissa;
    uint32_t token, top, i, largest = 0, cumulative = 0;
    uint64_t sum = 0;
    s->coder = c;
    s->levels = levels > 1 && count > 0 ? levels : 1;
    s->table = NULL;
    if (s->levels == 1 || (choice = uniform(c, 4)) == 0)
        return;
    mantissa = choice == 3 ? 3 : choice - 1;
    order = uniform(c, 4);
    top = nearest_token(count, mantissa);
    token = bounded(c, top);
    for (i = 0;; i++) {
        uint64_t step;
        table[i] = token;
        sum += token_weight(token, mantissa);
        if (token > table[largest])
            largest = i;
        if (i == levels - 1)
            break;
        step = golomb(c, order);
        if (step % 2 == 0 ? step / 2 > top - token : step / 2 >= token) {
            fail(c, ATMC_DAMAGED);
            return;
        }
        token = step % 2 == 0 ? token + (uint32_t)(step / 2) : token - (uint32_t)(step / 2) - 1;
    }
    if (sum == 0) {
        fail(c, ATMC_DAMAGED);
        return;
    }
    for (i = 0; i < levels; i++) {
        uint64_t weight = token_weight(table[i], mantissa);
        table[i] = cumulative;
        cumulative += 1 + (uint32_t)(weight * (TOTAL - levels) / sum);
    }
    for (i = largest + 1; i < levels; i++)
        table[i] += TOTAL - cumulative;
    table[levels] = TOTAL;
    s->table = table;
}

static uint32_t next_code(codes *s)
{
    uint32_t q, low = 0, high = s->levels;
    if (s->table == NULL)
        return uniform(s->coder, s->levels);
    q = quantile(s->coder);
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (s->table[middle] <= q)
            low = middle;
        else
            high = middle;
    }
    narrow(s->coder, s->table[low], s->table[low + 1] - s->table[low]);
    return low;
}

/* ---- "order" ---- */

/* A factor while its positions are read; its columns while they are still places among those that
 * remain.
 */
typedef struct {
    atmc_factor *factor;
    uint32_t *starts;
    uint8_t *indices;
    uint32_t index_bytes;
    uint32_t row, count; /* starts are known up to this row; nonzeros so far */
} matrix;

static void fill_rows(matrix *m, uint32_t row)
{
    while (m->row < row)
        m->starts[++m->row] = m->count;
}

static void set_column(matrix *m, uint32_t nonzero, uint32_t column)
{
    uint16_t narrow = (uint16_t)column;
    if (m->index_bytes == 4)
        memcpy(m->indices + 4 * (size_t)nonzero, &column, sizeof column);
    else
        memcpy(m->indices + 2 * (size_t)nonzero, &narrow, sizeof narrow);
}

/* < 0 if row a sorts before row b, 0 if they are equal. */
static int compare_rows(const matrix *m, uint32_t a, uint32_t b)
{
    uint32_t count = m->starts[a + 1] - m->starts[a], i;
    if (count != m->starts[b + 1] - m->starts[b])
        return count > m->starts[b + 1] - m->starts[b] ? -1 : 1;
    for (i = 0; i < count; i++) {
        uint32_t of_a = atmc_column(m->factor, m->starts[a] + i);
        uint32_t of_b = atmc_column(m->factor, m->starts[b] + i);
        if (of_a != of_b)
            return of_a < of_b ? -1 : 1;
    }
    return 0;
}

/* A stable merge sort of sorted[0 .. count - 1]. */
static void sort_rows(const matrix *m, uint32_t *sorted, uint32_t *other, uint32_t count)
{
    uint32_t width, start;
    for (width = 1; width < count; width *= 2) {
        for (start = 0; start < count; start += 2 * width) {
            uint32_t middle = count - start < width ? count : start + width;
            uint32_t end = count - start < 2 * width ? count : start + 2 * width;
            uint32_t a = start, b = middle, i;
            for (i = start; i < end; i++) {
                if (b == end || (a < middle && compare_rows(m, sorted[a], sorted[b]) <= 0))
                    other[i] = sorted[a++];
                else
                    other[i] = sorted[b++];
            }
        }
        memcpy(sorted, other, count * sizeof *sorted);
    }
}

/* number = number * factor + term; returns the new length. */
static uint32_t multiply_add(uint32_t *number, uint32_t length, uint32_t factor, uint32_t term)
{
    uint64_t carry = term;
    uint32_t i;
    for (i = 0; i < length; i++) {
        carry += (uint64_t)number[i] * factor;
        number[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry > 0)
        number[length++] = (uint32_t)carry;
    return length;
}

/* The digits and radices of the rows of one class, in the order in which they are written; a copy
 * has radix 1. Returns 0 if no encoder writes this order.
 *
 * first, count: rows of the class. sorted: these rows, sorted.
 * digits: first has the rank of each row.
 */
static int read_digits(const matrix *m, uint32_t first, uint32_t count, const uint32_t *sorted,
                       uint32_t *digits, uint32_t *radices)
{
    uint32_t different = 0, copies = 0, i, j;
    for (i = 0; i < count; i++)
        if (i == 0 || compare_rows(m, sorted[i - 1], sorted[i]) != 0)
            digits[sorted[i] - first] = different++;
    /* Of equal rows the sort keeps the order, so each first one must be among the different rows,
     * and the others must follow them, one after the other.
     */
    for (i = 0; i < count; i++) {
        int copy = i > 0 && compare_rows(m, sorted[i - 1], sorted[i]) == 0;
        if (copy ? sorted[i] - first != different + copies++ : sorted[i] - first >= different)
            return 0;
    }
    for (i = different; i < count; i++) {
        radices[i] = 1;
        digits[i] = 0;
    }
    for (i = different; i-- > 0;) {
        uint32_t run = i / ORDER_RUN * ORDER_RUN;
        uint32_t end = different - run < ORDER_RUN ? different : run + ORDER_RUN, before = 0;
        if (digits[i] < run || digits[i] >= end)
            return 0;
        for (j = run; j < i; j++)
            before += digits[j] < digits[i];
        digits[i] -= run + before;
        radices[i] = end - i;
    }
    return 1;
}

/* The class of rows that begins with the row `first` ends before the row that is returned. */
static uint32_t class_end(const uint8_t *scales, uint32_t first, uint32_t rows)
{
    uint32_t end = first + 1;
    while (end < rows && (scales == NULL || scales[end] == scales[first]))
        end++;
    return end;
}

/* The number that the order of the rows carries. Returns how many bits it has, 0 if no encoder
 * writes this order.
 *
 * sorted: the rows, sorted within each class.
 * number: rows / 3 + 2 words for the result, as a radix has at most 10 bits, then as many again
 *     that are used here, then two for each row.
 */
static uint32_t order_number(const matrix *m, uint32_t rows, const uint8_t *scales,
                             const uint32_t *sorted, uint32_t *number)
{
    uint32_t words = rows / 3 + 2, length = 0, orders_length = 1, factor = 1, term = 0;
    uint32_t *orders = number + words, *digits = orders + words, *radices = digits + rows;
    uint32_t first, end, bits, i;
    for (first = 0; first < rows; first = end) {
        end = class_end(scales, first, rows);
        if (!read_digits(m, first, end - first, sorted + first, digits + first, radices + first))
            return 0;
    }
    memset(number, 0, words * sizeof *number);
    orders[0] = 1;
    for (i = rows; i-- > 0;) {
        term = term * radices[i] + digits[i];
        factor *= radices[i];
        /* As many radices at once as fit a word: multiplications of long numbers take time. */
        if (factor >= (uint32_t)1 << 22 || i == 0) {
            length = multiply_add(number, length, factor, term);
            orders_length = multiply_add(orders, orders_length, factor, 0);
            factor = 1;
            term = 0;
        }
    }
    bits = 32 * (orders_length - 1) + bit_length(orders[orders_length - 1]) - 1;
    if (length > 0 && 32 * (length - 1) + bit_length(number[length - 1]) > bits)
        return 0;
    return bits;
}

/* Sort rows whose order carries bits.
 *
 * When measuring, returns how many bits. They are left at the end of the scratch memory, which is
 * released up to `mark` otherwise. Later they are known.
 *
 * scales: rows of one scale are a class; NULL: all are one.
 */
static uint32_t read_order(atmc_decoder *d, matrix *m, uint32_t rows, const uint8_t *scales,
                           uint32_t mark, int measuring)
{
    uint32_t *sorted = scratch(d, rows), *other = scratch(d, rows);
    uint32_t *number = scratch(d, measuring ? 2 * (rows / 3 + 2) + 2 * rows : 0);
    uint8_t *copy = (uint8_t *)scratch(d, words_of_bytes(m->count * m->index_bytes));
    uint32_t first, end, i, bits = 0;
    size_t copied = 0;
    if (failed(d))
        return 0;
    for (i = 0; i < rows; i++)
        sorted[i] = i;
    for (first = 0; first < rows; first = end) {
        end = class_end(scales, first, rows);
        sort_rows(m, sorted + first, other, end - first);
    }
    if (measuring && (bits = order_number(m, rows, scales, sorted, number)) == 0)
        fail(&d->structure, ATMC_DAMAGED);
    for (i = 0; i < rows; i++) {
        uint32_t start = m->starts[sorted[i]];
        size_t bytes;
        other[i] = m->starts[sorted[i] + 1] - start;
        bytes = (size_t)other[i] * m->index_bytes;
        memcpy(copy + copied, m->indices + (size_t)start * m->index_bytes, bytes);
        copied += bytes;
    }
    memcpy(m->indices, copy, copied);
    for (i = 0; i < rows; i++)
        m->starts[i + 1] = m->starts[i] + other[i];
    d->top = mark - (bits / 32 + (bits % 32 > 0));
    memmove(d->work + d->top, number, (mark - d->top) * sizeof *number);
    return bits;
}

/* ---- "positions" ---- */

/* How a factor lies. `live`: columns of dead outputs may be left out. */
typedef struct {
    uint32_t rows, columns, block;
    int kernels, live;
} layout;

/* Some rows or columns, or the first `size` if `indices` is NULL. */
typedef struct {
    uint32_t size;
    uint32_t *indices;
} lines;

typedef enum { ALL_ROWS, FIRST_ROWS, SOME_ROWS } row_choice;

static uint32_t live_words(const atmc_decoder *d)
{
    return d->outputs / 32 + (d->outputs % 32 > 0);
}

/* Whether an output of the last weight may differ from zero; the bits lie at the very top. */
static int is_live(const atmc_decoder *d, uint32_t output)
{
    return (int)(d->work[d->words - live_words(d) + output / 32] >> output % 32 & 1);
}

static void read_rows(atmc_decoder *d, lines *rows)
{
    uint32_t count = bounded(&d->structure, rows->size), i;
    subset members;
    rows->indices = scratch(d, count);
    start_subset(&members, &d->structure, count, rows->size);
    rows->size = count;
    for (i = 0; i < count && !failed(d); i++)
        rows->indices[i] = next_member(&members);
}

/* only_live: the others are left out, and then `restricted` takes a set of those that remain. */
static void read_columns(atmc_decoder *d, const layout *l, int only_live, int restricted,
                         lines *columns)
{
    uint32_t size = l->columns, count, column, place = 0, i = 0, wanted = 0;
    subset members;
    if (!only_live && !restricted)
        return;
    if (only_live)
        size = d->live_outputs * l->block;
    count = restricted ? bounded(&d->structure, size) : size;
    columns->size = count;
    columns->indices = scratch(d, count);
    if (restricted) {
        start_subset(&members, &d->structure, count, size);
        if (count > 0)
            wanted = next_member(&members);
    }
    for (column = 0; column < l->columns && i < count && !failed(d); column++) {
        if (only_live && !is_live(d, column / l->block))
            continue;
        if (!restricted || place == wanted) {
            columns->indices[i++] = column;
            if (restricted && i < count)
                wanted = next_member(&members);
        }
        place++;
    }
}

/* Scales of the rows, 0 for a row that is empty. */
static void read_scales(atmc_decoder *d, uint32_t rows, row_choice choice, uint8_t *scales)
{
    atmc_coder *c = &d->structure;
    uint32_t high = 1 + uniform(c, SCALES), low = 1 + uniform(c, high), i;
    if (choice == FIRST_ROWS) {
        uint32_t steps = high - low, scale = low, place = 0, step;
        subset members;
        start_subset(&members, c, steps, rows + steps);
        step = steps > 0 ? next_member(&members) : UINT32_MAX;
        for (i = 0; i < rows && c->status == ATMC_OK; place++) {
            if (place == step) {
                scale++;
                step = --steps > 0 ? next_member(&members) : UINT32_MAX;
            } else {
                scales[i++] = (uint8_t)scale;
            }
        }
        /* steps behind the last row */
        for (; steps > 1 && c->status == ATMC_OK; steps--)
            next_member(&members);
    } else {
        uint32_t empty = choice == ALL_ROWS, mark = d->top, *table = scratch(d, CODE_TABLE);
        codes scale_codes;
        if (failed(d))
            return;
        start_codes(&scale_codes, c, rows, high - low + 1 + empty, table);
        for (i = 0; i < rows && c->status == ATMC_OK; i++) {
            uint32_t code = next_code(&scale_codes);
            scales[i] = (uint8_t)(code < empty ? 0 : low + code - empty);
        }
        d->top = mark;
    }
}

/* ---- "chances" ---- */

typedef struct {
    const layout *layout;
    const lines *columns;
    double strength;
    uint32_t total;
    uint32_t *counts; /* nonzeros in each column, of earlier batches */
    uint32_t *kernel; /* nonzeros and columns of each place in the kernel */
    uint32_t *chances;
} densities;

/* Exact but for the quotient: with at most 2^28 nonzeros and 2^20 columns all is below 2^53. */
static double relative_density(const densities *s, uint32_t nonzeros, uint32_t columns)
{
    uint64_t mean = (uint64_t)nonzeros * s->columns->size + 8 * (uint64_t)s->total;
    return (double)mean / (double)((uint64_t)(columns + 8) * s->total);
}

static uint32_t column_at(const densities *s, uint32_t place)
{
    return s->columns->indices == NULL ? place : s->columns->indices[place];
}

static void count_kernel(const densities *s)
{
    uint32_t i;
    memset(s->kernel, 0, 2 * s->layout->block * sizeof *s->kernel);
    for (i = 0; i < s->columns->size; i++) {
        uint32_t *of_place = s->kernel + 2 * (column_at(s, i) % s->layout->block);
        of_place[0] += s->counts[i];
        of_place[1]++;
    }
}

/* Chances of all columns in a row of this scale.
 *
 * Each operation rounds once, and products that are added are exact: strength is 2 or 1/2. So it
 * makes no difference if the compiler fuses multiplications and additions.
 */
static void find_chances(const densities *s, uint32_t scale)
{
    uint32_t width = s->columns->size, block = s->layout->block, i, j;
    double mean = (double)s->total / (double)width;
    double divisor = mean + s->strength;
    double factor = scale > MEAN_SCALE ? 1.0 / (double)((uint32_t)1 << (scale - MEAN_SCALE))
                                       : (double)((uint32_t)1 << (MEAN_SCALE - scale));
    double of_channel = 1.0;
    uint32_t channel_end = 0;
    for (i = 0; i < width; i++) {
        uint32_t column = column_at(s, i), chance;
        double expected, odds;
        if (block > 1 && i == channel_end) {
            uint32_t channel = column / block, nonzeros = 0;
            for (j = i; j < width && column_at(s, j) / block == channel; j++)
                nonzeros += s->counts[j];
            of_channel = relative_density(s, nonzeros, j - i);
            channel_end = j;
        }
        expected = of_channel;
        if (s->kernel != NULL) {
            const uint32_t *of_place = s->kernel + 2 * (column % block);
            expected *= relative_density(s, of_place[0], of_place[1]);
        }
        odds = (double)s->counts[i] + s->strength * expected;
        odds = odds / divisor * factor;
        odds = odds / (1.0 + odds);
        chance = (uint32_t)(odds * (double)TOTAL);
        s->chances[i] = chance < 1 ? 1 : chance > TOTAL - 1 ? TOTAL - 1 : chance;
    }
}

/* Read the bits of all rows that are not empty. Nonzeros get the place of their column. */
static void read_adaptive(atmc_decoder *d, const layout *l, const lines *rows, const lines *columns,
                          const uint8_t *scales, double strength, uint32_t nonzeros, matrix *m)
{
    atmc_coder *c = &d->structure;
    uint32_t width = columns->size, seen = 0, batch = 0, learned = 0, known_scale = 0, i, j;
    densities s;
    s.layout = l;
    s.columns = columns;
    s.strength = strength;
    s.total = 1;
    s.counts = scratch(d, width);
    s.chances = scratch(d, width);
    s.kernel = l->kernels && l->block > 1 ? scratch(d, 2 * l->block) : NULL;
    if (failed(d))
        return;
    memset(s.counts, 0, width * sizeof *s.counts);
    for (i = 0; i < rows->size; i++) {
        if (scales[i] == 0)
            continue;
        if (batch == 0) {
            batch = seen / 4 < MAX_BATCH / width ? seen / 4 : MAX_BATCH / width;
            batch = batch > 1 ? batch : 1;
            for (; learned < m->count; learned++)
                s.counts[atmc_column(m->factor, learned)]++;
            s.total = 1 + m->count;
            if (s.kernel != NULL)
                count_kernel(&s);
            known_scale = 0;
        }
        if (scales[i] != known_scale) {
            known_scale = scales[i];
            find_chances(&s, known_scale);
        }
        fill_rows(m, rows->indices == NULL ? i : rows->indices[i]);
        for (j = 0; j < width; j++) {
            if (!read_bit(c, s.chances[j]))
                continue;
            if (m->count == nonzeros) {
                fail(c, ATMC_DAMAGED);
                return;
            }
            set_column(m, m->count++, j);
        }
        if (c->status != ATMC_OK)
            return;
        seen++;
        batch--;
    }
    if (m->count != nonzeros)
        fail(c, ATMC_DAMAGED);
}

/* Returns what read_order does, or 0. */
static uint32_t read_positions(atmc_decoder *d, const layout *l, atmc_factor *f, int measuring)
{
    static const double strengths[] = {0.0, 2.0, 0.5};
    atmc_coder *c = &d->structure;
    uint32_t mark = d->top, sigma = 0, order_bits = 0, nonzeros, i;
    int only_live, restricted = 0, ordered = 0;
    uint8_t *scales = NULL;
    row_choice choice = ALL_ROWS;
    lines rows, columns;
    matrix m;

    memset(f, 0, sizeof *f);
    f->rows = rows.size = l->rows;
    f->columns = columns.size = l->columns;
    rows.indices = columns.indices = NULL;
    f->has_codebook = !uniform(c, 2);
    nonzeros = bounded(c, l->rows * l->columns);
    if (nonzeros == 0)
        return 0;
    only_live = l->live && uniform(c, 2);
    if (uniform(c, 2)) {
        sigma = uniform(c, 3);
        if (uniform(c, 2))
            choice = uniform(c, 2) ? FIRST_ROWS : SOME_ROWS;
        if (choice == FIRST_ROWS) {
            ordered = uniform(c, 2) != 0;
            rows.size = bounded(c, rows.size);
            if (ordered && rows.size > MAX_ORDERED)
                fail(c, ATMC_DAMAGED);
        } else if (choice == SOME_ROWS) {
            read_rows(d, &rows);
        }
        restricted = uniform(c, 2) != 0;
    }
    read_columns(d, l, only_live, restricted, &columns);
    if (nonzeros > (uint64_t)rows.size * columns.size || (sigma > 0 && columns.size > MAX_COLUMNS))
        fail(c, ATMC_DAMAGED);
    m.factor = f;
    m.row = m.count = 0;
    m.index_bytes = l->columns > 65536 ? 4 : 2;
    f->starts = m.starts = for_entry(d, l->rows + 1);
    f->indices = m.indices = (uint8_t *)for_entry(d, words_of_bytes(nonzeros * m.index_bytes));
    if (failed(d))
        return 0;
    m.starts[0] = 0;
    if (sigma == 0) {
        subset places;
        start_subset(&places, c, nonzeros, rows.size * columns.size);
        for (i = 0; i < nonzeros; i++) {
            uint32_t place = next_member(&places), row = place / columns.size;
            if (c->status != ATMC_OK)
                return 0;
            fill_rows(&m, rows.indices == NULL ? row : rows.indices[row]);
            set_column(&m, m.count++, place % columns.size);
        }
    } else {
        scales = (uint8_t *)scratch(d, words_of_bytes(rows.size));
        if (failed(d))
            return 0;
        read_scales(d, rows.size, choice, scales);
        if (failed(d))
            return 0;
        read_adaptive(d, l, &rows, &columns, scales, strengths[sigma], nonzeros, &m);
    }
    if (failed(d))
        return 0;
    fill_rows(&m, l->rows);
    if (columns.indices != NULL)
        for (i = 0; i < nonzeros; i++)
            set_column(&m, i, columns.indices[atmc_column(f, i)]);
    if (ordered)
        order_bits = read_order(d, &m, rows.size, scales, mark, measuring);
    else
        d->top = mark;
    f->nonzeros = nonzeros;
    return order_bits;
}

/* ---- Values ---- */

/* Bits of the float32 of magnitude * 2^exponent, which must be exact; infinity if it is too large.
 * Magnitude is below 2^24, exponent at least -149.
 */
static uint32_t float_bits(uint32_t magnitude, int exponent)
{
    int top = (int)bit_length(magnitude) - 1;
    if (magnitude == 0)
        return 0;
    if (exponent + top > 127)
        return (uint32_t)255 << 23;
    if (exponent + top < -126)
        return magnitude << (exponent + 149);
    return ((uint32_t)(exponent + top + 127) << 23) | (magnitude << (23 - top) & 0x7fffff);
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int is_finite(uint32_t bits)
{
    return (bits >> 23 & 255) != 255;
}

static void read_factor(atmc_decoder *d, atmc_factor *f, int measuring)
{
    atmc_coder *c = &d->values;
    uint32_t mark = d->top, limit, i, place;
    uint32_t *table, *words;
    int32_t *levels;
    uint8_t *bytes;
    unsigned largest;
    subset members;
    codes level_codes;
    if (f->nonzeros == 0)
        return;
    if (!f->has_codebook) {
        f->bits = words = for_entry(d, f->nonzeros);
        if (measuring || failed(d))
            return;
        for (i = 0; i < f->nonzeros && c->status == ATMC_OK; i++)
            words[i] = uniform(c, 65536) << 16;
        for (i = 0; i < f->nonzeros && c->status == ATMC_OK; i++) {
            words[i] |= uniform(c, 65536);
            if (!is_finite(words[i]) || words[i] << 1 == 0)
                fail(c, ATMC_DAMAGED);
        }
        return;
    }
    f->codes = bytes = (uint8_t *)for_entry(d, words_of_bytes(f->nonzeros));
    f->levels = levels = (int32_t *)for_entry(d, MAX_LEVELS);
    table = scratch(d, CODE_TABLE);
    d->top = mark; /* nothing else is reserved while the table is in use */
    if (measuring || failed(d))
        return;
    f->level_bits = 2 + (int)uniform(c, 15);
    f->exponent = (int)uniform(c, 256) - 128;
    limit = ((uint32_t)1 << (f->level_bits - 1)) - 1;
    f->level_count = 1 + bounded(c, (2 * limit < MAX_LEVELS ? 2 * limit : MAX_LEVELS) - 1);
    start_subset(&members, c, f->level_count, 2 * limit);
    for (i = 0; i < f->level_count && c->status == ATMC_OK; i++) {
        place = next_member(&members);
        levels[i] = (int32_t)place - (int32_t)limit + (place >= limit);
    }
    if (c->status != ATMC_OK)
        return;
    largest = (unsigned)(-levels[0] > levels[i - 1] ? -levels[0] : levels[i - 1]);
    if ((int)bit_length(largest) + f->exponent > 128)
        fail(c, ATMC_DAMAGED);
    start_codes(&level_codes, c, f->nonzeros, f->level_count, table);
    for (i = 0; i < f->nonzeros && c->status == ATMC_OK; i++)
        bytes[i] = (uint8_t)next_code(&level_codes);
}

/* known: the shape is (outputs of the last weight,). */
static void read_dense(atmc_decoder *d, atmc_entry *e, int known, int measuring)
{
    atmc_coder *c = &d->values;
    uint32_t mark = d->top, width, shift = 0, significand = 1, below = 0, levels;
    uint32_t size = e->size, left, wanted = 0, place = 0, i, *words, *table;
    int log, only_live, masked, exponent;
    subset members;
    codes value_codes;
    e->words = words = for_entry(d, e->size);
    table = scratch(d, CODE_TABLE);
    d->top = mark;
    if (measuring || failed(d))
        return;
    width = 2 + uniform(c, 8);
    log = uniform(c, 2) != 0;
    if (log) {
        exponent = (int)read_bits(c, 8) - 128;
        levels = (uint32_t)1 << width;
        shift = width - 4;
    } else {
        uint32_t scale = (uint32_t)read_bits(c, 15);
        if (!is_finite(scale << 16))
            fail(c, ATMC_DAMAGED);
        significand = (scale & 127) + (scale > 127 ? 128 : 0);
        exponent = (int)(scale > 127 ? scale >> 7 : 1) - 134;
        below = ((uint32_t)1 << (width - 1)) - 1;
        levels = 2 * below + 1;
    }
    if (width > 8 || (log && width < 6)) {
        fail(c, ATMC_DAMAGED);
        return;
    }
    only_live = known && d->live_outputs < d->outputs && uniform(c, 2);
    if (only_live)
        size = d->live_outputs;
    masked = uniform(c, 2) != 0;
    left = masked ? bounded(c, size) : size;
    if (masked) {
        levels--;
        start_subset(&members, c, left, size);
        if (left > 0)
            wanted = next_member(&members);
    }
    size = left;
    /* The codes follow all places: first mark these. */
    for (i = 0; i < e->size; i++) {
        words[i] = 0;
        if (left == 0 || (only_live && !is_live(d, i)))
            continue;
        if (!masked || place == wanted) {
            words[i] = 1;
            if (--left > 0 && masked)
                wanted = next_member(&members);
        }
        place++;
    }
    start_codes(&value_codes, c, size, levels, table);
    for (i = 0; i < e->size && c->status == ATMC_OK; i++) {
        uint32_t code, magnitude;
        if (words[i] == 0)
            continue;
        code = next_code(&value_codes);
        if (masked && code >= below)
            code++;
        magnitude = code < below ? below - code : code - below;
        if (log && code > 0)
            words[i] = float_bits(((uint32_t)1 << shift) + code % ((uint32_t)1 << shift),
                                  exponent + (int)(code >> shift));
        else
            words[i] = float_bits(magnitude * significand, exponent);
        if (!is_finite(words[i]))
            fail(c, ATMC_DAMAGED);
        if (code < below)
            words[i] |= (uint32_t)1 << 31;
    }
}

static void read_integers(atmc_decoder *d, atmc_entry *e, int measuring)
{
    atmc_coder *c = &d->values;
    const uint64_t most = INT64_MAX;
    uint32_t *words = for_entry(d, 2 * e->size), i;
    uint64_t magnitude, largest = 0;
    unsigned width, shift;
    int negative;
    e->words = words;
    if (measuring || failed(d) || e->size == 0)
        return;
    negative = uniform(c, 2) != 0;
    magnitude = golomb(c, 0);
    width = uniform(c, 65);
    if (magnitude > most + (uint64_t)negative)
        fail(c, ATMC_DAMAGED);
    memset(words, 0, 2 * e->size * sizeof *words);
    for (shift = 0; shift < width; shift += 16) {
        uint32_t n = (uint32_t)1 << (width - shift < 16 ? width - shift : 16);
        for (i = 0; i < e->size && c->status == ATMC_OK; i++)
            words[2 * i + shift / 32] |= uniform(c, n) << shift % 32;
    }
    for (i = 0; i < e->size; i++) {
        uint64_t value = (uint64_t)words[2 * i + 1] << 32 | words[2 * i];
        if (value > largest)
            largest = value;
        value = negative ? value - magnitude : value + magnitude;
        words[2 * i] = (uint32_t)value;
        words[2 * i + 1] = (uint32_t)(value >> 32);
    }
    if (negative ? largest > most + magnitude : largest > most - magnitude)
        fail(c, ATMC_DAMAGED);
}

/* ---- Entries ---- */

/* Count a tensor of these dimensions; an empty one does not excuse the others. */
static void spend(atmc_decoder *d, const uint32_t *shape, uint32_t dimensions)
{
    uint32_t size = 1, i;
    for (i = 0; i < dimensions; i++) {
        uint32_t dimension = shape[i] > 1 ? shape[i] : 1;
        if (dimension > d->elements_left / size) {
            fail(&d->structure, ATMC_TOO_LARGE);
            return;
        }
        size *= dimension;
    }
    if (size > d->elements_left)
        fail(&d->structure, ATMC_TOO_LARGE);
    else
        d->elements_left -= size;
}

static void spend_matrix(atmc_decoder *d, uint32_t groups, uint32_t rows, uint32_t columns)
{
    uint32_t shape[3];
    shape[0] = groups;
    shape[1] = rows;
    shape[2] = columns;
    spend(d, shape, 3);
}

static uint32_t product(const uint32_t *factors, uint32_t count)
{
    uint32_t result = 1, i;
    for (i = 0; i < count; i++)
        result *= factors[i];
    return result;
}

/* From here on the size and its parts are at most max_elements. */
static void read_shape(atmc_decoder *d, atmc_entry *e)
{
    atmc_coder *c = &d->structure;
    uint64_t dimensions = golomb(c, 2);
    uint32_t i;
    if (dimensions > ATMC_MAX_DIMENSIONS) {
        fail(c, ATMC_DAMAGED);
        return;
    }
    e->dimensions = (uint32_t)dimensions;
    for (i = 0; i < e->dimensions; i++) {
        uint64_t dimension = golomb(c, 3);
        if (dimension > ATMC_MAX_ELEMENTS) {
            fail(c, ATMC_TOO_LARGE);
            return;
        }
        e->shape[i] = (uint32_t)dimension;
    }
}

static void mark_live(uint32_t *live, const atmc_factor *f)
{
    uint32_t i;
    if (f->nonzeros == 0)
        return;
    for (i = 0; i < f->rows; i++)
        if (f->starts[i + 1] > f->starts[i])
            live[i / 32] |= (uint32_t)1 << i % 32;
}

/* Append bits to those that orders of rows carry, which lie below all entries. */
static void carry(atmc_decoder *d, const uint32_t *number, uint32_t bits)
{
    uint32_t words = (d->carried_bits + bits + 31) / 32, i;
    uint8_t *bytes = (uint8_t *)(d->work + d->carried_at);
    uint32_t *added = for_entry(d, words - (d->bottom - d->carried_at));
    if (failed(d))
        return;
    d->base = d->bottom;
    memset(added, 0, (size_t)(d->work + d->bottom - added) * sizeof *added);
    for (i = 0; i < bits; i++, d->carried_bits++)
        if (number[i / 32] >> i % 32 & 1)
            bytes[d->carried_bits / 8] |= (uint8_t)(1 << d->carried_bits % 8);
}

static void read_weight(atmc_decoder *d, atmc_entry *e, int measuring)
{
    atmc_coder *c = &d->structure;
    uint32_t per_group, rows, rest, inputs, order_bits[3], mark = d->top, *live, words, i, count;
    uint64_t groups;
    layout u, v, outer;
    read_shape(d, e);
    groups = golomb(c, 0) + 1;
    e->transposed = e->dimensions > 2 && uniform(c, 2);
    e->identity = (atmc_identity)uniform(c, 3);
    spend(d, e->shape, e->dimensions);
    if (e->dimensions < 2 || e->shape[0] % groups != 0)
        fail(c, ATMC_DAMAGED);
    else if (groups > ATMC_MAX_ELEMENTS)
        fail(c, ATMC_TOO_LARGE);
    if (failed(d))
        return;
    e->size = product(e->shape, e->dimensions);
    e->groups = (uint32_t)groups;
    per_group = e->shape[0] / e->groups;
    rows = e->transposed ? e->shape[1] : per_group;
    inputs = e->transposed ? per_group : e->shape[1];
    rest = inputs * product(e->shape + 2, e->dimensions - 2);
    if (e->identity == ATMC_NO_IDENTITY)
        e->rank = bounded(c, rows < rest ? rows : rest);
    else
        e->rank = e->identity == ATMC_LEFT ? rows : rest;
    if (e->rank > rows || e->rank > rest)
        fail(c, ATMC_DAMAGED);
    spend_matrix(d, e->groups, rows, e->rank);
    spend_matrix(d, e->groups, e->rank, rest);
    if (failed(d))
        return;

    outer.rows = e->groups * rows;
    outer.columns = rest;
    outer.block = inputs > 0 ? rest / inputs : 1;
    outer.kernels = e->dimensions > 2;
    outer.live = 0;
    if (d->weight_seen && e->groups == 1 && inputs > 0 && d->outputs > 0 &&
        inputs % d->outputs == 0) {
        /* A linear layer behind a flattened map has several columns for each channel. */
        outer.kernels = outer.kernels && inputs == d->outputs;
        outer.block = rest / d->outputs;
        outer.live = d->live_outputs < d->outputs;
    }
    u = v = outer;
    v.rows = e->groups * e->rank;
    if (e->identity != ATMC_RIGHT) {
        u.columns = e->rank;
        u.block = 1;
        u.kernels = u.live = 0;
    }
    order_bits[0] = read_positions(d, &u, &e->u, measuring);
    order_bits[1] = read_positions(d, &v, &e->v, measuring);
    order_bits[2] = read_positions(d, &outer, &e->c, measuring);
    read_factor(d, &e->u, measuring);
    read_factor(d, &e->v, measuring);
    read_factor(d, &e->c, measuring);

    words = outer.rows / 32 + (outer.rows % 32 > 0);
    live = scratch(d, words);
    if (failed(d))
        return;
    memset(live, 0, words * sizeof *live);
    mark_live(live, &e->u);
    mark_live(live, &e->c);
    if (e->identity == ATMC_LEFT)
        mark_live(live, &e->v);
    if (measuring) {
        d->bottom = d->base;
        for (i = 0; i < 3; i++) {
            mark -= (order_bits[i] + 31) / 32;
            carry(d, d->work + mark, order_bits[i]);
        }
        if (failed(d))
            return;
    }
    for (i = count = 0; i < outer.rows; i++)
        count += live[i / 32] >> i % 32 & 1;
    d->weight_seen = 1;
    d->outputs = outer.rows;
    d->live_outputs = count;
    d->top = d->words - words;
    memmove(d->work + d->top, live, words * sizeof *live);
}

static void read_tensor(atmc_decoder *d, atmc_entry *e, int measuring)
{
    int known = d->weight_seen && uniform(&d->structure, 2);
    if (known) {
        e->dimensions = 1;
        e->shape[0] = d->outputs;
    } else {
        read_shape(d, e);
    }
    spend(d, e->shape, e->dimensions);
    if (failed(d))
        return;
    e->size = product(e->shape, e->dimensions);
    if (e->kind == ATMC_DENSE)
        read_dense(d, e, known, measuring);
    else
        read_integers(d, e, measuring);
}

/* measuring: reserve memory for everything, but read no values. */
static void read_entry(atmc_decoder *d, atmc_entry *e, int measuring)
{
    d->bottom = d->base;
    memset(e, 0, sizeof *e);
    e->index = d->index++;
    e->kind = (atmc_kind)uniform(&d->structure, 3);
    if (e->kind == ATMC_WEIGHT)
        read_weight(d, e, measuring);
    else
        read_tensor(d, e, measuring);
}

static void start_entries(atmc_decoder *d)
{
    d->elements_left = d->max_elements;
    d->index = d->outputs = d->live_outputs = 0;
    d->weight_seen = 0;
    d->top = d->words;
}

/* ---- "The file" ---- */

static uint32_t crc32(uint32_t crc, const uint8_t *data, size_t size)
{
    size_t i;
    int bit;
    for (i = 0; i < size; i++) {
        crc ^= data[i];
        for (bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return crc;
}

/* `count` bytes below n = 128 or 256. */
static const uint8_t *read_text(atmc_decoder *d, uint64_t count, uint32_t n, uint32_t *size)
{
    atmc_coder *c = &d->structure;
    uint8_t *text;
    uint32_t i;
    /* A byte of text takes 7 bits or more. */
    if (count > 2 * (uint64_t)c->size + 16) {
        fail(c, ATMC_DAMAGED);
        return NULL;
    }
    *size = (uint32_t)count;
    text = (uint8_t *)for_entry(d, words_of_bytes(*size));
    for (i = 0; i < *size && !failed(d); i++)
        text[i] = (uint8_t)uniform(c, n);
    return text;
}

static const uint8_t *read_json(atmc_decoder *d, uint32_t *size)
{
    uint64_t count = golomb(&d->structure, 6);
    return read_text(d, count, uniform(&d->structure, 2) ? 256 : 128, size);
}

static void read_head(atmc_decoder *d)
{
    atmc_coder *c = &d->structure;
    uint64_t entries;
    d->metadata_kind = (atmc_metadata_kind)uniform(c, 3);
    if (d->metadata_kind == ATMC_MODEL_NAME)
        d->metadata = read_text(d, golomb(c, 4), 128, &d->metadata_size);
    else if (d->metadata_kind == ATMC_JSON)
        d->metadata = read_json(d, &d->metadata_size);
    entries = golomb(c, 2);
    if (entries > UINT32_MAX)
        fail(c, ATMC_DAMAGED); /* an entry takes over a bit, and the file has fewer */
    d->entries = (uint32_t)entries;
    if (entries > 0 && uniform(c, 2))
        d->names = read_json(d, &d->names_size);
}

static atmc_status result(atmc_decoder *d)
{
    if (d->status == ATMC_OK)
        d->status = d->structure.status;
    if (d->status == ATMC_OK)
        d->status = d->values.status;
    return d->status;
}

static atmc_status open_stream(atmc_decoder *d, const uint8_t *stream, uint32_t size)
{
    atmc_coder start;
    atmc_entry entry;
    uint32_t i;
    start_coder(&d->structure, NULL, 0, stream, size);
    read_head(d);
    d->carried_at = d->base = d->bottom;
    start = d->structure;
    start_entries(d);
    for (i = 0; i < d->entries && !failed(d); i++)
        read_entry(d, &entry, 1);
    if (result(d) != ATMC_OK)
        return d->status;
    d->values = d->structure;
    if (d->carried_bits > 0) {
        uint32_t end = end_of(&d->structure, 1);
        if (end > size)
            fail(&d->structure, ATMC_DAMAGED);
        if (result(d) != ATMC_OK)
            return d->status;
        start_coder(&d->values, (const uint8_t *)(d->work + d->carried_at), d->carried_bits,
                    stream + end, size - end);
    }
    d->structure = start;
    start_entries(d);
    /* Entries were measured while fewer bits were carried. */
    if (d->words_needed < (uint64_t)d->base + d->peak)
        d->words_needed = (uint64_t)d->base + d->peak;
    if (d->words_needed > d->words)
        d->status = ATMC_TOO_LITTLE_WORK;
    return d->status;
}

atmc_status atmc_open(atmc_decoder *d, const uint8_t *data, size_t size, uint32_t *work,
                      size_t words, uint32_t max_elements)
{
    uint32_t crc;
    memset(d, 0, sizeof *d);
    d->work = work;
    d->words = d->top = words < UINT32_MAX ? (uint32_t)words : UINT32_MAX;
    d->max_elements = max_elements < ATMC_MAX_ELEMENTS ? max_elements : ATMC_MAX_ELEMENTS;
    if (size < 4 || memcmp(data, "atm", 3) != 0)
        return d->status = ATMC_FOREIGN;
    if (data[3] != 1)
        return d->status = ATMC_VERSION;
    if (size < 8)
        return d->status = ATMC_DAMAGED;
    if (size > INT32_MAX)
        return d->status = ATMC_TOO_LARGE;
    crc = ~crc32(crc32(UINT32_MAX, data, 4), data + 8, size - 8);
    if (crc != ((uint32_t)data[7] << 24 | (uint32_t)data[6] << 16 | (uint32_t)data[5] << 8 |
                data[4]))
        return d->status = ATMC_DAMAGED;
    d->words_needed = 1;
    if (words == 0)
        return d->status = ATMC_TOO_LITTLE_WORK; /* and work may be NULL */
    return open_stream(d, data + 8, (uint32_t)size - 8);
}

atmc_status atmc_next(atmc_decoder *d, atmc_entry *entry)
{
    if (d->status != ATMC_OK)
        return d->status;
    if (d->index < d->entries) {
        read_entry(d, entry, 0);
        return result(d);
    }
    /* The values follow the structure in one stream, unless orders of rows carry bits. */
    finish(&d->values);
    if (result(d) == ATMC_OK)
        d->status = ATMC_END;
    return d->status;
}

float atmc_value(const atmc_factor *f, uint32_t nonzero)
{
    int32_t level;
    uint32_t bits;
    if (!f->has_codebook)
        return float_of(f->bits[nonzero]);
    level = f->levels[f->codes[nonzero]];
    bits = float_bits((uint32_t)(level < 0 ? -level : level), f->exponent);
    return float_of(level < 0 ? bits | (uint32_t)1 << 31 : bits);
}

void atmc_expand(const atmc_factor *f, float *values)
{
    uint32_t row, i;
    for (i = 0; i < f->rows * f->columns; i++)
        values[i] = 0.0f;
    for (row = 0; f->nonzeros > 0 && row < f->rows; row++)
        for (i = f->starts[row]; i < f->starts[row + 1]; i++)
            values[row * f->columns + atmc_column(f, i)] = atmc_value(f, i);
}

float atmc_float(const atmc_entry *entry, uint32_t element)
{
    return float_of(entry->words[element]);
}

int64_t atmc_integer(const atmc_entry *entry, uint32_t element)
{
    uint64_t bits = (uint64_t)entry->words[2 * element + 1] << 32 | entry->words[2 * element];
    /* A conversion from unsigned would be the compiler's choice. */
    return bits > INT64_MAX ? -(int64_t)(UINT64_MAX - bits) - 1 : (int64_t)bits;
}
