/* SPDX-License-Identifier: Apache-2.0 */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app.h"

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno != EINTR)
            return -1;
        if (n > 0) {
            data += n;
            size -= (size_t)n;
        }
    }
    return 0;
}

/* Closes, and keeps the first error. */
static int finish(int fd, int result)
{
    int saved = errno;
    if (close(fd) && !result)
        return -1;
    errno = saved;
    return result;
}

int file_write(const char *path, const void *data, size_t size)
{
    char *beside = app_text("%s.tmp", path);
    int result = -1;
    int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd >= 0) {
        result = write_all(fd, data, size);
        if (!result)
            result = fsync(fd);
        result = finish(fd, result);
        if (!result)
            result = rename(beside, path);
        if (result) {
            int saved = errno;
            unlink(beside);
            errno = saved;
        }
    }
    free(beside);
    return result;
}

int file_append(const char *path, const void *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    return fd < 0 ? -1 : finish(fd, write_all(fd, data, size));
}

char *file_read(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    char *data = NULL;
    size_t capacity = 0, n;
    *size = 0;
    do {
        capacity += capacity + 65536;
        data = app_resize(data, capacity, 1);
        n = fread(data + *size, 1, capacity - 1 - *size, file);
        *size += n;
    } while (n && *size == capacity - 1);
    if (ferror(file)) {
        free(data);
        data = NULL;
    } else {
        data[*size] = 0;
    }
    fclose(file);
    return data;
}

int file_copy(const char *from, const char *to)
{
    size_t size;
    char *data = file_read(from, &size);
    int result = data ? file_write(to, data, size) : -1;
    free(data);
    return result;
}

bool folder_exists(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

int folder_make(const char *path)
{
    char *part = app_copy(path);
    int result = 0;
    for (char *p = part + 1; !result; p++) {
        if (*p != '/' && *p)
            continue;
        char end = *p;
        *p = 0;
        if (mkdir(part, 0777)) {
            int reason = errno == EEXIST ? ENOTDIR : errno;
            result = folder_exists(part) ? 0 : -1;
            errno = reason;
        }
        *p = end;
        if (!end)
            break;
    }
    free(part);
    return result;
}

int folder_probe(const char *path)
{
    char *probe = app_text("%s/.kt-probe-XXXXXX", path);
    int fd = mkostemp(probe, O_CLOEXEC);
    int result = fd < 0 ? -1 : finish(fd, 0);
    if (fd >= 0)
        unlink(probe);
    free(probe);
    return result;
}

int folder_lock(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || !flock(fd, LOCK_EX | LOCK_NB))
        return 0; /* it stays open */
    int reason = errno;
    close(fd);
    return reason == EWOULDBLOCK ? -1 : 0;
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

int folder_remove(const char *path)
{
    return folder_exists(path) ? nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) : 0;
}
