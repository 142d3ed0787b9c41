/* SPDX-License-Identifier: Apache-2.0 */
/* kt data: what a dataset becomes, as ids for programs and as text for people. */
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "args.h"
#include "output.h"
#include "session.h"

static void print_ids(const char *name, const int32_t *ids, size_t num, const char *end)
{
    out_print("\"%s\": [", name);
    for (size_t i = 0; i < num; i++)
        out_print("%s%d", i ? ", " : "", ids[i]);
    out_print("]%s", end);
}

static void print_json(const kt_example *e)
{
    out_print("{");
    print_ids("input_ids", e->input_ids, e->length, ", ");
    print_ids("labels", e->labels, e->length, "}\n");
}

static int print_text(session *s, const int32_t *ids, size_t num)
{
    char *text;
    size_t length;
    if (kt_tokenizer_decode(s->tokenizer, ids, num, 0, &text, &length) != KT_OK)
        return app_fail("%s", kt_last_error(s->ctx));
    out_text(text, length);
    kt_free(text);
    return APP_OK;
}

/* On a terminal the masked runs are dimmed; elsewhere the trained ones stand between >>> and <<<.
 */
static int print_example(session *s, size_t index, const kt_example *e)
{
    size_t trained = 0;
    for (size_t i = 0; i < e->length; i++)
        trained += e->labels[i] != KT_IGNORE_LABEL;
    out_print("%s--- example %zu: %zu tokens, %zu in the loss ---\n", index ? "\n" : "", index,
              e->length, trained);
    int rc = APP_OK;
    for (size_t start = 0, end; start < e->length && rc == APP_OK; start = end) {
        bool masked = e->labels[start] == KT_IGNORE_LABEL;
        for (end = start; end < e->length && (e->labels[end] == KT_IGNORE_LABEL) == masked;)
            end++;
        if (out_is_terminal())
            out_control(masked ? "\033[2m" : "\033[0m");
        else
            out_print("%s", masked ? "" : ">>>");
        rc = print_text(s, e->input_ids + start, end - start);
        if (out_is_terminal())
            out_control("\033[0m");
        else
            out_print("%s", masked ? "" : "<<<");
    }
    out_print("\n");
    return rc;
}

static int print_examples(session *s, const kt_dataset *dataset, bool jsonl, size_t num)
{
    size_t total = kt_dataset_num_examples(dataset);
    if (jsonl || num > total)
        num = total;
    int rc = APP_OK;
    for (size_t i = 0; i < num && rc == APP_OK; i++) {
        kt_example e = {.size = sizeof e};
        if (kt_dataset_get(dataset, i, &e) != KT_OK)
            return app_fail("%s", kt_last_error(s->ctx));
        if (jsonl)
            print_json(&e);
        else
            rc = print_example(s, i, &e);
    }
    if (!jsonl)
        out_print("\n%zu examples in all\n", total);
    return rc;
}

static int run(const config *cfg, bool jsonl, size_t num)
{
    session s;
    kt_dataset *dataset = NULL;
    int rc = session_open(&s, cfg);
    if (rc == APP_OK)
        rc = session_check_template(&s);
    if (rc == APP_OK)
        rc = session_load_tokenizer(&s);
    if (rc == APP_OK)
        rc = session_load_dataset(&s, "dataset", &dataset);
    if (rc == APP_OK)
        rc = print_examples(&s, dataset, jsonl, num);
    kt_dataset_free(dataset);
    session_close(&s);
    return rc;
}

int data_command(int argc, char **argv)
{
    bool jsonl = false;
    const char *num = "3";
    const arg_option options[] = {
        {.name = "--jsonl", .flag = &jsonl}, {.name = "--num", .value = &num}, {0}};
    arguments args;
    int rc = arguments_parse(&args, "data", argc, argv, options);
    if (rc != APP_OK)
        return rc;
    char *end;
    unsigned long examples = strtoul(num, &end, 10);
    if (*end || *num == '-' || !*num)
        return app_usage("--num %s: expected a number", num);
    config cfg;
    rc = config_load(&cfg, args.path, args.overrides, args.num_overrides);
    if (rc == APP_OK)
        rc = run(&cfg, jsonl, examples);
    config_free(&cfg);
    return rc;
}
