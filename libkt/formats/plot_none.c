/* SPDX-License-Identifier: Apache-2.0 */
/* Takes the place of plot.c in a build without cairo. */
#include <kt/plot.h>

#include "core/context.h"

kt_status kt_plot_loss(kt_context *ctx, const char *file, const char *title, const char *ylabel,
                       const double *steps, const double *values, size_t num)
{
    KT_ENTER_CONTEXT(ctx);
    (void)title, (void)ylabel, (void)steps, (void)values, (void)num;
    return kt_fail(ctx, KT_ERROR_UNSUPPORTED,
                   "%s: this libkt was built without cairo and cannot draw; install cairo's "
                   "development package and build again",
                   file ? file : "a plot");
}
