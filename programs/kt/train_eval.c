/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>

#include "app.h"
#include "train.h"

size_t train_evaluation_group(const train_run *run)
{
    size_t batches = run->plan.step_examples / run->options.eval_batch;
    return (batches ? batches : 1) * run->options.eval_batch;
}

/* Sum over the batches of the group of the batch's mean loss, from the log probabilities of the
 * latest forward. transformers gives a last, smaller batch the weight of a whole one. */
static double sum_of_means(const train_run *run, size_t num)
{
    const int32_t *labels = kt_batch_labels(run->batch);
    const int32_t *offsets = kt_batch_cu_seqlens(run->batch);
    const float *logprobs = kt_executor_logprobs(run->session.executor);
    double total = 0;
    for (size_t first = 0; first < num; first += run->options.eval_batch) {
        size_t last = first + run->options.eval_batch < num ? first + run->options.eval_batch : num;
        double sum = 0;
        uint64_t targets = 0;
        for (int32_t i = offsets[first]; i < offsets[last]; i++) {
            sum -= (double)logprobs[i];
            targets += labels[i] != KT_IGNORE_LABEL;
        }
        if (targets)
            total += sum / (double)targets;
    }
    return total;
}

static kt_status add_group(train_run *run, size_t first, size_t num)
{
    size_t batch = run->options.eval_batch, width;
    int64_t *indices = app_alloc(num, sizeof *indices);
    kt_status status = KT_OK;
    for (size_t i = 0; i < num; i++)
        indices[i] = (int64_t)(first + i);
    for (size_t i = 0; i < num && status == KT_OK; i += batch)
        status = train_add_micro_batch(run, run->evaluation, indices + i,
                                       num - i < batch ? num - i : batch, &width);
    free(indices);
    return status;
}

static int evaluate_group(train_run *run, size_t first, size_t num, double *total)
{
    session *s = &run->session;
    kt_loss loss = {.size = sizeof loss};
    kt_batch_clear(run->batch);
    if (add_group(run, first, num) != KT_OK)
        return app_fail("%s", kt_last_error(s->ctx));
    kt_status status = kt_executor_forward(s->executor, run->batch, KT_FORWARD_EVAL, &loss);
    if (status == KT_ERROR_CANCELLED)
        return APP_INTERRUPTED;
    if (status == KT_ERROR_OUT_OF_MEMORY)
        return session_told(s, "per_device_eval_batch_size", status);
    if (status != KT_OK)
        return app_fail("evaluation: %s", kt_last_error(s->ctx));
    *total += sum_of_means(run, num);
    return APP_OK;
}

static double rounded(double x, double unit)
{
    return round(x / unit) * unit;
}

int train_evaluate(train_run *run, json_t **metrics)
{
    size_t num = kt_dataset_num_examples(run->evaluation), group = train_evaluation_group(run);
    double start = now_seconds(), total = 0;
    int rc = APP_OK;
    for (size_t i = 0; i < num && rc == APP_OK; i += group)
        rc = evaluate_group(run, i, i + group < num ? group : num - i, &total);
    if (rc != APP_OK)
        return rc;
    double seconds = now_seconds() - start;
    double batches = ceil((double)num / (double)run->options.eval_batch);
    *metrics = json_pack("{sfsfsfsf}", "eval_loss", total / batches, "eval_runtime",
                         rounded(seconds, 1e-4), "eval_samples_per_second",
                         rounded((double)num / seconds, 1e-3), "eval_steps_per_second",
                         rounded(batches / seconds, 1e-3));
    return APP_OK;
}
