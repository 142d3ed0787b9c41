/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/experts.h"
#include "backends/amx/experts.h"
#include "backends/experts_cpu/experts.h"
#include "backends/reference/reference.h"
#include "config.h"

kt_status kt_device_open(kt_context *ctx, const char *name, struct kt_device **out)
{
    *out = NULL;
    if (strcmp(name, "cpu") == 0 || strcmp(name, "cpu:0") == 0)
        return kt_cpu_open(ctx, out);
    return kt_fail(ctx, KT_ERROR_NOT_FOUND,
                   "device \"%s\" is not available here; this build has \"cpu\"", name);
}

void kt_device_close(struct kt_device *dev)
{
    if (dev)
        kt_cpu_close(dev);
}

static const char *fastest_experts(const kt_context *ctx)
{
#if defined(KT_HAVE_AMX)
    if (ctx->cpu.isa & KT_ISA_AMX_BF16)
        return "amx";
#else
    (void)ctx;
#endif
    return "llamafile";
}

kt_status kt_experts_open(kt_context *ctx, const char *name, struct kt_experts **out)
{
    *out = NULL;
    if (strcmp(name, "auto") == 0)
        name = fastest_experts(ctx);
    if (strcmp(name, "amx") == 0)
        return kt_amx_experts_open(ctx, out);
    if (strcmp(name, "amx-emulated") == 0)
        return kt_amx_emulated_experts_open(ctx, out);
    if (strcmp(name, "amx-int8") == 0)
        return kt_amx_int8_experts_open(ctx, out);
    if (strcmp(name, "amx-int8-emulated") == 0)
        return kt_amx_int8_emulated_experts_open(ctx, out);
    if (strcmp(name, "llamafile") == 0)
        return kt_llamafile_open(ctx, out);
    if (strcmp(name, "reference") == 0)
        return kt_reference_open(ctx, out);
    return kt_fail(ctx, KT_ERROR_NOT_FOUND,
                   "experts backend \"%s\" is not available here; use \"amx\", \"amx-int8\", "
                   "\"llamafile\", \"reference\" or \"auto\"",
                   name);
}

void kt_experts_close(struct kt_experts *e)
{
    if (e)
        e->ops->close(e);
}
