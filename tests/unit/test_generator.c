/* SPDX-License-Identifier: Apache-2.0 */
/* Generation against the full forward and transformers' greedy tokens; sampling against its rules.
 */
#include "executor/sampling.h"
#include "golden_case.h"
#include "main.h"

static kt_generator *generator(const struct golden_case *c, int32_t chunk, int32_t max_length)
{
    kt_generator_options options;
    kt_generator *g;
    kt_generator_options_init(&options, sizeof options);
    options.temperature = 0;
    options.prefill_chunk = chunk;
    options.max_length = max_length;
    ck_assert_ok(c->ctx, kt_generator_create(c->executor, &options, &g));
    return g;
}

static int32_t vocab_of(const struct golden_case *c)
{
    kt_model_info info = {.size = sizeof info};
    ck_assert_ok(c->ctx, kt_model_get_info(c->model, &info));
    return info.vocab_size;
}

/** Logits of each position of a sequence by the full forward. */
static float *full_logits(const struct golden_case *c, const int32_t *ids, int64_t count)
{
    float *logits = malloc((size_t)count * (size_t)vocab_of(c) * sizeof *logits);
    kt_batch *batch;
    ck_assert_ok(c->ctx, kt_batch_create(c->ctx, &batch));
    ck_assert_ok(c->ctx, kt_batch_add(batch, ids, NULL, (size_t)count));
    ck_assert_ok(c->ctx, kt_executor_logits(c->executor, batch, logits));
    kt_batch_free(batch);
    return logits;
}

static double logits_error(const struct golden_case *c, const kt_generator *g, const float *full)
{
    int32_t vocab = vocab_of(c);
    double *want = test_widen(vocab, full);
    double error = test_error(vocab, kt_generator_logits(g), want);
    free(want);
    return error;
}

/** What the logits of generation are compared with: the full forward's, or where the cache keeps
 * keys that a full forward would rotate otherwise (dynamic scaling), those of transformers. */
static float *greedy_logits(const struct golden_case *c, const int32_t *ids, int64_t count,
                            int64_t prompt)
{
    float *logits = full_logits(c, ids, count);
    if (kt_checkpoint_find(c->numbers, "greedy_logits")) {
        const struct kt_tensor *t = golden_tensor(c, "greedy_logits");
        ck_assert_int_eq(golden_count(t), (count - prompt) * vocab_of(c));
        memcpy(logits + (prompt - 1) * vocab_of(c), t->data, t->bytes);
    }
    return logits;
}

START_TEST(greedy_tokens_are_those_of_transformers)
{
    struct golden_case c = golden_open_on(golden_cases[_i / GOLDEN_BACKENDS],
                                          golden_backends[_i % GOLDEN_BACKENDS], 2, KT_COMPUTE_F32);
    int64_t count, prompt = ((const int64_t *)golden_tensor(&c, "greedy_prompt_len")->data)[0];
    int32_t *want = golden_ints(&c, "greedy", &count), token;
    float *full = greedy_logits(&c, want, count, prompt);
    kt_generator *g = generator(&c, 0, 0);
    ck_assert_ok(c.ctx, kt_generator_prompt(g, want, (size_t)prompt));
    for (int64_t t = prompt; t < count; t++) {
        ck_assert_ok(c.ctx, kt_generator_next(g, &token));
        ck_assert_int_eq(token, want[t]);
        ck_assert_uint_eq(kt_generator_length(g), (size_t)t + 1);
        ck_assert_double_le(logits_error(&c, g, full + (t - 1) * vocab_of(&c)), 1e-5);
    }
    kt_generator_free(g);
    free(full);
    free(want);
    golden_close(&c);
}
END_TEST

/** Chunks of one token go through the absorbed form of attention but for the first, a whole prompt
 * through the expanded one. */
START_TEST(chunks_of_a_prompt_give_the_same_logits)
{
    struct golden_case c = golden_open(golden_cases[_i], 2, KT_COMPUTE_F32);
    const int32_t *ids = kt_batch_input_ids(c.batch) + kt_batch_cu_seqlens(c.batch)[1];
    size_t length = (size_t)(kt_batch_cu_seqlens(c.batch)[2] - kt_batch_cu_seqlens(c.batch)[1]);
    float *full = full_logits(&c, ids, (int64_t)length);
    const float *last = full + (length - 1) * (size_t)vocab_of(&c);
    for (int32_t chunk = 1; chunk <= (int32_t)length; chunk += 1 + chunk / 2) {
        kt_generator *g = generator(&c, chunk, 0);
        ck_assert_ok(c.ctx, kt_generator_prompt(g, ids, length));
        ck_assert_double_le(logits_error(&c, g, last), 1e-5);
        kt_generator_free(g);
    }
    free(full);
    golden_close(&c);
}
END_TEST

/** In "dynamic", prompts beyond 16 tokens change the frequencies of all rows. */
START_TEST(a_prompt_reuses_its_common_prefix)
{
    struct golden_case c = golden_open(_i ? "dynamic" : "v3", 2, KT_COMPUTE_F32);
    int32_t ids[20], token;
    memcpy(ids, kt_batch_input_ids(c.batch) + 13, sizeof ids);
    kt_generator *g = generator(&c, 4, 0);
    ck_assert_ok(c.ctx, kt_generator_prompt(g, ids, 12));
    for (int i = 0; i < 5; i++)
        ck_assert_ok(c.ctx, kt_generator_next(g, &token));
    const size_t lengths[] = {20, 20, 7, 15, 18, 12, 1};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        ids[6] = (int32_t)(10 + (i < 3 ? i : 3));
        float *full = full_logits(&c, ids, (int64_t)lengths[i]);
        ck_assert_ok(c.ctx, kt_generator_prompt(g, ids, lengths[i]));
        ck_assert_uint_eq(kt_generator_length(g), lengths[i]);
        ck_assert_double_le(logits_error(&c, g, full + (lengths[i] - 1) * (size_t)vocab_of(&c)),
                            1e-5);
        free(full);
    }
    kt_generator_free(g);
    golden_close(&c);
}
END_TEST

/** The cache outgrows its first 256 tokens, and the model its max_position_embeddings of 64. */
START_TEST(the_cache_grows)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    int32_t ids[300], token;
    for (int i = 0; i < 300; i++)
        ids[i] = 2 + i * 7 % 190;
    kt_generator *g = generator(&c, 0, 400);
    ck_assert_ok(c.ctx, kt_generator_prompt(g, ids, 250));
    for (int i = 0; i < 10; i++)
        ck_assert_ok(c.ctx, kt_generator_next(g, ids + 250 + i));
    ck_assert_ok(c.ctx, kt_generator_next(g, &token));
    float *full = full_logits(&c, ids, 260);
    ck_assert_double_le(logits_error(&c, g, full + 259 * vocab_of(&c)), 1e-5);
    free(full);
    kt_generator_free(g);
    golden_close(&c);
}
END_TEST

START_TEST(sampling_is_repeatable_by_seed)
{
    struct golden_case c = golden_open("v2", 1, KT_COMPUTE_F32);
    int32_t tokens[3][24], differ = 0;
    for (int run = 0; run < 3; run++) {
        kt_generator_options options;
        kt_generator *g;
        kt_generator_options_init(&options, sizeof options);
        options.temperature = 2;
        options.top_p = 1;
        options.seed = run < 2 ? 7 : 8;
        ck_assert_ok(c.ctx, kt_generator_create(c.executor, &options, &g));
        ck_assert_ok(c.ctx, kt_generator_prompt(g, kt_batch_input_ids(c.batch), 4));
        for (int i = 0; i < 24; i++)
            ck_assert_ok(c.ctx, kt_generator_next(g, &tokens[run][i]));
        kt_generator_free(g);
    }
    ck_assert_mem_eq(tokens[0], tokens[1], sizeof tokens[0]);
    for (int i = 0; i < 24; i++)
        differ += tokens[0][i] != tokens[2][i];
    ck_assert_int_gt(differ, 0);
    golden_close(&c);
}
END_TEST

START_TEST(misuse_is_refused_with_a_sentence)
{
    struct golden_case c = golden_open("v2", 1, KT_COMPUTE_F32);
    kt_generator *g = generator(&c, 0, 6), *other;
    int32_t ids[] = {5, 6, 7, 8, 9, 10, 11}, wrong[] = {5, -1}, token;
    ck_assert_int_eq(kt_generator_next(g, &token), KT_ERROR_STATE);
    ck_assert_ptr_null(kt_generator_logits(g));
    ck_assert_int_eq(kt_generator_prompt(g, ids, 0), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_int_eq(kt_generator_prompt(g, ids, 7), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_int_eq(kt_generator_prompt(g, wrong, 2), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(kt_last_error(c.ctx), "token 1 of the prompt has id -1"));
    ck_assert_ok(c.ctx, kt_generator_prompt(g, ids, 5));
    ck_assert_ok(c.ctx, kt_generator_next(g, &token));
    ck_assert_int_eq(kt_generator_next(g, &token), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_uint_eq(kt_generator_length(g), 6);
    kt_generator_free(g);

    kt_generator_options options;
    kt_generator_options_init(&options, sizeof options);
    options.top_p = 0;
    ck_assert_int_eq(kt_generator_create(c.executor, &options, &other), KT_ERROR_INVALID_ARGUMENT);
    options.top_p = 1;
    options.temperature = NAN;
    ck_assert_int_eq(kt_generator_create(c.executor, &options, &other), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(kt_last_error(c.ctx), "temperature"));
    golden_close(&c);
}
END_TEST

enum { VOCAB = 6 };

static const float scores[VOCAB] = {1.0f, 3.0f, -2.0f, 2.0f, 3.0f, 0.0f};

/** How often each token is drawn over evenly spread numbers. */
static void frequencies(const kt_generator_options *options, const int32_t *context, size_t length,
                        double share[VOCAB])
{
    enum { DRAWS = 60000 };
    struct kt_candidate candidates[VOCAB];
    float heap[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        share[i] = 0;
    for (int i = 0; i < DRAWS; i++)
        share[kt_sample(options, scores, VOCAB, context, length, (i + 0.5) / DRAWS, heap,
                        candidates)] += 1.0 / DRAWS;
}

static void check_share(const double share[VOCAB], const double weights[VOCAB])
{
    double sum = 0;
    for (int i = 0; i < VOCAB; i++)
        sum += weights[i];
    for (int i = 0; i < VOCAB; i++)
        ck_assert_double_le(fabs(share[i] - weights[i] / sum), 1e-4);
}

static kt_generator_options plain_options(void)
{
    kt_generator_options options;
    kt_generator_options_init(&options, sizeof options);
    options.temperature = 1;
    options.top_p = 1;
    options.top_k = 0;
    return options;
}

START_TEST(a_tiny_temperature_takes_the_best)
{
    kt_generator_options options = plain_options();
    double share[VOCAB];
    options.temperature = 1e-38f;
    frequencies(&options, NULL, 0, share);
    ck_assert_double_le(fabs(share[1] + share[4] - 1), 1e-9); /* equals of the best */
}
END_TEST

START_TEST(filters_keep_what_transformers_keeps)
{
    kt_generator_options options = plain_options();
    const double e1 = exp(1), e2 = exp(2), e3 = exp(3);
    double share[VOCAB];
    frequencies(&options, NULL, 0, share);
    check_share(share, (double[]){e1, e3, exp(-2), e2, e3, 1});
    options.temperature = 0.5f;
    frequencies(&options, NULL, 0, share);
    check_share(share, (double[]){exp(2), exp(6), exp(-4), exp(4), exp(6), 1});
    options.temperature = 1;
    options.top_k = 1; /* equals of the last one stay */
    frequencies(&options, NULL, 0, share);
    check_share(share, (double[]){0, 1, 0, 0, 1, 0});
    options.top_k = 3;
    frequencies(&options, NULL, 0, share);
    check_share(share, (double[]){0, e3, 0, e2, e3, 0});
    options.top_p = 0.8f; /* of the three: 0.16 in the tail is at most 0.2 and goes */
    frequencies(&options, NULL, 0, share);
    check_share(share, (double[]){0, 1, 0, 0, 1, 0});
    options.top_p = 0.9f;
    frequencies(&options, NULL, 0, share);
    check_share(share, (double[]){0, e3, 0, e2, e3, 0});
    options.top_p = 0.01f; /* the best one always stays */
    frequencies(&options, NULL, 0, share);
    check_share(share, (double[]){0, 1, 0, 0, 0, 0});
}
END_TEST

START_TEST(repetition_is_penalised_once_a_token)
{
    kt_generator_options options = plain_options();
    const int32_t context[] = {1, 2, 1, 1};
    double share[VOCAB];
    options.repetition_penalty = 2;
    frequencies(&options, context, 4, share);
    check_share(share, (double[]){exp(1), exp(1.5), exp(-4), exp(2), exp(3), 1});
    options.temperature = 0;
    frequencies(&options, context, 4, share);
    check_share(share, (double[]){0, 0, 0, 0, 1, 0});
    options.repetition_penalty = 1;
    frequencies(&options, context, 4, share);
    check_share(share, (double[]){0, 1, 0, 0, 0, 0});
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("generator", .timeout = 120),
        LOOP(greedy_tokens_are_those_of_transformers, GOLDEN_CASES * GOLDEN_BACKENDS),
        LOOP(chunks_of_a_prompt_give_the_same_logits, GOLDEN_CASES),
        LOOP(a_prompt_reuses_its_common_prefix, 2),
        TEST(the_cache_grows),
        TEST(sampling_is_repeatable_by_seed),
        TEST(misuse_is_refused_with_a_sentence),
        TEST(a_tiny_temperature_takes_the_best),
        TEST(filters_keep_what_transformers_keeps),
        TEST(repetition_is_penalised_once_a_token),
    };
    return RUN_TESTS("generator", tests);
}
