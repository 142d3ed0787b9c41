/* SPDX-License-Identifier: Apache-2.0 */
/* Steps for which a device has too little memory at once are done in pieces: as few as fit, with
 * the same gradients, within the limit, as planned, or not at all. */
#include "backends/cpu_far/far.h"
#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

static const char *const far_alone[3] = {"cpu-far"}, *const with_cpu[3] = {"cpu-far", "cpu"};
static const char *const experts[] = {"cpu", "device", "auto"};
enum { EXPERTS = sizeof experts / sizeof *experts, TOKENS = 400 };

static const char *experts_of(const struct golden_case *c, int turn)
{
    return c->model->config.n_routed_experts ? experts[turn % EXPERTS] : NULL;
}

static kt_executor *place(const struct golden_case *c, int turn, kt_compute compute, uint64_t limit)
{
    return golden_place_all(c, turn % 2 ? with_cpu : far_alone, experts_of(c, turn), compute,
                            limit);
}

/** A sequence, or several of different lengths. */
static void fill(const struct golden_case *c, bool one)
{
    int32_t ids[TOKENS], vocab = c->model->config.vocab_size;
    for (int i = 0; i < TOKENS; i++)
        ids[i] = (i * i + 3 * i) % vocab;
    ck_assert_ok(c->ctx, kt_batch_clear(c->batch));
    for (int begin = 0, length = one ? TOKENS : 37; begin < TOKENS; begin += length, length += 20) {
        if (length > TOKENS - begin)
            length = TOKENS - begin;
        ck_assert_ok(c->ctx, kt_batch_add(c->batch, ids + begin, ids + begin, (size_t)length));
    }
}

/** The smallest limit within which an executor trains on the batch, as a failure says it. */
static uint64_t smallest_of(const struct golden_case *c, kt_executor *ex)
{
    struct kt_device *device = ex->sites[0].device;
    uint64_t allocated = device->allocated;
    device->limit = allocated + 1;
    ck_assert_int_eq(kt_executor_forward(ex, c->batch, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_OUT_OF_MEMORY);
    const char *needs = strstr(kt_last_error(c->ctx), " needs ");
    ck_assert_msg(needs && strstr(needs, "raise the limit"), "%s", kt_last_error(c->ctx));
    ck_assert_uint_eq(device->allocated, allocated);
    return strtoull(needs + strlen(" needs "), NULL, 10);
}

static uint64_t smallest_limit(const struct golden_case *c, int turn, kt_compute compute)
{
    kt_executor *ex = place(c, turn, compute, 1ull << 40);
    uint64_t limit = smallest_of(c, ex);
    kt_executor_free(ex);
    return limit;
}

/** A step's loss and gradients, which are added to none. */
static double step(const struct golden_case *c, kt_executor *ex, float **gradients)
{
    kt_lora_zero_grad(c->lora);
    double loss = golden_step(c, ex);
    *gradients = golden_gradients(c->lora);
    return loss;
}

static double error_of(const struct golden_case *c, const float *gradients, const float *wanted)
{
    int64_t n = (int64_t)kt_lora_num_parameters(c->lora);
    double *want = test_widen(n, wanted), error = test_error(n, gradients, want);
    free(want);
    return error;
}

/** Within 5 %: a plan has room for the offsets of a sequence for each token, which is now and then
 * the room of an input. */
static void check_plan(const kt_plan *plan, const struct kt_device *device)
{
    kt_device_plan d = {.size = sizeof d};
    ck_assert_int_eq(kt_plan_get_device(plan, 0, &d), KT_OK);
    ck_assert_uint_le(d.total_allocated, device->limit + d.feed);
    ck_assert_uint_le(device->allocated, d.total_allocated + d.total_allocated / 20);
    ck_assert_uint_ge(device->allocated, d.total_allocated - d.total_allocated / 20);
}

static size_t longest_of(const struct golden_case *c)
{
    const int32_t *cu = kt_batch_cu_seqlens(c->batch);
    int32_t longest = 0;
    for (size_t i = 0; i < kt_batch_num_sequences(c->batch); i++)
        longest = cu[i + 1] - cu[i] > longest ? cu[i + 1] - cu[i] : longest;
    return (size_t)longest;
}

/** Runs within a limit; the pieces. */
static int32_t run_within(const struct golden_case *c, int turn, uint64_t limit, double loss,
                          const float *wanted)
{
    kt_executor *ex = place(c, turn, KT_COMPUTE_F32, limit);
    kt_plan *plan = golden_plan(c, ex, TOKENS, longest_of(c), KT_FORWARD_TRAIN);
    float *gradients;
    double found = step(c, ex, &gradients), error = error_of(c, gradients, wanted);
    int32_t pieces = ex->step.pass.pieces;
    ck_assert_double_le(fabs(found - loss), pieces == 1 ? 0 : 1e-6 * loss);
    ck_assert_msg(error <= (pieces == 1 ? 0 : 2e-6), "%d pieces: %g", pieces, error);
    ck_assert_uint_le(ex->sites[0].device->allocated, limit);
    check_plan(plan, ex->sites[0].device);
    free(gradients);
    kt_plan_free(plan);
    kt_executor_free(ex);
    return pieces;
}

static const char *const cases[] = {"v3",      "v2",    "v2lite",  "qwen3moe", "qwen2moe",
                                    "mixtral", "llama", "mistral", "dynamic"};
enum { CASES = sizeof cases / sizeof *cases };

/** From the smallest limit up to where one piece suffices. */
START_TEST(pieces_change_no_gradient)
{
    struct golden_case c = golden_open(cases[_i % CASES], 2, KT_COMPUTE_F32);
    int turn = _i / CASES;
    bool experts_here = experts_of(&c, turn) && strcmp(experts_of(&c, turn), "cpu") != 0;
    float *wanted;
    fill(&c, turn / 2 % 2 == 0);
    kt_executor *ex = place(&c, turn, KT_COMPUTE_F32, 0);
    double loss = step(&c, ex, &wanted);
    ck_assert_int_eq(ex->step.pass.pieces, 1);
    uint64_t limit = smallest_limit(&c, turn, KT_COMPUTE_F32), more = limit / 10;
    int32_t pieces = run_within(&c, turn, limit, loss, wanted), before = pieces;
    ck_assert_int_gt(pieces, 1);
    for (; pieces > 1; before = pieces) {
        pieces = run_within(&c, turn, limit += more, loss, wanted);
        ck_assert(pieces <= before || experts_here);
    }
    free(wanted);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** Its sentence is right: with a byte less there is not enough. */
START_TEST(the_smallest_limit_is_the_smallest)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_BF16);
    fill(&c, true);
    uint64_t limit = smallest_limit(&c, _i, KT_COMPUTE_BF16);
    kt_executor *ex = place(&c, _i, KT_COMPUTE_BF16, limit - 1);
    ck_assert_int_eq(kt_executor_forward(ex, c.batch, KT_FORWARD_TRAIN, NULL),
                     KT_ERROR_OUT_OF_MEMORY);
    kt_executor_free(ex);
    ex = place(&c, _i, KT_COMPUTE_BF16, limit);
    golden_step(&c, ex);
    ck_assert_uint_le(ex->sites[0].device->allocated, limit);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

START_TEST(gradients_are_those_of_transformers)
{
    struct golden_case c = golden_open(golden_cases[_i / EXPERTS], 2, KT_COMPUTE_F32);
    kt_executor *ex = place(&c, _i, KT_COMPUTE_F32, smallest_limit(&c, _i, KT_COMPUTE_F32));
    double want = golden_number(&c, "loss", 0), loss = golden_step(&c, ex);
    ck_assert_int_gt(ex->step.pass.pieces, 1);
    ck_assert_double_le(fabs(loss - want), 1e-5 * want);
    golden_check_gradients(&c, NULL, 1e-4);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** A device that rounds activations to bfloat16 in pieces as at once. */
START_TEST(bf16_is_as_good_as_torchs)
{
    struct golden_case c = golden_open(golden_bf16_cases[_i], 2, KT_COMPUTE_BF16);
    kt_executor *ex = place(&c, 0, KT_COMPUTE_BF16, 0);
    kt_cpu_far_prefer_bf16(ex->sites[0].device);
    ex->sites[0].device->limit = smallest_of(&c, ex);
    golden_step(&c, ex);
    ck_assert_int_gt(ex->step.pass.pieces, 1);
    golden_check_gradients(&c, "bf16_error", 3);
    ck_assert_double_le(golden_error_beside_torchs(&c), 1);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

START_TEST(the_same_inputs_are_dropped)
{
    struct golden_case c = golden_open(cases[_i], 2, KT_COMPUTE_F32);
    fill(&c, true);
    for (int32_t i = 0; i < c.lora->num_attached; i++)
        c.lora->slots[c.lora->attached[i]].dropout = 0.4f;
    kt_executor *whole = place(&c, 1, KT_COMPUTE_F32, 0);
    kt_executor *parts = place(&c, 1, KT_COMPUTE_F32, smallest_limit(&c, 1, KT_COMPUTE_F32));
    float *wanted, *found, *other;
    step(&c, whole, &wanted);
    step(&c, parts, &found);
    ck_assert_int_gt(parts->step.pass.pieces, 1);
    ck_assert_double_le(error_of(&c, found, wanted), 2e-6);
    kt_executor_set_step(parts, 1);
    step(&c, parts, &other);
    ck_assert_double_gt(error_of(&c, other, wanted), 0.1);
    free(wanted), free(found), free(other);
    kt_executor_free(parts);
    kt_executor_free(whole);
    golden_close(&c);
}
END_TEST

/** The reference pass of a preference loss gives the policy's bits. */
START_TEST(evaluation_gives_the_bits_of_training)
{
    struct golden_case c = golden_open(cases[_i], 2, KT_COMPUTE_BF16);
    float logprobs[TOKENS];
    fill(&c, false);
    kt_executor *ex = place(&c, 0, KT_COMPUTE_BF16, smallest_limit(&c, 0, KT_COMPUTE_BF16));
    ck_assert_ok(c.ctx, kt_executor_forward(ex, c.batch, KT_FORWARD_EVAL, NULL));
    memcpy(logprobs, kt_executor_logprobs(ex), sizeof logprobs);
    ck_assert_ok(c.ctx, kt_executor_forward(ex, c.batch, KT_FORWARD_CUSTOM, NULL));
    ck_assert_int_gt(ex->step.pass.pieces, 1);
    ck_assert_mem_eq(logprobs, kt_executor_logprobs(ex), sizeof logprobs);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** Memory of a larger step is given up for one whose pieces are wider. */
START_TEST(a_smaller_step_has_room_after_a_larger_one)
{
    struct golden_case c = golden_open(cases[_i], 2, KT_COMPUTE_F32);
    int32_t ids[TOKENS] = {2};
    fill(&c, true);
    kt_batch *other;
    ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &other));
    uint64_t limit = smallest_limit(&c, 1, KT_COMPUTE_F32);
    kt_executor *ex = place(&c, 1, KT_COMPUTE_F32, limit);
    for (int i = 0, tokens = TOKENS; tokens > 1; i++, tokens -= 1 + tokens / 5) {
        ck_assert_ok(c.ctx, kt_batch_clear(other));
        ck_assert_ok(c.ctx, kt_batch_add(other, ids, ids, (size_t)tokens));
        ck_assert_ok(c.ctx,
                     kt_executor_forward(ex, i % 2 ? c.batch : other, KT_FORWARD_TRAIN, NULL));
        ck_assert_ok(c.ctx, kt_executor_backward(ex, NULL));
        ck_assert_uint_le(ex->sites[0].device->allocated, limit);
    }
    kt_batch_free(other);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** Pieces follow from what was reserved, not from what has grown since: a resumed run has no larger
 * step behind it. */
START_TEST(reserved_steps_stay_the_same)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    int32_t ids[TOKENS / 2] = {2};
    float *before, *after;
    fill(&c, true);
    uint64_t limit = smallest_limit(&c, 0, KT_COMPUTE_F32);
    kt_batch *small;
    ck_assert_ok(c.ctx, kt_batch_create(c.ctx, &small));
    ck_assert_ok(c.ctx, kt_batch_add(small, ids, ids, TOKENS / 2));
    kt_batch *large = c.batch;
    c.batch = small;
    uint64_t little = smallest_limit(&c, 0, KT_COMPUTE_F32);
    ck_assert_uint_lt(little, limit);
    kt_executor *ex = place(&c, 0, KT_COMPUTE_F32, little + little / 20); /* for any sequences */
    ck_assert_ok(c.ctx, kt_executor_reserve(ex, TOKENS / 2));
    step(&c, ex, &before);
    int32_t pieces = ex->step.pass.pieces;
    ck_assert_int_gt(pieces, 1);
    ex->sites[0].device->limit = 4 * limit;
    ck_assert_ok(c.ctx, kt_executor_forward(ex, large, KT_FORWARD_TRAIN, NULL));
    ck_assert_int_eq(ex->step.pass.pieces, 1);
    step(&c, ex, &after);
    ck_assert_int_eq(ex->step.pass.pieces, pieces);
    ck_assert_mem_eq(before, after, kt_lora_num_parameters(c.lora) * sizeof *before);
    free(before), free(after);
    kt_executor_free(ex);
    c.batch = large;
    kt_batch_free(small);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("room", .timeout = 120),
        LOOP(pieces_change_no_gradient, 6 * CASES),
        LOOP(the_smallest_limit_is_the_smallest, 3),
        LOOP(gradients_are_those_of_transformers, GOLDEN_CASES * EXPERTS),
        LOOP(bf16_is_as_good_as_torchs, GOLDEN_BF16_CASES),
        LOOP(the_same_inputs_are_dropped, CASES),
        LOOP(evaluation_gives_the_bits_of_training, CASES),
        LOOP(a_smaller_step_has_room_after_a_larger_one, CASES),
        TEST(reserved_steps_stay_the_same),
    };
    return RUN_TESTS("room", tests);
}
