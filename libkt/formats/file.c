/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/context.h"

static kt_status read_all(kt_context *ctx, const char *path, int fd, char *data, size_t *size)
{
    size_t done = 0;
    while (done < *size) {
        ssize_t got = read(fd, data + done, *size - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return kt_fail(ctx, KT_ERROR_IO, "%s: cannot be read: %s", path, strerror(errno));
        if (got == 0)
            break;
        done += (size_t)got;
    }
    data[done] = 0;
    *size = done;
    return KT_OK;
}

static kt_status read_open(kt_context *ctx, const char *path, int fd, uint64_t max_bytes,
                           char **data, size_t *size)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return kt_fail(ctx, KT_ERROR_IO, "%s: cannot be read: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return kt_fail(ctx, KT_ERROR_IO, "%s: is not a regular file", path);
    if ((uint64_t)st.st_size > max_bytes)
        return kt_fail(ctx, KT_ERROR_FORMAT,
                       "%s: is %llu bytes long, more than the %llu that such a file may have", path,
                       (unsigned long long)st.st_size, (unsigned long long)max_bytes);
    *size = (size_t)st.st_size;
    char *buffer = malloc(*size + 1);
    if (!buffer)
        return kt_fail_memory(ctx, *size + 1, path);
    kt_status status = read_all(ctx, path, fd, buffer, size);
    if (status != KT_OK)
        free(buffer);
    else
        *data = buffer;
    return status;
}

kt_status kt_file_read(kt_context *ctx, const char *path, uint64_t max_bytes, char **data,
                       size_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return kt_fail(ctx, errno == ENOENT || errno == ENOTDIR ? KT_ERROR_NOT_FOUND : KT_ERROR_IO,
                       "%s: cannot be opened: %s", path, strerror(errno));
    kt_status status = read_open(ctx, path, fd, max_bytes, data, size);
    close(fd);
    return status;
}

bool kt_is_directory(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool kt_file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

char *kt_path_join(const char *folder, const char *name)
{
    size_t f = strlen(folder), n = strlen(name);
    if (name[0] == '/')
        f = 0;
    char *path = malloc(f + n + 2);
    if (!path)
        return NULL;
    memcpy(path, folder, f);
    if (f && path[f - 1] != '/')
        path[f++] = '/';
    memcpy(path + f, name, n + 1);
    return path;
}

char *kt_path_beside(const char *file, const char *name)
{
    const char *slash = strrchr(file, '/');
    size_t folder = slash ? (size_t)(slash - file) + 1 : 0, n = strlen(name);
    char *path = malloc(folder + n + 1);
    if (!path)
        return NULL;
    memcpy(path, file, folder);
    memcpy(path + folder, name, n + 1);
    return path;
}
