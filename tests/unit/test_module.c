/* SPDX-License-Identifier: Apache-2.0 */
/* Devices in modules: one that works, and all that can be wrong with one. */
#include "backends/module.h"

#include "backends/registry.h"
#include "fixture.h"
#include "main.h"

START_TEST(a_device_of_a_module_is_opened)
{
    kt_context *ctx = fixture_context;
    struct kt_device *dev;
    void *memory;
    uint64_t before = kt_context_memory_used(ctx);
    ck_assert_int_eq(kt_module_open(ctx, KT_MODULE_DIR, "tiny:0", &dev), KT_OK);
    ck_assert_str_eq(dev->ops->name, "tiny");
    ck_assert_ptr_nonnull(strstr(fixture_log, "tiny opened, with"));
    ck_assert_int_eq(dev->ops->alloc(dev, KT_MEMORY_DEVICE, 1000, "memory", &memory), KT_OK);
    ck_assert_uint_ge(kt_context_memory_used(ctx), before + 1000);
    dev->ops->free(dev, KT_MEMORY_DEVICE, memory);
    kt_device_close(dev);
    ck_assert_uint_eq(kt_context_memory_used(ctx), before);
}
END_TEST

START_TEST(what_is_wrong_with_a_module_is_said)
{
    kt_context *ctx = fixture_context;
    struct kt_device *dev;
    ck_assert_fails(kt_module_open(ctx, KT_MODULE_DIR, "tiny:1", &dev), KT_ERROR_NOT_FOUND,
                    "there is one tiny device, not 2");
    ck_assert_fails(kt_module_open(ctx, KT_MODULE_DIR, "old", &dev), KT_ERROR_NOT_FOUND,
                    "built for another version of libkt");
    ck_assert_fails(kt_module_open(ctx, KT_MODULE_DIR, "strange", &dev), KT_ERROR_NOT_FOUND,
                    "kt_backend_module");
    ck_assert_fails(kt_module_open(ctx, fixture_folder, "tiny", &dev), KT_ERROR_NOT_FOUND,
                    fixture_folder);
    fixture_write("libkt-text.so", "not a library", 13);
    ck_assert_fails(kt_module_open(ctx, fixture_folder, "text", &dev), KT_ERROR_NOT_FOUND,
                    "libkt-text.so");
    ck_assert_ptr_null(dev);
}
END_TEST

START_TEST(the_registry_asks_for_a_module)
{
    struct kt_device *dev;
    ck_assert_fails(kt_device_open(fixture_context, "cuda:1", &dev), KT_ERROR_NOT_FOUND,
                    "device \"cuda:1\": no \"cuda\" backend here");
    ck_assert_fails(kt_device_open(fixture_context, "cuda:x", &dev), KT_ERROR_NOT_FOUND,
                    "\"cuda:x\"");
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("module", .setup = fixture_setup, .teardown = fixture_teardown),
        TEST(a_device_of_a_module_is_opened),
        TEST(what_is_wrong_with_a_module_is_said),
        TEST(the_registry_asks_for_a_module),
    };
    return RUN_TESTS("module", tests);
}
