/* SPDX-License-Identifier: Apache-2.0 */
#include "profile.h"

#include <stdio.h>
#include <string.h>

enum { OPERATIONS = 8, CELL = 16 }; /* of a resource, the longest */

typedef void (*print_fn)(const char *format, ...);

/* A number, or nothing where it is not known. */
static const char *cell(char text[CELL], double value, int digits)
{
    text[0] = 0;
    if (value > 0)
        snprintf(text, CELL, "%.*f", digits, value);
    return text;
}

static void print_line(print_fn print, const kt_trace_row *row, const kt_trace_row *phase)
{
    char each[CELL], busy[CELL], bytes[CELL], flops[CELL];
    bool is_memory = !strcmp(row->resource, "host memory");
    double during = is_memory ? phase->seconds : row->seconds;
    double rate = during > 0 ? 1 / during : 0;
    print("  %-28s %9llu %9s %6s %8s %8s\n", row->operation ? row->operation : row->resource,
          (unsigned long long)row->count, cell(each, 1e3 * row->seconds / (double)phase->count, 3),
          cell(busy, phase->seconds > 0 ? 100 * row->seconds / phase->seconds : 0, 1),
          cell(bytes, 1e-9 * rate * row->bytes, 1), cell(flops, 1e-12 * rate * row->flops, 2));
}

static void print_phase(print_fn print, const kt_trace_row *row)
{
    print("\n%s: %llu calls, %.3f s, %.3f ms a call\n", row->phase, (unsigned long long)row->count,
          row->seconds, 1e3 * row->seconds / (double)row->count);
    print("  %-28s %9s %9s %6s %8s %8s\n", "", "count", "ms a call", "busy %", "GB/s", "TFLOP/s");
}

void profile_print(const kt_trace *trace, print_fn print)
{
    kt_trace_row phase = {0};
    int operations = 0;
    for (size_t i = 0; i < kt_trace_num_rows(trace); i++) {
        kt_trace_row row = {.size = sizeof row};
        char name[64];
        if (kt_trace_get_row(trace, i, &row) != KT_OK)
            return;
        operations = row.operation ? operations + 1 : 0;
        if (!row.resource) {
            phase = row;
            print_phase(print, &row);
        } else if (operations <= OPERATIONS) {
            if (row.operation) {
                snprintf(name, sizeof name, "  %s", row.operation);
                row.operation = name;
            }
            print_line(print, &row, &phase);
        }
    }
}
