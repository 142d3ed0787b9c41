/* SPDX-License-Identifier: Apache-2.0 */
#include "lost.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "app.h"

static const char *volatile advice;

enum { LINE_SIZE = 4352 }; /* a path, and what is before it */

/* The handler may call nothing that locks or allocates. */
static void say(const char *text, size_t length)
{
    while (length) {
        ssize_t n = write(STDERR_FILENO, text, length);
        if (n <= 0)
            return;
        text += n;
        length -= (size_t)n;
    }
}

static const char *read_hex(const char *text, uintptr_t *number)
{
    static const char digits[] = "0123456789abcdef";
    for (*number = 0; *text && strchr(digits, *text); text++)
        *number = *number << 4 | (uintptr_t)(strchr(digits, *text) - digits);
    return text;
}

/* "BEGIN-END PERMISSIONS OFFSET DEVICE INODE   PATH" of /proc/self/maps: the path, if `address`
 * lies there. What means something to a terminal becomes a question mark. */
static const char *path_at(char *line, uintptr_t address)
{
    uintptr_t begin, end;
    const char *rest = read_hex(line, &begin);
    rest = read_hex(rest + (*rest == '-'), &end);
    char *path = strchr(rest, '/');
    if (address < begin || address >= end || !path)
        return NULL;
    for (char *p = path; *p; p++)
        if ((unsigned char)*p < ' ' || (unsigned char)*p >= 0x7f)
            *p = '?';
    return path;
}

/* In `line`; NULL when no file is mapped there. */
static const char *file_at(uintptr_t address, char *line)
{
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    size_t length = 0;
    const char *path = NULL;
    char block[512];
    for (ssize_t n; fd >= 0 && !path && (n = read(fd, block, sizeof block)) > 0;)
        for (ssize_t i = 0; i < n && !path; i++) {
            if (block[i] != '\n' && length < LINE_SIZE - 1) {
                line[length++] = block[i];
            } else if (block[i] == '\n') {
                line[length] = 0;
                length = 0;
                path = path_at(line, address);
            }
        }
    if (fd >= 0)
        close(fd);
    return path;
}

/* Threads of a layer meet the end of a file together. */
static atomic_flag ending = ATOMIC_FLAG_INIT;

static void on_fault(int number, siginfo_t *info, void *context)
{
    static const char after[] =
        ": was truncated while it was in use, or cannot be read; put the whole file back";
    static const char again[] = " and give the command again\n";
    const char *how = advice;
    char line[LINE_SIZE];
    (void)context;
    const char *path = info->si_code == BUS_ADRERR ? file_at((uintptr_t)info->si_addr, line) : NULL;
    if (!path) { /* something else: the instruction is tried again, and ends the program */
        signal(number, SIG_DFL);
        return;
    }
    if (atomic_flag_test_and_set(&ending))
        for (;;)
            pause(); /* another thread has met the same, and ends the program */
    say("kt: ", 4);
    say(path, strlen(path));
    say(after, sizeof after - 1);
    if (how)
        say("\n", 1);
    say(how ? how : again, strlen(how ? how : again));
    _exit(APP_ERROR);
}

void lost_catch(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
}

void lost_advise(const char *how)
{
    advice = how;
}
