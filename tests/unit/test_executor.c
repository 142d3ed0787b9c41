/* SPDX-License-Identifier: Apache-2.0 */
/* The executor against numbers of transformers and PEFT (tests/reference), and against itself. */
#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

/* A case through an experts backend, all of them in turn. */
static struct golden_case open_in_turn(int turn, kt_compute compute)
{
    return golden_open_on(golden_cases[turn / GOLDEN_BACKENDS],
                          golden_backends[turn % GOLDEN_BACKENDS], 2, compute);
}

START_TEST(logits_are_those_of_transformers)
{
    struct golden_case c = open_in_turn(_i, KT_COMPUTE_F32);
    float *logits = golden_logits(&c, c.executor);
    ck_assert_double_le(golden_error(&c, "logits", logits), 1e-5);
    free(logits);
    kt_executor *base =
        golden_executor_on(&c, golden_backends[_i % GOLDEN_BACKENDS], NULL, KT_COMPUTE_F32, 0);
    logits = golden_logits(&c, base);
    ck_assert_double_le(golden_error(&c, "logits_base", logits), 1e-5);
    free(logits);
    kt_executor_free(base);
    golden_close(&c);
}
END_TEST

START_TEST(loss_and_gradients_are_those_of_transformers)
{
    struct golden_case c = open_in_turn(_i, KT_COMPUTE_F32);
    double want = golden_number(&c, "loss", 0), loss = golden_step(&c, c.executor);
    ck_assert_double_le(fabs(loss - want), 1e-5 * want);
    golden_check_gradients(&c, NULL, 1e-4);
    golden_close(&c);
}
END_TEST

START_TEST(ten_steps_are_those_of_torch)
{
    struct golden_case c = open_in_turn(_i, KT_COMPUTE_F32);
    kt_optimizer_options options;
    kt_optimizer *optimizer;
    kt_optimizer_options_init(&options, sizeof options);
    options.weight_decay = 0.01f;
    ck_assert_ok(c.ctx, kt_optimizer_create(c.lora, &options, &optimizer));
    for (int step = 0; step < 10; step++) {
        double norm, loss = golden_step(&c, c.executor);
        ck_assert_ok(c.ctx, kt_optimizer_step(optimizer, 1e-3, &norm));
        double want = golden_number(&c, "losses", step);
        ck_assert_double_le(fabs(loss - want), 1e-4 * want);
        want = golden_number(&c, "grad_norms", step);
        ck_assert_double_le(fabs(norm - want), 1e-3 * want);
    }
    for (size_t i = 0; i < kt_lora_num_tensors(c.lora); i++) {
        char name[512];
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_ok(c.ctx, kt_lora_get_tensor(c.lora, i, &t));
        snprintf(name, sizeof name, "step10.%s", t.name);
        ck_assert_double_le(golden_error(&c, name, t.data), 1e-3);
    }
    kt_optimizer_free(optimizer);
    golden_close(&c);
}
END_TEST

START_TEST(bf16_is_as_good_as_torchs)
{
    struct golden_case c =
        golden_open_on(golden_bf16_cases[_i / GOLDEN_BACKENDS],
                       golden_backends[_i % GOLDEN_BACKENDS], 2, KT_COMPUTE_BF16);
    float *logits = golden_logits(&c, c.executor);
    ck_assert_double_le(golden_error(&c, "logits", logits),
                        2 * golden_number(&c, "bf16_error.logits", 0));
    ck_assert_double_le(golden_error(&c, "logits", logits), 2e-2);
    free(logits);
    float loss = (float)golden_step(&c, c.executor);
    ck_assert_double_le(golden_error(&c, "loss", &loss),
                        2 * golden_number(&c, "bf16_error.loss", 0));
    golden_check_gradients(&c, "bf16_error", 2);
    golden_close(&c);
}
END_TEST

/* An adapter without LoRA on experts, because "amx" leaves those to "llamafile". */
START_TEST(experts_backends_give_the_same_gradients)
{
    static const char *const experts[] = {"reference", "amx-emulated"};
    struct golden_case c = golden_open("v3bf16", 2, KT_COMPUTE_BF16);
    kt_lora_options options;
    float *gradients[2];
    double losses[2];
    kt_executor_free(c.executor);
    kt_lora_free(c.lora);
    kt_lora_options_init(&options, sizeof options);
    ck_assert_ok(c.ctx, kt_lora_create(c.model, &options, &c.lora));
    for (size_t i = 0; i < kt_lora_num_tensors(c.lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_ok(c.ctx, kt_lora_get_tensor(c.lora, i, &t));
        test_fill(i, t.rows * t.cols, t.data);
        for (int64_t j = 0; j < t.rows * t.cols; j++)
            t.data[j] *= 0.1f;
    }
    for (int i = 0; i < 2; i++) {
        c.executor = golden_executor_on(&c, experts[i], c.lora, KT_COMPUTE_BF16, 7);
        kt_lora_zero_grad(c.lora);
        losses[i] = golden_step(&c, c.executor);
        gradients[i] = golden_gradients(c.lora);
        if (i == 0)
            kt_executor_free(c.executor);
    }
    double *want = test_widen((int64_t)kt_lora_num_parameters(c.lora), gradients[0]);
    double error = test_error((int64_t)kt_lora_num_parameters(c.lora), gradients[1], want);
    ck_assert_double_gt(error, 0); /* two backends, not one */
    ck_assert_double_le(error, 2e-2);
    ck_assert_double_le(fabs(losses[1] / losses[0] - 1), 2e-3);
    free(want), free(gradients[0]), free(gradients[1]);
    golden_close(&c);
}
END_TEST

/** -1 / (number of targets) for each target: the gradient of the token mean. */
static float *mean_gradient(const kt_batch *batch, size_t num_targets)
{
    size_t tokens = kt_batch_num_tokens(batch);
    float *d = malloc(tokens * sizeof *d);
    for (size_t t = 0; t < tokens; t++)
        d[t] = -1.0f / (float)num_targets;
    return d;
}

START_TEST(packed_is_the_sum_of_separate_sequences)
{
    struct golden_case c = golden_open(golden_cases[_i], 2, KT_COMPUTE_F32);
    kt_loss packed = {.size = sizeof packed}, loss = {.size = sizeof loss};
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, &packed));
    ck_assert_ok(c.ctx, kt_executor_backward(c.executor, NULL));
    float *want = golden_gradients(c.lora);
    kt_lora_zero_grad(c.lora);
    double sum = 0;
    for (size_t s = 0; s < kt_batch_num_sequences(c.batch); s++) {
        const int32_t *cu = kt_batch_cu_seqlens(c.batch);
        kt_batch *one;
        ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &one));
        ck_assert_ok(c.ctx,
                     kt_batch_add(one, kt_batch_input_ids(c.batch) + cu[s],
                                  kt_batch_labels(c.batch) + cu[s], (size_t)(cu[s + 1] - cu[s])));
        golden_add_padding(&c, one, (int64_t)s);
        float *d = mean_gradient(one, packed.num_targets);
        ck_assert_ok(c.ctx, kt_executor_forward(c.executor, one, KT_FORWARD_CUSTOM, &loss));
        ck_assert_ok(c.ctx, kt_executor_backward(c.executor, d));
        sum += loss.loss_sum;
        free(d);
        kt_batch_free(one);
    }
    ck_assert_double_le(fabs(sum - packed.loss_sum), 1e-6 * packed.loss_sum);
    int64_t n = (int64_t)kt_lora_num_parameters(c.lora);
    float *got = golden_gradients(c.lora);
    double *wide = test_widen(n, want);
    ck_assert_double_le(test_error(n, got, wide), 1e-5);
    free(wide);
    free(got);
    free(want);
    golden_close(&c);
}
END_TEST

/** Gradients of one step from cleared ones. */
static float *fresh_gradients(const struct golden_case *c, kt_executor *executor)
{
    kt_lora_zero_grad(c->lora);
    golden_step(c, executor);
    return golden_gradients(c->lora);
}

START_TEST(repetition_and_recomputation_give_the_same_bits)
{
    struct golden_case c = golden_open("v3bf16", 2, _i ? KT_COMPUTE_BF16 : KT_COMPUTE_F32);
    size_t bytes = kt_lora_num_parameters(c.lora) * sizeof(float);
    float *first = fresh_gradients(&c, c.executor);
    float *logits = golden_logits(&c, c.executor); /* leaves other activations behind */
    float *again = fresh_gradients(&c, c.executor);
    ck_assert_mem_eq(first, again, bytes);
    free(again);

    kt_loss loss = {.size = sizeof loss};
    float *d = mean_gradient(c.batch, kt_batch_num_targets(c.batch));
    kt_lora_zero_grad(c.lora);
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, c.batch, KT_FORWARD_CUSTOM, &loss));
    ck_assert_ok(c.ctx, kt_executor_backward(c.executor, d));
    again = golden_gradients(c.lora);
    ck_assert_mem_eq(first, again, bytes);
    free(again);

    kt_executor *other = golden_executor(&c, c.lora, _i ? KT_COMPUTE_BF16 : KT_COMPUTE_F32, 7);
    again = fresh_gradients(&c, other);
    ck_assert_mem_eq(first, again, bytes);
    kt_executor_free(other);
    free(again);
    free(d);
    free(logits);
    free(first);
    golden_close(&c);
}
END_TEST

START_TEST(threads_and_chunks_change_rounding_only)
{
    struct golden_case one = golden_open(golden_cases[_i], 1, KT_COMPUTE_F32);
    struct golden_case two = golden_open(golden_cases[_i], 2, KT_COMPUTE_F32);
    kt_executor *whole = golden_executor(&two, two.lora, KT_COMPUTE_F32, 0);
    double loss = golden_step(&one, one.executor);
    ck_assert_double_le(fabs(loss - golden_step(&two, two.executor)), 1e-6 * loss);
    float *want = golden_gradients(one.lora), *got = golden_gradients(two.lora);
    int64_t n = (int64_t)kt_lora_num_parameters(one.lora);
    double *wide = test_widen(n, want);
    ck_assert_double_le(test_error(n, got, wide), 1e-5);
    float *unchunked = fresh_gradients(&two, whole);
    ck_assert_double_le(test_error(n, unchunked, wide), 1e-5);
    free(unchunked);
    free(wide);
    free(want);
    free(got);
    kt_executor_free(whole);
    golden_close(&one);
    golden_close(&two);
}
END_TEST

START_TEST(what_is_kept_and_what_is_recomputed_have_the_same_bits)
{
    struct golden_case c = golden_open("v3bf16", 2, _i ? KT_COMPUTE_BF16 : KT_COMPUTE_F32);
    size_t bytes = kt_lora_num_parameters(c.lora) * sizeof(float);
    float *kept = fresh_gradients(&c, c.executor);
    ck_assert_int_eq(c.executor->step.first_kept, c.executor->step.lowest);
    c.ctx->options.memory_limit = UINT64_MAX; /* under a limit nothing is kept */
    float *recomputed = fresh_gradients(&c, c.executor);
    ck_assert_int_eq(c.executor->step.first_kept, c.model->config.num_hidden_layers);
    ck_assert_mem_eq(kept, recomputed, bytes);
    free(recomputed);
    free(kept);
    golden_close(&c);
}
END_TEST

/** Matrices with a gradient now; those among them whose gradient is all zeros. */
static int count_marked(const kt_lora *lora, int *zeros)
{
    int marked = 0;
    *zeros = 0;
    for (size_t i = 0; i < kt_lora_num_tensors(lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_int_eq(kt_lora_get_tensor(lora, i, &t), KT_OK);
        int64_t k = 0, n = t.rows * t.cols;
        while (k < n && t.grad[k] == 0)
            k++;
        marked += t.has_grad;
        *zeros += t.has_grad && k == n;
    }
    return marked;
}

START_TEST(padding_marks_experts_and_changes_nothing_else)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    int64_t n = (int64_t)kt_lora_num_parameters(c.lora);
    const int32_t few[] = {5, 7, 11};
    int zeros, without; /* the last token has no target: what it alone chose has zeros too */
    kt_batch_clear(c.batch);
    ck_assert_ok(c.ctx, kt_batch_add(c.batch, few, few, 3));
    double loss = golden_step(&c, c.executor);
    float *want = golden_gradients(c.lora);
    double *wide = test_widen(n, want);
    int marked = count_marked(c.lora, &without);
    ck_assert_int_lt(marked, (int)kt_lora_num_tensors(c.lora));

    for (int32_t id = 0; id < 60; id++)
        ck_assert_ok(c.ctx, kt_batch_add_padding(c.batch, id, 2));
    kt_lora_zero_grad(c.lora);
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, NULL));
    ck_assert_int_eq(count_marked(c.lora, &zeros), 0); /* a forward may have no backward */
    ck_assert_double_le(fabs(golden_step(&c, c.executor) - loss), 1e-6 * loss);
    float *got = golden_gradients(c.lora);
    ck_assert_double_le(test_error(n, got, wide), 1e-6);
    ck_assert_int_eq(count_marked(c.lora, &zeros) - marked, zeros - without);
    ck_assert_int_gt(zeros, without);

    ck_assert_ok(c.ctx, kt_batch_add_padding(c.batch, 1 << 30, 1));
    ck_assert_int_eq(kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_INVALID_ARGUMENT);
    free(got);
    free(wide);
    free(want);
    golden_close(&c);
}
END_TEST

START_TEST(log_probabilities_add_up_to_the_loss)
{
    struct golden_case c = golden_open("v2", 1, KT_COMPUTE_F32);
    kt_loss loss = {.size = sizeof loss};
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, c.batch, KT_FORWARD_EVAL, &loss));
    const float *logprobs = kt_executor_logprobs(c.executor);
    const int32_t *labels = kt_batch_labels(c.batch), *cu = kt_batch_cu_seqlens(c.batch);
    double sum = 0;
    for (size_t s = 0; s < kt_batch_num_sequences(c.batch); s++) {
        for (int32_t t = cu[s]; t < cu[s + 1]; t++) {
            if (t == cu[s] || labels[t] == KT_IGNORE_LABEL)
                ck_assert_float_eq(logprobs[t], 0);
            else
                ck_assert_float_lt(logprobs[t], 0);
            sum -= logprobs[t];
        }
    }
    ck_assert_double_le(fabs(sum - loss.loss_sum), 1e-9 * sum);
    ck_assert_double_le(fabs(sum / (double)loss.num_targets - loss.loss), 1e-9 * loss.loss);
    ck_assert_int_eq(kt_executor_backward(c.executor, NULL), KT_ERROR_STATE);
    golden_close(&c);
}
END_TEST

static double train_loss(const struct golden_case *c)
{
    kt_loss loss = {.size = sizeof loss};
    ck_assert_ok(c->ctx, kt_executor_forward(c->executor, c->batch, KT_FORWARD_TRAIN, &loss));
    return loss.loss;
}

/** Adds `amount` times a gradient to every matrix. */
static void move(const struct golden_case *c, const float *gradient, float amount)
{
    for (size_t i = 0; i < kt_lora_num_tensors(c->lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_ok(c->ctx, kt_lora_get_tensor(c->lora, i, &t));
        for (int64_t j = 0; j < t.rows * t.cols; j++)
            t.data[j] += amount * gradient[j];
        gradient += t.rows * t.cols;
    }
}

/** The loss changes along the gradient as the gradient says. */
static void check_along_gradient(const struct golden_case *c)
{
    kt_lora_zero_grad(c->lora);
    golden_step(c, c->executor);
    float *gradient = golden_gradients(c->lora);
    double norm = 0;
    for (uint64_t i = 0; i < kt_lora_num_parameters(c->lora); i++)
        norm += (double)gradient[i] * gradient[i];
    float step = (float)(3e-4 / sqrt(norm));
    move(c, gradient, step);
    double above = train_loss(c);
    move(c, gradient, -2 * step);
    double below = train_loss(c);
    move(c, gradient, step);
    ck_assert_double_gt(norm, 0);
    ck_assert_double_le(fabs((above - below) / (2 * (double)step) - norm), 2e-3 * norm);
    free(gradient);
}

START_TEST(dropout_is_the_same_in_recomputation)
{
    struct golden_case c = golden_open("v2", 2, KT_COMPUTE_F32);
    double without = train_loss(&c);
    for (int32_t i = 0; i < c.model->num_linears; i++)
        c.lora->slots[i].dropout = 0.3f;
    double with = train_loss(&c);
    ck_assert_double_ne(with, without);
    ck_assert_double_eq(with, train_loss(&c));
    kt_executor_set_step(c.executor, 1);
    ck_assert_double_ne(with, train_loss(&c));
    kt_executor_set_step(c.executor, 0);

    check_along_gradient(&c);
    kt_loss loss = {.size = sizeof loss};
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, c.batch, KT_FORWARD_EVAL, &loss));
    ck_assert_double_le(fabs(loss.loss - without), 1e-5);
    golden_close(&c);
}
END_TEST

/** lm_head's gradients belong to backward, where the logits are computed again, chunk by chunk. */
START_TEST(lm_head_can_have_lora)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_lora_options options;
    kt_executor_free(c.executor);
    kt_lora_free(c.lora);
    kt_lora_options_init(&options, sizeof options);
    options.target = _i ? "lm_head" : "lm_head,kv_b_proj";
    options.dropout = 0.2f;
    ck_assert_ok(c.ctx, kt_lora_create(c.model, &options, &c.lora));
    for (size_t i = 0; i < kt_lora_num_tensors(c.lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_ok(c.ctx, kt_lora_get_tensor(c.lora, i, &t));
        test_fill(i, t.rows * t.cols, t.data);
        for (int64_t j = 0; j < t.rows * t.cols; j++)
            t.data[j] *= 0.1f;
    }
    c.executor = golden_executor(&c, c.lora, KT_COMPUTE_F32, 7);
    check_along_gradient(&c);
    kt_lora_zero_grad(c.lora);
    train_loss(&c);
    float *gradients = golden_gradients(c.lora);
    for (uint64_t i = 0; i < kt_lora_num_parameters(c.lora); i++)
        ck_assert_float_eq(gradients[i], 0);
    free(gradients);
    golden_close(&c);
}
END_TEST

/** Backward ends above the lowest layer with LoRA. A pair with scale 0 changes nothing below and is
 * trained all the same, so the rest must get the same gradients as if it were not there. */
START_TEST(layers_without_lora_are_not_gone_through)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    const char *kept = _i ? "layers.2.mlp" : "layers.2.";
    for (int32_t i = 0; i < c.model->num_linears; i++)
        if (!strstr(c.model->linears[i].name, kept))
            c.lora->slots[i].scale = 0;
    float *want = fresh_gradients(&c, c.executor);
    kt_lora_zero_grad(c.lora);
    for (int32_t i = 0; i < c.model->num_linears; i++)
        if (!strstr(c.model->linears[i].name, kept))
            c.lora->slots[i].a = NULL;
    golden_step(&c, c.executor);
    size_t compared = 0, at = 0;
    for (size_t i = 0; i < kt_lora_num_tensors(c.lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_ok(c.ctx, kt_lora_get_tensor(c.lora, i, &t));
        size_t n = (size_t)(t.rows * t.cols);
        if (strstr(t.name, kept)) {
            ck_assert_mem_eq(t.grad, want + at, n * sizeof(float));
            compared++;
        } else {
            ck_assert_int_eq(t.has_grad, 0);
        }
        at += n;
    }
    ck_assert_uint_gt(compared, 4);
    free(want);
    golden_close(&c);
}
END_TEST

/* Three layers with experts; the rule gives the first and the last the same backend. */
START_TEST(layers_share_a_backend_and_a_plan_counts_all)
{
    struct golden_case c = {.ctx = test_context(1, 0)};
    static const int32_t ids[] = {2, 3, 5, 7, 11, 13};
    enum { TOKENS = sizeof ids / sizeof *ids };
    kt_lora_options lora;
    kt_executor_options options;
    kt_rule *rule;
    kt_lora_options_init(&lora, sizeof lora);
    kt_executor_options_init(&options, sizeof options);
    ck_assert_ok(c.ctx, kt_model_load(c.ctx, KT_REFERENCE_DIR "/gguf/mixtral", NULL, &c.model));
    ck_assert_ok(c.ctx, kt_lora_create(c.model, &lora, &c.lora));
    ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &c.batch));
    ck_assert_ok(c.ctx, kt_batch_add(c.batch, ids, ids, TOKENS));
    ck_assert_ok(c.ctx, kt_rule_create(c.ctx, &rule));
    ck_assert_ok(c.ctx, kt_rule_add(rule, "layers\\.[02]\\.", NULL, "llamafile"));
    ck_assert_ok(c.ctx, kt_rule_add(rule, "layers\\.1\\.", NULL, "auto"));
    options.rule = rule;
    ck_assert_ok(c.ctx, kt_executor_create(c.model, c.lora, &options, &c.executor));
    ck_assert_ptr_eq(c.executor->experts[2], c.executor->experts[0]);
    ck_assert_ptr_ne(c.executor->experts[1], c.executor->experts[0]);
    kt_device_plan plan = golden_plan_total(&c, c.executor, TOKENS, TOKENS);
    uint64_t before = kt_context_memory_used(c.ctx);
    golden_step(&c, c.executor);
    ck_assert_uint_le(kt_context_memory_used(c.ctx) - before,
                      plan.total_allocated - plan.adapter + (1 << 10)); /* headers */
    kt_rule_free(rule);
    golden_close(&c);
}
END_TEST

START_TEST(reserved_memory_serves_all_smaller_steps)
{
    struct golden_case c = golden_open("v3", 1, KT_COMPUTE_F32);
    kt_batch *batch;
    int32_t ids[60];
    for (int i = 0; i < 60; i++)
        ids[i] = i + 2;
    ck_assert_int_eq(kt_executor_reserve(c.executor, 0), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_ok(c.ctx, kt_executor_reserve(c.executor, 60));
    const void *inputs = c.executor->inputs[0].memory,
               *workspace = c.executor->workspace.activations[0].memory;
    ck_assert_ptr_nonnull(inputs);
    ck_assert_ptr_nonnull(workspace);
    ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &batch));
    for (int i = 0; i < 3; i++) {
        ck_assert_ok(c.ctx, kt_batch_add(batch, ids, ids, 20));
        ck_assert_ok(c.ctx, kt_executor_forward(c.executor, batch, KT_FORWARD_TRAIN, NULL));
        ck_assert_ok(c.ctx, kt_executor_backward(c.executor, NULL));
        ck_assert_ptr_eq(c.executor->inputs[0].memory, inputs);
        ck_assert_ptr_eq(c.executor->workspace.activations[0].memory, workspace);
    }
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, batch, KT_FORWARD_TRAIN, NULL));
    ck_assert_ok(c.ctx, kt_executor_reserve(c.executor, 100));
    ck_assert_int_eq(kt_executor_backward(c.executor, NULL), KT_ERROR_STATE);
    kt_batch_free(batch);
    golden_close(&c);
}
END_TEST

START_TEST(memory_runs_out_before_anything_is_computed)
{
    struct golden_case c = golden_open("v3", 1, KT_COMPUTE_F32);
    c.ctx->options.memory_limit = kt_context_memory_used(c.ctx) + (1 << 16);
    ck_assert_int_eq(kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_OUT_OF_MEMORY);
    ck_assert_ptr_nonnull(strstr(kt_last_error(c.ctx), "step"));
    ck_assert_int_eq(kt_executor_backward(c.executor, NULL), KT_ERROR_STATE);
    c.ctx->options.memory_limit = 0;
    double want = golden_number(&c, "loss", 0);
    ck_assert_double_le(fabs(golden_step(&c, c.executor) - want), 1e-5 * want);
    golden_close(&c);
}
END_TEST

static int asked, stop_at;

static int32_t cancel(void *user)
{
    (void)user;
    return ++asked == stop_at;
}

static void count_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)user;
    ck_assert(strcmp(what, "forward") == 0 || strcmp(what, "backward") == 0);
    ck_assert_uint_le(done, total);
    ck_assert_uint_eq(total, 3);
}

START_TEST(cancellation_leaves_usable_handles_and_no_gradient)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    float *want = fresh_gradients(&c, c.executor);
    size_t bytes = kt_lora_num_parameters(c.lora) * sizeof *want;
    c.ctx->options.cancel = cancel;
    c.ctx->options.progress = count_progress;
    for (stop_at = 1;; stop_at++) {
        asked = 0;
        kt_lora_zero_grad(c.lora);
        kt_status status = kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, NULL);
        if (status == KT_OK)
            status = kt_executor_backward(c.executor, NULL);
        if (status == KT_OK)
            break;
        ck_assert_int_eq(status, KT_ERROR_CANCELLED);
        ck_assert_int_eq(kt_executor_backward(c.executor, NULL), KT_ERROR_STATE);
        float *got = golden_gradients(c.lora);
        for (size_t i = 0; i < bytes / sizeof *got; i++)
            ck_assert_float_eq(got[i], 0);
        free(got);
    }
    ck_assert_int_gt(stop_at, 8);
    float *got = golden_gradients(c.lora);
    ck_assert_mem_eq(got, want, bytes);
    free(got);
    free(want);
    golden_close(&c);
}
END_TEST

START_TEST(misuse_is_refused_with_a_sentence)
{
    struct golden_case c = golden_open("v2", 1, KT_COMPUTE_F32);
    kt_executor *base = golden_executor(&c, NULL, KT_COMPUTE_F32, 0), *other;
    kt_executor_options options;
    int32_t ids[] = {3, 1 << 20};
    kt_batch *bad;
    ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &bad));
    ck_assert_int_eq(kt_executor_forward(base, bad, KT_FORWARD_EVAL, NULL),
                     KT_ERROR_INVALID_ARGUMENT);
    ck_assert_ok(c.ctx, kt_batch_add(bad, ids, NULL, 2));
    ck_assert_int_eq(kt_executor_forward(base, bad, KT_FORWARD_EVAL, NULL),
                     KT_ERROR_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(kt_last_error(c.ctx), "token 1 of the batch has id 1048576"));
    kt_batch_clear(bad);
    ck_assert_ok(c.ctx, kt_batch_add(bad, ids, NULL, 1));
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, bad, KT_FORWARD_EVAL, NULL));
    ck_assert_int_eq(kt_executor_forward(c.executor, bad, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_INVALID_ARGUMENT);
    ck_assert_int_eq(kt_executor_backward(base, NULL), KT_ERROR_STATE);
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, c.batch, KT_FORWARD_CUSTOM, NULL));
    ck_assert_int_eq(kt_executor_backward(c.executor, NULL), KT_ERROR_INVALID_ARGUMENT);
    kt_loss unsized = {.size = 0};
    ck_assert_int_eq(kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, &unsized),
                     KT_ERROR_INVALID_ARGUMENT);
    ck_assert_int_eq(kt_executor_forward(c.executor, c.batch, 9, NULL), KT_ERROR_INVALID_ARGUMENT);
    kt_executor_options_init(&options, sizeof options);
    options.experts_backend = "abacus";
    ck_assert_int_eq(kt_executor_create(c.model, c.lora, &options, &other), KT_ERROR_NOT_FOUND);
    options.experts_backend = "reference";
    ck_assert_ok(c.ctx, kt_executor_create(c.model, c.lora, &options, &other));
    ck_assert_ptr_null(kt_executor_experts_backend(other, -1));
    ck_assert_ptr_null(kt_executor_experts_backend(other, 0));
    ck_assert_str_eq(kt_executor_experts_backend(other, 1), "reference");
    ck_assert_ptr_null(kt_executor_experts_backend(other, 1 << 20));
    kt_executor_free(other);
    options.experts_backend = NULL;
    options.logits_chunk = -1;
    ck_assert_int_eq(kt_executor_create(c.model, c.lora, &options, &other),
                     KT_ERROR_INVALID_ARGUMENT);
    kt_batch_free(bad);
    kt_executor_free(base);
    golden_close(&c);
}
END_TEST

START_TEST(a_batch_that_changed_is_not_gone_back_through)
{
    struct golden_case c = golden_open("v2", 1, KT_COMPUTE_F32);
    int32_t ids[500] = {1, 2, 3};
    kt_batch *batch;
    ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &batch));
    ck_assert_ok(c.ctx, kt_batch_add(batch, ids, ids, 3));
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, batch, KT_FORWARD_TRAIN, NULL));
    kt_batch_clear(batch);
    ck_assert_ok(c.ctx, kt_batch_add(batch, ids, ids, 500));
    ck_assert_int_eq(kt_executor_backward(c.executor, NULL), KT_ERROR_STATE);
    ck_assert_ptr_nonnull(strstr(kt_last_error(c.ctx), "the batch was changed"));
    ck_assert_ok(c.ctx, kt_executor_forward(c.executor, batch, KT_FORWARD_TRAIN, NULL));
    ck_assert_ok(c.ctx, kt_executor_backward(c.executor, NULL));
    kt_batch_free(batch);
    golden_close(&c);
}
END_TEST

START_TEST(texts_and_arrays_must_be_given)
{
    struct golden_case c = golden_open("v2", 1, KT_COMPUTE_F32);
    kt_model *model;
    kt_lora *lora;
    kt_rule *rule;
    kt_tokenizer *tokenizer;
    kt_optimizer *optimizer;
    ck_assert_ok(c.ctx, kt_optimizer_create(c.lora, NULL, &optimizer));
    const kt_status refused[] = {kt_model_load(c.ctx, NULL, NULL, &model),
                                 kt_lora_load(c.model, NULL, &lora),
                                 kt_lora_save(c.lora, NULL),
                                 kt_rule_load(c.ctx, NULL, &rule),
                                 kt_tokenizer_load(c.ctx, NULL, &tokenizer),
                                 kt_optimizer_save(optimizer, NULL),
                                 kt_optimizer_load(optimizer, NULL),
                                 kt_batch_add(c.batch, NULL, NULL, 3)};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        ck_assert_int_eq(refused[i], KT_ERROR_INVALID_ARGUMENT);
    kt_optimizer_free(optimizer);
    golden_close(&c);
}
END_TEST

START_TEST(a_loss_that_is_not_finite_is_an_error)
{
    struct golden_case c = golden_open("v2", 1, KT_COMPUTE_F32);
    float *b = (float *)c.lora->slots[c.model->layers[1].o->index].b;
    b[0] = NAN;
    ck_assert_int_eq(kt_executor_forward(c.executor, c.batch, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_NUMERIC);
    ck_assert_ptr_nonnull(strstr(kt_last_error(c.ctx), "the loss is not finite"));
    ck_assert_int_eq(kt_executor_backward(c.executor, NULL), KT_ERROR_STATE);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("goldens", .timeout = 120),
        LOOP(logits_are_those_of_transformers, GOLDEN_CASES * GOLDEN_BACKENDS),
        LOOP(loss_and_gradients_are_those_of_transformers, GOLDEN_CASES * GOLDEN_BACKENDS),
        LOOP(ten_steps_are_those_of_torch, GOLDEN_CASES * GOLDEN_BACKENDS),
        LOOP(bf16_is_as_good_as_torchs, GOLDEN_BF16_CASES * GOLDEN_BACKENDS),
        TEST(experts_backends_give_the_same_gradients),
        GROUP("invariants", .timeout = 120),
        LOOP(packed_is_the_sum_of_separate_sequences, GOLDEN_CASES),
        LOOP(repetition_and_recomputation_give_the_same_bits, 2),
        LOOP(what_is_kept_and_what_is_recomputed_have_the_same_bits, 2),
        LOOP(threads_and_chunks_change_rounding_only, GOLDEN_CASES),
        TEST(padding_marks_experts_and_changes_nothing_else),
        TEST(log_probabilities_add_up_to_the_loss),
        TEST(dropout_is_the_same_in_recomputation),
        LOOP(lm_head_can_have_lora, 2),
        LOOP(layers_without_lora_are_not_gone_through, 2),
        GROUP("limits", .timeout = 120),
        TEST(layers_share_a_backend_and_a_plan_counts_all),
        TEST(reserved_memory_serves_all_smaller_steps),
        TEST(memory_runs_out_before_anything_is_computed),
        TEST(cancellation_leaves_usable_handles_and_no_gradient),
        TEST(misuse_is_refused_with_a_sentence),
        TEST(a_batch_that_changed_is_not_gone_back_through),
        TEST(texts_and_arrays_must_be_given),
        TEST(a_loss_that_is_not_finite_is_an_error),
    };
    return RUN_TESTS("executor", tests);
}
