/* SPDX-License-Identifier: Apache-2.0 */
/** \file app.h
 * What every command of `kt` uses: exit codes, the way errors are told, and number formats. */
#ifndef KT_APP_H
#define KT_APP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    APP_OK = 0,
    APP_ERROR = 1,         /**< something could not be done; one sentence is on stderr */
    APP_USAGE = 2,         /**< the command line makes no sense */
    APP_INTERRUPTED = 130, /**< stopped by Ctrl-C, SIGTERM or SIGHUP */
};

/** Each command gets the arguments after its name and returns an exit code. */
typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary; /**< one line for `kt help` */
    const char *help;    /**< the whole text of `kt help NAME` */
    bool makes_files;    /**< what counts are its files: it is done even if nobody could read it */
} command;

extern const command commands[];
/** NULL when there is no such command. */
const command *command_find(const char *name);

int info_command(int argc, char **argv);
int convert_command(int argc, char **argv);
int data_command(int argc, char **argv);
int train_command(int argc, char **argv);
int chat_command(int argc, char **argv);
int generate_command(int argc, char **argv);

/** Print "kt: " and the sentence on stderr; return APP_ERROR, or APP_USAGE. */
int app_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
int app_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** Prints "kt: warning: " and the sentence on stderr. */
void app_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** malloc and friends that end the program with a sentence when memory is out. */
void *app_alloc(size_t count, size_t size);
void *app_resize(void *pointer, size_t count, size_t size);
char *app_copy(const char *text);
/** printf into new memory. */
char *app_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** Of a clock that never goes back. */
double now_seconds(void);

/** Number formats. Each writes into `out`, of at least FORMAT_SIZE bytes, and returns it. */
#define FORMAT_SIZE 32
char *format_bytes(char *out, uint64_t bytes);   /**< "1.4 GiB" */
char *format_count(char *out, uint64_t count);   /**< "671.0 B" */
char *format_grouped(char *out, uint64_t count); /**< "1,234,567" */
char *format_time(char *out, double seconds);    /**< "1:02:03" */

#endif
