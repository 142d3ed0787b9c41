/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/cpu.h"

#include <math.h>
#include <string.h>

struct cross_entropy {
    const struct kt_row_kernels *row;
    int64_t vocab;
    float *logits;
    int64_t ld;
    const int32_t *targets;
    const float *dlogprobs;
    float *logprobs;
};

static void ignore_token(const struct cross_entropy *c, int64_t t, float *logits)
{
    c->logprobs[t] = 0;
    if (c->dlogprobs)
        memset(logits, 0, (size_t)c->vocab * sizeof *logits);
}

/* d logprob / d logits = one-hot(target) - softmax(logits) */
static void token_loss(const struct cross_entropy *c, int64_t t, float *logits)
{
    float block[1024];
    float max = c->row->max(c->vocab, logits), target = logits[c->targets[t]], sum = 0;
    if (c->dlogprobs) {
        sum = c->row->exp_sum(c->vocab, 1.0f, max, logits, logits);
        c->row->scale_add(c->vocab, -c->dlogprobs[t] / sum, logits, false, logits);
        logits[c->targets[t]] += c->dlogprobs[t];
    } else {
        for (int64_t i = 0; i < c->vocab; i += 1024)
            sum += c->row->exp_sum(c->vocab - i < 1024 ? c->vocab - i : 1024, 1.0f, max, logits + i,
                                   block);
    }
    c->logprobs[t] = target - max - logf(sum);
}

static void tokens_loss(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct cross_entropy *c = arg;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *logits = c->logits + t * c->ld;
        if (c->targets[t] < 0)
            ignore_token(c, t, logits);
        else
            token_loss(c, t, logits);
    }
}

void kt_cpu_cross_entropy(struct kt_device *dev, const void *args, void *scratch)
{
    const struct kt_cross_entropy_args *a = args;
    struct cross_entropy c = {.row = &kt_cpu(dev)->kernels.row,
                              .vocab = a->vocab,
                              .logits = a->logits.data,
                              .ld = a->logits.ld,
                              .targets = a->targets,
                              .dlogprobs = a->dlogprobs,
                              .logprobs = a->logprobs};
    (void)scratch;
    kt_parallel_for(kt_cpu(dev)->pool, a->tokens, 1, tokens_loss, &c);
}
