/* SPDX-License-Identifier: Apache-2.0 */
#include "train/optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/trace.h"
#include "core/context.h"
#include "core/memory.h"
#include "model/adapter.h"

void kt_optimizer_options_init(kt_optimizer_options *options, size_t size)
{
    const kt_optimizer_options defaults = {
        .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .max_grad_norm = 1.0};
    kt_options_init(options, size, &defaults, sizeof defaults);
}

static kt_status check_options(kt_context *ctx, const kt_optimizer_options *o)
{
    if (!(o->beta1 >= 0 && o->beta1 < 1) || !(o->beta2 >= 0 && o->beta2 < 1))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "AdamW betas are %g and %g; both must be in [0, 1)", o->beta1, o->beta2);
    if (!(o->epsilon >= 0) || !isfinite(o->epsilon))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "AdamW epsilon is %g; it must be 0 or more",
                       o->epsilon);
    if (!(o->weight_decay >= 0) || !isfinite(o->weight_decay))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "weight decay is %g; it must be 0 or more",
                       o->weight_decay);
    if (!(o->max_grad_norm >= 0))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "the gradient norm limit is %g; it must be positive, or 0 for none",
                       o->max_grad_norm);
    return KT_OK;
}

static kt_status allocate(kt_optimizer *opt)
{
    kt_lora *lora = opt->lora;
    kt_context *ctx = lora->model->ctx;
    opt->steps = calloc((size_t)lora->num_attached, sizeof *opt->steps);
    opt->squares = calloc((size_t)lora->num_attached, sizeof *opt->squares);
    if (!opt->steps || !opt->squares)
        return kt_fail_memory(ctx, (uint64_t)lora->num_attached * 16, "the optimizer's counters");
    KT_TRY(kt_buffer_alloc(ctx, lora->num_parameters, sizeof(float), "AdamW's first moments",
                           (void **)&opt->first));
    return kt_buffer_alloc(ctx, lora->num_parameters, sizeof(float), "AdamW's second moments",
                           (void **)&opt->second);
}

static void destroy(void *handle)
{
    kt_optimizer *opt = handle;
    kt_buffer_free(opt->ctx, opt->first);
    kt_buffer_free(opt->ctx, opt->second);
    free(opt->steps);
    free(opt->squares);
    kt_handle_drop(opt->lora);
}

kt_status kt_optimizer_create(kt_lora *lora, const kt_optimizer_options *options,
                              kt_optimizer **out)
{
    kt_optimizer_options o;
    kt_optimizer *opt;
    KT_ENTER_OUT(lora, "lora", out);
    kt_optimizer_options_init(&o, sizeof o);
    KT_TRY(kt_options_copy(lora->ctx, &o, options, KT_SIZED(kt_optimizer_options)));
    KT_TRY(check_options(lora->ctx, &o));
    KT_TRY(kt_handle_new(lora->ctx, sizeof *opt, destroy, "an optimizer", (void **)&opt));
    opt->lora = lora;
    kt_handle_hold(lora);
    opt->options = o;
    kt_status status = allocate(opt);
    if (status != KT_OK) {
        kt_optimizer_free(opt);
        return status;
    }
    *out = opt;
    return KT_OK;
}

void kt_optimizer_free(kt_optimizer *optimizer)
{
    kt_handle_free(optimizer);
}

static void square_gradients(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    kt_optimizer *opt = arg;
    (void)thread;
    for (int64_t k = begin; k < end; k++) {
        opt->squares[k] = 0;
        if (!opt->lora->has_grad[opt->lora->attached[k]])
            continue;
        const float *grad = opt->lora->grad + kt_adapter_pair_offset(opt->lora, (int32_t)k);
        uint64_t count = kt_adapter_pair_size(opt->lora, (int32_t)k);
        for (uint64_t i = 0; i < count; i++)
            opt->squares[k] += (double)grad[i] * grad[i];
    }
}

/* Global L2 norm over the tensors that have a gradient. The sum runs in a fixed order. */
static kt_status gradient_norm(kt_optimizer *opt, double *norm)
{
    kt_lora *lora = opt->lora;
    double sum = 0;
    KT_TRACE_CPU(lora->ctx, "gradient_norm");
    kt_parallel_for(lora->ctx->pool, lora->num_attached, 1, square_gradients, opt);
    for (int32_t k = 0; k < lora->num_attached; k++)
        sum += opt->squares[k];
    *norm = sqrt(sum);
    for (int32_t k = 0; k < lora->num_attached; k++)
        if (!isfinite(opt->squares[k]))
            return kt_fail(lora->ctx, KT_ERROR_NUMERIC,
                           "the gradient of %s or its lora_B is not finite, so nothing was "
                           "updated; lower the learning rate, or look at the latest examples",
                           lora->names[2 * k]);
    return KT_OK;
}

struct update {
    kt_optimizer *opt;
    double learning_rate;
    float clip; /* factor of every gradient */
};

static void update_pair(const struct update *u, int32_t k)
{
    kt_optimizer *opt = u->opt;
    const kt_optimizer_options *o = &opt->options;
    uint64_t offset = kt_adapter_pair_offset(opt->lora, k),
             count = kt_adapter_pair_size(opt->lora, k);
    float *restrict param = opt->lora->data + offset, *restrict grad = opt->lora->grad + offset;
    float *restrict first = opt->first + offset, *restrict second = opt->second + offset;
    if (opt->steps[k]++ == 0) {
        memset(first, 0, count * sizeof *first);
        memset(second, 0, count * sizeof *second);
    }
    double steps = (double)opt->steps[k];
    float step_size = (float)(u->learning_rate / (1 - pow(o->beta1, steps)));
    float correction = (float)sqrt(1 - pow(o->beta2, steps));
    float decay = (float)(1 - u->learning_rate * o->weight_decay), epsilon = (float)o->epsilon;
    float rest1 = (float)(1 - o->beta1), beta2 = (float)o->beta2, rest2 = (float)(1 - o->beta2);
    for (uint64_t i = 0; i < count; i++) {
        float g = grad[i] * u->clip;
        first[i] += rest1 * (g - first[i]);
        second[i] = second[i] * beta2 + rest2 * g * g;
        param[i] =
            param[i] * decay - step_size * first[i] / (sqrtf(second[i]) / correction + epsilon);
        grad[i] = 0;
    }
}

static void update_pairs(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct update *u = arg;
    (void)thread;
    for (int64_t k = begin; k < end; k++) {
        uint8_t *has_grad = &u->opt->lora->has_grad[u->opt->lora->attached[k]];
        if (*has_grad)
            update_pair(u, (int32_t)k);
        *has_grad = 0;
    }
}

kt_status kt_optimizer_step(kt_optimizer *opt, double learning_rate, double *grad_norm)
{
    double unasked, *norm = grad_norm ? grad_norm : &unasked;
    *norm = NAN;
    KT_ENTER(opt, "optimizer");
    KT_TRACE_PHASE(opt->ctx, KT_PHASE_OPTIMIZER);
    kt_context *ctx = opt->ctx;
    double limit = opt->options.max_grad_norm;
    if (!(learning_rate >= 0) || !isfinite(learning_rate))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "the learning rate is %g; it must be 0 or more", learning_rate);
    KT_TRY(gradient_norm(opt, norm));
    double clip = limit > 0 ? limit / (*norm + 1e-6) : 1;
    struct update update = {opt, learning_rate, (float)(clip < 1 ? clip : 1)};
    KT_TRACE_CPU(ctx, "adamw");
    kt_parallel_for(ctx->pool, opt->lora->num_attached, 1, update_pairs, &update);
    opt->lora->version++;
    return KT_OK;
}
