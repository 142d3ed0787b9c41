/* SPDX-License-Identifier: Apache-2.0 */
#include <cairo.h>
#include <float.h>
#include <math.h>

#include "fixture.h"
#include "main.h"
#include "plot.h"

/* plot_loss with an error that is empty when there is none. */
static const char *plot(const char *name, const char *title, const double *steps,
                        const double *values, size_t num)
{
    static char error[256];
    char *told = plot_loss(fixture_path(name), title, "loss", steps, values, num);
    snprintf(error, sizeof error, "%s", told ? told : "");
    free(told);
    return error;
}

/* Columns of the picture in which the smoothed line's blue stands, first and last; both 0 = none.
 */
static void find_line(const char *name, int *first, int *last)
{
    cairo_surface_t *surface = cairo_image_surface_create_from_png(fixture_path(name));
    ck_assert_int_eq(cairo_surface_status(surface), CAIRO_STATUS_SUCCESS);
    int width = cairo_image_surface_get_width(surface);
    int height = cairo_image_surface_get_height(surface);
    ck_assert_int_ge(width, 900);
    ck_assert_int_ge(height, 600);
    *first = *last = 0;
    for (int x = 0; x < width * 3 / 4; x++) { /* the legend stands to the right of that */
        for (int y = 0; y < height; y++) {
            const unsigned char *pixel = cairo_image_surface_get_data(surface) +
                                         y * cairo_image_surface_get_stride(surface) + 4 * x;
            if (pixel[0] > 150 && pixel[2] < 40) {
                *first = *first ? *first : x;
                *last = x;
            }
        }
    }
    cairo_surface_destroy(surface);
}

START_TEST(losses_are_drawn)
{
    double steps[100], values[100];
    int first, last;
    for (int i = 0; i < 100; i++) {
        steps[i] = i + 1;
        values[i] = 3 * exp(-i / 30.0);
    }
    values[0] = NAN;
    values[50] = INFINITY;
    ck_assert_str_eq(plot("loss.png", "training loss", steps, values, 100), "");
    ck_assert_int_eq(fixture_files(0), 1);
    find_line("loss.png", &first, &last);
    ck_assert_int_gt(first, 50);
    ck_assert_int_lt(first, 200);
    ck_assert_int_gt(last, 890);
}
END_TEST

START_TEST(odd_losses_are_drawn_too)
{
    static const double steps[] = {5, 5, 7, 1e300}, big[] = {1.7e308, -1.7e308, 0, NAN};
    static const double equal[] = {2, 2, 2, 2}, none[] = {NAN, INFINITY, NAN, NAN};
    const double *const values[] = {big, equal, none};
    for (size_t i = 0; i < 3; i++)
        for (size_t num = 0; num <= 4; num++)
            ck_assert_str_eq(plot("loss.png", "", steps, values[i], num), "");
}
END_TEST

/* Numbers between which no double is a round step, on either axis; UndefinedBehaviorSanitizer sees
 * what the steps become. */
START_TEST(numbers_next_to_nothing_are_drawn)
{
    static const double rows[][4] = {{1e-323, 1e-323, 1e-323, 1e-323},
                                     {0, 5e-324, 1e-323, 0},
                                     {1e-320, 2e-310, -1e-315, DBL_MIN},
                                     {0, DBL_MIN, 4 * DBL_MIN, 3e-305},
                                     {NAN, NAN, NAN, NAN}};
    enum { ROWS = sizeof rows / sizeof *rows };
    static const double counted[] = {1, 2, 3, 4};
    for (size_t num = 1; num <= 4; num += 3) {
        for (size_t i = 0; i < ROWS; i++) {
            ck_assert_str_eq(plot("loss.png", "", counted, rows[i], num), "");
            ck_assert_str_eq(plot("loss.png", "", rows[(i + 1) % ROWS], rows[i], num), "");
        }
    }
}
END_TEST

/* Equal losses that are nearly zero stand in the middle of the picture like any equal losses. */
START_TEST(a_range_next_to_nothing_is_no_range)
{
    static const double steps[] = {1, 2, 3}, values[] = {1e-323, 1e-323, 1e-323};
    int first, last;
    ck_assert_str_eq(plot("loss.png", "", steps, values, 3), "");
    find_line("loss.png", &first, &last);
    ck_assert_int_gt(first, 50);
    ck_assert_int_gt(last, 890);
}
END_TEST

START_TEST(plots_that_cannot_be_made_are_errors)
{
    const double one = 1;
    const char *error = plot("no/p.png", "t", &one, &one, 1);
    ck_assert(strstr(error, "no/p.png: No such file or directory"));
    ck_assert(strstr(plot("p.png", "\xff", &one, &one, 1), "p.png: "));
    ck_assert_int_eq(fixture_files(0), 0);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("plot", .setup = fixture_setup, .teardown = fixture_teardown, .timeout = 60),
        TEST(losses_are_drawn),
        TEST(odd_losses_are_drawn_too),
        TEST(numbers_next_to_nothing_are_drawn),
        TEST(a_range_next_to_nothing_is_no_range),
        TEST(plots_that_cannot_be_made_are_errors),
    };
    return RUN_TESTS("plot", tests);
}
