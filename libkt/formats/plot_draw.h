/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/plot_draw.h
 * A line chart, between plot.c (what is shown) and plot_draw.c (how; only built with cairo). */
#ifndef KT_FORMATS_PLOT_DRAW_H
#define KT_FORMATS_PLOT_DRAW_H

#include <kt/types.h>

enum { KT_MAX_TICKS = 16 };

/** A range with ticks at round numbers inside it. */
struct kt_axis {
    double low, high;
    const char *label;
    int32_t num_ticks;
    double ticks[KT_MAX_TICKS];
    char tick_labels[KT_MAX_TICKS][24];
};

struct kt_chart {
    const char *title;
    struct kt_axis x, y;
    size_t num;
    const double *steps, *values,
        *smoothed; /**< [num]; a value that is not finite breaks the line */
};

/** Draws the chart and writes it as a PNG, whole or not at all. Errors: IO, OUT_OF_MEMORY,
 * INVALID_ARGUMENT (text that is not UTF-8). */
kt_status kt_chart_write_png(kt_context *ctx, const struct kt_chart *chart, const char *path);

#endif
