/* SPDX-License-Identifier: Apache-2.0 */
/* Speed of the kernels of the experts backend "amx" alone, without gathering tokens or activations:
 *
 *     bench_tiles [threads [rounds]]
 *
 * A piece of work is 256 rows (forward) or up to 2048 columns (backward) of V3's gate, of weights
 * that are read from memory one piece after the other. Rows take turns, round by round, so that
 * other work on the machine falls on all of them. A thread whose core is shared takes two to four
 * times as long as one that has it alone, and that changes within milliseconds; so before and
 * after each piece products from registers are timed. Each row, for pieces with the core alone
 * both times and for those with it shared both times: their part of all pieces, and nanoseconds of
 * 1024 weights on one thread that a tenth, half and nine tenths of them took at most; TFLOP/s and
 * GB/s of all threads at the median. */
#include <string.h>

#include "backends/amx/experts.h"
#include "backends/registry.h"
#include "ceilings.h"
#include "config.h"
#include "core/bind.h"
#include "core/memory.h"
#include "weights.h"

enum {
    HIDDEN = 7168,
    INTER = 2048,
    ROWS = 256,                  /* of a piece */
    MOST_PIECES = HIDDEN / ROWS, /* of a weight */
    WEIGHTS_A_THREAD = 3,
    MAX_TILES = 24,
    MAX_ROUNDS = 1000
};

/* Of a product of tiles from registers: 16 cycles alone, twice that on a shared core. */
static const double alone_ns = 9.5;

static const struct weight_type types[] = {{"bf16", KT_DTYPE_BF16, 0, 0},
                                           {"fp8", KT_DTYPE_F8_E4M3, 128, 128},
                                           {"int4", KT_DTYPE_I4, 1, 128}};
static const int tile_counts[] = {1, 2, 4, 8, MAX_TILES};

enum { TYPES = sizeof types / sizeof *types, TILES = sizeof tile_counts / sizeof *tile_counts };

struct bench {
    kt_context *ctx;
    struct kt_amx_experts *amx;
    char *weights, *f8_weights, *columns;
    char *stage, *products; /* of each thread */
    float *scales;
    /* The row: */
    const struct weight_type *type;
    int64_t tiles;
    int backward;
    int64_t width;      /* rows or columns of a piece */
    struct piece *took; /* [pieces] of the round */
};

enum core { SHARED, BETWEEN, ALONE };

struct piece {
    enum core core;
    float seconds;
};

enum { PRODUCTS_BYTES = MAX_TILES * KT_AMX_TOKENS * KT_AMX_LD * 4 };

static int64_t pieces_a_weight(const struct bench *b)
{
    return (b->backward ? HIDDEN : INTER) / b->width;
}

/* huge: in huge pages, as the backend's scratch; codes: NULL, or of FP8 */
static void *filled(int64_t bytes, int huge, const uint8_t *codes)
{
    uint64_t s = 88172645463325252ull, *p = aligned_alloc(4096, (size_t)bytes);
    if (!p) {
        fprintf(stderr, "bench_tiles: not enough memory\n");
        exit(1);
    }
    if (huge)
        kt_use_huge_pages(p, (uint64_t)bytes);
    /* Finite in every format. */
    for (int64_t i = 0; i < bytes / 8; i++)
        p[i] = codes ? random_f8(codes, &s) : next_random(&s) & 0xbfbfbfbfbfbfbfbfull;
    return p;
}

static struct kt_weight weight_at(const struct bench *b, int64_t piece)
{
    uint64_t bytes = (uint64_t)INTER * kt_format_row_bytes(b->type->dtype, HIDDEN);
    const char *data = b->type->dtype == KT_DTYPE_F8_E4M3 ? b->f8_weights : b->weights;
    return weight_of(b->type, data + (uint64_t)(piece / pieces_a_weight(b)) * bytes, b->scales,
                     INTER, HIDDEN);
}

static struct kt_amx_blocks blocks_at(const struct bench *b, int64_t piece,
                                      const struct kt_weight *w)
{
    struct kt_amx_blocks blocks = {.decode = b->amx->rows.decode[KT_DECODE_BF16],
                                   .num = ROWS / KT_AMX_ROWS};
    for (int32_t i = 0; i < blocks.num; i++) {
        blocks.weight[i] = w;
        blocks.first[i] = piece % pieces_a_weight(b) * ROWS + i * KT_AMX_ROWS;
        blocks.rows[i] = KT_AMX_ROWS;
    }
    return blocks;
}

static struct kt_amx_strip strip_at(const struct bench *b, int64_t piece, const struct kt_weight *w)
{
    return (struct kt_amx_strip){.decode = b->amx->rows.decode[KT_DECODE_BF16],
                                 .decode_pairs = b->amx->rows.decode_pairs,
                                 .weight = w,
                                 .col = piece % pieces_a_weight(b) * b->width,
                                 .cols = b->width};
}

#if defined(KT_HAVE_AMX)
#include <immintrin.h>

/* Nanoseconds of a product of tiles, on a thread whose tiles have a shape. factors: 2 tiles, since
 * products of zeros are faster. */
__attribute__((target("amx-tile,amx-bf16"))) static double product_ns(const char *factors)
{
    enum { TIMES = 64, PRODUCTS = 4 };
    char tile[1024] __attribute__((aligned(64)));
    _tile_loadd(4, factors, 64);
    _tile_loadd(5, factors + 1024, 64);
    _tile_loadd(6, factors, 64);
    _tile_loadd(7, factors + 1024, 64);
    _tile_stored(7, tile, 64);
    __asm__ volatile("" : : "r"(tile) : "memory");
    double from = ceiling_now();
    for (int i = 0; i < TIMES; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(3, tile, 64);
    __asm__ volatile("" : : "r"(tile) : "memory");
    return (ceiling_now() - from) * 1e9 / (TIMES * PRODUCTS);
}
#else
static double product_ns(const char *factors)
{
    (void)factors;
    return 0;
}
#endif

static void multiply_pieces(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct bench *b = arg;
    const struct kt_amx_kernels *k = &b->amx->kernels;
    char *stage = b->stage + (int64_t)thread * KT_AMX_STAGE_BYTES;
    float *products = (float *)(void *)(b->products + (int64_t)thread * PRODUCTS_BYTES);
    k->enter();
    for (int64_t piece = begin; piece < end; piece++) {
        int before = product_ns(b->columns) < alone_ns; /* enum core: how many of two times */
        double from = ceiling_now();
        struct kt_weight w = weight_at(b, piece), after = weight_at(b, piece + 1);
        if (b->backward) {
            struct kt_amx_strip strip = strip_at(b, piece, &w);
            struct kt_amx_strip next = strip_at(b, piece + 1, &after);
            k->backward(&strip, piece + 1 < end ? &next : NULL, b->columns,
                        b->tiles * KT_AMX_TOKENS, b->amx->backward_chunk, 0, products,
                        b->width + KT_AMX_PAD, stage);
        } else {
            struct kt_amx_blocks blocks = blocks_at(b, piece, &w);
            struct kt_amx_blocks next = blocks_at(b, piece + 1, &after);
            k->forward(&blocks, piece + 1 < end ? &next : NULL, HIDDEN, b->columns, b->tiles,
                       b->amx->forward_chunk, products, stage);
        }
        b->took[piece].seconds = (float)(ceiling_now() - from);
        b->took[piece].core = (enum core)(before + (product_ns(b->columns) < alone_ns));
    }
    k->leave();
}

/* By core, then time. */
static int ascending(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    if (x->core != y->core)
        return x->core < y->core ? -1 : 1;
    return x->seconds < y->seconds ? -1 : x->seconds > y->seconds;
}

/* took [n]: pieces with such a core, of `all`, in ascending order. */
static void print_core(const struct bench *b, const char *name, const struct piece *took, int64_t n,
                       int64_t all)
{
    enum { ENOUGH = 10 };
    double threads = kt_pool_num_threads(b->ctx->pool);
    double weights = (double)b->width * (b->backward ? INTER : HIDDEN), ns = 1e9 * 1024 / weights;
    double bytes = weights * (double)kt_format_row_bytes(b->type->dtype, HIDDEN) / HIDDEN;
    printf("  %s %3.0f%%", name, 100.0 * (double)n / (double)all);
    if (n < ENOUGH) {
        printf(" %49s", "");
        return;
    }
    double median = took[n / 2].seconds;
    printf(" %5.0f %5.0f %5.0f ns %6.2f TFLOP/s %6.1f GB/s", took[n / 10].seconds * ns, median * ns,
           took[n * 9 / 10].seconds * ns,
           2 * weights * (double)b->tiles * KT_AMX_TOKENS * threads / median * 1e-12,
           bytes * threads / median * 1e-9);
}

/* took [n]: of all rounds. */
static void print_row(const struct bench *b, struct piece *took, int64_t n)
{
    int64_t shared = 0, alone = 0;
    for (int64_t i = 0; i < n; i++)
        shared += took[i].core == SHARED, alone += took[i].core == ALONE;
    qsort(took, (size_t)n, sizeof *took, ascending);
    printf("%-5s %2lld tiles %-8s", b->type->name, (long long)b->tiles,
           b->backward ? "backward" : "forward");
    print_core(b, "alone", took + n - alone, alone, n);
    print_core(b, "shared", took, shared, n);
    printf("\n");
}

static void set_row(struct bench *b, int row)
{
    b->type = &types[row / TILES / 2];
    b->tiles = tile_counts[row / 2 % TILES];
    b->backward = row % 2;
    b->width = b->backward ? kt_amx_backward_features(b->amx, b->tiles) : ROWS;
}

int main(int argc, char **argv)
{
    enum { TABLE = TYPES * TILES * 2 };
    struct kt_experts *experts;
    struct bench b = {0};
    static uint8_t codes[F8_SAMPLES];
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
    sample_f8(codes);
    b.weights = filled((weights + 1) * HIDDEN * INTER * 2, 0, NULL);
    b.f8_weights = filled((weights + 1) * HIDDEN * INTER, 0, codes);
    b.columns = filled(MAX_TILES * HIDDEN * KT_AMX_TOKENS * 2, 1, NULL);
    b.stage = filled(threads * KT_AMX_STAGE_BYTES, 1, NULL);
    b.products = filled(threads * PRODUCTS_BYTES, 1, NULL);
    b.scales = malloc(INTER * HIDDEN / 128 * sizeof *b.scales);
    int64_t pieces = weights * MOST_PIECES;
    struct piece *took = malloc((size_t)(TABLE * rounds * pieces) * sizeof *took);
    if (!b.scales || !took)
        return 1;
    for (int i = 0; i < INTER * HIDDEN / 128; i++)
        b.scales[i] = 0.01f;
    printf("%s\n", kt_context_cpu_description(b.ctx));
    for (int round = -1; round < rounds; round++)
        for (int row = 0; row < TABLE; row++) {
            set_row(&b, row);
            b.took =
                took + row * rounds * pieces + kt_max_i64(round, 0) * weights * pieces_a_weight(&b);
            kt_parallel_for(b.ctx->pool, weights * pieces_a_weight(&b),
                            kt_min_i64(4, pieces_a_weight(&b)), multiply_pieces, &b);
        }
    for (int row = 0; row < TABLE; row++) {
        set_row(&b, row);
        print_row(&b, took + row * rounds * pieces, rounds * weights * pieces_a_weight(&b));
    }
    free(took);
    free(b.weights), free(b.f8_weights), free(b.columns), free(b.stage), free(b.products),
        free(b.scales);
    kt_experts_close(experts);
    kt_context_free(b.ctx);
    return 0;
}
