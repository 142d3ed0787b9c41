/* SPDX-License-Identifier: Apache-2.0 */
/* Traces: that every operation, copy and wait of a step is in them once, with times that fit
 * together, and that they change no result. */
#include <jansson.h>
#include <sys/stat.h>

#include <kt/generator.h>
#include <kt/optimizer.h>

#include "backend/trace_state.h"
#include "backends/registry.h"
#include "core/clock.h"
#include "executor/executor.h"
#include "golden_case.h"
#include "main.h"

static char folder[64];
static char path[96];
static char logged[1024];

static void setup(void)
{
    strcpy(folder, "/tmp/kt-trace-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/trace.json", folder);
    logged[0] = 0;
}

/** Nothing but the file itself was left there. */
static void teardown(void)
{
    unlink(path);
    ck_assert_int_eq(rmdir(folder), 0);
}

static void log_line(void *user, int32_t level, const char *message)
{
    (void)user;
    if (level == KT_LOG_WARNING)
        snprintf(logged, sizeof logged, "%s", message);
}

static kt_trace *begin(kt_context *ctx, const char *to, uint64_t max_events)
{
    kt_trace_options options;
    kt_trace *trace;
    kt_trace_options_init(&options, sizeof options);
    options.path = to;
    if (max_events)
        options.max_events = max_events;
    ck_assert_ok(ctx, kt_trace_create(ctx, &options, &trace));
    return trace;
}

static kt_trace_row row(const kt_trace *trace, size_t index)
{
    kt_trace_row r = {.size = sizeof r};
    ck_assert_int_eq(kt_trace_get_row(trace, index, &r), KT_OK);
    return r;
}

/** The row of these names; with a count of 0 where there is none. */
static kt_trace_row find_row(const kt_trace *trace, const char *phase, const char *resource,
                             const char *operation)
{
    for (size_t i = 0; i < kt_trace_num_rows(trace); i++) {
        kt_trace_row r = row(trace, i);
        if (strcmp(r.phase, phase) == 0 && !r.resource == !resource &&
            (!resource || strcmp(r.resource, resource) == 0) && !r.operation == !operation &&
            (!operation || strcmp(r.operation, operation) == 0))
            return r;
    }
    return (kt_trace_row){0};
}

/* -- what a device was given ------------------------------------------------------------------- */

/** Stands before a device's operations and counts them. */
struct spy {
    struct kt_device_ops ops;
    const struct kt_device_ops *real;
    uint64_t runs[KT_OPS], copies[KT_QUEUES], syncs;
};

enum { SPIES = KT_MAX_DEVICES + 1 };
static struct spy spies[SPIES];

#define SPY(name, op, type)                                                                        \
    static void spy_##name(struct kt_device *dev, const void *args, void *scratch)                 \
    {                                                                                              \
        struct spy *spy = (struct spy *)(uintptr_t)dev->ops;                                       \
        spy->runs[KT_OP_##op]++;                                                                   \
        spy->real->run[KT_OP_##op](dev, args, scratch);                                            \
    }

KT_EACH_OP(SPY)

static void spy_copy(struct kt_device *dev, enum kt_queue queue, void *to, const void *from,
                     uint64_t bytes)
{
    struct spy *spy = (struct spy *)(uintptr_t)dev->ops;
    spy->copies[queue]++;
    spy->real->copy(dev, queue, to, from, bytes);
}

static kt_status spy_sync(struct kt_device *dev, kt_mark mark)
{
    struct spy *spy = (struct spy *)(uintptr_t)dev->ops;
    spy->syncs++;
    return spy->real->sync(dev, mark);
}

#define SPY_RUN(name, op, args) [KT_OP_##op] = spy_##name,

static void watch(struct spy *spy, struct kt_device *dev)
{
    static const kt_op_fn run[KT_OPS] = {KT_EACH_OP(SPY_RUN)};
    *spy = (struct spy){.ops = *dev->ops, .real = dev->ops};
    memcpy(spy->ops.run, run, sizeof run);
    spy->ops.copy = spy_copy;
    spy->ops.sync = spy_sync;
    dev->ops = &spy->ops;
}

/** Watches all devices of an executor; how many. */
static int watch_all(kt_executor *executor)
{
    int num = executor->layout.num_devices;
    for (int i = 0; i < num; i++)
        watch(&spies[i], executor->sites[i].device);
    watch(&spies[num], executor->host.device);
    return num + 1;
}

static uint64_t count_events(const kt_trace *t, const char *name)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < t->used; i++)
        count += strcmp(t->events[i].name, name) == 0;
    return count;
}

/** Each operation, copy and wait is an event. */
static void check_counts(const kt_trace *t, int num_spies)
{
    static const char *const copies[KT_QUEUES] = {"copy", "copy in", "copy out", "supply"};
    uint64_t all = 0, want = 0, waits = 0;
    for (int op = 0; op < KT_OPS; op++, want = 0) {
        for (int i = 0; i < num_spies; i++)
            want += spies[i].runs[op];
        ck_assert_uint_eq(count_events(t, kt_op_name((enum kt_op)op)), want);
        all += want;
    }
    for (int queue = 0; queue < KT_QUEUES; queue++, want = 0) {
        for (int i = 0; i < num_spies; i++)
            want += spies[i].copies[queue];
        ck_assert_uint_eq(count_events(t, copies[queue]), want);
    }
    for (int i = 0; i < num_spies; i++)
        waits += kt_device_is_host(&(struct kt_device){.ops = spies[i].real}) ? 0 : spies[i].syncs;
    ck_assert_uint_eq(count_events(t, "wait"), waits);
    ck_assert_uint_gt(all, 0);
    ck_assert_uint_eq(t->lost + t->beyond, 0);
}

/** Times are there and in the trace; a queue does one thing after another. */
static void check_queues(const kt_trace *t)
{
    double latest[KT_TRACE_TRACKS] = {0}, now = kt_clock();
    for (uint64_t i = 0; i < t->used; i++) {
        const struct kt_event *e = &t->events[i];
        ck_assert(e->begin >= t->origin && e->begin <= e->end && e->end <= now);
        if (e->track == KT_TRACK_HOST)
            continue;
        ck_assert(e->begin >= latest[e->track]);
        latest[e->track] = e->end;
    }
}

/** Events of the host lie in each other or apart, as calls do. */
static void check_nesting(const kt_trace *t)
{
    const struct kt_event *open[8];
    int depth = 0;
    for (uint64_t i = 0; i < t->used; i++) {
        const struct kt_event *e = &t->events[i];
        if (e->track != KT_TRACK_HOST)
            continue;
        while (depth && open[depth - 1]->end <= e->begin)
            depth--;
        if (depth)
            ck_assert(e->end <= open[depth - 1]->end && e->phase == open[depth - 1]->phase);
        else
            ck_assert_str_eq(e->name, kt_phase_names[e->phase]);
        ck_assert_int_lt(depth, 8);
        open[depth++] = e;
    }
}

/** The layers that have an event of the phase. */
static void check_layers(const kt_trace *t, enum kt_phase phase, const char *name, int32_t lowest,
                         int32_t num_layers)
{
    for (int32_t l = lowest; l < num_layers; l++) {
        uint64_t found = 0;
        for (uint64_t i = 0; i < t->used; i++)
            found += t->events[i].phase == phase && t->events[i].layer == l &&
                     strcmp(t->events[i].name, name) == 0;
        ck_assert_msg(found, "%s of layer %d in %s", name, l, kt_phase_names[phase]);
    }
}

static void check_rows(const kt_trace *trace)
{
    kt_trace_row phase = {0};
    ck_assert_uint_gt(kt_trace_num_rows(trace), 0);
    for (size_t i = 0; i < kt_trace_num_rows(trace); i++) {
        kt_trace_row r = row(trace, i);
        ck_assert_uint_gt(r.count, 0);
        ck_assert(r.seconds >= 0 && r.bytes >= 0 && r.flops >= 0);
        if (!r.resource)
            phase = r;
        ck_assert_str_eq(r.phase, phase.phase);
        if (!r.operation)
            ck_assert_msg(r.seconds <= phase.seconds * (1 + 1e-9), "%s of %s: %g > %g", r.resource,
                          r.phase, r.seconds, phase.seconds);
    }
}

/* -- steps ------------------------------------------------------------------------------------- */

static const char *const placements[][3] = {
    {"cpu"}, {"cpu-far"}, {"cpu-far", "cpu"}, {"cpu-far", "cpu-far:1"}};
enum { PLACEMENTS = sizeof placements / sizeof *placements };

/** The loss and the gradients of a step over nothing added before. */
static float *step(const struct golden_case *c, kt_executor *executor, double *loss)
{
    ck_assert_ok(c->ctx, kt_lora_zero_grad(c->lora));
    *loss = golden_step(c, executor);
    return golden_gradients(c->lora);
}

START_TEST(a_step_is_traced_and_stays_what_it_was)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_executor *ex = golden_place(&c, placements[_i], KT_COMPUTE_F32);
    int32_t layers = c.model->config.num_hidden_layers;
    size_t bytes = kt_lora_num_parameters(c.lora) * sizeof(float);
    double loss[2];
    float *off = step(&c, ex, &loss[0]);
    int num_spies = watch_all(ex);
    kt_trace *trace = begin(c.ctx, path, 0);
    float *on = step(&c, ex, &loss[1]);
    ck_assert(loss[0] == loss[1] && memcmp(off, on, bytes) == 0);
    check_counts(trace, num_spies);
    ck_assert_ok(c.ctx, kt_trace_finish(trace));
    check_queues(trace);
    check_nesting(trace);
    check_rows(trace);
    check_layers(trace, KT_PHASE_FORWARD, "layer", 0, layers);
    check_layers(trace, KT_PHASE_FORWARD, "head", layers, layers + 1);
    check_layers(trace, KT_PHASE_BACKWARD, "layer", kt_executor_lowest_layer(ex), layers);
    check_layers(trace, KT_PHASE_FORWARD, "norm_forward", 0, layers + 1);
    check_layers(trace, KT_PHASE_BACKWARD, "attention_backward", kt_executor_lowest_layer(ex),
                 layers);
    kt_trace_free(trace);
    free(off);
    free(on);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/** Times that a device knows and has not told. */
static struct {
    double *seconds[4096], times[4096];
    int made, stored;
} late;

static void late_stamp(struct kt_device *dev, enum kt_queue queue, double *seconds)
{
    ck_assert_int_lt(late.made, 4096);
    late.seconds[late.made] = seconds;
    spies[0].real->stamp(dev, queue, &late.times[late.made++]);
}

/** All of them, as a call ends when nothing is queued any more. */
static void late_stamped(struct kt_device *dev)
{
    ck_assert_int_eq(kt_device_drain(dev), KT_OK);
    for (; late.stored < late.made; late.stored++)
        kt_time_store(late.seconds[late.stored], late.times[late.stored]);
}

START_TEST(devices_tell_times_when_they_are_asked)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_executor *ex = golden_place(&c, placements[1], KT_COMPUTE_F32);
    int num_spies = watch_all(ex);
    spies[0].ops.stamp = late_stamp;
    spies[0].ops.stamped = late_stamped;
    kt_trace *trace = begin(c.ctx, path, 0);
    golden_step(&c, ex);
    ck_assert_uint_eq(trace->folded, trace->used);
    ck_assert_int_gt(late.stored, 0);
    check_counts(trace, num_spies);
    ck_assert_ok(c.ctx, kt_trace_finish(trace));
    check_queues(trace);
    check_rows(trace);
    kt_trace_free(trace);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

START_TEST(the_hosts_experts_are_tasks_of_the_cpu)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_trace *trace = begin(c.ctx, NULL, 0);
    golden_step(&c, c.executor);
    ck_assert_ok(c.ctx, kt_trace_finish(trace));
    kt_trace_row forward = find_row(trace, "forward", "CPU", "experts_forward");
    kt_trace_row backward = find_row(trace, "backward", "CPU", "experts_backward");
    ck_assert_uint_gt(forward.count, 0);
    ck_assert_uint_gt(backward.count, 0);
    ck_assert(forward.bytes > 0 && backward.flops == 2 * forward.flops);
    ck_assert_uint_gt(find_row(trace, "forward", "host thread", "routing").count, 0);
    ck_assert_uint_gt(find_row(trace, "forward", "host memory", NULL).count, 0);
    kt_trace_free(trace);
    golden_close(&c);
}
END_TEST

START_TEST(generation_and_the_optimizer_are_phases)
{
    enum { PROMPT = 5, NEXT = 4 };
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_executor *ex = golden_place(&c, placements[1], KT_COMPUTE_F32);
    int32_t token, ids[PROMPT] = {1, 2, 3, 4, 5};
    kt_generator *g;
    kt_optimizer *optimizer;
    ck_assert_ok(c.ctx, kt_generator_create(ex, NULL, &g));
    ck_assert_ok(c.ctx, kt_optimizer_create(c.lora, NULL, &optimizer));
    kt_trace *trace = begin(c.ctx, path, 0);
    ck_assert_ok(c.ctx, kt_generator_prompt(g, ids, PROMPT));
    for (int i = 0; i < NEXT; i++)
        ck_assert_ok(c.ctx, kt_generator_next(g, &token));
    golden_step(&c, ex);
    ck_assert_ok(c.ctx, kt_optimizer_step(optimizer, 1e-3, NULL));
    ck_assert_ok(c.ctx, kt_trace_finish(trace));
    check_queues(trace);
    check_nesting(trace);
    check_rows(trace);
    ck_assert_uint_eq(find_row(trace, "prompt", NULL, NULL).count, 1);
    ck_assert_uint_eq(find_row(trace, "decode", NULL, NULL).count, NEXT);
    ck_assert_uint_eq(find_row(trace, "forward", NULL, NULL).count, 1);
    ck_assert_uint_eq(find_row(trace, "optimizer", NULL, NULL).count, 1);
    ck_assert_uint_eq(find_row(trace, "optimizer", "CPU", "adamw").count, 1);
    ck_assert_uint_eq(find_row(trace, "decode", "host thread", "sample").count, NEXT);
    ck_assert_uint_gt(find_row(trace, "decode", "host thread", "wait").count, 0);
    ck_assert_uint_gt(find_row(trace, "prompt", "cpu-far to device", "supply").count, 0);
    check_layers(trace, KT_PHASE_DECODE, "layer", 0, c.model->config.num_hidden_layers);
    kt_trace_free(trace);
    kt_optimizer_free(optimizer);
    kt_generator_free(g);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/* -- sums -------------------------------------------------------------------------------------- */

static void add_event(kt_trace *t, int32_t track, const char *name, double begin, double end)
{
    struct kt_event *e = kt_trace_event(t, track, name, 8, 2);
    ck_assert_ptr_nonnull(e);
    e->begin = begin;
    kt_time_store(&e->end, end);
}

/** What overlaps on two queues to a device keeps the link busy once; what is known late waits. */
START_TEST(resources_are_busy_while_anything_runs)
{
    kt_context *ctx = test_context(1, 0);
    struct kt_device *dev;
    ck_assert_ok(ctx, kt_device_open(ctx, "cpu-far", &dev));
    kt_trace *t = begin(ctx, path, 0);
    double now = t->origin;
    int32_t in = kt_trace_track(t, dev, KT_QUEUE_IN),
            supply = kt_trace_track(t, dev, KT_QUEUE_SUPPLY),
            compute = kt_trace_track(t, dev, KT_QUEUE_COMPUTE);
    add_event(t, supply, "supply", now + 2, now + 5);
    add_event(t, in, "copy in", now + 1, now + 3);
    add_event(t, in, "copy in", now + 4, now + 4.5);
    add_event(t, compute, "gemm", now + 2, now + 3);
    add_event(t, in, "copy in", now + 7, now + 8);
    struct kt_event *untold = kt_trace_event(t, supply, "supply", 8, 2);
    add_event(t, compute, "gemm", now + 9, now + 10);
    kt_trace_fold(t);
    ck_assert_uint_eq(t->folded, 5);
    untold->begin = now + 7.5;
    kt_time_store(&untold->end, now + 9);
    ck_assert_ptr_nonnull(kt_trace_event(t, supply, "supply", 8, 2)); /* never told */
    add_event(t, compute, "gemm", now + 10, now + 10.5);
    ck_assert_ok(ctx, kt_trace_finish(t));
    kt_trace_row to = find_row(t, "other", "cpu-far to device", NULL);
    ck_assert_double_eq_tol(to.seconds, 4 + 2, 1e-6);
    ck_assert_uint_eq(to.count, 5);
    ck_assert_double_eq(to.bytes, 5 * 8);
    ck_assert_double_eq_tol(find_row(t, "other", "cpu-far compute", NULL).seconds, 2.5, 1e-6);
    ck_assert_uint_eq(t->lost, 1);
    ck_assert_double_eq_tol(find_row(t, "other", "cpu-far to device", "supply").seconds, 4.5, 1e-6);
    ck_assert_double_eq_tol(find_row(t, "other", NULL, NULL).seconds, 9.5, 1e-6);
    ck_assert_double_eq(find_row(t, "other", "host memory", NULL).bytes, 5 * 8);
    check_rows(t);
    kt_trace_free(t);
    kt_device_close(dev);
    kt_context_free(ctx);
}
END_TEST

/** The memory of a trace is bounded, whatever runs. */
START_TEST(a_full_trace_says_what_it_lacks)
{
    enum { MOST = 10 };
    struct golden_case c = golden_open("llama", 2, KT_COMPUTE_F32);
    kt_executor *ex = golden_place(&c, placements[0], KT_COMPUTE_F32);
    ck_assert_ok(c.ctx, kt_context_set_log(c.ctx, log_line, NULL));
    kt_trace *whole = begin(c.ctx, path, 0);
    golden_step(&c, ex);
    ck_assert_ok(c.ctx, kt_trace_finish(whole));
    ck_assert_str_eq(logged, "");
    kt_trace *trace = begin(c.ctx, path, MOST);
    golden_step(&c, ex);
    ck_assert_uint_eq(trace->used, MOST);
    ck_assert_ok(c.ctx, kt_trace_finish(trace));
    ck_assert_uint_eq(trace->beyond, whole->used - MOST);
    ck_assert_ptr_nonnull(strstr(logged, "first 10 events"));
    ck_assert_uint_eq(find_row(trace, "backward", "CPU", NULL).count,
                      find_row(whole, "backward", "CPU", NULL).count);
    kt_trace_free(trace);
    trace = begin(c.ctx, NULL, 0);
    trace->capacity = MOST;
    golden_step(&c, ex);
    ck_assert_ok(c.ctx, kt_trace_finish(trace));
    ck_assert_uint_eq(trace->lost, whole->used - 2 * MOST);
    ck_assert_ptr_nonnull(strstr(logged, "lack"));
    check_rows(trace);
    kt_trace_free(trace);
    kt_trace_free(whole);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

/* -- the file ---------------------------------------------------------------------------------- */

START_TEST(the_file_has_the_events)
{
    struct golden_case c = golden_open("v3", 2, KT_COMPUTE_F32);
    kt_executor *ex = golden_place(&c, placements[3], KT_COMPUTE_F32);
    kt_trace *trace = begin(c.ctx, path, 0);
    golden_step(&c, ex);
    ck_assert_int_eq(access(path, F_OK), -1);
    ck_assert_ok(c.ctx, kt_trace_finish(trace));
    json_t *root = json_load_file(path, 0, NULL), *event;
    ck_assert_ptr_nonnull(root);
    size_t i, complete = 0;
    json_array_foreach(json_object_get(root, "traceEvents"), i, event)
    {
        const char *form = json_string_value(json_object_get(event, "ph"));
        if (strcmp(form, "X") != 0)
            continue;
        const struct kt_event *e = &trace->events[complete++];
        const json_t *args = json_object_get(event, "args");
        ck_assert_str_eq(json_string_value(json_object_get(event, "name")), e->name);
        ck_assert_int_eq(json_integer_value(json_object_get(event, "tid")), e->track + 1);
        ck_assert_double_eq_tol(json_number_value(json_object_get(event, "ts")),
                                1e6 * (e->begin - trace->origin), 1e-3);
        ck_assert_double_eq_tol(json_number_value(json_object_get(event, "dur")),
                                1e6 * (e->end - e->begin), 1e-3);
        ck_assert_str_eq(json_string_value(json_object_get(args, "phase")),
                         kt_phase_names[e->phase]);
        ck_assert_double_eq(json_number_value(json_object_get(args, "bytes")), e->bytes);
    }
    ck_assert_uint_eq(complete, trace->used);
    json_decref(root);
    kt_trace_free(trace);
    kt_executor_free(ex);
    golden_close(&c);
}
END_TEST

START_TEST(what_is_not_finished_leaves_no_file)
{
    struct golden_case c = golden_open("llama", 1, KT_COMPUTE_F32);
    kt_executor *ex = golden_place(&c, placements[1], KT_COMPUTE_F32);
    kt_trace *trace = begin(c.ctx, path, 0);
    golden_step(&c, ex);
    kt_trace_free(trace);
    ck_assert_int_eq(access(path, F_OK), -1);
    golden_step(&c, ex);
    trace = begin(c.ctx, path, 0);
    golden_step(&c, ex);
    kt_executor_free(ex);
    golden_close(&c); /* the trace holds the context */
    ck_assert_int_eq(kt_trace_finish(trace), KT_OK);
    ck_assert_int_eq(access(path, F_OK), 0);
    ck_assert_uint_gt(find_row(trace, "forward", "cpu-far compute", NULL).count, 0);
    kt_trace_free(trace);
}
END_TEST

START_TEST(mistakes_are_told)
{
    kt_context *ctx = test_context(1, 0);
    kt_trace *trace, *other;
    kt_trace_options options;
    kt_trace_row r = {.size = sizeof r};
    kt_trace_options_init(&options, sizeof options);
    options.path = "/nowhere/trace.json";
    ck_assert_int_eq(kt_trace_create(ctx, &options, &trace), KT_ERROR_IO);
    ck_assert_ptr_null(trace);
    options.path = path;
    options.max_events = UINT64_MAX;
    ck_assert_int_eq(kt_trace_create(ctx, &options, &trace), KT_ERROR_INVALID_ARGUMENT);
    trace = begin(ctx, path, 0);
    ck_assert_int_eq(kt_trace_create(ctx, NULL, &other), KT_ERROR_STATE);
    ck_assert_uint_eq(kt_trace_num_rows(trace), 0);
    ck_assert_ok(ctx, kt_trace_finish(trace));
    ck_assert_int_eq(kt_trace_finish(trace), KT_ERROR_STATE);
    ck_assert_int_eq(kt_trace_get_row(trace, kt_trace_num_rows(trace), &r),
                     KT_ERROR_INVALID_ARGUMENT);
    other = begin(ctx, NULL, 0);
    kt_trace_free(trace);
    ck_assert_ptr_eq(ctx->trace, other);
    kt_trace_free(other);
    ck_assert_ptr_null(ctx->trace);
    kt_context_free(ctx);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("trace", .timeout = 120, .setup = setup, .teardown = teardown),
        LOOP(a_step_is_traced_and_stays_what_it_was, PLACEMENTS),
        TEST(devices_tell_times_when_they_are_asked),
        TEST(the_hosts_experts_are_tasks_of_the_cpu),
        TEST(generation_and_the_optimizer_are_phases),
        TEST(resources_are_busy_while_anything_runs),
        TEST(a_full_trace_says_what_it_lacks),
        TEST(the_file_has_the_events),
        TEST(what_is_not_finished_leaves_no_file),
        TEST(mistakes_are_told),
    };
    return RUN_TESTS("trace", tests);
}
