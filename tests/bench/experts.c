/* SPDX-License-Identifier: Apache-2.0 */
/* Speed of an experts backend against what this machine can do, measured in the same run.
 *
 *     bench_experts [-b BACKEND] [-t THREADS] [-g GB of weights at most] [-m MODEL] [-n TOKENS]
 *                   [-d bf16|fp8|int8|int4] [-w] [-p small|huge] [-c CHUNK] [-k TILES] [-r REPEATS]
 *
 * Each row: milliseconds of the best of at least 3 calls, how much the slowest of them took more;
 * TFLOP/s, counting three products a direction (6 x tokens x topk x hidden x intermediate); GB/s,
 * counting what a direction must read of the touched experts, three matrices. One token is one of a
 * conversation: forward only. Backward takes the gate and up products that forward kept; with -w it
 * recomputes them, and so makes five products and reads five matrices, which GB/s then counts.
 * Last, time / the larger of the two floors that the ceilings set for the products made and the
 * bytes read; with -b amx-int8 -d int8, operations of INT8 count as FLOP. -c and -k: features (of
 * INT8 a multiple of 64) and tiles of 16 tokens that the amx backends multiply at a time. -p: pages
 * of the weights (small as in a mapped file, or huge). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/amx/experts.h"
#include "backends/registry.h"
#include "ceilings.h"
#include "config.h"
#include "weights.h"

enum { MIN_MS = 300, CHUNK_BYTES = 4 << 20, MAX_EXPERTS = 256, MAX_SCALES = 1 << 18 };

struct shape {
    const char *name;
    int32_t experts, topk;
    int64_t hidden, inter;
};

static const struct shape shapes[] = {
    {"V3", 256, 8, 7168, 2048}, {"V2-Lite", 64, 6, 2048, 1408}, {"Qwen3-30B", 128, 8, 2048, 768}};
static const int64_t token_counts[] = {1, 16, 128, 512, 4096, 16384};

static const struct weight_type weight_types[] = {{"bf16", KT_DTYPE_BF16, 0, 0},
                                                  {"fp8", KT_DTYPE_F8_E4M3, 128, 128},
                                                  {"int8", KT_DTYPE_I8, 1, 1 << 20},
                                                  {"int4", KT_DTYPE_I4, 1, 128}};

struct bench {
    kt_context *ctx;
    struct kt_experts *experts, *general;
    const struct weight_type *type;
    float *scales; /* as many as a matrix has at most */
    int recompute;
    /* A second: the ceilings that rows are compared with. Forward's is another where it multiplies
     * in INT8; backward recomputes gate and up in it, which is not told apart. */
    double flops, forward_flops, bytes;
    int repeats;
    uint8_t f8[F8_SAMPLES];
    char *weights;
    int64_t weight_bytes;
};

static void fail(const char *what)
{
    fprintf(stderr, "bench_experts: %s\n", what);
    exit(1);
}

static void *pages(int64_t bytes, int advice)
{
    void *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        fail("not enough memory; use -g");
    madvise(p, (size_t)bytes, advice);
    return p;
}

/* Best and worst seconds of a call. */
struct timing {
    double best, worst;
};

static struct timing measure(const struct bench *b, void (*fn)(void *), void *arg)
{
    struct timing t = {1e30, 0};
    double start = ceiling_now();
    fn(arg); /* caches, scratch and page tables are those of a second call */
    if (ceiling_now() - start > 1)
        start = ceiling_now() - MIN_MS * 1e-3; /* a long call is not repeated more than it must */
    for (int i = 0; i < b->repeats || (ceiling_now() - start < MIN_MS * 1e-3 && i < 100); i++) {
        double from = ceiling_now();
        fn(arg);
        double took = ceiling_now() - from;
        t.best = fmin(t.best, took);
        t.worst = fmax(t.worst, took);
    }
    return t;
}

/* -- ceilings -----------------------------------------------------------------------------------
 */

struct pieces {
    struct kt_pool *pool;
    kt_range_fn fn;
    void *arg;
    int64_t n;
};

static void run_pieces(void *arg)
{
    const struct pieces *p = arg;
    kt_parallel_for(p->pool, p->n, 1, p->fn, p->arg);
}

#if defined(KT_HAVE_AMX)
#include <immintrin.h>

/* Pieces are small, since processors that are shared with others are not equally fast. */
enum { ROUNDS = 12500, L2_BYTES = 512 << 10, L2_ROUNDS = 25, PIECES_A_THREAD = 16 };

struct amx_ceiling {
    const struct kt_amx_kernels *kernels;
    char *memory; /* L2_BYTES a thread */
};

#define TILES __attribute__((target("amx-tile,amx-bf16,amx-int8")))

#define ZERO_TILES()                                                                               \
    do {                                                                                           \
        _tile_zero(0);                                                                             \
        _tile_zero(1);                                                                             \
        _tile_zero(2);                                                                             \
        _tile_zero(3);                                                                             \
    } while (0)
#define LOAD_TILES(p)                                                                              \
    do {                                                                                           \
        _tile_loadd(4, (p), 64);                                                                   \
        _tile_loadd(5, (p) + 1024, 64);                                                            \
        _tile_loadd(6, (p) + 2048, 64);                                                            \
        _tile_loadd(7, (p) + 3072, 64);                                                            \
    } while (0)
#define MULTIPLY_TILES(product)                                                                    \
    do {                                                                                           \
        product(0, 4, 6);                                                                          \
        product(1, 4, 7);                                                                          \
        product(2, 5, 6);                                                                          \
        product(3, 5, 7);                                                                          \
    } while (0)

/* Products of tiles that are loaded once, and of tiles that are loaded from level-2 cache. */
#define MULTIPLY(registers, l2, product)                                                           \
    TILES static void registers(void *arg, int64_t begin, int64_t end, int32_t thread)             \
    {                                                                                              \
        const struct amx_ceiling *c = arg;                                                         \
        char *p = c->memory + (int64_t)thread * L2_BYTES;                                          \
        c->kernels->enter();                                                                       \
        for (int64_t i = begin; i < end; i++) {                                                    \
            ZERO_TILES();                                                                          \
            LOAD_TILES(p);                                                                         \
            for (int k = 0; k < ROUNDS; k++)                                                       \
                MULTIPLY_TILES(product);                                                           \
            _tile_stored(0, p, 64);                                                                \
        }                                                                                          \
        c->kernels->leave();                                                                       \
    }                                                                                              \
                                                                                                   \
    TILES static void l2(void *arg, int64_t begin, int64_t end, int32_t thread)                    \
    {                                                                                              \
        const struct amx_ceiling *c = arg;                                                         \
        char *memory = c->memory + (int64_t)thread * L2_BYTES;                                     \
        c->kernels->enter();                                                                       \
        for (int64_t i = begin; i < end; i++) {                                                    \
            ZERO_TILES();                                                                          \
            for (int round = 0; round < L2_ROUNDS; round++) {                                      \
                for (char *p = memory; p < memory + L2_BYTES; p += 4096) {                         \
                    LOAD_TILES(p);                                                                 \
                    MULTIPLY_TILES(product);                                                       \
                }                                                                                  \
            }                                                                                      \
            _tile_stored(0, memory, 64);                                                           \
        }                                                                                          \
        c->kernels->leave();                                                                       \
    }

MULTIPLY(multiply_bf16, multiply_bf16_l2, _tile_dpbf16ps)
MULTIPLY(multiply_int8, multiply_int8_l2, _tile_dpbssd)

static double rate(const struct bench *b, kt_range_fn fn, void *arg, int64_t pieces, double work)
{
    struct pieces p = {b->ctx->pool, fn, arg, pieces};
    struct timing t = measure(b, run_pieces, &p);
    return (double)pieces * work / t.best;
}

/* Prints both ceilings of a kind of product and returns that of registers. */
static double measure_product(const struct bench *b, struct amx_ceiling *c, const char *name,
                              kt_range_fn registers, kt_range_fn l2, double operations)
{
    int64_t pieces = PIECES_A_THREAD * (int64_t)kt_pool_num_threads(b->ctx->pool);
    double best = rate(b, registers, c, pieces, 4 * operations * ROUNDS);
    double loaded = rate(b, l2, c, pieces, 4 * operations * L2_ROUNDS * L2_BYTES / 4096);
    printf("ceiling: AMX-%s from registers      %7.2f TFLOP/s\n", name, best * 1e-12);
    printf("ceiling: AMX-%s, tiles from L2      %7.2f TFLOP/s\n", name, loaded * 1e-12);
    return best;
}

static void measure_tiles(struct bench *b)
{
    int64_t bytes = kt_pool_num_threads(b->ctx->pool) * L2_BYTES;
    const char *name = b->experts->ops->name;
    if (strncmp(name, "amx", 3) != 0 || strstr(name, "emulated"))
        return;
    struct kt_amx_experts *amx = (struct kt_amx_experts *)b->experts;
    struct amx_ceiling c = {&amx->kernels, pages(bytes, MADV_HUGEPAGE)};
    for (int64_t i = 0; i < bytes / 2; i++)
        ((uint16_t *)c.memory)[i] = (uint16_t)(0x3c00 + (i * 40503 & 0x81ff));
    b->flops = b->forward_flops =
        measure_product(b, &c, "BF16", multiply_bf16, multiply_bf16_l2, 16384);
    if (amx->int8.forward) {
        double int8 = measure_product(b, &c, "INT8", multiply_int8, multiply_int8_l2, 32768);
        b->forward_flops = b->type->dtype == KT_DTYPE_I8 ? int8 : b->flops;
    }
    munmap(c.memory, (size_t)bytes);
}
#else
static void measure_tiles(struct bench *b)
{
    (void)b;
}
#endif

static void measure_products(struct bench *b)
{
    b->flops = b->forward_flops = ceiling_products(b->ctx, 1);
    printf("ceiling: vectors from registers       %7.2f TFLOP/s\n", b->flops * 1e-12);
    measure_tiles(b);
}

static void fill_chunks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct bench *b = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        uint64_t *p = (uint64_t *)(void *)(b->weights + i * CHUNK_BYTES);
        uint64_t s = 88172645463325252ull + (uint64_t)i * 7919;
        for (int64_t k = 0; k < CHUNK_BYTES / 8; k++) {
            if (b->type->dtype == KT_DTYPE_F8_E4M3)
                p[k] = random_f8(b->f8, &s);
            else if (b->type->dtype == KT_DTYPE_BF16)
                p[k] = (next_random(&s) & 0x81ff81ff81ff81ffull) + 0x3c003c003c003c00ull;
            else
                p[k] = next_random(&s) & 0xbfbfbfbfbfbfbfbfull;
        }
    }
}

/* The vectors are as wide as the build's target; 512 bits where the processor has them. */
#define READ_CHUNKS(name)                                                                          \
    static void name(void *arg, int64_t begin, int64_t end, int32_t thread)                        \
    {                                                                                              \
        typedef uint64_t vector __attribute__((vector_size(64)));                                  \
        const struct bench *b = arg;                                                               \
        vector sum[4] = {{0}};                                                                     \
        (void)thread;                                                                              \
        for (int64_t i = begin; i < end; i++) {                                                    \
            const vector *p = (const vector *)(const void *)(b->weights + i * CHUNK_BYTES);        \
            for (int64_t k = 0; k < CHUNK_BYTES / 64; k += 4)                                      \
                for (int j = 0; j < 4; j++) {                                                      \
                    __builtin_prefetch(&p[k + j + 64], 0, 2);                                      \
                    sum[j] += p[k + j];                                                            \
                }                                                                                  \
        }                                                                                          \
        sum[0] += sum[1] + sum[2] + sum[3];                                                        \
        __asm__ volatile("" : : "m"(sum[0]));                                                      \
    }

READ_CHUNKS(read_chunks)
#if defined(KT_HAVE_AMX)
__attribute__((target("avx512f"))) READ_CHUNKS(read_chunks_avx512)
#else
#define read_chunks_avx512 read_chunks
#endif

    static void measure_memory(struct bench *b, int64_t bytes, int huge)
{
    int64_t chunks = bytes / CHUNK_BYTES;
    double start = ceiling_now();
    b->weights = pages(bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    kt_parallel_for(b->ctx->pool, chunks, 1, fill_chunks, b);
    printf("%.1f GB of random weights in %s pages, made in %.1f s\n", (double)bytes * 1e-9,
           huge ? "huge" : "small", ceiling_now() - start);
    struct pieces p = {b->ctx->pool, read_chunks, b, chunks};
    if (b->ctx->cpu.isa & KT_ISA_AVX512)
        p.fn = read_chunks_avx512;
    struct timing t = measure(b, run_pieces, &p);
    b->bytes = (double)(chunks * CHUNK_BYTES) / t.best;
    printf("ceiling: reading memory               %7.1f GB/s (slowest %.1f)\n", b->bytes * 1e-9,
           (double)(chunks * CHUNK_BYTES) / t.worst * 1e-9);
}

/* -- rows of the table --------------------------------------------------------------------------
 */

struct row {
    struct bench *bench;
    struct kt_experts *experts; /* the backend, or that for what it does not support */
    struct kt_expert_layer layer;
    struct kt_routing routing;
    struct kt_expert_call call;
    void *memory; /* of the routing */
    size_t scratch_bytes;
    struct kt_weight weights[KT_EXPERT_LINEARS][MAX_EXPERTS];
    int32_t *ids;
    float *topk_weights, *x, *y, *dy, *dx, *dtw, *kept;
    int64_t touched;
};

static void forward(void *arg)
{
    struct row *r = arg;
    r->experts->ops->forward(r->experts, &r->call, kt_view_f32(r->y, r->layer.hidden_size));
}

static void backward(void *arg)
{
    struct row *r = arg;
    int64_t hidden = r->layer.hidden_size;
    r->experts->ops->backward(r->experts, &r->call, kt_view_f32(r->dy, hidden),
                              kt_view_f32(r->dx, hidden), r->dtw);
}

static float *random_floats(int64_t n)
{
    float *x = aligned_alloc(64, ((size_t)n * sizeof *x + 63) / 64 * 64); /* as executors do */
    if (!x)
        fail("not enough memory");
    uint32_t s = 1;
    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)s * 0x1p-31f;
    }
    return x;
}

/* Different experts for each token, each as likely. */
static void route(struct row *r, const struct shape *s, int64_t tokens)
{
    uint32_t state = 12345;
    uint8_t seen[MAX_EXPERTS] = {0};
    for (int64_t i = 0; i < tokens * s->topk; i++) {
        int repeated;
        do {
            state = state * 1664525u + 1013904223u;
            r->ids[i] = (int32_t)((state >> 8) % (uint32_t)s->experts);
            repeated = 0;
            for (int64_t j = i / s->topk * s->topk; j < i; j++)
                repeated |= r->ids[j] == r->ids[i];
        } while (repeated);
        r->touched += !seen[r->ids[i]];
        seen[r->ids[i]] = 1;
        r->topk_weights[i] = 1.0f / (float)s->topk;
    }
}

static int64_t matrix_bytes(const struct bench *b, const struct shape *s)
{
    return s->inter * (int64_t)kt_format_row_bytes(b->type->dtype, s->hidden);
}

static void make_row(struct row *r, struct bench *b, const struct shape *s, int64_t tokens)
{
    int64_t slots = tokens * s->topk, n = tokens * s->hidden;
    memset(r, 0, sizeof *r);
    r->bench = b;
    r->layer = (struct kt_expert_layer){
        .num_experts = s->experts, .hidden_size = s->hidden, .intermediate_size = s->inter};
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        r->layer.weights[which] = r->weights[which];
        for (int64_t e = 0; e < s->experts; e++)
            r->weights[which][e] = weight_of(
                b->type, b->weights + (e * KT_EXPERT_LINEARS + which) * matrix_bytes(b, s),
                b->scales, which == KT_EXPERT_DOWN ? s->hidden : s->inter,
                which == KT_EXPERT_DOWN ? s->inter : s->hidden);
    }
    if (!b->recompute && tokens > 1)
        r->kept = random_floats(2 * slots * s->inter);
    r->ids = malloc((size_t)slots * sizeof *r->ids);
    r->topk_weights = random_floats(slots), r->dtw = random_floats(slots);
    r->x = random_floats(n), r->dy = random_floats(n);
    r->y = random_floats(n), r->dx = random_floats(n);
    if (!r->ids)
        fail("not enough memory");
    route(r, s, tokens);
    r->routing = (struct kt_routing){.tokens = tokens,
                                     .topk = s->topk,
                                     .num_experts = s->experts,
                                     .ids = r->ids,
                                     .weights = r->topk_weights};
    r->memory = random_floats((int64_t)(kt_routing_bytes(tokens, s->topk, s->experts) / 4));
    kt_routing_sort(&r->routing, r->memory);
    r->call = (struct kt_expert_call){.layer = &r->layer,
                                      .routing = &r->routing,
                                      .compute = KT_COMPUTE_BF16,
                                      .training = tokens > 1,
                                      .x = kt_view_f32(r->x, s->hidden),
                                      .kept = r->kept};
    r->experts = b->experts;
    if (!b->experts->ops->supports(b->experts, &r->layer, KT_COMPUTE_BF16, tokens, tokens > 1))
        r->experts = b->general;
    uint64_t bytes = 0;
    for (int direction = 0; direction < 2; direction++) {
        uint64_t needed = r->experts->ops->scratch_bytes(r->experts, &r->layer, KT_COMPUTE_BF16,
                                                         tokens, s->topk, direction);
        bytes = needed > bytes ? needed : bytes;
    }
    r->scratch_bytes = (size_t)bytes;
    r->call.scratch = pages((int64_t)bytes, MADV_HUGEPAGE);
}

static void free_row(struct row *r)
{
    free(r->ids), free(r->topk_weights), free(r->x), free(r->y), free(r->dy), free(r->dx);
    free(r->dtw), free(r->kept), free(r->memory);
    munmap(r->call.scratch, r->scratch_bytes);
}

static void print_direction(const struct row *r, const struct shape *s, const char *direction,
                            int products, double flops, struct timing t)
{
    double product = 2.0 * (double)r->routing.tokens * s->topk * (double)(s->hidden * s->inter);
    double matrix = (double)r->touched * (double)matrix_bytes(r->bench, s);
    double compute = products * product / flops, read = products * matrix / r->bench->bytes;
    printf("%-10s %6lld  %-8s %9.2f ms +%3.0f%% %7.2f TFLOP/s %6.1f GB/s  %4.2f x %s\n", s->name,
           (long long)r->routing.tokens, direction, t.best * 1e3, 100 * (t.worst / t.best - 1),
           3 * product / t.best * 1e-12, products * matrix / t.best * 1e-9,
           t.best / fmax(compute, read), compute > read ? "products" : "memory");
    fflush(stdout);
}

static void bench_shape(struct bench *b, const struct shape *s, int64_t only)
{
    for (size_t i = 0; i < sizeof token_counts / sizeof *token_counts; i++) {
        struct row r;
        if (only && only != token_counts[i])
            continue;
        make_row(&r, b, s, token_counts[i]);
        print_direction(&r, s, "forward", 3, b->forward_flops, measure(b, forward, &r));
        if (r.call.training)
            print_direction(&r, s, "backward", b->recompute ? 5 : 3, b->flops,
                            measure(b, backward, &r));
        free_row(&r);
    }
}

static int64_t shape_bytes(const struct bench *b, const struct shape *s)
{
    return KT_EXPERT_LINEARS * s->experts * matrix_bytes(b, s);
}

int main(int argc, char **argv)
{
    const char *backend = "auto", *model = NULL;
    int64_t tokens = 0, chunk = 0, tiles = 0, most = 4000000000, bytes = 0;
    int huge = 0, option;
    static struct bench b = {.repeats = 3, .type = weight_types};
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    while ((option = getopt(argc, argv, "b:d:t:g:m:n:p:c:k:r:w")) != -1) {
        switch (option) {
        case 'b':
            backend = optarg;
            break;
        case 't':
            options.num_threads = atoi(optarg);
            break;
        case 'g':
            most = (int64_t)(atof(optarg) * 1e9);
            break;
        case 'm':
            model = optarg;
            break;
        case 'n':
            tokens = atoll(optarg);
            break;
        case 'p':
            huge = strcmp(optarg, "huge") == 0;
            break;
        case 'c':
            chunk = atoll(optarg);
            break;
        case 'k':
            tiles = atoll(optarg);
            break;
        case 'w':
            b.recompute = 1;
            break;
        case 'd':
            b.type = NULL;
            for (size_t i = 0; i < sizeof weight_types / sizeof *weight_types; i++)
                if (strcmp(optarg, weight_types[i].name) == 0)
                    b.type = &weight_types[i];
            if (!b.type)
                fail("-d takes bf16, fp8, int8 or int4");
            break;
        case 'r':
            b.repeats = atoi(optarg);
            break;
        default:
            fail("see the first lines of tests/bench/experts.c");
        }
    }
    if (kt_context_create(&options, &b.ctx) != KT_OK)
        fail("no context");
    if (kt_experts_open(b.ctx, backend, &b.experts) != KT_OK)
        fail(kt_last_error(b.ctx));
    if (kt_experts_open(b.ctx, "cpu", &b.general) != KT_OK)
        fail(kt_last_error(b.ctx));
    if (strncmp(b.experts->ops->name, "amx", 3) == 0) {
        struct kt_amx_experts *amx = (struct kt_amx_experts *)b.experts;
        if (chunk)
            amx->forward_chunk = amx->backward_chunk = amx->int8_chunk = chunk;
        if (tiles)
            amx->forward_tiles = amx->backward_tiles = tiles;
    }
    sample_f8(b.f8);
    b.scales = random_floats(MAX_SCALES);
    for (int i = 0; i < MAX_SCALES; i++)
        b.scales[i] = 0.01f * (1 + b.scales[i]);
    printf("backend %s; %s weights; %s\n", b.experts->ops->name, b.type->name,
           kt_context_cpu_description(b.ctx));
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (shape_bytes(&b, &shapes[i]) <= most && (!model || strcmp(model, shapes[i].name) == 0) &&
            shape_bytes(&b, &shapes[i]) > bytes)
            bytes = shape_bytes(&b, &shapes[i]);
    if (!bytes)
        fail("no such model, or none whose layer fits into -g");
    b.weight_bytes = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
    measure_products(&b);
    measure_memory(&b, b.weight_bytes, huge);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (shape_bytes(&b, &shapes[i]) <= bytes && (!model || strcmp(model, shapes[i].name) == 0))
            bench_shape(&b, &shapes[i], tokens);
    munmap(b.weights, (size_t)b.weight_bytes);
    free(b.scales);
    kt_experts_close(b.experts);
    kt_experts_close(b.general);
    kt_context_free(b.ctx);
    return 0;
}
