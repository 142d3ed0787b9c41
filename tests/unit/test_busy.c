/* SPDX-License-Identifier: Apache-2.0 */
/* Calls and frees that come while a call runs: from callbacks, other threads and signal handlers.
 * Sanitizers see what the assertions do not. */
#include <check.h>
#include <kt/kt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>

#include "world.h"
#include "main.h"

static kt_context_options options_with(void)
{
    kt_context_options o;
    kt_context_options_init(&o, sizeof o);
    o.num_threads = 2;
    return o;
}

static struct world busy;
static atomic_int refused, wrong;

static void must_be_refused(kt_status status, const char *call)
{
    const char *said = kt_last_error(busy.ctx);
    if (status == KT_ERROR_STATE && strncmp(said, call, strcspn(call, "(")) == 0)
        refused++;
    else if (!wrong++)
        fprintf(stderr, "%s: %s: %s\n", call, kt_status_string(status), said);
}

#define REFUSED(...) must_be_refused((__VA_ARGS__), #__VA_ARGS__)

static const char config_path[] = KT_REFERENCE_DIR "/text/tiny";

static void call_everything(void)
{
    const struct world *w = &busy;
    kt_decode_state state = {.size = sizeof state};
    union {
        void *pointer;
        kt_batch *batch;
        kt_model *model;
        kt_lora *lora;
        kt_rule *rule;
        kt_executor *executor;
        kt_plan *plan;
        kt_trace *trace;
        kt_generator *generator;
        kt_optimizer *optimizer;
        kt_tokenizer *tokenizer;
        kt_dataset *dataset;
        int32_t *ids;
        char *text;
        const char *record;
    } out;
    float logits[4];
    int64_t order[4];
    int32_t token;
    size_t num;
    double number = 0;
    const kt_message message = {.size = sizeof message, .role = "user", .content = "x"};
    REFUSED(kt_context_set_log(w->ctx, NULL, NULL));
    REFUSED(kt_context_set_progress(w->ctx, NULL, NULL));
    REFUSED(kt_context_set_cancel(w->ctx, NULL, NULL));
    REFUSED(kt_model_load(w->ctx, WORLD_MODEL, NULL, &out.model));
    REFUSED(kt_model_check_finite(w->model));
    REFUSED(kt_convert(w->ctx, WORLD_MODEL, "/dev/null/x", NULL));
    REFUSED(kt_rule_create(w->ctx, &out.rule));
    REFUSED(kt_rule_load(w->ctx, "/dev/null/x", &out.rule));
    REFUSED(kt_rule_add(w->rule, "x", NULL, NULL));
    REFUSED(kt_lora_create(w->model, NULL, &out.lora));
    REFUSED(kt_lora_load(w->model, "/dev/null/x", &out.lora));
    REFUSED(kt_lora_save(w->lora, "/dev/null/x"));
    REFUSED(kt_lora_zero_grad(w->lora));
    REFUSED(kt_lora_touch(w->lora));
    REFUSED(kt_lora_set_seed(w->lora, 1));
    REFUSED(kt_lora_set_grad_state(w->lora, 0, 1));
    REFUSED(kt_batch_create(w->ctx, &out.batch));
    REFUSED(kt_batch_clear(w->batch));
    REFUSED(kt_batch_add(w->batch, world_ids, NULL, 3));
    REFUSED(kt_batch_add_padding(w->batch, 0, 1000));
    REFUSED(kt_executor_create(w->model, w->lora, NULL, &out.executor));
    REFUSED(kt_executor_forward(w->executor, w->batch, KT_FORWARD_EVAL, NULL));
    REFUSED(kt_executor_backward(w->executor, NULL));
    REFUSED(kt_executor_logits(w->executor, w->batch, logits));
    REFUSED(kt_plan_create(w->executor, NULL, &out.plan));
    REFUSED(kt_trace_create(w->ctx, NULL, &out.trace));
    REFUSED(kt_trace_finish(w->trace));
    REFUSED(kt_executor_reserve(w->executor, 5));
    REFUSED(kt_executor_set_step(w->executor, 5));
    REFUSED(kt_executor_get_sharing(w->executor, &out.record));
    REFUSED(kt_executor_set_sharing(w->executor, "kt-sharing-1"));
    REFUSED(kt_generator_create(w->executor, NULL, &out.generator));
    REFUSED(kt_generator_prompt(w->generator, world_ids, 3));
    REFUSED(kt_generator_next(w->generator, &token));
    REFUSED(kt_optimizer_create(w->lora, NULL, &out.optimizer));
    REFUSED(kt_optimizer_step(w->optimizer, 1, &number));
    REFUSED(kt_optimizer_save(w->optimizer, "/dev/null/x"));
    REFUSED(kt_optimizer_load(w->optimizer, "/dev/null/x"));
    REFUSED(kt_schedule_rate(w->ctx, NULL, 1, &number));
    REFUSED(kt_random_permutation(w->ctx, 1, 3, order));
    REFUSED(kt_tokenizer_load(w->ctx, config_path, &out.tokenizer));
    REFUSED(kt_tokenizer_encode(w->tokenizer, "x", 1, 0, &out.ids, &num));
    REFUSED(kt_tokenizer_decode(w->tokenizer, world_ids, 1, 0, &out.text, &num));
    REFUSED(kt_tokenizer_decode_next(w->tokenizer, &state, 5, NULL, 0, &num));
    REFUSED(kt_tokenizer_apply_template(w->tokenizer, "qwen", &message, 1, &out.ids, &num));
    REFUSED(kt_tokenizer_stop_ids(w->tokenizer, "qwen", &token, 1, &num));
    REFUSED(kt_dataset_load(w->ctx, w->tokenizer, NULL, &out.dataset));
    REFUSED(kt_dataset_split(w->dataset, 0.5, 1, &out.dataset));
}

enum { GUARDED = 48 };

/* What callbacks may do. */
static void look_around(void)
{
    const struct world *w = &busy;
    kt_model_info info = {.size = sizeof info};
    kt_lora_tensor matrix = {.size = sizeof matrix};
    kt_example example = {.size = sizeof example};
    if (kt_model_get_info(w->model, &info) || kt_lora_get_tensor(w->lora, 0, &matrix) ||
        kt_dataset_get(w->dataset, 0, &example) || !kt_batch_num_tokens(w->batch) ||
        kt_context_num_threads(w->ctx) != 2 || !*kt_status_string(KT_ERROR_STATE))
        wrong++;
}

static int depth_log, depth_progress, depth_cancel;

static void from_log(void *user, int32_t level, const char *line)
{
    (void)user, (void)level, (void)line;
    if (busy.dataset && !depth_log++)
        call_everything();
}

static void from_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)user, (void)what, (void)done, (void)total;
    if (busy.dataset && !depth_progress++) {
        call_everything();
        look_around();
    }
}

static int32_t from_cancel(void *user)
{
    (void)user;
    if (busy.dataset && !depth_cancel++)
        call_everything();
    return 0;
}

static void open_busy(void)
{
    kt_context_options o = options_with();
    o.log = from_log;
    o.progress = from_progress;
    o.cancel = from_cancel;
    busy = (struct world){0};
    world_open(&busy, &o);
    refused = wrong = depth_log = depth_progress = depth_cancel = 0;
}

START_TEST(callbacks_are_refused)
{
    kt_loss plain = {.size = sizeof plain}, disturbed = plain;
    struct world w;
    open_busy();
    ck_world_ok(&busy,
                kt_executor_forward(busy.executor, busy.batch, KT_FORWARD_TRAIN, &disturbed));
    ck_world_ok(&busy, kt_executor_backward(busy.executor, NULL));
    ck_assert_int_eq(wrong, 0);
    ck_assert_int_eq(refused, 2 * GUARDED);
    /* a template whose words the tokenizer lacks warns in the log */
    const kt_message message = {.size = sizeof message, .role = "user", .content = "x"};
    int32_t *ids;
    size_t num;
    ck_world_ok(&busy,
                kt_tokenizer_apply_template(busy.tokenizer, "llama3", &message, 1, &ids, &num));
    kt_free(ids);
    ck_assert_int_eq(wrong, 0);
    ck_assert_int_eq(refused, 3 * GUARDED);
    world_open(&w, NULL);
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, &plain));
    ck_assert(plain.loss == disturbed.loss);
    world_close(&w);
    world_close(&busy);
}
END_TEST

static void *thread_calls(void *arg)
{
    (void)arg;
    call_everything();
    return NULL;
}

static void wait_for_thread(void *user, const char *what, uint64_t done, uint64_t total)
{
    int *started = user;
    pthread_t thread;
    (void)what, (void)done, (void)total;
    if ((*started)++)
        return;
    ck_assert_int_eq(pthread_create(&thread, NULL, thread_calls, NULL), 0);
    pthread_join(thread, NULL);
}

START_TEST(other_threads_are_refused)
{
    int started = 0;
    open_busy();
    ck_world_ok(&busy, kt_context_set_log(busy.ctx, NULL, NULL));
    ck_world_ok(&busy, kt_context_set_cancel(busy.ctx, NULL, NULL));
    ck_world_ok(&busy, kt_context_set_progress(busy.ctx, wait_for_thread, &started));
    ck_world_ok(&busy, kt_executor_forward(busy.executor, busy.batch, KT_FORWARD_TRAIN, NULL));
    ck_assert_int_eq(wrong, 0);
    ck_assert_int_eq(refused, GUARDED);
    ck_assert_str_eq(kt_last_error(busy.ctx), "");
    world_close(&busy);
}
END_TEST

/* Two threads that only quarrel: every call is whole or refused. */
static void *quarrel(void *arg)
{
    int *ran = arg;
    for (int i = 0; i < 200; i++) {
        kt_status status = kt_executor_forward(busy.executor, busy.batch, KT_FORWARD_TRAIN, NULL);
        if (status == KT_OK)
            ++*ran;
        else
            must_be_refused(status, "kt_executor_forward");
    }
    return NULL;
}

START_TEST(threads_that_quarrel)
{
    pthread_t thread;
    int ran[2] = {0};
    open_busy();
    depth_log = depth_progress = depth_cancel = 1;
    ck_assert_int_eq(pthread_create(&thread, NULL, quarrel, &ran[1]), 0);
    quarrel(&ran[0]);
    pthread_join(thread, NULL);
    ck_assert_int_eq(wrong, 0);
    ck_assert_int_eq(ran[0] + ran[1] + refused, 400);
    world_close(&busy);
}
END_TEST

/* -- frees while a call runs --------------------------------------------------------------------
 */

static void *thread_frees(void *arg)
{
    (void)arg;
    world_close(&busy);
    return NULL;
}

static void free_by_thread(void *user, const char *what, uint64_t done, uint64_t total)
{
    int *times = user;
    pthread_t thread;
    (void)what, (void)total;
    if (done != 1 || (*times)++)
        return;
    ck_assert_int_eq(pthread_create(&thread, NULL, thread_frees, NULL), 0);
    pthread_join(thread, NULL);
}

static void free_here(void *user, const char *what, uint64_t done, uint64_t total)
{
    int *times = user;
    (void)what, (void)total;
    if (done == 1 && !(*times)++)
        world_close(&busy);
}

START_TEST(frees_wait_for_the_call)
{
    int times = 0;
    open_busy();
    depth_log = depth_progress = depth_cancel = 1;
    ck_world_ok(&busy, kt_context_set_progress(busy.ctx, _i ? free_by_thread : free_here, &times));
    ck_assert_int_eq(kt_executor_forward(busy.executor, busy.batch, KT_FORWARD_TRAIN, NULL), KT_OK);
    ck_assert_int_eq(times, 1);
}
END_TEST

/* -- cancelling ---------------------------------------------------------------------------------
 */

static kt_context *cancelled;

static void on_signal(int signal)
{
    (void)signal;
    kt_context_cancel(cancelled);
}

static void raise_once(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)user, (void)what, (void)total;
    if (done == 1)
        raise(SIGUSR1);
}

START_TEST(cancel_from_a_signal_handler)
{
    struct world w;
    kt_context_options o = options_with();
    struct sigaction action = {.sa_handler = on_signal};
    o.progress = raise_once;
    world_open(&w, &o);
    cancelled = w.ctx;
    sigaction(SIGUSR1, &action, NULL);
    ck_assert_int_eq(kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_CANCELLED);
    ck_assert_str_ne(kt_last_error(w.ctx), "");
    ck_world_ok(&w, kt_context_set_progress(w.ctx, NULL, NULL));
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL));
    world_close(&w);
}
END_TEST

START_TEST(a_request_waits_for_a_call)
{
    struct world w;
    world_open(&w, NULL);
    kt_context_cancel(w.ctx);
    ck_assert_int_eq(kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_CANCELLED);
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL));
    kt_context_cancel(w.ctx);
    kt_context_clear_cancel(w.ctx);
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL));
    world_close(&w);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("busy", .timeout = 60),     TEST(callbacks_are_refused),
        TEST(other_threads_are_refused),  TEST(threads_that_quarrel),
        LOOP(frees_wait_for_the_call, 2), TEST(cancel_from_a_signal_handler),
        TEST(a_request_waits_for_a_call),
    };
    return RUN_TESTS("busy", tests);
}
