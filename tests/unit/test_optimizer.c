/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "fixture.h"
#include "train/optimizer.h"
#include "toy_model.h"
#include "training_golden.h"
#include "main.h"

enum { RANK = 2 };

struct toy {
    kt_context *ctx;
    kt_model *model;
    kt_lora *lora;
    kt_optimizer *optimizer;
};

/* An adapter over every toy linear whose parameters are make_training_goldens.py's formula. */
static struct toy toy_new(int32_t threads, const kt_optimizer_options *options)
{
    struct toy toy = {.ctx = toy_context(threads)};
    kt_lora_options lora;
    kt_lora_options_init(&lora, sizeof lora);
    lora.rank = RANK;
    lora.target = "all,lm_head";
    lora.target_experts = 1;
    toy.model = toy_model_new(toy.ctx);
    ck_assert_int_eq(kt_lora_create(toy.model, &lora, &toy.lora), KT_OK);
    ck_assert_int_eq(kt_optimizer_create(toy.lora, options, &toy.optimizer), KT_OK);
    for (uint64_t i = 0; i < toy.lora->num_parameters; i++)
        toy.lora->data[i] = (float)cos(0.3 * (double)i);
    return toy;
}

static void toy_delete(struct toy *toy)
{
    kt_optimizer_free(toy->optimizer);
    kt_lora_free(toy->lora);
    toy_model_delete(toy->model);
    kt_context_free(toy->ctx);
}

static void set_gradients(kt_lora *lora, int step)
{
    for (size_t k = 0; k < kt_lora_num_tensors(lora); k++) {
        kt_lora_tensor t = {.size = sizeof t};
        int linear = (int)k / 2;
        ck_assert_int_eq(kt_lora_get_tensor(lora, k, &t), KT_OK);
        if ((7 * linear + 3 * step) % 4 == 0 || (linear == 5 && step < 6))
            continue;
        double scale = 0.01 * exp2(step - 3);
        for (int64_t i = 0; i < t.rows * t.cols; i++)
            t.grad[i] = (float)(scale * sin(0.7 * (double)(t.data - lora->data + i) + 1.3 * step));
        lora->has_grad[lora->attached[linear]] = 1;
    }
}

static void expect_golden(const json_t *golden, int32_t threads)
{
    kt_optimizer_options options;
    kt_optimizer_options_init(&options, sizeof options);
    options.weight_decay = golden_number(golden, "weight_decay");
    options.max_grad_norm = golden_number(golden, "max_grad_norm");
    struct toy toy = toy_new(threads, &options);
    json_t *value;
    size_t i;
    json_array_foreach(json_object_get(golden, "grad_norms"), i, value)
    {
        double norm;
        set_gradients(toy.lora, (int)i);
        ck_assert_int_eq(kt_optimizer_step(toy.optimizer, 1e-3 * (double)(i + 1), &norm), KT_OK);
        ck_assert(fabs(norm - json_number_value(value)) <= 1e-6 * norm);
    }
    double error = 0, size = 0;
    ck_assert_uint_eq(json_array_size(json_object_get(golden, "final")), toy.lora->num_parameters);
    json_array_foreach(json_object_get(golden, "final"), i, value)
    {
        double want = json_number_value(value), got = toy.lora->data[i];
        error += (got - want) * (got - want);
        size += want * want;
        ck_assert(toy.lora->grad[i] == 0);
    }
    ck_assert_msg(sqrt(error / size) <= 1e-6, "relative L2 error %g", sqrt(error / size));
    toy_delete(&toy);
}

START_TEST(steps_are_those_of_torch)
{
    json_t *root = training_golden(), *cases = json_object_get(root, "optimizer"), *golden;
    size_t i;
    ck_assert_uint_eq(json_array_size(cases), 2);
    json_array_foreach(cases, i, golden) for (int32_t threads = 1; threads <= 3; threads++)
        expect_golden(golden, threads);
    json_decref(root);
}
END_TEST

START_TEST(threads_do_not_change_the_bits)
{
    struct toy one = toy_new(1, NULL), three = toy_new(3, NULL);
    for (int step = 0; step < 5; step++) {
        double a, b;
        set_gradients(one.lora, step);
        set_gradients(three.lora, step);
        ck_assert_int_eq(kt_optimizer_step(one.optimizer, 1e-3, &a), KT_OK);
        ck_assert_int_eq(kt_optimizer_step(three.optimizer, 1e-3, &b), KT_OK);
        ck_assert(a == b);
    }
    ck_assert_mem_eq(one.lora->data, three.lora->data, one.lora->num_parameters * sizeof(float));
    toy_delete(&one);
    toy_delete(&three);
}
END_TEST

START_TEST(a_gradient_that_is_not_finite_changes_nothing)
{
    const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
        struct toy toy = toy_new(2, NULL);
        size_t bytes = toy.lora->num_parameters * sizeof(float);
        float *before = malloc(bytes);
        set_gradients(toy.lora, 1);
        toy.lora->slots[2].db[1] = bad[i];
        memcpy(before, toy.lora->data, bytes);
        ck_assert_int_eq(kt_optimizer_step(toy.optimizer, 1e-3, NULL), KT_ERROR_NUMERIC);
        ck_assert_ptr_nonnull(strstr(kt_last_error(toy.ctx), "model.layers.0.mlp.gate_proj"));
        ck_assert_mem_eq(before, toy.lora->data, bytes);
        free(before);
        toy_delete(&toy);
    }
}
END_TEST

START_TEST(bad_options_are_refused)
{
    struct toy toy = toy_new(1, NULL);
    kt_optimizer_options defaults, o;
    kt_optimizer *optimizer;
    kt_optimizer_options_init(&defaults, sizeof defaults);
    double *fields[] = {&o.beta1, &o.beta2, &o.epsilon, &o.weight_decay, &o.max_grad_norm};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        const double bad[] = {-0.5, NAN};
        for (int j = 0; j < 2; j++) {
            o = defaults;
            *fields[i] = bad[j];
            ck_assert_int_eq(kt_optimizer_create(toy.lora, &o, &optimizer),
                             KT_ERROR_INVALID_ARGUMENT);
        }
    }
    ck_assert_int_eq(kt_optimizer_step(toy.optimizer, NAN, NULL), KT_ERROR_INVALID_ARGUMENT);
    toy_delete(&toy);
}
END_TEST

/* Steps 0 .. 4 in one run, and 0 .. 2 with the state carried through files to another. */
START_TEST(a_resumed_run_has_the_same_bits)
{
    struct toy whole = toy_new(2, NULL), first = toy_new(2, NULL), second = toy_new(2, NULL);
    const char *file = fixture_path("optimizer.ktz");
    for (int step = 0; step < 5; step++) {
        struct toy *resumed = step < 3 ? &first : &second;
        if (step == 3) {
            size_t bytes = first.lora->num_parameters * sizeof(float);
            ck_assert_int_eq(kt_optimizer_save(first.optimizer, file), KT_OK);
            memset(second.optimizer->first, 0xff, bytes); /* nothing may rest on fresh memory */
            memset(second.optimizer->second, 0xff, bytes);
            ck_assert_int_eq(kt_optimizer_load(second.optimizer, file), KT_OK);
            memcpy(second.lora->data, first.lora->data, bytes);
        }
        set_gradients(whole.lora, step);
        set_gradients(resumed->lora, step);
        ck_assert_int_eq(kt_optimizer_step(whole.optimizer, 1e-3, NULL), KT_OK);
        ck_assert_int_eq(kt_optimizer_step(resumed->optimizer, 1e-3, NULL), KT_OK);
    }
    ck_assert_mem_eq(whole.lora->data, second.lora->data,
                     whole.lora->num_parameters * sizeof(float));
    ck_assert_int_eq(fixture_files(0), 1);
    toy_delete(&whole);
    toy_delete(&first);
    toy_delete(&second);
}
END_TEST

START_TEST(a_state_of_another_adapter_is_refused)
{
    struct toy toy = toy_new(1, NULL);
    const char *file = fixture_path("optimizer.ktz");
    kt_lora_options options;
    kt_lora *other;
    kt_optimizer *optimizer;
    kt_lora_options_init(&options, sizeof options);
    options.rank = RANK + 1;
    ck_assert_int_eq(kt_lora_create(toy.model, &options, &other), KT_OK);
    ck_assert_int_eq(kt_optimizer_create(other, NULL, &optimizer), KT_OK);
    ck_assert_int_eq(kt_optimizer_save(optimizer, file), KT_OK);
    ck_assert_int_eq(kt_optimizer_load(toy.optimizer, file), KT_ERROR_MISMATCH);
    ck_assert_ptr_nonnull(strstr(kt_last_error(toy.ctx), file));
    ck_assert_ptr_nonnull(strstr(kt_last_error(toy.ctx), "q_a_proj 3 16 12\" where"));
    ck_assert_ptr_nonnull(strstr(kt_last_error(toy.ctx), "q_a_proj 2 16 12\""));
    kt_optimizer_free(optimizer);
    kt_lora_free(other);
    toy_delete(&toy);
}
END_TEST

START_TEST(damaged_states_are_refused_and_leave_a_new_optimizer)
{
    struct toy toy = toy_new(1, NULL), fresh = toy_new(1, NULL);
    const char *file = fixture_path("optimizer.ktz");
    char bytes[65536];
    ck_assert_int_eq(kt_optimizer_load(toy.optimizer, file), KT_ERROR_NOT_FOUND);
    set_gradients(toy.lora, 1);
    ck_assert_int_eq(kt_optimizer_step(toy.optimizer, 1e-3, NULL), KT_OK);
    ck_assert_int_eq(kt_optimizer_save(toy.optimizer, file), KT_OK);
    FILE *f = fopen(file, "rb");
    size_t size = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    fixture_write("optimizer.ktz", bytes, size / 2);
    ck_assert_int_eq(kt_optimizer_load(toy.optimizer, file), KT_ERROR_FORMAT);
    bytes[size - 20] ^= 0x55; /* inside the last section */
    fixture_write("optimizer.ktz", bytes, size);
    ck_assert_int_eq(kt_optimizer_load(toy.optimizer, file), KT_ERROR_FORMAT);
    memcpy(toy.lora->data, fresh.lora->data, toy.lora->num_parameters * sizeof(float));
    set_gradients(toy.lora, 2);
    set_gradients(fresh.lora, 2);
    ck_assert_int_eq(kt_optimizer_step(toy.optimizer, 1e-3, NULL), KT_OK);
    ck_assert_int_eq(kt_optimizer_step(fresh.optimizer, 1e-3, NULL), KT_OK);
    ck_assert_mem_eq(toy.lora->data, fresh.lora->data, toy.lora->num_parameters * sizeof(float));
    toy_delete(&toy);
    toy_delete(&fresh);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("adamw"),
        TEST(steps_are_those_of_torch),
        TEST(threads_do_not_change_the_bits),
        TEST(a_gradient_that_is_not_finite_changes_nothing),
        TEST(bad_options_are_refused),
        GROUP("state", .setup = fixture_setup, .teardown = fixture_teardown),
        TEST(a_resumed_run_has_the_same_bits),
        TEST(a_state_of_another_adapter_is_refused),
        TEST(damaged_states_are_refused_and_leave_a_new_optimizer),
    };
    return RUN_TESTS("optimizer", tests);
}
