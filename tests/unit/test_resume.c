/* SPDX-License-Identifier: Apache-2.0 */
/* What a checkpoint holds is enough to go on from it bit for bit: adapter, optimizer, seed, step,
 * and how experts are shared. */
#include <unistd.h>

#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

enum { SEED = 7 };

struct run {
    kt_lora *lora;
    kt_executor *executor;
    kt_optimizer *optimizer;
    kt_compute compute;
    bool far; /* on a device, which shares experts with the host */
};

static kt_executor *run_executor(const struct golden_case *c, const struct run *run)
{
    static const char *const far_away[3] = {"cpu-far"};
    struct golden_case of_run = *c;
    of_run.lora = run->lora;
    return run->far ? golden_place_on(&of_run, far_away, "auto", run->compute)
                    : golden_executor(c, run->lora, run->compute, 0);
}

static struct run run_new(const struct golden_case *c, kt_lora *lora, kt_compute compute, bool far)
{
    struct run run = {.lora = lora, .compute = compute, .far = far};
    run.executor = run_executor(c, &run);
    if (far)
        run.executor->sites[0].expert_bytes = 0;
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
static struct run run_start(const struct golden_case *c, kt_compute compute, bool far)
{
    kt_lora_options options;
    kt_lora *lora;
    kt_lora_options_init(&options, sizeof options);
    options.dropout = 0.25f;
    options.target_experts = 1;
    options.seed = SEED;
    ck_assert_ok(c->ctx, kt_lora_create(c->model, &options, &lora));
    return run_new(c, lora, compute, far);
}

/* What goes on from a run's checkpoint, through files, as another process would. */
static struct run run_resume(const struct golden_case *c, const struct run *from)
{
    char folder[] = "/tmp/kt-test-XXXXXX", state[64], file[64];
    const char *sharing;
    kt_lora *lora;
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(state, sizeof state, "%s/optimizer.ktz", folder);
    ck_assert_ok(c->ctx, kt_lora_save(from->lora, folder));
    ck_assert_ok(c->ctx, kt_optimizer_save(from->optimizer, state));
    ck_assert_ok(c->ctx, kt_executor_get_sharing(from->executor, &sharing));
    ck_assert_ok(c->ctx, kt_lora_load(c->model, folder, &lora));
    kt_lora_set_seed(lora, SEED);
    struct run run = run_new(c, lora, from->compute, from->far);
    ck_assert_ok(c->ctx, kt_optimizer_load(run.optimizer, state));
    ck_assert_ok(c->ctx, kt_executor_set_sharing(run.executor, sharing));
    const char *files[] = {"optimizer.ktz", "adapter_model.safetensors", "adapter_config.json"};
    for (int i = 0; i < 3; i++) {
        snprintf(file, sizeof file, "%s/%s", folder, files[i]);
        ck_assert_int_eq(unlink(file), 0);
    }
    ck_assert_int_eq(rmdir(folder), 0);
    return run;
}

static double run_step(const struct golden_case *c, struct run *run, uint64_t step)
{
    kt_executor_set_step(run->executor, step);
    double loss = golden_step(c, run->executor);
    ck_assert_ok(c->ctx, kt_optimizer_step(run->optimizer, 1e-3, NULL));
    return loss;
}

static void expect_same_adapter(const struct run *a, const struct run *b)
{
    ck_assert_mem_eq(a->lora->data, b->lora->data, kt_lora_num_parameters(a->lora) * sizeof(float));
}

/* Steps [step, end) give the same losses. */
static void expect_same_steps(const struct golden_case *c, struct run *whole, struct run *part,
                              uint64_t step, uint64_t end)
{
    for (; step < end; step++) {
        double a = run_step(c, whole, step), b = run_step(c, part, step);
        ck_assert_double_eq(a, b);
    }
}

START_TEST(a_resumed_training_has_the_same_bits)
{
    const kt_compute compute = _i == 0 ? KT_COMPUTE_F32 : KT_COMPUTE_BF16;
    struct golden_case c = golden_open("v3bf16", 2, compute);
    struct run whole = run_start(&c, compute, false), part = run_start(&c, compute, false);
    expect_same_steps(&c, &whole, &part, 0, 3);
    struct run before = part;
    part = run_resume(&c, &before);
    run_delete(&before);
    expect_same_steps(&c, &whole, &part, 3, 6);
    expect_same_adapter(&whole, &part);
    run_delete(&whole);
    run_delete(&part);
    golden_close(&c);
}
END_TEST

/* Steps before the checkpoint find out who should compute which experts, by time; those behind it
 * go by what they found. */
START_TEST(a_resumed_training_shares_experts_alike)
{
    struct golden_case c = golden_open("v3bf16", 2, KT_COMPUTE_F32);
    struct run whole = run_start(&c, KT_COMPUTE_F32, true);
    uint64_t step = 0;
    for (; step <= (uint64_t)_i; step++)
        run_step(&c, &whole, step);
    struct run part = run_resume(&c, &whole);
    expect_same_steps(&c, &whole, &part, step, (uint64_t)_i + 7);
    expect_same_adapter(&whole, &part);
    run_delete(&whole);
    run_delete(&part);
    golden_close(&c);
}
END_TEST

/* Else that test could not fail. */
START_TEST(who_computes_an_expert_decides_bits)
{
    static const char *const records[] = {
        "kt-sharing-1 f6:7,1,1000,1000,1000,1000,16,0,0,0 b6:7,1,1000,1000,1000,1000,16,0,0,0",
        "kt-sharing-1 f6:7,2,1000,1000,1000,1000,16,0,0,0 b6:7,2,1000,1000,1000,1000,16,0,0,0",
        "kt-sharing-1 f6:7,0,1000,1000,300,300,16,0,0,0 b6:7,0,1000,1000,1000,1000,16,0,0,0",
    };
    double losses[3];
    struct golden_case c = golden_open("v3bf16", 2, KT_COMPUTE_F32);
    for (int i = 0; i < 3; i++) {
        struct run run = run_start(&c, KT_COMPUTE_F32, true);
        ck_assert_ok(c.ctx, kt_executor_set_sharing(run.executor, records[i]));
        for (uint64_t step = 0; step < 6; step++)
            losses[i] = run_step(&c, &run, step);
        run_delete(&run);
    }
    ck_assert(losses[0] != losses[1] && losses[1] != losses[2] && losses[0] != losses[2]);
    golden_close(&c);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("resume", .timeout = 120),
        LOOP(a_resumed_training_has_the_same_bits, 2),
        LOOP(a_resumed_training_shares_experts_alike, 8),
        TEST(who_computes_an_expert_decides_bits),
    };
    return RUN_TESTS("resume", tests);
}
