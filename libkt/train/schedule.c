/* SPDX-License-Identifier: Apache-2.0 */
#include <kt/optimizer.h>

#include <math.h>
#include <string.h>

#include "core/context.h"

/* Factor of the peak rate after warmup; `progress` is the part done of what follows warmup. */
typedef double (*factor_fn)(const kt_schedule *s, uint64_t step, double progress);

void kt_schedule_init(kt_schedule *schedule, size_t size)
{
    const kt_schedule defaults = {
        .type = "linear", .learning_rate = 5e-5, .power = 1.0, .lr_end = 1e-7};
    kt_options_init(schedule, size, &defaults, sizeof defaults);
}

static double remaining_steps(const kt_schedule *s)
{
    return fmax(1, (double)s->total_steps - (double)s->warmup_steps);
}

static double constant(const kt_schedule *s, uint64_t step, double progress)
{
    (void)s, (void)step, (void)progress;
    return 1;
}

static double linear(const kt_schedule *s, uint64_t step, double progress)
{
    (void)progress;
    return fmax(0, ((double)s->total_steps - (double)step) / remaining_steps(s));
}

static double cosine_wave(const kt_schedule *s, double progress)
{
    double cycles = s->num_cycles > 0 ? s->num_cycles : 0.5;
    return 0.5 * (1 + cos(M_PI * cycles * 2 * progress));
}

static double cosine(const kt_schedule *s, uint64_t step, double progress)
{
    (void)step;
    return fmax(0, cosine_wave(s, progress));
}

static double cosine_min_rate(const kt_schedule *s, uint64_t step, double progress)
{
    (void)step;
    double lowest = s->lr_end / s->learning_rate;
    return fmax(0, cosine_wave(s, progress) * (1 - lowest) + lowest);
}

static double cosine_restarts(const kt_schedule *s, uint64_t step, double progress)
{
    (void)step;
    double cycles = s->num_cycles > 0 ? s->num_cycles : 1;
    return progress >= 1 ? 0 : fmax(0, 0.5 * (1 + cos(M_PI * fmod(cycles * progress, 1))));
}

static double polynomial(const kt_schedule *s, uint64_t step, double progress)
{
    double range = s->learning_rate - s->lr_end;
    if (step > s->total_steps)
        return s->lr_end / s->learning_rate;
    return (range * pow(1 - progress, s->power) + s->lr_end) / s->learning_rate;
}

static double inverse_sqrt(const kt_schedule *s, uint64_t step, double progress)
{
    (void)progress;
    double timescale = s->warmup_steps > 0 ? (double)s->warmup_steps : 10000;
    double shift = timescale - (double)s->warmup_steps;
    return 1 / sqrt(((double)step + shift) / timescale);
}

static const struct {
    const char *name;
    factor_fn factor;
    bool warmup, uses_lr_end;
} types[] = {
    {"linear", linear, true, false},
    {"cosine", cosine, true, false},
    {"constant", constant, false, false},
    {"constant_with_warmup", constant, true, false},
    {"cosine_with_restarts", cosine_restarts, true, false},
    {"polynomial", polynomial, true, true},
    {"inverse_sqrt", inverse_sqrt, true, false},
    {"cosine_with_min_lr", cosine_min_rate, true, true},
};

static kt_status check(kt_context *ctx, const kt_schedule *s, bool uses_lr_end)
{
    if (!(s->learning_rate >= 0) || !isfinite(s->learning_rate))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "the learning rate is %g; it must be 0 or more", s->learning_rate);
    if (!(s->num_cycles >= 0 && s->num_cycles < 1e9) || !(s->power >= 0 && s->power < 1e9))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "num_cycles %g and power %g of a schedule must be 0 or more, and below 1e9",
                       s->num_cycles, s->power);
    if (uses_lr_end && !(s->lr_end >= 0 && s->lr_end < s->learning_rate))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "the final learning rate of the %s schedule is %g; it must be below the "
                       "learning rate, %g",
                       s->type, s->lr_end, s->learning_rate);
    return KT_OK;
}

kt_status kt_schedule_rate(kt_context *ctx, const kt_schedule *schedule, uint64_t step,
                           double *learning_rate)
{
    kt_schedule s;
    size_t found = 0, num_types = sizeof types / sizeof types[0];
    KT_ENTER_CONTEXT(ctx);
    KT_TRY(kt_check_out(ctx, learning_rate, __func__));
    kt_schedule_init(&s, sizeof s);
    KT_TRY(kt_options_copy(ctx, &s, schedule, KT_SIZED(kt_schedule)));
    while (found < num_types && (!s.type || strcmp(s.type, types[found].name) != 0))
        found++;
    if (found == num_types)
        return kt_fail(ctx, KT_ERROR_UNSUPPORTED,
                       "unknown learning-rate schedule \"%s\"; use linear, cosine, constant, "
                       "constant_with_warmup, cosine_with_restarts, polynomial, inverse_sqrt or "
                       "cosine_with_min_lr",
                       s.type ? s.type : "");
    KT_TRY(check(ctx, &s, types[found].uses_lr_end));
    if (types[found].warmup && step < s.warmup_steps) {
        *learning_rate = s.learning_rate * ((double)step / (double)s.warmup_steps);
        return KT_OK;
    }
    double progress = ((double)step - (double)s.warmup_steps) / remaining_steps(&s);
    *learning_rate = s.learning_rate * types[found].factor(&s, step, progress);
    return KT_OK;
}
