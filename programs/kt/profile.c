/* SPDX-License-Identifier: Apache-2.0 */
#include "profile.h"

#include "app.h"
#include "output.h"

int profile_begin(profile *p, kt_context *ctx)
{
    kt_trace_options options;
    if (!p->path && !p->prints)
        return APP_OK;
    kt_trace_options_init(&options, sizeof options);
    options.path = p->path;
    if (kt_trace_create(ctx, &options, &p->trace) == KT_OK)
        return APP_OK;
    return app_fail("--trace: %s", kt_last_error(ctx));
}

int profile_end(profile *p, kt_context *ctx, int rc, void (*print)(const char *format, ...))
{
    if (!p->trace)
        return rc;
    if (kt_trace_finish(p->trace) != KT_OK) {
        int failed = app_fail("--trace: %s", kt_last_error(ctx));
        rc = rc == APP_OK ? failed : rc;
    }
    if (p->prints)
        profile_print(p->trace, print);
    kt_trace_free(p->trace);
    p->trace = NULL;
    return rc;
}
