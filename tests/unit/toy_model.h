/* SPDX-License-Identifier: Apache-2.0 */
/** \file toy_model.h
 * A model of names and shapes alone, for tests of what never reads a base weight. */
#ifndef TOY_MODEL_H
#define TOY_MODEL_H

#include <check.h>
#include <kt/kt.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "model/model.h"
#include "machine.h"

struct toy_linear {
    const char *name;
    enum kt_linear_role role;
    int64_t rows, cols;
};

static const struct toy_linear toy_linears[] = {
    {"model.layers.0.self_attn.q_a_proj", KT_ROLE_ATTENTION, 12, 16},
    {"model.layers.0.self_attn.o_proj", KT_ROLE_ATTENTION, 16, 20},
    {"model.layers.0.mlp.gate_proj", KT_ROLE_DENSE_MLP, 24, 16},
    {"model.layers.0.mlp.down_proj", KT_ROLE_DENSE_MLP, 16, 24},
    {"model.layers.1.self_attn.q_a_proj", KT_ROLE_ATTENTION, 12, 16},
    {"model.layers.1.self_attn.o_proj", KT_ROLE_ATTENTION, 16, 20},
    {"model.layers.1.mlp.shared_experts.down_proj", KT_ROLE_SHARED_EXPERT, 16, 8},
    {"model.layers.1.mlp.experts.0.down_proj", KT_ROLE_ROUTED_EXPERT, 16, 8},
    {"model.layers.1.mlp.experts.1.down_proj", KT_ROLE_ROUTED_EXPERT, 16, 8},
    {"lm_head", KT_ROLE_HEAD, 30, 16},
};

enum { TOY_LINEARS = sizeof toy_linears / sizeof toy_linears[0] };

static inline kt_model *toy_model_new(kt_context *ctx)
{
    kt_model *model = calloc(1, sizeof *model);
    model->ctx = ctx;
    model->path = strdup("models/toy");
    model->num_linears = TOY_LINEARS;
    model->linears = calloc(TOY_LINEARS, sizeof *model->linears);
    for (int32_t i = 0; i < TOY_LINEARS; i++) {
        model->linears[i].name = strdup(toy_linears[i].name);
        model->linears[i].role = toy_linears[i].role;
        model->linears[i].index = i;
        model->linears[i].weight.rows = toy_linears[i].rows;
        model->linears[i].weight.cols = toy_linears[i].cols;
    }
    return model;
}

static inline void toy_model_delete(kt_model *model)
{
    for (int32_t i = 0; i < model->num_linears; i++)
        free(model->linears[i].name);
    free(model->linears);
    free(model->path);
    free(model);
}

static inline kt_context *toy_context(int32_t threads)
{
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = threads;
    return machine_context(&options, 1);
}

#endif
