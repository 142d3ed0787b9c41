/* SPDX-License-Identifier: Apache-2.0 */
#include "prompt.h"

#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef KT_HAVE_LIBEDIT
#include <histedit.h>
#endif

#include "app.h"
#include "output.h"

static const char *prompt_text;

bool prompt_interactive(void)
{
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
}

static prompt_result read_plain(char **line)
{
    size_t capacity = 0;
    *line = NULL;
    if (prompt_interactive()) {
        out_print("%s", prompt_text);
        out_flush();
    }
    errno = 0;
    ssize_t length = getline(line, &capacity, stdin);
    if (length >= 0) {
        (*line)[strcspn(*line, "\r\n")] = 0;
        return PROMPT_LINE;
    }
    free(*line);
    *line = NULL;
    if (feof(stdin))
        return PROMPT_END;
    if (errno != EINTR)
        exit(app_fail("cannot read the standard input: %m"));
    clearerr(stdin);
    return PROMPT_INTERRUPTED;
}

#ifdef KT_HAVE_LIBEDIT

static EditLine *editor;
static History *history_list;

static char *show_prompt(EditLine *el)
{
    (void)el;
    return (char *)prompt_text;
}

void prompt_open(const char *text)
{
    HistEvent event;
    prompt_text = text;
    if (!prompt_interactive())
        return;
    setlocale(LC_CTYPE, "");
    if (MB_CUR_MAX == 1)
        setlocale(LC_CTYPE, "C.UTF-8"); /* prompts are UTF-8 whatever the environment says */
    editor = el_init("kt", stdin, stdout, stderr);
    history_list = history_init();
    if (!editor || !history_list)
        return;
    history(history_list, &event, H_SETSIZE, 1000);
    el_set(editor, EL_PROMPT, show_prompt);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_HIST, history, history_list);
}

prompt_result prompt_read(char **line)
{
    HistEvent event;
    int length = 0;
    if (!editor)
        return read_plain(line);
    *line = NULL;
    errno = 0;
    const char *text = el_gets(editor, &length);
    if (!text || length <= 0)
        return length < 0 && errno == EINTR ? PROMPT_INTERRUPTED : PROMPT_END;
    *line = app_text("%.*s", (int)strcspn(text, "\r\n"), text);
    if (**line)
        history(history_list, &event, H_ENTER, *line);
    return PROMPT_LINE;
}

void prompt_close(void)
{
    if (history_list)
        history_end(history_list);
    if (editor)
        el_end(editor);
    history_list = NULL;
    editor = NULL;
}

#else

void prompt_open(const char *text)
{
    prompt_text = text;
    if (prompt_interactive())
        out_print("(built without libedit: no line editing)\n");
}

prompt_result prompt_read(char **line)
{
    return read_plain(line);
}

void prompt_close(void)
{
}

#endif
