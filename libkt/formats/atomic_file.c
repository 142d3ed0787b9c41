/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/atomic_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/context.h"
#include "formats/file.h"

enum { BUFFER_BYTES = 1 << 16, NAME_ATTEMPTS = 100 };

struct kt_atomic_file {
    kt_context *ctx;
    char *path, *temporary;
    int fd;
    size_t used;
    char buffer[BUFFER_BYTES];
};

static kt_status fail(struct kt_atomic_file *f, int error)
{
    const char *advice = error == ENOSPC || error == EDQUOT ? "; free some space and try again"
                         : error == ENOENT                  ? "; create the folder first"
                                                            : "";
    return kt_fail(f->ctx, KT_ERROR_IO, "%s: cannot write: %s%s", f->path, strerror(error), advice);
}

/* Length of the name whose unfinished file this is; 0 when it is none. */
static size_t finished_length(const char *name)
{
    int end = 0;
    const char *dot = strrchr(name, '.');
    if (!dot || strcmp(dot, ".tmp") != 0)
        return 0;
    while (dot > name && *--dot != '.')
        ;
    sscanf(dot, ".%*[0-9]-%*[0-9].tmp%n", &end);
    return end && !dot[end] ? (size_t)(dot - name) : 0;
}

bool kt_atomic_is_unfinished(const char *name)
{
    return finished_length(name) > 0;
}

static void remove_if_dead(int folder, const char *name)
{
    struct stat st;
    int fd = openat(folder, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0)
        unlinkat(folder, name, 0);
    close(fd);
}

/* What killed writers of `path` left. That some of it cannot be removed stops nobody. */
static void remove_dead(const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *folder = kt_path_beside(path, "");
    DIR *dir = folder ? opendir(*folder ? folder : ".") : NULL;
    size_t length = strlen(base);
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (length && finished_length(e->d_name) == length && strncmp(e->d_name, base, length) == 0)
            remove_if_dead(dirfd(dir), e->d_name);
    if (dir)
        closedir(dir);
    free(folder);
}

/* Until it is locked, another writer may take a new file for a dead one and remove it. */
static bool is_ours(int fd)
{
    struct stat st;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0)
        return errno != EWOULDBLOCK; /* locks may be unknown here: then nobody removes */
    return fstat(fd, &st) != 0 || st.st_nlink > 0;
}

/* mkstemp would make the file private to the user; O_EXCL with the usual mode obeys the umask. */
static int open_beside(struct kt_atomic_file *f, size_t capacity)
{
    for (int i = 0; i < NAME_ATTEMPTS; i++) {
        snprintf(f->temporary, capacity, "%s.%ld-%d.tmp", f->path, (long)getpid(), i);
        int fd = open(f->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST)
            return -1;
        if (fd >= 0 && is_ours(fd))
            return fd;
        if (fd >= 0)
            close(fd);
        errno = EEXIST;
    }
    return -1;
}

/* A link is replaced; a device or a folder must not be. */
static kt_status check_target(struct kt_atomic_file *f)
{
    struct stat st;
    size_t length = strlen(f->path);
    if (!length)
        return kt_fail(f->ctx, KT_ERROR_IO, "the name of the file to write is empty");
    if (f->path[length - 1] == '/')
        return fail(f, EISDIR);
    if (lstat(f->path, &st) != 0 || S_ISREG(st.st_mode) || S_ISLNK(st.st_mode))
        return KT_OK;
    return S_ISDIR(st.st_mode) ? fail(f, EISDIR)
                               : kt_fail(f->ctx, KT_ERROR_IO,
                                         "%s: is not a regular file, and stays as it is", f->path);
}

static void release(struct kt_atomic_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    free(f->temporary);
    free(f);
}

kt_status kt_atomic_open(kt_context *ctx, const char *path, struct kt_atomic_file **out)
{
    size_t capacity = strlen(path) + 48;
    struct kt_atomic_file *f = calloc(1, sizeof *f);
    *out = NULL;
    if (!f)
        return kt_fail_memory(ctx, sizeof *f, "a file buffer");
    f->ctx = ctx;
    f->fd = -1;
    f->path = strdup(path);
    f->temporary = malloc(capacity);
    kt_status status =
        f->path && f->temporary ? check_target(f) : kt_fail_memory(ctx, capacity, "a file name");
    if (status == KT_OK) {
        remove_dead(path);
        f->fd = open_beside(f, capacity);
        if (f->fd < 0)
            status = fail(f, errno);
    }
    if (status == KT_OK)
        *out = f;
    else
        release(f);
    return status;
}

static kt_status write_all(struct kt_atomic_file *f, const char *data, size_t bytes)
{
    while (bytes) {
        ssize_t n = write(f->fd, data, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return fail(f, n < 0 ? errno : EIO);
        data += n;
        bytes -= (size_t)n;
    }
    return KT_OK;
}

kt_status kt_atomic_write_at(struct kt_atomic_file *f, uint64_t offset, const void *data,
                             size_t bytes)
{
    const char *from = data;
    while (bytes) {
        ssize_t n = pwrite(f->fd, from, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return fail(f, n < 0 ? errno : EIO);
        from += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return KT_OK;
}

static kt_status flush(struct kt_atomic_file *f)
{
    size_t used = f->used;
    f->used = 0;
    return write_all(f, f->buffer, used);
}

kt_status kt_atomic_write(struct kt_atomic_file *f, const void *data, size_t bytes)
{
    if (bytes > BUFFER_BYTES - f->used)
        KT_TRY(flush(f));
    if (bytes > BUFFER_BYTES)
        return write_all(f, data, bytes);
    if (bytes)
        memcpy(f->buffer + f->used, data, bytes);
    f->used += bytes;
    return KT_OK;
}

int kt_sync_folder(const char *folder)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == EACCES ? 0 : -1; /* one may write into a folder that one cannot read */
    int result = fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP ? -1 : 0;
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

kt_status kt_atomic_commit(struct kt_atomic_file *f)
{
    kt_status status = flush(f);
    if (status == KT_OK && fsync(f->fd) != 0)
        status = fail(f, errno);
    int closed = close(f->fd);
    f->fd = -1;
    if (status == KT_OK && closed != 0)
        status = fail(f, errno);
    if (status == KT_OK && rename(f->temporary, f->path) != 0)
        status = fail(f, errno);
    if (status != KT_OK)
        unlink(f->temporary);
    else if (kt_sync_folder(dirname(f->temporary)) != 0)
        status = fail(f, errno);
    release(f);
    return status;
}

void kt_atomic_discard(struct kt_atomic_file *f)
{
    if (!f)
        return;
    unlink(f->temporary);
    release(f);
}

kt_status kt_atomic_write_file(kt_context *ctx, const char *path, const void *data, size_t bytes)
{
    struct kt_atomic_file *f;
    KT_TRY(kt_atomic_open(ctx, path, &f));
    kt_status status = kt_atomic_write(f, data, bytes);
    if (status == KT_OK)
        return kt_atomic_commit(f);
    kt_atomic_discard(f);
    return status;
}
