/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cuda/host.h"
#include "backends/cuda/product.h"

#define OPERATION(name, op, type)                                                                  \
    static void name(struct kt_device *dev, const void *args, void *scratch)                       \
    {                                                                                              \
        struct kt_cuda_device *cuda = kt_cuda(dev);                                                \
        void *before = kt_cuda_enter(cuda->context);                                               \
        kt_cuda_queued(cuda);                                                                      \
        kt_cuda_##name(dev, args, scratch);                                                        \
        kt_cuda_leave(cuda->context, before);                                                      \
    }

KT_EACH_OP(OPERATION)

#define RUN(name, op, args) [KT_OP_##op] = name,

const kt_op_fn kt_cuda_run[KT_OPS] = {KT_EACH_OP(RUN)};

int32_t kt_cuda_run_first(struct kt_device *dev, enum kt_op op, int32_t count, const void *args,
                          void *scratch)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    void *before = kt_cuda_enter(cuda->context);
    int32_t num = 0;
    kt_cuda_queued(cuda);
    if (op == KT_OP_LINEAR_FORWARD || op == KT_OP_LINEAR_BACKWARD) {
        bool backward = op == KT_OP_LINEAR_BACKWARD;
        num = kt_cuda_linears_few(cuda, count, args, backward);
        if (!num)
            num = kt_cuda_linears_grouped(cuda, count, args, backward, scratch);
    } else if (op == KT_OP_GEMM)
        num = kt_cuda_gemms_few(cuda, count, args);
    kt_cuda_leave(cuda->context, before);
    return num;
}

uint64_t kt_cuda_scratch_bytes(const struct kt_device *dev, enum kt_op op, const void *args)
{
    const struct kt_cuda_device *cuda = (const struct kt_cuda_device *)dev;
    switch (op) {
    case KT_OP_LINEAR_FORWARD:
        return kt_cuda_linear_forward_scratch(cuda, args);
    case KT_OP_LINEAR_BACKWARD:
        return kt_cuda_linear_backward_scratch(cuda, args);
    case KT_OP_GEMM:
        return kt_cuda_gemm_scratch(cuda, args);
    case KT_OP_ATTENTION_FORWARD:
        return kt_cuda_attention_forward_scratch(cuda, args);
    case KT_OP_ATTENTION_BACKWARD:
        return kt_cuda_attention_backward_scratch(cuda, args);
    default:
        return 0;
    }
}

static bool are_floats(const struct kt_view *views, int num)
{
    for (int i = 0; i < num; i++)
        if (views[i].dtype != KT_DTYPE_F32 && views[i].dtype != KT_DTYPE_BF16)
            return false;
    return true;
}

#define ARE_FLOATS(...)                                                                            \
    are_floats((const struct kt_view[]){__VA_ARGS__},                                              \
               sizeof((const struct kt_view[]){__VA_ARGS__}) / sizeof(struct kt_view))

static bool attention_supported(const struct kt_attention_args *a, bool backward)
{
    if (!ARE_FLOATS(a->q, a->k, a->v, a->o) || (a->shared_dim && !ARE_FLOATS(a->k_shared)))
        return false;
    return !backward || (ARE_FLOATS(a->d_o, a->dq, a->dk, a->dv) &&
                         (!a->shared_dim || ARE_FLOATS(a->dk_shared)));
}

static bool glu_supported(const struct kt_glu_args *a, bool backward)
{
    if (a->activation != KT_ACTIVATION_SILU || !ARE_FLOATS(a->gate, a->up))
        return false;
    return backward ? ARE_FLOATS(a->dh, a->dgate, a->dup) : ARE_FLOATS(a->h);
}

bool kt_cuda_supports(const struct kt_device *dev, enum kt_op op, const void *args)
{
    const struct kt_linear_args *linear = args;
    const struct kt_gemm_args *gemm = args;
    const struct kt_norm_args *norm = args;
    const struct kt_dropout_args *dropout = args;
    const struct kt_rows_args *rows = args;
    const struct kt_gather_args *gather = args;
    const struct kt_weigh_args *weigh = args;
    switch (op) {
    case KT_OP_LINEAR_FORWARD:
    case KT_OP_LINEAR_BACKWARD:
        return ARE_FLOATS(linear->x, linear->y);
    case KT_OP_GEMM:
        return ARE_FLOATS(gemm->a, gemm->b, gemm->c);
    case KT_OP_EMBEDDING:
        return ARE_FLOATS(((const struct kt_embedding_args *)args)->x);
    case KT_OP_NORM_FORWARD:
    case KT_OP_NORM_BACKWARD:
        return ARE_FLOATS(norm->x, norm->y) && (op == KT_OP_NORM_FORWARD || ARE_FLOATS(norm->dy));
    case KT_OP_ROPE:
        return ARE_FLOATS(((const struct kt_rope_args *)args)->x);
    case KT_OP_ATTENTION_FORWARD:
    case KT_OP_ATTENTION_BACKWARD:
        return attention_supported(args, op == KT_OP_ATTENTION_BACKWARD);
    case KT_OP_GLU_FORWARD:
    case KT_OP_GLU_BACKWARD:
        return glu_supported(args, op == KT_OP_GLU_BACKWARD);
    case KT_OP_ROUTER_FORWARD:
    case KT_OP_ROUTER_BACKWARD:
        return kt_cuda_router_supported((const struct kt_cuda_device *)dev, args);
    case KT_OP_CROSS_ENTROPY:
        return ARE_FLOATS(((const struct kt_cross_entropy_args *)args)->logits);
    case KT_OP_DROPOUT:
        return ARE_FLOATS(dropout->x, dropout->y);
    case KT_OP_GATHER:
    case KT_OP_SCATTER_ADD:
        return ARE_FLOATS(gather->x, gather->y);
    case KT_OP_WEIGH:
        return ARE_FLOATS(weigh->h, weigh->dh);
    default:
        return ARE_FLOATS(rows->y) && (op == KT_OP_ZERO || ARE_FLOATS(rows->x));
    }
}
