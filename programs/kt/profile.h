/* SPDX-License-Identifier: Apache-2.0 */
/** \file profile.h
 * What --trace and --profile ask for: the trace of a session's calls. */
#ifndef KT_PROFILE_H
#define KT_PROFILE_H

#include <kt/kt.h>

#include "args.h"

typedef struct profile {
    const char *path; /**< of --trace, or NULL */
    bool prints;      /**< --profile */
    kt_trace *trace;  /**< NULL = none was begun */
} profile;

/** The options, for a command's table. */
#define ARG_PROFILE(profile)                                                                       \
    {.name = "--trace", .value = &(profile)->path},                                                \
    {                                                                                              \
        .name = "--profile", .flag = &(profile)->prints                                            \
    }

/** Begins what was asked for, if anything. Returns an exit code and has told the error. */
int profile_begin(profile *p, kt_context *ctx);

/** Writes the file and prints the table by out_print or err_print, of a run that failed too.
 * Returns `rc`, or what went wrong here if that was nothing. */
int profile_end(profile *p, kt_context *ctx, int rc, void (*print)(const char *format, ...));

/** The rows of a finished trace as a table. */
void profile_print(const kt_trace *trace, void (*print)(const char *format, ...));

#endif
