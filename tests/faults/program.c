/* SPDX-License-Identifier: Apache-2.0 */
/* The program kt with faults: KT_FAULT=KIND:N fails the N-th call of a kind (see interpose.h), and
 * KT_FAULT=KIND:0 writes how many there are into the file KT_FAULT_COUNT. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "interpose.h"

int kt_main(int argc, char **argv);

static void write_count(void)
{
    long total = fault_end();
    FILE *file = getenv("KT_FAULT_COUNT") ? fopen(getenv("KT_FAULT_COUNT"), "w") : NULL;
    if (file) {
        fprintf(file, "%ld\n", total);
        fclose(file);
    }
}

#undef main
int main(int argc, char **argv)
{
    char kind[16];
    long at;
    const char *fault = getenv("KT_FAULT");
    if (!fault || sscanf(fault, "%15[a-z]:%ld", kind, &at) != 2 ||
        fault_kind(kind) == FAULT_NUM_KINDS)
        return kt_main(argc, argv);
    atexit(write_count);
    fault_begin(fault_kind(kind), at);
    return kt_main(argc, argv);
}
