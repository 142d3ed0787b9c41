/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/context.h"

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

/* mkstemp would make the file private to the user; O_EXCL with the usual mode obeys the umask. */
static int open_beside(struct kt_atomic_file *f, size_t capacity)
{
    int fd = -1;
    for (int i = 0; i < NAME_ATTEMPTS && fd < 0; i++) {
        snprintf(f->temporary, capacity, "%s.%ld-%d.tmp", f->path, (long)getpid(), i);
        fd = open(f->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    return fd;
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
    kt_status status = KT_OK;
    if (!f->path || !f->temporary)
        status = kt_fail_memory(ctx, capacity, "a file name");
    else if ((f->fd = open_beside(f, capacity)) < 0)
        status = fail(f, errno);
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
        if (n < 0)
            return fail(f, errno);
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
        if (n < 0)
            return fail(f, errno);
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

/* Makes the rename itself durable. Some file systems cannot sync a folder; that loses nothing that
 * was promised. */
static void sync_folder(struct kt_atomic_file *f)
{
    int fd = open(dirname(f->temporary), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!fsync(fd);
        close(fd);
    }
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
    if (status == KT_OK)
        sync_folder(f);
    else
        unlink(f->temporary);
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
