/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/registry.h"

#include <stdlib.h>
#include <string.h>

#include "backends/amx/experts.h"
#include "backends/cpu/cpu.h"
#include "backends/cpu_far/far.h"
#include "backends/experts_cpu/experts.h"
#include "backends/module.h"
#include "backends/reference/reference.h"
#include "config.h"

enum { MAX_DEVICES = 16 }; /* of a kind */

static const struct device_kind {
    const char *prefix; /* names are PREFIX and PREFIX:N, N < MAX_DEVICES */
    kt_status (*open)(kt_context *ctx, const char *name, struct kt_device **out);
} device_kinds[] = {
    {"cpu", kt_cpu_open},
    {"cpu-far", kt_cpu_far_open},
    {"cuda", kt_module_open_beside},
};

static const struct experts_kind {
    const char *name;
    kt_status (*open)(kt_context *ctx, struct kt_experts **out);
} experts_kinds[] = {
    {"amx", kt_amx_experts_open},
    {"amx-emulated", kt_amx_emulated_experts_open},
    {"amx-int8", kt_amx_int8_experts_open},
    {"amx-int8-emulated", kt_amx_int8_emulated_experts_open},
    {"cpu", kt_experts_cpu_open},
    {"llamafile", kt_experts_cpu_open},
    {"reference", kt_reference_open},
};

static bool is_of_kind(const char *name, const struct device_kind *kind)
{
    size_t length = strlen(kind->prefix);
    char *end;
    if (strncmp(name, kind->prefix, length) != 0)
        return false;
    name += length;
    if (name[0] != ':')
        return name[0] == 0;
    if (name[1] < '0' || name[1] > '9')
        return false;
    return strtoul(name + 1, &end, 10) < MAX_DEVICES && *end == 0 && end - name <= 3;
}

static const struct device_kind *find_device(const char *name)
{
    for (size_t i = 0; i < sizeof device_kinds / sizeof *device_kinds; i++)
        if (is_of_kind(name, &device_kinds[i]))
            return &device_kinds[i];
    return NULL;
}

kt_status kt_device_open(kt_context *ctx, const char *name, struct kt_device **out)
{
    const struct device_kind *kind = find_device(name);
    *out = NULL;
    if (kind)
        return kind->open(ctx, name, out);
    return kt_fail(ctx, KT_ERROR_NOT_FOUND,
                   "device \"%s\" is not available here; this build has \"cpu\", or \"cpu:0\" to "
                   "\"cpu:%d\"",
                   name, MAX_DEVICES - 1);
}

kt_status kt_device_probe(kt_context *ctx, const char *name)
{
    struct kt_device *device;
    KT_TRY(kt_device_open(ctx, name, &device));
    kt_device_close(device);
    return KT_OK;
}

static const char *fastest_experts(const kt_context *ctx)
{
#if defined(KT_HAVE_AMX)
    if (ctx->cpu.isa & KT_ISA_AMX_BF16)
        return "amx";
#else
    (void)ctx;
#endif
    return "cpu";
}

kt_status kt_experts_open(kt_context *ctx, const char *name, struct kt_experts **out)
{
    *out = NULL;
    if (strcmp(name, "auto") == 0)
        name = fastest_experts(ctx);
    for (size_t i = 0; i < sizeof experts_kinds / sizeof *experts_kinds; i++)
        if (strcmp(name, experts_kinds[i].name) == 0)
            return experts_kinds[i].open(ctx, out);
    return kt_fail(ctx, KT_ERROR_NOT_FOUND,
                   "experts backend \"%s\" is not available here; use \"amx\", \"amx-int8\", "
                   "\"cpu\", \"reference\" or \"auto\"",
                   name);
}

void kt_experts_close(struct kt_experts *e)
{
    if (e)
        e->ops->close(e);
}
