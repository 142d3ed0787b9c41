/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/json.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kt_context *ctx = fuzz_context();
    for (int dialect = KT_JSON_STRICT; dialect <= KT_JSON_DATA; dialect++) {
        json_t *root = NULL, *again = NULL;
        char *text = NULL;
        kt_status status = kt_json_parse(ctx, "input", 1, (const char *)data, size,
                                         (enum kt_json_dialect)dialect, &root);
        if (!fuzz_ok(status))
            continue;
        if (fuzz_ok(kt_json_encode(ctx, "input", root, JSON_ENCODE_ANY, &text))) {
            status = kt_json_parse(ctx, "again", 1, text, strlen(text), KT_JSON_STRICT, &again);
            fuzz_expect(status == KT_OK && json_equal(root, again), "written it is another value");
        }
        json_decref(again);
        free(text);
        json_decref(root);
    }
    return 0;
}
