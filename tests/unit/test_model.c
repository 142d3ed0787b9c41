/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "model/model.h"
#include "tiny_model.h"
#include "main.h"

static struct tiny tiny;
static kt_model *model;

static void setup_v3(void)
{
    fixture_setup();
    tiny_create(&tiny, 1);
    model = NULL;
}

static void setup_v2(void)
{
    fixture_setup();
    tiny_create(&tiny, 0);
    model = NULL;
}

static void teardown(void)
{
    kt_model_free(model);
    tiny_free(&tiny);
    fixture_teardown();
}

static void check_weight(const struct kt_weight *w, const char *name)
{
    const struct kt_tensor *t = tiny_find(&tiny, name);
    ck_assert_int_eq(w->rows, t->shape[0]);
    ck_assert_int_eq(w->cols, t->shape[1]);
    ck_assert_int_eq(w->dtype, t->dtype);
    ck_assert_mem_eq(w->data, t->data, t->bytes);
}

static void check_vector(const float *x, const char *name)
{
    const struct kt_tensor *t = tiny_find(&tiny, name);
    float want[64];
    ck_assert(kt_dtype_to_f32(t->dtype, t->data, want, (size_t)t->shape[0]));
    ck_assert_mem_eq(x, want, (size_t)t->shape[0] * sizeof *want);
}

START_TEST(v3_tensors_come_to_their_places)
{
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    const struct kt_layer *dense = &model->layers[0], *moe = &model->layers[1];
    check_weight(&model->embed_tokens, "model.embed_tokens.weight");
    check_weight(&model->lm_head->weight, "lm_head.weight");
    check_vector(model->final_norm, "model.norm.weight");
    check_vector(dense->input_norm, "model.layers.0.input_layernorm.weight");
    check_vector(moe->post_attention_norm, "model.layers.1.post_attention_layernorm.weight");
    check_vector(moe->q_a_norm, "model.layers.1.self_attn.q_a_layernorm.weight");
    check_vector(moe->kv_a_norm, "model.layers.1.self_attn.kv_a_layernorm.weight");
    check_weight(&moe->q_a->weight, "model.layers.1.self_attn.q_a_proj.weight");
    check_weight(&moe->q_b->weight, "model.layers.1.self_attn.q_b_proj.weight");
    check_weight(&dense->kv_a->weight, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight");
    check_weight(&dense->kv_b->weight, "model.layers.0.self_attn.kv_b_proj.weight");
    check_weight(&dense->o->weight, "model.layers.0.self_attn.o_proj.weight");
    ck_assert_ptr_null(dense->q_proj);
    ck_assert(!dense->is_moe && moe->is_moe);
    check_weight(&dense->mlp.gate->weight, "model.layers.0.mlp.gate_proj.weight");
    check_weight(&moe->mlp.up->weight, "model.layers.1.mlp.shared_experts.up_proj.weight");
    ck_assert_int_eq(dense->mlp.intermediate_size, 10);
    ck_assert_int_eq(moe->mlp.intermediate_size, 12);
    check_weight(&moe->router, "model.layers.1.mlp.gate.weight");
    check_vector(moe->correction_bias, "model.layers.1.mlp.gate.e_score_correction_bias");
    check_weight(&moe->expert_weights[0][3], "model.layers.1.mlp.experts.3.gate_proj.weight");
    check_weight(&moe->experts[1][2].weight, "model.layers.1.mlp.experts.2.up_proj.weight");
    check_weight(&moe->experts[2][0].weight, "model.layers.1.mlp.experts.0.down_proj.weight");
    ck_assert_str_eq(moe->experts[2][1].name, "model.layers.1.mlp.experts.1.down_proj");
    ck_assert_int_eq(moe->experts[2][1].role, KT_ROLE_ROUTED_EXPERT);
    ck_assert_int_eq(moe->mlp.down->role, KT_ROLE_SHARED_EXPERT);
    ck_assert_int_eq(dense->mlp.down->role, KT_ROLE_DENSE_MLP);
    ck_assert_int_eq(dense->o->role, KT_ROLE_ATTENTION);
    ck_assert_str_eq(fixture_log, "");
}
END_TEST

START_TEST(v2_tensors_come_to_their_places)
{
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    const struct kt_layer *moe = &model->layers[1];
    check_weight(&moe->q_proj->weight, "model.layers.1.self_attn.q_proj.weight");
    ck_assert_ptr_null(moe->q_a);
    ck_assert_ptr_null(moe->correction_bias);
    ck_assert_int_eq(model->config.router.scoring, KT_SCORING_SOFTMAX);
    ck_assert_int_eq(model->config.router.group_score, KT_GROUP_NONE);
    ck_assert_int_eq(model->config.router.norm_topk_prob, 0);
    ck_assert_float_eq(model->config.router.routed_scaling_factor, 1.5f);
}
END_TEST

START_TEST(linears_are_numbered_and_named)
{
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    /* head; 5 attention linears and an MLP of 3 in each layer, 3 more for each expert */
    ck_assert_uint_eq(kt_model_num_linears(model), 1 + 2 * (5 + 3) + 3 * TINY_EXPERTS);
    for (int32_t i = 0; i < model->num_linears; i++) {
        ck_assert_int_eq(model->linears[i].index, i);
        ck_assert_str_eq(kt_model_linear_name(model, (size_t)i), model->linears[i].name);
    }
    ck_assert_ptr_null(kt_model_linear_name(model, (size_t)model->num_linears));
}
END_TEST

START_TEST(configuration_is_read)
{
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    const struct kt_model_config *c = &model->config;
    kt_model_info info = {.size = sizeof info};
    ck_assert_int_eq(kt_model_get_info(model, &info), KT_OK);
    ck_assert_str_eq(info.architecture, "DeepseekV3ForCausalLM");
    ck_assert_int_eq(info.eos_token_id, 1);
    ck_assert_int_eq(info.bos_token_id, 0);
    ck_assert_int_eq(info.num_dense_layers, 1);
    ck_assert_int_eq(info.num_experts_per_tok, 2);
    ck_assert_int_eq(c->router.n_group, 2);
    ck_assert_int_eq(c->router.group_score, KT_GROUP_TOP2_SUM);
    ck_assert_float_eq(c->latent_norm_eps, 1e-6f);
    ck_assert_float_eq_tol(c->softmax_scale, 1 / sqrtf(6), 1e-7f);
    ck_assert(c->rope.interleaved);
}
END_TEST

START_TEST(parameters_and_bytes_are_counted)
{
    uint64_t parameters = 0, experts = 3 * 6 * TINY_HIDDEN * TINY_EXPERTS;
    for (size_t i = 0; i < tiny.num; i++)
        parameters += tiny.tensors[i].bytes / sizeof(float);
    tiny_add(&tiny, "model.layers.2.enorm.weight", TINY_HIDDEN, 0);
    tiny_add(&tiny, "model.layers.2.eh_proj.weight", TINY_HIDDEN, 16);
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    kt_model_info info = {.size = sizeof info};
    ck_assert_int_eq(kt_model_get_info(model, &info), KT_OK);
    ck_assert_uint_eq(info.num_parameters, parameters);
    ck_assert_uint_eq(info.num_bytes, parameters * sizeof(float));
    ck_assert_uint_eq(info.num_skipped_bytes, TINY_HIDDEN * (1 + 16) * sizeof(float));
    ck_assert_uint_eq(info.num_active_parameters,
                      parameters - experts / 2 - (TINY_VOCAB - 1) * TINY_HIDDEN);
    ck_assert_ptr_null(strstr(fixture_log, "no use for"));
    ck_assert_uint_eq(kt_model_num_tensors(model), tiny.num);
    size_t used = 0;
    for (size_t i = 0; i < tiny.num; i++) {
        kt_tensor_info tensor = {.size = sizeof tensor};
        ck_assert_int_eq(kt_model_get_tensor(model, i, &tensor), KT_OK);
        used += (size_t)tensor.used;
    }
    ck_assert_uint_eq(used, tiny.num - 2);
    ck_assert_int_eq(kt_model_get_tensor(model, tiny.num, &(kt_tensor_info){.size = 8}),
                     KT_ERROR_INVALID_ARGUMENT);
}
END_TEST

START_TEST(unknown_tensors_are_named_in_the_log)
{
    tiny_add(&tiny, "model.layers.3.enorm.weight", TINY_HIDDEN, 0);
    tiny_add(&tiny, "model.layers.1.self_attn.rotary_emb.inv_freq", 1, 0);
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    ck_assert_ptr_nonnull(strstr(fixture_log, "no use for 1 of"));
    ck_assert_ptr_nonnull(strstr(fixture_log, "model.layers.3.enorm.weight"));
    ck_assert_ptr_null(strstr(fixture_log, "inv_freq"));
}
END_TEST

START_TEST(tied_embeddings_are_the_head)
{
    tiny_set(&tiny, "tie_word_embeddings", "true");
    tiny_remove(&tiny, "lm_head.weight");
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    ck_assert_ptr_eq(model->lm_head->weight.data, model->embed_tokens.data);
    ck_assert_str_eq(model->lm_head->name, "lm_head");
    ck_assert_uint_eq(model->num_bytes, model->num_parameters * sizeof(float));
}
END_TEST

START_TEST(attention_biases_are_read)
{
    tiny_set(&tiny, "attention_bias", "true");
    for (int i = 0; i < TINY_LAYERS; i++) {
        tiny_addf(&tiny, "model.layers.%d.self_attn.q_a_proj.bias", 7, 0, i);
        tiny_addf(&tiny, "model.layers.%d.self_attn.kv_a_proj_with_mqa.bias", 7, 0, i);
    }
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_NOT_FOUND, "self_attn.o_proj.bias");
    for (int i = 0; i < TINY_LAYERS; i++)
        tiny_addf(&tiny, "model.layers.%d.self_attn.o_proj.bias", TINY_HIDDEN, 0, i);
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    check_vector(model->layers[1].o->bias, "model.layers.1.self_attn.o_proj.bias");
    check_vector(model->layers[0].kv_a->bias, "model.layers.0.self_attn.kv_a_proj_with_mqa.bias");
    ck_assert_ptr_null(model->layers[0].q_b->bias);
}
END_TEST

START_TEST(half_precision_tensors_are_kept_or_widened)
{
    for (size_t i = 0; i < tiny.num; i++)
        tiny_narrow(&tiny.tensors[i], i % 2 ? KT_DTYPE_F16 : KT_DTYPE_BF16);
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    for (int32_t i = 0; i < model->num_linears; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s.weight", model->linears[i].name);
        check_weight(&model->linears[i].weight, name);
    }
    check_vector(model->layers[0].input_norm, "model.layers.0.input_layernorm.weight");
    check_vector(model->layers[0].post_attention_norm,
                 "model.layers.0.post_attention_layernorm.weight");
}
END_TEST

START_TEST(missing_and_misshapen_tensors_are_named)
{
    const char *name = "model.layers.1.mlp.experts.2.up_proj.weight";
    struct kt_tensor *t = tiny_find(&tiny, name);
    t->shape[0] = TINY_HIDDEN;
    t->shape[1] = 6;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_MISMATCH, name);
    const char *sentence = kt_last_error(fixture_context);
    ck_assert_ptr_nonnull(strstr(sentence, "[8, 6]"));
    ck_assert_ptr_nonnull(strstr(sentence, "[6, 8]"));
    ck_assert_ptr_nonnull(strstr(sentence, "moe_intermediate_size x hidden_size"));
    ck_assert_ptr_null(model);
    tiny_remove(&tiny, name);
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_NOT_FOUND, name);
}
END_TEST

START_TEST(other_dtypes_are_refused)
{
    struct kt_tensor *t = tiny_find(&tiny, "model.layers.0.mlp.gate_proj.weight");
    t->dtype = KT_DTYPE_F8_E4M3;
    t->bytes /= 4;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_UNSUPPORTED, "F8_E4M3");
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), t->name));
}
END_TEST

static const char *const finite_names[] = {
    "model.norm.weight", "model.layers.1.mlp.experts.3.down_proj.weight",
    "model.layers.1.mlp.gate.e_score_correction_bias", "model.embed_tokens.weight"};

START_TEST(weights_that_are_not_finite_are_named)
{
    struct kt_tensor *t = tiny_find(&tiny, finite_names[_i]);
    kt_model_options options;
    kt_model_options_init(&options, sizeof options);
    ((float *)t->data)[t->shape[0] / 2] = _i % 2 ? NAN : -INFINITY;
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_NUMERIC, finite_names[_i]);
    options.check_finite = 0;
    ck_assert_int_eq(kt_model_load(fixture_context, fixture_folder, &options, &model), KT_OK);
    ck_assert_fails(kt_model_check_finite(model), KT_ERROR_NUMERIC, finite_names[_i]);
    options.check_finite = 3;
    ck_assert_int_eq(kt_model_load(fixture_context, fixture_folder, &options, &(kt_model *){0}),
                     KT_ERROR_INVALID_ARGUMENT);
}
END_TEST

static int32_t say_stop(void *user)
{
    (void)user;
    return 1;
}

START_TEST(the_search_can_be_cancelled)
{
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    fixture_context->options.cancel = say_stop;
    ck_assert_fails(kt_model_check_finite(model), KT_ERROR_CANCELLED, "cancelled");
    kt_model *second;
    ck_assert_fails(tiny_load(&tiny, &second), KT_ERROR_CANCELLED, "cancelled");
    ck_assert_ptr_null(second);
}
END_TEST

START_TEST(nan_is_found_in_half_precision)
{
    struct kt_tensor *t = tiny_find(&tiny, "model.layers.0.self_attn.o_proj.weight");
    tiny_narrow(t, _i ? KT_DTYPE_F16 : KT_DTYPE_BF16);
    ((uint16_t *)t->data)[5] = _i ? 0x7bff : 0x7f7f; /* the largest finite number */
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    ((uint16_t *)t->data)[5] = _i ? 0xfc01 : 0xff81;
    kt_model_free(model);
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_NUMERIC, "o_proj.weight");
}
END_TEST

static const struct {
    const char *key, *value;
    kt_status status;
    const char *sentence;
} bad_v3[] = {
    {"num_hidden_layers", "1000000000", KT_ERROR_FORMAT, "\"num_hidden_layers\" is 1000000000"},
    {"num_hidden_layers", "4096", KT_ERROR_NOT_FOUND, "model.layers.2.input_layernorm.weight"},
    {"num_hidden_layers", "0", KT_ERROR_FORMAT, "num_hidden_layers"},
    {"num_hidden_layers", "\"2\"", KT_ERROR_FORMAT, "must be an integer"},
    {"num_hidden_layers", NULL, KT_ERROR_NOT_FOUND, "num_hidden_layers"},
    {"n_routed_experts", "0", KT_ERROR_FORMAT, "n_routed_experts"},
    {"n_routed_experts", "65536", KT_ERROR_MISMATCH, "n_routed_experts"},
    {"num_attention_heads", "0", KT_ERROR_FORMAT, "num_attention_heads"},
    {"num_key_value_heads", "1", KT_ERROR_UNSUPPORTED, "num_key_value_heads"},
    {"num_experts_per_tok", "5", KT_ERROR_FORMAT, "num_experts_per_tok"},
    {"num_experts_per_tok", "3", KT_ERROR_FORMAT, "num_experts_per_tok"},
    {"n_group", "3", KT_ERROR_FORMAT, "n_group"},
    {"n_group", "0", KT_ERROR_FORMAT, "n_group"},
    {"topk_group", "3", KT_ERROR_FORMAT, "topk_group"},
    {"hidden_size", "-8", KT_ERROR_FORMAT, "hidden_size"},
    {"hidden_size", "9", KT_ERROR_MISMATCH, "hidden_size"},
    {"vocab_size", "9223372036854775807", KT_ERROR_FORMAT, "vocab_size"},
    {"vocab_size", "1e30", KT_ERROR_FORMAT, "vocab_size"},
    {"moe_layer_freq", "0", KT_ERROR_FORMAT, "moe_layer_freq"},
    {"first_k_dense_replace", "-1", KT_ERROR_FORMAT, "first_k_dense_replace"},
    {"qk_rope_head_dim", "3", KT_ERROR_FORMAT, "even"},
    {"rms_norm_eps", "-1", KT_ERROR_FORMAT, "rms_norm_eps"},
    {"rope_theta", "0", KT_ERROR_FORMAT, "rope_theta"},
    {"rope_scaling", "7", KT_ERROR_FORMAT, "rope_scaling"},
    {"rope_scaling", "{\"type\":\"longrope\",\"factor\":2}", KT_ERROR_UNSUPPORTED, "\"longrope\""},
    {"rope_scaling", "{\"type\":\"linear\"}", KT_ERROR_FORMAT, "rope_scaling.factor"},
    {"rope_scaling", "{\"rope_type\":\"llama3\"}", KT_ERROR_FORMAT, "rope_scaling.factor"},
    {"rope_scaling", "{\"type\":\"yarn\"}", KT_ERROR_FORMAT, "rope_scaling.factor"},
    {"rope_scaling", "{\"type\":\"yarn\",\"factor\":-2}", KT_ERROR_FORMAT, "rope_scaling.factor"},
    {"hidden_act", "\"gelu\"", KT_ERROR_UNSUPPORTED, "gelu"},
    {"scoring_func", "\"softmax\"", KT_ERROR_UNSUPPORTED, "scoring_func"},
    {"topk_method", "\"greedy\"", KT_ERROR_UNSUPPORTED, "topk_method"},
    {"eos_token_id", "11", KT_ERROR_FORMAT, "eos_token_id"},
    {"eos_token_id", "[\"a\"]", KT_ERROR_FORMAT, "eos_token_id"},
    {"architectures", "[\"GPT2LMHeadModel\"]", KT_ERROR_UNSUPPORTED, "DeepseekV3ForCausalLM"},
    {"architectures", NULL, KT_ERROR_FORMAT, "\"architectures\""},
};

START_TEST(bad_configurations_are_refused)
{
    tiny_set(&tiny, bad_v3[_i].key, bad_v3[_i].value);
    ck_assert_fails(tiny_load(&tiny, &model), bad_v3[_i].status, bad_v3[_i].sentence);
    ck_assert_ptr_null(model);
}
END_TEST

START_TEST(v2_refuses_other_routing)
{
    tiny_set(&tiny, "norm_topk_prob", "true");
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_UNSUPPORTED, "norm_topk_prob");
    tiny_set(&tiny, "norm_topk_prob", "false");
    tiny_set(&tiny, "topk_method", "\"noaux_tc\"");
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_UNSUPPORTED, "topk_method");
    tiny_set(&tiny, "topk_method", "\"group_limited_greedy\"");
    ck_assert_fails(tiny_load(&tiny, &model), KT_ERROR_NOT_FOUND, "n_group");
    tiny_set(&tiny, "n_group", "4");
    tiny_set(&tiny, "topk_group", "2");
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    ck_assert_int_eq(model->config.router.group_score, KT_GROUP_MAX);
}
END_TEST

START_TEST(files_that_are_missing_or_damaged_are_named)
{
    kt_context *ctx = fixture_context;
    ck_assert_fails(kt_model_load(ctx, fixture_path("no"), NULL, &model), KT_ERROR_NOT_FOUND,
                    "config.json");
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    kt_model_free(model);
    fixture_write("config.json", "{\"architectures\": [", 19);
    ck_assert_fails(kt_model_load(ctx, fixture_folder, NULL, &model), KT_ERROR_FORMAT,
                    "config.json");
    fixture_write("config.json", "[]", 2);
    ck_assert_fails(kt_model_load(ctx, fixture_folder, NULL, &model), KT_ERROR_FORMAT, "object");
    fixture_write("config.json", "", 0);
    ck_assert_fails(kt_model_load(ctx, fixture_folder, NULL, &model), KT_ERROR_FORMAT,
                    "config.json");
    tiny_write(&tiny);
    ck_assert_int_eq(truncate(fixture_path("model.safetensors"), 9000), 0);
    ck_assert_fails(kt_model_load(ctx, fixture_folder, NULL, &model), KT_ERROR_FORMAT, "truncated");
    unlink(fixture_path("model.safetensors"));
    ck_assert_fails(kt_model_load(ctx, fixture_folder, NULL, &model), KT_ERROR_NOT_FOUND,
                    "neither");
}
END_TEST

/* Values of transformers 4.57.1 for DeepSeek-V3's own rope_scaling and for two others. */
struct rope_value {
    int32_t position, pair;
    float cos, sin;
};

static void check_rope(const char *scaling, int32_t dim, int32_t length,
                       const struct rope_value *values, size_t num)
{
    char text[16];
    struct kt_rope_config *rope;
    float *cosines = malloc(sizeof(float) * 8192 * 32), *sines = malloc(sizeof(float) * 8192 * 32);
    snprintf(text, sizeof text, "%d", length);
    tiny_set(&tiny, "max_position_embeddings", text);
    tiny_set(&tiny, "rope_scaling", scaling);
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    rope = &model->config.rope;
    rope->dim = dim;
    kt_rope_tables(rope, length, 0, length, cosines, sines);
    for (size_t i = 0; i < num; i++) {
        size_t at = (size_t)(values[i].position * (dim / 2) + values[i].pair);
        ck_assert_float_eq_tol(cosines[at], values[i].cos, 2e-7f);
        ck_assert_float_eq_tol(sines[at], values[i].sin, 2e-7f);
    }
    kt_model_free(model);
    model = NULL;
    free(cosines);
    free(sines);
}

START_TEST(rope_tables_are_those_of_transformers)
{
    static const struct rope_value v3[] = {
        {1, 0, 0.540302336f, 0.841470957f},       {1, 31, 1.0f, 3.33380353e-06f},
        {100, 9, 0.347628087f, 0.937632501f},     {4095, 0, -0.0659759939f, -0.997821212f},
        {4095, 12, -0.993367076f, -0.114986107f}, {8191, 15, 0.662180722f, -0.74934417f},
        {8191, 23, 0.962947011f, 0.269690722f},   {8191, 31, 0.999627173f, 0.0273037907f}};
    static const struct rope_value small[] = {{1, 0, 0.561047316f, 0.873779356f},
                                              {7, 1, 1.02253532f, 0.180793047f},
                                              {63, 2, 1.02554238f, 0.162871912f},
                                              {63, 3, 1.03826642f, 0.0163540468f}};
    static const struct rope_value smooth[] = {{1, 0, 0.675377905f, 1.05183864f},
                                               {7, 1, 0.633387685f, 1.07764554f},
                                               {63, 2, -0.00525463559f, 1.24998903f},
                                               {63, 7, 1.2499845f, 0.00622570887f}};
    check_rope("{\"type\":\"yarn\",\"factor\":40,\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1.0,"
               "\"mscale_all_dim\":1.0,\"original_max_position_embeddings\":4096}",
               64, 8192, v3, 8);
    check_rope("{\"rope_type\":\"yarn\",\"factor\":4.0,\"beta_fast\":8,\"beta_slow\":1,"
               "\"mscale\":0.9,\"mscale_all_dim\":0.6,\"original_max_position_embeddings\":16}",
               8, 64, small, 4);
    check_rope("{\"type\":\"yarn\",\"factor\":4.0,\"truncate\":false,\"attention_factor\":1.25,"
               "\"original_max_position_embeddings\":32}",
               16, 64, smooth, 4);
}
END_TEST

START_TEST(yarn_scales_the_softmax)
{
    tiny_set(&tiny, "rope_scaling", "{\"type\":\"yarn\",\"factor\":40,\"mscale_all_dim\":0.707}");
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    double mscale = 0.1 * 0.707 * log(40) + 1;
    ck_assert_double_eq_tol(model->config.softmax_scale, mscale * mscale / sqrt(6), 1e-7);
    ck_assert_double_eq_tol(model->config.rope.attention_factor, 0.1 * log(40) + 1, 1e-12);
}
END_TEST

START_TEST(rope_parameters_replace_the_older_keys)
{
    tiny_set(&tiny, "rope_theta", NULL);
    tiny_set(&tiny, "rope_parameters", "{\"rope_type\":\"default\",\"rope_theta\":50000.0}");
    ck_assert_int_eq(tiny_load(&tiny, &model), KT_OK);
    ck_assert_double_eq(model->config.rope.theta, 50000.0);
}
END_TEST

static const struct {
    const char *name;
    int32_t layers, linears;
    uint64_t skipped;
} goldens[] = {{"v2", 3, 97, 0},
               {"v2f16", 2, 53, 0},
               {"v2lite", 2, 51, 0},
               {"v3", 3, 97, 282128},
               {"v3bf16", 3, 97, 141088}};

START_TEST(reference_checkpoints_load)
{
    char path[512];
    kt_model_info info = {.size = sizeof info};
    snprintf(path, sizeof path, "%s/cases/%s/model", KT_REFERENCE_DIR, goldens[_i].name);
    ck_assert_int_eq(kt_model_load(fixture_context, path, NULL, &model), KT_OK);
    ck_assert_int_eq(kt_model_get_info(model, &info), KT_OK);
    ck_assert_int_eq(info.num_hidden_layers, goldens[_i].layers);
    ck_assert_uint_eq(kt_model_num_linears(model), (size_t)goldens[_i].linears);
    ck_assert_uint_eq(info.num_skipped_bytes, goldens[_i].skipped);
    ck_assert_ptr_null(strstr(fixture_log, "no use for"));
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("v3", .setup = setup_v3, .teardown = teardown),
        TEST(v3_tensors_come_to_their_places),
        TEST(linears_are_numbered_and_named),
        TEST(configuration_is_read),
        TEST(parameters_and_bytes_are_counted),
        TEST(unknown_tensors_are_named_in_the_log),
        TEST(tied_embeddings_are_the_head),
        TEST(attention_biases_are_read),
        TEST(half_precision_tensors_are_kept_or_widened),
        TEST(missing_and_misshapen_tensors_are_named),
        TEST(other_dtypes_are_refused),
        LOOP(weights_that_are_not_finite_are_named, 4),
        LOOP(nan_is_found_in_half_precision, 2),
        TEST(the_search_can_be_cancelled),
        LOOP(bad_configurations_are_refused, sizeof bad_v3 / sizeof *bad_v3),
        TEST(files_that_are_missing_or_damaged_are_named),
        TEST(rope_tables_are_those_of_transformers),
        TEST(yarn_scales_the_softmax),
        TEST(rope_parameters_replace_the_older_keys),
        LOOP(reference_checkpoints_load, sizeof goldens / sizeof *goldens),
        GROUP("v2", .setup = setup_v2, .teardown = teardown),
        TEST(v2_tensors_come_to_their_places),
        TEST(v2_refuses_other_routing),
    };
    return RUN_TESTS("model", tests);
}
