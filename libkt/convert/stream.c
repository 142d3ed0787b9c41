/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers go from the mapped source through a buffer to their place in the target, a chunk at a
 * time. A chunk is some rows of a matrix, or a part of few rows where they are very long; it is cut
 * into tiles, which threads encode. A tile lies in one block that shares a scale. */
#include <math.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "convert/converter.h"
#include "core/context.h"
#include "weights/dtype.h"
#include "weights/encode.h"
#include "core/memory.h"
#include "model/finite.h"
#include "model/quantization.h"

enum {
    OUTPUT_BYTES = 8 << 20,
    SCALES = 1 << 18,
    SCRATCH = 1 << 14, /* floats of a thread; holds 128 x 128 */
    PLAIN_TILE = 4096, /* elements of a row where none share a scale */
    TASK = 1 << 16     /* elements that a thread takes at once */
};

/* Rows [row, row + rows) of columns [col, col + cols) of a matrix. */
struct part {
    int64_t row, rows, col, cols;
};

struct chunk {
    struct kt_converter *c;
    const struct kt_weight *from;
    struct part part;
    int64_t tile_rows, tile_cols; /* the grid of tiles */
    int64_t scale_cols;           /* that share a scale: a tile's, or all */
    atomic_int problem;           /* enum problem */
};

enum problem { NONE, TOO_LARGE, NOT_FINITE };

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Asks the system to read `bytes` from `data`, a mapped file, or to drop them from this process. */
static void advise(const void *data, uint64_t bytes, int advice)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)data, end = begin + bytes;
    begin = advice == MADV_DONTNEED ? (begin + page - 1) / page * page : begin / page * page;
    end = advice == MADV_DONTNEED ? end / page * page : end;
    if (begin < end)
        (void)madvise((void *)begin, end - begin, advice);
}

static void decode(const struct chunk *k, const struct part *p, float *values)
{
    for (int64_t r = 0; r < p->rows; r++)
        kt_weight_decode(k->from, p->row + r, p->col, p->cols, values + r * p->cols);
}

static void encode(const struct chunk *k, const struct part *p, float scale, const float *values)
{
    kt_dtype to = k->c->to;
    char *rows = (char *)k->c->output + kt_format_row_bytes(to, p->col - k->part.col);
    int64_t row_bytes = (int64_t)kt_format_row_bytes(to, k->part.cols);
    for (int64_t r = 0; r < p->rows; r++)
        kt_encode(to, p->cols, values + r * p->cols, scale,
                  rows + (p->row - k->part.row + r) * row_bytes);
}

/* Part of `p` from column `at` on, as much as fits into a thread's scratch. */
static struct part piece_of(const struct part *p, int64_t at)
{
    int64_t cols = kt_min_i64(SCRATCH / p->rows, p->col + p->cols - at);
    return (struct part){p->row, p->rows, at, cols};
}

static float find_scale(struct chunk *k, const struct part *sharing, float *values)
{
    float largest = 0;
    for (int64_t at = sharing->col; at < sharing->col + sharing->cols;) {
        struct part piece = piece_of(sharing, at);
        decode(k, &piece, values);
        float most = kt_encode_largest(piece.rows * piece.cols, values);
        largest = most > largest ? most : largest;
        at += piece.cols;
    }
    if (largest > kt_encode_limit(k->c->to))
        atomic_store(&k->problem, isinf(largest) ? NOT_FINITE : TOO_LARGE);
    return kt_encode_scale(k->c->to, largest);
}

/* What shares a scale may not fit into scratch (a long row of INT8): then it is decoded twice. */
static void encode_tile(struct chunk *k, const struct part *tile, float *values, float *scale)
{
    struct part sharing = *tile;
    if (k->scale_cols > k->tile_cols) {
        sharing.col = 0;
        sharing.cols = k->scale_cols;
    }
    *scale = find_scale(k, &sharing, values);
    if (atomic_load(&k->problem))
        return;
    if (sharing.cols == tile->cols && tile->rows * tile->cols <= SCRATCH) {
        encode(k, tile, *scale, values);
        return;
    }
    for (int64_t at = tile->col; at < tile->col + tile->cols;) {
        struct part piece = piece_of(tile, at);
        decode(k, &piece, values);
        encode(k, &piece, *scale, values);
        at += piece.cols;
    }
}

static int64_t tiles_across(const struct chunk *k)
{
    return divide_up(k->part.cols, k->tile_cols);
}

static void encode_tiles(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct chunk *k = arg;
    float *values = k->c->scratch + (int64_t)thread * SCRATCH;
    for (int64_t i = begin; i < end; i++) {
        int64_t r = i / tiles_across(k) * k->tile_rows, c = i % tiles_across(k) * k->tile_cols;
        struct part tile = {k->part.row + r, kt_min_i64(k->tile_rows, k->part.rows - r),
                            k->part.col + c, kt_min_i64(k->tile_cols, k->part.cols - c)};
        encode_tile(k, &tile, values, &k->c->scales[i]);
    }
}

static kt_status write_rows(const struct chunk *k, const struct kt_convert_entry *entry,
                            struct kt_atomic_file *file)
{
    const struct part *p = &k->part;
    uint64_t pitch = kt_format_row_bytes(k->c->to, k->from->cols);
    uint64_t bytes = kt_format_row_bytes(k->c->to, p->cols);
    uint64_t at = entry->offset + (uint64_t)p->row * pitch + kt_format_row_bytes(k->c->to, p->col);
    if (bytes == pitch)
        return kt_atomic_write_at(file, at, k->c->output, bytes * (uint64_t)p->rows);
    for (int64_t r = 0; r < p->rows; r++)
        KT_TRY(kt_atomic_write_at(file, at + (uint64_t)r * pitch,
                                  (char *)k->c->output + (uint64_t)r * bytes, bytes));
    return KT_OK;
}

static kt_status write_scales(const struct chunk *k, const struct kt_convert_entry *scales,
                              struct kt_atomic_file *file)
{
    if (!scales)
        return KT_OK;
    int64_t across = tiles_across(k), pitch = scales->to.shape[1];
    int64_t first = k->scale_cols > k->tile_cols ? 0 : k->part.col / k->tile_cols;
    for (int64_t r = 0; r < divide_up(k->part.rows, k->tile_rows); r++) {
        int64_t at = (k->part.row / k->tile_rows + r) * pitch + first;
        KT_TRY(kt_atomic_write_at(file, scales->offset + (uint64_t)at * sizeof(float),
                                  k->c->scales + r * across, (size_t)across * sizeof(float)));
    }
    return KT_OK;
}

static kt_status convert_chunk(struct chunk *k, const struct kt_convert_entry *entry,
                               struct kt_atomic_file *file)
{
    kt_context *ctx = k->c->ctx;
    int64_t tiles = divide_up(k->part.rows, k->tile_rows) * tiles_across(k);
    KT_TRY(kt_check_cancel(ctx));
    KT_TRY(kt_checkpoint_check(k->c->model->checkpoint, k->from->data));
    kt_parallel_for(ctx->pool, tiles, kt_max_i64(1, TASK / (k->tile_rows * k->tile_cols)),
                    encode_tiles, k);
    if (atomic_load(&k->problem))
        return kt_fail(ctx, KT_ERROR_NUMERIC, "%s: tensor %s holds %s; the checkpoint is damaged",
                       entry->from->file, entry->from->name,
                       k->problem == NOT_FINITE ? "NaN or infinity"
                                                : "a number that is too large for BF16");
    KT_TRY(write_rows(k, entry, file));
    return write_scales(k, entry->to_scales, file);
}

/* Sets the grid of tiles and the size of chunks, of which the first is at the matrix's beginning.
 */
static void cut(struct chunk *k)
{
    kt_dtype to = k->c->to;
    int64_t cols = k->from->cols, widest;
    k->tile_rows = to == KT_DTYPE_F8_E4M3 ? KT_CONVERT_BLOCK : 1;
    widest = OUTPUT_BYTES / k->tile_rows / (int64_t)kt_format_row_bytes(to, KT_CONVERT_BLOCK) *
             KT_CONVERT_BLOCK;
    k->part.cols = kt_min_i64(cols, widest);
    k->tile_cols = to == KT_DTYPE_I8     ? k->part.cols
                   : kt_scale_suffix(to) ? KT_CONVERT_BLOCK
                                         : PLAIN_TILE;
    k->scale_cols = to == KT_DTYPE_I8 ? cols : k->tile_cols;
    int64_t rows = OUTPUT_BYTES / (int64_t)kt_format_row_bytes(to, k->part.cols);
    rows = kt_min_i64(rows, SCALES / tiles_across(k) * k->tile_rows);
    k->part.rows = rows / k->tile_rows * k->tile_rows;
}

static kt_status convert_matrix(struct kt_converter *c, const struct kt_convert_entry *entry,
                                const struct kt_weight *from, struct kt_atomic_file *file)
{
    struct chunk k = {.c = c, .from = from};
    uint64_t pitch = kt_format_row_bytes(from->dtype, from->cols);
    cut(&k);
    int64_t step = k.part.rows, width = k.part.cols;
    for (int64_t row = 0; row < from->rows; row += step) {
        const char *data = (const char *)from->data + (uint64_t)row * pitch;
        int64_t rows = kt_min_i64(step, from->rows - row);
        int64_t next = kt_min_i64(step, from->rows - row - rows);
        advise(data + (uint64_t)rows * pitch, (uint64_t)next * pitch, MADV_WILLNEED);
        for (int64_t col = 0; col < from->cols; col += width) {
            k.part = (struct part){row, rows, col, kt_min_i64(width, from->cols - col)};
            KT_TRY(convert_chunk(&k, entry, file));
        }
        advise(data, (uint64_t)rows * pitch, MADV_DONTNEED);
        c->done += (uint64_t)rows * pitch;
        kt_progress(c->ctx, "converting", c->done, c->total);
    }
    return KT_OK;
}

static kt_status convert(struct kt_converter *c, const struct kt_convert_entry *entry,
                         struct kt_atomic_file *file)
{
    const struct kt_tensor *scales = entry->from_scales;
    struct kt_weight from = entry->weight;
    void *wide = NULL;
    if (scales)
        KT_TRY(kt_tensor_check_scales(c->ctx, scales));
    if (scales && !from.scale) {
        size_t n = (size_t)(scales->shape[0] * scales->shape[1]);
        KT_TRY(kt_buffer_alloc(c->ctx, n, sizeof(float), "the scales of a matrix", &wide));
        kt_dtype_to_f32(scales->dtype, scales->data, wide, n);
        from.scale = wide;
    }
    kt_status status = convert_matrix(c, entry, &from, file);
    kt_buffer_free(c->ctx, wide);
    return status;
}

static kt_status copy(struct kt_converter *c, const struct kt_convert_entry *entry,
                      struct kt_atomic_file *file)
{
    const struct kt_tensor *t = entry->from;
    KT_TRY(kt_tensor_check_aligned(c->ctx, t));
    for (uint64_t at = 0; at < t->bytes; at += OUTPUT_BYTES) {
        struct kt_tensor part = *t;
        part.data = (const char *)t->data + at;
        part.bytes = t->bytes - at < OUTPUT_BYTES ? t->bytes - at : OUTPUT_BYTES;
        KT_TRY(kt_check_cancel(c->ctx));
        KT_TRY(kt_checkpoint_check(c->model->checkpoint, t->data));
        KT_TRY(kt_tensor_check_finite(c->ctx, &part));
        KT_TRY(kt_atomic_write_at(file, entry->offset + at, part.data, part.bytes));
        advise(part.data, part.bytes, MADV_DONTNEED);
        c->done += part.bytes;
        kt_progress(c->ctx, "converting", c->done, c->total);
    }
    return KT_OK;
}

kt_status kt_convert_stream(struct kt_converter *c, const struct kt_convert_entry *entry,
                            struct kt_atomic_file *file)
{
    return entry->converts ? convert(c, entry, file) : copy(c, entry, file);
}

kt_status kt_convert_allocate(struct kt_converter *c)
{
    const char *what = "the buffers of a conversion";
    void *scales, *scratch;
    KT_TRY(kt_buffer_alloc(c->ctx, OUTPUT_BYTES, 1, what, &c->output));
    KT_TRY(kt_buffer_alloc(c->ctx, SCALES, sizeof(float), what, &scales));
    c->scales = scales;
    uint64_t threads = (uint64_t)kt_pool_num_threads(c->ctx->pool);
    KT_TRY(kt_buffer_alloc(c->ctx, threads * SCRATCH, sizeof(float), what, &scratch));
    c->scratch = scratch;
    return KT_OK;
}

void kt_convert_release(struct kt_converter *c)
{
    kt_buffer_free(c->ctx, c->output);
    kt_buffer_free(c->ctx, c->scales);
    kt_buffer_free(c->ctx, c->scratch);
}
