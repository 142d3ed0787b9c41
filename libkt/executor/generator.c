/* SPDX-License-Identifier: Apache-2.0 */
#include <kt/generator.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/trace.h"
#include "core/context.h"
#include "core/memory.h"
#include "core/random.h"
#include "executor/kv_cache.h"
#include "executor/sampling.h"

enum { DEFAULT_PREFILL_CHUNK = 2048 };

struct kt_generator {
    KT_HANDLE;
    struct kt_executor *executor; /**< held */
    kt_generator_options options;
    int32_t *tokens; /**< the context; the cache holds its first cache.length */
    size_t length, capacity;
    struct kt_kv_cache cache;
    uint64_t adapter; /**< fingerprint of the adapter that made the rows of the cache */
    uint64_t version; /**< of the adapter then */
    bool has_logits;  /**< those of the latest position are in `logits` */
    int64_t plain;    /**< first rows of the cache, rotated as kt_rope_is_plain says */
    struct kt_workspace workspace;
    float *logits, *heap; /**< [vocab_size] */
    struct kt_candidate *candidates;
    uint64_t drawn; /**< tokens sampled so far: the counter of the random numbers */
};

void kt_generator_options_init(kt_generator_options *options, size_t size)
{
    const kt_generator_options defaults = {
        .temperature = 0.95f, .top_p = 0.7f, .top_k = 50, .repetition_penalty = 1, .seed = 42};
    kt_options_init(options, size, &defaults, sizeof defaults);
}

static kt_status check_options(kt_context *ctx, const kt_generator_options *o)
{
    const char *bad = !(o->temperature >= 0)             ? "temperature must be 0 or more"
                      : !(o->top_p > 0 && o->top_p <= 1) ? "top_p must be in (0, 1]"
                      : o->top_k < 0                     ? "top_k must be 0 or more"
                      : !(o->repetition_penalty > 0)     ? "repetition_penalty must be above 0"
                      : o->max_length < 0                ? "max_length must be 0 or more"
                      : o->prefill_chunk < 0             ? "prefill_chunk must be 0 or more"
                                                         : NULL;
    return bad ? kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "kt_generator_options: %s", bad) : KT_OK;
}

static void destroy(void *handle)
{
    struct kt_generator *g = handle;
    kt_kv_cache_free(g->executor, &g->cache);
    kt_workspace_free(&g->workspace, g->executor);
    free(g->tokens);
    free(g->logits);
    free(g->heap);
    free(g->candidates);
    kt_handle_drop(g->executor);
}

kt_status kt_generator_create(kt_executor *executor, const kt_generator_options *given,
                              kt_generator **out)
{
    KT_ENTER_OUT(executor, "executor", out);
    kt_context *ctx = executor->ctx;
    const struct kt_model_config *config = &executor->model->config;
    kt_generator_options options;
    kt_generator_options_init(&options, sizeof options);
    KT_TRY(kt_options_copy(ctx, &options, given, KT_SIZED(kt_generator_options)));
    KT_TRY(check_options(ctx, &options));
    if (options.max_length == 0)
        options.max_length = kt_config_context(config);
    if (options.prefill_chunk == 0)
        options.prefill_chunk = DEFAULT_PREFILL_CHUNK;
    struct kt_generator *g;
    size_t vocab = (size_t)config->vocab_size;
    KT_TRY(kt_handle_new(ctx, sizeof *g, destroy, "a generator", (void **)&g));
    g->executor = executor;
    kt_handle_hold(executor);
    g->options = options;
    kt_workspace_init(&g->workspace, "the activations of generation");
    g->logits = calloc(vocab, sizeof *g->logits);
    g->heap = calloc(vocab, sizeof *g->heap);
    g->candidates = calloc(vocab, sizeof *g->candidates);
    if (!g->logits || !g->heap || !g->candidates) {
        kt_generator_free(g);
        return kt_fail_memory(ctx, vocab * 16, "a generator");
    }
    *out = g;
    return KT_OK;
}

void kt_generator_free(kt_generator *g)
{
    kt_handle_free(g);
}

static kt_status reserve_tokens(struct kt_generator *g, size_t length)
{
    if (length <= g->capacity)
        return KT_OK;
    size_t capacity = length + length / 2 + 64;
    int32_t *tokens = realloc(g->tokens, capacity * sizeof *tokens);
    if (!tokens)
        return kt_fail_memory(g->executor->ctx, capacity * sizeof *tokens,
                              "the tokens of a generator");
    g->tokens = tokens;
    g->capacity = capacity;
    return KT_OK;
}

/** The table has a row for each token of the chunk. */
static kt_status fill_feed(struct kt_generator *g, struct kt_pass *pass)
{
    struct kt_executor *ex = g->executor;
    int64_t begin = g->cache.length, tokens = pass->tokens;
    struct kt_feed_sizes sizes = {.tokens = tokens,
                                  .sequences = 1,
                                  .table_rows = tokens,
                                  .table_cols = ex->model->config.rope.dim / 2};
    KT_TRY(kt_workspace_feed(&g->workspace, ex, &sizes));
    const struct kt_feed *feed = &g->workspace.feed;
    for (int64_t t = 0; t < tokens; t++)
        feed->rope_rows[t] = (int32_t)t;
    feed->queries[0] = feed->keys[0] = 0;
    feed->queries[1] = (int32_t)tokens;
    feed->keys[1] = (int32_t)(begin + tokens);
    pass->num_sequences = 1;
    pass->cu_seqlens = feed->queries;
    pass->cu_keys = feed->keys;
    return kt_rotary_rows(&ex->rotary, ex->model, (int64_t)g->length, begin, tokens, feed->cos,
                          feed->sin);
}

/** The pass's tokens follow what is in the cache; logits of the last one unless NULL. */
static kt_status walk(struct kt_pass *pass, const struct kt_kv_cache *cache, const int32_t *ids,
                      float *logits)
{
    const struct kt_model *model = pass->model;
    int32_t layers = model->config.num_hidden_layers;
    kt_pass_begin(pass, layers, 1);
    KT_TRY(kt_pass_embed(pass, ids, pass->tokens, pass->stage->x));
    for (int32_t l = 0; l < layers; l++) {
        struct kt_cache_slice slice = kt_kv_cache_layer(pass->executor, cache, l);
        KT_TRY(kt_pass_tick(pass, "generate", l));
        KT_TRY(kt_pass_enter(pass, l, l + 1, KT_STREAM_X));
        KT_TRY(kt_layer_forward(pass, &model->layers[l], &slice, pass->stage->x));
    }
    KT_TRY(kt_pass_enter(pass, layers, 0, KT_STREAM_X));
    if (logits)
        kt_head_logits(pass, 1, 1, kt_view_at(pass->stage->x, pass->tokens - 1, 0), logits);
    return kt_pass_finish(pass);
}

/** Everything that a chunk needs, before anything is computed. */
static kt_status prepare(struct kt_generator *g, struct kt_pass *pass, int64_t tokens,
                         float *logits)
{
    struct kt_executor *ex = g->executor;
    KT_TRACE_HOST(ex->ctx, "plan");
    KT_TRY(kt_kv_cache_reserve(ex, &g->cache, g->cache.length + tokens));
    kt_pass_init(pass, ex, KT_PASS_MEASURE);
    pass->tokens = tokens;
    KT_TRY(fill_feed(g, pass));
    KT_TRY(walk(pass, &g->cache, g->tokens + g->cache.length, logits));
    kt_status status = kt_workspace_reserve(&g->workspace, pass);
    if (status == KT_OK)
        kt_workspace_enter(&g->workspace, ex, pass, KT_PASS_QUIET, g->adapter);
    else
        kt_workspace_free(&g->workspace, ex); /* so that a smaller chunk may find room */
    return status;
}

static kt_status run_chunk(struct kt_generator *g, int64_t tokens)
{
    struct kt_executor *ex = g->executor;
    int64_t begin = g->cache.length, end = begin + tokens;
    float *logits = end == (int64_t)g->length ? g->logits : NULL;
    struct kt_pass pass;
    g->has_logits = false;
    KT_TRY(prepare(g, &pass, tokens, logits));
    kt_status status = walk(&pass, &g->cache, g->tokens + begin, logits);
    if (status != KT_OK) {
        (void)kt_pass_finish(&pass);
        return status;
    }
    if (g->plain == begin && kt_rope_is_plain(&ex->model->config.rope, (int64_t)g->length))
        g->plain = end;
    g->cache.length = end;
    g->has_logits = logits;
    return KT_OK;
}

/** Runs the tokens of the context that are not in the cache yet. */
static kt_status advance(struct kt_generator *g)
{
    int64_t left;
    while ((left = (int64_t)g->length - g->cache.length) > 0)
        KT_TRY(run_chunk(g, kt_min_i64(left, g->options.prefill_chunk)));
    return KT_OK;
}

/** Rows of the cache that a prompt of so many tokens can begin with: those whose keys it would
 * rotate by the same frequencies. */
static int64_t reusable(const struct kt_generator *g, size_t length)
{
    const struct kt_rope_config *rope = &g->executor->model->config.rope;
    return kt_rope_is_plain(rope, (int64_t)length) ? g->plain : 0;
}

static void forget(struct kt_generator *g)
{
    g->length = 0;
    g->has_logits = false;
    g->cache.length = g->plain = 0;
}

kt_status kt_generator_reset(kt_generator *g)
{
    KT_ENTER(g, "generator");
    forget(g);
    return KT_OK;
}

/** Rows that another adapter made are of no use. The host may have written its values without a
 * word, so all are looked at. */
static void follow_adapter(struct kt_generator *g)
{
    const kt_lora *lora = g->executor->lora;
    uint64_t adapter = kt_adapter_fingerprint(lora);
    if (adapter != g->adapter)
        forget(g);
    g->adapter = adapter;
    g->version = lora ? lora->version : 0;
}

kt_status kt_generator_prompt(kt_generator *g, const int32_t *input_ids, size_t length)
{
    KT_ENTER(g, "generator");
    KT_TRACE_PHASE(g->ctx, KT_PHASE_PROMPT);
    kt_context *ctx = g->ctx;
    int32_t vocab = g->executor->model->config.vocab_size;
    int64_t common = 0;
    KT_TRY(kt_check_given(ctx, input_ids, "input_ids"));
    if (length == 0 || length > (size_t)g->options.max_length)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "a prompt of %zu tokens does not fit; it may have 1 to %d (max_length)",
                       length, g->options.max_length);
    for (size_t t = 0; t < length; t++)
        if (input_ids[t] < 0 || input_ids[t] >= vocab)
            return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                           "token %zu of the prompt has id %d, but the model's vocabulary has %d "
                           "ids; check that tokenizer and model belong together",
                           t, input_ids[t], vocab);
    KT_TRY(reserve_tokens(g, length));
    follow_adapter(g);
    int64_t most = kt_min_i64(reusable(g, length), (int64_t)length - 1);
    while (common < most && g->tokens[common] == input_ids[common])
        common++;
    g->cache.length = common;
    g->plain = kt_min_i64(g->plain, common);
    memcpy(g->tokens + common, input_ids + common, (length - (size_t)common) * sizeof *input_ids);
    g->length = length;
    return advance(g);
}

static int all_finite(const float *x, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        if (!isfinite(x[i]))
            return 0;
    return 1;
}

kt_status kt_generator_next(kt_generator *g, int32_t *token)
{
    KT_ENTER(g, "generator");
    KT_TRACE_PHASE(g->ctx, KT_PHASE_DECODE);
    KT_TRY(kt_check_out(g->ctx, token, __func__));
    kt_context *ctx = g->ctx;
    int32_t vocab = g->executor->model->config.vocab_size;
    uint32_t words[4];
    if (g->length == 0)
        return kt_fail(ctx, KT_ERROR_STATE, "generation needs a prompt first");
    if (g->executor->lora && g->executor->lora->version != g->version)
        return kt_fail(ctx, KT_ERROR_STATE,
                       "the adapter has changed since the prompt; prompt the generator again");
    if (g->length >= (size_t)g->options.max_length)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "the context has reached %d tokens (max_length); shorten the history or "
                       "raise max_length",
                       g->options.max_length);
    KT_TRY(reserve_tokens(g, g->length + 1));
    KT_TRY(advance(g));
    KT_TRACE_HOST(ctx, "sample");
    if (!all_finite(g->logits, vocab))
        return kt_fail(ctx, KT_ERROR_NUMERIC,
                       "the logits after token %zu are not finite; check the weights for NaN",
                       g->length);
    kt_philox(g->options.seed, 0, g->drawn, words);
    double u = (double)words[0] * 0x1p-32;
    *token =
        kt_sample(&g->options, g->logits, vocab, g->tokens, g->length, u, g->heap, g->candidates);
    g->drawn++;
    g->tokens[g->length++] = *token;
    return KT_OK;
}

const float *kt_generator_logits(const kt_generator *g)
{
    return g && g->has_logits ? g->logits : NULL;
}

size_t kt_generator_length(const kt_generator *g)
{
    return g ? g->length : 0;
}
