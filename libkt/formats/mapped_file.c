/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core/context.h"

/** Whether faults of a file on this disk read a megabyte or more; most systems read 128 KiB. */
static bool reads_ahead(dev_t disk)
{
    char path[64];
    unsigned kib = 0;
    snprintf(path, sizeof path, "/sys/class/bdi/%u:%u/read_ahead_kb", major(disk), minor(disk));
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%u", &kib) != 1)
        kib = 0;
    if (f)
        fclose(f);
    return kib >= 1024;
}

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
    file->reads_ahead = reads_ahead(info.st_dev);
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

/** The page that a byte is in. */
static char *page_of(const char *byte)
{
    return (char *)((uintptr_t)byte & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1));
}

void kt_want_pages(struct kt_range range)
{
    const ptrdiff_t step = 128 << 10; /* of more, Linux may read a part */
    for (char *at = page_of(range.begin); at < range.end; at += step)
        (void)madvise(at, (size_t)(range.end - at < step ? range.end - at : step), MADV_WILLNEED);
}

void kt_scatter_pages(struct kt_range range)
{
    char *first = page_of(range.begin);
    (void)madvise(first, (size_t)(range.end - first), MADV_RANDOM);
}

static int read_through(const struct kt_mapped_file *file, struct kt_range range, char *buffer)
{
    while (range.begin < range.end) {
        size_t left = (size_t)(range.end - range.begin);
        ssize_t got = pread(file->fd, buffer, left < KT_FETCH_BYTES ? left : KT_FETCH_BYTES,
                            range.begin - (const char *)file->map);
        if (got < 0 && errno != EINTR)
            return errno;
        if (got == 0)
            return EFAULT;
        range.begin += got > 0 ? got : 0;
    }
    return 0;
}

int kt_mapped_file_fetch(const struct kt_mapped_file *file, struct kt_range range, char *buffer)
{
#if !defined(MADV_POPULATE_READ)
    enum { MADV_POPULATE_READ = 22 };
#endif
    char *first = page_of(range.begin);
    bool through = buffer && !file->reads_ahead;
    int error = through ? read_through(file, range, buffer) : 0;
    if (error)
        return error;
    if (madvise(first, (size_t)(range.end - first), MADV_POPULATE_READ) == 0)
        return 0;
    if (errno != EINVAL)
        return errno;
    return buffer && !through ? read_through(file, range, buffer) : 0; /* Linux before 5.14 */
}

void kt_mapped_file_drop(const struct kt_mapped_file *file, struct kt_range range)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)range.begin + page - 1) / page * page;
    uintptr_t last = (uintptr_t)range.end / page * page;
    if (first >= last)
        return;
    (void)madvise((void *)first, last - first, MADV_DONTNEED);
    (void)posix_fadvise(file->fd, (off_t)(first - (uintptr_t)file->map), (off_t)(last - first),
                        POSIX_FADV_DONTNEED);
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
