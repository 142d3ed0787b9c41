/* SPDX-License-Identifier: Apache-2.0 */
/** \file unit/expert_call.h
 * Calls of experts backends as executors make them: with the routing's memory, and with scratch of
 * exactly the bytes that the backend asks for. */
#ifndef KT_TESTS_UNIT_EXPERT_CALL_H
#define KT_TESTS_UNIT_EXPERT_CALL_H

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "backends/registry.h"

enum { GUARD_BYTES = 256, GUARD = 0xa5 };

/** `bytes` bytes of `fill`, then guard bytes. */
static inline void *guarded_alloc(uint64_t bytes, int fill)
{
    char *memory = aligned_alloc(64, (bytes + GUARD_BYTES + 63) / 64 * 64);
    ck_assert_ptr_nonnull(memory);
    memset(memory, fill, bytes);
    memset(memory + bytes, GUARD, GUARD_BYTES);
    return memory;
}

static inline void guarded_free(void *memory, uint64_t bytes)
{
    const uint8_t *guard = (const uint8_t *)memory + bytes;
    for (int i = 0; i < GUARD_BYTES; i++)
        ck_assert_uint_eq(guard[i], GUARD);
    free(memory);
}

/** Sorted; freed with test_unroute. */
static inline struct kt_routing test_route(int64_t tokens, int32_t topk, int32_t num_experts,
                                           const int32_t *ids, const float *weights)
{
    struct kt_routing r = {
        .tokens = tokens, .topk = topk, .num_experts = num_experts, .ids = ids, .weights = weights};
    kt_routing_sort(&r, guarded_alloc(kt_routing_bytes(tokens, topk, num_experts), 0xff));
    return r;
}

static inline struct kt_routing test_share(const struct kt_routing *whole, const uint8_t *chosen)
{
    uint64_t bytes = kt_routing_bytes(whole->tokens, whole->topk, whole->num_experts);
    return kt_routing_share(whole, chosen, guarded_alloc(bytes, 0xff));
}

static inline void test_unroute(const struct kt_routing *r)
{
    guarded_free((void *)(uintptr_t)r->first, kt_routing_bytes(r->tokens, r->topk, r->num_experts));
}

static inline uint64_t test_scratch_bytes(const struct kt_experts *e,
                                          const struct kt_expert_call *call, bool backward)
{
    return e->ops->scratch_bytes(e, call->layer, call->compute, call->routing->tokens,
                                 call->routing->topk, backward);
}

/** y += */
static inline void test_forward(struct kt_experts *e, struct kt_expert_call call, float *y)
{
    uint64_t bytes = test_scratch_bytes(e, &call, false);
    call.scratch = guarded_alloc(bytes, 0xff);
    e->ops->forward(e, &call, kt_view_f32(y, call.layer->hidden_size));
    guarded_free(call.scratch, bytes);
}

/** dx += */
static inline void test_backward(struct kt_experts *e, struct kt_expert_call call, const float *dy,
                                 float *dx, float *dweights)
{
    int64_t hidden = call.layer->hidden_size;
    uint64_t bytes = test_scratch_bytes(e, &call, true);
    call.scratch = guarded_alloc(bytes, 0xff);
    e->ops->backward(e, &call, kt_view_f32(dy, hidden), kt_view_f32(dx, hidden), dweights);
    guarded_free(call.scratch, bytes);
}

/** The backend `name`, or "cpu" where it does not support such calls. */
static inline struct kt_experts *test_open(kt_context *ctx, const char *name,
                                           const struct kt_expert_call *call)
{
    struct kt_experts *e;
    ck_assert_int_eq(kt_experts_open(ctx, name, &e), KT_OK);
    if (e->ops->supports(e, call->layer, call->compute, call->routing->tokens, call->training))
        return e;
    kt_experts_close(e);
    ck_assert_int_eq(kt_experts_open(ctx, "cpu", &e), KT_OK);
    return e;
}

/** How a routing is cut: into the experts of each part, which are in ascending order. */
enum cut { WHOLE, HALVES, SINGLE_EXPERTS };

static inline int32_t test_parts(enum cut cut, int32_t num_experts)
{
    return cut == WHOLE ? 1 : cut == HALVES ? 2 : num_experts + 1; /* and one without any */
}

static inline struct kt_routing test_part(const struct kt_routing *whole, enum cut cut,
                                          int32_t part)
{
    uint8_t chosen[64] = {0};
    ck_assert_int_le(whole->num_experts, 64);
    for (int32_t e = 0; e < whole->num_experts; e++)
        chosen[e] = cut == WHOLE    ? 1
                    : cut == HALVES ? (e >= whole->num_experts / 2) == part
                                    : e == part;
    return test_share(whole, chosen);
}

/** Forward and backward of the parts of a routing, one after another. */
static inline void test_run_parts(struct kt_experts *e, struct kt_expert_call call, enum cut cut,
                                  const float *dy, float *y, float *dx, float *dweights)
{
    const struct kt_routing *whole = call.routing;
    for (int32_t i = 0; i < 2 * test_parts(cut, whole->num_experts); i++) {
        struct kt_routing part = test_part(whole, cut, i / 2);
        call.routing = &part;
        if (i % 2 == 0)
            test_forward(e, call, y);
        else
            test_backward(e, call, dy, dx, dweights);
        test_unroute(&part);
    }
}

#endif
