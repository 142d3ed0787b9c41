/* SPDX-License-Identifier: Apache-2.0 */
/* Configurations of decoders with grouped-query attention: tiny models of tests/reference whose
 * config.json is damaged, and what their adapters take for targets. */
#include <jansson.h>

#include "fixture.h"
#include "model/adapter.h"
#include "main.h"

static kt_model *model;

static void teardown(void)
{
    kt_model_free(model);
    model = NULL;
    fixture_teardown();
}

/* Loads the case's model with one key of config.json set to a JSON text; NULL removes it. */
static kt_status load_edited(const char *name, const char *key, const char *value)
{
    char path[512];
    snprintf(path, sizeof path, "%s/cases/%s/model/config.json", KT_REFERENCE_DIR, name);
    json_t *config = json_load_file(path, 0, NULL);
    ck_assert_ptr_nonnull(config);
    if (key && value)
        json_object_set_new(config, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else if (key)
        json_object_del(config, key);
    char *text = json_dumps(config, 0);
    fixture_write("config.json", text, strlen(text));
    free(text);
    json_decref(config);
    snprintf(path, sizeof path, "%s/cases/%s/model/model.safetensors", KT_REFERENCE_DIR, name);
    ck_assert_int_eq(symlink(path, fixture_path("model.safetensors")), 0);
    return kt_model_load(fixture_context, fixture_folder, NULL, &model);
}

static const struct {
    const char *name, *key, *value;
    kt_status status;
    const char *sentence;
} bad[] = {
    {"qwen2moe", "decoder_sparse_step", "1", KT_ERROR_NOT_FOUND, "model.layers.0.mlp.gate.weight"},
    {"qwen2moe", "num_experts", "17", KT_ERROR_MISMATCH, "num_experts"},
    {"qwen2moe", "num_experts", "8", KT_ERROR_MISMATCH, "num_experts"},
    {"qwen2moe", "num_experts", "0", KT_ERROR_NOT_FOUND, "model.layers.1.mlp.gate_proj.weight"},
    {"qwen2moe", "num_experts", NULL, KT_ERROR_NOT_FOUND, "num_experts"},
    {"qwen2moe", "num_experts_per_tok", "17", KT_ERROR_FORMAT, "num_experts_per_tok"},
    {"qwen2moe", "mlp_only_layers", "[1]", KT_ERROR_NOT_FOUND, "model.layers.1.mlp.gate_proj"},
    {"qwen2moe", "mlp_only_layers", "[-1]", KT_ERROR_FORMAT, "mlp_only_layers"},
    {"qwen2moe", "mlp_only_layers", "[\"a\"]", KT_ERROR_FORMAT, "mlp_only_layers"},
    {"qwen2moe", "decoder_sparse_step", "0", KT_ERROR_FORMAT, "decoder_sparse_step"},
    {"qwen2moe", "shared_expert_intermediate_size", "29", KT_ERROR_MISMATCH,
     "shared_expert_intermediate_size"},
    {"qwen2moe", "sliding_window", "0", KT_ERROR_FORMAT, "sliding_window"},
    {"mixtral", "num_local_experts", "5", KT_ERROR_MISMATCH, "num_local_experts"},
    {"mixtral", "num_local_experts", "0", KT_ERROR_FORMAT, "num_local_experts"},
    {"mixtral", "num_attention_heads", "3", KT_ERROR_FORMAT, "cannot be divided"},
    {"mixtral", "num_key_value_heads", "3", KT_ERROR_FORMAT, "num_key_value_heads"},
    {"llama", "num_key_value_heads", "8", KT_ERROR_FORMAT, "num_key_value_heads"},
    {"llama", "head_dim", "15", KT_ERROR_FORMAT, "even"},
    {"llama", "head_dim", "8", KT_ERROR_MISMATCH, "num_attention_heads * head_dim"},
    {"llama", "rope_scaling", "{\"rope_type\":\"spiral\"}", KT_ERROR_UNSUPPORTED,
     "\"spiral\"; default, linear, dynamic, yarn and llama3"},
    {"llama", "rope_scaling", "{\"rope_type\":\"dynamic\"}", KT_ERROR_FORMAT, "factor"},
    {"llama", "rope_scaling", "{\"type\":\"dynamic\",\"factor\":-2}", KT_ERROR_FORMAT, "factor"},
    {"llama", "rope_scaling",
     "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4,"
     "\"original_max_position_embeddings\":32}",
     KT_ERROR_FORMAT, "high_freq_factor"},
    {"dynamic", "head_dim", "2", KT_ERROR_FORMAT, "dynamic needs 4"},
    {"llama", "architectures", "[\"GPT2LMHeadModel\"]", KT_ERROR_UNSUPPORTED,
     "MixtralForCausalLM, LlamaForCausalLM"},
    {"qwen2", "layer_types", "[\"full_attention\"]", KT_ERROR_UNSUPPORTED, "layer 1"},
    {"qwen2", "layer_types", "[\"linear\",\"linear\",\"linear\"]", KT_ERROR_UNSUPPORTED, "layer 0"},
    {"qwen2", "use_sliding_window", "false", KT_ERROR_FORMAT, "use_sliding_window"},
};

START_TEST(bad_configurations_are_refused)
{
    ck_assert_fails(load_edited(bad[_i].name, bad[_i].key, bad[_i].value), bad[_i].status,
                    bad[_i].sentence);
    ck_assert_ptr_null(model);
}
END_TEST

START_TEST(windows_are_off_unless_turned_on)
{
    ck_assert_int_eq(load_edited("qwen2moe", "use_sliding_window", "false"), KT_OK);
    ck_assert_int_eq(model->layers[0].window, 0);
    kt_model_free(model);
    fixture_files(1);
    ck_assert_int_eq(load_edited("mistral", "sliding_window", "null"), KT_OK);
    ck_assert_int_eq(model->layers[0].window, 0);
    kt_model_free(model);
    fixture_files(1);
    ck_assert_int_eq(load_edited("mistral", "sliding_window", NULL), KT_OK);
    ck_assert_int_eq(model->layers[0].window, 4096);
    kt_model_free(model);
    fixture_files(1);
    ck_assert_int_eq(load_edited("qwen3", NULL, NULL), KT_OK);
    ck_assert_int_eq(model->layers[0].window, 0);
    ck_assert_int_eq(model->layers[1].window, 9);
}
END_TEST

START_TEST(dynamic_scaling_stretches_the_context)
{
    kt_model_info info = {.size = sizeof info};
    ck_assert_int_eq(load_edited("dynamic", NULL, NULL), KT_OK);
    ck_assert_int_eq(kt_model_get_info(model, &info), KT_OK);
    ck_assert_int_eq(info.max_position_embeddings, 8 * 16);
    kt_model_free(model);
    fixture_files(1);
    ck_assert_int_eq(load_edited("dynamic", "rope_scaling", "null"), KT_OK);
    ck_assert_int_eq(kt_model_get_info(model, &info), KT_OK);
    ck_assert_int_eq(info.max_position_embeddings, 16);
}
END_TEST

static size_t count_targets(const char *target, int experts, const char *part)
{
    kt_lora_options options;
    kt_lora *lora;
    size_t found = 0;
    kt_lora_options_init(&options, sizeof options);
    options.target = target;
    options.target_experts = experts;
    ck_assert_int_eq(kt_lora_create(model, &options, &lora), KT_OK);
    for (int32_t i = 0; i < lora->num_attached; i++)
        found += strstr(model->linears[lora->attached[i]].name, part) != NULL;
    kt_lora_free(lora);
    return found;
}

START_TEST(gates_are_targets_by_name_alone)
{
    ck_assert_int_eq(load_edited("qwen2moe", NULL, NULL), KT_OK);
    ck_assert_uint_eq(count_targets("all", 0, "mlp.gate"),
                      2); /* gate_proj of dense layers, no gate */
    ck_assert_uint_eq(count_targets("all", 0, "self_attn."), 16);
    ck_assert_uint_eq(count_targets("all", 0, "shared_expert."), 6);
    ck_assert_uint_eq(count_targets("all", 0, "shared_expert_gate"), 0);
    ck_assert_uint_eq(count_targets("all", 1, ".experts."), 96);
    ck_assert_uint_eq(count_targets("gate", 0, ""), 2);
    ck_assert_uint_eq(count_targets("shared_expert_gate", 0, ""), 2);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("decoder", .setup = fixture_setup, .teardown = teardown),
        LOOP(bad_configurations_are_refused, sizeof bad / sizeof bad[0]),
        TEST(windows_are_off_unless_turned_on),
        TEST(dynamic_scaling_stretches_the_context),
        TEST(gates_are_targets_by_name_alone),
    };
    return RUN_TESTS("decoder", tests);
}
