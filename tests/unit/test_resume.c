/* SPDX-License-Identifier: Apache-2.0 */
/* What a checkpoint holds is enough to go on from it bit for bit: adapter, optimizer, seed, step.
 */
#include <unistd.h>

#include "golden_case.h"
#include "main.h"

enum { SEED = 7 };

struct run {
    kt_lora *lora;
    kt_executor *executor;
    kt_optimizer *optimizer;
};

static struct run run_new(const struct golden_case *c, kt_lora *lora, kt_compute compute)
{
    struct run run = {.lora = lora, .executor = golden_executor(c, lora, compute, 0)};
    ck_assert_ok(c->ctx, kt_optimizer_create(lora, NULL, &run.optimizer));
    return run;
}

static void run_delete(struct run *run)
{
    kt_optimizer_free(run->optimizer);
    kt_executor_free(run->executor);
    kt_lora_free(run->lora);
}

/* A new adapter with dropout, on routed experts too. */
static struct run run_start(const struct golden_case *c, kt_compute compute)
{
    kt_lora_options options;
    kt_lora *lora;
    kt_lora_options_init(&options, sizeof options);
    options.dropout = 0.25f;
    options.target_experts = 1;
    options.seed = SEED;
    ck_assert_ok(c->ctx, kt_lora_create(c->model, &options, &lora));
    return run_new(c, lora, compute);
}

/* Through files, as another process would. */
static void run_restart(const struct golden_case *c, struct run *run, kt_compute compute)
{
    char folder[] = "/tmp/kt-test-XXXXXX", state[64], file[64];
    kt_lora *lora;
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(state, sizeof state, "%s/optimizer.ktz", folder);
    ck_assert_ok(c->ctx, kt_lora_save(run->lora, folder));
    ck_assert_ok(c->ctx, kt_optimizer_save(run->optimizer, state));
    run_delete(run);
    ck_assert_ok(c->ctx, kt_lora_load(c->model, folder, &lora));
    kt_lora_set_seed(lora, SEED);
    *run = run_new(c, lora, compute);
    ck_assert_ok(c->ctx, kt_optimizer_load(run->optimizer, state));
    const char *files[] = {"optimizer.ktz", "adapter_model.safetensors", "adapter_config.json"};
    for (int i = 0; i < 3; i++) {
        snprintf(file, sizeof file, "%s/%s", folder, files[i]);
        ck_assert_int_eq(unlink(file), 0);
    }
    ck_assert_int_eq(rmdir(folder), 0);
}

static double run_step(const struct golden_case *c, struct run *run, uint64_t step)
{
    kt_executor_set_step(run->executor, step);
    double loss = golden_step(c, run->executor);
    ck_assert_ok(c->ctx, kt_optimizer_step(run->optimizer, 1e-3, NULL));
    return loss;
}

START_TEST(a_resumed_training_has_the_same_bits)
{
    const kt_compute compute = _i == 0 ? KT_COMPUTE_F32 : KT_COMPUTE_BF16;
    struct golden_case c = golden_open("v3bf16", 2, compute);
    struct run whole = run_start(&c, compute), part = run_start(&c, compute);
    for (uint64_t step = 0; step < 6; step++) {
        if (step == 3)
            run_restart(&c, &part, compute);
        double a = run_step(&c, &whole, step), b = run_step(&c, &part, step);
        ck_assert_double_eq(a, b);
    }
    ck_assert_mem_eq(whole.lora->data, part.lora->data,
                     kt_lora_num_parameters(whole.lora) * sizeof(float));
    run_delete(&whole);
    run_delete(&part);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        LOOP(a_resumed_training_has_the_same_bits, 2),
    };
    return RUN_TESTS("resume", tests);
}
