/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "model/binding.h"

/* Whether `name` is `pattern` with some layer for %l; *layer gets it. A pattern that ends in '*'
 * leaves the rest open. */
static int matches(const char *pattern, const char *name, long *layer)
{
    for (; *pattern && *pattern != '*'; pattern++) {
        if (*pattern == '%') {
            char *end;
            *layer = strtol(name, &end, 10);
            if (end == name)
                return 0;
            name = end;
            pattern++;
        } else if (*pattern != *name++) {
            return 0;
        }
    }
    return *pattern == '*' || !*name;
}

static int is_known(const struct kt_model_config *c, const char *name)
{
    long layer = -1;
    if (matches("model.layers.%l.*", name, &layer) && layer >= c->num_hidden_layers &&
        layer < c->num_hidden_layers + c->num_nextn_predict_layers)
        return 1;
    for (const char *const *pattern = c->architecture->ignored; *pattern; pattern++)
        if (matches(*pattern, name, &layer))
            return 1;
    return c->tie_word_embeddings && strcmp(name, "lm_head.weight") == 0;
}

void kt_model_account_unused(struct kt_model *m)
{
    const struct kt_tensor *first = NULL;
    size_t unknown = 0;
    for (size_t i = 0; i < m->checkpoint->num_tensors; i++) {
        const struct kt_tensor *t = &m->checkpoint->tensors[i];
        if (m->used[i])
            continue;
        if (is_known(&m->config, t->name)) {
            m->num_skipped_bytes += t->bytes;
        } else if (!unknown++) {
            first = t;
        }
    }
    if (unknown)
        kt_log(m->ctx, KT_LOG_WARNING,
               "%s: the model has no use for %zu of the checkpoint's tensors, such as %s; does "
               "config.json belong to it?",
               m->path, unknown, first->name);
    if (m->num_skipped_bytes)
        kt_log(m->ctx, KT_LOG_INFO, "%s: %.1f MiB are skipped (layers that predict further tokens)",
               m->path, (double)m->num_skipped_bytes / (1 << 20));
}
