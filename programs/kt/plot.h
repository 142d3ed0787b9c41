/* SPDX-License-Identifier: Apache-2.0 */
/** \file plot.h
 * The picture of a training run. plot.c says what is shown, plot_draw.c how. Built with cairo only.
 */
#ifndef KT_PLOT_H
#define KT_PLOT_H

#include <stddef.h>
#include <stdint.h>

enum { MAX_TICKS = 16 };

/** A range with ticks at round numbers inside it. */
struct axis {
    double low, high;
    const char *label;
    int32_t num_ticks;
    double ticks[MAX_TICKS];
    char tick_labels[MAX_TICKS][24];
};

struct chart {
    const char *title;
    struct axis x, y;
    size_t num;
    const double *steps, *values,
        *smoothed; /**< [num]; a value that is not finite breaks the line */
};

/** Writes a PNG with the values against the steps: the original line and an exponentially smoothed
 * one, a title, axes with labels, a legend. The file appears whole or not at all. Returns NULL, or
 * why it could not be written, in new memory. */
char *plot_loss(const char *file, const char *title, const char *ylabel, const double *steps,
                const double *values, size_t num);

/** The part of plot_loss that draws and writes. */
char *chart_write_png(const struct chart *chart, const char *file);

#endif
