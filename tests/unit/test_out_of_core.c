/* SPDX-License-Identifier: Apache-2.0 */
/* Training and generation with a checkpoint of three times the memory that a control group allows:
 * the same bits as without a limit, and no weight read more than twice a step. */
#include <inttypes.h>
#include <sys/wait.h>

#include "fixture.h"
#include "large_model.h"
#include "main.h"
#include "memory_group.h"

enum { STEPS = 3, TOKENS = 96, NEW_TOKENS = 12, MIB = 1 << 20 };

static const uint64_t limit = 80 * (uint64_t)MIB;
static const struct large_model shape = {
    .layers = 13, .hidden = 512, .experts = 24, .intermediate = 256, .vocab = 2048};

/** What a child process tells. */
struct result {
    bool ran;
    uint64_t read[STEPS];     /**< bytes from the disk, of each step */
    uint64_t read_generating; /**< of NEW_TOKENS tokens after the first */
    uint64_t data;            /**< a sum over the adapter's bits */
    double losses[STEPS];
    int32_t tokens[NEW_TOKENS];
};

static char folder[64]; /**< below this one: /tmp may be in memory */
static uint64_t weights;

static void setup(void)
{
    fixture_setup();
    strcpy(folder, "kt-out-of-core-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    weights = large_model_write(fixture_context, folder, &shape);
    ck_assert_uint_ge(weights, 3 * limit);
    ck_assert_uint_lt(weights, 4 * limit);
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    ck_assert_int_eq(system(command), 0);
    fixture_teardown();
}

static uint64_t bytes_read(void)
{
    char line[128];
    uint64_t bytes = 0;
    FILE *f = fopen("/proc/self/io", "r");
    while (f && fgets(line, sizeof line, f))
        sscanf(line, "read_bytes: %" SCNu64, &bytes);
    if (f)
        fclose(f);
    return bytes;
}

static void need(kt_context *ctx, kt_status status)
{
    if (status == KT_OK)
        return;
    fprintf(stderr, "%s\n", kt_last_error(ctx));
    _exit(1);
}

static void train(kt_context *ctx, kt_executor *executor, kt_lora *lora, struct result *r)
{
    kt_optimizer *optimizer;
    kt_batch *batch;
    int32_t ids[TOKENS];
    need(ctx, kt_optimizer_create(lora, NULL, &optimizer));
    need(ctx, kt_batch_create(ctx, &batch));
    for (int step = 0; step < STEPS; step++) {
        kt_loss loss = {.size = sizeof loss};
        uint64_t before = bytes_read();
        for (int t = 0; t < TOKENS; t++)
            ids[t] = (7919 * (t + 1) * (step + 1)) % shape.vocab;
        kt_batch_clear(batch);
        need(ctx, kt_batch_add(batch, ids, ids, TOKENS));
        need(ctx, kt_executor_forward(executor, batch, KT_FORWARD_TRAIN, &loss));
        need(ctx, kt_executor_backward(executor, NULL));
        need(ctx, kt_optimizer_step(optimizer, 1e-2, NULL));
        r->losses[step] = loss.loss;
        r->read[step] = bytes_read() - before;
    }
    kt_batch_free(batch);
    kt_optimizer_free(optimizer);
}

static void generate(kt_context *ctx, kt_executor *executor, struct result *r)
{
    static const int32_t prompt[] = {2, 3, 5, 7, 11};
    kt_generator *generator;
    kt_generator_options options;
    int32_t first;
    kt_generator_options_init(&options, sizeof options);
    need(ctx, kt_generator_create(executor, &options, &generator));
    need(ctx, kt_generator_prompt(generator, prompt, 5));
    need(ctx, kt_generator_next(generator, &first));
    uint64_t before = bytes_read();
    for (int i = 0; i < NEW_TOKENS; i++)
        need(ctx, kt_generator_next(generator, &r->tokens[i]));
    r->read_generating = bytes_read() - before;
    kt_generator_free(generator);
}

static uint64_t sum_adapter(kt_lora *lora)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < kt_lora_num_tensors(lora); i++) {
        kt_lora_tensor tensor = {.size = sizeof tensor};
        uint32_t bits;
        if (kt_lora_get_tensor(lora, i, &tensor) != KT_OK)
            _exit(1);
        for (int64_t k = 0; k < tensor.rows * tensor.cols; k++) {
            memcpy(&bits, &tensor.data[k], sizeof bits);
            sum = sum * 0x100000001b3u + bits;
        }
    }
    return sum;
}

/** In a child process. */
static void run(struct result *r)
{
    kt_context *ctx;
    kt_model *model;
    kt_lora *lora;
    kt_executor *executor;
    kt_context_options options;
    kt_lora_options adapter;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = 2;
    need(NULL, kt_context_create(&options, &ctx));
    need(ctx, kt_model_load(ctx, folder, NULL, &model));
    kt_lora_options_init(&adapter, sizeof adapter);
    adapter.rank = 2;
    need(ctx, kt_lora_create(model, &adapter, &lora));
    need(ctx, kt_executor_create(model, lora, NULL, &executor));
    train(ctx, executor, lora, r);
    generate(ctx, executor, r);
    r->data = sum_adapter(lora);
    kt_executor_free(executor);
    kt_lora_free(lora);
    kt_model_free(model);
    kt_context_free(ctx);
    r->ran = true;
}

/** In a process of its own, in a group unless it is NULL, with nothing of the model in memory. */
static struct result run_apart(const struct memory_group *group)
{
    struct result r = {0};
    int ends[2], status;
    large_model_forget(folder, &shape);
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        if (group && !memory_group_join(group))
            _exit(1);
        run(&r);
        _exit(write(ends[1], &r, sizeof r) != sizeof r);
    }
    close(ends[1]);
    (void)!read(ends[0], &r, sizeof r);
    close(ends[0]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert(r.ran);
    return r;
}

START_TEST(a_model_of_three_times_the_memory_trains_and_chats)
{
    struct memory_group group;
    ck_assert(memory_group_open(&group, limit));
    struct result limited = run_apart(&group);
    uint64_t peak = memory_group_peak(&group);
    memory_group_close(&group);
    struct result free = run_apart(NULL);
    ck_assert_msg(limited.read[0] > weights / 2, "%s is not on a disk", folder);
    ck_assert_uint_eq(limited.data, free.data);
    ck_assert_mem_eq(limited.losses, free.losses, sizeof free.losses);
    ck_assert_mem_eq(limited.tokens, free.tokens, sizeof free.tokens);
    for (int step = 0; step < STEPS; step++) {
        double times = (double)limited.read[step] / (double)weights;
        printf("step %d read the weights %.2f times\n", step, times);
        ck_assert_double_le(times, 2.2);
    }
    printf("a token read %.3f of the weights; the group had at most %.1f of %.1f MiB\n",
           (double)limited.read_generating / (double)weights / NEW_TOKENS, (double)peak / MIB,
           (double)limit / MIB);
    ck_assert_uint_le(peak, limit);
    ck_assert_double_le((double)limited.read_generating / (double)weights / NEW_TOKENS, 0.2);
}
END_TEST

/** The status by which meson counts a test as skipped, or 0. */
static int skipped(void)
{
    enum { SKIPPED = 77 };
    struct memory_group group;
    const char *why = SANITIZED ? "a sanitizer takes more memory than the limit" : NULL;
    if (!why && !memory_group_open(&group, limit))
        why = "no control group with a limit on memory can be made here; run it as root";
    else if (!why)
        memory_group_close(&group);
    if (why)
        printf("out_of_core: skipped, as %s\n", why);
    return why ? SKIPPED : 0;
}

int main(void)
{
    int status = skipped();
    if (status)
        return status;
    const struct test tests[] = {
        GROUP("out_of_core", .setup = setup, .teardown = teardown, .timeout = 200),
        TEST(a_model_of_three_times_the_memory_trains_and_chats),
    };
    return RUN_TESTS("out_of_core", tests);
}
