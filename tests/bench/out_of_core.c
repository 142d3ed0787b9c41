/* SPDX-License-Identifier: Apache-2.0 */
/* Training and generation with a checkpoint that is larger than memory:
 *
 *     bench_out_of_core FOLDER [limit=512] [layers=15] [hidden=1024] [experts=32] [steps=4]
 *                       [tokens=256] [new=16] [threads=0]
 *
 * Makes a model of random weights in FOLDER, which should be on a disk, and runs in a control group
 * that may use `limit` MiB (0 = in none); it has to be root for that. Before each step it measures
 * the disk: the model's shards read with O_DIRECT, 4 MiB at a time. Prints seconds, those of
 * processors, bytes that were read from the disk (/proc/self/io) as a multiple of the weights, and
 * major faults. */
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include <kt/kt.h>

#include "../unit/large_model.h"
#include "../unit/memory_group.h"

struct settings {
    int limit, layers, hidden, experts, steps, tokens, new_tokens, threads;
};

struct job {
    struct settings s;
    struct large_model shape;
    const char *folder;
    uint64_t bytes; /**< of the weights */
    kt_context *ctx;
    kt_model *model;
    kt_lora *lora;
    kt_executor *executor;
    kt_optimizer *optimizer;
    kt_batch *batch;
};

static void need(const struct job *job, kt_status status)
{
    if (status == KT_OK)
        return;
    fprintf(stderr, "bench_out_of_core: %s\n", kt_last_error(job->ctx));
    exit(1);
}

static void parse(int argc, char **argv, struct settings *s)
{
    const char *names[] = {"limit", "layers", "hidden", "experts",
                           "steps", "tokens", "new",    "threads"};
    int *values[] = {&s->limit, &s->layers, &s->hidden,     &s->experts,
                     &s->steps, &s->tokens, &s->new_tokens, &s->threads};
    for (int i = 2; i < argc; i++)
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            size_t length = strlen(names[k]);
            if (strncmp(argv[i], names[k], length) == 0 && argv[i][length] == '=')
                *values[k] = atoi(argv[i] + length + 1);
        }
}

/** What was used so far. */
struct usage {
    double seconds, cpu, system; /**< of processors, of which the system's */
    uint64_t read;
    long major;
};

static double seconds_of(struct timeval t)
{
    return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
}

static struct usage now(void)
{
    struct usage u = {0};
    struct timespec t;
    struct rusage r;
    char line[128];
    clock_gettime(CLOCK_MONOTONIC, &t);
    u.seconds = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    getrusage(RUSAGE_SELF, &r);
    u.major = r.ru_majflt;
    u.system = seconds_of(r.ru_stime);
    u.cpu = seconds_of(r.ru_utime) + u.system;
    FILE *f = fopen("/proc/self/io", "r");
    while (f && fgets(line, sizeof line, f))
        sscanf(line, "read_bytes: %" SCNu64, &u.read);
    if (f)
        fclose(f);
    return u;
}

/** Bytes a second. */
static double disk_rate(const struct job *job)
{
    enum { PIECE = 4 << 20 };
    char path[PATH_MAX];
    void *buffer;
    uint64_t bytes = 0;
    if (posix_memalign(&buffer, 4096, PIECE))
        exit(1);
    double begin = now().seconds;
    for (int shard = 0; shard <= job->shape.layers; shard++) {
        large_shard_path(job->folder, &job->shape, shard, path, sizeof path);
        int fd = open(path, O_RDONLY | O_DIRECT);
        ssize_t got;
        while (fd >= 0 && (got = read(fd, buffer, PIECE)) > 0)
            bytes += (uint64_t)got;
        if (fd >= 0)
            close(fd);
    }
    free(buffer);
    return (double)bytes / (now().seconds - begin);
}

static void report(const struct job *job, const char *what, const struct usage *begin)
{
    struct usage end = now();
    double seconds = end.seconds - begin->seconds, read = (double)(end.read - begin->read);
    printf("  %s %.2f s (processors %.2f, system %.2f), %.2f x the weights read, %.2f GB/s, "
           "%ld major faults",
           what, seconds, end.cpu - begin->cpu, end.system - begin->system,
           read / (double)job->bytes, read / seconds / 1e9, end.major - begin->major);
}

static void open_job(struct job *job)
{
    kt_context_options context;
    kt_lora_options lora;
    kt_context_options_init(&context, sizeof context);
    context.num_threads = job->s.threads;
    need(job, kt_context_create(&context, &job->ctx));
    need(job, kt_model_load(job->ctx, job->folder, NULL, &job->model));
    kt_lora_options_init(&lora, sizeof lora);
    lora.rank = 4;
    need(job, kt_lora_create(job->model, &lora, &job->lora));
    need(job, kt_executor_create(job->model, job->lora, NULL, &job->executor));
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

static void train(struct job *job)
{
    int32_t *ids = malloc((size_t)job->s.tokens * sizeof *ids);
    for (int step = 0; step < job->s.steps; step++) {
        kt_loss loss = {.size = sizeof loss};
        for (int t = 0; t < job->s.tokens; t++)
            ids[t] = rand() % job->shape.vocab;
        kt_batch_clear(job->batch);
        need(job, kt_batch_add(job->batch, ids, ids, (size_t)job->s.tokens));
        double rate = disk_rate(job);
        struct usage begin = now();
        need(job, kt_executor_forward(job->executor, job->batch, KT_FORWARD_TRAIN, &loss));
        printf("step %d: loss %.4f, disk %.2f GB/s\n", step, loss.loss, rate / 1e9);
        report(job, "forward ", &begin);
        struct usage middle = now();
        need(job, kt_executor_backward(job->executor, NULL));
        report(job, "\n  backward", &middle);
        need(job, kt_optimizer_step(job->optimizer, 1e-4, NULL));
        report(job, "\n  both    ", &begin);
        printf("\n");
    }
    free(ids);
}

static void generate(const struct job *job)
{
    int32_t prompt[] = {2, 3, 5, 7, 11}, token;
    kt_generator *generator;
    need(job, kt_generator_create(job->executor, NULL, &generator));
    struct usage begin = now();
    need(job, kt_generator_prompt(generator, prompt, 5));
    need(job, kt_generator_next(generator, &token));
    printf("generation:\n");
    report(job, "prompt", &begin);
    begin = now();
    for (int i = 0; i < job->s.new_tokens; i++)
        need(job, kt_generator_next(generator, &token));
    report(job, "\n  tokens", &begin);
    printf(", %.1f tokens/s\n", job->s.new_tokens / (now().seconds - begin.seconds));
    kt_generator_free(generator);
}

static void prepare(struct job *job)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/config.json", job->folder);
    if (access(path, R_OK) != 0) {
        kt_context *ctx;
        need(job, kt_context_create(NULL, &ctx));
        (void)large_model_write(ctx, job->folder, &job->shape);
        kt_context_free(ctx);
    }
    large_model_forget(job->folder, &job->shape);
    for (int shard = 0; shard <= job->shape.layers; shard++) {
        struct stat info;
        large_shard_path(job->folder, &job->shape, shard, path, sizeof path);
        job->bytes += stat(path, &info) == 0 ? (uint64_t)info.st_size : 0;
    }
    printf("%.2f GB of weights, a limit of %d MiB\n", (double)job->bytes / 1e9, job->s.limit);
    fflush(stdout);
}

/** In a child process, which may be in a group. */
static int run(struct job *job)
{
    open_job(job);
    train(job);
    if (job->s.new_tokens)
        generate(job);
    printf("peak memory of libkt %.1f MB\n", (double)kt_context_memory_peak(job->ctx) / 1e6);
    close_job(job);
    return 0;
}

int main(int argc, char **argv)
{
    struct job job = {.s = {512, 15, 1024, 32, 4, 256, 16, 0}};
    struct memory_group group;
    int status = 1;
    if (argc < 2) {
        fprintf(stderr, "bench_out_of_core FOLDER [limit=] [layers=] [hidden=] [experts=] "
                        "[steps=] [tokens=] [new=] [threads=]\n");
        return 2;
    }
    parse(argc, argv, &job.s);
    job.folder = argv[1];
    job.shape =
        (struct large_model){job.s.layers, job.s.hidden, job.s.experts, job.s.hidden / 2, 8192};
    prepare(&job);
    if (!job.s.limit)
        return run(&job);
    if (!memory_group_open(&group, (uint64_t)job.s.limit << 20)) {
        fprintf(stderr, "bench_out_of_core: no control group can be made here\n");
        return 1;
    }
    pid_t child = fork();
    if (child == 0)
        exit(memory_group_join(&group) ? run(&job) : 1);
    waitpid(child, &status, 0);
    printf("peak memory of the group %.1f MB\n", (double)memory_group_peak(&group) / 1e6);
    memory_group_close(&group);
    return status != 0;
}
