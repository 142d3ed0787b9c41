/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/context.h"

static kt_status map_fd(kt_context *ctx, int fd, struct kt_mapped_file *file)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return kt_fail(ctx, KT_ERROR_IO, "%s: %s", file->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return kt_fail(ctx, KT_ERROR_IO, "%s: not a regular file", file->path);
    file->size = (uint64_t)info.st_size;
    if (file->size == 0)
        return kt_fail(ctx, KT_ERROR_FORMAT, "%s: truncated: the file is empty", file->path);
    void *map = mmap(NULL, file->size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return kt_fail(ctx, KT_ERROR_IO, "%s: cannot map: %s", file->path, strerror(errno));
    file->map = map;
    file->fd = fd;
    return KT_OK;
}

kt_status kt_map_file(kt_context *ctx, char *path, struct kt_mapped_file *file)
{
    *file = (struct kt_mapped_file){.path = path};
    if (!path)
        return kt_fail_memory(ctx, 0, "a file name");
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return kt_fail(ctx, KT_ERROR_NOT_FOUND, "%s: no such file", file->path);
    if (fd < 0)
        return kt_fail(ctx, KT_ERROR_IO, "%s: cannot read: %s", file->path, strerror(errno));
    kt_status status = map_fd(ctx, fd, file);
    if (status != KT_OK)
        close(fd);
    return status;
}

kt_status kt_mapped_file_check(kt_context *ctx, const struct kt_mapped_file *file)
{
    struct stat info;
    if (fstat(file->fd, &info) != 0)
        return kt_fail(ctx, KT_ERROR_IO, "%s: %s", file->path, strerror(errno));
    if ((uint64_t)info.st_size < file->size)
        return kt_fail(
            ctx, KT_ERROR_IO,
            "%s: the file was truncated while it was in use: %llu of %llu bytes are left; "
            "put the whole file back and load the model again",
            file->path, (unsigned long long)info.st_size, (unsigned long long)file->size);
    return KT_OK;
}

bool kt_mapped_file_tells(const struct kt_mapped_file *file)
{
    struct stat info;
    return (fstat(file->fd, &info) == 0 && info.st_uid == geteuid()) ||
           access(file->path, W_OK) == 0;
}

void kt_unmap_file(struct kt_mapped_file *file)
{
    if (file->map) {
        munmap(file->map, file->size);
        close(file->fd);
    }
    free(file->path);
    *file = (struct kt_mapped_file){0};
}
