/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/cpu.h
 * The CPU device from inside, and its operations, each in the file of its name. */
#ifndef KT_BACKENDS_CPU_CPU_H
#define KT_BACKENDS_CPU_CPU_H

#include "backend/device.h"
#include "backends/cpu/kernels.h"
#include "core/context.h"

/** Memory that a call works in, kept for the next. */
struct kt_scratch {
    kt_context *ctx;
    void *memory;
    uint64_t bytes;
    uint64_t thread_bytes; /**< of the threads' parts that are on their nodes; 0 = none */
};

/** At least `bytes` bytes, contents undefined; valid until the next call. */
kt_status kt_scratch_get(struct kt_scratch *scratch, uint64_t bytes, const char *what, void **out);
/** First `thread_bytes` (a multiple of 64) for each thread of the context's pool, in memory of the
 * thread's node, then `bytes` more. */
kt_status kt_scratch_get_threads(struct kt_scratch *scratch, uint64_t thread_bytes, uint64_t bytes,
                                 const char *what, char **threads, char **rest);
void kt_scratch_free(struct kt_scratch *scratch);

struct kt_cpu_device {
    struct kt_device base;
    struct kt_kernels kernels;
    struct kt_scratch scratch;
};

kt_status kt_cpu_open(kt_context *ctx, struct kt_device **out);
void kt_cpu_close(struct kt_device *dev);

static inline struct kt_cpu_device *kt_cpu(struct kt_device *dev)
{
    return (struct kt_cpu_device *)dev;
}

kt_status kt_cpu_linear_forward(struct kt_device *dev, const struct kt_weight *w,
                                kt_compute compute, int64_t tokens, const float *x, int64_t ldx,
                                int accumulate, float *y, int64_t ldy);
kt_status kt_cpu_linear_backward(struct kt_device *dev, const struct kt_weight *w,
                                 kt_compute compute, int64_t tokens, const float *dy, int64_t lddy,
                                 int accumulate, float *dx, int64_t lddx);
kt_status kt_cpu_gemm(struct kt_device *dev, const struct kt_gemm *gemm);
kt_status kt_cpu_embedding(struct kt_device *dev, const struct kt_weight *table, int64_t tokens,
                           const int32_t *ids, float *x, int64_t ldx);
kt_status kt_cpu_rmsnorm_forward(struct kt_device *dev, int64_t tokens, int64_t dim, float eps,
                                 const float *weight, const float *x, int64_t ldx, float *y,
                                 int64_t ldy);
kt_status kt_cpu_rmsnorm_backward(struct kt_device *dev, int64_t tokens, int64_t dim, float eps,
                                  const float *weight, const float *x, int64_t ldx, const float *dy,
                                  int64_t lddy, int accumulate, float *dx, int64_t lddx);
kt_status kt_cpu_rope(struct kt_device *dev, const struct kt_rope *rope, int64_t tokens);
kt_status kt_cpu_attention_forward(struct kt_device *dev, const struct kt_attention *a);
kt_status kt_cpu_attention_backward(struct kt_device *dev, const struct kt_attention *a,
                                    const struct kt_attention_grad *g);
kt_status kt_cpu_glu_forward(struct kt_device *dev, enum kt_activation act, int64_t tokens,
                             int64_t dim, const float *gate, const float *up, float *h);
kt_status kt_cpu_glu_backward(struct kt_device *dev, enum kt_activation act, int64_t tokens,
                              int64_t dim, const float *gate, const float *up, const float *dh,
                              float *dgate, float *dup);
kt_status kt_cpu_router_forward(struct kt_device *dev, const struct kt_router *r, int64_t tokens,
                                const float *logits, int32_t *topk_ids, float *topk_weights);
kt_status kt_cpu_router_backward(struct kt_device *dev, const struct kt_router *r, int64_t tokens,
                                 const float *logits, const int32_t *topk_ids,
                                 const float *dtopk_weights, float *dlogits);
kt_status kt_cpu_cross_entropy(struct kt_device *dev, int64_t tokens, int64_t vocab, float *logits,
                               int64_t ld, const int32_t *targets, const float *dlogprobs,
                               float *logprobs);
kt_status kt_cpu_add(struct kt_device *dev, int64_t tokens, int64_t dim, float alpha,
                     const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy);
kt_status kt_cpu_dropout(struct kt_device *dev, float p, uint64_t key, int64_t tokens, int64_t dim,
                         const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy);
kt_status kt_cpu_pack_bf16(struct kt_device *dev, int64_t n, const float *x, uint16_t *packed);
kt_status kt_cpu_unpack_bf16(struct kt_device *dev, int64_t n, const uint16_t *packed, float *x);

uint64_t kt_cpu_attention_scratch_bytes(const struct kt_device *dev, kt_compute compute,
                                        const struct kt_extent *extent);
uint64_t kt_cpu_router_scratch_bytes(const kt_context *ctx, int64_t num_experts);

#endif
