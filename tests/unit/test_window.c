/* SPDX-License-Identifier: Apache-2.0 */
/* A window of units in memory: in which order they are read and given up, and that pages, errors
 * and cancellation follow. */
#include <fcntl.h>
#include <sys/mman.h>

#include "executor/recent.h"
#include "executor/window.h"
#include "fixture.h"
#include "formats/safetensors.h"
#include "main.h"

enum { UNITS = 8, UNIT_BYTES = 5 << 20 }; /* more than a piece */

/* -- the order --------------------------------------------------------------------------------- */

struct world {
    uint64_t bytes[UNITS];
    bool held[UNITS];
    struct kt_walk_state state;
    int reads;
};

static void begin(struct world *w, uint64_t budget)
{
    *w = (struct world){.state = {.num = UNITS, .budget = budget}};
    w->state.bytes = w->bytes;
    w->state.held = w->held;
    for (int u = 0; u < UNITS; u++)
        w->bytes[u] = 1;
}

static int num_held(const struct world *w)
{
    int num = 0;
    for (int u = 0; u < UNITS; u++)
        num += w->held[u];
    return num;
}

/** Enters a unit and does all there is to do meanwhile. */
static void enter(struct world *w, enum kt_walk walk, int32_t at)
{
    w->state.walk = walk;
    w->state.at = at;
    for (int i = 0;; i++) {
        struct kt_walk_move move = kt_walk_next(&w->state);
        ck_assert_int_lt(i, 4 * UNITS);
        if (move.what == KT_WALK_WAIT)
            break;
        ck_assert_int_eq(w->held[move.unit], move.what == KT_WALK_DROP);
        ck_assert(move.what == KT_WALK_READ || move.unit != at);
        w->held[move.unit] = move.what == KT_WALK_READ;
        w->reads += move.what == KT_WALK_READ;
        ck_assert_int_le(num_held(w), (int)w->state.budget);
    }
    ck_assert(w->held[at]);
}

static void walk_up(struct world *w, enum kt_walk walk)
{
    for (int u = 0; u < UNITS; u++)
        enter(w, walk, u);
}

static void walk_down(struct world *w)
{
    for (int u = UNITS - 1; u >= 0; u--)
        enter(w, KT_WALK_DOWN_UP, u);
}

static void expect_held(const struct world *w, const char *units)
{
    for (int u = 0; u < UNITS; u++)
        ck_assert_msg(w->held[u] == (units[u] == '1'), "unit %d", u);
}

START_TEST(a_step_reads_what_does_not_fit_twice)
{
    struct world w;
    begin(&w, 3);
    walk_up(&w, KT_WALK_UP_DOWN);
    expect_held(&w, "00000111"); /* what backward begins with */
    walk_down(&w);
    expect_held(&w, "11100000"); /* what the next forward begins with */
    for (int step = 0; step < 3; step++) {
        w.reads = 0;
        walk_up(&w, KT_WALK_UP_DOWN);
        ck_assert_int_eq(w.reads, UNITS - 3);
        walk_down(&w);
        ck_assert_int_eq(w.reads, 2 * (UNITS - 3));
    }
}
END_TEST

START_TEST(reading_is_ahead_of_use)
{
    struct world w;
    begin(&w, 3);
    enter(&w, KT_WALK_UP_DOWN, 0);
    expect_held(&w, "11100000");
    enter(&w, KT_WALK_UP_DOWN, 1);
    expect_held(&w, "01110000");
    walk_up(&w, KT_WALK_UP_DOWN);
    enter(&w, KT_WALK_DOWN_UP, 7);
    expect_held(&w, "00000111");
    enter(&w, KT_WALK_DOWN_UP, 6);
    expect_held(&w, "00001110");
}
END_TEST

START_TEST(a_circle_keeps_what_it_can)
{
    struct world w;
    begin(&w, 5);
    for (int pass = 0; pass < 4; pass++) {
        w.reads = 0;
        walk_up(&w, KT_WALK_UP_UP);
    }
    ck_assert_int_le(w.reads, UNITS - (5 - 2)); /* all but one in use and one ahead */
}
END_TEST

START_TEST(what_fits_is_read_once)
{
    struct world w;
    begin(&w, UNITS);
    for (int step = 0; step < 3; step++) {
        walk_up(&w, KT_WALK_UP_DOWN);
        walk_down(&w);
        walk_up(&w, KT_WALK_UP_UP);
    }
    ck_assert_int_eq(w.reads, UNITS);
}
END_TEST

START_TEST(the_unit_in_use_is_read_however_large)
{
    struct world w;
    begin(&w, 3);
    w.bytes[4] = 100;
    w.bytes[5] = 0; /* another device's */
    w.state.walk = KT_WALK_UP_DOWN;
    w.state.at = 4;
    w.held[2] = true;
    ck_assert_int_eq(kt_walk_next(&w.state).what, KT_WALK_DROP);
    w.held[2] = false;
    ck_assert_int_eq(kt_walk_next(&w.state).what, KT_WALK_READ);
    ck_assert_int_eq(kt_walk_next(&w.state).unit, 4);
    w.held[4] = true;
    ck_assert_int_eq(kt_walk_next(&w.state).what, KT_WALK_WAIT);
}
END_TEST

START_TEST(what_was_used_last_stays)
{
    struct kt_recent recent;
    ck_assert_int_eq(kt_recent_create(NULL, 4, &recent), KT_OK);
    for (int thing = 0; thing < 3; thing++) {
        kt_recent_begin(&recent);
        ck_assert(!kt_recent_use(&recent, thing, 10));
    }
    kt_recent_begin(&recent);
    ck_assert(kt_recent_use(&recent, 0, 10));
    ck_assert(!kt_recent_use(&recent, 3, 10));
    ck_assert_int_eq(kt_recent_drop(&recent, 40), -1);
    ck_assert_int_eq(kt_recent_drop(&recent, 30), 1);
    ck_assert_int_eq(kt_recent_drop(&recent, 30), -1);
    ck_assert_int_eq(kt_recent_drop(&recent, 0), 2);
    ck_assert_int_eq(kt_recent_drop(&recent, 0), -1); /* those of this round */
    ck_assert(!kt_recent_use(&recent, 1, 10));
    kt_recent_free(&recent);
}
END_TEST

/* -- pages ------------------------------------------------------------------------------------- */

static struct kt_checkpoint *checkpoint;
static struct kt_window *window;
static struct kt_range ranges[UNITS];
static struct kt_ranges units[UNITS];

static void write_checkpoint(void)
{
    static const char *const names[UNITS] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    struct kt_tensor tensors[UNITS];
    char *zeros = calloc(1, UNIT_BYTES);
    for (int u = 0; u < UNITS; u++)
        tensors[u] = (struct kt_tensor){.name = names[u],
                                        .dtype = KT_DTYPE_U8,
                                        .ndim = 1,
                                        .shape = {UNIT_BYTES},
                                        .data = zeros,
                                        .bytes = UNIT_BYTES};
    ck_assert_int_eq(kt_safetensors_write(fixture_context, fixture_path("model.safetensors"),
                                          tensors, UNITS, NULL),
                     KT_OK);
    free(zeros);
}

static void open_window(void)
{
    fixture_setup();
    write_checkpoint();
    int fd = open(fixture_path("model.safetensors"), O_RDONLY);
    ck_assert_int_ge(fd, 0);
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    ck_assert_int_eq(kt_checkpoint_open(fixture_context, fixture_folder, &checkpoint), KT_OK);
    ck_assert_int_eq(kt_window_create(checkpoint, UNITS, &window), KT_OK);
    for (int u = 0; u < UNITS; u++) {
        const char *data = checkpoint->tensors[u].data;
        ranges[u] = (struct kt_range){data, data + UNIT_BYTES};
        units[u] = (struct kt_ranges){&ranges[u], 1, UNIT_BYTES};
    }
}

static void close_window(void)
{
    kt_window_free(window);
    kt_checkpoint_close(checkpoint);
    fixture_teardown();
}

/** Whole pages of a unit that are in memory, as a part of them. */
static double part_in_memory(int unit)
{
    static unsigned char pages[UNIT_BYTES / 4096];
    const char *begin = (const char *)(((uintptr_t)ranges[unit].begin + 4095) / 4096 * 4096);
    size_t num = (size_t)(ranges[unit].end - begin) / 4096, there = 0;
    ck_assert_int_eq(mincore((void *)(uintptr_t)begin, num * 4096, pages), 0);
    for (size_t i = 0; i < num; i++)
        there += pages[i] & 1;
    return (double)there / (double)num;
}

static void enter_unit(enum kt_walk walk, int unit)
{
    ck_assert_int_eq(kt_window_enter(window, units, walk, unit, 3 * UNIT_BYTES), KT_OK);
    ck_assert(kt_window_holds(window, unit));
    /* the system may give up pages beside those that it is told to, as far as it keeps them
     * together */
    ck_assert_double_gt(part_in_memory(unit), 0.99);
}

/** Until the thread has done what it can. */
static void expect_soon(const char *expected)
{
    bool all = false;
    for (int i = 0; i < 1000 && !all; i++) {
        all = true;
        for (int u = 0; u < UNITS; u++)
            all = all && kt_window_holds(window, u) == (expected[u] == '1');
        if (!all)
            usleep(10000);
    }
    ck_assert(all);
}

START_TEST(pages_follow_the_walk)
{
    for (int u = 0; u < UNITS; u++)
        enter_unit(KT_WALK_UP_DOWN, u);
    expect_soon("00000111");
    for (int u = UNITS - 1; u >= 0; u--)
        enter_unit(KT_WALK_DOWN_UP, u);
    expect_soon("11100000");
}
END_TEST

START_TEST(pages_are_given_up)
{
    enter_unit(KT_WALK_UP_DOWN, 0);
    expect_soon("11100000");
    enter_unit(KT_WALK_UP_DOWN, 4); /* another walk: what was read is of less use */
    expect_soon("00001110");
    for (int u = 0; u < 3; u++)
        ck_assert_double_lt(part_in_memory(u), 0.5); /* the system reads ahead of a fault */
}
END_TEST

START_TEST(files_are_read_through_a_buffer)
{
    checkpoint->files[0].reads_ahead = _i;
    enter_unit(KT_WALK_UP_DOWN, 0);
    expect_soon("11100000");
    ck_assert_double_eq(part_in_memory(2), 1);
}
END_TEST

static void expect_unreadable(kt_status status)
{
    ck_assert_int_eq(status, KT_ERROR_IO);
    ck_assert_msg(strstr(kt_last_error(fixture_context), "model.safetensors: ") != NULL, "%s",
                  kt_last_error(fixture_context));
}

START_TEST(a_truncated_file_is_an_error)
{
    uint64_t left = (uint64_t)(ranges[1].begin - (const char *)checkpoint->files[0].map) + 8192;
    checkpoint->files[0].reads_ahead = _i;
    ck_assert_int_eq(truncate(fixture_path("model.safetensors"), (off_t)left), 0);
    enter_unit(KT_WALK_UP_DOWN, 0);
    for (int i = 0; i < 2; i++)
        expect_unreadable(
            kt_window_enter(window, units, KT_WALK_UP_DOWN, 1, 3 * (uint64_t)UNIT_BYTES));
    expect_unreadable(kt_window_read(checkpoint, &(struct kt_ranges){&ranges[3], 2, 0}));
    enter_unit(KT_WALK_UP_DOWN, 0);
}
END_TEST

START_TEST(an_unreadable_page_names_its_tensor)
{
    uint64_t left = (uint64_t)(ranges[1].begin - (const char *)checkpoint->files[0].map) + 8192;
    ck_assert_int_eq(truncate(fixture_path("model.safetensors"), (off_t)left), 0);
    checkpoint->files[0].size = left; /* the file is as it was, as far as this looks */
    expect_unreadable(kt_window_enter(window, units, KT_WALK_UP_DOWN, 1, 3 * (uint64_t)UNIT_BYTES));
    ck_assert_msg(strstr(kt_last_error(fixture_context), "tensor \"b\"") != NULL, "%s",
                  kt_last_error(fixture_context));
    checkpoint->files[0].size =
        (uint64_t)(ranges[UNITS - 1].end - (const char *)checkpoint->files[0].map);
}
END_TEST

START_TEST(waiting_can_be_cancelled)
{
    kt_context_cancel(fixture_context);
    ck_assert_int_eq(kt_window_enter(window, units, KT_WALK_UP_DOWN, 0, 3 * (uint64_t)UNIT_BYTES),
                     KT_ERROR_CANCELLED);
    enter_unit(KT_WALK_UP_DOWN, 3);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("walk"),
        TEST(a_step_reads_what_does_not_fit_twice),
        TEST(reading_is_ahead_of_use),
        TEST(a_circle_keeps_what_it_can),
        TEST(what_fits_is_read_once),
        TEST(the_unit_in_use_is_read_however_large),
        TEST(what_was_used_last_stays),
        GROUP("window", .setup = open_window, .teardown = close_window),
        TEST(pages_follow_the_walk),
        TEST(pages_are_given_up),
        LOOP(files_are_read_through_a_buffer, 2),
        LOOP(a_truncated_file_is_an_error, 2),
        TEST(an_unreadable_page_names_its_tensor),
        TEST(waiting_can_be_cancelled),
    };
    return RUN_TESTS("window", tests);
}
