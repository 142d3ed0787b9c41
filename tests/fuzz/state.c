/* SPDX-License-Identifier: Apache-2.0 */
/* A container of named sections, as an optimizer's state. */
#include "formats/zstd_file.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"step", "m", ""};
    static uint8_t bytes[1 << 16];
    struct kt_zstd_file *file = NULL;
    const char *path = fuzz_file("optimizer.zst", data, size);
    if (!fuzz_ok(kt_zstd_open(fuzz_context(), path, "optimizer", 1, &file)))
        return 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        uint64_t num = 0;
        bool there = kt_zstd_has(file, names[i], &num);
        if (num <= sizeof bytes)
            fuzz_expect(!fuzz_ok(kt_zstd_read(file, names[i], bytes, num)) || there,
                        "a section that is not there");
    }
    kt_zstd_close(file);
    return 0;
}
