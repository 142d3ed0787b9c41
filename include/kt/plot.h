/* SPDX-License-Identifier: Apache-2.0 */
/** \file plot.h
 * The picture of a training run. */
#ifndef KT_PLOT_H
#define KT_PLOT_H

#include <kt/types.h>

KT_BEGIN_DECLS

/** Writes a PNG with the values against the steps: the original line and an exponentially smoothed
 * one, a title, axes with labels, a legend. Written beside and renamed.
 * Values that are not finite leave a gap. Errors: UNSUPPORTED when built without cairo,
 * INVALID_ARGUMENT for num < 1, IO. */
KT_API kt_status kt_plot_loss(kt_context *ctx, const char *file, const char *title,
                              const char *ylabel, const double *steps, const double *values,
                              size_t num);

KT_END_DECLS
#endif
