/* SPDX-License-Identifier: Apache-2.0 */
/* The expert backends: reference against its formula and central differences in double, the others
 * against reference. */
#include "backends/amx/experts.h"
#include "backends/experts_cpu/experts.h"
#include "expert_call.h"
#include "weights.h"
#include "main.h"

enum { EXPERTS = 5, HIDDEN = 6, INTER = 7, TOKENS = 9, TOPK = 2, RANK = 3 };

struct layer_case {
    double *w[3][EXPERTS], *a[3][EXPERTS], *b[3][EXPERTS];
    double *x, *weights, *dy, *masks; /* masks [3][TOKENS][max(HIDDEN, INTER)] */
    const int32_t *ids;
    int32_t hidden, inter, tokens, topk, rank;
};

static int32_t out_of(const struct layer_case *c, int which)
{
    return which == KT_EXPERT_DOWN ? c->hidden : c->inter;
}

static int32_t in_of(const struct layer_case *c, int which)
{
    return which == KT_EXPERT_DOWN ? c->inter : c->hidden;
}

static void apply(const struct layer_case *c, int which, int32_t e, int64_t t, const double *in,
                  double *out)
{
    int32_t rows = out_of(c, which), cols = in_of(c, which);
    const double *mask = c->masks + (which * c->tokens + t) * 16;
    for (int32_t r = 0; r < rows; r++) {
        out[r] = 0;
        for (int32_t i = 0; i < cols; i++)
            out[r] += c->w[which][e][r * cols + i] * in[i];
        for (int32_t q = 0; q < c->rank; q++)
            for (int32_t i = 0; i < cols; i++)
                out[r] += 1.5 * c->b[which][e][r * c->rank + q] * c->a[which][e][q * cols + i] *
                          mask[i] * in[i];
    }
}

static double experts_loss(void *arg)
{
    const struct layer_case *c = arg;
    double loss = 0, gate[16], up[16], out[16];
    for (int64_t t = 0; t < c->tokens; t++)
        for (int32_t j = 0; j < c->topk; j++) {
            int32_t e = c->ids[t * c->topk + j];
            apply(c, KT_EXPERT_GATE, e, t, c->x + t * c->hidden, gate);
            apply(c, KT_EXPERT_UP, e, t, c->x + t * c->hidden, up);
            for (int32_t i = 0; i < c->inter; i++)
                gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
            apply(c, KT_EXPERT_DOWN, e, t, gate, out);
            for (int32_t i = 0; i < c->hidden; i++)
                loss += c->weights[t * c->topk + j] * out[i] * c->dy[t * c->hidden + i];
        }
    return loss;
}

static const struct {
    const char *name;
    uint32_t isa_mask;
} backends[] = {
    {"reference", 0},
    {"cpu", KT_ISA_AVX2},
    {"cpu", KT_ISA_AVX512},
    {"cpu", KT_ISA_AVX512_BF16},
    {"cpu", 0},
    {"amx-emulated", KT_ISA_AVX512_BF16},
    {"amx-emulated", 0},
    {"amx-int8-emulated", KT_ISA_AVX512_BF16},
    {"amx-int8-emulated", 0},
};

enum { BACKENDS = sizeof backends / sizeof *backends };

START_TEST(backend_and_its_gradients)
{
    static const int32_t ids[TOKENS * TOPK] = {0, 1, 1, 3, 3, 0, 0, 3, 1,
                                               1, 3, 1, 0, 3, 1, 0, 3, 0};
    float dropout = _i % 2 ? 0.3f : 0.0f;
    kt_context *ctx = test_context(2, backends[_i / 2].isa_mask);
    struct kt_weight weights[3][EXPERTS];
    struct kt_lora_pair lora[3][EXPERTS];
    struct layer_case c = {
        .ids = ids, .hidden = HIDDEN, .inter = INTER, .tokens = TOKENS, .topk = TOPK, .rank = RANK};
    struct kt_expert_layer layer = {
        .num_experts = EXPERTS, .hidden_size = HIDDEN, .intermediate_size = INTER};
    float ones[16], *masks = malloc(3 * TOKENS * 16 * sizeof *masks);
    for (int i = 0; i < 16; i++)
        ones[i] = 1;
    for (int which = 0; which < 3; which++) {
        int32_t rows = out_of(&c, which), cols = in_of(&c, which);
        layer.weights[which] = weights[which];
        layer.lora[which] = lora[which];
        for (int64_t t = 0; t < TOKENS; t++)
            kt_dropout_row(dropout, (uint64_t)which + 40, t, 0, 16, ones, 0,
                           masks + (which * TOKENS + t) * 16);
        for (int e = 0; e < EXPERTS; e++) {
            uint64_t seed = (uint64_t)(100 * which + 10 * e);
            float *w = test_random(seed, rows * cols), *a = test_random(seed + 1, RANK * cols);
            float *b = test_random(seed + 2, rows * RANK);
            weights[which][e] =
                (struct kt_weight){.data = w, .dtype = KT_DTYPE_F32, .rows = rows, .cols = cols};
            lora[which][e] = (struct kt_lora_pair){RANK,
                                                   1.5f,
                                                   dropout,
                                                   (uint64_t)which + 40,
                                                   a,
                                                   b,
                                                   calloc(RANK * cols, 4),
                                                   calloc(rows * RANK, 4),
                                                   NULL};
            c.w[which][e] = test_widen(rows * cols, w);
            c.a[which][e] = test_widen(RANK * cols, a);
            c.b[which][e] = test_widen(rows * RANK, b);
        }
    }
    float *x = test_random(1, TOKENS * HIDDEN), *tw = test_random(2, TOKENS * TOPK);
    float *dy = test_random(3, TOKENS * HIDDEN), *y = calloc(TOKENS * HIDDEN, 4);
    float *dx = calloc(TOKENS * HIDDEN, 4), dtw[TOKENS * TOPK];
    c.x = test_widen(TOKENS * HIDDEN, x);
    c.weights = test_widen(TOKENS * TOPK, tw);
    c.dy = test_widen(TOKENS * HIDDEN, dy);
    c.masks = test_widen(3 * TOKENS * 16, masks);
    struct kt_routing routing = test_route(TOKENS, TOPK, EXPERTS, ids, tw);
    struct kt_expert_call call = {.layer = &layer,
                                  .routing = &routing,
                                  .compute = KT_COMPUTE_F32,
                                  .training = true,
                                  .x = kt_view_f32(x, HIDDEN)};
    struct kt_experts *experts = test_open(ctx, backends[_i / 2].name, &call);
    test_forward(experts, call, y);
    double loss = 0, want[64];
    for (int i = 0; i < TOKENS * HIDDEN; i++)
        loss += (double)y[i] * dy[i];
    ck_assert_double_lt(fabs(loss / experts_loss(&c) - 1), 1e-5);
    test_backward(experts, call, dy, dx, dtw);
    test_differentiate(experts_loss, &c, TOKENS * HIDDEN, c.x, want);
    ck_assert_double_lt(test_error(TOKENS * HIDDEN, dx, want), 1e-5);
    test_differentiate(experts_loss, &c, TOKENS * TOPK, c.weights, want);
    ck_assert_double_lt(test_error(TOKENS * TOPK, dtw, want), 1e-5);
    for (int which = 0; which < 3; which++) {
        int32_t rows = out_of(&c, which), cols = in_of(&c, which);
        for (int e = 0; e < EXPERTS; e++) {
            struct kt_lora_pair *l = &lora[which][e];
            test_differentiate(experts_loss, &c, RANK * cols, c.a[which][e], want);
            ck_assert_double_lt(test_error(RANK * cols, l->da, want), 1e-5);
            test_differentiate(experts_loss, &c, rows * RANK, c.b[which][e], want);
            ck_assert_double_lt(test_error(rows * RANK, l->db, want), 1e-5);
        }
    }
    for (int i = 0; i < 3 * EXPERTS; i++) {
        int which = i / EXPERTS, e = i % EXPERTS;
        struct kt_lora_pair *l = &lora[which][e];
        free((void *)weights[which][e].data), free((void *)l->a), free((void *)l->b);
        free(l->da), free(l->db), free(c.w[which][e]), free(c.a[which][e]), free(c.b[which][e]);
    }
    free(x), free(tw), free(dy), free(y), free(dx), free(masks);
    free(c.x), free(c.weights), free(c.dy), free(c.masks);
    test_unroute(&routing);
    kt_experts_close(experts);
    ck_assert_uint_eq(kt_context_memory_used(ctx), 0);
    kt_context_free(ctx);
}
END_TEST

/* -- larger layers against reference ----------------------------------------------------------- */

struct shape {
    int32_t experts, hidden, inter, tokens, topk, rank;
    int lora; /* bits of linears that have it, on every expert but the first */
    float dropout;
    kt_dtype dtype;
    int32_t spread; /* experts in use */
};

static const struct shape shapes[] = {
    {4, 64, 32, 1, 2, 0, 0, 0, KT_DTYPE_BF16, 4},
    {7, 72, 130, 33, 3, 5, 7, 0, KT_DTYPE_F32, 7},
    {3, 131, 45, 300, 2, 8, 3, 0.25f, KT_DTYPE_BF16, 2},
    {2, 256, 160, 290, 1, 4, 4, 0.25f, KT_DTYPE_F16, 1},
    {16, 100, 257, 40, 4, 0, 0, 0, KT_DTYPE_F16, 16},
    {5, 200, 77, 15, 2, 3, 7, 0, KT_DTYPE_F8_E4M3, 5},
    {4, 130, 290, 16, 3, 0, 0, 0, KT_DTYPE_F8_E4M3, 3},
    {2, 70, 161, 31, 1, 2, 4, 0.25f, KT_DTYPE_I8, 1},
    {5, 150, 130, 33, 2, 0, 0, 0, KT_DTYPE_I8, 3},
    {6, 66, 150, 33, 2, 4, 7, 0, KT_DTYPE_I4, 4},
    {3, 160, 96, 17, 2, 0, 0, 0, KT_DTYPE_Q8_0, 3},
    {3, 96, 224, 1, 2, 2, 3, 0, KT_DTYPE_Q4_0, 3},
    {2, 256, 512, 40, 1, 3, 7, 0, KT_DTYPE_Q4_K, 2},
    {2, 512, 256, 300, 1, 0, 0, 0, KT_DTYPE_Q6_K, 2},
    /* Experts of a few rows more than a chunk. */
    {2, 96, 80, 260, 1, 3, 7, 0.25f, KT_DTYPE_BF16, 2},
    {2, 128, 160, 260, 1, 0, 0, 0, KT_DTYPE_F8_E4M3, 2},
    {2, 128, 160, 258, 1, 0, 0, 0, KT_DTYPE_I4, 2},
    /* Few rows of many experts: tasks are as wide as there are threads for. */
    {12, 600, 530, 20, 3, 4, 7, 0.25f, KT_DTYPE_BF16, 12},
    {12, 530, 600, 20, 3, 0, 0, 0, KT_DTYPE_F8_E4M3, 12},
};

enum { SHAPES = sizeof shapes / sizeof *shapes, MAX_EXPERTS = 16 };

/* Most of a small call's time would go into random weights, so those of the last shape are kept. */
static const struct test_weight (*weights_of(const struct shape *s))[MAX_EXPERTS]
{
    static struct test_weight made[KT_EXPERT_LINEARS][MAX_EXPERTS];
    static struct shape made_for;
    if (memcmp(&made_for, s, sizeof *s) == 0)
        return made;
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        int64_t rows = which == KT_EXPERT_DOWN ? s->hidden : s->inter;
        int64_t cols = which == KT_EXPERT_DOWN ? s->inter : s->hidden;
        for (int e = 0; e < made_for.experts; e++)
            test_weight_free(&made[which][e]);
        for (int e = 0; e < s->experts; e++)
            made[which][e] = test_weight(s->dtype, (uint64_t)(50 + which * 16 + e), rows, cols);
    }
    made_for = *s;
    return made;
}

struct outcome {
    int64_t ny, nw, nl;
    float *y, *dx, *dtw, *lora;
};

struct setting {
    const char *name;
    uint32_t isa_mask;
    int32_t threads, nodes;
    kt_compute compute;
    uint64_t chunk_bytes; /* of a chunk or group; 0 = the backend's choice, 1 = the fewest rows */
    bool keeps;           /* gate and up products of forward */
    bool conversation;    /* nothing is trained */
    enum cut cut;
};

static void set_chunk_bytes(struct kt_experts *experts, uint64_t bytes)
{
    if (bytes && strcmp(experts->ops->name, "cpu") == 0)
        ((struct kt_experts_cpu *)experts)->chunk_bytes = bytes;
    if (bytes && strncmp(experts->ops->name, "amx", 3) == 0)
        ((struct kt_amx_experts *)experts)->group_bytes = bytes;
}

static struct outcome run_backend(const struct setting *with, const struct shape *s)
{
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = with->threads;
    options.isa_mask = with->isa_mask;
    kt_context *ctx = machine_context(&options, with->nodes);
    int64_t low = (int64_t)s->rank * (s->hidden + s->inter);
    struct outcome o = {.ny = (int64_t)s->tokens * s->hidden,
                        .nw = (int64_t)s->tokens * s->topk,
                        .nl = 3 * s->experts * low};
    float *x = test_random(1, o.ny), *dy = test_random(2, o.ny), *tw = test_random(3, o.nw);
    float *ab = test_random(5, o.nl);
    o.y = test_random(6, o.ny), o.dx = test_random(7, o.ny), o.dtw = test_random(8, o.nw);
    o.lora = test_random(9, o.nl);
    int32_t *ids = malloc((size_t)o.nw * sizeof *ids);
    for (int64_t i = 0; i < o.nw; i++)
        ids[i] = (int32_t)(i * 7 / 3 % s->spread);
    const struct test_weight(*made)[MAX_EXPERTS] = weights_of(s);
    struct kt_weight w[3][MAX_EXPERTS];
    struct kt_lora_pair lora[3][MAX_EXPERTS];
    struct kt_expert_layer layer = {
        .num_experts = s->experts, .hidden_size = s->hidden, .intermediate_size = s->inter};
    for (int which = 0; which < 3; which++) {
        layer.weights[which] = w[which];
        layer.lora[which] = s->lora >> which & 1 ? lora[which] : NULL;
        for (int e = 0; e < s->experts; e++) {
            int64_t lat = (which * s->experts + e) * low;
            int64_t cols = which == KT_EXPERT_DOWN ? s->inter : s->hidden;
            w[which][e] = made[which][e].w;
            lora[which][e] = (struct kt_lora_pair){s->rank,
                                                   0.5f,
                                                   s->dropout,
                                                   (uint64_t)(which * 100 + e),
                                                   e ? ab + lat : NULL,
                                                   ab + lat + s->rank * cols,
                                                   o.lora + lat,
                                                   o.lora + lat + s->rank * cols,
                                                   NULL};
        }
    }
    struct kt_routing routing = test_route(s->tokens, s->topk, s->experts, ids, tw);
    struct kt_expert_call call = {.layer = &layer,
                                  .routing = &routing,
                                  .compute = with->compute,
                                  .training = !with->conversation,
                                  .x = kt_view_f32(x, s->hidden)};
    if (with->keeps)
        call.kept = malloc((size_t)(o.nw * 2 * s->inter) * sizeof(float));
    struct kt_experts *experts = test_open(ctx, with->name, &call);
    set_chunk_bytes(experts, with->chunk_bytes);
    test_run_parts(experts, call, with->cut, dy, o.y, o.dx, o.dtw);
    test_unroute(&routing);
    free(x), free(dy), free(tw), free(ab), free(ids), free(call.kept);
    kt_experts_close(experts);
    ck_assert_uint_eq(kt_context_memory_peak(ctx), 0);
    kt_context_free(ctx);
    return o;
}

static struct setting setting(int backend, kt_compute compute)
{
    return (struct setting){.name = backends[backend].name,
                            .isa_mask = backends[backend].isa_mask,
                            .threads = 2,
                            .nodes = 1,
                            .compute = compute};
}

/* Else "cpu" does it, which has its own turn. */
static bool does_itself(int backend, const struct shape *s, int compute)
{
    return strncmp(backends[backend].name, "amx", 3) != 0 ||
           (compute == KT_COMPUTE_BF16 && !s->lora && s->dtype != KT_DTYPE_F32 &&
            s->dtype != KT_DTYPE_F16);
}

static void free_outcome(struct outcome *o)
{
    free(o->y), free(o->dx), free(o->dtw), free(o->lora);
}

static void check_close(int64_t n, const float *got, const float *want, double tolerance)
{
    double *wide = test_widen(n, want);
    ck_assert_double_lt(test_error(n, got, wide), tolerance);
    free(wide);
}

/* amx-int8 rounds activations to 1/254 of the largest where it multiplies in INT8. */
static double bf16_tolerance(const char *name, const struct shape *s)
{
    return strncmp(name, "amx-int8", 8) == 0 && s->dtype == KT_DTYPE_I8 && !s->lora ? 2e-2 : 5e-3;
}

/* Under AddressSanitizer a shape goes to every second backend, two shapes later to the others. */
static bool has_turn(int backend, int shape)
{
    return !SANITIZED || backend == 0 || (backend + shape / 2) % 2 == 0;
}

START_TEST(backends_agree_with_reference)
{
    const struct shape *s = &shapes[_i];
    struct setting reference = {.name = "reference", .threads = 2, .nodes = 1};
    struct outcome want = run_backend(&reference, s);
    for (int i = 2; i < 2 * BACKENDS; i++) {
        int backend = i / 2, compute = i % 2;
        struct setting with = setting(backend, (kt_compute)compute);
        if (!has_turn(backend, _i))
            continue;
        with.chunk_bytes = _i % 2;
        struct outcome got = run_backend(&with, s);
        double tolerance = compute ? bf16_tolerance(backends[backend].name, s) : 2e-6;
        check_close(want.ny, got.y, want.y, tolerance);
        check_close(want.ny, got.dx, want.dx, tolerance);
        check_close(want.nw, got.dtw, want.dtw, tolerance);
        check_close(want.nl, got.lora, want.lora, tolerance);
        free_outcome(&got);
    }
    free_outcome(&want);
}
END_TEST

static void check_same_bits(const struct outcome *a, const struct outcome *b)
{
    ck_assert(memcmp(a->y, b->y, (size_t)a->ny * 4) == 0);
    ck_assert(memcmp(a->dx, b->dx, (size_t)a->ny * 4) == 0);
    ck_assert(memcmp(a->dtw, b->dtw, (size_t)a->nw * 4) == 0);
    ck_assert(memcmp(a->lora, b->lora, (size_t)a->nl * 4) == 0);
}

static const struct {
    int32_t threads, nodes;
} pools[] = {{3, 1}, {5, 1}, {2, 2}, {5, 3}, {7, 7}};

START_TEST(bits_do_not_depend_on_threads_or_nodes)
{
    struct setting with = {"cpu", 0, 1, 1, KT_COMPUTE_BF16, 1, false, false, WHOLE};
    struct outcome one = run_backend(&with, &shapes[_i]);
    for (size_t pool = SANITIZED ? 3 : 0; pool < sizeof pools / sizeof *pools; pool++) {
        with.threads = pools[pool].threads;
        with.nodes = pools[pool].nodes;
        struct outcome many = run_backend(&with, &shapes[_i]);
        check_same_bits(&one, &many);
        free_outcome(&many);
    }
    free_outcome(&one);
}
END_TEST

START_TEST(kept_products_change_no_bit)
{
    for (int i = 0; i < 2 * BACKENDS; i++) {
        int backend = i / 2, compute = i % 2;
        struct setting with = setting(backend, (kt_compute)compute);
        if (!has_turn(backend, _i) || !does_itself(backend, &shapes[_i], compute))
            continue;
        with.chunk_bytes = 1;
        struct outcome again = run_backend(&with, &shapes[_i]);
        with.keeps = true;
        struct outcome kept = run_backend(&with, &shapes[_i]);
        check_same_bits(&again, &kept);
        free_outcome(&again);
        free_outcome(&kept);
    }
}
END_TEST

START_TEST(bits_do_not_depend_on_shares)
{
    for (int i = 0; i < 2 * BACKENDS; i++) {
        int backend = i / 2, compute = i % 2;
        struct setting with = setting(backend, (kt_compute)compute);
        if (!has_turn(backend, _i) || !does_itself(backend, &shapes[_i], compute))
            continue;
        with.keeps = _i % 2;
        struct outcome whole = run_backend(&with, &shapes[_i]);
        for (with.cut = _i % 4 ? SINGLE_EXPERTS : HALVES; with.cut <= SINGLE_EXPERTS; with.cut++) {
            struct outcome parts = run_backend(&with, &shapes[_i]);
            check_same_bits(&whole, &parts);
            free_outcome(&parts);
        }
        free_outcome(&whole);
    }
}
END_TEST

/* Of shapes with more rows than the smallest chunk has. */
START_TEST(bits_do_not_depend_on_chunks)
{
    static const uint64_t sizes[] = {1, 300000};
    for (int i = 2; i < 2 * BACKENDS; i++) {
        int backend = i / 2, compute = i % 2;
        struct setting with = setting(backend, (kt_compute)compute);
        if (!has_turn(backend, _i) || !does_itself(backend, &shapes[_i], compute) ||
            shapes[_i].tokens * shapes[_i].topk <= KT_EXPERT_PIECE_ROWS)
            continue;
        struct outcome one = run_backend(&with, &shapes[_i]);
        for (size_t size = 0; size < sizeof sizes / sizeof *sizes; size++) {
            with.chunk_bytes = sizes[size];
            struct outcome many = run_backend(&with, &shapes[_i]);
            check_same_bits(&one, &many);
            free_outcome(&many);
        }
        free_outcome(&one);
    }
}
END_TEST

/* A product of one row takes codes without their scales; that of two must not. */
START_TEST(a_token_may_choose_an_expert_twice)
{
    static const kt_dtype dtypes[] = {KT_DTYPE_BF16, KT_DTYPE_F8_E4M3, KT_DTYPE_I8, KT_DTYPE_I4};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        struct shape s = {2, 256, 384, 1, 2, 0, 0, 0, dtypes[i], 1};
        struct setting with = setting(_i, KT_COMPUTE_BF16);
        struct outcome want = run_backend(&with, &s);
        with.conversation = true;
        struct outcome got = run_backend(&with, &s);
        double tolerance = bf16_tolerance(backends[_i].name, &s);
        check_close(want.ny, got.y, want.y, tolerance);
        check_close(want.ny, got.dx, want.dx, tolerance);
        free_outcome(&want);
        free_outcome(&got);
    }
}
END_TEST

static struct kt_expert_layer layer_of(const struct kt_weight weights[3], int64_t hidden,
                                       int64_t inter)
{
    struct kt_expert_layer layer = {
        .num_experts = 1, .hidden_size = hidden, .intermediate_size = inter};
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        layer.weights[which] = &weights[which];
    return layer;
}

START_TEST(more_rows_take_more_seconds)
{
    enum { HIDDEN_SIZE = 2048, INTER_SIZE = 1408 };
    struct kt_weight bf16[3], f32[3];
    for (int which = 0; which < 3; which++) {
        int64_t rows = which == KT_EXPERT_DOWN ? HIDDEN_SIZE : INTER_SIZE;
        bf16[which] = (struct kt_weight){
            .dtype = KT_DTYPE_BF16, .rows = rows, .cols = HIDDEN_SIZE + INTER_SIZE - rows};
        f32[which] = bf16[which];
        f32[which].dtype = KT_DTYPE_F32;
    }
    struct kt_expert_layer layer = layer_of(bf16, HIDDEN_SIZE, INTER_SIZE);
    struct kt_expert_layer wide = layer_of(f32, HIDDEN_SIZE, INTER_SIZE);
    struct kt_experts *e;
    kt_context *ctx = test_context(2, backends[_i].isa_mask);
    ck_assert_int_eq(kt_experts_open(ctx, backends[_i].name, &e), KT_OK);
    for (int backward = 0; backward < 2; backward++) {
        double before = e->ops->seconds(e, &layer, 0, backward);
        ck_assert(before == 0);
        for (int64_t rows = 1; rows < 5000; rows = rows * 3 / 2 + 1) {
            double seconds = e->ops->seconds(e, &layer, rows, backward);
            ck_assert_double_gt(seconds, before);
            ck_assert_double_lt(seconds, 100);
            before = seconds;
        }
        ck_assert_double_gt(e->ops->seconds(e, &wide, 1, backward),
                            1.9 * e->ops->seconds(e, &layer, 1, backward));
    }
    kt_experts_close(e);
    kt_context_free(ctx);
}
END_TEST

/* Rows of forward fill a chunk differently from those of backward. */
START_TEST(scratch_is_bounded_whatever_fits_into_a_chunk)
{
    static const struct shape s = {2, 72, 130, 300, 2, 0, 0, 0, KT_DTYPE_BF16, 2};
    for (uint64_t bytes = 200000; bytes < 210000; bytes += 500) {
        struct setting with = {"cpu", 0, 1, 1, (kt_compute)_i, bytes, false, false, WHOLE};
        struct outcome o = run_backend(&with, &s);
        free_outcome(&o);
    }
}
END_TEST

START_TEST(unknown_backends_are_errors)
{
    kt_context *ctx = test_context(1, 0);
    struct kt_experts *experts;
    ck_assert_int_eq(kt_experts_open(ctx, "quantum", &experts), KT_ERROR_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "quantum"));
    ck_assert_int_eq(kt_experts_open(ctx, "auto", &experts), KT_OK);
    kt_experts_close(experts);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("experts", .timeout = 120),
        LOOP(backend_and_its_gradients, 2 * BACKENDS),
        LOOP(backends_agree_with_reference, SHAPES),
        LOOP(bits_do_not_depend_on_threads_or_nodes, SHAPES),
        LOOP(kept_products_change_no_bit, SHAPES),
        LOOP(bits_do_not_depend_on_shares, SHAPES),
        LOOP(bits_do_not_depend_on_chunks, SHAPES),
        LOOP_FROM(a_token_may_choose_an_expert_twice, 1, BACKENDS),
        LOOP(more_rows_take_more_seconds, BACKENDS),
        LOOP(scratch_is_bounded_whatever_fits_into_a_chunk, 2),
        TEST(unknown_backends_are_errors),
    };
    return RUN_TESTS("experts", tests);
}
