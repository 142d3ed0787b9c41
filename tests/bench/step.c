/* SPDX-License-Identifier: Apache-2.0 */
/* Speed of training steps and of generation on random tokens, without files or text:
 *
 *     bench_step MODEL ADAPTER [sequences=16] [length=192] [threads=0] [steps=3] [bf16=1] [new=0]
 *                [device=cpu] [experts=auto] [memory=GiB] [trace=FILE] [profile=0]
 *
 * Three quarters of each sequence are targets. new=N generates N tokens after a prompt of `length`
 * tokens instead. trace= writes what ran when, profile=1 prints how busy that kept each device, the
 * first step or the prompt among it. Prints seconds of forward, backward and optimizer, tokens/s and
 * peak memory, and what experts=auto has found out beside a device: steps from the eighth on are
 * shared as that says.
 */
#include <kt/kt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "profile.h"

struct settings {
    int sequences, length, threads, steps, bf16, new_tokens, profile;
    const char *device, *experts, *trace;
    double memory; /**< GiB of a device; 0 = what is free */
};

struct job {
    kt_context *ctx;
    kt_model *model;
    kt_lora *lora;
    kt_executor *executor;
    kt_optimizer *optimizer;
    kt_batch *batch;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void need(const struct job *job, kt_status status)
{
    if (status == KT_OK)
        return;
    fprintf(stderr, "bench_step: %s\n", kt_last_error(job->ctx));
    exit(1);
}

static void on_log(void *user, int32_t level, const char *message)
{
    (void)user;
    (void)level;
    printf("%s\n", message);
}

static struct settings parse(int argc, char **argv)
{
    struct settings s = {16, 192, 0, 3, 1, 0, 0, "cpu", NULL, NULL, 0};
    const char *names[] = {"sequences", "length", "threads", "steps", "bf16", "new", "profile"};
    int *values[] = {&s.sequences, &s.length,     &s.threads, &s.steps,
                     &s.bf16,      &s.new_tokens, &s.profile};
    for (int i = 3; i < argc; i++) {
        if (strncmp(argv[i], "device=", 7) == 0)
            s.device = argv[i] + 7;
        if (strncmp(argv[i], "experts=", 8) == 0)
            s.experts = argv[i] + 8;
        if (strncmp(argv[i], "trace=", 6) == 0)
            s.trace = argv[i] + 6;
        if (strncmp(argv[i], "memory=", 7) == 0)
            s.memory = atof(argv[i] + 7);
        for (size_t k = 0; k < sizeof names / sizeof *names; k++)
            if (strncmp(argv[i], names[k], strlen(names[k])) == 0 &&
                argv[i][strlen(names[k])] == '=')
                *values[k] = atoi(argv[i] + strlen(names[k]) + 1);
    }
    return s;
}

static void open_job(struct job *job, char **argv, const struct settings *s)
{
    kt_context_options context;
    kt_executor_options executor;
    kt_rule *rule;
    kt_context_options_init(&context, sizeof context);
    context.num_threads = s->threads;
    context.log = on_log;
    if (kt_context_create(&context, &job->ctx) != KT_OK)
        exit(1);
    need(job, kt_model_load(job->ctx, argv[1], NULL, &job->model));
    need(job, kt_lora_load(job->model, argv[2], &job->lora));
    kt_executor_options_init(&executor, sizeof executor);
    executor.compute = s->bf16 ? KT_COMPUTE_BF16 : KT_COMPUTE_F32;
    need(job, kt_rule_create(job->ctx, &rule));
    need(job, kt_rule_add(rule, ".", s->device, s->experts));
    executor.rule = rule;
    executor.device_memory = (uint64_t)(s->memory * (1 << 30));
    need(job, kt_executor_create(job->model, job->lora, &executor, &job->executor));
    kt_rule_free(rule);
    need(job, kt_optimizer_create(job->lora, NULL, &job->optimizer));
    need(job, kt_batch_create(job->ctx, &job->batch));
}

static void close_job(struct job *job)
{
    kt_batch_free(job->batch);
    kt_optimizer_free(job->optimizer);
    kt_executor_free(job->executor);
    kt_lora_free(job->lora);
    kt_model_free(job->model);
    kt_context_free(job->ctx);
}

static void fill(const struct job *job, const struct settings *s, unsigned seed)
{
    kt_model_info info = {.size = sizeof info};
    int32_t *ids = malloc((size_t)s->length * 2 * sizeof *ids), *labels = ids + s->length;
    need(job, kt_model_get_info(job->model, &info));
    srand(seed);
    kt_batch_clear(job->batch);
    for (int i = 0; i < s->sequences; i++) {
        for (int t = 0; t < s->length; t++) {
            ids[t] = rand() % info.vocab_size;
            labels[t] = t < s->length / 4 ? KT_IGNORE_LABEL : ids[t];
        }
        need(job, kt_batch_add(job->batch, ids, labels, (size_t)s->length));
    }
    free(ids);
}

static void train(const struct job *job, const struct settings *s)
{
    double tokens = (double)s->sequences * s->length;
    for (int step = 0; step < s->steps; step++) {
        kt_loss loss = {.size = sizeof loss};
        fill(job, s, (unsigned)step);
        double start = now();
        need(job, kt_executor_forward(job->executor, job->batch, KT_FORWARD_TRAIN, &loss));
        double forward = now();
        need(job, kt_executor_backward(job->executor, NULL));
        double backward = now();
        need(job, kt_optimizer_step(job->optimizer, 1e-4, NULL));
        double end = now();
        printf("step %d: loss %.4f, forward %.3f s, backward %.3f s, optimizer %.3f s, "
               "%.0f tokens/s\n",
               step, loss.loss, forward - start, backward - forward, end - backward,
               tokens / (end - start));
    }
    const char *sharing;
    need(job, kt_executor_get_sharing(job->executor, &sharing));
    printf("peak memory %.1f MB, sharing \"%s\"\n", (double)kt_context_memory_peak(job->ctx) / 1e6,
           sharing);
}

static void generate(const struct job *job, const struct settings *s)
{
    kt_generator_options options;
    kt_generator *generator;
    int32_t token;
    kt_generator_options_init(&options, sizeof options);
    need(job, kt_generator_create(job->executor, &options, &generator));
    double start = now();
    need(job, kt_generator_prompt(generator, kt_batch_input_ids(job->batch), (size_t)s->length));
    double prompted = now();
    for (int i = 0; i < s->new_tokens; i++)
        need(job, kt_generator_next(generator, &token));
    double end = now();
    printf("prompt %.0f tokens/s, %.1f tokens/s after it\n", s->length / (prompted - start),
           s->new_tokens / (end - prompted));
    kt_generator_free(generator);
}

static void print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
}

static void run(const struct job *job, const struct settings *s)
{
    kt_trace *trace = NULL;
    kt_trace_options options;
    kt_trace_options_init(&options, sizeof options);
    options.path = s->trace;
    if (s->trace || s->profile)
        need(job, kt_trace_create(job->ctx, &options, &trace));
    if (s->new_tokens)
        generate(job, s);
    else
        train(job, s);
    if (trace)
        need(job, kt_trace_finish(trace));
    if (s->profile)
        profile_print(trace, print);
    kt_trace_free(trace);
}

int main(int argc, char **argv)
{
    struct job job = {0};
    if (argc < 3) {
        fprintf(stderr, "bench_step MODEL ADAPTER [sequences=] [length=] [threads=] [steps=] "
                        "[bf16=] [new=] [device=] [experts=] [memory=] [trace=] [profile=]\n");
        return 2;
    }
    struct settings s = parse(argc, argv);
    open_job(&job, argv, &s);
    fill(&job, &s, 1);
    run(&job, &s);
    close_job(&job);
    return 0;
}
