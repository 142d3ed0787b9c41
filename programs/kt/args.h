/* SPDX-License-Identifier: Apache-2.0 */
/** \file args.h
 * A command's arguments: options that begin with --, one path, then key=value. Options are those of
 * getopt_long: --name value, --name=value, or as much of a name as is unambiguous. */
#ifndef KT_ARGS_H
#define KT_ARGS_H

#include <stdbool.h>

typedef struct arg_option {
    const char *name;   /**< with its dashes; NULL ends a table */
    bool *flag;         /**< set when the option is given, or NULL */
    const char **value; /**< takes the option's value, or NULL */
    const char *key;    /**< the option's value is this key's, or NULL */
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

/** Sorts the arguments behind argv[-1], the command, and keeps overrides in their place. `name`,
 * the command, is named in errors. Returns an exit code. */
int arguments_parse(arguments *out, const char *name, int argc, char **argv,
                    const arg_option *options);

#endif
