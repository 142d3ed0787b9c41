/* SPDX-License-Identifier: Apache-2.0 */
#include "stop.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "app.h"

enum { ANSWER_SIZE = 200 };

/* Answers are made before they are needed: a handler may do no more than write. */
static char firsts[2][ANSWER_SIZE], later[ANSWER_SIZE];
static volatile sig_atomic_t requests, which_first;
static int terminal = -1;

static void answer(const char *text)
{
    if (terminal >= 0 && write(terminal, text, strlen(text)) < 0)
        return; /* then nobody is there to read it */
}

static void on_signal(int number)
{
    int saved = errno;
    if (requests < 2) {
        requests++;
        answer(requests == 1 ? firsts[which_first] : later);
    } else if (number == SIGINT) { /* whoever shuts a session down may send several others */
        _exit(APP_INTERRUPTED);
    }
    if (requests == 2 && !*later)
        _exit(APP_INTERRUPTED);
    errno = saved;
}

/* Over the progress bar and the terminal's own ^C, and on a line of its own. */
static void compose(char *line, const char *text)
{
    snprintf(line, ANSWER_SIZE, "\r\033[K%s\n", text);
}

void stop_announce(const char *first)
{
    int other = !which_first;
    compose(firsts[other], first);
    which_first = other;
}

void stop_catch(const char *first, const char *second)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, old;
    terminal = isatty(STDERR_FILENO) ? STDERR_FILENO : isatty(STDOUT_FILENO) ? STDOUT_FILENO : -1;
    stop_announce(first);
    if (second)
        compose(later, second);
    for (int i = 0; i < 3; i++)
        sigaddset(&action.sa_mask, numbers[i]);
    for (int i = 0; i < 3; i++) {
        bool ignored = !sigaction(numbers[i], NULL, &old) && old.sa_handler == SIG_IGN;
        if (numbers[i] == SIGINT || !ignored)
            sigaction(numbers[i], &action, NULL);
    }
}

int stop_requests(void)
{
    return requests;
}
