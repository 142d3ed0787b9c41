/* SPDX-License-Identifier: Apache-2.0 */
#include "files.h"

#include <dirent.h>
#include <endian.h>
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

enum { NAME_ATTEMPTS = 100, READ_MAX = 1 << 30 };

/* Files are written as libkt writes its own (TARGET.PID-N.tmp, locked while somebody writes), so
 * that either finds what the other left. This is the length of the name whose unfinished file it
 * is; 0 when it is none. */
static size_t finished_length(const char *name)
{
    int end = 0;
    const char *dot = strrchr(name, '.');
    if (!dot || strcmp(dot, ".tmp"))
        return 0;
    while (dot > name && *--dot != '.')
        ;
    sscanf(dot, ".%*[0-9]-%*[0-9].tmp%n", &end);
    return end && !dot[end] ? (size_t)(dot - name) : 0;
}

static void remove_if_dead(int folder, const char *name)
{
    struct stat st;
    int fd = openat(folder, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return;
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && !flock(fd, LOCK_EX | LOCK_NB))
        unlinkat(folder, name, 0);
    close(fd);
}

/* Of `base` alone, or of any file when it is NULL. */
static void remove_dead(const char *folder, const char *base)
{
    DIR *dir = opendir(folder);
    for (const struct dirent *e; dir && (e = readdir(dir));) {
        size_t length = finished_length(e->d_name);
        if (length && (!base || (strlen(base) == length && !strncmp(e->d_name, base, length))))
            remove_if_dead(dirfd(dir), e->d_name);
    }
    if (dir)
        closedir(dir);
}

void folder_clean(const char *path)
{
    remove_dead(path, NULL);
}

/* The folder that `path` lies in, in new memory. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return !slash ? app_copy(".") : app_text("%.*s", slash == path ? 1 : (int)(slash - path), path);
}

/* Until it is locked, another writer may take a new file for a dead one and remove it. */
static bool is_ours(int fd)
{
    struct stat st;
    if (flock(fd, LOCK_EX | LOCK_NB))
        return errno != EWOULDBLOCK; /* locks may be unknown here: then nobody removes */
    return fstat(fd, &st) || st.st_nlink > 0;
}

static int open_beside(const char *path, char **name)
{
    for (int i = 0; i < NAME_ATTEMPTS; i++) {
        *name = app_text("%s.%ld-%d.tmp", path, (long)getpid(), i);
        int fd = open(*name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (fd >= 0 && is_ours(fd))
            return fd;
        int reason = fd < 0 ? errno : EEXIST;
        if (fd >= 0)
            close(fd);
        free(*name);
        *name = NULL;
        errno = reason;
        if (reason != EEXIST)
            break;
    }
    return -1;
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n < 0 ? errno : EIO;
            return -1;
        }
        data += n;
        size -= (size_t)n;
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

int folder_sync(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == EACCES ? 0 : -1; /* one may write into a folder that one cannot read */
    bool failed = fsync(fd) && errno != EINVAL && errno != ENOTSUP;
    return finish(fd, failed ? -1 : 0);
}

static int sync_folder_of(const char *path)
{
    char *folder = folder_of(path);
    int result = folder_sync(folder);
    free(folder);
    return result;
}

/* A link is replaced; a device or a folder must not be. */
static bool is_replaceable(const char *path)
{
    struct stat st;
    if (lstat(path, &st) || S_ISREG(st.st_mode) || S_ISLNK(st.st_mode))
        return true;
    errno = S_ISDIR(st.st_mode) ? EISDIR : ENOTSUP;
    return false;
}

int file_write(const char *path, const void *data, size_t size)
{
    if (!is_replaceable(path))
        return -1;
    const char *slash = strrchr(path, '/');
    char *folder = folder_of(path), *beside = NULL;
    remove_dead(folder, slash ? slash + 1 : path);
    free(folder);
    int fd = open_beside(path, &beside);
    if (fd < 0)
        return -1;
    int result = write_all(fd, data, size);
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
    free(beside);
    return result ? result : sync_folder_of(path);
}

int file_append(const char *path, const void *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666);
    return fd < 0 ? -1 : finish(fd, write_all(fd, data, size));
}

bool file_exists(const char *path)
{
    struct stat st;
    return !lstat(path, &st) || (errno != ENOENT && errno != ENOTDIR);
}

int file_hash(const char *path, uint64_t *size, uint64_t *hash)
{
    uint64_t words[8192];
    size_t n;
    FILE *file = fopen(path, "rbe");
    *size = 0;
    *hash = 0xcbf29ce484222325;
    if (!file)
        return -1;
    do {
        memset(words, 0, sizeof words);
        n = fread(words, 1, sizeof words, file);
        for (size_t i = 0; i < (n + 7) / 8; i++)
            *hash = (*hash ^ le64toh(words[i])) * 0x100000001b3;
        *size += n;
    } while (n == sizeof words);
    int result = ferror(file) ? -1 : 0, reason = errno;
    fclose(file);
    errno = reason;
    return result;
}

char *stream_read(FILE *file, size_t *size)
{
    char *data = NULL;
    size_t capacity = 0, n;
    int reason = 0;
    *size = 0;
    do {
        capacity += capacity + 65536;
        data = app_resize(data, capacity, 1);
        n = fread(data + *size, 1, capacity - 1 - *size, file);
        *size += n;
    } while (*size == capacity - 1 && *size <= READ_MAX);
    if (ferror(file))
        reason = errno;
    else if (*size > READ_MAX)
        reason = EFBIG;
    if (!reason) {
        data[*size] = 0;
        return data;
    }
    free(data);
    errno = reason;
    return NULL;
}

char *file_read(const char *path, size_t *size)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* of a pipe: at once */
    FILE *file = fd < 0 ? NULL : fdopen(fd, "rb");
    if (!file) {
        if (fd >= 0)
            finish(fd, -1);
        return NULL;
    }
    char *data = NULL;
    bool seen = !fstat(fd, &st);
    if (seen && S_ISREG(st.st_mode) && st.st_size <= READ_MAX)
        data = stream_read(file, size);
    else if (seen)
        errno = S_ISDIR(st.st_mode) ? EISDIR : S_ISREG(st.st_mode) ? EFBIG : ENOTSUP;
    int reason = errno;
    fclose(file);
    errno = reason;
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
        } else {
            result = sync_folder_of(part);
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
    char *target = app_text("%s/.kt-probe", path), *probe;
    int fd = open_beside(target, &probe);
    int result = fd < 0 ? -1 : finish(fd, 0);
    if (fd >= 0)
        unlink(probe);
    free(probe);
    free(target);
    return result;
}

int folder_lock(const char *path)
{
    static int locked = -1; /* stays open: a process has one such folder */
    if (locked >= 0)
        return 0;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool held = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
    if (held)
        close(fd);
    else
        locked = fd;
    return held ? -1 : 0;
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

int folder_remove(const char *path)
{
    return nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) && errno != ENOENT ? -1 : 0;
}
