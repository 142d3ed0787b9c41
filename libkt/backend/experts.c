/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/experts.h"

#include "core/context.h"

/* Experts of a layer are alike, so the first stands for all. */
double kt_experts_bytes(const struct kt_expert_layer *layer, int64_t rows, int64_t num_experts)
{
    double hidden = (double)layer->hidden_size, inter = (double)layer->intermediate_size;
    double bytes = 4.0 * (double)rows * (2 * hidden + 3 * inter);
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        bytes += (double)num_experts * kt_weight_bytes(&layer->weights[which][0]);
    return bytes;
}

double kt_experts_seconds(const struct kt_experts *e, const struct kt_expert_layer *layer,
                          int64_t rows, struct kt_experts_rate rate)
{
    double hidden = (double)layer->hidden_size, inter = (double)layer->intermediate_size;
    double threads = kt_pool_num_threads(e->ctx->pool);
    double flops = 2.0 * (double)rows * KT_EXPERT_LINEARS * hidden * inter;
    if (rows <= 0)
        return 0;
    double read = kt_experts_bytes(layer, rows, 1) / rate.bytes, multiply = flops / rate.flops;
    return (read > multiply ? read : multiply) / threads;
}
