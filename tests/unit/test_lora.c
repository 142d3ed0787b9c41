/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "model/adapter.h"
#include "toy_model.h"
#include "main.h"

static kt_context *ctx;
static kt_model *model;

static void setup(void)
{
    ctx = toy_context(2);
    model = toy_model_new(ctx);
}

static void teardown(void)
{
    toy_model_delete(model);
    kt_context_free(ctx);
}

static kt_lora *create(const char *target, int experts)
{
    kt_lora_options options;
    kt_lora *lora;
    kt_lora_options_init(&options, sizeof options);
    options.target = target;
    options.target_experts = experts;
    ck_assert_msg(kt_lora_create(model, &options, &lora) == KT_OK, "%s", kt_last_error(ctx));
    return lora;
}

/* The attached linears as a string of their numbers in toy_linears. */
static void expect_attached(const char *target, int experts, const char *expected)
{
    char got[TOY_LINEARS + 1] = "";
    kt_lora *lora = create(target, experts);
    for (int32_t k = 0; k < lora->num_attached && k < TOY_LINEARS; k++)
        got[k] = (char)('0' + lora->attached[k]);
    ck_assert_str_eq(got, expected);
    kt_lora_free(lora);
}

START_TEST(targets_select_by_role_suffix_and_path)
{
    expect_attached("all", 0, "0123456");
    expect_attached("all", 1, "012345678");
    expect_attached("q_a_proj", 0, "04");
    expect_attached(" q_a_proj , lm_head", 0, "049");
    expect_attached("down_proj", 0, "3678");
    expect_attached("model.layers.1.mlp.experts.1.down_proj", 0, "8");
    expect_attached("experts.0.down_proj,all", 0, "01234567");
    expect_attached("o_proj,no_such_proj", 0, "15");
}
END_TEST

START_TEST(unknown_target_lists_what_exists)
{
    kt_lora_options options;
    kt_lora *lora;
    kt_lora_options_init(&options, sizeof options);
    options.target = "a_proj,roj";
    ck_assert_int_eq(kt_lora_create(model, &options, &lora), KT_ERROR_NOT_FOUND);
    ck_assert_ptr_null(lora);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "\"a_proj,roj\""));
    ck_assert_ptr_nonnull(
        strstr(kt_last_error(ctx), "q_a_proj, o_proj, gate_proj, down_proj, lm_head"));
}
END_TEST

START_TEST(options_are_checked)
{
    struct {
        int32_t rank;
        float alpha, dropout;
    } bad[] = {{0, 0, 0}, {-1, 0, 0},    {4, -1, 0}, {4, NAN, 0},
               {4, 0, 1}, {4, 0, -0.1f}, {4, 0, NAN}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        kt_lora_options options;
        kt_lora *lora;
        kt_lora_options_init(&options, sizeof options);
        options.rank = bad[i].rank;
        options.alpha = bad[i].alpha;
        options.dropout = bad[i].dropout;
        ck_assert_int_eq(kt_lora_create(model, &options, &lora), KT_ERROR_INVALID_ARGUMENT);
    }
}
END_TEST

START_TEST(initial_values_are_kaiming_uniform_and_zero)
{
    kt_lora_options options;
    kt_lora *lora;
    kt_lora_options_init(&options, sizeof options);
    options.rank = 512;
    options.use_rslora = 1;
    ck_assert_int_eq(kt_lora_create(model, &options, &lora), KT_OK);
    uint64_t counted = 0;
    for (size_t i = 0; i < kt_lora_num_tensors(lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        ck_assert_int_eq(kt_lora_get_tensor(lora, i, &t), KT_OK);
        int64_t n = t.rows * t.cols;
        double bound = 1 / sqrt((double)t.cols), sum = 0, squares = 0, largest = 0;
        for (int64_t j = 0; j < n; j++) {
            sum += t.data[j];
            squares += (double)t.data[j] * t.data[j];
            largest = fmax(largest, fabs(t.data[j]));
            ck_assert(t.grad[j] == 0);
        }
        counted += (uint64_t)n;
        ck_assert_int_eq(t.has_grad, 0);
        if (i % 2 == 0) {
            ck_assert(largest <= bound && largest > 0.99 * bound);
            ck_assert(fabs(sum / (double)n) < 0.03 * bound);
            ck_assert(fabs(squares / (double)n - bound * bound / 3) < 0.03 * bound * bound);
        } else {
            ck_assert(largest == 0);
        }
    }
    ck_assert_uint_eq(counted, kt_lora_num_parameters(lora));
    ck_assert(fabs(lora->slots[0].scale - 1024 / sqrt(512)) < 1e-5);
    kt_lora_free(lora);
}
END_TEST

START_TEST(values_depend_on_seed_and_linear_alone)
{
    kt_lora *all = create("all", 0), *one = create("o_proj", 0);
    const struct kt_lora_pair *p = &all->slots[5], *q = &one->slots[5];
    ck_assert_mem_eq(p->a, q->a, 8 * 20 * sizeof(float));
    ck_assert_mem_ne(p->a, all->slots[1].a, 8 * 20 * sizeof(float));
    ck_assert(p->scale == 2.0f);
    kt_lora_free(all);
    kt_lora_free(one);
}
END_TEST

START_TEST(tensors_are_named_as_in_peft)
{
    kt_lora *lora = create("experts.1.down_proj", 0);
    kt_lora_tensor a = {.size = sizeof a}, b = {.size = sizeof b}, none = {.size = sizeof none};
    ck_assert_uint_eq(kt_lora_num_tensors(lora), 2);
    ck_assert_int_eq(kt_lora_get_tensor(lora, 0, &a), KT_OK);
    ck_assert_int_eq(kt_lora_get_tensor(lora, 1, &b), KT_OK);
    ck_assert_str_eq(a.name,
                     "base_model.model.model.layers.1.mlp.experts.1.down_proj.lora_A.weight");
    ck_assert_str_eq(b.name,
                     "base_model.model.model.layers.1.mlp.experts.1.down_proj.lora_B.weight");
    ck_assert(a.rows == 8 && a.cols == 8 && b.rows == 16 && b.cols == 8);
    ck_assert_int_eq(kt_lora_get_tensor(lora, 2, &none), KT_ERROR_INVALID_ARGUMENT);
    kt_lora_free(lora);
}
END_TEST

START_TEST(zero_grad_clears_gradients_and_marks)
{
    kt_lora *lora = create("all", 1);
    const struct kt_lora_pair *pair = &lora->slots[3];
    pair->da[5] = 1;
    pair->db[7] = 2;
    *pair->has_grad = 1;
    kt_lora_zero_grad(lora);
    for (uint64_t i = 0; i < lora->num_parameters; i++)
        ck_assert(lora->grad[i] == 0);
    ck_assert_int_eq(*pair->has_grad, 0);
    kt_lora_free(lora);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("create", .setup = setup, .teardown = teardown),
        TEST(targets_select_by_role_suffix_and_path),
        TEST(unknown_target_lists_what_exists),
        TEST(options_are_checked),
        TEST(initial_values_are_kaiming_uniform_and_zero),
        TEST(values_depend_on_seed_and_linear_alone),
        TEST(tensors_are_named_as_in_peft),
        TEST(zero_grad_clears_gradients_and_marks),
    };
    return RUN_TESTS("lora", tests);
}
