/* SPDX-License-Identifier: Apache-2.0 */
#include <kt/plot.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/context.h"
#include "formats/plot_draw.h"

/* Exponential smoothing whose weight grows with the number of values, from 0 towards 0.9. */
static void smooth(const double *values, size_t num, double *smoothed)
{
    double weight = 1.8 / (1 + exp(-0.05 * (double)num)) - 0.9, last = NAN;
    for (size_t i = 0; i < num; i++) {
        if (isfinite(values[i]))
            last = isfinite(last) ? last * weight + values[i] * (1 - weight) : values[i];
        smoothed[i] = isfinite(values[i]) ? last : NAN;
    }
}

/* Range of the finite numbers; a range without width is widened around its only number. */
static void find_range(const double *numbers, size_t num, double *low, double *high)
{
    *low = INFINITY;
    *high = -INFINITY;
    for (size_t i = 0; i < num; i++) {
        if (isfinite(numbers[i])) {
            *low = fmin(*low, numbers[i]);
            *high = fmax(*high, numbers[i]);
        }
    }
    if (*low > *high)
        *low = *high = 0;
    if (*high - *low <= 1e-12 * fmax(fabs(*low), fabs(*high)) || *high == *low) {
        double half = *low == 0 ? 0.5 : fabs(*low) * 0.5;
        *low -= half;
        *high += half;
    }
}

/* 1, 2 or 5 times a power of ten, so that about `wanted` of them fit. */
static double round_step(double range, int wanted)
{
    double raw = range / wanted, power = pow(10, floor(log10(raw))), digit = raw / power;
    return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
}

static void format_tick(double value, double step, char text[24])
{
    int decimals = (int)fmax(0, -floor(log10(step) + 1e-9));
    if (fabs(value) < step * 1e-6)
        value = 0;
    if (fabs(value) >= 1e7 || decimals > 5)
        snprintf(text, 24, "%.4g", value);
    else
        snprintf(text, 24, "%.*f", decimals, value);
}

static void place_ticks(struct kt_axis *axis, int wanted, double least_step)
{
    double step = fmax(round_step(axis->high - axis->low, wanted), least_step);
    double first = ceil(axis->low / step - 1e-9);
    axis->num_ticks = 0;
    for (int32_t i = 0; i < KT_MAX_TICKS; i++) {
        double value = (first + i) * step;
        if (value > axis->high + step * 1e-6)
            break;
        axis->ticks[i] = value;
        format_tick(value, step, axis->tick_labels[i]);
        axis->num_ticks++;
    }
}

static void set_axes(struct kt_chart *chart)
{
    struct kt_axis *x = &chart->x, *y = &chart->y;
    bool whole = true;
    for (size_t i = 0; i < chart->num; i++)
        whole = whole && chart->steps[i] == floor(chart->steps[i]);
    if (chart->num == 1) {
        x->low = chart->steps[0] - 1;
        x->high = chart->steps[0] + 1;
    } else {
        find_range(chart->steps, chart->num, &x->low, &x->high);
    }
    find_range(chart->values, chart->num, &y->low, &y->high);
    double margin = 0.06 * (y->high - y->low);
    if (y->low >= 0 && y->low < 0.15 * y->high)
        y->low = 0; /* close enough to zero to show it */
    else
        y->low -= margin;
    y->high += margin;
    place_ticks(x, 9, whole ? 1 : 0);
    place_ticks(y, 7, 0);
}

kt_status kt_plot_loss(kt_context *ctx, const char *file, const char *title, const char *ylabel,
                       const double *steps, const double *values, size_t num)
{
    struct kt_chart chart = {.title = title, .num = num, .steps = steps, .values = values};
    KT_ENTER_CONTEXT(ctx);
    KT_TRY(kt_check_given(ctx, file, "the file of a plot"));
    KT_TRY(kt_check_given(ctx, title, "the title of a plot"));
    KT_TRY(kt_check_given(ctx, ylabel, "the label of a plot"));
    if (num < 1)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "%s: there are no values to plot", file);
    KT_TRY(kt_check_given(ctx, steps, "steps"));
    KT_TRY(kt_check_given(ctx, values, "values"));
    double *smoothed = malloc(num * sizeof *smoothed);
    if (!smoothed)
        return kt_fail_memory(ctx, num * sizeof *smoothed, "a plot");
    smooth(values, num, smoothed);
    chart.smoothed = smoothed;
    chart.x.label = "step";
    chart.y.label = ylabel;
    set_axes(&chart);
    kt_status status = kt_chart_write_png(ctx, &chart, file);
    free(smoothed);
    return status;
}
