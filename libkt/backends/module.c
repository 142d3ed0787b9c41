/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/module.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/plugin.h"
#include "core/memory.h"

static struct kt_pool *pool_of(kt_context *ctx)
{
    return ctx->pool;
}

static const struct kt_backend_host host = {
    .fail = kt_fail,
    .log = kt_log,
    .buffer_alloc = kt_buffer_alloc,
    .buffer_free = kt_buffer_free,
    .pool = pool_of,
    .pool_num_threads = kt_pool_num_threads,
    .parallel_for = kt_parallel_for,
};

/** The folder of the library that this is part of; where it is part of a program, whose name may be
 * anything, that of the running file. False when it cannot be told. */
static bool own_folder(char folder[PATH_MAX])
{
    Dl_info info;
    bool known = dladdr(&host, &info) && info.dli_fname && info.dli_fname[0] == '/';
    ssize_t length = known ? snprintf(folder, PATH_MAX, "%s", info.dli_fname)
                           : readlink("/proc/self/exe", folder, PATH_MAX - 1);
    if (length <= 0 || length >= PATH_MAX)
        return false;
    folder[length] = 0;
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = 0;
    return slash;
}

static kt_status not_found(kt_context *ctx, const char *name, const char *why)
{
    int kind = (int)strcspn(name, ":");
    return kt_fail(ctx, KT_ERROR_NOT_FOUND,
                   "device \"%s\": no \"%.*s\" backend here: %s; install libkt-%.*s.so beside "
                   "libkt, of the same version, or use the device \"cpu\"",
                   name, kind, name, why, kind, name);
}

/** The backend in the file, or NULL and why there is none. */
static const struct kt_backend *load(const char *path, const char **why)
{
    kt_backend_module_fn module;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "kt_backend_module") : NULL;
    if (!symbol) {
        *why = dlerror();
        return NULL;
    }
    memcpy(&module, &symbol, sizeof module); /* ISO C has no cast from one to the other */
    const struct kt_backend *backend = module(KT_BACKEND_ABI, &host);
    if (!backend)
        *why = "it was built for another version of libkt";
    return backend;
}

kt_status kt_module_open(kt_context *ctx, const char *folder, const char *name,
                         struct kt_device **out)
{
    char own[PATH_MAX], path[PATH_MAX];
    const char *why, *colon = strchr(name, ':');
    *out = NULL;
    if (!folder && !own_folder(own))
        return not_found(ctx, name, "the folder of libkt cannot be told");
    int length = snprintf(path, sizeof path, "%s/libkt-%.*s.so", folder ? folder : own,
                          (int)strcspn(name, ":"), name);
    if (length >= (int)sizeof path)
        return not_found(ctx, name, "the path of its folder is too long");
    const struct kt_backend *backend = load(path, &why);
    if (!backend)
        return not_found(ctx, name, why);
    return backend->open(ctx, colon ? atoi(colon + 1) : 0, out);
}

kt_status kt_module_open_beside(kt_context *ctx, const char *name, struct kt_device **out)
{
    return kt_module_open(ctx, NULL, name, out);
}
