/* SPDX-License-Identifier: Apache-2.0 */
/* Calls in any order. What belongs to a step or to a generator is not touched by other calls: each
 * gives what it would give alone, or a status that the headers name. */
#include <kt/generator.h>
#include <kt/optimizer.h>

#include <time.h>

#include "core/random.h"
#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

/** Gradients of a step that nothing came between. */
static float *alone(struct golden_case *c, kt_compute compute)
{
    kt_executor *fresh = golden_executor(c, c->lora, compute, 7);
    kt_lora_zero_grad(c->lora);
    golden_step(c, fresh);
    float *gradients = golden_gradients(c->lora);
    kt_lora_zero_grad(c->lora);
    kt_executor_free(fresh);
    return gradients;
}

static void expect_gradients(struct golden_case *c, float *want)
{
    float *got = golden_gradients(c->lora);
    ck_assert_mem_eq(got, want, kt_lora_num_parameters(c->lora) * sizeof *got);
    free(got);
    free(want);
}

START_TEST(a_plan_between_forward_and_backward_changes_nothing)
{
    struct golden_case c = golden_open(_i ? "qwen3moe" : "v3", 2, KT_COMPUTE_F32);
    float *want = alone(&c, KT_COMPUTE_F32);
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, NULL));
    kt_plan_free(golden_plan(&c, c.executor, 4096, 512, KT_FORWARD_TRAIN));
    ck_assert_ok(c.ctx, kt_executor_backward(c.executor, NULL));
    expect_gradients(&c, want);
    golden_close(&c);
}
END_TEST

START_TEST(a_generator_between_forward_and_backward_changes_nothing)
{
    struct golden_case c = golden_open(_i ? "dynamic" : "v3", 2, KT_COMPUTE_F32);
    float *want = alone(&c, KT_COMPUTE_F32);
    int32_t ids[60], token;
    kt_generator *g;
    for (int i = 0; i < 60; i++)
        ids[i] = 2 + i % 50;
    ck_assert_ok(c.ctx, kt_generator_create(c.executor, NULL, &g));
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, NULL));
    ck_assert_ok(c.ctx, kt_generator_prompt(g, ids, _i ? 30 : 60));
    ck_assert_ok(c.ctx, kt_generator_next(g, &token));
    ck_assert_ok(c.ctx, kt_executor_backward(c.executor, NULL));
    expect_gradients(&c, want);
    kt_generator_free(g);
    golden_close(&c);
}
END_TEST

/** Scratch is shared: what a prompt could not grow must be there for backward. */
START_TEST(a_generator_without_memory_takes_none_from_a_step)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    float *want = alone(&c, KT_COMPUTE_F32);
    int32_t ids[60];
    kt_generator *g;
    for (int i = 0; i < 60; i++)
        ids[i] = 2 + i;
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, NULL));
    for (uint64_t room = 1024; room < 1 << 22; room += 1 + room / 8) {
        ck_assert_ok(c.ctx, kt_generator_create(c.executor, NULL, &g));
        c.ctx->options.memory_limit = kt_context_memory_used(c.ctx) + room;
        kt_status status = kt_generator_prompt(g, ids, 60);
        ck_assert(status == KT_OK || status == KT_ERROR_OUT_OF_MEMORY);
        ck_assert((kt_generator_logits(g) != NULL) == (status == KT_OK));
        c.ctx->options.memory_limit = 0;
        kt_generator_free(g);
        if (status != KT_OK && room > 1 << 18)
            break;
    }
    ck_assert_ok(c.ctx, kt_executor_backward(c.executor, NULL));
    expect_gradients(&c, want);
    golden_close(&c);
}
END_TEST

static float *logits_after(const struct golden_case *c, kt_generator *g, const int32_t *ids,
                           size_t length)
{
    size_t bytes = (size_t)c->model->config.vocab_size * sizeof(float);
    float *logits = malloc(bytes);
    ck_assert_ok(c->ctx, kt_generator_prompt(g, ids, length));
    memcpy(logits, kt_generator_logits(g), bytes);
    return logits;
}

enum change { WRITTEN, STEPPED, CHANGES };

static void change_adapter(struct golden_case *c, enum change how)
{
    kt_lora_tensor t = {.size = sizeof t};
    kt_optimizer *optimizer;
    if (how == WRITTEN) {
        ck_assert_ok(c->ctx, kt_lora_get_tensor(c->lora, 1, &t));
        t.data[3] += 0.5f;
        return;
    }
    golden_step(c, c->executor);
    ck_assert_ok(c->ctx, kt_optimizer_create(c->lora, NULL, &optimizer));
    ck_assert_ok(c->ctx, kt_optimizer_step(optimizer, 0.01, NULL));
    kt_optimizer_free(optimizer);
}

START_TEST(a_prompt_reuses_no_row_of_another_adapter)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    static const int32_t ids[] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};
    enum { LENGTH = sizeof ids / sizeof *ids };
    kt_generator *old, *fresh;
    int32_t token;
    ck_assert_ok(c.ctx, kt_generator_create(c.executor, NULL, &old));
    free(logits_after(&c, old, ids, LENGTH));
    change_adapter(&c, (enum change)_i);
    ck_assert_int_eq(kt_generator_next(old, &token), _i == STEPPED ? KT_ERROR_STATE : KT_OK);
    ck_assert_ok(c.ctx, kt_generator_create(c.executor, NULL, &fresh));
    float *got = logits_after(&c, old, ids, LENGTH), *want = logits_after(&c, fresh, ids, LENGTH);
    ck_assert_mem_eq(got, want, (size_t)c.model->config.vocab_size * sizeof *got);
    free(got);
    free(want);
    kt_generator_free(old);
    kt_generator_free(fresh);
    golden_close(&c);
}
END_TEST

START_TEST(a_generator_that_was_reset_is_as_new)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    static const int32_t ids[] = {2, 3, 5, 7, 11};
    kt_generator *g;
    int32_t token;
    ck_assert_ok(c.ctx, kt_generator_create(c.executor, NULL, &g));
    float *want = logits_after(&c, g, ids, 5);
    ck_assert_ok(c.ctx, kt_generator_reset(g));
    ck_assert_uint_eq(kt_generator_length(g), 0);
    ck_assert_ptr_null(kt_generator_logits(g));
    ck_assert_int_eq(kt_generator_next(g, &token), KT_ERROR_STATE);
    float *got = logits_after(&c, g, ids, 5);
    ck_assert_mem_eq(got, want, (size_t)c.model->config.vocab_size * sizeof *got);
    free(got);
    free(want);
    kt_generator_free(g);
    golden_close(&c);
}
END_TEST

static int layers_begun;

static void count_layers(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)user, (void)what, (void)done, (void)total;
    layers_begun++;
}

/** Whatever the limit is, a step fails before its first layer or not at all. */
START_TEST(memory_never_runs_out_in_the_middle)
{
    struct golden_case c = golden_open(golden_cases[_i], 2, KT_COMPUTE_BF16);
    uint64_t base = kt_context_memory_used(c.ctx), limit = base + 1024;
    kt_status status = KT_ERROR_OUT_OF_MEMORY;
    c.ctx->options.progress = count_layers;
    for (int failed = 0; status != KT_OK; limit += 1 + (limit - base) / 16) {
        kt_executor_free(c.executor);
        c.executor = golden_executor(&c, c.lora, KT_COMPUTE_BF16, 7);
        c.ctx->options.memory_limit = limit;
        layers_begun = 0;
        status = kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, NULL);
        if (status == KT_OK)
            ck_assert_ok(c.ctx, kt_executor_backward(c.executor, NULL));
        else
            ck_assert_int_eq(status, KT_ERROR_OUT_OF_MEMORY);
        ck_assert(status == KT_OK || layers_begun == 0);
        ck_assert(status == KT_OK || ++failed < 1000);
        c.ctx->options.memory_limit = 0;
    }
    golden_close(&c);
}
END_TEST

START_TEST(log_probabilities_do_not_depend_on_mode_or_adapter)
{
    static const int32_t modes[] = {KT_FORWARD_EVAL, KT_FORWARD_TRAIN, KT_FORWARD_CUSTOM};
    struct golden_case c = golden_open(golden_bf16_cases[_i], 2, KT_COMPUTE_BF16);
    size_t bytes = kt_batch_num_tokens(c.batch) * sizeof(float);
    kt_lora_options options;
    kt_lora *upper; /* B is zero: it changes nothing, and layer 0 has none */
    kt_lora_options_init(&options, sizeof options);
    options.target = "layers.1.self_attn.o_proj";
    ck_assert_ok(c.ctx, kt_lora_create(c.model, &options, &upper));
    kt_executor *with = golden_executor(&c, upper, KT_COMPUTE_BF16, 7);
    kt_executor *without = golden_executor(&c, NULL, KT_COMPUTE_BF16, 7);
    float *want = malloc(bytes);
    ck_assert_ok(c.ctx, kt_executor_forward(without, c.batch, KT_FORWARD_EVAL, NULL));
    memcpy(want, kt_executor_logprobs(without), bytes);
    for (int i = 0; i < 3; i++) {
        ck_assert_ok(c.ctx, kt_executor_forward(with, c.batch, modes[i], NULL));
        ck_assert_mem_eq(kt_executor_logprobs(with), want, bytes);
    }
    free(want);
    kt_executor_free(with);
    kt_executor_free(without);
    kt_lora_free(upper);
    golden_close(&c);
}
END_TEST

/* -- random sequences -------------------------------------------------------------------------- */

enum { EXECUTORS = 3, GENERATORS = 2, BATCHES = 2, VOCAB = 64 };

/** What must be true of an executor: the gradients that its backward would add, or none. */
struct expectation {
    int batch; /**< -1 = there is no step to go back through */
    float *gradients;
};

struct world {
    struct golden_case c;
    kt_executor *executors[EXECUTORS];
    kt_generator *generators[GENERATORS];
    kt_batch *batches[BATCHES];
    struct expectation steps[EXECUTORS];
    uint64_t seed, drawn;
};

static uint32_t draw(struct world *w, uint32_t below)
{
    uint32_t words[4];
    kt_philox(w->seed, 0, w->drawn++, words);
    return words[0] % below;
}

static void forget_step(struct world *w, uint32_t e)
{
    free(w->steps[e].gradients);
    w->steps[e] = (struct expectation){.batch = -1};
}

static void fill_batch(struct world *w, uint32_t b)
{
    int32_t ids[40];
    kt_batch_clear(w->batches[b]);
    for (uint32_t s = 0, n = 1 + draw(w, 3); s < n; s++) {
        size_t length = 2 + draw(w, 38);
        for (size_t i = 0; i < length; i++)
            ids[i] = (int32_t)draw(w, VOCAB);
        ck_assert_ok(w->c.ctx, kt_batch_add(w->batches[b], ids, ids, length));
    }
    for (uint32_t e = 0; e < EXECUTORS; e++)
        if (w->steps[e].batch == (int)b)
            forget_step(w, e);
}

/** The gradients alone; those of the adapter are cleared. */
static float *oracle(struct world *w, uint32_t b)
{
    struct golden_case c = w->c;
    c.batch = w->batches[b];
    return alone(&c, KT_COMPUTE_F32);
}

static void random_forward(struct world *w)
{
    uint32_t e = draw(w, EXECUTORS), b = draw(w, BATCHES);
    int32_t mode = (int32_t)draw(w, 2);
    forget_step(w, e);
    float *want = mode == KT_FORWARD_TRAIN ? oracle(w, b) : NULL;
    ck_assert_ok(w->c.ctx, kt_executor_forward(w->executors[e], w->batches[b], mode, NULL));
    if (want)
        w->steps[e] = (struct expectation){(int)b, want};
}

static void random_backward(struct world *w)
{
    uint32_t e = draw(w, EXECUTORS);
    if (w->steps[e].batch < 0) {
        ck_assert_int_eq(kt_executor_backward(w->executors[e], NULL), KT_ERROR_STATE);
        return;
    }
    kt_lora_zero_grad(w->c.lora);
    ck_assert_ok(w->c.ctx, kt_executor_backward(w->executors[e], NULL));
    expect_gradients(&w->c, w->steps[e].gradients);
    w->steps[e].gradients = NULL;
    forget_step(w, e);
}

static void random_generation(struct world *w)
{
    uint32_t i = draw(w, GENERATORS);
    size_t length = 1 + draw(w, 60);
    int32_t ids[60], token;
    kt_generator *fresh;
    for (size_t t = 0; t < length; t++)
        ids[t] = (int32_t)(t < length / 2 ? t % VOCAB : draw(w, VOCAB));
    kt_executor *executor = w->executors[i % EXECUTORS];
    ck_assert_ok(w->c.ctx, kt_generator_create(executor, NULL, &fresh));
    float *got = logits_after(&w->c, w->generators[i], ids, length);
    float *want = logits_after(&w->c, fresh, ids, length);
    int64_t vocab = w->c.model->config.vocab_size;
    double *wide = test_widen(vocab, want);
    ck_assert_double_le(test_error(vocab, got, wide), 1e-5);
    ck_assert_ok(w->c.ctx, kt_generator_next(w->generators[i], &token));
    kt_generator_free(fresh);
    free(wide);
    free(got);
    free(want);
}

/** Steps that are waiting for their backward were made with other values, but keep their meaning:
 * what is left of them must not be compared. */
static void random_change(struct world *w)
{
    kt_lora_tensor t = {.size = sizeof t};
    size_t index = draw(w, (uint32_t)kt_lora_num_tensors(w->c.lora));
    ck_assert_ok(w->c.ctx, kt_lora_get_tensor(w->c.lora, index, &t));
    t.data[draw(w, (uint32_t)(t.rows * t.cols))] += 0.01f;
    for (uint32_t e = 0; e < EXECUTORS; e++)
        if (w->steps[e].batch >= 0) {
            kt_executor_reserve(w->executors[e], 8);
            forget_step(w, e);
        }
}

static void random_plan(struct world *w)
{
    size_t tokens = 1 + draw(w, 3000);
    kt_plan_free(golden_plan(&w->c, w->executors[draw(w, EXECUTORS)], tokens,
                             1 + draw(w, (uint32_t)tokens), KT_FORWARD_TRAIN));
}

static void random_reserve(struct world *w)
{
    uint32_t e = draw(w, EXECUTORS);
    ck_assert_ok(w->c.ctx, kt_executor_reserve(w->executors[e], 1 + draw(w, 200)));
    forget_step(w, e);
}

static void random_replacement(struct world *w)
{
    uint32_t e = draw(w, EXECUTORS), g = draw(w, GENERATORS);
    kt_executor_free(w->executors[e]);
    w->executors[e] = golden_executor(&w->c, w->c.lora, KT_COMPUTE_F32, 7);
    forget_step(w, e);
    kt_generator_free(w->generators[g]);
    ck_assert_ok(w->c.ctx, kt_generator_create(w->executors[g], NULL, &w->generators[g]));
}

static int cancel_at;

static int cancel(void *user)
{
    (void)user;
    return --cancel_at == 0;
}

static void random_cancellation(struct world *w)
{
    uint32_t e = draw(w, EXECUTORS), b = draw(w, BATCHES);
    cancel_at = 1 + (int)draw(w, 4);
    w->c.ctx->options.cancel = cancel;
    ck_assert_int_eq(kt_executor_forward(w->executors[e], w->batches[b], KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_CANCELLED);
    w->c.ctx->options.cancel = NULL;
    forget_step(w, e);
}

static void random_shortage(struct world *w)
{
    uint32_t e = draw(w, EXECUTORS), b = draw(w, BATCHES);
    w->c.ctx->options.memory_limit = kt_context_memory_used(w->c.ctx) + 1 + draw(w, 1 << 20);
    forget_step(w, e);
    kt_status status = kt_executor_forward(w->executors[e], w->batches[b], KT_FORWARD_TRAIN, NULL);
    ck_assert(status == KT_OK || status == KT_ERROR_OUT_OF_MEMORY);
    w->c.ctx->options.memory_limit = 0;
    if (status == KT_OK)
        kt_executor_reserve(w->executors[e], 8);
}

static void random_filling(struct world *w)
{
    fill_batch(w, draw(w, BATCHES));
}

START_TEST(random_calls_give_what_each_gives_alone)
{
    static void (*const calls[])(struct world *) = {
        random_forward,     random_forward, random_backward,     random_backward,
        random_generation,  random_change,  random_plan,         random_reserve,
        random_replacement, random_filling, random_cancellation, random_shortage};
    struct world w = {.c = golden_open(_i ? "qwen2moe" : "v3", 2, KT_COMPUTE_F32)};
    const char *given = getenv("KT_TEST_SEED"), *seconds = getenv("KT_TEST_SECONDS");
    time_t end = time(NULL) + (seconds ? atoi(seconds) : 4);
    w.seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    printf("KT_TEST_SEED=%llu\n", (unsigned long long)w.seed);
    fflush(stdout);
    for (uint32_t e = 0; e < EXECUTORS; e++) {
        w.executors[e] = golden_executor(&w.c, w.c.lora, KT_COMPUTE_F32, 7);
        w.steps[e].batch = -1;
    }
    for (uint32_t b = 0; b < BATCHES; b++) {
        ck_assert_ok(w.c.ctx, kt_batch_create(w.c.ctx, &w.batches[b]));
        fill_batch(&w, b);
    }
    for (uint32_t g = 0; g < GENERATORS; g++)
        ck_assert_ok(w.c.ctx, kt_generator_create(w.executors[g], NULL, &w.generators[g]));
    while (time(NULL) < end)
        calls[draw(&w, sizeof calls / sizeof *calls)](&w);
    for (uint32_t e = 0; e < EXECUTORS; e++) {
        forget_step(&w, e);
        kt_executor_free(w.executors[e]);
    }
    for (uint32_t g = 0; g < GENERATORS; g++)
        kt_generator_free(w.generators[g]);
    for (uint32_t b = 0; b < BATCHES; b++)
        kt_batch_free(w.batches[b]);
    golden_close(&w.c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("order", .timeout = 120),
        LOOP(a_plan_between_forward_and_backward_changes_nothing, 2),
        LOOP(a_generator_between_forward_and_backward_changes_nothing, 2),
        TEST(a_generator_without_memory_takes_none_from_a_step),
        LOOP(a_prompt_reuses_no_row_of_another_adapter, CHANGES),
        TEST(a_generator_that_was_reset_is_as_new),
        LOOP(memory_never_runs_out_in_the_middle, GOLDEN_CASES),
        LOOP(log_probabilities_do_not_depend_on_mode_or_adapter, GOLDEN_BF16_CASES),
        GROUP("random order", .timeout = 3600 * 9),
        LOOP(random_calls_give_what_each_gives_alone, 2),
    };
    return RUN_TESTS("order", tests);
}
