/* SPDX-License-Identifier: Apache-2.0 */
/* kt info: what a checkpoint is. */
#include <string.h>

#include "app.h"
#include "args.h"
#include "output.h"
#include "session.h"

static void print_model(const kt_model_info *m)
{
    char a[FORMAT_SIZE], b[FORMAT_SIZE], c[FORMAT_SIZE], d[FORMAT_SIZE];
    out_print("architecture:  %s\n", m->architecture);
    out_print("layers:        %d (%d dense)\n", m->num_hidden_layers, m->num_dense_layers);
    out_print("hidden size:   %d, %d attention heads\n", m->hidden_size, m->num_attention_heads);
    if (m->n_routed_experts)
        out_print("experts:       %d routed, %d for each token, %d shared\n", m->n_routed_experts,
                  m->num_experts_per_tok, m->n_shared_experts);
    out_print("vocabulary:    %d\n", m->vocab_size);
    out_print("context:       %d tokens\n", m->max_position_embeddings);
    out_print("parameters:    %s (%s), %s (%s) active for a token\n",
              format_grouped(a, m->num_parameters), format_count(b, m->num_parameters),
              format_grouped(c, m->num_active_parameters),
              format_count(d, m->num_active_parameters));
    out_print("size:          %s", format_bytes(a, m->num_bytes));
    if (m->num_skipped_bytes)
        out_print(", and %s that are not used (multi-token prediction)",
                  format_bytes(a, m->num_skipped_bytes));
    out_print("\n");
}

enum { USED_AS_SCALES = 2 }; /* kt_tensor_info.used */

typedef struct dtype_sum {
    uint64_t tensors, parameters, bytes;
} dtype_sum;

static uint64_t num_elements(const kt_tensor_info *t)
{
    uint64_t n = 1;
    for (int32_t i = 0; i < t->ndim; i++)
        n *= (uint64_t)t->shape[i];
    return n;
}

static void print_sum(const char *name, const dtype_sum *sum)
{
    char a[FORMAT_SIZE], b[FORMAT_SIZE];
    if (sum->tensors)
        out_print("%-8s %9llu %20s %12s\n", name, (unsigned long long)sum->tensors,
                  format_grouped(a, sum->parameters), format_bytes(b, sum->bytes));
}

static void print_dtypes(const kt_model *model)
{
    dtype_sum sums[KT_DTYPE_UNKNOWN + 1] = {{0}}, scales = {0};
    for (size_t i = 0; i < kt_model_num_tensors(model); i++) {
        kt_tensor_info t = {.size = sizeof t};
        if (kt_model_get_tensor(model, i, &t) != KT_OK || !t.used)
            continue;
        dtype_sum *sum = t.used == USED_AS_SCALES ? &scales : &sums[t.dtype & 0xff];
        sum->tensors++;
        sum->parameters += t.used == USED_AS_SCALES ? 0 : num_elements(&t);
        sum->bytes += t.num_bytes;
    }
    out_print("\n%-8s %9s %20s %12s\n", "dtype", "tensors", "parameters", "size");
    for (int i = 0; i <= KT_DTYPE_UNKNOWN; i++)
        print_sum(kt_dtype_name((kt_dtype)i), &sums[i]);
    print_sum("scales", &scales);
}

static void print_tensors(const kt_model *model)
{
    out_print("\n");
    for (size_t i = 0; i < kt_model_num_tensors(model); i++) {
        kt_tensor_info t = {.size = sizeof t};
        if (kt_model_get_tensor(model, i, &t) != KT_OK)
            continue;
        const char *slash = strrchr(t.file, '/');
        out_print("%s %s [", t.name, kt_dtype_name(t.dtype));
        for (int32_t d = 0; d < t.ndim; d++)
            out_print("%s%lld", d ? ", " : "", (long long)t.shape[d]);
        out_print("] %s%s\n", slash ? slash + 1 : t.file, t.used ? "" : " (not used)");
    }
}

int info_command(int argc, char **argv)
{
    bool tensors = false;
    const arg_option options[] = {{.name = "--tensors", .flag = &tensors}, {0}};
    arguments args;
    int rc = arguments_parse(&args, "info", argc, argv, options);
    if (rc != APP_OK)
        return rc;
    config cfg;
    session s = {0};
    kt_model_info info = {.size = sizeof info};
    rc = config_load(&cfg, args.path, args.overrides, args.num_overrides);
    if (rc == APP_OK)
        rc = session_open(&s, &cfg);
    if (rc == APP_OK)
        rc = session_load_model(&s);
    if (rc == APP_OK && kt_model_get_info(s.model, &info) != KT_OK)
        rc = app_fail("%s", kt_last_error(s.ctx));
    if (rc == APP_OK) {
        print_model(&info);
        print_dtypes(s.model);
        if (tensors)
            print_tensors(s.model);
    }
    session_close(&s);
    config_free(&cfg);
    return rc;
}
