/* SPDX-License-Identifier: Apache-2.0 */
#include <kt/lora.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "core/random.h"
#include "lora/attach.h"
#include "lora/target.h"

/* Keeps A's initial values apart from dropout, which shares the seed. */
#define INIT_STREAM ((uint64_t)1 << 63)

void kt_lora_options_init(kt_lora_options *options, size_t size)
{
    kt_options_init(options, size, &(kt_lora_options){.rank = 8, .target = "all", .seed = 42},
                    sizeof *options);
}

static char *tensor_name(const char *module, const char *matrix)
{
    char *name;
    return asprintf(&name, "base_model.model.%s.lora_%s.weight", module, matrix) < 0 ? NULL : name;
}

/* Points every slot into data and grad, which follow the attached linears. */
static kt_status bind_slots(kt_lora *lora, const struct kt_lora_choice *choices)
{
    uint64_t offset = 0;
    for (int32_t k = 0; k < lora->num_attached; k++) {
        int32_t index = lora->attached[k];
        const struct kt_linear *linear = &lora->model->linears[index];
        struct kt_lora_pair *pair = &lora->slots[index];
        double rank = choices[index].rank, alpha = choices[index].alpha;
        lora->alphas[k] = choices[index].alpha;
        pair->rank = choices[index].rank;
        pair->scale = (float)(alpha / (lora->config.use_rslora ? sqrt(rank) : rank));
        pair->dropout = lora->config.dropout;
        pair->has_grad = &lora->has_grad[index];
        pair->a = lora->data + offset;
        pair->da = lora->grad + offset;
        offset += (uint64_t)(pair->rank * linear->weight.cols);
        pair->b = lora->data + offset;
        pair->db = lora->grad + offset;
        offset += (uint64_t)(pair->rank * linear->weight.rows);
        lora->names[2 * k] = tensor_name(linear->name, "A");
        lora->names[2 * k + 1] = tensor_name(linear->name, "B");
        if (!lora->names[2 * k] || !lora->names[2 * k + 1])
            return kt_fail_memory(lora->model->ctx, 256, "the names of the adapter");
    }
    return KT_OK;
}

/* Counts the linears and parameters that choices ask for. */
static kt_status measure(kt_lora *lora, const struct kt_lora_choice *choices)
{
    uint64_t total = 0;
    for (int32_t i = 0; i < lora->model->num_linears; i++) {
        const struct kt_weight *w = &lora->model->linears[i].weight;
        uint64_t here;
        if (choices[i].rank == 0)
            continue;
        if (!kt_mul_u64((uint64_t)choices[i].rank, (uint64_t)(w->rows + w->cols), &here) ||
            __builtin_add_overflow(total, here, &total))
            return kt_fail(lora->model->ctx, KT_ERROR_OUT_OF_MEMORY,
                           "LoRA of rank %d has more parameters than can be counted",
                           choices[i].rank);
        lora->num_attached++;
    }
    lora->num_parameters = total;
    return KT_OK;
}

static kt_status allocate(kt_lora *lora, const struct kt_lora_choice *choices)
{
    kt_context *ctx = lora->model->ctx;
    size_t linears = (size_t)lora->model->num_linears;
    KT_TRY(measure(lora, choices));
    size_t attached = (size_t)lora->num_attached;
    lora->slots = calloc(linears, sizeof *lora->slots);
    lora->has_grad = calloc(linears, sizeof *lora->has_grad);
    lora->attached = calloc(attached, sizeof *lora->attached);
    lora->alphas = calloc(attached, sizeof *lora->alphas);
    lora->names = calloc(2 * attached, sizeof *lora->names);
    if (!lora->slots || !lora->has_grad || !lora->attached || !lora->alphas || !lora->names)
        return kt_fail_memory(ctx, linears * sizeof *lora->slots, "the table of LoRA linears");
    for (int32_t i = 0, k = 0; i < lora->model->num_linears; i++)
        if (choices[i].rank > 0)
            lora->attached[k++] = i;
    KT_TRY(kt_buffer_alloc(ctx, lora->num_parameters, sizeof(float), "the LoRA weights",
                           (void **)&lora->data));
    KT_TRY(kt_buffer_alloc(ctx, lora->num_parameters, sizeof(float), "the LoRA gradients",
                           (void **)&lora->grad));
    memset(lora->grad, 0, lora->num_parameters * sizeof(float));
    return bind_slots(lora, choices);
}

static void destroy(void *handle)
{
    kt_lora *lora = handle;
    for (int32_t i = 0; lora->names && i < 2 * lora->num_attached; i++)
        free(lora->names[i]);
    free(lora->names);
    free(lora->alphas);
    free(lora->attached);
    free(lora->has_grad);
    free(lora->slots);
    kt_buffer_free(lora->ctx, lora->data);
    kt_buffer_free(lora->ctx, lora->grad);
    kt_handle_drop(lora->model);
}

kt_status kt_lora_attach(kt_model *model, const struct kt_lora_config *config,
                         const struct kt_lora_choice *choices, kt_lora **out)
{
    kt_lora *lora;
    *out = NULL;
    KT_TRY(kt_handle_new(model->ctx, sizeof *lora, destroy, "an adapter", (void **)&lora));
    lora->model = model;
    kt_handle_hold(model);
    lora->config = *config;
    kt_status status = allocate(lora, choices);
    if (status != KT_OK) {
        kt_lora_free(lora);
        return status;
    }
    *out = lora;
    return KT_OK;
}

/* Kaiming-uniform with a = sqrt(5): U(-1/sqrt(in), 1/sqrt(in)). */
static void init_pairs(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    kt_lora *lora = arg;
    (void)thread;
    for (int64_t k = begin; k < end; k++) {
        int32_t index = lora->attached[k];
        const struct kt_weight *w = &lora->model->linears[index].weight;
        float *a = lora->data + kt_adapter_pair_offset(lora, (int32_t)k);
        int64_t count = lora->slots[index].rank * w->cols;
        float bound = (float)(1 / sqrt((double)w->cols));
        for (int64_t i = 0; i < count; i += 4) {
            uint32_t words[4];
            kt_philox(lora->seed, INIT_STREAM | (uint64_t)index, (uint64_t)i / 4, words);
            for (int64_t j = i; j < count && j < i + 4; j++)
                a[j] = bound * (2 * kt_uniform_f32(words[j - i]) - 1);
        }
        memset(a + count, 0, (size_t)(lora->slots[index].rank * w->rows) * sizeof(float));
    }
}

static kt_status check_options(kt_context *ctx, const kt_lora_options *options)
{
    if (options->rank < 1)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "LoRA rank is %d; it must be at least 1",
                       options->rank);
    if (!isfinite(options->alpha) || options->alpha < 0)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "LoRA alpha is %g; it must be positive, or 0 for twice the rank",
                       (double)options->alpha);
    if (!(options->dropout >= 0 && options->dropout < 1))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "LoRA dropout is %g; it must be in [0, 1)",
                       (double)options->dropout);
    if (!options->target)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "the LoRA target is missing; use \"all\"");
    return KT_OK;
}

kt_status kt_lora_create(kt_model *model, const kt_lora_options *options, kt_lora **out)
{
    kt_lora_options o;
    KT_ENTER_OUT(model, "model", out);
    kt_lora_options_init(&o, sizeof o);
    KT_TRY(kt_options_copy(model->ctx, &o, options, KT_SIZED(kt_lora_options)));
    KT_TRY(check_options(model->ctx, &o));
    struct kt_lora_config config = {.rank = o.rank,
                                    .alpha = o.alpha > 0 ? o.alpha : 2 * (float)o.rank,
                                    .dropout = o.dropout,
                                    .use_rslora = o.use_rslora != 0};
    size_t linears = (size_t)model->num_linears;
    uint8_t *selected = calloc(linears, sizeof *selected);
    struct kt_lora_choice *choices = calloc(linears, sizeof *choices);
    kt_status status = selected && choices
                           ? kt_target_select(model, o.target, o.target_experts, selected)
                           : kt_fail_memory(model->ctx, linears * sizeof *choices, "LoRA targets");
    for (size_t i = 0; status == KT_OK && i < linears; i++)
        if (selected[i])
            choices[i] = (struct kt_lora_choice){config.rank, config.alpha};
    if (status == KT_OK)
        status = kt_lora_attach(model, &config, choices, out);
    free(selected);
    free(choices);
    if (status != KT_OK)
        return status;
    (*out)->seed = o.seed;
    kt_parallel_for(model->ctx->pool, (*out)->num_attached, 1, init_pairs, *out);
    return KT_OK;
}

void kt_lora_free(kt_lora *lora)
{
    kt_handle_free(lora);
}

size_t kt_lora_num_tensors(const kt_lora *lora)
{
    return lora ? 2 * (size_t)lora->num_attached : 0;
}

uint64_t kt_lora_num_parameters(const kt_lora *lora)
{
    return lora ? lora->num_parameters : 0;
}

kt_status kt_lora_set_seed(kt_lora *lora, uint64_t seed)
{
    KT_ENTER(lora, "lora");
    lora->seed = seed;
    return KT_OK;
}

kt_status kt_lora_touch(kt_lora *lora)
{
    KT_ENTER(lora, "lora");
    lora->version++;
    return KT_OK;
}

static kt_status check_index(const kt_lora *lora, size_t index)
{
    size_t num = kt_lora_num_tensors(lora);
    return index < num ? KT_OK
                       : kt_fail(lora->ctx, KT_ERROR_INVALID_ARGUMENT,
                                 "adapter tensor %zu does not exist: it has %zu", index, num);
}

kt_status kt_lora_get_tensor(const kt_lora *lora, size_t index, kt_lora_tensor *out)
{
    kt_lora_tensor t = {0};
    KT_TRY(kt_check_handle(lora, __func__, "lora"));
    KT_TRY(check_index(lora, index));
    int32_t linear = lora->attached[index / 2];
    const struct kt_lora_pair *pair = &lora->slots[linear];
    const struct kt_weight *w = &lora->model->linears[linear].weight;
    bool is_b = index % 2 != 0;
    t.name = lora->names[index];
    t.rows = is_b ? w->rows : pair->rank;
    t.cols = is_b ? pair->rank : w->cols;
    t.data = lora->data + ((is_b ? pair->b : pair->a) - lora->data);
    t.grad = is_b ? pair->db : pair->da;
    t.has_grad = lora->has_grad[linear];
    return kt_give(lora->ctx, out, &t, KT_SIZED(kt_lora_tensor));
}

kt_status kt_lora_zero_grad(kt_lora *lora)
{
    KT_ENTER(lora, "lora");
    kt_adapter_zero_grad(lora);
    return KT_OK;
}

kt_status kt_lora_set_grad_state(kt_lora *lora, size_t index, int32_t state)
{
    KT_ENTER(lora, "lora");
    KT_TRY(check_index(lora, index));
    if (state != 0 && state != 1)
        return kt_fail(lora->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "the state of a gradient is %d, not 0 or 1", state);
    int32_t k = (int32_t)(index / 2);
    lora->has_grad[lora->attached[k]] = 1;
    if (!state)
        kt_adapter_zero_pair(lora, k);
    return KT_OK;
}
