/* SPDX-License-Identifier: Apache-2.0 */
/* training_state.json of a checkpoint, and behind a form feed its trainer_state.json. The other
 * parts are there, and so are the data. */
#include <sys/stat.h>

#include "programs/kt/app.h"
#include "programs/kt/files.h"
#include "programs/kt/train.h"
#include "told.h"

#define CHECKPOINT "out/checkpoint-2/"

static const kt_tokenizer *tokenizer;
static kt_dataset *dataset;

static void finish(void)
{
    kt_dataset_free(dataset);
    folder_remove(fuzz_path("out"));
}

static void start(void)
{
    const char info[] = "{\"a\": {\"file_name\": \"d.json\"}}";
    const char data[] = "[{\"instruction\": \"one\", \"output\": \"two\"}]", part[] = "a part";
    char folder[512];
    fuzz_file("dataset_info.json", info, sizeof info - 1);
    fuzz_file("d.json", data, sizeof data - 1);
    strcpy(folder, fuzz_path(""));
    tokenizer = fuzz_tokenizer("tiny");
    kt_dataset_options options;
    kt_dataset_options_init(&options, sizeof options);
    options.dataset_dir = folder;
    options.dataset = "a";
    options.template_name = "default";
    options.cutoff_len = 64;
    fuzz_expect(fuzz_ok(kt_dataset_load(fuzz_context(), tokenizer, &options, &dataset)),
                kt_last_error(fuzz_context()));
    fuzz_expect(!mkdir(fuzz_path("out"), 0777) && !mkdir(fuzz_path(CHECKPOINT), 0777), "no folder");
    for (size_t i = 0; checkpoint_parts[i]; i++) {
        char name[100];
        snprintf(name, sizeof name, CHECKPOINT "%s", checkpoint_parts[i]);
        fuzz_file(name, part, sizeof part - 1);
    }
    atexit(finish);
}

/* What a run that goes on begins with: a bad state must not count. */
static void check_state(const train_run *run)
{
    const train_state *s = &run->state;
    fuzz_expect(s->step > 0 && s->step <= run->plan.total_steps && s->last_logged <= s->step,
                "a step that was not done");
    fuzz_expect(json_is_array(s->history), "no history");
}

static void read_it(const char *folder)
{
    const train_plan plan = {.num_examples = 1, .total_steps = 8};
    config cfg = {0};
    train_run run = {.cfg = &cfg,
                     .dataset = dataset,
                     .evaluation = dataset,
                     .plan = plan,
                     .state.history = json_array(),
                     .options = {.batch = 2, .accumulation = 2, .seed = 42, .data_seed = 42}};
    run.options.resume = app_copy(folder);
    if (fuzz_told(checkpoint_read(&run)))
        check_state(&run);
    json_decref(run.state.history);
    train_options_free(&run.options);
}

/* How a run finds what it goes on from. */
static void find_it(const char *output)
{
    config cfg = {0};
    train_options options = {.output_dir = output, .do_train = true};
    if (fuzz_told(output_prepare(&options, &cfg)))
        fuzz_expect(options.resume && checkpoint_is_whole(options.resume), "what is not whole");
    train_options_free(&options);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char output[512];
    if (!dataset)
        start();
    size_t length;
    char *state = fuzz_text(&data, &size, &length);
    fuzz_file(CHECKPOINT "training_state.json", state, length);
    fuzz_file(CHECKPOINT "trainer_state.json", data, size);
    free(state);
    strcpy(output, fuzz_path("out"));
    find_it(output);
    read_it(fuzz_path("out/checkpoint-2"));
    return 0;
}
