/* SPDX-License-Identifier: Apache-2.0 */
/* A device that prefers activations in bfloat16: whole models against transformers, within what
 * bfloat16 costs there, and against the CPU. */
#include "backends/cpu_far/far.h"
#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

static const char *const far_alone[3] = {"cpu-far"}, *const with_cpu[3] = {"cpu-far", "cpu"};

/** Layers on these devices, each "cpu-far" with bfloat16. */
static kt_executor *place(const struct golden_case *c, const char *const devices[3],
                          kt_compute compute)
{
    kt_executor *ex = golden_place(c, devices, compute);
    for (int32_t i = 0; i < ex->layout.num_devices; i++)
        if (!kt_device_is_host(ex->sites[i].device))
            kt_cpu_far_prefer_bf16(ex->sites[i].device);
    return ex;
}

/** All gradients together are no worse than PyTorch's; one of few tokens may be off by more. */
START_TEST(bf16_is_as_good_as_torchs)
{
    struct golden_case c = golden_open(golden_bf16_cases[_i / 2], 2, KT_COMPUTE_BF16);
    kt_executor *ex = place(&c, _i % 2 ? with_cpu : far_alone, KT_COMPUTE_BF16);
    float *logits = golden_logits(&c, ex), *of_cpu = golden_logits(&c, c.executor);
    double error = golden_error(&c, "logits", logits);
    ck_assert_double_ne(error, golden_error(&c, "logits", of_cpu)); /* it does round */
    ck_assert_double_le(error, 2 * golden_number(&c, "bf16_error.logits", 0));
    ck_assert_double_le(error, 2e-2);
    float loss = (float)golden_step(&c, ex);
    ck_assert_double_le(golden_error(&c, "loss", &loss),
                        2 * golden_number(&c, "bf16_error.loss", 0));
    golden_check_gradients(&c, "bf16_error", 3);
    ck_assert_double_le(golden_error_beside_torchs(&c), 1);
    free(logits);
    free(of_cpu);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** Relative error of what two executors add to cleared gradients. */
static double gradient_error(const struct golden_case *c, kt_executor *executors[2],
                             double losses[2])
{
    float *gradients[2];
    for (int i = 0; i < 2; i++) {
        kt_lora_zero_grad(c->lora);
        losses[i] = golden_step(c, executors[i]);
        gradients[i] = golden_gradients(c->lora);
    }
    int64_t n = (int64_t)kt_lora_num_parameters(c->lora);
    double *want = test_widen(n, gradients[0]), error = test_error(n, gradients[1], want);
    free(want), free(gradients[0]), free(gradients[1]);
    return error;
}

/** Where scores of experts are nearly alike, rounding chooses others, and gradients are not near.
 */
START_TEST(a_step_is_near_that_of_the_cpu)
{
    struct golden_case c = golden_open(golden_cases[_i], 2, KT_COMPUTE_BF16);
    kt_executor *executors[2] = {c.executor, place(&c, far_alone, KT_COMPUTE_BF16)};
    double losses[2], error = gradient_error(&c, executors, losses);
    ck_assert_double_gt(error, 0);
    if (!c.model->config.n_routed_experts)
        ck_assert_double_le(error, 2e-2);
    ck_assert_double_le(fabs(losses[1] / losses[0] - 1), 2e-2);
    kt_executor_free(executors[1]);
    golden_close(&c);
}
END_TEST

/** An adapter of random numbers whose inputs are dropped. */
static void drop_inputs(struct golden_case *c)
{
    kt_lora_options options;
    kt_executor_free(c->executor);
    kt_lora_free(c->lora);
    kt_lora_options_init(&options, sizeof options);
    options.dropout = 0.4f;
    ck_assert_ok(c->ctx, kt_lora_create(c->model, &options, &c->lora));
    for (size_t i = 0; i < kt_lora_num_tensors(c->lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_ok(c->ctx, kt_lora_get_tensor(c->lora, i, &t));
        test_fill(i, t.rows * t.cols, t.data);
        for (int64_t j = 0; j < t.rows * t.cols; j++)
            t.data[j] *= 0.1f;
    }
    c->executor = golden_executor(c, c->lora, KT_COMPUTE_BF16, 7);
}

START_TEST(the_same_inputs_are_dropped)
{
    struct golden_case c = golden_open("llamabf16", 2, KT_COMPUTE_BF16);
    drop_inputs(&c);
    kt_executor *executors[2] = {c.executor, place(&c, far_alone, KT_COMPUTE_BF16)};
    double losses[2], error = gradient_error(&c, executors, losses);
    ck_assert_double_gt(error, 0);
    ck_assert_double_le(error, 2e-2);
    kt_executor_set_step(executors[1], 1);
    ck_assert_double_gt(gradient_error(&c, executors, losses), 0.1);
    kt_executor_free(executors[1]);
    golden_close(&c);
}
END_TEST

START_TEST(float32_is_not_rounded)
{
    struct golden_case c = golden_open(golden_cases[_i], 2, KT_COMPUTE_F32);
    kt_executor *executors[2] = {c.executor, place(&c, with_cpu, KT_COMPUTE_F32)};
    double losses[2], error = gradient_error(&c, executors, losses);
    ck_assert(error == 0 && losses[0] == losses[1]);
    kt_executor_free(executors[1]);
    golden_close(&c);
}
END_TEST

/** However late its queues are, and whether activations are kept or recomputed. */
START_TEST(repetition_and_recomputation_give_the_same_bits)
{
    struct golden_case c = golden_open(golden_bf16_cases[_i], 2, KT_COMPUTE_BF16);
    kt_executor *ex = place(&c, far_alone, KT_COMPUTE_BF16);
    kt_executor *same[2] = {ex, ex};
    double losses[2];
    ck_assert(gradient_error(&c, same, losses) == 0);
    kt_executor *other = place(&c, far_alone, KT_COMPUTE_BF16);
    kt_cpu_far_seed(other->sites[0].device, 0);
    other->kept_bytes = 0;
    kt_executor *both[2] = {ex, other};
    ck_assert(gradient_error(&c, both, losses) == 0 && losses[0] == losses[1]);
    kt_executor_free(other);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

START_TEST(activations_take_less_memory)
{
    struct golden_case c = golden_open("llamabf16", 2, KT_COMPUTE_BF16);
    kt_executor *wide = golden_place(&c, far_alone, KT_COMPUTE_BF16);
    kt_executor *narrow = place(&c, far_alone, KT_COMPUTE_BF16);
    uint64_t most = golden_plan_total(&c, wide, 500, 0).activations;
    uint64_t less = golden_plan_total(&c, narrow, 500, 0).activations;
    ck_assert_uint_lt(less, most * 3 / 4);
    kt_executor_free(narrow);
    kt_executor_free(wide);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("far_bf16", .timeout = 120),
        LOOP(bf16_is_as_good_as_torchs, 2 * GOLDEN_BF16_CASES),
        LOOP(a_step_is_near_that_of_the_cpu, GOLDEN_CASES),
        TEST(the_same_inputs_are_dropped),
        LOOP(float32_is_not_rounded, GOLDEN_CASES),
        LOOP(repetition_and_recomputation_give_the_same_bits, GOLDEN_BF16_CASES),
        TEST(activations_take_less_memory),
    };
    return RUN_TESTS("far_bf16", tests);
}
