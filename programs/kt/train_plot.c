/* SPDX-License-Identifier: Apache-2.0 */
/* The pictures of a run. */
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "plot.h"
#include "train.h"

static int plot(train_run *run, const char *metric)
{
    const json_t *history = run->state.history;
    size_t num = 0, size = json_array_size(history), index;
    double *steps = app_alloc(size, sizeof *steps), *values = app_alloc(size, sizeof *values);
    const json_t *item;
    json_array_foreach(history, index, item)
    {
        const json_t *member = json_object_get(item, metric);
        if (member) {
            steps[num] = json_number_value(json_object_get(item, "step"));
            values[num++] = json_number_value(member);
        }
    }
    int rc = APP_OK;
    if (num) {
        char *file = app_text("%s/training_%s.png", run->options.output_dir, metric);
        char *title = app_text("training %s of %s", metric, run->options.output_dir);
        char *error = plot_loss(file, title, metric, steps, values, num);
        if (error)
            rc = config_fail(run->cfg, "plot_loss", "%s", error);
        else
            progress_message("plot: %s", file);
        free(error);
        free(title);
        free(file);
    }
    if (!num && !strcmp(metric, "loss"))
        app_warn("plot_loss: no loss was logged to plot; lower logging_steps");
    free(values);
    free(steps);
    return rc;
}

int output_plot(train_run *run)
{
    int rc = plot(run, "loss");
    return rc == APP_OK ? plot(run, "eval_loss") : rc;
}
