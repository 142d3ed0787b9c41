/* SPDX-License-Identifier: Apache-2.0 */
/** \file train.h
 * The parts of `kt train`: options (what the configuration asks), plan (how many steps, and which
 * examples each takes), output (the files) and progress (the screen). train.c is the loop. */
#ifndef KT_TRAIN_H
#define KT_TRAIN_H

#include <jansson.h>
#include <kt/kt.h>

#include "config.h"
#include "profile.h"
#include "session.h"

typedef enum moment { MOMENT_NEVER, MOMENT_STEPS, MOMENT_EPOCH } moment;

/** The configuration, resolved. Strings belong to the config. */
typedef struct train_options {
    const char *yaml; /**< path as given, for the resume command */
    char **overrides; /**< key=value arguments as given */
    int num_overrides;
    const char *output_dir;
    bool overwrite, do_train, do_eval, plot_loss, save_only_model, disable_shuffling, drop_last;
    bool logging_first_step, eval_on_start, count_tokens, tokens_per_second, effective_tokens;
    bool quiet; /**< no progress bar (disable_tqdm) */
    uint64_t batch, eval_batch, accumulation, seed, data_seed;
    double epochs;
    int64_t max_steps; /**< -1 = by epochs */
    moment logging, saving, evaluating;
    double logging_steps, save_steps, eval_steps, eval_delay; /**< below 1: a share of all steps */
    uint64_t save_total_limit;                                /**< 0 = none */
    kt_compute compute;
    kt_optimizer_options optimizer;
    kt_schedule schedule; /**< but for warmup and total, which the plan knows */
    uint64_t warmup_steps;
    double warmup_ratio;
    kt_lora_options lora;
    char *resume; /**< checkpoint folder to go on from, or NULL; freed with train_options_free */
} train_options;

/** Reads and cross-checks the configuration. Returns an exit code. */
int train_options_read(train_options *o, const config *cfg);
void train_options_free(train_options *o);

/** Steps as transformers 4.57.1 counts them: an epoch's last accumulation may be partial and is a
 * step of its own; no step reaches into the next epoch. */
typedef struct train_plan {
    uint64_t num_examples;  /**< in the training set */
    uint64_t used_examples; /**< fewer where the last, partial batch is dropped */
    uint64_t step_examples; /**< batch x accumulation */
    uint64_t epoch_batches, epoch_steps, total_steps, num_epochs;
    uint64_t log_every, save_every, eval_every; /**< 0 = not by steps */
} train_plan;

int train_plan_make(train_plan *plan, const train_options *o, const config *cfg,
                    uint64_t num_examples);
/** Examples [*first, *first + return value) of its epoch's order that step `step` (from 0) takes.
 */
uint64_t train_plan_step(const train_plan *plan, uint64_t step, uint64_t *first);
/** Warmup steps: warmup_steps, else warmup_ratio of all. */
uint64_t train_plan_warmup(const train_plan *plan, const train_options *o);
/** Position in epochs after `step` steps, as in log files. */
double train_plan_epoch(const train_plan *plan, const train_options *o, uint64_t step);

/** What a run has done so far; all of it is in a checkpoint. */
typedef struct train_state {
    uint64_t step;          /**< steps done */
    uint64_t tokens;        /**< tokens seen, without padding */
    uint64_t padded_tokens; /**< as the other program's padding would count them */
    double loss_total;      /**< sum of the steps' losses */
    double loss_window;     /**< of the steps since the last log entry */
    uint64_t last_logged;   /**< step of that entry */
    json_t *history;        /**< log_history */
    bool unevaluated;       /**< this step's evaluation is due and not done */
} train_state;

typedef struct train_run {
    const config *cfg;
    train_options options;
    train_plan plan;
    train_state state;
    session session;
    profile profile;
    kt_dataset *dataset, *evaluation; /**< evaluation may be NULL */
    kt_optimizer *optimizer;
    kt_batch *batch;
    int64_t *order;      /**< [num_examples] of the epoch order_epoch */
    int64_t order_epoch; /**< -1 = none yet */
    double flops_per_token;
    char *saved;         /**< the newest checkpoint that training can go on from, or NULL */
    uint64_t saved_step; /**< of that one; 0 = none */
    char *advice;        /**< how to go on from it, for lost.h; or NULL */
    double start_time;   /**< of this process's training, seconds */
    uint64_t start_step;
    double grad_norm, learning_rate; /**< of the latest step */
} train_run;

/** Adds a micro-batch to run->batch, with the padding that transformers would give it: to its
 * longest sequence, when training rounded up to a multiple of 8. Padding decides which experts'
 * matrices AdamW touches, and counts in the length that dynamic rope_scaling looks at. */
kt_status train_add_micro_batch(train_run *run, const kt_dataset *data, const int64_t *indices,
                                uint64_t num, size_t *width);

/* Checkpoints: train_checkpoint.c writes them, train_resume.c reads them */
/** The files that training_state.json, which is written last, binds to each other; NULL at the end.
 */
extern const char *const checkpoint_parts[];
/** N of "checkpoint-N", -1 for any other name. */
long long checkpoint_step(const char *name);
/** Is everything there that training needs to go on, of the right size? Also when that cannot be
 * found out: going on from it tells why. */
bool checkpoint_is_whole(const char *folder);
/** FNV-1a over the ids and labels of the training set, in new memory. */
char *checkpoint_data_hash(const kt_dataset *dataset);

/* Output: train_files.c, train_checkpoint.c, train_resume.c */
/** Finds `resume`, refuses a folder that must not be overwritten or cannot be written. Nothing is
 * loaded yet. Returns an exit code. */
int output_prepare(train_options *o, const config *cfg);
/** One kt train at a time writes into a folder. */
int output_lock(const config *cfg, const char *folder);
int output_make_folder(train_run *run);
/** On a fresh start removes an old log; on a resumed one cuts it back to the checkpoint's step. */
int output_begin(train_run *run);
/** Adds an entry to log_history and to trainer_log.jsonl. Takes `item`. */
int output_log(train_run *run, json_t *item);
/** checkpoint-N. `whole` = with what resuming needs. */
int output_checkpoint(train_run *run, bool whole);
/** The counters and the log of `resume`, which must be of this run: its seeds, batches and data. */
int checkpoint_read(train_run *run);
/** That, and the optimizer; the adapter is loaded from there before. */
int output_load_checkpoint(train_run *run);
/** The adapter and the tokenizer's files into `folder`. */
int output_save_adapter(train_run *run, const char *folder);
int output_save_state(train_run *run, const char *folder);
/** SPLIT_results.json, and its numbers into all_results.json. */
int output_save_results(train_run *run, const char *split, json_t *metrics);
int output_model_card(train_run *run);

/* Pictures: train_plot.c, or train_plot_none.c in a build without cairo */
int output_plot(train_run *run);

/* Report: train_report.c */
/** Prints what will be done and checks that it fits into memory. Returns an exit code. */
int train_report(train_run *run);

/* Evaluation: train_eval.c */
/** How many examples an evaluation takes through the model together: whole batches, as many as keep
 * within a training step's number of sequences, so that the weights are read seldom. */
size_t train_evaluation_group(const train_run *run);
/** The four eval_ numbers of the evaluation set, without epoch and step. */
int train_evaluate(train_run *run, json_t **metrics);

/* The end: train_finish.c */
/** Saves a checkpoint and says how to go on from it; returns APP_INTERRUPTED or an error. */
int train_stop(train_run *run);
/** Has the newest checkpoint told should a file of the model go away. */
void train_advise(train_run *run);
/** After an error: says how to go on from the newest checkpoint, if there is one. */
void train_say_resume(const train_run *run);
/** Writes the adapter, the results and the plot into the output folder. */
int train_finish(train_run *run);
/** The evaluation that LLaMA-Factory makes at the very end, or alone without do_train. */
int train_final_evaluation(train_run *run);

/* Progress: progress.c */
void progress_begin(const train_run *run);
void progress_step(double loss);
/** One line of the log. */
void progress_log(const train_run *run, const json_t *item);
void progress_message(const char *format, ...) __attribute__((format(printf, 1, 2)));
void progress_end(void);

#endif
