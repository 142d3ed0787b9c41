/* SPDX-License-Identifier: Apache-2.0 */
/* What the thread pool costs: how long a job without work takes, and when its last worker begins,
 * after pauses in which workers still look for work (below 50 us) or sleep.
 *
 *     bench_pool [-t threads] [-p] [-n jobs]     -p: do not bind threads */
#include <kt/kt.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "core/context.h"

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* Each worker takes one piece and holds it until all have begun. */
struct gathering {
    int32_t threads;
    _Atomic int32_t begun;
};

static void gather(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    struct gathering *g = arg;
    (void)begin, (void)end, (void)thread;
    g->begun++;
    while (g->begun < g->threads)
        ;
}

static void nothing(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    (void)arg, (void)begin, (void)end, (void)thread;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void pause_us(double us)
{
    double end = now_us() + us;
    if (us >= 1000)
        usleep((useconds_t)us);
    while (now_us() < end)
        ;
}

static void measure(kt_context *ctx, double pause, int all, int jobs, double *took)
{
    for (int i = 0; i < jobs; i++) {
        struct gathering g = {.threads = kt_context_num_threads(ctx)};
        pause_us(pause);
        double begin = now_us();
        kt_parallel_for(ctx->pool, g.threads, 1, all ? gather : nothing, &g);
        took[i] = now_us() - begin;
    }
    qsort(took, (size_t)jobs, sizeof *took, ascending);
}

int main(int argc, char **argv)
{
    static const double pauses[] = {0, 10, 100, 1000, 10000};
    kt_context_options options;
    kt_context *ctx;
    int option, jobs = 200;
    kt_context_options_init(&options, sizeof options);
    while ((option = getopt(argc, argv, "t:n:p")) != -1) {
        if (option == 't')
            options.num_threads = atoi(optarg);
        else if (option == 'n')
            jobs = atoi(optarg);
        else if (option == 'p')
            options.pin_threads = 0;
        else
            return 2;
    }
    if (jobs < 1 || kt_context_create(&options, &ctx) != KT_OK)
        return 1;
    double *took = malloc((size_t)jobs * sizeof *took);
    if (!took)
        return 1;
    printf("%s\n%10s  %22s  %22s\n", kt_context_cpu_description(ctx), "pause, us",
           "a job without work, us", "until all have begun, us");
    printf("%10s  %14s %7s  %14s %7s\n", "", "median", "p95", "median", "p95");
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
        printf("%10.0f", pauses[i]);
        for (int all = 0; all < 2; all++) {
            measure(ctx, pauses[i], all, jobs, took);
            printf("  %14.1f %7.1f", took[jobs / 2], took[jobs * 95 / 100]);
        }
        putchar('\n');
    }
    free(took);
    kt_context_free(ctx);
    return 0;
}
