/* SPDX-License-Identifier: Apache-2.0 */
/* trainer_log.jsonl of a run that goes on after three steps, and behind a form feed the results
 * that another part of it has written. */
#include "programs/kt/app.h"
#include "programs/kt/files.h"
#include "programs/kt/json_text.h"
#include "programs/kt/train.h"
#include "told.h"

static char *read_back(const char *name, size_t *size)
{
    char *text = file_read(fuzz_path(name), size);
    fuzz_expect(text != NULL, name);
    return text;
}

/* Each line is an entry of a step that was done, and each ends. */
static void check_log(const char *text, size_t size)
{
    fuzz_expect(!size || text[size - 1] == '\n', "a line without an end");
    for (const char *end = text + size, *next; text < end; text = next + 1) {
        json_error_t error;
        next = memchr(text, '\n', (size_t)(end - text));
        json_t *line = json_read(text, (size_t)(next - text), &error);
        fuzz_expect(json_integer_value(json_object_get(line, "current_steps")) <= 3,
                    "another line");
        json_decref(line);
    }
}

static void go_on(train_run *run)
{
    size_t size, again;
    fuzz_expect(fuzz_told(output_begin(run)), "a log that stops the run");
    char *first = read_back("trainer_log.jsonl", &size);
    check_log(first, size);
    fuzz_told(output_begin(run));
    char *second = read_back("trainer_log.jsonl", &again);
    fuzz_expect(size == again && !memcmp(first, second, size), "read again it is another log");
    free(first);
    free(second);
}

static void add_results(train_run *run)
{
    json_error_t error;
    size_t size;
    json_t *metrics = json_pack("{sfsi}", "train_loss", 1.5, "step", 3);
    fuzz_expect(fuzz_told(output_save_results(run, "train", metrics)), "results that stop the run");
    char *text = read_back("all_results.json", &size);
    json_t *all = json_loadb(text, size, 0, &error);
    fuzz_expect(json_real_value(json_object_get(all, "train_loss")) == 1.5, "results are missing");
    json_decref(all);
    json_decref(metrics);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char folder[512];
    config cfg = {0};
    train_run run = {.cfg = &cfg, .options.resume = folder, .state.step = 3};
    size_t length;
    char *log = fuzz_text(&data, &size, &length);
    fuzz_file("trainer_log.jsonl", log, length);
    fuzz_file("all_results.json", data, size);
    strcpy(folder, fuzz_path(""));
    folder[strlen(folder) - 1] = 0;
    run.options.output_dir = folder;
    go_on(&run);
    add_results(&run);
    free(log);
    return 0;
}
