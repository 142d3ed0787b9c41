/* SPDX-License-Identifier: Apache-2.0 */
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "weights/dtype.h"
#include "fixture.h"
#include "formats/safetensors.h"
#include "model/adapter.h"
#include "toy_model.h"
#include "main.h"

static kt_model *model;

static void setup(void)
{
    fixture_setup();
    model = toy_model_new(fixture_context);
}

static void teardown(void)
{
    toy_model_delete(model);
    fixture_teardown();
}

static kt_lora *create(const char *target, int experts, float dropout)
{
    kt_lora_options options;
    kt_lora *lora;
    kt_lora_options_init(&options, sizeof options);
    options.rank = 4;
    options.alpha = 6.5f;
    options.dropout = dropout;
    options.use_rslora = 1;
    options.target = target;
    options.target_experts = experts;
    ck_assert_int_eq(kt_lora_create(model, &options, &lora), KT_OK);
    for (uint64_t i = 0; i < lora->num_parameters; i++)
        lora->data[i] = (float)sin(1.1 * (double)i);
    return lora;
}

static kt_lora *load(void)
{
    kt_lora *lora;
    ck_assert_msg(kt_lora_load(model, fixture_folder, &lora) == KT_OK, "%s",
                  kt_last_error(fixture_context));
    return lora;
}

static json_t *read_config(const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    ck_assert_msg(root != NULL, "%s", error.text);
    return root;
}

static void write_config(json_t *root)
{
    ck_assert_int_eq(json_dump_file(root, fixture_path("adapter_config.json"), 0), 0);
}

static void expect_same(const kt_lora *a, const kt_lora *b)
{
    ck_assert_int_eq(a->num_attached, b->num_attached);
    ck_assert_mem_eq(a->attached, b->attached, (size_t)a->num_attached * sizeof *a->attached);
    ck_assert_mem_eq(a->alphas, b->alphas, (size_t)a->num_attached * sizeof *a->alphas);
    ck_assert_uint_eq(a->num_parameters, b->num_parameters);
    ck_assert_mem_eq(a->data, b->data, a->num_parameters * sizeof(float));
    ck_assert(a->config.dropout == b->config.dropout);
    ck_assert_int_eq(a->config.rank, b->config.rank);
    for (int32_t k = 0; k < a->num_attached; k++) {
        const struct kt_lora_pair *p = &a->slots[a->attached[k]], *q = &b->slots[a->attached[k]];
        ck_assert(p->scale == q->scale && p->rank == q->rank && p->dropout == q->dropout);
    }
}

START_TEST(a_saved_adapter_comes_back_bit_for_bit)
{
    const char *targets[] = {"all", "all,lm_head", "experts.1.down_proj", "o_proj"};
    const float dropouts[] = {0, 0.1f, 1 / 3.0f};
    for (int i = 0; i < 4; i++) {
        kt_lora *saved = create(targets[i], i % 2, dropouts[i % 3]);
        ck_assert_int_eq(kt_lora_save(saved, fixture_folder), KT_OK);
        kt_lora *loaded = load();
        expect_same(saved, loaded);
        for (uint64_t j = 0; j < loaded->num_parameters; j++)
            ck_assert(loaded->grad[j] == 0);
        kt_lora_free(saved);
        kt_lora_free(loaded);
    }
    ck_assert_int_eq(fixture_files(0), 2);
}
END_TEST

static void expect_targets(const char *target, int experts, const char *expected)
{
    kt_lora *lora = create(target, experts, 0);
    ck_assert_int_eq(kt_lora_save(lora, fixture_folder), KT_OK);
    json_t *root = read_config(fixture_path("adapter_config.json"));
    char *text = json_dumps(json_object_get(root, "target_modules"), JSON_COMPACT);
    ck_assert_str_eq(text, expected);
    free(text);
    json_decref(root);
    kt_lora_free(lora);
}

START_TEST(target_modules_select_exactly_the_attached_linears)
{
    expect_targets("all", 1, "[\"down_proj\",\"gate_proj\",\"o_proj\",\"q_a_proj\"]");
    expect_targets("all", 0,
                   "[\"mlp.down_proj\",\"mlp.gate_proj\",\"self_attn.o_proj\","
                   "\"self_attn.q_a_proj\",\"shared_experts.down_proj\"]");
    expect_targets("lm_head", 0, "[\"lm_head\"]");
    expect_targets("model.layers.1.self_attn.o_proj,lm_head", 0,
                   "[\"1.self_attn.o_proj\",\"lm_head\"]");
}
END_TEST

START_TEST(the_configuration_has_the_keys_of_peft)
{
    kt_lora *lora = create("all", 1, 0.05f);
    ck_assert_int_eq(kt_lora_save(lora, fixture_folder), KT_OK);
    json_t *ours = read_config(fixture_path("adapter_config.json"));
    json_t *theirs = read_config(KT_REFERENCE_DIR "/cases/v3/adapter/adapter_config.json"), *value;
    const char *key;
    const char *may_differ[] = {"base_model_name_or_path", "lora_alpha", "lora_dropout",
                                "target_modules", "use_rslora"};
    for (size_t i = 0; i < sizeof may_differ / sizeof may_differ[0]; i++)
        ck_assert_ptr_nonnull(json_object_get(ours, may_differ[i]));
    ck_assert_str_eq(json_string_value(json_object_get(ours, "base_model_name_or_path")),
                     "models/toy");
    ck_assert(json_real_value(json_object_get(ours, "lora_alpha")) == 6.5);
    ck_assert(json_real_value(json_object_get(ours, "lora_dropout")) == 0.05);
    ck_assert(json_is_true(json_object_get(ours, "use_rslora")));
    for (size_t i = 0; i < sizeof may_differ / sizeof may_differ[0]; i++) {
        json_object_del(ours, may_differ[i]);
        json_object_del(theirs, may_differ[i]);
    }
    json_object_foreach(theirs, key, value)
        ck_assert_msg(json_equal(value, json_object_get(ours, key)), "%s differs", key);
    ck_assert_uint_eq(json_object_size(ours), json_object_size(theirs));
    json_decref(ours);
    json_decref(theirs);
    kt_lora_free(lora);
}
END_TEST

/* Saves `lora` as another dtype, or with something wrong. */
struct edit {
    kt_dtype dtype;
    const char *drop;                /* tensor left out */
    const char *rename, *renamed_to; /* tensor under another name */
    const char *reshape;             /* tensor with rows and columns swapped */
    const char *poison;              /* tensor whose value 3 is NaN */
};

static void write_edited(const kt_lora *lora, const struct edit *e)
{
    struct kt_tensor tensors[2 * TOY_LINEARS];
    void *buffers[2 * TOY_LINEARS];
    size_t num = 0;
    for (size_t i = 0; i < kt_lora_num_tensors(lora); i++) {
        kt_lora_tensor t = {.size = sizeof t};
        kt_lora_get_tensor(lora, i, &t);
        if (e->drop && strstr(t.name, e->drop))
            continue;
        size_t n = (size_t)(t.rows * t.cols);
        float *values = buffers[num] = malloc(n * sizeof *values);
        memcpy(values, t.data, n * sizeof *values);
        if (e->poison && strstr(t.name, e->poison))
            values[3] = NAN;
        for (size_t j = 0; e->dtype == KT_DTYPE_BF16 && j < n; j++)
            ((uint16_t *)buffers[num])[j] = kt_f32_to_bf16(values[j]);
        bool swap = e->reshape && strstr(t.name, e->reshape);
        bool rename = e->rename && strstr(t.name, e->rename);
        tensors[num] = (struct kt_tensor){.name = rename ? e->renamed_to : t.name,
                                          .dtype = e->dtype,
                                          .ndim = 2,
                                          .shape = {swap ? t.cols : t.rows, swap ? t.rows : t.cols},
                                          .data = values,
                                          .bytes = n * kt_dtype_size(e->dtype)};
        num++;
    }
    ck_assert_int_eq(kt_safetensors_write(fixture_context,
                                          fixture_path("adapter_model.safetensors"), tensors, num,
                                          NULL),
                     KT_OK);
    while (num > 0)
        free(buffers[--num]);
}

START_TEST(bf16_adapters_are_widened)
{
    kt_lora *saved = create("all", 0, 0);
    ck_assert_int_eq(kt_lora_save(saved, fixture_folder), KT_OK);
    write_edited(saved, &(struct edit){.dtype = KT_DTYPE_BF16});
    kt_lora *loaded = load();
    for (uint64_t i = 0; i < saved->num_parameters; i++)
        ck_assert(loaded->data[i] == kt_bf16_to_f32(kt_f32_to_bf16(saved->data[i])));
    kt_lora_free(saved);
    kt_lora_free(loaded);
}
END_TEST

START_TEST(bad_tensors_are_refused_by_name)
{
    const struct {
        struct edit edit;
        kt_status status;
        const char *sentence;
    } cases[] = {
        {{.drop = "layers.0.self_attn.o_proj.lora_B"},
         KT_ERROR_MISMATCH,
         "layers.0.self_attn.o_proj.lora_B.weight is missing"},
        {{.drop = "layers.0.mlp.gate_proj.lora_A"},
         KT_ERROR_MISMATCH,
         "layers.0.mlp.gate_proj.lora_A.weight is missing"},
        {{.drop = "lora_"}, KT_ERROR_FORMAT, "no tensors"},
        {{.reshape = "layers.1.self_attn.o_proj.lora_A"},
         KT_ERROR_MISMATCH,
         "layers.1.self_attn.o_proj.lora_A.weight has shape [20, 4], but rank 4 on "
         "model.layers.1.self_attn.o_proj [16, 20] of models/toy needs [4, 20]"},
        {{.rename = "layers.0.mlp.gate_proj.lora_A",
          .renamed_to = "base_model.model.model.layers.7.mlp.gate_proj.lora_A.weight"},
         KT_ERROR_MISMATCH,
         "no linear model.layers.7.mlp.gate_proj"},
        {{.rename = "layers.0.mlp.gate_proj.lora_A",
          .renamed_to = "base_model.model.model.layers.1.mlp.experts.lora_A.weight"},
         KT_ERROR_UNSUPPORTED,
         "all experts as one parameter"},
        {{.rename = "layers.0.mlp.gate_proj.lora_A",
          .renamed_to = "base_model.model.model.layers.1.mlp.experts.base_layer.lora_A.weight"},
         KT_ERROR_UNSUPPORTED,
         "all experts as one parameter"},
        {{.rename = "layers.0.mlp.gate_proj.lora_A",
          .renamed_to = "base_model.model.model.embed_tokens.lora_embedding_A"},
         KT_ERROR_UNSUPPORTED,
         "lora_embedding_A"},
        {{.rename = "layers.0.mlp.gate_proj.lora_A", .renamed_to = ".lora_A.weight"},
         KT_ERROR_UNSUPPORTED,
         ".lora_A.weight"},
        {{.poison = "layers.0.mlp.gate_proj.lora_B"},
         KT_ERROR_NUMERIC,
         "layers.0.mlp.gate_proj.lora_B.weight has NaN at [0, 3]"},
        {{.dtype = KT_DTYPE_I32}, KT_ERROR_UNSUPPORTED, "has dtype I32"},
    };
    kt_lora *good = create("all", 0, 0), *lora;
    ck_assert_int_eq(kt_lora_save(good, fixture_folder), KT_OK);
    uint64_t used = kt_context_memory_used(fixture_context);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_edited(good, &cases[i].edit);
        ck_assert_fails(kt_lora_load(model, fixture_folder, &lora), cases[i].status,
                        cases[i].sentence);
        ck_assert_fails(kt_lora_load(model, fixture_folder, &lora), cases[i].status,
                        "adapter_model.safetensors");
        ck_assert_ptr_null(lora);
        ck_assert_uint_eq(kt_context_memory_used(fixture_context), used);
    }
    kt_lora_free(good);
}
END_TEST

START_TEST(features_beyond_plain_lora_are_refused_by_key)
{
    const struct {
        const char *key, *value;
        kt_status status;
    } cases[] = {
        {"peft_type", "\"IA3\"", KT_ERROR_UNSUPPORTED},
        {"peft_type", "null", KT_ERROR_NOT_FOUND},
        {"use_dora", "true", KT_ERROR_UNSUPPORTED},
        {"use_qalora", "true", KT_ERROR_UNSUPPORTED},
        {"bias", "\"all\"", KT_ERROR_UNSUPPORTED},
        {"lora_bias", "true", KT_ERROR_UNSUPPORTED},
        {"modules_to_save", "[\"lm_head\"]", KT_ERROR_UNSUPPORTED},
        {"target_parameters", "[\"mlp.experts.gate_up_proj\"]", KT_ERROR_UNSUPPORTED},
        {"trainable_token_indices", "[1]", KT_ERROR_UNSUPPORTED},
        {"layer_replication", "[[0, 1]]", KT_ERROR_UNSUPPORTED},
        {"init_lora_weights", "\"pissa\"", KT_ERROR_UNSUPPORTED},
        {"a_key_of_the_future", "{\"x\": 1}", KT_ERROR_UNSUPPORTED},
        {"r", "0", KT_ERROR_FORMAT},
        {"r", "null", KT_ERROR_NOT_FOUND},
        {"r", "\"4\"", KT_ERROR_FORMAT},
        {"lora_alpha", "1e39", KT_ERROR_FORMAT},
        {"lora_dropout", "1", KT_ERROR_FORMAT},
        {"rank_pattern", "{\"q(\": 4}", KT_ERROR_FORMAT},
        {"alpha_pattern", "[]", KT_ERROR_FORMAT},
    };
    kt_lora *good = create("all", 0, 0), *lora;
    ck_assert_int_eq(kt_lora_save(good, fixture_folder), KT_OK);
    json_t *config = read_config(fixture_path("adapter_config.json"));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *edited = json_deep_copy(config);
        json_object_set_new(edited, cases[i].key,
                            json_loads(cases[i].value, JSON_DECODE_ANY, NULL));
        write_config(edited);
        json_decref(edited);
        ck_assert_fails(kt_lora_load(model, fixture_folder, &lora), cases[i].status, cases[i].key);
    }
    json_object_set_new(config, "init_lora_weights", json_string("gaussian"));
    json_object_set_new(config, "peft_version", json_string("0.18.0"));
    write_config(config);
    kt_lora_free(load());
    json_decref(config);
    kt_lora_free(good);
}
END_TEST

START_TEST(patterns_give_linears_ranks_and_alphas_of_their_own)
{
    kt_lora *saved = create("all", 1, 0);
    ck_assert_int_eq(kt_lora_save(saved, fixture_folder), KT_OK);
    json_t *config = read_config(fixture_path("adapter_config.json"));
    json_object_set_new(config, "r", json_integer(7));
    json_object_set_new(config, "rank_pattern", json_pack("{s:i}", "[a-z_]*proj", 4));
    json_object_set_new(config, "alpha_pattern",
                        json_pack("{s:i, s:i}", "experts.1.down_proj", 3, "down_proj", 5));
    write_config(config);
    json_decref(config);
    kt_lora *loaded = load();
    ck_assert(loaded->slots[8].scale == (float)(3 / sqrt(4)));
    ck_assert(loaded->slots[7].scale == (float)(5 / sqrt(4)));
    ck_assert(loaded->slots[0].scale == (float)(6.5 / sqrt(4)));
    ck_assert_int_eq(kt_lora_save(loaded, fixture_folder), KT_OK);
    kt_lora *again = load();
    expect_same(loaded, again);
    kt_lora_free(saved);
    kt_lora_free(loaded);
    kt_lora_free(again);
}
END_TEST

START_TEST(damaged_and_missing_files_are_named)
{
    kt_lora *good = create("all", 0, 0), *lora;
    ck_assert_fails(kt_lora_load(model, fixture_folder, &lora), KT_ERROR_NOT_FOUND,
                    "adapter_config.json");
    ck_assert_int_eq(kt_lora_save(good, fixture_folder), KT_OK);
    ck_assert_int_eq(truncate(fixture_path("adapter_model.safetensors"), 3000), 0);
    ck_assert_fails(kt_lora_load(model, fixture_folder, &lora), KT_ERROR_FORMAT,
                    "adapter_model.safetensors");
    unlink(fixture_path("adapter_model.safetensors"));
    ck_assert_fails(kt_lora_load(model, fixture_folder, &lora), KT_ERROR_NOT_FOUND,
                    "adapter_model.safetensors");
    fixture_write("adapter_config.json", "{\"r\": 4", 7);
    ck_assert_fails(kt_lora_load(model, fixture_folder, &lora), KT_ERROR_FORMAT,
                    "adapter_config.json");
    fixture_write("adapter_config.json", "[1]", 3);
    ck_assert_fails(kt_lora_load(model, fixture_folder, &lora), KT_ERROR_FORMAT,
                    "adapter_config.json");
    kt_lora_free(good);
}
END_TEST

START_TEST(a_folder_that_cannot_be_written_is_named)
{
    kt_lora *lora = create("all", 0, 0);
    const char *nested = fixture_path("new/folder");
    fixture_write("file", "x", 1);
    ck_assert_fails(kt_lora_save(lora, fixture_path("file/adapter")), KT_ERROR_IO, "file/adapter");
    ck_assert_fails(kt_lora_save(lora, fixture_path("file")), KT_ERROR_IO, "file");
    ck_assert_int_eq(kt_lora_save(lora, nested), KT_OK);
    unlink(fixture_path("new/folder/adapter_config.json"));
    unlink(fixture_path("new/folder/adapter_model.safetensors"));
    ck_assert_int_eq(rmdir(nested), 0);
    ck_assert_int_eq(rmdir(fixture_path("new")), 0);
    kt_lora_free(lora);
}
END_TEST

/* A file-size limit stands for a full disk: write fails in the middle. */
START_TEST(a_full_disk_leaves_the_old_adapter_whole)
{
    kt_lora *lora = create("all", 1, 0);
    struct rlimit old, small;
    ck_assert_int_eq(kt_lora_save(lora, fixture_folder), KT_OK);
    lora->data[0] += 1;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 2000;
    setrlimit(RLIMIT_FSIZE, &small);
    kt_status status = kt_lora_save(lora, fixture_folder);
    kt_status fresh = kt_lora_save(lora, fixture_path("new"));
    setrlimit(RLIMIT_FSIZE, &old);
    ck_assert_fails(status, KT_ERROR_IO, "");
    ck_assert_int_eq(fresh, KT_ERROR_IO);
    ck_assert_int_eq(access(fixture_path("new"), F_OK), -1);
    ck_assert_int_eq(fixture_files(0), 2);
    kt_lora *loaded = load();
    lora->data[0] -= 1;
    expect_same(lora, loaded);
    kt_lora_free(lora);
    kt_lora_free(loaded);
}
END_TEST

static void expect_same_tensors(const char *file, const char *expected)
{
    struct kt_checkpoint *a, *b;
    ck_assert_int_eq(kt_checkpoint_open(fixture_context, file, &a), KT_OK);
    ck_assert_int_eq(kt_checkpoint_open(fixture_context, expected, &b), KT_OK);
    ck_assert_uint_eq(a->num_tensors, b->num_tensors);
    for (size_t i = 0; i < a->num_tensors; i++) {
        const struct kt_tensor *t = &a->tensors[i], *u = &b->tensors[i];
        ck_assert_str_eq(t->name, u->name);
        ck_assert(t->dtype == u->dtype && t->bytes == u->bytes);
        ck_assert(t->shape[0] == u->shape[0] && t->shape[1] == u->shape[1]);
        ck_assert_mem_eq(t->data, u->data, t->bytes);
    }
    kt_checkpoint_close(a);
    kt_checkpoint_close(b);
}

START_TEST(adapters_of_peft_are_written_back_as_they_were)
{
    const char *cases[] = {"v3", "v3bf16", "v2", "v2f16", "v2lite"};
    char folder[512], file[600];
    kt_model *real;
    kt_lora *lora;
    snprintf(folder, sizeof folder, "%s/cases/%s/model", KT_REFERENCE_DIR, cases[_i]);
    ck_assert_msg(kt_model_load(fixture_context, folder, NULL, &real) == KT_OK, "%s",
                  kt_last_error(fixture_context));
    snprintf(folder, sizeof folder, "%s/cases/%s/adapter", KT_REFERENCE_DIR, cases[_i]);
    ck_assert_msg(kt_lora_load(real, folder, &lora) == KT_OK, "%s", kt_last_error(fixture_context));
    ck_assert_int_eq(kt_lora_save(lora, fixture_folder), KT_OK);
    snprintf(file, sizeof file, "%s/adapter_model.safetensors", folder);
    expect_same_tensors(fixture_path("adapter_model.safetensors"), file);
    snprintf(file, sizeof file, "%s/adapter_config.json", folder);
    json_t *ours = read_config(fixture_path("adapter_config.json")), *theirs = read_config(file);
    json_object_del(ours, "base_model_name_or_path");
    json_object_del(theirs, "base_model_name_or_path");
    char *a = json_dumps(ours, JSON_SORT_KEYS), *b = json_dumps(theirs, JSON_SORT_KEYS);
    ck_assert_str_eq(a, b);
    free(a);
    free(b);
    json_decref(ours);
    json_decref(theirs);
    kt_lora_free(lora);
    kt_model_free(real);
}
END_TEST

START_TEST(an_adapter_of_another_model_is_refused)
{
    kt_model *real;
    kt_lora *lora;
    ck_assert_int_eq(
        kt_model_load(fixture_context, KT_REFERENCE_DIR "/cases/v2/model", NULL, &real), KT_OK);
    ck_assert_fails(kt_lora_load(real, KT_REFERENCE_DIR "/cases/v3/adapter", &lora),
                    KT_ERROR_MISMATCH, "v3/adapter/adapter_model.safetensors: base_model.model.");
    kt_model_free(real);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("files", .setup = setup, .teardown = teardown),
        TEST(a_saved_adapter_comes_back_bit_for_bit),
        TEST(target_modules_select_exactly_the_attached_linears),
        TEST(the_configuration_has_the_keys_of_peft),
        TEST(bf16_adapters_are_widened),
        TEST(bad_tensors_are_refused_by_name),
        TEST(features_beyond_plain_lora_are_refused_by_key),
        TEST(patterns_give_linears_ranks_and_alphas_of_their_own),
        TEST(damaged_and_missing_files_are_named),
        TEST(a_folder_that_cannot_be_written_is_named),
        TEST(a_full_disk_leaves_the_old_adapter_whole),
        LOOP(adapters_of_peft_are_written_back_as_they_were, 5),
        TEST(an_adapter_of_another_model_is_refused),
    };
    return RUN_TESTS("peft", tests);
}
