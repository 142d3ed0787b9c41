/* SPDX-License-Identifier: Apache-2.0 */
/* The least that a host application does: a context, a call that fails, its sentence. */
#include <kt/kt.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    kt_context *ctx;
    kt_model *model;
    if (kt_version() == 0 || kt_context_create(NULL, &ctx) != KT_OK)
        return 1;
    kt_status status = kt_model_load(ctx, "/nonexistent", NULL, &model);
    printf("%s: %s\n", kt_status_string(status), kt_last_error(ctx));
    int right = status == KT_ERROR_NOT_FOUND && strstr(kt_last_error(ctx), "/nonexistent") != NULL;
    kt_context_free(ctx);
    return right ? 0 : 1;
}
