/* SPDX-License-Identifier: Apache-2.0 */
/* Mistakes that a host makes, through the public headers alone: each gets a status and a sentence.
 */
#include <check.h>
#include <kt/kt.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>

#include "world.h"

static struct world w;
static char folder[] = "/tmp/kt-misuse-XXXXXX";

static void setup(void)
{
    world_open(&w, NULL);
    strcpy(folder, "/tmp/kt-misuse-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void teardown(void)
{
    remove(folder);
    world_close(&w);
}

/* What mistakes give their results to; garbage, so that *out = NULL is seen. */
static union {
    void *handle;
    kt_context *ctx;
    kt_model *model;
    kt_lora *lora;
    kt_executor *executor;
    kt_batch *batch;
    kt_optimizer *optimizer;
    kt_generator *generator;
    kt_tokenizer *tokenizer;
    kt_rule *rule;
    kt_dataset *dataset;
    int32_t *ids;
    char *text;
} out;
static size_t num;
static double number;
static int32_t token;
static float floats[256];

/* The numbered call is made and its text, expected status and kind told; false beyond the last. */
struct mistake {
    const char *call;
    kt_status want, got;
    bool no_handle; /* there is no context to find: the sentence is the thread's */
};

#define CALL(status, ...)                                                                          \
    case __COUNTER__ - FIRST:                                                                      \
        *m = (struct mistake){#__VA_ARGS__, KT_ERROR_##status, 0, false};                          \
        m->got = __VA_ARGS__;                                                                      \
        return true
#define LOST(...)                                                                                  \
    case __COUNTER__ - FIRST:                                                                      \
        *m = (struct mistake){#__VA_ARGS__, KT_ERROR_INVALID_ARGUMENT, 0, true};                   \
        m->got = __VA_ARGS__;                                                                      \
        return true

static bool no_handle(int i, struct mistake *m)
{
    enum { FIRST = __COUNTER__ + 1 };
    switch (i) {
        LOST(kt_context_create(NULL, NULL));
        LOST(kt_context_set_log(NULL, NULL, NULL));
        LOST(kt_context_set_progress(NULL, NULL, NULL));
        LOST(kt_context_set_cancel(NULL, NULL, NULL));
        LOST(kt_model_load(NULL, WORLD_MODEL, NULL, &out.model));
        LOST(kt_model_check_finite(NULL));
        LOST(kt_model_get_info(NULL, &(kt_model_info){.size = sizeof(kt_model_info)}));
        LOST(kt_model_get_tensor(NULL, 0, &(kt_tensor_info){.size = sizeof(kt_tensor_info)}));
        LOST(kt_convert(NULL, WORLD_MODEL, folder, NULL));
        LOST(kt_rule_create(NULL, &out.rule));
        LOST(kt_rule_load(NULL, "/rule.yaml", &out.rule));
        LOST(kt_rule_add(NULL, "x", NULL, NULL));
        LOST(kt_lora_create(NULL, NULL, &out.lora));
        LOST(kt_lora_load(NULL, folder, &out.lora));
        LOST(kt_lora_save(NULL, folder));
        LOST(kt_lora_get_tensor(NULL, 0, &(kt_lora_tensor){.size = sizeof(kt_lora_tensor)}));
        LOST(kt_lora_zero_grad(NULL));
        LOST(kt_lora_touch(NULL));
        LOST(kt_lora_set_seed(NULL, 1));
        LOST(kt_lora_set_grad_state(NULL, 0, 1));
        LOST(kt_batch_create(NULL, &out.batch));
        LOST(kt_batch_clear(NULL));
        LOST(kt_batch_add(NULL, world_ids, NULL, 1));
        LOST(kt_batch_add_padding(NULL, 0, 1));
        LOST(kt_executor_create(NULL, NULL, NULL, &out.executor));
        LOST(kt_executor_forward(NULL, w.batch, KT_FORWARD_EVAL, NULL));
        LOST(kt_executor_backward(NULL, NULL));
        LOST(kt_executor_logits(NULL, w.batch, floats));
        LOST(
            kt_executor_plan_memory(NULL, 1, 1, &(kt_memory_plan){.size = sizeof(kt_memory_plan)}));
        LOST(kt_executor_reserve(NULL, 1));
        LOST(kt_executor_set_step(NULL, 1));
        LOST(kt_generator_create(NULL, NULL, &out.generator));
        LOST(kt_generator_prompt(NULL, world_ids, 1));
        LOST(kt_generator_next(NULL, &token));
        LOST(kt_optimizer_create(NULL, NULL, &out.optimizer));
        LOST(kt_optimizer_step(NULL, 1e-3, NULL));
        LOST(kt_optimizer_save(NULL, folder));
        LOST(kt_optimizer_load(NULL, folder));
        LOST(kt_schedule_rate(NULL, NULL, 0, &number));
        LOST(kt_random_permutation(NULL, 1, 1, &(int64_t){0}));
        LOST(kt_tokenizer_load(NULL, folder, &out.tokenizer));
        LOST(kt_tokenizer_encode(NULL, "x", 1, 0, &out.ids, &num));
        LOST(kt_tokenizer_decode(NULL, world_ids, 1, 0, &out.text, &num));
        LOST(kt_tokenizer_decode_next(NULL, &(kt_decode_state){.size = sizeof(kt_decode_state)}, 1,
                                      NULL, 0, &num));
        LOST(kt_tokenizer_apply_template(NULL, "qwen", NULL, 0, &out.ids, &num));
        LOST(kt_tokenizer_apply_template_thinking(NULL, "qwen", 0, NULL, 0, &out.ids, &num));
        LOST(kt_tokenizer_stop_ids(NULL, "qwen", &token, 1, &num));
        LOST(kt_dataset_load(NULL, w.tokenizer, NULL, &out.dataset));
        LOST(kt_dataset_get(NULL, 0, &(kt_example){.size = sizeof(kt_example)}));
        LOST(kt_dataset_split(NULL, 0.5, 1, &out.dataset));
        LOST(kt_plot_loss(NULL, "/x.png", "t", "y", &number, &number, 1));
    }
    return false;
}

static bool no_pointer(int i, struct mistake *m)
{
    enum { FIRST = __COUNTER__ + 1 };
    switch (i) {
        CALL(INVALID_ARGUMENT, kt_model_load(w.ctx, NULL, NULL, &out.model));
        CALL(INVALID_ARGUMENT, kt_model_load(w.ctx, WORLD_MODEL, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_model_get_info(w.model, NULL));
        CALL(INVALID_ARGUMENT, kt_model_get_tensor(w.model, 0, NULL));
        CALL(INVALID_ARGUMENT, kt_convert(w.ctx, NULL, folder, NULL));
        CALL(INVALID_ARGUMENT, kt_convert(w.ctx, WORLD_MODEL, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_rule_create(w.ctx, NULL));
        CALL(INVALID_ARGUMENT, kt_rule_load(w.ctx, NULL, &out.rule));
        CALL(INVALID_ARGUMENT, kt_rule_load(w.ctx, "/rule.yaml", NULL));
        CALL(INVALID_ARGUMENT, kt_lora_create(w.model, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_lora_load(w.model, NULL, &out.lora));
        CALL(INVALID_ARGUMENT, kt_lora_load(w.model, folder, NULL));
        CALL(INVALID_ARGUMENT, kt_lora_save(w.lora, NULL));
        CALL(INVALID_ARGUMENT, kt_lora_get_tensor(w.lora, 0, NULL));
        CALL(INVALID_ARGUMENT, kt_batch_create(w.ctx, NULL));
        CALL(INVALID_ARGUMENT, kt_batch_add(w.batch, NULL, NULL, 3));
        CALL(INVALID_ARGUMENT, kt_executor_create(w.model, NULL, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_executor_forward(w.executor, NULL, KT_FORWARD_EVAL, NULL));
        CALL(INVALID_ARGUMENT, kt_executor_logits(w.executor, NULL, floats));
        CALL(INVALID_ARGUMENT, kt_executor_logits(w.executor, w.batch, NULL));
        CALL(INVALID_ARGUMENT, kt_executor_plan_memory(w.executor, 1, 1, NULL));
        CALL(INVALID_ARGUMENT, kt_generator_create(w.executor, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_generator_prompt(w.generator, NULL, 1));
        CALL(INVALID_ARGUMENT, kt_generator_next(w.generator, NULL));
        CALL(INVALID_ARGUMENT, kt_optimizer_create(w.lora, NULL, NULL));
        CALL(INVALID_ARGUMENT, kt_optimizer_save(w.optimizer, NULL));
        CALL(INVALID_ARGUMENT, kt_optimizer_load(w.optimizer, NULL));
        CALL(INVALID_ARGUMENT, kt_schedule_rate(w.ctx, NULL, 0, NULL));
        CALL(INVALID_ARGUMENT, kt_random_permutation(w.ctx, 1, 3, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_load(w.ctx, NULL, &out.tokenizer));
        CALL(INVALID_ARGUMENT, kt_tokenizer_load(w.ctx, folder, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_encode(w.tokenizer, NULL, 5, 1, &out.ids, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_encode(w.tokenizer, "x", 1, 1, NULL, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_encode(w.tokenizer, "x", 1, 1, &out.ids, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_decode(w.tokenizer, NULL, 3, 0, &out.text, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_decode(w.tokenizer, world_ids, 1, 0, NULL, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_decode(w.tokenizer, world_ids, 1, 0, &out.text, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_decode_next(w.tokenizer, NULL, 1, NULL, 0, &num));
        CALL(INVALID_ARGUMENT,
             kt_tokenizer_apply_template(w.tokenizer, NULL, NULL, 0, &out.ids, &num));
        CALL(INVALID_ARGUMENT,
             kt_tokenizer_apply_template(w.tokenizer, "qwen", NULL, 1, &out.ids, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_stop_ids(w.tokenizer, "qwen", &token, 1, NULL));
        CALL(INVALID_ARGUMENT, kt_tokenizer_stop_ids(w.tokenizer, NULL, &token, 1, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_stop_ids(w.tokenizer, "qwen", NULL, 8, &num));
        CALL(INVALID_ARGUMENT, kt_dataset_load(w.ctx, NULL, NULL, &out.dataset));
        CALL(INVALID_ARGUMENT, kt_dataset_load(w.ctx, w.tokenizer, NULL, &out.dataset));
        CALL(INVALID_ARGUMENT, kt_dataset_get(w.dataset, 0, NULL));
        CALL(INVALID_ARGUMENT, kt_dataset_split(w.dataset, 0.5, 1, NULL));
    }
    return false;
}

static kt_message message(size_t size, const char *role, const char *content)
{
    return (kt_message){.size = size, .role = role, .content = content};
}

static kt_status apply(kt_message m)
{
    return kt_tokenizer_apply_template(w.tokenizer, "qwen", &m, 1, &out.ids, &num);
}

static kt_status decode_with(kt_decode_state state, char *text, size_t capacity)
{
    return kt_tokenizer_decode_next(w.tokenizer, &state, 50, text, capacity, &num);
}

static kt_status two_sizes(void)
{
    enum { SIZE = sizeof(kt_message) };
    kt_message pair[3] = {message(SIZE, "user", "x"), message(SIZE + 8, "assistant", "y"),
                          message(SIZE, "user", "z")};
    return kt_tokenizer_apply_template(w.tokenizer, "qwen", pair, 3, &out.ids, &num);
}

static kt_status empty_batch(int32_t mode)
{
    kt_batch *empty;
    ck_world_ok(&w, kt_batch_create(w.ctx, &empty));
    kt_status status = kt_executor_forward(w.executor, empty, mode, NULL);
    kt_batch_free(empty);
    return status;
}

static kt_status changed_batch(void)
{
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_TRAIN, NULL));
    ck_world_ok(&w, kt_batch_add(w.batch, world_ids, NULL, 3));
    return kt_executor_backward(w.executor, NULL);
}

static kt_status gradient_missing(void)
{
    ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_CUSTOM, NULL));
    return kt_executor_backward(w.executor, NULL);
}

static kt_status with_executor(int32_t compute, int32_t chunk, const char *backend)
{
    kt_executor_options o;
    kt_executor_options_init(&o, sizeof o);
    o.compute = compute;
    o.logits_chunk = chunk;
    o.experts_backend = backend;
    return kt_executor_create(w.model, w.lora, &o, &out.executor);
}

static kt_status with_lora(int32_t rank, float alpha, float dropout, const char *target)
{
    kt_lora_options o;
    kt_lora_options_init(&o, sizeof o);
    o.rank = rank;
    o.alpha = alpha;
    o.dropout = dropout;
    o.target = target;
    return kt_lora_create(w.model, &o, &out.lora);
}

static kt_status with_generator(float temperature, float top_p, int32_t top_k, int32_t max_length)
{
    kt_generator_options o;
    kt_generator_options_init(&o, sizeof o);
    o.temperature = temperature;
    o.top_p = top_p;
    o.top_k = top_k;
    o.max_length = max_length;
    return kt_generator_create(w.executor, &o, &out.generator);
}

static kt_status with_convert(int32_t to)
{
    kt_convert_options o;
    kt_convert_options_init(&o, sizeof o);
    o.to = to;
    return kt_convert(w.ctx, WORLD_MODEL, folder, &o);
}

static kt_status foreign(bool lora)
{
    struct world other;
    world_open(&other, NULL);
    kt_status status = lora ? kt_executor_create(w.model, other.lora, NULL, &out.executor)
                            : kt_executor_forward(w.executor, other.batch, KT_FORWARD_EVAL, NULL);
    world_close(&other);
    return status;
}

static bool nonsense(int i, struct mistake *m)
{
    enum { FIRST = __COUNTER__ + 1 };
    static const int32_t no_label[] = {-5};
    const kt_decode_state broken = {.size = sizeof broken, .num_pending = 9};
    const kt_decode_state fresh = {.size = sizeof fresh};
    switch (i) {
        CALL(NOT_FOUND, kt_model_load(w.ctx, "/nonexistent", NULL, &out.model));
        CALL(INVALID_ARGUMENT,
             kt_model_get_tensor(w.model, 1 << 30, &(kt_tensor_info){.size = 200}));
        CALL(INVALID_ARGUMENT, kt_lora_get_tensor(w.lora, 1 << 30, &(kt_lora_tensor){.size = 100}));
        CALL(INVALID_ARGUMENT, kt_lora_set_grad_state(w.lora, 1 << 30, 1));
        CALL(INVALID_ARGUMENT, kt_lora_set_grad_state(w.lora, 0, 2));
        CALL(INVALID_ARGUMENT, kt_dataset_get(w.dataset, 1 << 30, &(kt_example){.size = 64}));
        CALL(INVALID_ARGUMENT, kt_dataset_split(w.dataset, NAN, 1, &out.dataset));
        CALL(INVALID_ARGUMENT, kt_batch_add(w.batch, world_ids, NULL, 0));
        CALL(INVALID_ARGUMENT, kt_batch_add(w.batch, world_ids, NULL, SIZE_MAX));
        CALL(INVALID_ARGUMENT, kt_batch_add(w.batch, world_ids, no_label, 1));
        CALL(INVALID_ARGUMENT, kt_batch_add_padding(w.batch, 0, SIZE_MAX));
        CALL(INVALID_ARGUMENT, empty_batch(KT_FORWARD_TRAIN));
        CALL(INVALID_ARGUMENT, empty_batch(KT_FORWARD_EVAL));
        CALL(INVALID_ARGUMENT, kt_executor_forward(w.executor, w.batch, 3, NULL));
        CALL(INVALID_ARGUMENT, kt_executor_forward(w.executor, w.batch, -1, NULL));
        CALL(INVALID_ARGUMENT,
             kt_executor_forward(w.executor, w.batch, KT_FORWARD_EVAL | KT_FORWARD_FLAGS, NULL));
        CALL(STATE, kt_executor_backward(w.executor, NULL));
        CALL(STATE, changed_batch());
        CALL(INVALID_ARGUMENT, gradient_missing());
        CALL(INVALID_ARGUMENT, kt_executor_reserve(w.executor, 0));
        CALL(INVALID_ARGUMENT,
             kt_executor_plan_memory(w.executor, 5, 9,
                                     &(kt_memory_plan){.size = sizeof(kt_memory_plan)}));
        CALL(INVALID_ARGUMENT, with_executor(9, 0, NULL));
        CALL(INVALID_ARGUMENT, with_executor(KT_COMPUTE_F32, -1, NULL));
        CALL(NOT_FOUND, with_executor(KT_COMPUTE_F32, 0, "nonsense"));
        CALL(MISMATCH, foreign(true));
        CALL(MISMATCH, foreign(false));
        CALL(INVALID_ARGUMENT, with_lora(0, 1, 0, "all"));
        CALL(INVALID_ARGUMENT, with_lora(1, NAN, 0, "all"));
        CALL(INVALID_ARGUMENT, with_lora(1, 1, 1, "all"));
        CALL(INVALID_ARGUMENT, with_lora(1, 1, 0, NULL));
        CALL(NOT_FOUND, with_lora(1, 1, 0, "nothing"));
        CALL(INVALID_ARGUMENT, with_generator(-1, 1, 0, 0));
        CALL(INVALID_ARGUMENT, with_generator(1, NAN, 0, 0));
        CALL(INVALID_ARGUMENT, with_generator(1, 1, -1, 0));
        CALL(INVALID_ARGUMENT, with_generator(1, 1, 0, INT_MIN));
        CALL(STATE, kt_generator_next(w.generator, &token));
        CALL(INVALID_ARGUMENT, kt_generator_prompt(w.generator, world_ids, 0));
        CALL(INVALID_ARGUMENT, kt_generator_prompt(w.generator, (int32_t[]){1 << 30}, 1));
        CALL(INVALID_ARGUMENT, kt_optimizer_step(w.optimizer, NAN, &number));
        CALL(NOT_FOUND, kt_optimizer_load(w.optimizer, "/nonexistent"));
        CALL(UNSUPPORTED, kt_random_permutation(w.ctx, 1, SIZE_MAX, &(int64_t){0}));
        CALL(INVALID_ARGUMENT, kt_rule_add(w.rule, "(", NULL, NULL));
        CALL(INVALID_ARGUMENT, with_convert(77));
        CALL(INVALID_ARGUMENT, kt_convert(w.ctx, WORLD_MODEL, WORLD_MODEL, NULL));
        CALL(NOT_FOUND, kt_tokenizer_load(w.ctx, folder, &out.tokenizer));
        CALL(INVALID_ARGUMENT, apply(message(sizeof(kt_message), "user", NULL)));
        CALL(INVALID_ARGUMENT, apply(message(sizeof(kt_message), NULL, "x")));
        CALL(INVALID_ARGUMENT, apply(message(sizeof(kt_message), "robot", "x")));
        CALL(INVALID_ARGUMENT, apply(message(0, "user", "x")));
        CALL(INVALID_ARGUMENT, two_sizes());
        CALL(INVALID_ARGUMENT,
             kt_tokenizer_apply_template_thinking(w.tokenizer, "qwen", 7, NULL, 0, &out.ids, &num));
        CALL(NOT_FOUND, kt_tokenizer_apply_template(w.tokenizer, "x", NULL, 0, &out.ids, &num));
        CALL(INVALID_ARGUMENT, kt_tokenizer_stop_ids(w.tokenizer, "qwen", NULL, 0, &num));
        CALL(INVALID_ARGUMENT, decode_with(broken, NULL, 0));
        CALL(INVALID_ARGUMENT, decode_with((kt_decode_state){0}, NULL, 0));
        CALL(INVALID_ARGUMENT, decode_with(fresh, NULL, 64));
        CALL(INVALID_ARGUMENT, decode_with(fresh, NULL, 0));
    }
    return false;
}

static void check_all(bool (*make)(int i, struct mistake *m))
{
    static const char marker[] = "-2147483648";
    struct mistake m;
    int made = 0;
    for (;; made++) {
        /* leaves a sentence that is known, so that an old one is not taken for a new one */
        kt_lora_set_grad_state(w.lora, 0, INT_MIN);
        kt_model_load(NULL, "", NULL, NULL);
        out.handle = &out;
        if (!make(made, &m))
            break;
        const char *said = kt_last_error(m.no_handle ? NULL : w.ctx);
        ck_assert_msg(m.got == m.want, "%s: %s, not %s: %s", m.call, kt_status_string(m.got),
                      kt_status_string(m.want), said);
        ck_assert_msg(*said && !strstr(said, marker), "%s has no sentence", m.call);
        if (m.no_handle)
            ck_assert_msg(strncmp(said, m.call, strcspn(m.call, "(")) == 0, "%s: %s", m.call, said);
        const char *at = strstr(m.call, "&out.");
        ck_assert_msg(out.handle == (at ? NULL : (void *)&out) || strstr(m.call, "with_") ||
                          strstr(m.call, "apply") || strstr(m.call, "two_sizes") ||
                          strstr(m.call, "foreign"),
                      "%s leaves *out as it was", m.call);
    }
    ck_assert_int_gt(made, 40);
}

START_TEST(null_handles)
{
    check_all(no_handle);
}
END_TEST

START_TEST(null_pointers)
{
    check_all(no_pointer);
}
END_TEST

START_TEST(nonsense_values)
{
    check_all(nonsense);
}
END_TEST

/* -- sized structs ------------------------------------------------------------------------------
 */

static kt_status in_context(void *s)
{
    return kt_context_create(s, &out.ctx);
}

static kt_status in_model(void *s)
{
    return kt_model_load(w.ctx, WORLD_MODEL, s, &out.model);
}

static kt_status in_lora(void *s)
{
    return kt_lora_create(w.model, s, &out.lora);
}

static kt_status in_executor(void *s)
{
    return kt_executor_create(w.model, w.lora, s, &out.executor);
}

static kt_status in_generator(void *s)
{
    return kt_generator_create(w.executor, s, &out.generator);
}

static kt_status in_optimizer(void *s)
{
    return kt_optimizer_create(w.lora, s, &out.optimizer);
}

static kt_status in_schedule(void *s)
{
    return kt_schedule_rate(w.ctx, s, 1, &number);
}

static kt_status in_convert(void *s)
{
    return kt_convert(w.ctx, WORLD_MODEL, folder, s);
}

static kt_status in_dataset(void *s)
{
    return kt_dataset_load(w.ctx, w.tokenizer, s, &out.dataset);
}

static kt_status in_message(void *s)
{
    return kt_tokenizer_apply_template(w.tokenizer, "qwen", s, 1, &out.ids, &num);
}

static kt_status in_state(void *s)
{
    char text[64];
    return kt_tokenizer_decode_next(w.tokenizer, s, 50, text, sizeof text, &num);
}

static kt_status out_info(void *s)
{
    return kt_model_get_info(w.model, s);
}

static kt_status out_tensor(void *s)
{
    return kt_model_get_tensor(w.model, 0, s);
}

static kt_status out_matrix(void *s)
{
    return kt_lora_get_tensor(w.lora, 0, s);
}

static kt_status out_example(void *s)
{
    return kt_dataset_get(w.dataset, 0, s);
}

static kt_status out_loss(void *s)
{
    return kt_executor_forward(w.executor, w.batch, KT_FORWARD_EVAL, s);
}

static kt_status out_plan(void *s)
{
    return kt_executor_plan_memory(w.executor, 5, 5, s);
}

#define INIT(f) ((void (*)(void *, size_t))(f))

static const struct sized {
    const char *name;
    size_t size, known;
    kt_status (*call)(void *s);
    void (*init)(void *s, size_t size); /* NULL = the caller sets the size alone */
    bool filled;                        /* by libkt */
} sized[] = {
#define IN(type, call, init)                                                                       \
    {                                                                                              \
#type, sizeof(type), offsetof(type, reserved), call, init, false                           \
    }
#define OUT(type, call)                                                                            \
    {                                                                                              \
#type, sizeof(type), offsetof(type, reserved), call, NULL, true                            \
    }
    IN(kt_context_options, in_context, INIT(kt_context_options_init)),
    IN(kt_model_options, in_model, INIT(kt_model_options_init)),
    IN(kt_lora_options, in_lora, INIT(kt_lora_options_init)),
    IN(kt_executor_options, in_executor, INIT(kt_executor_options_init)),
    IN(kt_generator_options, in_generator, INIT(kt_generator_options_init)),
    IN(kt_optimizer_options, in_optimizer, INIT(kt_optimizer_options_init)),
    IN(kt_schedule, in_schedule, INIT(kt_schedule_init)),
    IN(kt_convert_options, in_convert, INIT(kt_convert_options_init)),
    IN(kt_dataset_options, in_dataset, INIT(kt_dataset_options_init)),
    IN(kt_message, in_message, NULL),
    IN(kt_decode_state, in_state, NULL),
    OUT(kt_model_info, out_info),
    OUT(kt_tensor_info, out_tensor),
    OUT(kt_lora_tensor, out_matrix),
    OUT(kt_example, out_example),
    OUT(kt_loss, out_loss),
    OUT(kt_memory_plan, out_plan),
};

enum { ROOM = 1024 };
_Alignas(16) static char room[ROOM];

static void refuse(const struct sized *s, const char *what)
{
    char before[ROOM];
    kt_context_create(NULL, NULL);
    kt_lora_set_grad_state(w.lora, 0, INT_MIN);
    memcpy(before, room, ROOM);
    ck_assert_msg(s->call(room) == KT_ERROR_INVALID_ARGUMENT, "%s: %s", s->name, what);
    const char *said = kt_last_error(s->call == in_context ? NULL : w.ctx);
    ck_assert_msg(strstr(said, s->name) != NULL, "%s: %s: %s", s->name, what, said);
    ck_assert_msg(memcmp(before, room, ROOM) == 0, "%s: %s: was written", s->name, what);
}

static void fill(const struct sized *s, size_t size)
{
    memset(room, 0, ROOM);
    if (s->init)
        s->init(room, size);
    memcpy(room, &size, sizeof size);
}

START_TEST(sizes_that_no_struct_has)
{
    const struct sized *s = &sized[_i];
    const size_t bad[] = {0, 1, 8, s->known - 1, SIZE_MAX, 1 << 20};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fill(s, s->size);
        memcpy(room, &bad[i], sizeof bad[i]);
        refuse(s, "size");
    }
}
END_TEST

START_TEST(bytes_that_nobody_knows)
{
    const struct sized *s = &sized[_i];
    const size_t at[] = {s->known, s->size - 1, s->size, s->size + 31};
    for (size_t i = 0; !s->filled && i < sizeof at / sizeof *at; i++) {
        fill(s, s->size + 32);
        room[at[i]] = 1;
        refuse(s, "unknown bytes");
    }
}
END_TEST

/* A newer caller's bytes become zero, and its size stays; a caller without the reserved tail works.
 */
START_TEST(structs_of_other_versions)
{
    const struct sized *s = &sized[_i];
    for (size_t size = s->known; s->filled && size <= s->size + 32; size += 8) {
        memset(room, 0x55, ROOM);
        memcpy(room, &size, sizeof size);
        ck_assert_msg(s->call(room) == KT_OK, "%s of %zu bytes: %s", s->name, size,
                      kt_last_error(w.ctx));
        ck_assert_mem_eq(room, &size, sizeof size);
        for (size_t i = s->known; i < ROOM; i++)
            ck_assert_int_eq(room[i], i < size ? 0 : 0x55);
    }
}
END_TEST

START_TEST(init_fills_what_it_is_given)
{
    const struct sized *s = &sized[_i];
    for (size_t size = 0; s->init && size <= s->size + 64; size++) {
        memset(room, 0x55, ROOM);
        s->init(room, size);
        for (size_t i = s->known; i < ROOM; i++)
            ck_assert_int_eq(room[i], i < size ? 0 : 0x55);
        if (size >= sizeof size)
            ck_assert_mem_eq(room, &size, sizeof size);
    }
    if (s->init)
        s->init(NULL, s->size);
}
END_TEST

/* -- what is told without a status --------------------------------------------------------------
 */

START_TEST(null_is_harmless)
{
    static struct world nothing;
    world_close(&nothing);
    kt_free(NULL);
    kt_context_cancel(NULL);
    kt_context_clear_cancel(NULL);
    ck_assert_ptr_nonnull(kt_last_error(NULL));
    ck_assert_int_eq(kt_context_num_threads(NULL), 0);
    ck_assert_str_eq(kt_context_cpu_description(NULL), "");
    ck_assert_uint_eq(kt_context_memory_used(NULL) + kt_context_memory_peak(NULL), 0);
    ck_assert_uint_gt(kt_context_host_memory(NULL), 0);
    ck_assert_uint_eq(kt_model_num_tensors(NULL) + kt_model_num_linears(NULL), 0);
    ck_assert_ptr_null(kt_model_linear_name(NULL, 0));
    ck_assert_ptr_null(kt_model_linear_name(w.model, SIZE_MAX));
    ck_assert_uint_eq(kt_lora_num_tensors(NULL) + kt_lora_num_parameters(NULL), 0);
    ck_assert_uint_eq(kt_batch_num_sequences(NULL) + kt_batch_num_tokens(NULL), 0);
    ck_assert_uint_eq(kt_batch_num_targets(NULL) + kt_dataset_num_examples(NULL), 0);
    ck_assert(!kt_batch_input_ids(NULL) && !kt_batch_labels(NULL) && !kt_batch_cu_seqlens(NULL));
    ck_assert(!kt_executor_logprobs(NULL) && !kt_generator_logits(NULL));
    ck_assert_uint_eq(kt_generator_length(NULL), 0);
    ck_assert_ptr_null(kt_executor_experts_backend(NULL, 0));
    ck_assert_ptr_null(kt_executor_experts_backend(w.executor, -1));
    ck_assert_ptr_null(kt_executor_experts_backend(w.executor, INT_MAX));
    ck_assert_str_eq(kt_rule_device(NULL, "x"), "cpu");
    ck_assert_str_eq(kt_rule_device(w.rule, NULL), "cpu");
    ck_assert_str_eq(kt_rule_experts_backend(NULL, NULL), "auto");
    ck_assert_int_eq(kt_tokenizer_vocab_size(NULL), 0);
    ck_assert_int_eq(kt_tokenizer_bos_id(NULL) + kt_tokenizer_eos_id(NULL), -2);
    ck_assert_int_eq(kt_tokenizer_pad_id(NULL) + kt_tokenizer_token_id(NULL, "x"), -2);
    ck_assert_int_eq(kt_tokenizer_token_id(w.tokenizer, NULL), -1);
    ck_assert_str_eq(kt_dtype_name(-5), "?");
    ck_assert_str_eq(kt_status_string(INT_MIN), "unknown status");
    ck_assert_uint_eq(kt_version(), KT_VERSION);
    ck_assert_uint_eq(kt_api_version(), KT_API_VERSION);
}
END_TEST

START_TEST(an_empty_text_may_be_null)
{
    ck_world_ok(&w, kt_tokenizer_encode(w.tokenizer, NULL, 0, 0, &out.ids, &num));
    ck_assert_uint_eq(num, 0);
    kt_free(out.ids);
    ck_world_ok(&w, kt_tokenizer_decode(w.tokenizer, NULL, 0, 0, &out.text, &num));
    ck_assert_str_eq(out.text, "");
    kt_free(out.text);
    ck_world_ok(&w, kt_random_permutation(w.ctx, 1, 0, NULL));
}
END_TEST

START_TEST(a_context_that_fails_says_why)
{
    kt_context_options o;
    kt_context_options_init(&o, sizeof o);
    o.num_threads = -3;
    ck_assert_int_eq(kt_context_create(&o, &out.ctx), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(kt_last_error(NULL), "-3"));
    ck_assert_ptr_null(out.ctx);
    ck_assert_str_eq(kt_last_error(w.ctx), "");
}
END_TEST

/* The norm is told when it is the reason of the failure, and is no stale number otherwise. */
START_TEST(a_failed_step_tells_the_norm)
{
    kt_lora_tensor t = {.size = sizeof t};
    number = 7;
    ck_assert_int_eq(kt_optimizer_step(w.optimizer, -1, &number), KT_ERROR_INVALID_ARGUMENT);
    ck_assert(isnan(number));
    ck_world_ok(&w, kt_lora_get_tensor(w.lora, 0, &t));
    t.grad[0] = INFINITY;
    ck_world_ok(&w, kt_lora_set_grad_state(w.lora, 0, 1));
    ck_assert_int_eq(kt_optimizer_step(w.optimizer, 1e-3, &number), KT_ERROR_NUMERIC);
    ck_assert(isinf(number));
    ck_world_ok(&w, kt_lora_set_grad_state(w.lora, 1, 0));
    ck_assert(t.grad[0] == 0);
    t.grad[0] = 3;
    ck_world_ok(&w, kt_optimizer_step(w.optimizer, 1e-3, &number));
    ck_assert(number == 0 && t.grad[0] == 3);
    ck_world_ok(&w, kt_lora_set_grad_state(w.lora, 0, 1));
    ck_world_ok(&w, kt_optimizer_step(w.optimizer, 1e-3, &number));
    ck_assert(number == 3 && t.grad[0] == 0);
}
END_TEST

/* The first bytes of characters say how long they are, and no sentence ends in the middle. */
START_TEST(sentences_are_not_cut_in_a_character)
{
    static const char *const characters[] = {"\xc3\xa9", "\xe4\xbd\xa0", "\xf0\x9f\x99\x82"};
    char path[2048];
    for (size_t kind = 0; kind < 3; kind++) {
        for (size_t shift = 0; shift < 5; shift++) {
            size_t length = strlen(characters[kind]), at = 1 + shift;
            memset(path, 'a', sizeof path);
            path[0] = '/';
            for (; at + length < sizeof path; at += length)
                memcpy(path + at, characters[kind], length);
            path[at] = '\0';
            ck_assert_int_ne(kt_model_load(w.ctx, path, NULL, &out.model), KT_OK);
            const char *said = kt_last_error(w.ctx);
            ck_assert_uint_gt(strlen(said), 1000);
            size_t end = strlen(said);
            ck_assert_mem_eq(said + end - length, characters[kind], length);
        }
    }
}
END_TEST

int main(void)
{
    enum { NUM_SIZED = sizeof sized / sizeof *sized };
    Suite *suite = suite_create("misuse");
    TCase *tc = tcase_create("misuse");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, null_handles);
    tcase_add_test(tc, null_pointers);
    tcase_add_test(tc, nonsense_values);
    tcase_add_loop_test(tc, sizes_that_no_struct_has, 0, NUM_SIZED);
    tcase_add_loop_test(tc, bytes_that_nobody_knows, 0, NUM_SIZED);
    tcase_add_loop_test(tc, structs_of_other_versions, 0, NUM_SIZED);
    tcase_add_loop_test(tc, init_fills_what_it_is_given, 0, NUM_SIZED);
    tcase_add_test(tc, null_is_harmless);
    tcase_add_test(tc, an_empty_text_may_be_null);
    tcase_add_test(tc, a_context_that_fails_says_why);
    tcase_add_test(tc, a_failed_step_tells_the_norm);
    tcase_add_test(tc, sentences_are_not_cut_in_a_character);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
