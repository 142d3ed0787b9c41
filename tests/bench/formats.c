/* SPDX-License-Identifier: Apache-2.0 */
/* Speed of linears by the format of their weights, in bfloat16, against bfloat16 weights and
 * against what this machine can do. Formats take turns, call by call, so that other work on the
 * machine falls on all of them. Usage: bench_formats [threads] [isa mask, hex] [tokens], 0 tokens =
 * the decoders only.
 *
 * Each entry: milliseconds of the best call; x time of bfloat16 weights; the larger of its shares
 * of the two ceilings (p: products, m: reading the weight's bytes from memory). Of decoding:
 * weights a nanosecond and thread, in the pieces that experts on AMX take. */
#include "backends/cpu/kernels.h"
#include "ceilings.h"
#include "device.h"
#include "weights/dtype.h"
#include "weights.h"

enum { ROWS = 2048, COLS = 2048, CACHE_BYTES = 128 << 20, SECONDS = 4 };

static const struct weight_type types[] = {
    {"bf16", KT_DTYPE_BF16, 0, 0},  {"fp8", KT_DTYPE_F8_E4M3, 128, 128},
    {"int8", KT_DTYPE_I8, 1, COLS}, {"int4", KT_DTYPE_I4, 1, 128},
    {"q8_0", KT_DTYPE_Q8_0, 0, 0},  {"q4_0", KT_DTYPE_Q4_0, 0, 0},
    {"q4_k", KT_DTYPE_Q4_K, 0, 0},  {"q6_k", KT_DTYPE_Q6_K, 0, 0}};

enum { TYPES = sizeof types / sizeof *types };

struct bench {
    kt_context *ctx;
    struct kt_device *dev;
    char *data; /* CACHE_BYTES of finite numbers in every format */
    float *scale, *x, *y;
    double peak, bandwidth;
};

static void fail(const char *what)
{
    fprintf(stderr, "bench_formats: %s\n", what);
    exit(1);
}

static float *random_floats(int64_t n)
{
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((i * 2654435761u >> 8) % 2001) * 1e-3f - 1;
    return x;
}

static int64_t matrix_bytes(int type)
{
    return ROWS * (int64_t)kt_format_row_bytes(types[type].dtype, COLS);
}

static struct kt_weight weight_at(const struct bench *b, int type, int64_t copy)
{
    return weight_of(&types[type], b->data + copy * matrix_bytes(type), b->scale, ROWS, COLS);
}

/* One call; each takes the next copy of the weight, so that few tokens read them from memory and
 * not from cache. */
static double time_call(const struct bench *b, int type, bool backward, int64_t tokens, int call)
{
    struct kt_view x = kt_view_f32(b->x, COLS), y = kt_view_f32(b->y, ROWS);
    enum kt_op op = backward ? KT_OP_LINEAR_BACKWARD : KT_OP_LINEAR_FORWARD;
    struct kt_linear_args args = {.weight =
                                      weight_at(b, type, call % (CACHE_BYTES / matrix_bytes(type))),
                                  .compute = KT_COMPUTE_BF16,
                                  .tokens = tokens,
                                  .x = backward ? y : x,
                                  .y = backward ? x : y};
    bench_reserve(b->dev, op, &args);
    double from = ceiling_now();
    bench_run(b->dev, op, &args);
    return ceiling_now() - from;
}

static void bench_tokens(const struct bench *b, bool backward, int64_t tokens)
{
    double best[TYPES], start = ceiling_now();
    for (int type = 0; type < TYPES; type++)
        best[type] = 1e30;
    for (int call = 0; call < 5 || (call < 1000 && ceiling_now() - start < SECONDS); call++)
        for (int type = 0; type < TYPES; type++) {
            double took = time_call(b, type, backward, tokens, call);
            best[type] = took < best[type] ? took : best[type];
        }
    printf("%5lld %s", (long long)tokens, backward ? "back" : "forw");
    for (int type = 0; type < TYPES; type++) {
        double products = 2.0 * (double)tokens * ROWS * COLS / best[type] / b->peak;
        double memory = (double)matrix_bytes(type) / best[type] / b->bandwidth;
        printf(" |%8.2f %4.2fx %3.0f%%%c", best[type] * 1e3, best[type] / best[0],
               100 * (products > memory ? products : memory), products > memory ? 'p' : 'm');
    }
    printf("\n");
    fflush(stdout);
}

/* -- decoders alone ---------------------------------------------------------------------------- */

enum { SLAB_ROWS = 256, PIECE_BYTES = 1 << 16 };

struct decoding {
    const struct bench *b;
    kt_decode_fn decode;
    int type, in_cache;
    int64_t rows, cols; /* of a piece */
    char *pieces;       /* of each thread */
};

/* Slabs of SLAB_ROWS rows of the copies that follow each other, or always the first. */
static void decode_slabs(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct decoding *d = arg;
    for (int64_t i = begin; i < end; i++) {
        struct kt_weight w = weight_at(d->b, d->type, 0);
        if (!d->in_cache)
            w.data = d->b->data + i * SLAB_ROWS * matrix_bytes(d->type) / ROWS;
        for (int64_t row = 0; row < SLAB_ROWS; row += d->rows)
            for (int64_t col = 0; col < COLS; col += d->cols)
                d->decode(&w, row, col, d->rows, d->cols, 0, d->pieces + thread * PIECE_BYTES,
                          d->cols);
    }
}

static void bench_decoding(const struct bench *b, int in_cache, int64_t rows, int64_t cols)
{
    struct kt_kernels kernels;
    int32_t threads = kt_context_num_threads(b->ctx);
    kt_kernels_init(&kernels, b->ctx->cpu.isa);
    struct decoding d = {b,
                         kernels.decode[KT_DECODE_BF16],
                         0,
                         in_cache,
                         rows,
                         cols,
                         aligned_alloc(64, (size_t)threads * PIECE_BYTES)};
    printf("decode %3d x %3d, %s", (int)rows, (int)cols,
           in_cache ? "level-2 cache" : "memory       ");
    for (d.type = 1; d.type < TYPES; d.type++) {
        int64_t slabs = CACHE_BYTES / matrix_bytes(d.type) * (ROWS / SLAB_ROWS);
        double took = ceiling_seconds(b->ctx, slabs, 1, decode_slabs, &d);
        printf(" | %s %5.2f", types[d.type].name,
               (double)(slabs * SLAB_ROWS * COLS) / took * 1e-9 / threads);
    }
    printf("\n");
    free(d.pieces);
}

static void bench_decoders(const struct bench *b)
{
    for (int in_cache = 1; in_cache >= 0; in_cache--) {
        bench_decoding(b, in_cache, 32, 256);
        bench_decoding(b, in_cache, 256, 128);
    }
}

int main(int argc, char **argv)
{
    static const int64_t counts[] = {1, 2, 4, 8, 16, 32, 128, 1024, 4096};
    struct bench b = {0};
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = argc > 1 ? atoi(argv[1]) : 0;
    options.isa_mask = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 16) : 0;
    int64_t only = argc > 3 ? atoll(argv[3]) : -1;
    if (kt_context_create(&options, &b.ctx) != KT_OK ||
        kt_device_open(b.ctx, "cpu", &b.dev) != KT_OK)
        fail("no device");
    if (kt_context_num_threads(b.ctx) == 1)
        ceiling_timer = CLOCK_PROCESS_CPUTIME_ID;
    b.peak = ceiling_products(b.ctx, 1);
    b.bandwidth = ceiling_memory(b.ctx);
    b.data = malloc(CACHE_BYTES);
    for (int64_t i = 0; i < CACHE_BYTES; i++)
        b.data[i] = (char)(i * 2654435761u >> 13 & 0xbf & (i % 2 ? 0xbf : 0xff));
    b.scale = random_floats(ROWS * COLS / 128);
    for (int64_t i = 0; i < ROWS * COLS / 128; i++)
        b.scale[i] += 2; /* none is 0, which decoders leave to plain C */
    b.x = random_floats(4096 * COLS), b.y = random_floats(4096 * ROWS);
    printf("%s\npeak %.1f GFLOP/s, memory %.1f GB/s; weight %d x %d\n",
           kt_context_cpu_description(b.ctx), b.peak * 1e-9, b.bandwidth * 1e-9, ROWS, COLS);
    if (only <= 0)
        bench_decoders(&b);
    for (int type = 0; type < TYPES && only; type++)
        printf("%s | %-18s%s", type ? "" : "tokens    ", types[type].name,
               type + 1 < TYPES ? "" : "\n");
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (int backward = 0; backward < 2 && (only < 0 || only == counts[i]); backward++)
            bench_tokens(&b, backward, counts[i]);
    free(b.data), free(b.scale), free(b.x), free(b.y);
    kt_device_close(b.dev);
    kt_context_free(b.ctx);
    return 0;
}
