/* SPDX-License-Identifier: Apache-2.0 */
#include "args.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"

/* What getopt_long returns of an argument without dashes, and of the first option in a table. */
enum { PLAIN = 1, FIRST_OPTION = 256 };

static struct option *options_of_getopt(const arg_option *options)
{
    size_t num = 0;
    while (options[num].name)
        num++;
    struct option *table = app_alloc(num + 1, sizeof *table);
    for (size_t i = 0; i < num; i++) {
        table[i].name = options[i].name + strlen("--");
        table[i].has_arg = options[i].flag ? no_argument : required_argument;
        table[i].val = FIRST_OPTION + (int)i;
    }
    return table;
}

static void take_plain(arguments *out, char *argument)
{
    if (out->path)
        out->overrides[out->num_overrides++] = argument;
    else
        out->path = argument;
}

static void take_option(arguments *out, const arg_option *option)
{
    if (option->flag)
        *option->flag = true;
    if (option->value)
        *option->value = optarg;
    if (option->key) /* kept as long as argv */
        out->overrides[out->num_overrides++] = app_text("%s=%s", option->key, optarg);
}

/* `result` is what getopt_long returned of `given`, and optopt the option that it found. */
static int refuse(const char *name, int result, const char *given, const arg_option *options)
{
    if (optopt < FIRST_OPTION)
        return app_usage("%.*s is not an option of kt %s; see kt help %s", (int)strcspn(given, "="),
                         given, name, name);
    return app_usage("%s %s; see kt help %s", options[optopt - FIRST_OPTION].name,
                     result == ':' ? "needs a value" : "takes no value", name);
}

/* argv[0] is not looked at. */
static int take_all(arguments *out, const char *name, int argc, char **argv,
                    const arg_option *options, const struct option *table)
{
    optind = 1;
    opterr = 0;
    while (optind < argc) {
        const char *given = argv[optind];
        int result = getopt_long(argc, argv, "-:", table, NULL);
        if (result == -1) /* behind -- */
            break;
        if (result == PLAIN)
            take_plain(out, optarg);
        else if (result >= FIRST_OPTION)
            take_option(out, &options[result - FIRST_OPTION]);
        else
            return refuse(name, result, given, options);
    }
    while (optind < argc)
        take_plain(out, argv[optind++]);
    return out->path ? APP_OK : app_usage("kt %s needs a path; see kt help %s", name, name);
}

int arguments_parse(arguments *out, const char *name, int argc, char **argv,
                    const arg_option *options)
{
    *out = (arguments){.overrides = argv};
    struct option *table = options_of_getopt(options);
    int rc = take_all(out, name, argc + 1, argv - 1, options, table);
    free(table);
    return rc;
}
