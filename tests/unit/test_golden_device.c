/* SPDX-License-Identifier: Apache-2.0 */
/* The numbers of transformers and PEFT on a device without host memory: "cpu-far", or the one that
 * the environment's KT_TEST_DEVICE names; with routed experts on the host, on the device, and
 * divided between both. */
#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

static const char *const experts[] = {"cpu", "device", "auto"};
enum { EXPERTS = sizeof experts / sizeof *experts };

/** Experts travel through the smallest ring there is, in every other run. */
static kt_executor *place(const struct golden_case *c, int turn, kt_compute compute)
{
    const char *device = getenv("KT_TEST_DEVICE");
    const char *const devices[3] = {device ? device : "cpu-far"};
    kt_executor *executor = golden_place_on(c, devices, experts[turn % EXPERTS], compute);
    ck_assert_str_eq(executor->layout.devices[0], devices[0]); /* a missing one becomes the CPU */
    if (turn / EXPERTS % 2)
        executor->sites[0].expert_bytes = 0;
    return executor;
}

START_TEST(logits_are_those_of_transformers)
{
    struct golden_case c = golden_open(golden_cases[_i / EXPERTS], 2, KT_COMPUTE_F32);
    kt_executor *executor = place(&c, _i, KT_COMPUTE_F32);
    float *logits = golden_logits(&c, executor);
    ck_assert_double_le(golden_error(&c, "logits", logits), 1e-5);
    free(logits);
    kt_executor_free(executor);
    golden_close(&c);
}
END_TEST

START_TEST(loss_and_gradients_are_those_of_transformers)
{
    struct golden_case c = golden_open(golden_cases[_i / EXPERTS], 2, KT_COMPUTE_F32);
    kt_executor *executor = place(&c, _i, KT_COMPUTE_F32);
    double want = golden_number(&c, "loss", 0), loss = golden_step(&c, executor);
    ck_assert_double_le(fabs(loss - want), 1e-5 * want);
    golden_check_gradients(&c, NULL, 1e-4);
    kt_executor_free(executor);
    golden_close(&c);
}
END_TEST

/** A device that takes activations in bfloat16 rounds as often as PyTorch: single gradients may be
 * further off, but not all together. */
static void check_bf16_gradients(const struct golden_case *c, const kt_executor *executor)
{
    const struct kt_device *device = executor->sites[0].device;
    bool rounds = device->ops->prefers(device, KT_COMPUTE_BF16) == KT_DTYPE_BF16;
    golden_check_gradients(c, "bf16_error", rounds ? 3 : 2);
    ck_assert_double_le(golden_error_beside_torchs(c), 1);
}

START_TEST(bf16_is_as_good_as_torchs)
{
    struct golden_case c = golden_open(golden_bf16_cases[_i / EXPERTS], 2, KT_COMPUTE_BF16);
    kt_executor *executor = place(&c, _i, KT_COMPUTE_BF16);
    float *logits = golden_logits(&c, executor);
    ck_assert_double_le(golden_error(&c, "logits", logits),
                        2 * golden_number(&c, "bf16_error.logits", 0));
    ck_assert_double_le(golden_error(&c, "logits", logits), 2e-2);
    free(logits);
    float loss = (float)golden_step(&c, executor);
    ck_assert_double_le(golden_error(&c, "loss", &loss),
                        2 * golden_number(&c, "bf16_error.loss", 0));
    check_bf16_gradients(&c, executor);
    kt_executor_free(executor);
    golden_close(&c);
}
END_TEST

START_TEST(steps_give_the_same_bits_again)
{
    struct golden_case c = golden_open(golden_bf16_cases[_i / EXPERTS], 2, KT_COMPUTE_BF16);
    size_t bytes = kt_lora_num_parameters(c.lora) * sizeof(float);
    float *gradients[2];
    double loss[2];
    for (int i = 0; i < 2; i++) {
        kt_executor *executor = place(&c, _i, KT_COMPUTE_BF16);
        kt_lora_zero_grad(c.lora);
        loss[i] = golden_step(&c, executor);
        gradients[i] = golden_gradients(c.lora);
        kt_executor_free(executor);
    }
    ck_assert(loss[0] == loss[1]);
    ck_assert_mem_eq(gradients[0], gradients[1], bytes);
    free(gradients[0]);
    free(gradients[1]);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("golden_device", .timeout = 120),
        LOOP(logits_are_those_of_transformers, GOLDEN_CASES * EXPERTS),
        LOOP(loss_and_gradients_are_those_of_transformers, GOLDEN_CASES * EXPERTS),
        LOOP(bf16_is_as_good_as_torchs, GOLDEN_BF16_CASES * EXPERTS),
        LOOP(steps_give_the_same_bits_again, GOLDEN_BF16_CASES * EXPERTS),
    };
    return RUN_TESTS("golden_device", tests);
}
