/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/experts.h"

#include "core/context.h"

/* Experts of a layer are alike, so the first stands for all. */
double kt_experts_seconds(const struct kt_experts *e, const struct kt_expert_layer *layer,
                          int64_t rows, struct kt_experts_rate rate)
{
    double hidden = (double)layer->hidden_size, inter = (double)layer->intermediate_size;
    double n = (double)rows, threads = kt_pool_num_threads(e->ctx->pool);
    double bytes = 4.0 * n * (2 * hidden + 3 * inter);
    double flops = 2.0 * n * KT_EXPERT_LINEARS * hidden * inter;
    if (rows <= 0)
        return 0;
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        bytes += kt_weight_bytes(&layer->weights[which][0]);
    double read = bytes / rate.bytes, multiply = flops / rate.flops;
    return (read > multiply ? read : multiply) / threads;
}
