/* SPDX-License-Identifier: Apache-2.0 */
#include "fixture.h"
#include "golden_case.h"

static kt_status load(const char *text, kt_rule **rule)
{
    fixture_write("rule.yaml", text, strlen(text));
    return kt_rule_load(fixture_context, fixture_path("rule.yaml"), rule);
}

static const char users_rule[] =
    "- match:\n"
    "    name: \"^model\\\\.layers\\\\.(?!.*self_attn\\\\.kv_b_proj).*$\"\n"
    "    class: torch.nn.Linear\n"
    "  replace:\n"
    "    class: some.operators.Linear\n"
    "    kwargs:\n"
    "      generate_device: \"cuda:0\"\n"
    "      prefill_device: \"cuda:1\"\n"
    "- match:\n"
    "    name: '^model\\.layers\\..*\\.mlp\\.experts$'\n"
    "  replace:\n"
    "    kwargs:\n"
    "      prefill_device: cpu\n"
    "      backend: AMXBF16\n"
    "  recursive: False\n"
    "- match:\n"
    "    class: some.modeling.Rotary\n";

START_TEST(users_files_are_read)
{
    kt_rule *rule;
    ck_assert_int_eq(load(users_rule, &rule), KT_OK);
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.3.self_attn"), "cuda:0");
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.3.self_attn.kv_b_proj"), "cpu");
    ck_assert_str_eq(kt_rule_experts_backend(rule, "model.layers.3.mlp.experts"), "AMXBF16");
    ck_assert_str_eq(kt_rule_experts_backend(rule, "lm_head"), "auto");
    kt_rule_free(rule);
}
END_TEST

START_TEST(the_first_entry_that_matches_decides)
{
    kt_rule *rule;
    ck_assert_int_eq(kt_rule_create(fixture_context, &rule), KT_OK);
    ck_assert_str_eq(kt_rule_device(rule, "model"), "cpu");
    ck_assert_int_eq(kt_rule_add(rule, "layers\\.[0-4]\\.", "cuda:0", NULL), KT_OK);
    ck_assert_int_eq(kt_rule_add(rule, "layers", "cuda:1", "reference"), KT_OK);
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.4.mlp"), "cuda:0");
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.5.mlp"), "cuda:1");
    ck_assert_str_eq(kt_rule_experts_backend(rule, "model.layers.4.mlp"), "reference");
    ck_assert_fails(kt_rule_add(rule, "layers(", NULL, NULL), KT_ERROR_INVALID_ARGUMENT, "layers(");
    kt_rule_free(rule);
}
END_TEST

START_TEST(bad_files_are_refused_with_file_and_line)
{
    kt_rule *rule;
    ck_assert_fails(kt_rule_load(fixture_context, fixture_path("none.yaml"), &rule),
                    KT_ERROR_NOT_FOUND, "none.yaml");
    ck_assert_fails(load("", &rule), KT_ERROR_FORMAT, "rule.yaml: the file is empty");
    ck_assert_fails(load("a: 1\n", &rule), KT_ERROR_FORMAT, "rule.yaml:1: a rule is a YAML list");
    ck_assert_fails(load("- match: 3\n", &rule), KT_ERROR_FORMAT, "rule.yaml:1: an entry");
    ck_assert_fails(load("- match:\n    name: [a]\n", &rule), KT_ERROR_FORMAT,
                    "rule.yaml:2: name must be a string");
    ck_assert_fails(load("- match:\n    name: '*'\n", &rule), KT_ERROR_FORMAT, "rule.yaml:2: ");
    ck_assert_fails(load("- match: {\n", &rule), KT_ERROR_FORMAT, "rule.yaml:");
}
END_TEST

START_TEST(what_is_missing_falls_back_with_a_warning)
{
    kt_model *model;
    kt_executor *executor;
    kt_rule *rule;
    kt_executor_options options;
    kt_executor_options_init(&options, sizeof options);
    ck_assert_int_eq(load(users_rule, &rule), KT_OK);
    ck_assert_ok(fixture_context,
                 kt_model_load(fixture_context, KT_REFERENCE_DIR "/cases/v2/model", NULL, &model));
    options.rule = rule;
    ck_assert_ok(fixture_context, kt_executor_create(model, NULL, &options, &executor));
    ck_assert_ptr_nonnull(strstr(fixture_log, "device \"cuda:0\""));
    ck_assert_ptr_nonnull(strstr(fixture_log, "backend \"AMXBF16\""));
    kt_executor_free(executor);
    kt_rule_free(rule);
    kt_model_free(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rule");
    TCase *tc = tcase_create("rule");
    tcase_add_checked_fixture(tc, fixture_setup, fixture_teardown);
    tcase_add_test(tc, users_files_are_read);
    tcase_add_test(tc, the_first_entry_that_matches_decides);
    tcase_add_test(tc, bad_files_are_refused_with_file_and_line);
    tcase_add_test(tc, what_is_missing_falls_back_with_a_warning);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
