/* SPDX-License-Identifier: Apache-2.0 */
/* kt generate: one answer to one prompt. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "args.h"
#include "files.h"
#include "output.h"
#include "profile.h"
#include "talk.h"

static int answer(const config *cfg, const char *prompt, profile *traced)
{
    talk t;
    kt_message messages[2];
    size_t num = 0, num_ids;
    int32_t *ids = NULL;
    char *text = NULL;
    if (config_string(cfg, "default_system"))
        messages[num++] = (kt_message){.size = sizeof *messages,
                                       .role = "system",
                                       .content = config_string(cfg, "default_system")};
    messages[num++] = (kt_message){.size = sizeof *messages, .role = "user", .content = prompt};
    int rc = talk_open(&t, cfg);
    if (rc == APP_OK)
        rc = talk_encode(&t, messages, num, &ids, &num_ids);
    if (rc == APP_OK)
        rc = profile_begin(traced, t.session.ctx);
    if (rc == APP_OK)
        rc = talk_answer(&t, ids, num_ids, &text);
    if (rc == APP_OK)
        out_print("\n");
    rc = profile_end(traced, t.session.ctx, rc, err_print);
    free(text);
    kt_free(ids);
    talk_close(&t);
    return rc;
}

static int read_prompt(const char *argument, char **prompt)
{
    size_t size;
    if (strcmp(argument, "-") != 0) {
        *prompt = app_copy(argument);
        return APP_OK;
    }
    *prompt = stream_read(stdin, &size);
    if (!*prompt)
        return app_fail("cannot read the prompt: %m");
    return strlen(*prompt) == size ? APP_OK : app_fail("the prompt holds a NUL character");
}

int generate_command(int argc, char **argv)
{
    const char *prompt = NULL;
    profile traced = {0};
    const arg_option options[] = {
        {.name = "--prompt", .value = &prompt}, ARG_EXPERTS, ARG_PROFILE(&traced), {0}};
    arguments args;
    char *text = NULL;
    int rc = arguments_parse(&args, "generate", argc, argv, options);
    if (rc != APP_OK)
        return rc;
    if (!prompt)
        return app_usage("kt generate needs --prompt TEXT; see kt help generate");
    config cfg;
    rc = config_load(&cfg, args.path, args.overrides, args.num_overrides);
    if (rc == APP_OK)
        rc = read_prompt(prompt, &text);
    if (rc == APP_OK)
        rc = answer(&cfg, text, &traced);
    free(text);
    config_free(&cfg);
    return rc;
}
