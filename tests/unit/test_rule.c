/* SPDX-License-Identifier: Apache-2.0 */
#include <time.h>

#include "fixture.h"
#include "placement/rule.h"
#include "main.h"

static kt_rule *rule;

static void teardown(void)
{
    kt_rule_free(rule);
    rule = NULL;
    fixture_teardown();
}

static kt_status load(const char *text)
{
    fixture_write("rule.yaml", text, strlen(text));
    return kt_rule_load(fixture_context, fixture_path("rule.yaml"), &rule);
}

START_TEST(an_empty_rule_decides_for_the_cpu)
{
    ck_assert_int_eq(kt_rule_create(fixture_context, &rule), KT_OK);
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.0"), "cpu");
    ck_assert_str_eq(kt_rule_experts_backend(rule, "model.layers.0.mlp.experts"), "auto");
}
END_TEST

START_TEST(the_first_match_that_names_it_decides)
{
    ck_assert_int_eq(load("- match: {name: '^model\\.layers\\.1\\.'}\n"
                          "  replace: {kwargs: {generate_device: 'cuda:1', prefill_device: cpu}}\n"
                          "- match:\n"
                          "    name: \"layers\\\\.\"\n"
                          "  replace:\n"
                          "    class: some.Class\n"
                          "    kwargs: {prefill_device: cuda, backend: AMXInt8, other: [1, 2]}\n"
                          "  recursive: False\n"),
                     KT_OK);
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.1.mlp.experts"), "cuda:1");
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.11.mlp.experts"), "cuda");
    ck_assert_str_eq(kt_rule_experts_backend(rule, "model.layers.1.mlp.experts"), "amx-int8");
    ck_assert_str_eq(kt_rule_experts_backend(rule, "model.layers.2.mlp.experts"), "amx-int8");
    ck_assert_str_eq(kt_rule_device(rule, "lm_head"), "cpu");
    ck_assert_fails(kt_rule_add(rule, "layers(", NULL, NULL), KT_ERROR_INVALID_ARGUMENT, "layers(");
}
END_TEST

/* `times` pieces of text between others. */
static kt_status load_long(const char *begin, const char *piece, int times, const char *end)
{
    size_t length = strlen(piece), at = strlen(begin);
    char *text = malloc(at + length * (size_t)times + strlen(end) + 1);
    strcpy(text, begin);
    for (int i = 0; i < times; i++, at += length)
        memcpy(text + at, piece, length);
    strcpy(text + at, end);
    kt_status status = load(text);
    free(text);
    return status;
}

/* What libyaml would take minutes or gigabytes for. */
START_TEST(files_that_are_too_much)
{
    clock_t begin = clock();
    ck_assert_fails(load_long("", "[", 100000, ""), KT_ERROR_FORMAT, "line 1: lists");
    ck_assert_fails(load_long("", "- ", 200000, "x"), KT_ERROR_FORMAT, "nested more than 64");
    ck_assert_fails(load_long("", "- &a x\n", 100000, ""), KT_ERROR_FORMAT,
                    "line 257: there are more than 256 anchors");
    ck_assert_fails(load_long("- &a x\n", "- *a\n", 100000, ""), KT_ERROR_FORMAT, "aliases");
    ck_assert_fails(load_long("", "- x\n", 200000, ""), KT_ERROR_FORMAT, "131072 values");
    ck_assert_fails(load_long("", "%TAG !a! tag:x\n", 50000, "---\n- x"), KT_ERROR_FORMAT,
                    "line 65: there are more than 64 directives");
    ck_assert_fails(load_long("", "#", (1 << 20) + 1, ""), KT_ERROR_FORMAT, "1048577 bytes");
    ck_assert_msg(clock() - begin < 4 * CLOCKS_PER_SEC, "%.1f s of processor time",
                  (double)(clock() - begin) / CLOCKS_PER_SEC);
}
END_TEST

START_TEST(a_class_narrows_an_entry)
{
    ck_assert_int_eq(
        load("- match: {class: a.b.YarnRotaryEmbedding}\n"
             "  replace: {kwargs: {generate_device: 'cuda:0'}}\n"
             "- match: {name: '^model\\.layers\\.(?!.*kv_b_proj).*$', class: torch.nn.Linear}\n"
             "  replace: {kwargs: {generate_device: 'cuda:1'}}\n"
             "- match: {name: '^model\\..*', class: a.Unknown}\n"
             "  replace: {kwargs: {generate_device: 'cuda:2'}}\n"
             "- match: {class: a.Unknown}\n"
             "  replace: {kwargs: {generate_device: 'cuda:3'}}\n"),
        KT_OK);
    ck_assert_str_eq(kt_rule_device(rule, "model.rotary_emb"), "cuda:0");
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.0.self_attn.o_proj"), "cuda:1");
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.0.self_attn.kv_b_proj"), "cuda:2");
    ck_assert_str_eq(kt_rule_device(rule, "model.layers.0.mlp.experts"), "cuda:2");
    ck_assert_str_eq(kt_rule_device(rule, "lm_head"), "cpu");
    ck_assert_ptr_nonnull(strstr(fixture_log, "a.Unknown"));
}
END_TEST

static const struct {
    const char *text, *sentence;
} malformed[] = {
    {"", "empty"},
    {"- match: [", "malformed YAML"},
    {"a: b\n", "line 1: a rule file must be a list"},
    {"- 5\n", "line 1: an entry of a rule must be a group of keys"},
    {"- replace: {}\n", "needs a \"match\""},
    {"- match: {name: a}\n  replace: {}\n  recursiv: no\n", "line 3: unknown key \"recursiv\""},
    {"\n- match: {nam: a}\n  replace: {}\n", "line 2: unknown key \"nam\""},
    {"- match: {name: a}\n  replace: {kwarg: {}}\n", "line 2: unknown key \"kwarg\""},
    {"- match: {name: [a]}\n  replace: {}\n", "line 1: name must be a single value"},
    {"- match: {name: a}\n  replace: {kwargs: [a]}\n", "line 2: kwargs must be a group of keys"},
    {"- match: {name: a}\n  replace:\n    kwargs:\n      generate_device: [cpu]\n",
     "line 4: generate_device must be a single value"},
    {"- match: {}\n  replace: {}\n", "needs a \"name\" or a \"class\""},
    {"- match: {name: 'a('}\n  replace: {}\n", "line 1: the regular expression \"a(\""},
    {"- match: {name: '&a *a'}\n  replace: &r {kwargs: *r}\n- *r\n", "unknown key"},
};

START_TEST(malformed_files_are_refused)
{
    ck_assert_fails(load(malformed[_i].text), KT_ERROR_FORMAT, malformed[_i].sentence);
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), "rule.yaml"));
    ck_assert_ptr_null(rule);
}
END_TEST

START_TEST(missing_files_are_named)
{
    ck_assert_fails(kt_rule_load(fixture_context, fixture_path("no.yaml"), &rule),
                    KT_ERROR_NOT_FOUND, "no.yaml");
}
END_TEST

START_TEST(what_is_not_here_falls_back_with_a_warning)
{
    kt_model *model;
    kt_executor *executor;
    kt_executor_options options;
    kt_executor_options_init(&options, sizeof options);
    ck_assert_int_eq(load("- match: {name: '.*'}\n"
                          "  replace: {kwargs: {generate_device: 'tpu:7', backend: abacus}}\n"),
                     KT_OK);
    ck_assert_int_eq(
        kt_model_load(fixture_context, KT_REFERENCE_DIR "/cases/v2/model", NULL, &model), KT_OK);
    options.rule = rule;
    ck_assert_int_eq(kt_executor_create(model, NULL, &options, &executor), KT_OK);
    ck_assert_ptr_nonnull(strstr(fixture_log, "tpu:7"));
    ck_assert_ptr_nonnull(strstr(fixture_log, "abacus"));
    kt_executor_free(executor);
    kt_model_free(model);
}
END_TEST

static const struct {
    const char *file, *module, *device, *backend;
} shipped[] = {
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.layers.3.mlp.experts", "cpu", "amx"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.layers.9.self_attn.o_proj", "cuda:0",
     "auto"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.layers.15.mlp.gate", "cuda:0", "auto"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.layers.16.mlp", "cuda:1", "auto"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.layers.31.self_attn", "cuda:1", "auto"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.layers.32.self_attn", "cuda:2", "auto"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.layers.47.mlp", "cuda:2", "auto"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.layers.48.mlp", "cuda:3", "auto"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.layers.60.mlp", "cuda:3", "auto"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "lm_head", "cuda:3", "auto"},
    {"DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml", "model.embed_tokens", "cpu", "auto"},
    {"DeepSeek-V2-Lite-Chat-sft-amx.yaml", "model.layers.26.mlp.experts", "cpu", "amx"},
    {"DeepSeek-V2-Lite-Chat-sft-amx.yaml", "model.layers.26.mlp.shared_experts", "cuda:0", "auto"},
    {"cpu-only.yaml", "model.layers.1.mlp.experts", "cpu", "auto"},
    {"cpu-only.yaml", "lm_head", "cpu", "auto"},
};

START_TEST(shipped_rules_do_what_they_say)
{
    char path[512];
    snprintf(path, sizeof path, "%s/kt_optimize_rules/%s", KT_EXAMPLES_DIR, shipped[_i].file);
    ck_assert_int_eq(kt_rule_load(fixture_context, path, &rule), KT_OK);
    ck_assert_str_eq(kt_rule_device(rule, shipped[_i].module), shipped[_i].device);
    ck_assert_str_eq(kt_rule_experts_backend(rule, shipped[_i].module), shipped[_i].backend);
    ck_assert_str_eq(fixture_log, "");
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("rule", .setup = fixture_setup, .teardown = teardown),
        TEST(an_empty_rule_decides_for_the_cpu),
        TEST(the_first_match_that_names_it_decides),
        TEST(files_that_are_too_much),
        TEST(a_class_narrows_an_entry),
        LOOP(malformed_files_are_refused, sizeof malformed / sizeof *malformed),
        TEST(missing_files_are_named),
        TEST(what_is_not_here_falls_back_with_a_warning),
        LOOP(shipped_rules_do_what_they_say, sizeof shipped / sizeof *shipped),
    };
    return RUN_TESTS("rule", tests);
}
