/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <kt/kt.h>

#include "app.h"
#include "keys.h"
#include "lost.h"
#include "output.h"

static void print_overview(void (*print)(const char *format, ...))
{
    print("kt fine-tunes mixture-of-experts language models with LoRA, and chats with them.\n\n"
          "usage: kt COMMAND ...\n\n");
    for (const command *c = commands; c->name; c++)
        print("  %-10s %s\n", c->name, c->summary);
    print("  help       kt help COMMAND: all about a command; kt help keys: every key\n\n"
          "Exit codes: 0 done, 1 an error (one sentence on stderr), 2 a command line without\n"
          "meaning, 130 stopped by Ctrl-C.\n");
}

static int unknown_command(const char *name)
{
    return app_usage("%s is not a command; see kt help", name);
}

static int print_help(const char *topic)
{
    if (!topic) {
        print_overview(out_print);
        return APP_OK;
    }
    if (!strcmp(topic, "keys")) {
        key_print_table();
        return APP_OK;
    }
    const command *c = command_find(topic);
    if (!c)
        return unknown_command(topic);
    out_print("%s", c->help);
    return APP_OK;
}

static void print_version(void)
{
    uint32_t v = kt_version();
    out_print("kt %u.%u.%u\n", v >> 16, v >> 8 & 0xff, v & 0xff);
}

static bool asks_help(const char *argument)
{
    return !strcmp(argument, "--help") || !strcmp(argument, "-h");
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        print_overview(err_print);
        return APP_USAGE;
    }
    if (asks_help(argv[1]) || !strcmp(argv[1], "help"))
        return print_help(argc > 2 ? argv[2] : NULL);
    if (!strcmp(argv[1], "--version")) {
        print_version();
        return APP_OK;
    }
    const command *c = command_find(argv[1]);
    if (!c)
        return unknown_command(argv[1]);
    for (int i = 2; i < argc && strcmp(argv[i], "--"); i++)
        if (asks_help(argv[i]))
            return print_help(c->name);
    return c->run(argc - 2, argv + 2);
}

static void *alloc_for_json(size_t size)
{
    return app_alloc(size, 1);
}

int main(int argc, char **argv)
{
    /* jansson drops characters and members when memory is out: that must end the program. */
    json_set_alloc_funcs(alloc_for_json, free);
    /* A file over the size limit is an error of the write call, not the end of the program. */
    signal(SIGXFSZ, SIG_IGN);
    /* So is a reader that ended, such as the tee that Ctrl-C stops as well. */
    signal(SIGPIPE, SIG_IGN);
    lost_catch();
    output_open();
    const command *c = argc > 1 ? command_find(argv[1]) : NULL;
    int rc = run(argc, argv), error = out_flush();
    if (error && rc == APP_OK && c && c->makes_files)
        app_warn("cannot write to standard output: %s", strerror(error));
    else if (error && rc == APP_OK)
        rc = app_fail("cannot write the output: %s", strerror(error));
    return rc;
}
