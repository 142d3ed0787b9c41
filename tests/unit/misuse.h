/* SPDX-License-Identifier: Apache-2.0 */
/** \file misuse.h
 * Mistakes that a host makes, through the public headers alone: each gets a status and a sentence.
 */
#ifndef KT_TESTS_MISUSE_H
#define KT_TESTS_MISUSE_H

#include <limits.h>
#include <stdio.h>

#include "world.h"

static struct world w;
static char folder[] = "/tmp/kt-misuse-XXXXXX";

static void misuse_setup(void)
{
    world_open(&w, NULL);
    strcpy(folder, "/tmp/kt-misuse-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void misuse_teardown(void)
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
    kt_plan *plan;
    kt_trace *trace;
    kt_batch *batch;
    kt_optimizer *optimizer;
    kt_generator *generator;
    kt_tokenizer *tokenizer;
    kt_rule *rule;
    kt_dataset *dataset;
    int32_t *ids;
    char *text;
    const char *record;
} out;
__attribute__((unused)) static size_t num;
__attribute__((unused)) static double number;
__attribute__((unused)) static int32_t token;
__attribute__((unused)) static float floats[256];

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

__attribute__((unused)) static void check_all(bool (*make)(int i, struct mistake *m))
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

#endif
