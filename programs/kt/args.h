/* SPDX-License-Identifier: Apache-2.0 */
/** \file args.h
 * A command's arguments: options that begin with --, one path, then key=value. */
#ifndef KT_ARGS_H
#define KT_ARGS_H

#include <stdbool.h>

typedef struct arg_option {
    const char *name;   /**< with its dashes; NULL ends a table */
    bool *flag;         /**< set when the option is given, or NULL */
    const char **value; /**< takes the argument after the option, or NULL */
    const char *key;    /**< the argument after the option is this key's value, or NULL */
} arg_option;

/** Of commands that compute with a model. */
#define ARG_EXPERTS                                                                                \
    {                                                                                              \
        .name = "--experts", .key = "kt_experts"                                                   \
    }

typedef struct arguments {
    char *path;
    char **overrides; /**< key=value arguments, and options that stand for one */
    int num_overrides;
} arguments;

/** Sorts argv, which it reorders. `name`, the command, is named in errors. Returns an exit code. */
int arguments_parse(arguments *out, const char *name, int argc, char **argv,
                    const arg_option *options);

#endif
