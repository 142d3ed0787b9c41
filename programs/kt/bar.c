/* SPDX-License-Identifier: Apache-2.0 */
#include "bar.h"

#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "output.h"

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
        out_control("\r\033[K");
    shown = false;
}

void bar_draw(double share, const char *text)
{
    int room = columns() - PERCENT_COLUMNS, width = room - (int)strlen(text);
    width = width > WIDEST ? WIDEST : width;
    bar_clear();
    out_print("%3.0f%% ", 100 * share);
    for (int i = 0; i < width; i++)
        out_print("%s", i < (int)(width * share) ? "█" : "░");
    out_print("%.*s", room, text);
    shown = true;
    out_flush();
}
