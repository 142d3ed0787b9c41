# SPDX-License-Identifier: Apache-2.0
"""A host in Python (ctypes) that makes mistakes: each is answered by a status and a sentence, and the
interpreter lives on.

    host.py LIBKT_SO MODEL_DIR LIBKT_ABI
"""
import ctypes
import re
import sys
import threading

INVALID_ARGUMENT, NOT_FOUND, STATE, CANCELLED = -1, -6, -9, -8
kt = ctypes.CDLL(sys.argv[1])
model_dir = sys.argv[2].encode()
pointer = ctypes.c_void_p
for name in ("kt_last_error", "kt_status_string"):
    getattr(kt, name).restype = ctypes.c_char_p
kt.kt_last_error.argtypes = [pointer]
failures = 0


def expect(want, name, *args, ctx=None):
    """Calls a function; ctx is where its sentence is."""
    global failures
    got = getattr(kt, name)(*args)
    said = kt.kt_last_error(ctx).decode()  # malformed UTF-8 would raise
    if got != want or (want and not said):
        failures += 1
        print(f"{name}: {got} instead of {want}: {said!r}")


def read_prototypes(path):
    """Name, type of result and types of parameters of each function of tests/abi/libkt.abi."""
    for line in open(path):
        found = re.match(r"prototype (.*?)(kt_[a-z_0-9]+)\((.*)\)$", line)
        if found:
            parameters = [] if found[3] == "void" else found[3].split(", ")
            yield found[2], found[1].strip(), parameters


def zero(parameter):
    """NULL or 0 as that type."""
    if "*" in parameter or parameter.endswith("_callback"):
        return pointer()
    if parameter == "double":
        return ctypes.c_double(0)
    return ctypes.c_int32(0) if parameter in ("int32_t", "kt_status") else ctypes.c_uint64(0)


def call_with_nothing():
    """Every function there is, NULL and 0 in each place."""
    seen = 0
    for name, result, parameters in read_prototypes(sys.argv[3]):
        seen += 1
        arguments = [zero(p) for p in parameters]
        if result == "kt_status":
            expect(INVALID_ARGUMENT, name, *arguments)
        else:
            getattr(kt, name)(*arguments)
    assert seen > 90, seen


def call_with_handles(handles):
    """Every function that can fail and has nothing but its handle, which must live on."""
    for name, result, parameters in read_prototypes(sys.argv[3]):
        kind = re.match(r"(?:const )?kt_([a-z]+) \*$", parameters[0]) if parameters else None
        if result == "kt_status" and kind and kind[1] in handles:
            status = getattr(kt, name)(handles[kind[1]], *[zero(p) for p in parameters[1:]])
            if status and not kt.kt_last_error(ctx):
                expect(0, name + " without a sentence")


class LoraTensor(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("name", ctypes.c_char_p), ("rows", ctypes.c_int64),
                ("cols", ctypes.c_int64), ("data", ctypes.POINTER(ctypes.c_float)),
                ("grad", ctypes.POINTER(ctypes.c_float)), ("has_grad", ctypes.c_int32),
                ("reserved", ctypes.c_uint64 * 4)]


ctx, model, lora, executor, batch, optimizer = (pointer() for _ in range(6))
ids = (ctypes.c_int32 * 4)(1, 2, 3, 4)
expect(INVALID_ARGUMENT, "kt_context_create", None, None)
expect(INVALID_ARGUMENT, "kt_model_load", None, None, None, None)
expect(INVALID_ARGUMENT, "kt_executor_forward", None, None, 0, None)
call_with_nothing()
expect(0, "kt_context_create", None, ctypes.byref(ctx))
expect(INVALID_ARGUMENT, "kt_model_load", ctx, model_dir, None, None, ctx=ctx)
expect(NOT_FOUND, "kt_model_load", ctx, "/没有".encode(), None, ctypes.byref(model), ctx=ctx)
expect(0, "kt_model_load", ctx, model_dir, None, ctypes.byref(model), ctx=ctx)
expect(0, "kt_lora_create", model, None, ctypes.byref(lora), ctx=ctx)
expect(0, "kt_executor_create", model, lora, None, ctypes.byref(executor), ctx=ctx)
expect(0, "kt_batch_create", ctx, ctypes.byref(batch), ctx=ctx)
expect(0, "kt_optimizer_create", lora, None, ctypes.byref(optimizer), ctx=ctx)
call_with_handles({"context": ctx, "model": model, "lora": lora, "executor": executor, "batch": batch,
                   "optimizer": optimizer})
expect(0, "kt_batch_add", batch, ids, ids, ctypes.c_size_t(4), ctx=ctx)
expect(STATE, "kt_executor_backward", executor, None, ctx=ctx)
expect(INVALID_ARGUMENT, "kt_executor_forward", executor, batch, 1 << 9, None, ctx=ctx)


@ctypes.CFUNCTYPE(None, pointer, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64)
def on_progress(user, what, done, total):
    expect(STATE, "kt_executor_forward", executor, batch, 1, None, ctx=ctx)
    other = threading.Thread(target=lambda: expect(STATE, "kt_batch_clear", batch, ctx=ctx))
    other.start()
    other.join()
    if done == 1:
        kt.kt_context_cancel(ctx)


expect(0, "kt_context_set_progress", ctx, on_progress, None, ctx=ctx)
expect(CANCELLED, "kt_executor_forward", executor, batch, 1, None, ctx=ctx)
expect(0, "kt_context_set_progress", ctx, None, None, ctx=ctx)
expect(0, "kt_executor_forward", executor, batch, 1, None, ctx=ctx)
expect(0, "kt_executor_backward", executor, None, ctx=ctx)
tensor = LoraTensor()
expect(INVALID_ARGUMENT, "kt_lora_get_tensor", lora, ctypes.c_size_t(0), ctypes.byref(tensor), ctx=ctx)
tensor.size = ctypes.sizeof(tensor)
expect(0, "kt_lora_get_tensor", lora, ctypes.c_size_t(1), ctypes.byref(tensor), ctx=ctx)
expect(0, "kt_lora_touch", lora, ctx=ctx)
for free, handle in ((kt.kt_context_free, ctx), (kt.kt_model_free, model), (kt.kt_lora_free, lora),
                     (kt.kt_batch_free, batch), (kt.kt_executor_free, executor)):
    free(handle)
kt.kt_optimizer_step.argtypes = [pointer, ctypes.c_double, pointer]
expect(0, "kt_optimizer_step", optimizer, 1e-3, None)
kt.kt_optimizer_free(optimizer)
sys.exit(failures != 0)
