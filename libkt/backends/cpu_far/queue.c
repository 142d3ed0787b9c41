/* SPDX-License-Identifier: Apache-2.0 */
/* Queues that are late. A job runs when somebody wants it: the host at a sync, or a queue that
 * waits for a mark. From time to time some that nobody wants yet run too, since a program must not
 * rely on their being late either. */
#include <string.h>

#include "backends/cpu_far/far.h"
#include "core/clock.h"
#include "core/context.h"
#include "core/random.h"

static void want(struct kt_far_queue *q, uint64_t number)
{
    if (q->wanted < number) {
        q->wanted = number;
        pthread_cond_broadcast(&q->far->changed);
    }
}

/** Both with the lock held, which waiting gives away. */
static void want_and_wait(struct kt_far_queue *q, uint64_t number)
{
    want(q, number);
    while (q->done < number)
        pthread_cond_wait(&q->far->changed, &q->far->lock);
}

static struct kt_far_queue *queue_of(struct kt_far_device *far, kt_mark mark)
{
    return &far->queues[mark % KT_QUEUES];
}

static void run_job(struct kt_far_device *far, const struct kt_far_job *job)
{
    pthread_mutex_lock(&far->running);
    if (job->kind == KT_FAR_COPY)
        memcpy(job->to, job->from, job->bytes);
    else
        kt_far_compute(far, job);
    pthread_mutex_unlock(&far->running);
}

static void *serve(void *arg)
{
    struct kt_far_queue *q = arg;
    struct kt_far_device *far = q->far;
    pthread_mutex_lock(&far->lock);
    for (;;) {
        while (q->done == q->wanted && !far->stop)
            pthread_cond_wait(&far->changed, &far->lock);
        if (q->done == q->wanted)
            break;
        const struct kt_far_job *job = &q->jobs[(q->done + 1) % KT_FAR_JOBS];
        if (job->kind == KT_FAR_WAIT) {
            want_and_wait(queue_of(far, job->mark), job->mark / KT_QUEUES);
        } else if (job->kind == KT_FAR_STAMP) {
            kt_time_store(job->seconds, kt_clock());
        } else {
            pthread_mutex_unlock(&far->lock);
            run_job(far, job);
            pthread_mutex_lock(&far->lock);
        }
        q->done++;
        pthread_cond_broadcast(&far->changed);
    }
    pthread_mutex_unlock(&far->lock);
    return NULL;
}

kt_status kt_far_start(struct kt_far_device *far)
{
    int error = 0;
    for (int i = 0; i < KT_QUEUES && !error; i++) {
        struct kt_far_queue *q = &far->queues[i];
        q->far = far;
        error = kt_thread_start(&q->thread, serve, q);
        q->started = !error;
    }
    return error ? kt_fail_memory(far->base.ctx, 0, "the threads of a device") : KT_OK;
}

void kt_far_stop(struct kt_far_device *far)
{
    pthread_mutex_lock(&far->lock);
    for (int i = 0; i < KT_QUEUES; i++)
        if (far->queues[i].started)
            want_and_wait(&far->queues[i], far->queues[i].queued);
    far->stop = true;
    pthread_cond_broadcast(&far->changed);
    pthread_mutex_unlock(&far->lock);
    for (int i = 0; i < KT_QUEUES; i++)
        if (far->queues[i].started)
            pthread_join(far->queues[i].thread, NULL);
}

/** Lets each queue, seldom, go some jobs ahead of what is wanted; the host sees to it that it does
 * before going on, or leaves it to race. */
static void go_ahead(struct kt_far_device *far)
{
    uint32_t random[4];
    if (!far->seed)
        return;
    kt_philox(far->seed, 0, far->drawn++, random);
    for (int i = 0; i < KT_QUEUES; i++) {
        struct kt_far_queue *q = &far->queues[i];
        if (random[i] % 8 || q->queued == q->done)
            continue;
        uint64_t number = q->done + 1 + random[i] / 8 % (q->queued - q->done);
        if (random[3] >> i & 1)
            want_and_wait(q, number);
        else
            want(q, number);
    }
}

void kt_far_push(struct kt_far_device *far, enum kt_queue queue, const struct kt_far_job *job)
{
    struct kt_far_queue *q = &far->queues[queue];
    pthread_mutex_lock(&far->lock);
    if (q->queued - q->done == KT_FAR_JOBS)
        want_and_wait(q, q->done + 1);
    q->jobs[++q->queued % KT_FAR_JOBS] = *job;
    go_ahead(far);
    pthread_mutex_unlock(&far->lock);
}

kt_mark kt_far_mark(struct kt_device *dev, enum kt_queue queue)
{
    uint64_t queued = kt_far(dev)->queues[queue].queued; /* the host's thread alone adds to it */
    return queued ? queued * KT_QUEUES + (uint64_t)queue : 0;
}

void kt_far_wait(struct kt_device *dev, enum kt_queue queue, kt_mark mark)
{
    struct kt_far_device *far = kt_far(dev);
    if (mark / KT_QUEUES > queue_of(far, mark)->queued)
        kt_far_remember(far, "a wait for a mark of another device");
    else
        kt_far_push(far, queue, &(struct kt_far_job){.kind = KT_FAR_WAIT, .mark = mark});
}

void kt_far_stamp(struct kt_device *dev, enum kt_queue queue, double *seconds)
{
    kt_far_push(kt_far(dev), queue, &(struct kt_far_job){.kind = KT_FAR_STAMP, .seconds = seconds});
}

bool kt_far_finish(struct kt_far_device *far, enum kt_queue queue, uint64_t number)
{
    struct kt_far_queue *q = &far->queues[queue];
    pthread_mutex_lock(&far->lock);
    bool pending = q->done < number;
    want_and_wait(q, number);
    pthread_mutex_unlock(&far->lock);
    return pending;
}

kt_status kt_far_sync(struct kt_device *dev, kt_mark mark)
{
    struct kt_far_device *far = kt_far(dev);
    if (mark / KT_QUEUES > queue_of(far, mark)->queued) {
        kt_far_remember(far, "a sync with a mark of another device");
    } else {
        pthread_mutex_lock(&far->lock);
        go_ahead(far);
        want_and_wait(queue_of(far, mark), mark / KT_QUEUES);
        pthread_mutex_unlock(&far->lock);
    }
    return far->failure[0]
               ? kt_fail(dev->ctx, KT_ERROR_INTERNAL, "device \"%s\": %s", far->name, far->failure)
               : KT_OK;
}
