/* SPDX-License-Identifier: Apache-2.0 */
#include "lora/target.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "core/context.h"

const char *kt_last_component(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

bool kt_target_matches(const char *path, const char *name, size_t length)
{
    size_t path_length = strlen(path);
    if (length == 0 || length > path_length ||
        memcmp(path + path_length - length, name, length) != 0)
        return false;
    return length == path_length || path[path_length - length - 1] == '.';
}

static bool in_all(const struct kt_linear *linear, int experts)
{
    switch (linear->role) {
    case KT_ROLE_ATTENTION:
    case KT_ROLE_DENSE_MLP:
    case KT_ROLE_SHARED_EXPERT:
        return true;
    case KT_ROLE_ROUTED_EXPERT:
        return experts != 0;
    case KT_ROLE_ROUTER:
    case KT_ROLE_SHARED_GATE:
    case KT_ROLE_HEAD:
        return false;
    }
    return false;
}

/* Selects what one entry of the list names; returns how many linears that is. */
static int32_t select_entry(const kt_model *model, const char *name, size_t length, int experts,
                            uint8_t *selected)
{
    bool all = length == 3 && memcmp(name, "all", 3) == 0;
    int32_t found = 0;
    for (int32_t i = 0; i < model->num_linears; i++) {
        const struct kt_linear *linear = &model->linears[i];
        if (all ? in_all(linear, experts) : kt_target_matches(linear->name, name, length)) {
            selected[i] = 1;
            found++;
        }
    }
    return found;
}

kt_status kt_target_select(kt_model *model, const char *target, int experts, uint8_t *selected)
{
    char missing[256] = "", available[512];
    int32_t found = 0;
    for (const char *p = target; *p;) {
        size_t skip = strspn(p, ", \t"), length;
        p += skip;
        length = strcspn(p, ",");
        const char *next = p + length;
        while (length > 0 && isspace((unsigned char)p[length - 1]))
            length--;
        if (length > 0) {
            int32_t here = select_entry(model, p, length, experts, selected);
            if (here == 0 && !missing[0])
                snprintf(missing, sizeof missing, "%.*s", (int)length, p);
            found += here;
        }
        p = next;
    }
    if (found > 0 && !missing[0])
        return KT_OK;
    kt_target_list_names(model, available, sizeof available);
    if (found > 0) {
        kt_log(model->ctx, KT_LOG_WARNING, "LoRA target \"%s\" matches no linear of %s; it has %s",
               missing, model->path, available);
        return KT_OK;
    }
    return kt_fail(model->ctx, KT_ERROR_NOT_FOUND,
                   "LoRA target \"%s\" matches no linear of %s; use \"all\" or some of %s", target,
                   model->path, available);
}

static bool listed_before(const kt_model *model, int32_t index, const char *name)
{
    for (int32_t i = 0; i < index; i++)
        if (strcmp(kt_last_component(model->linears[i].name), name) == 0)
            return true;
    return false;
}

void kt_target_list_names(const kt_model *model, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int32_t i = 0; i < model->num_linears && used < size; i++) {
        const char *name = kt_last_component(model->linears[i].name);
        if (!listed_before(model, i, name))
            used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", name);
    }
}
