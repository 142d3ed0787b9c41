/* SPDX-License-Identifier: Apache-2.0 */
/* A whole file, or a header and, behind a form feed, data: mutations seldom hit upon its length. */
#include "formats/safetensors_header.h"
#include "fuzz.h"

static void parse(const uint8_t *bytes, size_t size)
{
    struct kt_tensor *tensors = NULL;
    size_t num = 0;
    if (!fuzz_ok(kt_safetensors_parse(fuzz_context(), "input", bytes, size, &tensors, &num)))
        return;
    for (size_t i = 0; i < num; i++) {
        const uint8_t *begin = tensors[i].data;
        fuzz_expect(tensors[i].bytes == 0 || (begin >= bytes && begin <= bytes + size &&
                                              tensors[i].bytes <= (size_t)(bytes + size - begin)),
                    "a tensor outside of the file");
    }
    kt_tensors_free(tensors, num);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || data[0] != '{') {
        parse(data, size);
        return 0;
    }
    size_t length;
    char *header = fuzz_text(&data, &size, &length);
    uint8_t *file = malloc(8 + length + size);
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)((uint64_t)length >> (8 * i));
    memcpy(file + 8, header, length);
    memcpy(file + 8 + length, data, size);
    parse(file, 8 + length + size);
    free(file);
    free(header);
    return 0;
}
