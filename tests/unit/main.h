/* SPDX-License-Identifier: Apache-2.0 */
/** \file main.h
 * A program of Check's tests: main is a table of them and RUN_TESTS. */
#ifndef KT_TESTS_MAIN_H
#define KT_TESTS_MAIN_H

#include <check.h>
#include <stdlib.h>

/** Under AddressSanitizer tests of products take some ten times as long, so they look at a part of
 * their shapes there; the release build looks at all. */
#ifdef __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/** A row of the table: a test, or the beginning of a group. */
struct test {
    const TTest *run;
    int begin, end; /**< _i goes from begin to end - 1 */
    const char *group;
    int timeout; /**< of each of the group's tests, in seconds; 0 is Check's own */
    SFun setup, teardown;
};

#define TEST(name) LOOP_FROM(name, 0, 1)
#define LOOP(name, count) LOOP_FROM(name, 0, count)
#define LOOP_FROM(name, first, past_last)                                                          \
    {                                                                                              \
        .run = (name), .begin = (first), .end = (int)(past_last)                                   \
    }

/** The rows after it, up to the next GROUP, share a timeout and a fixture. */
#define GROUP(name, ...)                                                                           \
    {                                                                                              \
        .group = (name), __VA_ARGS__                                                               \
    }

#define RUN_TESTS(name, table) run_tests(name, table, sizeof(table) / sizeof *(table))

static TCase *begin_group(Suite *suite, const char *name, const struct test *options)
{
    TCase *group = tcase_create(name);
    if (options->timeout)
        tcase_set_timeout(group, options->timeout);
    if (options->setup)
        tcase_add_checked_fixture(group, options->setup, options->teardown);
    suite_add_tcase(suite, group);
    return group;
}

/* Tests before the first GROUP are in one named like the program. */
static int run_tests(const char *name, const struct test *tests, size_t num_tests)
{
    Suite *suite = suite_create(name);
    TCase *group = NULL;
    for (size_t i = 0; i < num_tests; i++) {
        if (!group || tests[i].group)
            group = begin_group(suite, tests[i].group ? tests[i].group : name, &tests[i]);
        if (tests[i].run)
            tcase_add_loop_test(group, tests[i].run, tests[i].begin, tests[i].end);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
