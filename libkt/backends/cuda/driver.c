/* SPDX-License-Identifier: Apache-2.0 */
#include <cuda.h>
#include <dlfcn.h>
#include <string.h>

#include "backends/cuda/host.h"

static struct {
    CUresult (*current)(CUcontext *context);
    CUresult (*set_current)(CUcontext context);
    CUresult (*range)(CUdeviceptr *base, size_t *bytes, CUdeviceptr address);
} driver;

/* ISO C has no cast from an object's address to a function's. */
static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol;
}

/* Not linked with, so that a machine without a driver is told so by a sentence. It stays loaded. */
bool kt_cuda_driver_load(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return library && find(library, "cuCtxGetCurrent", &driver.current) &&
           find(library, "cuCtxSetCurrent", &driver.set_current) &&
           find(library, "cuMemGetAddressRange_v2", &driver.range);
}

void *kt_cuda_current(void)
{
    CUcontext context = NULL;
    driver.current(&context);
    return context;
}

void *kt_cuda_enter(void *context)
{
    void *before = kt_cuda_current();
    if (before != context)
        driver.set_current(context);
    return before;
}

void kt_cuda_leave(void *context, void *before)
{
    if (before != context)
        driver.set_current(before);
}

uint64_t kt_cuda_bytes_at(const void *memory)
{
    CUdeviceptr base;
    size_t bytes = 0;
    driver.range(&base, &bytes, (CUdeviceptr)(uintptr_t)memory);
    return bytes;
}
