/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/sampling.h"

#include <math.h>
#include <stdlib.h>

/** Best first; the lower id of equals. */
static int by_score(const void *left, const void *right)
{
    const struct kt_candidate *a = left, *b = right;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static void score(const kt_generator_options *options, const float *logits, int32_t vocab,
                  const int32_t *context, size_t length, struct kt_candidate *c)
{
    float penalty = options->repetition_penalty;
    for (int32_t i = 0; i < vocab; i++)
        c[i] = (struct kt_candidate){logits[i], i};
    for (size_t t = 0; penalty != 1 && t < length; t++) {
        float logit = logits[context[t]];
        c[context[t]].score = logit < 0 ? logit * penalty : logit / penalty;
    }
    for (int32_t i = 0; options->temperature > 0 && i < vocab; i++)
        c[i].score /= options->temperature;
}

static int32_t best(const struct kt_candidate *c, int32_t count)
{
    int32_t at = 0;
    for (int32_t i = 1; i < count; i++)
        if (c[i].score > c[at].score)
            at = i;
    return c[at].id;
}

static void sift_down(float *heap, int32_t size, int32_t at)
{
    for (int32_t child; (child = 2 * at + 1) < size; at = child) {
        child += child + 1 < size && heap[child + 1] < heap[child];
        if (heap[at] <= heap[child])
            return;
        float swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
    }
}

/** The k-th best score, by a heap of the k best. */
static float kth_score(const struct kt_candidate *c, int32_t count, int32_t k, float *heap)
{
    for (int32_t i = 0; i < k; i++)
        heap[i] = c[i].score;
    for (int32_t i = k / 2; i-- > 0;)
        sift_down(heap, k, i);
    for (int32_t i = k; i < count; i++) {
        if (c[i].score > heap[0]) {
            heap[0] = c[i].score;
            sift_down(heap, k, 0);
        }
    }
    return heap[0];
}

/** Keeps the k best and whatever equals the last of them. */
static int32_t keep_top_k(struct kt_candidate *c, int32_t count, int32_t k, float *heap)
{
    float least = kth_score(c, count, k, heap);
    int32_t kept = 0;
    for (int32_t i = 0; i < count; i++)
        if (c[i].score >= least)
            c[kept++] = c[i];
    return kept;
}

/** exp(score - best) summed; candidates sorted, best first. */
static double weight_sum(const struct kt_candidate *c, int32_t count)
{
    double sum = 0;
    for (int32_t i = 0; i < count; i++)
        sum += exp((double)c[i].score - (double)c[0].score);
    return sum;
}

/** Drops from the worst end what holds at most 1 - p of the probability; the best one stays. */
static int32_t keep_top_p(const struct kt_candidate *c, int32_t count, float p)
{
    double total = weight_sum(c, count), tail = 0;
    while (count > 1) {
        tail += exp((double)c[count - 1].score - (double)c[0].score);
        if (tail > (1 - (double)p) * total)
            break;
        count--;
    }
    return count;
}

static int32_t draw(const struct kt_candidate *c, int32_t count, double u)
{
    double left = u * weight_sum(c, count);
    for (int32_t i = 0; i < count; i++) {
        left -= exp((double)c[i].score - (double)c[0].score);
        if (left < 0)
            return c[i].id;
    }
    return c[count - 1].id;
}

int32_t kt_sample(const kt_generator_options *options, const float *logits, int32_t vocab,
                  const int32_t *context, size_t length, double u, float *heap,
                  struct kt_candidate *c)
{
    int32_t count = vocab;
    score(options, logits, vocab, context, length, c);
    if (options->temperature <= 0)
        return best(c, vocab);
    if (options->top_k > 0 && options->top_k < count)
        count = keep_top_k(c, count, options->top_k, heap);
    qsort(c, (size_t)count, sizeof *c, by_score);
    if (!isfinite(c[0].score)) /* a temperature so small that only the best is left */
        return c[0].id;
    if (options->top_p < 1)
        count = keep_top_p(c, count, options->top_p);
    return draw(c, count, u);
}
