/* SPDX-License-Identifier: Apache-2.0 */
#include "model/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/file.h"

/* The folder of the file, which may be "". */
static char *folder_of(const char *file)
{
    const char *slash = strrchr(file, '/');
    return strndup(file, slash ? (size_t)(slash - file) + 1 : 0);
}

static kt_status read_config(const struct kt_gguf *g, const char *folder,
                             struct kt_model_config *config)
{
    json_t *root;
    char *beside = kt_path_join(folder, "config.json");
    if (!beside)
        return kt_fail_memory(g->ctx, strlen(folder), "a file name");
    bool exists = kt_file_exists(beside);
    free(beside);
    if (exists)
        return kt_config_read(g->ctx, folder, config);
    KT_TRY(kt_gguf_config(g, &root));
    kt_status status = kt_config_read_object(g->ctx, g->files[0].path, root, config);
    json_decref(root);
    return status;
}

kt_status kt_gguf_model_open(kt_context *ctx, const char *file, struct kt_model_config *config,
                             struct kt_checkpoint **checkpoint)
{
    struct kt_gguf *gguf;
    *checkpoint = NULL;
    KT_TRY(kt_gguf_open(ctx, file, &gguf));
    char *folder = folder_of(file);
    kt_status status =
        folder ? read_config(gguf, folder, config) : kt_fail_memory(ctx, 0, "a file name");
    if (status == KT_OK)
        status = kt_gguf_checkpoint(gguf, checkpoint);
    free(folder);
    kt_gguf_close(gguf);
    return status;
}
