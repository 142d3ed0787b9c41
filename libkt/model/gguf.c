/* SPDX-License-Identifier: Apache-2.0 */
#include "model/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/file.h"

static kt_status read_config(const struct kt_gguf *g, struct kt_model_config *config)
{
    json_t *root;
    const char *file = g->files[0].path;
    char *beside = kt_path_beside(file, "config.json");
    if (!beside)
        return kt_fail_memory(g->ctx, strlen(file), "a file name");
    bool exists = kt_file_exists(beside);
    kt_status status =
        exists ? kt_json_load(g->ctx, beside, KT_JSON_CONFIG_MAX, &root) : kt_gguf_config(g, &root);
    if (status == KT_OK) {
        status = kt_config_read_object(g->ctx, exists ? beside : file, root, config);
        json_decref(root);
    }
    free(beside);
    return status;
}

kt_status kt_gguf_model_open(kt_context *ctx, const char *file, struct kt_model_config *config,
                             struct kt_checkpoint **checkpoint)
{
    struct kt_gguf *gguf;
    *checkpoint = NULL;
    KT_TRY(kt_gguf_open(ctx, file, &gguf));
    kt_status status = read_config(gguf, config);
    if (status == KT_OK)
        status = kt_gguf_checkpoint(gguf, checkpoint);
    kt_gguf_close(gguf);
    return status;
}
