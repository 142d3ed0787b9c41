/* SPDX-License-Identifier: Apache-2.0 */
/* Takes the place of train_plot.c in a build without cairo. */
#include "app.h"
#include "train.h"

int output_plot(train_run *run)
{
    (void)run;
    app_warn("plot_loss: this kt was built without cairo and draws nothing; install cairo's "
             "development package and build again");
    return APP_OK;
}
