/* SPDX-License-Identifier: Apache-2.0 */
/* Operations that succeed without touching memory, so that a measuring pass runs the real code. */
#include "executor/pass.h"

static kt_status linear(struct kt_device *dev, const struct kt_weight *w, kt_compute compute,
                        int64_t tokens, const float *x, int64_t ldx, int accumulate, float *y,
                        int64_t ldy)
{
    (void)dev, (void)w, (void)compute, (void)tokens, (void)x, (void)ldx, (void)accumulate;
    (void)y, (void)ldy;
    return KT_OK;
}

static kt_status gemm(struct kt_device *dev, const struct kt_gemm *g)
{
    (void)dev, (void)g;
    return KT_OK;
}

static kt_status embedding(struct kt_device *dev, const struct kt_weight *table, int64_t tokens,
                           const int32_t *ids, float *x, int64_t ldx)
{
    (void)dev, (void)table, (void)tokens, (void)ids, (void)x, (void)ldx;
    return KT_OK;
}

static kt_status rmsnorm_forward(struct kt_device *dev, int64_t tokens, int64_t dim, float eps,
                                 const float *weight, const float *x, int64_t ldx, float *y,
                                 int64_t ldy)
{
    (void)dev, (void)tokens, (void)dim, (void)eps, (void)weight, (void)x, (void)ldx, (void)y;
    (void)ldy;
    return KT_OK;
}

static kt_status rmsnorm_backward(struct kt_device *dev, int64_t tokens, int64_t dim, float eps,
                                  const float *weight, const float *x, int64_t ldx, const float *dy,
                                  int64_t lddy, int accumulate, float *dx, int64_t lddx)
{
    (void)dev, (void)tokens, (void)dim, (void)eps, (void)weight, (void)x, (void)ldx, (void)dy;
    (void)lddy, (void)accumulate, (void)dx, (void)lddx;
    return KT_OK;
}

static kt_status rope(struct kt_device *dev, const struct kt_rope *r, int64_t tokens)
{
    (void)dev, (void)r, (void)tokens;
    return KT_OK;
}

static kt_status attention_forward(struct kt_device *dev, const struct kt_attention *a)
{
    (void)dev, (void)a;
    return KT_OK;
}

static kt_status attention_backward(struct kt_device *dev, const struct kt_attention *a,
                                    const struct kt_attention_grad *g)
{
    (void)dev, (void)a, (void)g;
    return KT_OK;
}

static kt_status glu_forward(struct kt_device *dev, enum kt_activation act, int64_t tokens,
                             int64_t dim, const float *gate, const float *up, float *h)
{
    (void)dev, (void)act, (void)tokens, (void)dim, (void)gate, (void)up, (void)h;
    return KT_OK;
}

static kt_status glu_backward(struct kt_device *dev, enum kt_activation act, int64_t tokens,
                              int64_t dim, const float *gate, const float *up, const float *dh,
                              float *dgate, float *dup)
{
    (void)dev, (void)act, (void)tokens, (void)dim, (void)gate, (void)up, (void)dh, (void)dgate;
    (void)dup;
    return KT_OK;
}

static kt_status router_forward(struct kt_device *dev, const struct kt_router *r, int64_t tokens,
                                const float *logits, int32_t *ids, float *weights)
{
    (void)dev, (void)r, (void)tokens, (void)logits, (void)ids, (void)weights;
    return KT_OK;
}

static kt_status router_backward(struct kt_device *dev, const struct kt_router *r, int64_t tokens,
                                 const float *logits, const int32_t *ids, const float *dweights,
                                 float *dlogits)
{
    (void)dev, (void)r, (void)tokens, (void)logits, (void)ids, (void)dweights, (void)dlogits;
    return KT_OK;
}

static kt_status cross_entropy(struct kt_device *dev, int64_t tokens, int64_t vocab, float *logits,
                               int64_t ld, const int32_t *targets, const float *dlogprobs,
                               float *logprobs)
{
    (void)dev, (void)tokens, (void)vocab, (void)logits, (void)ld, (void)targets, (void)dlogprobs;
    (void)logprobs;
    return KT_OK;
}

static kt_status add(struct kt_device *dev, int64_t tokens, int64_t dim, float alpha,
                     const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy)
{
    (void)dev, (void)tokens, (void)dim, (void)alpha, (void)x, (void)ldx, (void)accumulate, (void)y;
    (void)ldy;
    return KT_OK;
}

static kt_status dropout(struct kt_device *dev, float p, uint64_t key, int64_t tokens, int64_t dim,
                         const float *x, int64_t ldx, int accumulate, float *y, int64_t ldy)
{
    (void)dev, (void)p, (void)key, (void)tokens, (void)dim, (void)x, (void)ldx, (void)accumulate;
    (void)y, (void)ldy;
    return KT_OK;
}

static kt_status pack_bf16(struct kt_device *dev, int64_t n, const float *x, uint16_t *packed)
{
    (void)dev, (void)n, (void)x, (void)packed;
    return KT_OK;
}

static kt_status unpack_bf16(struct kt_device *dev, int64_t n, const uint16_t *packed, float *x)
{
    (void)dev, (void)n, (void)packed, (void)x;
    return KT_OK;
}

static const struct kt_device_ops ops = {
    .name = "measuring",
    .linear_forward = linear,
    .linear_backward = linear,
    .gemm = gemm,
    .embedding = embedding,
    .rmsnorm_forward = rmsnorm_forward,
    .rmsnorm_backward = rmsnorm_backward,
    .rope = rope,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .glu_forward = glu_forward,
    .glu_backward = glu_backward,
    .router_forward = router_forward,
    .router_backward = router_backward,
    .cross_entropy = cross_entropy,
    .add = add,
    .dropout = dropout,
    .pack_bf16 = pack_bf16,
    .unpack_bf16 = unpack_bf16,
};

struct kt_device kt_null_device = {.ops = &ops};

static kt_status experts_forward(struct kt_experts *e, const struct kt_expert_layer *layer,
                                 const struct kt_expert_batch *batch, float *y)
{
    (void)e, (void)layer, (void)batch, (void)y;
    return KT_OK;
}

static kt_status experts_backward(struct kt_experts *e, const struct kt_expert_layer *layer,
                                  const struct kt_expert_batch *batch, const float *dy, float *dx,
                                  float *dtopk_weights)
{
    (void)e, (void)layer, (void)batch, (void)dy, (void)dx, (void)dtopk_weights;
    return KT_OK;
}

static const struct kt_experts_ops experts_ops = {
    .name = "measuring", .forward = experts_forward, .backward = experts_backward};

struct kt_experts kt_null_experts = {.ops = &experts_ops};
