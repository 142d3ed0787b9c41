/* SPDX-License-Identifier: Apache-2.0 */
/* kt chat: a conversation. */
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"
#include "args.h"
#include "files.h"
#include "output.h"
#include "profile.h"
#include "prompt.h"
#include "talk.h"

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

static int is_interrupted(void)
{
    return interrupted;
}

typedef struct conversation {
    kt_message *messages; /**< contents are owned, roles constant */
    size_t num;
} conversation;

/* Takes `content`. */
static void add(conversation *c, const char *role, char *content)
{
    c->messages = app_resize(c->messages, c->num + 1, sizeof *c->messages);
    c->messages[c->num++] =
        (kt_message){.size = sizeof(kt_message), .role = role, .content = content};
}

static void shorten(conversation *c, size_t num)
{
    while (c->num > num)
        free((char *)c->messages[--c->num].content);
}

static void start(conversation *c, const config *cfg)
{
    const char *system = config_string(cfg, "default_system");
    shorten(c, 0);
    if (system)
        add(c, "system", app_copy(system));
}

static int save(const conversation *c, const char *path)
{
    json_t *all = json_array();
    for (size_t i = 0; i < c->num; i++)
        json_array_append_new(all, json_pack("{ssss}", "role", c->messages[i].role, "content",
                                             c->messages[i].content));
    char *text = json_dumps(all, JSON_INDENT(2));
    int rc = text && !file_write(path, text, strlen(text)) ? APP_OK
                                                           : app_fail("cannot write %s: %m", path);
    free(text);
    json_decref(all);
    return rc;
}

static int say(talk *t, conversation *c, const char *line, bool interactive)
{
    int32_t *ids = NULL;
    size_t num_ids, before = c->num;
    char *answer = NULL;
    add(c, "user", app_copy(line));
    interrupted = 0;
    int rc = talk_encode(t, c->messages, c->num, &ids, &num_ids);
    if (rc == APP_OK && interactive)
        out_print("Assistant: ");
    if (rc == APP_OK)
        rc = talk_answer(t, ids, num_ids, &answer);
    if (rc == APP_OK) {
        out_print("%s\n", interrupted ? " [stopped]" : "");
        add(c, "assistant", answer);
    } else {
        free(answer);
        shorten(c, before);
    }
    out_flush();
    kt_free(ids);
    return rc;
}

static const char chat_commands[] = "/clear      forget the conversation\n"
                                    "/save FILE  write the conversation as JSON\n"
                                    "/help       list the commands\n"
                                    "/exit       leave\n";

/* A slash and letters alone: a command, or one that was mistyped. */
static bool is_command(const char *line)
{
    size_t letters = strspn(line + 1, "abcdefghijklmnopqrstuvwxyz");
    return *line == '/' && letters && !line[1 + letters];
}

/* Returns false when `line` is no command, so that it is said to the model. */
static bool run_command(conversation *c, const config *cfg, const char *line, bool *leave, int *rc)
{
    if (!strcmp(line, "/exit")) {
        *leave = true;
    } else if (!strcmp(line, "/clear")) {
        start(c, cfg);
    } else if (!strcmp(line, "/help")) {
        out_print("%s", chat_commands);
    } else if (!strncmp(line, "/save", 5) && (line[5] == ' ' || !line[5])) {
        const char *path = line + 5 + strspn(line + 5, " ");
        *rc = *path ? save(c, path) : app_fail("/save needs a file name");
    } else if (is_command(line)) {
        *rc = app_fail("%s is no command; /help lists them", line);
    } else {
        return false;
    }
    return true;
}

static int converse(talk *t, const config *cfg)
{
    bool interactive = prompt_interactive(), leave = false;
    conversation c = {0};
    int rc = APP_OK;
    start(&c, cfg);
    prompt_open("User: ");
    /* A person can try again after an error; a script should see it. */
    while (!leave && (interactive || rc == APP_OK)) {
        char *line;
        prompt_result got = prompt_read(&line);
        if (got == PROMPT_INTERRUPTED)
            out_print("\n");
        leave = got == PROMPT_END;
        if (got == PROMPT_LINE && *line && !run_command(&c, cfg, line, &leave, &rc))
            rc = say(t, &c, line, interactive);
        if (got == PROMPT_LINE)
            free(line);
    }
    prompt_close();
    if (interactive)
        out_print("\n");
    shorten(&c, 0);
    free(c.messages);
    return interactive ? APP_OK : rc;
}

static void greet(const session *s)
{
    char *experts = session_experts(s);
    out_print("%s%s", config_string(s->cfg, "model_name_or_path"),
              s->lora ? " with an adapter" : "");
    if (experts)
        out_print("; experts: %s", experts);
    out_print("; /help lists the commands\n");
    free(experts);
}

int chat_command(int argc, char **argv)
{
    profile traced = {0};
    const arg_option options[] = {ARG_EXPERTS, ARG_PROFILE(&traced), {0}};
    arguments args;
    int rc = arguments_parse(&args, "chat", argc, argv, options);
    if (rc != APP_OK)
        return rc;
    config cfg;
    talk t = {.generator = NULL};
    rc = config_load(&cfg, args.path, args.overrides, args.num_overrides);
    if (rc == APP_OK && !config_string(&cfg, "template"))
        rc = config_fail(&cfg, "template", "the key is missing; choose one of %s",
                         kt_template_names());
    if (rc == APP_OK)
        rc = talk_open(&t, &cfg);
    if (rc == APP_OK)
        rc = profile_begin(&traced, t.session.ctx);
    if (rc == APP_OK) {
        struct sigaction action = {.sa_handler = on_interrupt};
        sigaction(SIGINT, &action, NULL);
        session_cancelled = is_interrupted;
        if (prompt_interactive())
            greet(&t.session);
        rc = converse(&t, &cfg);
    }
    rc = profile_end(&traced, t.session.ctx, rc, err_print);
    talk_close(&t);
    config_free(&cfg);
    return rc;
}
