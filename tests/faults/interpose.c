/* SPDX-License-Identifier: Apache-2.0 */
#undef _FILE_OFFSET_BITS
#include "interpose.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long count;
static long fail_at;
static atomic_bool counting;
static enum fault_kind wanted;

enum fault_kind fault_kind(const char *name)
{
    static const char *const names[] = {"alloc", "io", "full", "short"};
    int kind = 0;
    while (kind < FAULT_NUM_KINDS && strcmp(name, names[kind]))
        kind++;
    return (enum fault_kind)kind;
}

void fault_begin(enum fault_kind kind, long at)
{
    wanted = kind;
    fail_at = at;
    count = 0;
    counting = true;
}

long fault_end(void)
{
    counting = false;
    return count;
}

static bool hits(void)
{
    return atomic_fetch_add(&count, 1) + 1 == fail_at;
}

/* A thread's start in a sanitizer, which cannot do without memory. */
static __thread bool excused;

static bool no_memory(void)
{
    if (!counting || excused || wanted != FAULT_ALLOC || !hits())
        return false;
    errno = ENOMEM;
    return true;
}

/* A call that moves no bytes. */
static bool fails(bool writes)
{
    if (!counting || (wanted != FAULT_IO && (wanted != FAULT_FULL || !writes)) || !hits())
        return false;
    errno = wanted == FAULT_FULL ? ENOSPC : EIO;
    return true;
}

/* One that moves *size bytes, of which a short one moves half. */
static bool fails_moving(bool writes, size_t *size)
{
    if (counting && wanted == FAULT_SHORT && *size > 1 && hits())
        *size /= 2;
    return fails(writes);
}

/* Memory. Under AddressSanitizer its own functions are the real ones. */
#ifdef __SANITIZE_ADDRESS__
#define REAL(name) __interceptor_##name
#else
#define REAL(name) __libc_##name
#endif

void *REAL(malloc)(size_t);
void *REAL(calloc)(size_t, size_t);
void *REAL(realloc)(void *, size_t);
void *REAL(memalign)(size_t, size_t);

void *malloc(size_t size)
{
    return no_memory() ? NULL : REAL(malloc)(size);
}

void *calloc(size_t num, size_t size)
{
    return no_memory() ? NULL : REAL(calloc)(num, size);
}

void *realloc(void *old, size_t size)
{
    return no_memory() ? NULL : REAL(realloc)(old, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return no_memory() ? NULL : REAL(memalign)(alignment, size);
}

/* Those of libc that would call its own malloc where it is not replaced. */
void *reallocarray(void *old, size_t num, size_t size)
{
    size_t bytes;
    if (!__builtin_mul_overflow(num, size, &bytes))
        return realloc(old, bytes);
    errno = ENOMEM;
    return NULL;
}

char *strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = malloc(size);
    return copy ? memcpy(copy, text, size) : NULL;
}

char *strndup(const char *text, size_t most)
{
    size_t length = strnlen(text, most);
    char *copy = malloc(length + 1);
    if (!copy)
        return NULL;
    copy[length] = 0;
    return memcpy(copy, text, length);
}

/* IO, but for that of the terminal. */
#define NEXT(name)                                                                                 \
    static __typeof__(&name) next;                                                                 \
    if (!next)                                                                                     \
    next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define CALL(type, name, fault, failed, parameters, arguments)                                     \
    type name parameters                                                                           \
    {                                                                                              \
        NEXT(name);                                                                                \
        return (fault) ? failed : next arguments;                                                  \
    }

static bool creates(int flags)
{
    return (flags & (O_CREAT | __O_TMPFILE)) != 0;
}

static mode_t mode_of(int flags, va_list args)
{
    return creates(flags) ? va_arg(args, mode_t) : 0;
}

#define OPEN(name, parameters, arguments)                                                          \
    int name parameters                                                                            \
    {                                                                                              \
        NEXT(name);                                                                                \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode_t mode = mode_of(flags, args);                                                        \
        va_end(args);                                                                              \
        return fails(creates(flags)) ? -1 : next arguments;                                        \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
OPEN(openat64, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))

CALL(FILE *, fopen, fails(*mode != 'r'), NULL, (const char *path, const char *mode), (path, mode))
CALL(FILE *, fopen64, fails(*mode != 'r'), NULL, (const char *path, const char *mode), (path, mode))
CALL(DIR *, opendir, fails(false), NULL, (const char *path), (path))
CALL(struct dirent *, readdir, fails(false), NULL, (DIR * dir), (dir))
CALL(struct dirent64 *, readdir64, fails(false), NULL, (DIR * dir), (dir))
CALL(ssize_t, read, fd > 2 && fails_moving(false, &size), -1, (int fd, void *data, size_t size),
     (fd, data, size))
CALL(ssize_t, pread64, fails_moving(false, &size), -1,
     (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
CALL(ssize_t, write, fd > 2 && fails_moving(true, &size), -1,
     (int fd, const void *data, size_t size), (fd, data, size))
CALL(ssize_t, pwrite64, fails_moving(true, &size), -1,
     (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
CALL(int, fsync, fails(true), -1, (int fd), (fd))
CALL(int, fdatasync, fails(true), -1, (int fd), (fd))
CALL(int, ftruncate64, fails(true), -1, (int fd, off64_t size), (fd, size))
CALL(int, rename, fails(true), -1, (const char *from, const char *to), (from, to))
CALL(int, renameat2, fails(true), -1,
     (int from_dir, const char *from, int to_dir, const char *to, unsigned flags),
     (from_dir, from, to_dir, to, flags))
CALL(int, unlink, fails(false), -1, (const char *path), (path))
CALL(int, unlinkat, fails(false), -1, (int dir, const char *path, int flags), (dir, path, flags))
CALL(int, remove, fails(false), -1, (const char *path), (path))
CALL(int, rmdir, fails(false), -1, (const char *path), (path))
CALL(int, mkdir, fails(true), -1, (const char *path, mode_t mode), (path, mode))
CALL(int, flock, fails(false), -1, (int fd, int operation), (fd, operation))
CALL(int, stat, fails(false), -1, (const char *path, struct stat *st), (path, st))
CALL(int, stat64, fails(false), -1, (const char *path, struct stat64 *st), (path, st))
CALL(int, lstat64, fails(false), -1, (const char *path, struct stat64 *st), (path, st))
CALL(int, fstat64, fails(false), -1, (int fd, struct stat64 *st), (fd, st))
CALL(int, fstatat64, fails(false), -1, (int dir, const char *path, struct stat64 *st, int flags),
     (dir, path, st, flags))
CALL(void *, mmap64, fd > 2 && fails(false), MAP_FAILED,
     (void *at, size_t size, int access, int flags, int fd, off64_t offset),
     (at, size, access, flags, fd, offset))
CALL(char *, realpath, fails(false), NULL, (const char *path, char *out), (path, out))

/* Streams in memory do no IO. */
static bool is_file(FILE *file)
{
    return fileno(file) > 2;
}

int pthread_getattr_np(pthread_t thread, pthread_attr_t *attributes)
{
    NEXT(pthread_getattr_np);
    excused = true;
    int result = next(thread, attributes);
    excused = false;
    return result;
}

/* The error of a stream has no other way in. */
enum { STREAM_ERROR = 0x20 };

size_t fread(void *data, size_t size, size_t num, FILE *file)
{
    NEXT(fread);
    if (!is_file(file) || !fails(false))
        return next(data, size, num, file);
    file->_flags |= STREAM_ERROR;
    return 0;
}

/* What fails to close is closed all the same. */
int close(int fd)
{
    NEXT(close);
    bool failed = fd > 2 && fails(true);
    int reason = errno, result = next(fd);
    errno = failed ? reason : errno;
    return failed ? -1 : result;
}

int fclose(FILE *file)
{
    NEXT(fclose);
    bool failed = is_file(file) && fails(true);
    int reason = errno, result = next(file);
    errno = failed ? reason : errno;
    return failed ? EOF : result;
}
