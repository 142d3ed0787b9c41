/* SPDX-License-Identifier: Apache-2.0 */
/* The folder that kt_convert writes into: interruption, going on, and what is refused. */
#include <fcntl.h>
#include <math.h>
#include <sys/file.h>
#include <sys/statvfs.h>

#include "convert_test.h"
#include "tiny_quantised.h"
#include "main.h"

static struct tiny tiny;
static char source[512], target[512];

static void setup(void)
{
    fixture_setup();
    tiny_create(&tiny, 1);
    ck_assert_int_eq(mkdir(fixture_path("source"), 0777), 0);
    snprintf(source, sizeof source, "%s", fixture_path("source"));
    snprintf(target, sizeof target, "%s", fixture_path("target"));
}

static void teardown(void)
{
    tiny_free(&tiny);
    convert_teardown();
}

/* tiny_write writes into the fixture's folder. */
static void write_source(void)
{
    tiny_write(&tiny);
    ck_assert_int_eq(rename(fixture_path("config.json"), fixture_path("source/config.json")), 0);
    ck_assert_int_eq(
        rename(fixture_path("model.safetensors"), fixture_path("source/model.safetensors")), 0);
}

static void touch(const char *name)
{
    fixture_write(name, "x", 1);
}

#define ck_assert_refused(call, status, part)                                                      \
    do {                                                                                           \
        ck_assert_fails((call), (status), (part));                                                 \
        ck_assert_msg(!kt_file_exists(target), "something was left");                              \
    } while (0)

static int calls_left;

static int32_t stop_after(void *user)
{
    (void)user;
    return calls_left-- <= 0;
}

static void check_interrupted(const char *folder)
{
    DIR *dir = opendir(folder);
    ck_assert_ptr_nonnull(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct kt_checkpoint *c;
        char *path = kt_path_join(folder, entry->d_name);
        ck_assert_ptr_null(strstr(entry->d_name, ".tmp"));
        if (strstr(entry->d_name, ".safetensors")) {
            ck_assert_int_eq(kt_checkpoint_open(fixture_context, path, &c), KT_OK);
            kt_checkpoint_close(c);
        }
        free(path);
    }
    closedir(dir);
    ck_assert(!convert_has(folder, "config.json"));
    ck_assert(!convert_has(folder, "model.safetensors.index.json"));
}

static ino_t inode(const char *folder, const char *name)
{
    struct stat info = {0};
    char *path = kt_path_join(folder, name);
    int found = stat(path, &info) == 0;
    free(path);
    return found ? info.st_ino : 0;
}

/* Interrupted at many places, it goes on and ends with the same bytes; whole shards are kept. */
START_TEST(interrupted_conversions_go_on)
{
    static const char shard[] = "model-00001-of-00003.safetensors";
    const char *whole = fixture_path("whole"), *from = convert_case("v3");
    int times = 0, kept = 0;
    ck_assert_converts(from, whole, KT_DTYPE_F8_E4M3, 0);
    fixture_context->options.cancel = stop_after;
    for (int calls = 5;; calls += 60, times++) {
        ino_t before = inode(target, shard);
        calls_left = calls;
        kt_status status = convert_to(from, target, KT_DTYPE_F8_E4M3, 0);
        if (before) {
            kept++;
            ck_assert(inode(target, shard) == before);
        }
        if (status == KT_OK)
            break;
        ck_assert_int_eq(status, KT_ERROR_CANCELLED);
        check_interrupted(target);
    }
    ck_assert_int_gt(times, 2);
    ck_assert_int_gt(kept, 0);
    convert_same_folders(whole, target);
}
END_TEST

START_TEST(torn_files_are_removed)
{
    write_source();
    fixture_context->options.cancel = stop_after;
    calls_left = 0;
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_CANCELLED, "cancel");
    touch("target/model.safetensors.4711-0.tmp");
    touch("target/kt_convert.json.4711-0.tmp");
    fixture_context->options.cancel = NULL;
    ck_assert_converts(source, target, KT_DTYPE_BF16, 0);
    ck_assert_int_eq(convert_entries(target), 2);
}
END_TEST

START_TEST(a_torn_record_stops_nobody)
{
    write_source();
    ck_assert_int_eq(mkdir(target, 0777), 0);
    touch("target/kt_convert.json.4711-0.tmp");
    touch("target/notes.tmp");
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_STATE, "not empty");
    ck_assert_int_eq(convert_entries(target), 2);
    ck_assert_int_eq(unlink(fixture_path("target/notes.tmp")), 0);
    ck_assert_converts(source, target, KT_DTYPE_BF16, 0);
    ck_assert_int_eq(convert_entries(target), 2);
}
END_TEST

static void interrupt(void)
{
    write_source();
    fixture_context->options.cancel = stop_after;
    calls_left = 0;
    ck_assert_int_eq(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_CANCELLED);
    fixture_context->options.cancel = NULL;
    ck_assert_int_eq(convert_entries(target), 1);
}

START_TEST(another_conversion_is_refused)
{
    interrupt();
    ck_assert_fails(convert_to(source, target, KT_DTYPE_I8, 0), KT_ERROR_STATE,
                    "another conversion that is not finished");
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), "to BF16"));
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 1), KT_ERROR_STATE, "not finished");
    ck_assert_fails(convert_to(convert_case("v3"), target, KT_DTYPE_BF16, 0), KT_ERROR_STATE,
                    source);
    ck_assert_int_eq(convert_entries(target), 1);
    ck_assert_converts(source, target, KT_DTYPE_BF16, 0);
}
END_TEST

START_TEST(a_source_that_changed_is_refused)
{
    interrupt();
    ((float *)tiny.tensors[0].data)[0] = 77;
    write_source();
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_STATE, "changed");
    fixture_write("target/kt_convert.json", "{", 1);
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_FORMAT,
                    "kt_convert.json");
}
END_TEST

START_TEST(another_file_in_the_folder_is_refused)
{
    interrupt();
    touch("target/model.safetensors");
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_STATE,
                    "target/model.safetensors: is not a file of this conversion");
    ck_assert_int_eq(convert_entries(target), 2);
    unlink(fixture_path("target/model.safetensors"));
    ck_assert_converts(source, target, KT_DTYPE_BF16, 0);
}
END_TEST

START_TEST(folders_in_use_are_refused)
{
    write_source();
    ck_assert_int_eq(mkdir(target, 0777), 0);
    touch("target/notes.txt");
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_STATE, "not empty");
    unlink(fixture_path("target/notes.txt"));
    int fd = open(target, O_RDONLY);
    ck_assert_int_eq(flock(fd, LOCK_EX), 0);
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_STATE,
                    "another conversion writes");
    close(fd);
    ck_assert_int_eq(convert_entries(target), 0);
    ck_assert_converts(source, target, KT_DTYPE_BF16, 0);
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_STATE,
                    "holds a complete checkpoint already");
}
END_TEST

START_TEST(the_source_is_no_target)
{
    char dotted[600];
    write_source();
    snprintf(dotted, sizeof dotted, "%s/./", source);
    ck_assert_fails(convert_to(source, dotted, KT_DTYPE_BF16, 0), KT_ERROR_INVALID_ARGUMENT,
                    "the checkpoint itself");
    ck_assert_int_eq(symlink("source", fixture_path("link")), 0);
    ck_assert_fails(convert_to(source, fixture_path("link"), KT_DTYPE_BF16, 0),
                    KT_ERROR_INVALID_ARGUMENT, "the checkpoint itself");
    ck_assert_int_eq(convert_entries(source), 2);
}
END_TEST

START_TEST(a_path_that_json_cannot_hold_is_refused)
{
    char latin[512];
    snprintf(latin, sizeof latin, "%s", fixture_path("caf\xe9"));
    write_source();
    ck_assert_int_eq(rename(source, latin), 0);
    ck_assert_refused(convert_to(latin, target, KT_DTYPE_I8, 0), KT_ERROR_INVALID_ARGUMENT,
                      "not UTF-8");
}
END_TEST

START_TEST(folders_that_cannot_be_made_are_refused)
{
    write_source();
    ck_assert_fails(convert_to(source, fixture_path("no/target"), KT_DTYPE_BF16, 0), KT_ERROR_IO,
                    "create the folder above it first");
    touch("file");
    ck_assert_fails(convert_to(source, fixture_path("file"), KT_DTYPE_BF16, 0), KT_ERROR_IO,
                    "/file: Not a directory");
    ck_assert_fails(convert_to(source, fixture_path("file/target"), KT_DTYPE_BF16, 0), KT_ERROR_IO,
                    "Not a directory");
    if (geteuid() != 0) {
        ck_assert_int_eq(mkdir(target, 0555), 0);
        ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_IO,
                        "Permission denied");
    }
}
END_TEST

/* A tensor of zeros that takes no room on the disk, but would in a copy. */
START_TEST(too_little_space_is_found_before_writing)
{
    struct statvfs info;
    ck_assert_int_eq(statvfs(fixture_folder, &info), 0);
    uint64_t bytes = ((uint64_t)info.f_bavail * info.f_frsize + (1 << 30)) / 4096 * 4096;
    char *header;
    size_t size;
    struct kt_tensor huge = {
        .name = "huge", .dtype = KT_DTYPE_U8, .ndim = 1, .shape = {(int64_t)bytes}, .bytes = bytes};
    tiny_write(&tiny);
    rename(fixture_path("config.json"), fixture_path("source/config.json"));
    rename(fixture_path("model.safetensors"), fixture_path("source/one.safetensors"));
    ck_assert_int_eq(kt_safetensors_header(fixture_context, "", &huge, 1, NULL, &header, &size),
                     KT_OK);
    fixture_write("source/two.safetensors", header, size);
    free(header);
    if (truncate(fixture_path("source/two.safetensors"), (off_t)(size + bytes)) != 0)
        return; /* a file system that has no such large files */
    json_t *map = json_pack("{s:s}", "huge", "two.safetensors");
    for (size_t i = 0; i < tiny.num; i++)
        json_object_set_new(map, tiny.tensors[i].name, json_string("one.safetensors"));
    json_t *index = json_pack("{s:o}", "weight_map", map);
    char *text = json_dumps(index, 0);
    fixture_write("source/model.safetensors.index.json", text, strlen(text));
    free(text);
    json_decref(index);
    ck_assert_refused(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_IO, "are needed");
}
END_TEST

static const struct damage {
    const char *name;
    kt_dtype to;
    float number;
    kt_status status;
    const char *sentence;
} damages[] = {
    {"model.layers.1.mlp.experts.2.up_proj.weight", KT_DTYPE_I8, NAN, KT_ERROR_NUMERIC, "NaN"},
    {"model.layers.1.mlp.experts.2.up_proj.weight", KT_DTYPE_F32, 3.4e38f, KT_OK, ""},
    {"model.layers.1.mlp.experts.2.up_proj.weight", KT_DTYPE_BF16, 3.4e38f, KT_ERROR_NUMERIC,
     "too large"},
    {"model.embed_tokens.weight", KT_DTYPE_F8_E4M3, INFINITY, KT_ERROR_NUMERIC, "infinity"},
    {"model.layers.2.eh_proj.weight", KT_DTYPE_F8_E4M3, NAN, KT_ERROR_NUMERIC, "NaN"},
    {"model.layers.2.self_attn.o_proj.weight", KT_DTYPE_F8_E4M3, NAN, KT_ERROR_NUMERIC, "NaN"},
};

/* Only whole files are left: none. */
START_TEST(damaged_numbers_are_named)
{
    const struct damage *d = &damages[_i];
    tiny_add(&tiny, "model.layers.2.eh_proj.weight", 8, 16);
    tiny_add(&tiny, "model.layers.2.self_attn.o_proj.weight", 8, 6);
    if (d->to == KT_DTYPE_F32)
        tiny_narrow(tiny_find(&tiny, "lm_head.weight"), KT_DTYPE_BF16);
    ((float *)tiny_find(&tiny, d->name)->data)[5] = d->number;
    if (d->to == KT_DTYPE_F32)
        tiny_narrow(tiny_find(&tiny, "model.layers.0.mlp.up_proj.weight"), KT_DTYPE_BF16);
    write_source();
    ck_assert_int_eq(convert_to(source, target, d->to, 0), d->status);
    if (d->status == KT_OK)
        return;
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), d->name));
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), d->sentence));
    ck_assert(!convert_has(target, "model.safetensors"));
    ck_assert_int_eq(convert_entries(target), 1);
}
END_TEST

START_TEST(damaged_checkpoints_are_named)
{
    write_source();
    ck_assert_int_eq(truncate(fixture_path("source/model.safetensors"), 9000), 0);
    ck_assert_refused(convert_to(source, target, KT_DTYPE_I8, 0), KT_ERROR_FORMAT, "truncated");
    tiny_set(&tiny, "quantization_config", "{\"quant_method\":\"kt\",\"bits\":8}");
    tiny_quantise(&tiny, "model.layers.0.self_attn.o_proj.weight", KT_DTYPE_I8, 1, 100);
    tiny_remove(&tiny, "model.layers.0.self_attn.o_proj.weight_scale");
    write_source();
    ck_assert_refused(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_NOT_FOUND,
                      "o_proj.weight_scale");
    ck_assert_refused(convert_to(fixture_path("no"), target, KT_DTYPE_I8, 0), KT_ERROR_NOT_FOUND,
                      "no");
}
END_TEST

/* In the layer that predicts further tokens nothing was checked when the model was loaded. */
START_TEST(scales_are_checked_in_layers_that_are_not_used)
{
    const char *name = "model.layers.2.self_attn.o_proj.weight";
    tiny_add(&tiny, name, 8, 6);
    tiny_set(&tiny, "quantization_config", "{\"quant_method\":\"kt\",\"bits\":8}");
    struct kt_tensor *scales = tiny_quantise(&tiny, name, KT_DTYPE_I8, 1, 100);
    ((float *)scales->data)[7] = _i ? NAN : -1;
    write_source();
    ck_assert_fails(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_NUMERIC,
                    "o_proj.weight_scale");
    tiny_remove(&tiny, "model.layers.2.self_attn.o_proj.weight_scale");
    write_source();
    unlink(fixture_path("target/kt_convert.json"));
    rmdir(target);
    ck_assert_refused(convert_to(source, target, KT_DTYPE_BF16, 0), KT_ERROR_NOT_FOUND, name);
}
END_TEST

START_TEST(what_cannot_be_converted_is_refused)
{
    kt_convert_options options;
    kt_context *ctx = fixture_context;
    write_source();
    ck_assert_refused(convert_to(source, target, KT_DTYPE_I4, 0), KT_ERROR_UNSUPPORTED,
                      "7 columns");
    ck_assert_refused(convert_to(source, target, KT_DTYPE_F32, 0), KT_ERROR_INVALID_ARGUMENT,
                      "nothing to convert");
    ck_assert_refused(convert_to(source, target, KT_DTYPE_F16, 0), KT_ERROR_INVALID_ARGUMENT,
                      "F16");
    ck_assert_refused(convert_to(source, target, 99, 0), KT_ERROR_INVALID_ARGUMENT, "to is 99");
    ck_assert_refused(convert_to(source, target, KT_DTYPE_I8, 2), KT_ERROR_INVALID_ARGUMENT,
                      "experts_only is 2");
    kt_convert_options_init(&options, sizeof options);
    options.size = 3;
    ck_assert_refused(kt_convert(ctx, source, target, &options), KT_ERROR_INVALID_ARGUMENT, "size");
    ck_assert_refused(kt_convert(ctx, NULL, target, NULL), KT_ERROR_INVALID_ARGUMENT, "NULL");
    ck_assert_refused(kt_convert(ctx, source, NULL, NULL), KT_ERROR_INVALID_ARGUMENT, "NULL");
    ck_assert_refused(convert_to(KT_REFERENCE_DIR "/gguf/qwen2.gguf", target, KT_DTYPE_I8, 0),
                      KT_ERROR_UNSUPPORTED, "GGUF");
    tiny_set(&tiny, "quantization_config",
             "{\"quant_method\":\"fp8\",\"weight_block_size\":[4,3]}");
    tiny_quantise(&tiny, "model.layers.0.self_attn.o_proj.weight", KT_DTYPE_F8_E4M3, 4, 3);
    write_source();
    ck_assert_refused(convert_to(source, target, KT_DTYPE_F8_E4M3, 0), KT_ERROR_UNSUPPORTED,
                      "to BF16 first");
}
END_TEST

START_TEST(small_files_are_copied)
{
    write_source();
    touch("source/tokenizer.json");
    touch("source/generation_config.json");
    touch("source/chat_template.jinja");
    touch("source/LICENSE-MODEL");
    touch("source/.hidden.json");
    touch("source/pytorch_model.bin");
    touch("source/pytorch_model.bin.index.json");
    touch("source/other.safetensors");
    ck_assert_int_eq(mkdir(fixture_path("source/folder.json"), 0777), 0);
    ck_assert_converts(source, target, KT_DTYPE_BF16, 0);
    ck_assert_int_eq(convert_entries(target), 2 + 4);
    ck_assert(convert_has(target, "chat_template.jinja") && convert_has(target, "LICENSE-MODEL"));
    size_t size;
    char *text = convert_read(target, "tokenizer.json", &size);
    ck_assert_str_eq(text, "x");
    free(text);
}
END_TEST

static uint64_t seen, most;

static void on_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)user;
    ck_assert_str_eq(what, "converting");
    ck_assert_uint_ge(done, seen);
    ck_assert_uint_le(done, total);
    seen = done;
    most = total;
}

START_TEST(progress_reaches_its_end)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < tiny.num; i++)
        bytes += tiny.tensors[i].bytes;
    write_source();
    fixture_context->options.progress = on_progress;
    ck_assert_converts(source, target, KT_DTYPE_I8, 0);
    ck_assert_uint_eq(most, bytes);
    ck_assert_uint_eq(seen, bytes);
}
END_TEST

static uint64_t stop_at, first;

static int32_t stop_at_bytes(void *user)
{
    (void)user;
    return seen >= stop_at;
}

static void keep_first(void *user, const char *what, uint64_t done, uint64_t total)
{
    on_progress(user, what, done, total);
    first = first ? first : done;
}

/* What is told first lies in the third shard, when the first two are there already. */
START_TEST(progress_begins_with_new_work)
{
    const char *from = convert_case("v3");
    fixture_context->options.progress = on_progress;
    ck_assert_converts(from, fixture_path("whole"), KT_DTYPE_I8, 0);
    char *path = kt_path_join(from, "model-00003-of-00003.safetensors");
    struct stat info;
    ck_assert_int_eq(stat(path, &info), 0);
    free(path);
    uint64_t last = (uint64_t)info.st_size;
    stop_at = most - last / 2;
    seen = 0;
    fixture_context->options.cancel = stop_at_bytes;
    ck_assert_int_eq(convert_to(from, target, KT_DTYPE_I8, 0), KT_ERROR_CANCELLED);
    ck_assert(convert_has(target, "model-00002-of-00003.safetensors"));
    seen = 0;
    fixture_context->options.cancel = NULL;
    fixture_context->options.progress = keep_first;
    ck_assert_converts(from, target, KT_DTYPE_I8, 0);
    ck_assert_uint_gt(first, most - last);
    ck_assert_uint_eq(seen, most);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("folder", .timeout = 60, .setup = setup, .teardown = teardown),
        TEST(interrupted_conversions_go_on),
        TEST(torn_files_are_removed),
        TEST(a_torn_record_stops_nobody),
        TEST(another_conversion_is_refused),
        TEST(a_source_that_changed_is_refused),
        TEST(another_file_in_the_folder_is_refused),
        TEST(folders_in_use_are_refused),
        TEST(the_source_is_no_target),
        TEST(a_path_that_json_cannot_hold_is_refused),
        TEST(folders_that_cannot_be_made_are_refused),
        TEST(too_little_space_is_found_before_writing),
        LOOP(damaged_numbers_are_named, sizeof damages / sizeof *damages),
        TEST(damaged_checkpoints_are_named),
        LOOP(scales_are_checked_in_layers_that_are_not_used, 2),
        TEST(what_cannot_be_converted_is_refused),
        TEST(small_files_are_copied),
        TEST(progress_reaches_its_end),
        TEST(progress_begins_with_new_work),
    };
    return RUN_TESTS("convert_folder", tests);
}
