/* SPDX-License-Identifier: Apache-2.0 */
#include "model/adapter.h"

#include <stdlib.h>
#include <string.h>

#include "core/context.h"

int32_t kt_linear_unit(const kt_model *model, const struct kt_linear *linear)
{
    const char *layer = strstr(linear->name, "layers.");
    return layer ? (int32_t)strtol(layer + strlen("layers."), NULL, 10)
                 : model->config.num_hidden_layers;
}

bool kt_adapter_has(const kt_lora *lora, const struct kt_linear *linear)
{
    return lora && linear->index >= 0 && lora->slots[linear->index].a;
}

int32_t kt_adapter_lowest_layer(const kt_lora *lora)
{
    int32_t lowest = lora->model->config.num_hidden_layers;
    for (int32_t i = 0; i < lora->num_attached; i++) {
        int32_t unit = kt_linear_unit(lora->model, &lora->model->linears[lora->attached[i]]);
        lowest = unit < lowest ? unit : lowest;
    }
    return lowest;
}

uint64_t kt_adapter_fingerprint(const kt_lora *lora)
{
    enum { LANES = 8 };
    uint64_t lanes[LANES] = {0}, sum = 0;
    uint64_t whole = lora ? lora->num_parameters / LANES * LANES : 0, words = whole;
    for (uint64_t i = 0; i < whole; i += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t bits;
            memcpy(&bits, &lora->data[i + (uint64_t)lane], sizeof bits);
            lanes[lane] = (lanes[lane] ^ bits) * 0x9e3779b97f4a7c15u;
        }
    }
    for (; lora && words < lora->num_parameters; words++) {
        uint32_t bits;
        memcpy(&bits, &lora->data[words], sizeof bits);
        lanes[0] = (lanes[0] ^ bits) * 0x9e3779b97f4a7c15u;
    }
    for (int lane = 0; lane < LANES; lane++)
        sum = (sum ^ lanes[lane] ^ lanes[lane] >> 29) * 0xbf58476d1ce4e5b9u;
    return sum;
}

void kt_adapter_zero_pair(kt_lora *lora, int32_t k)
{
    const struct kt_lora_pair *pair = &lora->slots[lora->attached[k]];
    if (*pair->has_grad) /* B's follow A's */
        memset(pair->da, 0, kt_adapter_pair_size(lora, k) * sizeof *pair->da);
    *pair->has_grad = 0;
}

static void zero_pairs(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    (void)thread;
    for (int64_t k = begin; k < end; k++)
        kt_adapter_zero_pair(arg, (int32_t)k);
}

void kt_adapter_zero_grad(kt_lora *lora)
{
    kt_parallel_for(lora->model->ctx->pool, lora->num_attached, 1, zero_pairs, lora);
}
