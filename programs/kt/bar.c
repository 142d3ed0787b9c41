/* SPDX-License-Identifier: Apache-2.0 */
#include "bar.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { WIDEST = 40, PERCENT_COLUMNS = 6 };

static bool shown;

static int columns(void)
{
    struct winsize size;
    return !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col ? size.ws_col : 80;
}

void bar_clear(void)
{
    if (shown)
        fputs("\r\033[K", stdout);
    shown = false;
}

void bar_draw(double share, const char *text)
{
    int room = columns() - PERCENT_COLUMNS, width = room - (int)strlen(text);
    width = width > WIDEST ? WIDEST : width;
    bar_clear();
    printf("%3.0f%% ", 100 * share);
    for (int i = 0; i < width; i++)
        fputs(i < (int)(width * share) ? "█" : "░", stdout);
    printf("%.*s", room, text);
    shown = true;
    fflush(stdout);
}
