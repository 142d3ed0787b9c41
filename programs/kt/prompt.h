/* SPDX-License-Identifier: Apache-2.0 */
/** \file prompt.h
 * Lines from the user: with editing and history on a terminal, plain from a pipe. */
#ifndef KT_PROMPT_H
#define KT_PROMPT_H

#include <stdbool.h>

typedef enum prompt_result { PROMPT_LINE, PROMPT_END, PROMPT_INTERRUPTED } prompt_result;

/** Is a person there, at a terminal on both ends? */
bool prompt_interactive(void);
void prompt_open(const char *text);
/** `line` is without its newline, in the caller's memory (free it). */
prompt_result prompt_read(char **line);
void prompt_close(void);

#endif
