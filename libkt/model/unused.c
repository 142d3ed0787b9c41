/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "model/binding.h"

/* What follows `pattern` in `name`, with any number for each %l and %e; NULL when it does not begin
 * so. *layer gets the number for %l. */
static const char *behind(const char *pattern, const char *name, long *layer)
{
    for (; *pattern; pattern++) {
        if (*pattern == '%') {
            char *end;
            long number = strtol(name, &end, 10);
            if (*name < '0' || *name > '9')
                return NULL;
            if (*++pattern == 'l')
                *layer = number;
            name = end;
        } else if (*pattern != *name++) {
            return NULL;
        }
    }
    return name;
}

static bool is_known(const struct kt_model_config *c, const char *name)
{
    long layer = -1;
    if (behind("model.layers.%l.", name, &layer) && layer >= c->num_hidden_layers &&
        layer < c->num_hidden_layers + c->num_nextn_predict_layers)
        return true;
    for (const char *const *pattern = c->architecture->ignored; *pattern; pattern++) {
        const char *rest = behind(*pattern, name, &layer);
        if (rest && !*rest)
            return true;
    }
    return c->tie_word_embeddings && strcmp(name, "lm_head.weight") == 0;
}

const struct kt_binding *kt_binding_of(const struct kt_architecture *architecture, const char *name)
{
    long layer;
    for (const struct kt_binding *b = architecture->layer_bindings; b->name; b++) {
        const char *rest = behind(b->tensor ? b->tensor : b->name, name, &layer);
        if (rest && strcmp(rest, b->tensor ? "" : ".weight") == 0)
            return b;
    }
    return NULL;
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
