/* SPDX-License-Identifier: Apache-2.0 */
/* Speed of the CPU device's operations against what this machine can do, measured in the same run:
 * multiply-adds from registers, and reading memory. Usage: kernels [threads] [isa mask, hex]. */
#include "ceilings.h"
#include "device.h"
#include "weights/dtype.h"

enum { MIN_MS = 300 };

struct bench {
    kt_context *ctx;
    struct kt_device *dev;
    double peak[2], bandwidth; /* FLOP/s by compute, bytes/s */
};

typedef void (*bench_fn)(void *arg);

/* Seconds of one call: the best of as many as fit into MIN_MS, at least 3. */
static double seconds(bench_fn fn, void *arg)
{
    double best = 1e30, start = ceiling_now();
    for (int i = 0; i < 3 || ceiling_now() - start < MIN_MS * 1e-3; i++) {
        double from = ceiling_now();
        fn(arg);
        double took = ceiling_now() - from;
        best = took < best ? took : best;
    }
    return best;
}

static void measure_ceilings(struct bench *b)
{
    for (int bf16 = 0; bf16 < 2; bf16++)
        b->peak[bf16] = ceiling_products(b->ctx, bf16);
    b->bandwidth = ceiling_memory(b->ctx);
    printf("peak: float32 %.1f GFLOP/s, bfloat16 %.1f GFLOP/s; memory read %.1f GB/s\n",
           b->peak[0] * 1e-9, b->peak[1] * 1e-9, b->bandwidth * 1e-9);
}

/* -- linears ----------------------------------------------------------------------------------- */

struct linear_case {
    struct kt_device *dev;
    struct kt_linear_args args;
    enum kt_op op;
    const char *data;
    int copies;
};

static void run_linear(void *arg)
{
    struct linear_case *c = arg;
    size_t bytes =
        (size_t)(c->args.weight.rows * c->args.weight.cols) * kt_dtype_size(c->args.weight.dtype);
    for (int i = 0; i < c->copies; i++) {
        c->args.weight.data = c->data + (size_t)i * bytes;
        bench_run(c->dev, c->op, &c->args);
    }
}

static float *random_floats(int64_t n)
{
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((i * 2654435761u >> 8) % 2001) * 1e-3f - 1;
    return x;
}

/* `copies` of the weights take turns, so that few tokens read them from memory and not from cache.
 */
static void bench_linear(struct bench *b, kt_dtype dtype, int64_t tokens, int64_t n, int64_t k,
                         int copies)
{
    size_t bytes = (size_t)(n * k) * kt_dtype_size(dtype);
    float *x = random_floats(tokens * k), *y = random_floats(tokens * n);
    char *data = malloc(bytes * (size_t)copies);
    for (int64_t i = 0; i < n * k * copies; i++) {
        float value = (float)(i % 1999) * 1e-3f - 1;
        if (dtype == KT_DTYPE_F32)
            ((float *)(void *)data)[i] = value;
        else
            ((uint16_t *)(void *)data)[i] = kt_f32_to_bf16(value);
    }
    struct linear_case c = {
        .dev = b->dev,
        .args = {.weight = {.dtype = dtype, .rows = n, .cols = k}, .tokens = tokens},
        .data = data,
        .copies = copies};
    for (int compute = 0; compute < 2; compute++) {
        printf("%6lld x %5lld x %5lld  %-4s as %s ", (long long)tokens, (long long)n, (long long)k,
               kt_dtype_name(dtype), compute ? "bf16" : "f32 ");
        for (int backward = 0; backward < 2; backward++) {
            c.op = backward ? KT_OP_LINEAR_BACKWARD : KT_OP_LINEAR_FORWARD;
            c.args.compute = (kt_compute)compute;
            c.args.x = backward ? kt_view_f32(y, n) : kt_view_f32(x, k);
            c.args.y = backward ? kt_view_f32(x, k) : kt_view_f32(y, n);
            bench_reserve(b->dev, c.op, &c.args);
            double took = seconds(run_linear, &c);
            double flops = 2.0 * (double)tokens * (double)n * (double)k * copies / took;
            printf("  %s %8.2f ms %7.1f GFLOP/s %5.1f%% of peak %5.1f%% of bandwidth",
                   backward ? "backward" : "forward", took * 1e3 / copies, flops * 1e-9,
                   100 * flops / b->peak[compute],
                   100 * (double)bytes * copies / took / b->bandwidth);
        }
        printf("\n");
    }
    free(x), free(y), free(data);
}

struct gemm_case {
    struct kt_device *dev;
    struct kt_gemm_args args;
};

static void run_gemm(void *arg)
{
    const struct gemm_case *c = arg;
    bench_run(c->dev, KT_OP_GEMM, &c->args);
}

static void bench_gemm(struct bench *b, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k)
{
    float *x = random_floats(m * k), *y = random_floats(n * k), *z = random_floats(m * n);
    struct gemm_case c = {b->dev,
                          {trans_a, trans_b, m, n, k, 1, kt_view_f32(x, trans_a ? m : k),
                           kt_view_f32(y, trans_b ? k : n), kt_view_f32(z, n), true}};
    bench_reserve(b->dev, KT_OP_GEMM, &c.args);
    double took = seconds(run_gemm, &c), flops = 2.0 * (double)m * (double)n * (double)k / took;
    double bytes = 4.0 * (double)(m * k + n * k + 2 * m * n) / took;
    printf("gemm %s%s %5lld x %5lld x %5lld  %8.2f ms %7.1f GFLOP/s %5.1f%% of peak %5.1f%% of "
           "bandwidth\n",
           trans_a ? "T" : "N", trans_b ? "T" : "N", (long long)m, (long long)n, (long long)k,
           took * 1e3, flops * 1e-9, 100 * flops / b->peak[0], 100 * bytes / b->bandwidth);
    free(x), free(y), free(z);
}

/* -- attention --------------------------------------------------------------------------------- */

struct attention_case {
    struct kt_device *dev;
    struct kt_attention_args args;
    enum kt_op op;
};

static void run_attention(void *arg)
{
    const struct attention_case *c = arg;
    bench_run(c->dev, c->op, &c->args);
}

static void bench_attention(struct bench *b, int32_t heads, int32_t kv_heads, int32_t qk,
                            int32_t shared, int32_t v, int32_t nq, int32_t nk)
{
    int32_t cu_q[] = {0, nq}, cu_k[] = {0, nk}, own = qk - shared;
    float *memory[10];
    int64_t sizes[10] = {(int64_t)nq * heads * qk, (int64_t)nk * kv_heads * own,
                         (int64_t)nk * shared,     (int64_t)nk * kv_heads * v,
                         (int64_t)nq * heads * v,  (int64_t)nq * heads * v,
                         (int64_t)nq * heads * qk, (int64_t)nk * kv_heads * own,
                         (int64_t)nk * shared,     (int64_t)nk * kv_heads * v};
    for (int i = 0; i < 10; i++)
        memory[i] = random_floats(sizes[i]);
    float *lse = random_floats((int64_t)nq * heads);
    struct attention_case c = {.dev = b->dev,
                               .args = {.num_heads = heads,
                                        .num_kv_heads = kv_heads,
                                        .qk_dim = qk,
                                        .shared_dim = shared,
                                        .v_dim = v,
                                        .scale = 0.1f,
                                        .queries = {1, cu_q, cu_q},
                                        .keys = {1, cu_k, cu_k},
                                        .q = kt_view_f32(memory[0], heads * qk),
                                        .q_head_stride = qk,
                                        .k = kt_view_f32(memory[1], kv_heads * own),
                                        .k_head_stride = own,
                                        .k_shared = kt_view_f32(memory[2], shared),
                                        .v = kt_view_f32(memory[3], kv_heads * v),
                                        .v_head_stride = v,
                                        .o = kt_view_f32(memory[4], heads * v),
                                        .o_head_stride = v,
                                        .lse = lse,
                                        .d_o = kt_view_f32(memory[5], heads * v),
                                        .dq = kt_view_f32(memory[6], heads * qk),
                                        .dk = kt_view_f32(memory[7], kv_heads * own),
                                        .dk_shared = kt_view_f32(memory[8], shared),
                                        .dv = kt_view_f32(memory[9], kv_heads * v)}};
    double pairs = (double)nq * nk - (double)nq * (nq - 1) / 2;
    for (int compute = 0; compute < 2; compute++) {
        c.args.compute = (kt_compute)compute;
        printf("attention %2d/%2d heads of %3d+%2d/%3d, %4d queries, %5d keys, %s", heads, kv_heads,
               own, shared, v, nq, nk, compute ? "bf16" : "f32 ");
        for (int backward = 0; backward < (nq > 1 ? 2 : 1); backward++) {
            c.op = backward ? KT_OP_ATTENTION_BACKWARD : KT_OP_ATTENTION_FORWARD;
            bench_reserve(b->dev, c.op, &c.args);
            /* products: forward 2, backward 5 and the scores once more in the second pass (2) */
            double work = backward ? 2 * (2 * (qk + v) + 2 * qk + v) : 2 * (qk + v);
            double took = seconds(run_attention, &c), flops = pairs * heads * work / took;
            printf("  %s %8.2f ms %6.1f GFLOP/s %5.1f%% of f32 peak",
                   backward ? "backward" : "forward", took * 1e3, flops * 1e-9,
                   100 * flops / b->peak[0]);
        }
        printf("\n");
    }
    for (int i = 0; i < 10; i++)
        free(memory[i]);
    free(lse);
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = argc > 1 ? atoi(argv[1]) : 0;
    options.isa_mask = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 16) : 0;
    if (kt_context_create(&options, &b.ctx) != KT_OK ||
        kt_device_open(b.ctx, "cpu", &b.dev) != KT_OK)
        return 1;
    if (kt_context_num_threads(b.ctx) == 1)
        ceiling_timer = CLOCK_PROCESS_CPUTIME_ID;
    printf("%s\n", kt_context_cpu_description(b.ctx));
    measure_ceilings(&b);
    bench_linear(&b, KT_DTYPE_BF16, 1024, 2048, 2048, 1);
    bench_linear(&b, KT_DTYPE_F32, 1024, 2048, 2048, 1);
    bench_linear(&b, KT_DTYPE_BF16, 512, 1408, 2048, 1);
    for (int64_t tokens = 1; tokens <= 128; tokens *= 2)
        bench_linear(&b, KT_DTYPE_BF16, tokens, 2048, 2048, tokens <= 16 ? 32 : 1);
    bench_gemm(&b, 0, 1, 2048, 8, 2048);
    bench_gemm(&b, 0, 1, 2048, 2048, 8);
    bench_gemm(&b, 0, 0, 2048, 8, 2048);
    bench_gemm(&b, 0, 0, 2048, 2048, 8);
    bench_gemm(&b, 1, 0, 2048, 8, 2048);
    bench_gemm(&b, 1, 0, 8, 2048, 2048);
    bench_gemm(&b, 0, 1, 512, 512, 512);
    bench_attention(&b, 8, 8, 192, 64, 128, 512, 512);
    bench_attention(&b, 8, 8, 64, 16, 48, 128, 128);
    bench_attention(&b, 16, 1, 576, 0, 512, 1, 4096);
    kt_device_close(b.dev);
    kt_context_free(b.ctx);
    return 0;
}
