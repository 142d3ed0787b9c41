/* SPDX-License-Identifier: Apache-2.0 */
#include <cairo.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "files.h"
#include "plot.h"

enum { WIDTH = 1200, HEIGHT = 800, LEFT = 112, RIGHT = 40, TOP = 84, BOTTOM = 88, FEW_POINTS = 60 };

static const double pi = 3.14159265358979323846;

struct colour {
    double r, g, b;
};

static const struct colour ink = {0.13, 0.15, 0.19}, quiet = {0.38, 0.41, 0.46},
                           grid = {0.90, 0.91, 0.93}, frame = {0.70, 0.72, 0.76},
                           light = {0.62, 0.77, 0.91}, strong = {0.09, 0.36, 0.66};

static void set_colour(cairo_t *c, struct colour colour)
{
    cairo_set_source_rgb(c, colour.r, colour.g, colour.b);
}

static double map_x(const struct chart *chart, double x)
{
    return LEFT + (x - chart->x.low) / (chart->x.high - chart->x.low) * (WIDTH - LEFT - RIGHT);
}

static double map_y(const struct chart *chart, double y)
{
    return HEIGHT - BOTTOM -
           (y - chart->y.low) / (chart->y.high - chart->y.low) * (HEIGHT - TOP - BOTTOM);
}

static void font(cairo_t *c, double size, cairo_font_weight_t weight)
{
    cairo_select_font_face(c, "sans-serif", CAIRO_FONT_SLANT_NORMAL, weight);
    cairo_set_font_size(c, size);
}

/* Text at (x, y) of its baseline; `anchor` 0 = begins, 0.5 = centred, 1 = ends there. */
static void text_at(cairo_t *c, double x, double y, double anchor, const char *text)
{
    cairo_text_extents_t extents;
    cairo_text_extents(c, text, &extents);
    cairo_move_to(c, x - anchor * extents.x_advance, y);
    cairo_show_text(c, text);
}

static void line(cairo_t *c, double x0, double y0, double x1, double y1)
{
    cairo_move_to(c, floor(x0) + 0.5, floor(y0) + 0.5);
    cairo_line_to(c, floor(x1) + 0.5, floor(y1) + 0.5);
    cairo_stroke(c);
}

static void draw_title(cairo_t *c, const struct chart *chart)
{
    cairo_text_extents_t extents;
    font(c, 28, CAIRO_FONT_WEIGHT_BOLD);
    cairo_text_extents(c, chart->title, &extents);
    double room = WIDTH - LEFT - RIGHT;
    if (extents.x_advance > room)
        cairo_set_font_size(c, fmax(8, 28 * room / extents.x_advance));
    set_colour(c, ink);
    text_at(c, LEFT + room / 2, TOP - 34, 0.5, chart->title);
}

static void draw_axes(cairo_t *c, const struct chart *chart)
{
    cairo_set_line_width(c, 1);
    font(c, 19, CAIRO_FONT_WEIGHT_NORMAL);
    for (int32_t i = 0; i < chart->y.num_ticks; i++) {
        double y = map_y(chart, chart->y.ticks[i]);
        set_colour(c, grid);
        line(c, LEFT, y, WIDTH - RIGHT, y);
        set_colour(c, quiet);
        text_at(c, LEFT - 12, y + 7, 1, chart->y.tick_labels[i]);
    }
    for (int32_t i = 0; i < chart->x.num_ticks; i++) {
        double x = map_x(chart, chart->x.ticks[i]);
        set_colour(c, grid);
        line(c, x, TOP, x, HEIGHT - BOTTOM);
        set_colour(c, quiet);
        text_at(c, x, HEIGHT - BOTTOM + 28, 0.5, chart->x.tick_labels[i]);
    }
    set_colour(c, frame);
    line(c, LEFT, TOP, LEFT, HEIGHT - BOTTOM);
    line(c, LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM);
}

static void draw_labels(cairo_t *c, const struct chart *chart)
{
    font(c, 21, CAIRO_FONT_WEIGHT_NORMAL);
    set_colour(c, ink);
    text_at(c, LEFT + (WIDTH - LEFT - RIGHT) / 2.0, HEIGHT - 22, 0.5, chart->x.label);
    cairo_save(c);
    cairo_translate(c, 34, TOP + (HEIGHT - TOP - BOTTOM) / 2.0);
    cairo_rotate(c, -pi / 2);
    text_at(c, 0, 0, 0.5, chart->y.label);
    cairo_restore(c);
}

static void draw_curve(cairo_t *c, const struct chart *chart, const double *values)
{
    bool joined = false;
    for (size_t i = 0; i < chart->num; i++) {
        bool here = isfinite(values[i]) && isfinite(chart->steps[i]);
        double x = map_x(chart, chart->steps[i]), y = map_y(chart, values[i]);
        if (here && joined)
            cairo_line_to(c, x, y);
        else if (here)
            cairo_move_to(c, x, y);
        joined = here;
    }
    cairo_stroke(c);
}

static void draw_points(cairo_t *c, const struct chart *chart)
{
    for (size_t i = 0; i < chart->num && chart->num <= FEW_POINTS; i++) {
        if (!isfinite(chart->values[i]) || !isfinite(chart->steps[i]))
            continue;
        cairo_arc(c, map_x(chart, chart->steps[i]), map_y(chart, chart->values[i]), 4, 0, 2 * pi);
        cairo_fill(c);
    }
}

static void draw_curves(cairo_t *c, const struct chart *chart)
{
    cairo_save(c);
    cairo_rectangle(c, LEFT - 5, TOP - 5, WIDTH - LEFT - RIGHT + 10, HEIGHT - TOP - BOTTOM + 10);
    cairo_clip(c);
    cairo_set_line_join(c, CAIRO_LINE_JOIN_ROUND);
    cairo_set_line_cap(c, CAIRO_LINE_CAP_ROUND);
    set_colour(c, light);
    cairo_set_line_width(c, 2);
    draw_curve(c, chart, chart->values);
    draw_points(c, chart);
    set_colour(c, strong);
    cairo_set_line_width(c, 3.5);
    draw_curve(c, chart, chart->smoothed);
    cairo_restore(c);
}

static void draw_legend(cairo_t *c)
{
    static const char *const names[] = {"original", "smoothed"};
    double width = 172, left = WIDTH - RIGHT - width - 16, top = TOP + 14;
    cairo_rectangle(c, left, top, width, 72);
    cairo_set_source_rgba(c, 1, 1, 1, 0.85);
    cairo_fill_preserve(c);
    set_colour(c, grid);
    cairo_set_line_width(c, 1);
    cairo_stroke(c);
    font(c, 19, CAIRO_FONT_WEIGHT_NORMAL);
    for (int i = 0; i < 2; i++) {
        double y = top + 24 + 28 * i;
        set_colour(c, i ? strong : light);
        cairo_set_line_width(c, i ? 3.5 : 2);
        cairo_move_to(c, left + 14, y);
        cairo_line_to(c, left + 50, y);
        cairo_stroke(c);
        set_colour(c, ink);
        text_at(c, left + 62, y + 7, 0, names[i]);
    }
}

static void draw(cairo_t *c, const struct chart *chart)
{
    cairo_set_source_rgb(c, 1, 1, 1);
    cairo_paint(c);
    draw_title(c, chart);
    draw_axes(c, chart);
    draw_labels(c, chart);
    draw_curves(c, chart);
    draw_legend(c);
}

struct bytes {
    unsigned char *data;
    size_t size, capacity;
};

static cairo_status_t append(void *to, const unsigned char *data, unsigned length)
{
    struct bytes *b = to;
    if (length > b->capacity - b->size) {
        b->capacity = 2 * b->capacity + length;
        b->data = app_resize(b->data, b->capacity, 1);
    }
    memcpy(b->data + b->size, data, length);
    b->size += length;
    return CAIRO_STATUS_SUCCESS;
}

char *chart_write_png(const struct chart *chart, const char *file)
{
    struct bytes png = {0};
    char *error = NULL;
    cairo_surface_t *surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, WIDTH, HEIGHT);
    cairo_t *c = cairo_create(surface);
    draw(c, chart);
    cairo_status_t status = cairo_status(c);
    if (status == CAIRO_STATUS_SUCCESS)
        status = cairo_surface_write_to_png_stream(surface, append, &png);
    if (status != CAIRO_STATUS_SUCCESS)
        error = app_text("cannot draw %s: %s", file, cairo_status_to_string(status));
    else if (file_write(file, png.data, png.size))
        error = app_text("cannot write %s: %m", file);
    free(png.data);
    cairo_destroy(c);
    cairo_surface_destroy(surface);
    return error;
}
