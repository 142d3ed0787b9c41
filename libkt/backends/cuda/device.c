/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "backends/cuda/host.h"

enum { OLDEST = 80, WORKSPACE = 64 << 20 };

const struct kt_backend_host *kt_cuda_host;

void kt_cuda_remember(struct kt_cuda_device *cuda, const char *format, ...)
{
    va_list args;
    if (cuda->failure[0])
        return;
    va_start(args, format);
    vsnprintf(cuda->failure, sizeof cuda->failure, format, args);
    va_end(args);
}

void kt_cuda_check(struct kt_cuda_device *cuda, cudaError_t error, const char *what)
{
    if (error != cudaSuccess)
        kt_cuda_remember(cuda, "%s: %s", what, cudaGetErrorString(error));
}

void kt_cuda_check_cublas(struct kt_cuda_device *cuda, cublasStatus_t status, const char *what)
{
    if (status != CUBLAS_STATUS_SUCCESS)
        kt_cuda_remember(cuda, "%s: cuBLAS: %s", what, cublasGetStatusString(status));
}

static void cuda_close(struct kt_device *dev)
{
    struct kt_cuda_device *cuda = kt_cuda(dev);
    void *before = kt_cuda_enter(cuda->context);
    if (cuda->cublas)
        cublasDestroy(cuda->cublas);
    cudaFree(cuda->workspace);
    kt_cuda_close_clock(cuda);
    kt_cuda_close_queues(cuda);
    kt_cuda_leave(cuda->context, before);
    free(cuda);
}

static kt_dtype cuda_prefers(const struct kt_device *dev, kt_compute compute)
{
    (void)dev;
    return compute == KT_COMPUTE_BF16 ? KT_DTYPE_BF16 : KT_DTYPE_F32;
}

/* Dense multiply-adds of a multiprocessor in a cycle. */
static double products_a_cycle(int major, int minor, kt_compute compute)
{
    if (compute == KT_COMPUTE_F32)
        return major == 8 && minor == 0 ? 64 : 128;
    if (major == 9 || major == 10)
        return 2048;
    return major == 8 && minor == 0 ? 1024 : 512;
}

/* Half of what the clocks promise, and the link that such cards come with. Asked once: the driver
 * takes its time to tell a clock. */
static void find_rates(struct kt_cuda_device *cuda)
{
    const enum cudaDeviceAttr attributes[] = {
        cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor, cudaDevAttrClockRate,
        cudaDevAttrMemoryClockRate, cudaDevAttrGlobalMemoryBusWidth};
    int of[5] = {0};
    for (int i = 0; i < 5; i++)
        cudaDeviceGetAttribute(&of[i], attributes[i], cuda->index);
    double cycles = 1e3 * of[2] * cuda->num_sms; /* kHz */
    for (int compute = 0; compute < KT_CUDA_COMPUTES; compute++)
        kt_cuda_host_side(cuda)->rates[compute] =
            (struct kt_rates){.flops = cycles * products_a_cycle(of[0], of[1], (kt_compute)compute),
                              .bytes = 0.5 * 2 * 1e3 * of[3] * of[4] / 8,
                              .link = of[0] >= 9 ? 50e9 : 24e9};
}

static struct kt_rates cuda_rates(const struct kt_device *dev, kt_compute compute)
{
    return ((const struct kt_cuda_host_side *)dev)->rates[compute];
}

static const struct kt_device_ops cuda_ops = {
    .abi = KT_BACKEND_ABI,
    .alloc = kt_cuda_alloc,
    .free = kt_cuda_free,
    .scratch_bytes = kt_cuda_scratch_bytes,
    .supports = kt_cuda_supports,
    .prefers = cuda_prefers,
    .rates = cuda_rates,
    .copy = kt_cuda_copy,
    .available = kt_cuda_available,
    .pin = kt_cuda_pin,
    .unpin = kt_cuda_unpin,
    .mark = kt_cuda_mark,
    .wait = kt_cuda_wait,
    .stamp = kt_cuda_stamp,
    .stamped = kt_cuda_stamped,
    .sync = kt_cuda_sync,
    .run_first = kt_cuda_run_first,
    .close = cuda_close,
};

/* Products of float32 are float32 throughout, and sums of parts have a fixed order. */
static void open_cublas(struct kt_cuda_device *cuda)
{
    const cublasMath_t math =
        (cublasMath_t)(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    cublasStatus_t status = cublasCreate(&cuda->cublas);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasSetStream(cuda->cublas, cuda->compute);
    if (status == CUBLAS_STATUS_SUCCESS) /* a stream that is set takes the workspace away */
        status = cublasSetWorkspace(cuda->cublas, cuda->workspace, WORKSPACE);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasSetMathMode(cuda->cublas, math);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasSetAtomicsMode(cuda->cublas, CUBLAS_ATOMICS_NOT_ALLOWED);
    kt_cuda_check_cublas(cuda, status, "opening it");
}

static void prepare(struct kt_cuda_device *cuda)
{
    int shared = 0;
    kt_cuda_check(
        cuda, cudaDeviceGetAttribute(&cuda->num_sms, cudaDevAttrMultiProcessorCount, cuda->index),
        "its size");
    kt_cuda_check(
        cuda, cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda->index),
        "its shared memory");
    cuda->shared_bytes = (size_t)shared;
    find_rates(cuda);
    kt_cuda_check(cuda, kt_cuda_open_queues(cuda), "its queues");
    kt_cuda_check(cuda, cudaMalloc(&cuda->workspace, WORKSPACE), "the workspace of cuBLAS");
    if (!cuda->failure[0])
        open_cublas(cuda);
}

/* With the device current. */
static kt_status open_current(kt_context *ctx, int32_t index, struct kt_device **out)
{
    struct kt_cuda_device *cuda = calloc(1, sizeof(struct kt_cuda_host_side));
    if (!cuda)
        return kt_cuda_host->fail(ctx, KT_ERROR_OUT_OF_MEMORY, "cannot allocate a device");
    snprintf(cuda->name, sizeof cuda->name, "cuda:%d", index);
    cuda->ops = cuda_ops;
    cuda->ops.name = cuda->name;
    for (int op = 0; op < KT_OPS; op++)
        cuda->ops.run[op] = kt_cuda_run[op];
    cuda->base.ops = &cuda->ops;
    cuda->base.ctx = ctx;
    cuda->index = index;
    cuda->context = kt_cuda_current();
    prepare(cuda);
    if (!cuda->failure[0]) {
        *out = &cuda->base;
        return KT_OK;
    }
    kt_status status =
        kt_cuda_host->fail(ctx, KT_ERROR_NOT_FOUND, "device \"%s\": %s", cuda->name, cuda->failure);
    cuda_close(&cuda->base);
    return status;
}

static kt_status check_generation(kt_context *ctx, int32_t index)
{
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
    if (10 * major + minor < OLDEST)
        return kt_cuda_host->fail(ctx, KT_ERROR_UNSUPPORTED,
                                  "device \"cuda:%d\" has compute capability %d.%d; libkt needs "
                                  "%d.%d or newer",
                                  index, major, minor, OLDEST / 10, OLDEST % 10);
    if (kt_cuda_has_code() != cudaSuccess)
        return kt_cuda_host->fail(ctx, KT_ERROR_UNSUPPORTED,
                                  "device \"cuda:%d\" has compute capability %d.%d, which "
                                  "libkt-cuda.so was not built for; build it with "
                                  "-Dgpu_arch=%d%d",
                                  index, major, minor, major, minor);
    return KT_OK;
}

static kt_status check_there(kt_context *ctx, int32_t index)
{
    int num = 0;
    cudaError_t error = cudaGetDeviceCount(&num);
    if (error != cudaSuccess && error != cudaErrorNoDevice)
        return kt_cuda_host->fail(ctx, KT_ERROR_NOT_FOUND, "device \"cuda:%d\": %s", index,
                                  cudaGetErrorString(error));
    if (index >= num)
        return kt_cuda_host->fail(ctx, KT_ERROR_NOT_FOUND,
                                  "device \"cuda:%d\": no CUDA device %d, there %s %d", index,
                                  index, num == 1 ? "is" : "are", num);
    return KT_OK;
}

static kt_status open_device(kt_context *ctx, int32_t index, struct kt_device **out)
{
    KT_TRY(check_there(ctx, index));
    cudaError_t error = cudaSetDevice(index);
    if (error == cudaSuccess)
        error = cudaFree(NULL); /* runtimes before 12 make the context only when it is used */
    if (error != cudaSuccess)
        return kt_cuda_host->fail(ctx, KT_ERROR_NOT_FOUND, "device \"cuda:%d\": %s", index,
                                  cudaGetErrorString(error));
    KT_TRY(check_generation(ctx, index));
    return open_current(ctx, index, out);
}

static kt_status cuda_open(kt_context *ctx, int32_t index, struct kt_device **out)
{
    if (!kt_cuda_driver_load())
        return kt_cuda_host->fail(ctx, KT_ERROR_NOT_FOUND,
                                  "device \"cuda:%d\": no CUDA driver here (libcuda.so.1); install "
                                  "one, or use the device \"cpu\"",
                                  index);
    void *before = kt_cuda_current();
    kt_status status = open_device(ctx, index, out);
    kt_cuda_enter(before);
    return status;
}

static const struct kt_backend backend = {cuda_open};

KT_API const struct kt_backend *kt_backend_module(uint32_t abi, const struct kt_backend_host *host)
{
    kt_cuda_host = host;
    return abi == KT_BACKEND_ABI ? &backend : NULL;
}
