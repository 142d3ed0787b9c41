/* SPDX-License-Identifier: Apache-2.0 */
#include "talk.h"

#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "output.h"

static int failed(talk *t)
{
    return app_fail("%s", kt_last_error(t->session.ctx));
}

static int find_stop_ids(talk *t)
{
    kt_tokenizer *tokenizer = t->session.tokenizer;
    if (t->template_name)
        return kt_tokenizer_stop_ids(tokenizer, t->template_name, t->stop_ids, 16,
                                     &t->num_stop_ids) == KT_OK
                   ? APP_OK
                   : failed(t);
    t->stop_ids[0] = kt_tokenizer_eos_id(tokenizer);
    t->num_stop_ids = 1;
    return APP_OK;
}

static int create_generator(talk *t)
{
    const config *cfg = t->session.cfg;
    kt_generator_options options;
    kt_generator_options_init(&options, sizeof options);
    options.temperature =
        config_bool(cfg, "do_sample") ? (float)config_float(cfg, "temperature") : 0;
    options.top_p = (float)config_float(cfg, "top_p");
    options.top_k = (int32_t)config_int(cfg, "top_k");
    options.repetition_penalty = (float)config_float(cfg, "repetition_penalty");
    options.seed = (uint64_t)config_int(cfg, "seed");
    int64_t chunk = config_int(cfg, "chunk_size");
    options.prefill_chunk = chunk < INT32_MAX ? (int32_t)chunk : INT32_MAX;
    return kt_generator_create(t->session.executor, &options, &t->generator) == KT_OK ? APP_OK
                                                                                      : failed(t);
}

int talk_open(talk *t, const config *cfg)
{
    session *s = &t->session;
    *t = (talk){.template_name = config_string(cfg, "template")};
    int rc = session_open(s, cfg);
    if (rc == APP_OK && t->template_name)
        rc = session_check_template(s);
    if (rc == APP_OK && config_find(cfg, "kt_optimize_rule"))
        rc = session_check_path(cfg, "kt_optimize_rule");
    if (rc == APP_OK)
        rc = session_load_tokenizer(s);
    if (rc == APP_OK)
        rc = session_load_model(s);
    if (rc == APP_OK)
        rc = session_load_adapter(s);
    if (rc == APP_OK)
        rc = session_create_executor(s, session_infer_compute(s));
    if (rc == APP_OK)
        rc = find_stop_ids(t);
    return rc == APP_OK ? create_generator(t) : rc;
}

void talk_close(talk *t)
{
    kt_generator_free(t->generator);
    session_close(&t->session);
}

int talk_encode(talk *t, const kt_message *messages, size_t num, int32_t **ids, size_t *num_ids)
{
    const kt_tokenizer *tokenizer = t->session.tokenizer;
    const char *text = messages[num - 1].content;
    kt_status status = t->template_name
                           ? kt_tokenizer_apply_template_thinking(tokenizer, t->template_name,
                                                                  session_thinking(t->session.cfg),
                                                                  messages, num, ids, num_ids)
                           : kt_tokenizer_encode(tokenizer, text, strlen(text), 1, ids, num_ids);
    return status == KT_OK ? APP_OK : failed(t);
}

static bool is_stop(const talk *t, int32_t id)
{
    for (size_t i = 0; i < t->num_stop_ids; i++)
        if (t->stop_ids[i] == id)
            return true;
    return false;
}

typedef struct text {
    char *data;
    size_t length;
} text;

/* Prints what the token completes, and keeps it. */
static int emit(talk *t, kt_decode_state *state, int32_t id, text *answer)
{
    char piece[4096];
    size_t length;
    if (kt_tokenizer_decode_next(t->session.tokenizer, state, id, piece, sizeof piece, &length) !=
        KT_OK)
        return failed(t);
    out_text(piece, length);
    answer->data = app_resize(answer->data, answer->length + length + 1, 1);
    memcpy(answer->data + answer->length, piece, length);
    answer->length += length;
    answer->data[answer->length] = 0;
    int error = out_flush();
    return error ? app_fail("cannot write the output: %s", strerror(error)) : APP_OK;
}

static int64_t token_limit(const config *cfg, size_t prompt)
{
    int64_t limit = config_int(cfg, "max_new_tokens");
    if (limit > 0)
        return limit;
    limit = config_int(cfg, "max_length") - (int64_t)prompt;
    return limit > 1 ? limit : 1;
}

static int check_length(const talk *t, size_t num_ids)
{
    kt_model_info info = {.size = sizeof info};
    if (kt_model_get_info(t->session.model, &info) != KT_OK ||
        num_ids <= (size_t)info.max_position_embeddings)
        return APP_OK;
    return app_fail("what was said takes %zu tokens, the model's context holds %d; say it in fewer "
                    "words, or forget the conversation before it with /clear",
                    num_ids, info.max_position_embeddings);
}

int talk_answer(talk *t, const int32_t *ids, size_t num_ids, char **answer)
{
    kt_decode_state state = {.size = sizeof state};
    int rc = check_length(t, num_ids);
    if (rc != APP_OK)
        return rc;
    text result = {app_copy(""), 0};
    kt_status status = kt_generator_prompt(t->generator, ids, num_ids);
    bool full = false;
    int64_t limit = token_limit(t->session.cfg, num_ids);
    for (int64_t i = 0; status == KT_OK && rc == APP_OK && i < limit; i++) {
        int32_t id;
        if (session_cancelled && session_cancelled())
            break;
        status = kt_generator_next(t->generator, &id);
        full = status == KT_ERROR_INVALID_ARGUMENT;
        if (full || (status == KT_OK && is_stop(t, id)))
            break;
        if (status == KT_OK)
            rc = emit(t, &state, id, &result);
    }
    if (status != KT_OK && status != KT_ERROR_CANCELLED && !full)
        rc = failed(t);
    if (rc == APP_OK)
        rc = emit(t, &state, -1, &result);
    if (full)
        app_warn("the answer ends here: the context of %zu tokens is full",
                 kt_generator_length(t->generator));
    *answer = result.data;
    return rc;
}
