/* SPDX-License-Identifier: Apache-2.0 */
/* Speed of the kernels of the experts backend "amx" alone, without gathering tokens or activations:
 *
 *     bench_tiles [threads [rounds]]
 *
 * A piece of work is 256 rows of V3's gate (forward) or 256 columns of its down (backward), of
 * weights that are read from memory one piece after the other. Rows take turns, round by round, so
 * that other work on the machine falls on all of them. Each row: nanoseconds of 1024 weights on one
 * thread, which a tenth, half and nine tenths of all pieces took at most (a thread whose core is
 * shared takes two to four times as long as one that has it alone: compare like with like); TFLOP/s
 * and GB/s of all threads by the mean of pieces. */
#include <string.h>

#include "backends/amx/experts.h"
#include "ceilings.h"
#include "core/memory.h"
#include "weights.h"

enum {
    HIDDEN = 7168,
    INTER = 2048,
    WIDTH = 256, /* rows, or columns, of a piece */
    PIECES_A_WEIGHT = INTER / WIDTH,
    WEIGHTS_A_THREAD = 3,
    MAX_TILES = 16,
    MAX_ROUNDS = 1000
};

static const struct weight_type types[] = {{"bf16", KT_DTYPE_BF16, 0, 0},
                                           {"fp8", KT_DTYPE_F8_E4M3, 128, 128},
                                           {"int4", KT_DTYPE_I4, 1, 128}};
static const int tile_counts[] = {1, 2, 4, 8, MAX_TILES};

enum { TYPES = sizeof types / sizeof *types, TILES = sizeof tile_counts / sizeof *tile_counts };

struct bench {
    kt_context *ctx;
    struct kt_amx_experts *amx;
    char *weights, *columns;
    char *stage, *products; /* of each thread */
    float *scales;
    /* The row: */
    const struct weight_type *type;
    int64_t tiles;
    int backward;
    float *took; /* [pieces] seconds of the round */
};

enum { PRODUCTS_BYTES = MAX_TILES * KT_AMX_TOKENS * KT_AMX_LD * 4 };

static void *filled(int64_t bytes)
{
    uint64_t s = 88172645463325252ull, *p = aligned_alloc(4096, (size_t)bytes);
    if (!p) {
        fprintf(stderr, "bench_tiles: not enough memory\n");
        exit(1);
    }
    /* Finite in every format. */
    for (int64_t i = 0; i < bytes / 8; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        p[i] = s & 0xbfbfbfbfbfbfbfbfull;
    }
    return p;
}

static struct kt_weight weight_at(const struct bench *b, int64_t piece)
{
    int64_t rows = b->backward ? HIDDEN : INTER, cols = b->backward ? INTER : HIDDEN;
    uint64_t bytes = (uint64_t)rows * kt_format_row_bytes(b->type->dtype, cols);
    return weight_of(b->type, b->weights + (uint64_t)(piece / PIECES_A_WEIGHT) * bytes, b->scales,
                     rows, cols);
}

static struct kt_amx_blocks blocks_at(const struct bench *b, int64_t piece,
                                      const struct kt_weight *w)
{
    struct kt_amx_blocks blocks = {.decode = b->amx->rows.decode[KT_DECODE_BF16],
                                   .num = WIDTH / KT_AMX_ROWS};
    for (int32_t i = 0; i < blocks.num; i++) {
        blocks.weight[i] = w;
        blocks.first[i] = piece % PIECES_A_WEIGHT * WIDTH + i * KT_AMX_ROWS;
        blocks.rows[i] = KT_AMX_ROWS;
    }
    return blocks;
}

static struct kt_amx_strip strip_at(const struct bench *b, int64_t piece, const struct kt_weight *w)
{
    return (struct kt_amx_strip){.decode = b->amx->rows.decode[KT_DECODE_BF16],
                                 .decode_pairs = b->amx->rows.decode_pairs,
                                 .weight = w,
                                 .col = piece % PIECES_A_WEIGHT * WIDTH,
                                 .cols = WIDTH};
}

static void multiply_pieces(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct bench *b = arg;
    const struct kt_amx_kernels *k = &b->amx->kernels;
    char *stage = b->stage + (int64_t)thread * KT_AMX_STAGE_BYTES;
    float *products = (float *)(void *)(b->products + (int64_t)thread * PRODUCTS_BYTES);
    k->enter();
    for (int64_t piece = begin; piece < end; piece++) {
        double from = ceiling_now();
        struct kt_weight w = weight_at(b, piece), after = weight_at(b, piece + 1);
        if (b->backward) {
            struct kt_amx_strip strip = strip_at(b, piece, &w);
            struct kt_amx_strip next = strip_at(b, piece + 1, &after);
            k->backward(&strip, piece + 1 < end ? &next : NULL, b->columns, b->tiles,
                        b->amx->backward_chunk, 0, products, KT_AMX_LD, stage);
        } else {
            struct kt_amx_blocks blocks = blocks_at(b, piece, &w);
            struct kt_amx_blocks next = blocks_at(b, piece + 1, &after);
            k->forward(&blocks, piece + 1 < end ? &next : NULL, HIDDEN, b->columns, b->tiles,
                       b->amx->forward_chunk, products, stage);
        }
        b->took[piece] = (float)(ceiling_now() - from);
    }
    k->leave();
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* took [n]: of all rounds. */
static void print_row(const struct bench *b, float *took, int64_t n)
{
    double threads = kt_pool_num_threads(b->ctx->pool), mean = 0;
    double weights = (double)WIDTH * HIDDEN, ns = 1e9 * 1024 / weights;
    double bytes = weights * (double)kt_format_row_bytes(b->type->dtype, HIDDEN) / HIDDEN;
    for (int64_t i = 0; i < n; i++)
        mean += took[i] / (double)n;
    qsort(took, (size_t)n, sizeof *took, ascending);
    printf("%-5s %2lld tiles %-8s %6.1f %6.1f %6.1f ns %6.2f TFLOP/s %6.1f GB/s\n", b->type->name,
           (long long)b->tiles, b->backward ? "backward" : "forward", took[n / 10] * ns,
           took[n / 2] * ns, took[n * 9 / 10] * ns,
           2 * weights * (double)b->tiles * KT_AMX_TOKENS * threads / mean * 1e-12,
           bytes * threads / mean * 1e-9);
}

static void set_row(struct bench *b, int row)
{
    b->type = &types[row / TILES / 2];
    b->tiles = tile_counts[row / 2 % TILES];
    b->backward = row % 2;
}

int main(int argc, char **argv)
{
    enum { ROWS = TYPES * TILES * 2 };
    struct kt_experts *experts;
    struct bench b = {0};
    int rounds = argc > 2 ? atoi(argv[2]) : 7;
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = argc > 1 ? atoi(argv[1]) : 0;
    if (kt_context_create(&options, &b.ctx) != KT_OK || rounds < 1 || rounds > MAX_ROUNDS)
        return 1;
    if (kt_experts_open(b.ctx, "amx", &experts) != KT_OK) {
        fprintf(stderr, "bench_tiles: %s\n", kt_last_error(b.ctx));
        return 1;
    }
    int64_t threads = kt_pool_num_threads(b.ctx->pool), weights = threads * WEIGHTS_A_THREAD;
    b.amx = (struct kt_amx_experts *)experts;
    b.weights = filled((weights + 1) * HIDDEN * INTER * 2);
    b.columns = filled(MAX_TILES * HIDDEN * KT_AMX_TOKENS * 2);
    b.stage = filled(threads * KT_AMX_STAGE_BYTES);
    b.products = filled(threads * PRODUCTS_BYTES);
    b.scales = malloc(INTER * HIDDEN / 128 * sizeof *b.scales);
    int64_t pieces = weights * PIECES_A_WEIGHT;
    float *took = malloc((size_t)(ROWS * rounds * pieces) * sizeof *took);
    if (!b.scales || !took)
        return 1;
    for (int i = 0; i < INTER * HIDDEN / 128; i++)
        b.scales[i] = 0.01f;
    printf("%s\n", kt_context_cpu_description(b.ctx));
    for (int round = -1; round < rounds; round++)
        for (int row = 0; row < ROWS; row++) {
            set_row(&b, row);
            b.took = took + (row * rounds + kt_max_i64(round, 0)) * pieces;
            kt_parallel_for(b.ctx->pool, pieces, 4, multiply_pieces, &b);
        }
    for (int row = 0; row < ROWS; row++) {
        set_row(&b, row);
        print_row(&b, took + row * rounds * pieces, rounds * pieces);
    }
    free(took);
    free(b.weights), free(b.columns), free(b.stage), free(b.products), free(b.scales);
    kt_experts_close(experts);
    kt_context_free(b.ctx);
    return 0;
}
