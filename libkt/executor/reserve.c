/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of the steps of a size, before the first of them. */
#include "core/context.h"
#include "executor/trial.h"

/** Room for the small arrays of any step of up to so many tokens. */
static kt_status reserve_arrays(struct kt_executor *ex, int64_t tokens)
{
    int64_t padding = kt_executor_runs_padding(ex) ? tokens : 0;
    struct kt_feed_sizes sizes = kt_step_feed_sizes(ex, tokens, tokens, tokens, tokens, padding);
    KT_TRY(kt_workspace_feed(&ex->workspace, ex, &sizes));
    KT_TRY(kt_executor_reserve_tokens(ex, (size_t)tokens));
    return kt_targets_all(ex->ctx, &ex->step.targets, tokens);
}

static kt_status reserve_tables(struct kt_executor *ex, int64_t tokens)
{
    const struct kt_feed *feed = &ex->workspace.feed;
    if (kt_rotary_by_length(ex->model))
        return KT_OK;
    return kt_rotary_rows(&ex->rotary, ex->model, 0, 0, tokens, feed->cos, feed->sin);
}

/** Steps of the size may take what this one does. */
static void note(struct kt_executor *ex, const struct kt_pass *pass)
{
    for (int32_t i = 0; i < pass->num_stages; i++) {
        const struct kt_stage *stage = &pass->stages[i];
        if (stage->arena.peak > ex->reserved_activations[i])
            ex->reserved_activations[i] = stage->arena.peak;
        if (stage->tally.scratch > ex->reserved_scratch[i])
            ex->reserved_scratch[i] = stage->tally.scratch;
    }
}

/** `longest` 0 = one sequence with padding behind it. */
static kt_status measure(const struct kt_executor *ex, size_t tokens, size_t longest,
                         struct kt_trial *t)
{
    return longest ? kt_trial_measure(ex, tokens, longest, KT_FORWARD_TRAIN, t)
                   : kt_trial_measure_padded(ex, tokens, t);
}

static kt_status reserve_step(struct kt_executor *ex, size_t tokens, size_t longest)
{
    struct kt_trial t;
    kt_status status = measure(ex, tokens, longest, &t);
    if (status == KT_OK)
        status = kt_step_reserve(ex, &t.step, t.tokens);
    if (status == KT_OK)
        note(ex, &t.step.pass);
    kt_trial_free(&t);
    return status;
}

/** Operations take the most scratch for many tokens, in one sequence or in as many as there are;
 * but an experts backend may leave few tokens to another one. */
struct shapes {
    int32_t num;
    struct {
        size_t tokens, longest;
    } of[4];
};

static struct shapes shapes_of(const struct kt_executor *ex, size_t tokens)
{
    struct shapes s = {3, {{tokens, tokens}, {tokens, 1}, {1, 1}}};
    if (tokens > 1 && kt_executor_runs_padding(ex))
        s.of[s.num++].tokens = tokens;
    return s;
}

/** Joins what two steps take. */
static void join(const struct kt_pass *pass, struct kt_pass *all)
{
    for (int32_t i = 0; i < pass->num_stages; i++) {
        const struct kt_stage *from = &pass->stages[i];
        struct kt_stage *to = &all->stages[i];
        if (from->arena.peak > to->arena.peak)
            to->arena.peak = from->arena.peak;
        if (from->tally.scratch > to->tally.scratch)
            to->tally.scratch = from->tally.scratch;
    }
    all->pieces = pass->pieces > all->pieces ? pass->pieces : all->pieces;
}

/** Into `all` what the shapes take together. */
static kt_status measure_shapes(const struct kt_executor *ex, const struct shapes *s,
                                struct kt_step *all)
{
    for (int32_t i = 0; i < s->num; i++) {
        struct kt_trial t;
        kt_status status = measure(ex, s->of[i].tokens, s->of[i].longest, &t);
        if (status == KT_OK && i == 0)
            *all = t.step;
        if (status == KT_OK)
            join(&t.step.pass, &all->pass);
        kt_trial_free(&t);
        KT_TRY(status);
    }
    return KT_OK;
}

/** All shapes share one arena, so they are done in the same pieces. */
static kt_status count_pieces(struct kt_executor *ex, const struct shapes *s)
{
    struct kt_step all;
    KT_TRY(measure_shapes(ex, s, &all));
    while (ex->least_pieces < KT_MOST_PIECES &&
           (all.pass.pieces > ex->least_pieces || !kt_room_suffices(ex, &all, false))) {
        ex->least_pieces *= 2;
        KT_TRY(measure_shapes(ex, s, &all));
    }
    return kt_room_check(ex, &all);
}

static kt_status reserve_steps(struct kt_executor *ex, size_t tokens)
{
    struct shapes s = shapes_of(ex, tokens);
    kt_status status = count_pieces(ex, &s);
    for (int32_t i = 0; status == KT_OK && i < s.num; i++)
        status = reserve_step(ex, s.of[i].tokens, s.of[i].longest);
    ex->least_pieces = 1;
    return status;
}

static kt_status reserve_all(struct kt_executor *ex, size_t tokens)
{
    KT_TRY(reserve_arrays(ex, (int64_t)tokens));
    KT_TRY(reserve_steps(ex, tokens));
    KT_TRY(reserve_tables(ex, (int64_t)tokens));
    if (ex->reserved_tokens < (int64_t)tokens)
        ex->reserved_tokens = (int64_t)tokens;
    return KT_OK;
}

void kt_executor_let_go(struct kt_executor *ex)
{
    size_t reserved = (size_t)ex->reserved_tokens;
    kt_workspace_free(&ex->workspace, ex);
    for (int32_t i = 0; i < ex->layout.num_devices; i++) {
        kt_block_free(ex->sites[i].device, &ex->inputs[i]);
        kt_block_free(ex->sites[i].device, &ex->pinned_inputs[i]);
        ex->reserved_activations[i] = ex->reserved_scratch[i] = 0;
    }
    ex->reserved_tokens = 0;
    if (reserved)
        (void)reserve_all(ex, reserved);
}

kt_status kt_executor_reserve(kt_executor *ex, size_t num_tokens)
{
    KT_ENTER(ex, "executor");
    KT_TRY(kt_trial_check(ex, num_tokens, 0));
    ex->step.batch = NULL;
    kt_status status = reserve_all(ex, num_tokens);
    if (status == KT_ERROR_OUT_OF_MEMORY)
        kt_executor_let_go(ex);
    return status;
}
