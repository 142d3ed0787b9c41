/* SPDX-License-Identifier: Apache-2.0 */
/* Structs that begin with their size: those of other versions work, those of none are refused. */
#include <check.h>
#include <kt/kt.h>

#include "misuse.h"
#include "main.h"

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

static kt_status in_plan(void *s)
{
    return kt_plan_create(w.executor, s, &out.plan);
}

static kt_status in_trace(void *s)
{
    (void)kt_trace_finish(w.trace); /* a context has one at a time */
    kt_status status = kt_trace_create(w.ctx, s, &out.trace);
    kt_trace_free(out.trace);
    return status;
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

static kt_status out_row(void *s)
{
    if (!kt_trace_num_rows(w.trace)) {
        ck_world_ok(&w, kt_executor_forward(w.executor, w.batch, KT_FORWARD_EVAL, NULL));
        ck_world_ok(&w, kt_trace_finish(w.trace));
    }
    return kt_trace_get_row(w.trace, 0, s);
}

static kt_status out_plan(void *s)
{
    return kt_plan_get_total(w.plan, s);
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
    IN(kt_plan_options, in_plan, INIT(kt_plan_options_init)),
    IN(kt_trace_options, in_trace, INIT(kt_trace_options_init)),
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
    OUT(kt_device_plan, out_plan),
    OUT(kt_trace_row, out_row),
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

int main(void)
{
    enum { NUM_SIZED = sizeof sized / sizeof *sized };
    const struct test tests[] = {
        GROUP("sized", .setup = misuse_setup, .teardown = misuse_teardown),
        LOOP(sizes_that_no_struct_has, NUM_SIZED),
        LOOP(bytes_that_nobody_knows, NUM_SIZED),
        LOOP(structs_of_other_versions, NUM_SIZED),
        LOOP(init_fills_what_it_is_given, NUM_SIZED),
    };
    return RUN_TESTS("sized", tests);
}
