# SPDX-License-Identifier: Apache-2.0
"""Arrays in and out: buffers, numpy, DLPack."""
import array
import ctypes
import gc
import unittest

from common import Case, Test, flat, run

import kt
from kt import arrays

try:
    import numpy
except ImportError:
    numpy = None


class Arrays(Test):
    def setUp(self):
        self.case = Case()
        self.tensor = next(iter(self.case.lora.tensors().values()))

    def test_ids(self):
        """Every kind of integers gives the same batch."""
        kinds = [[1, 2, 3], (1, 2, 3), range(1, 4), array.array("i", [1, 2, 3]),
                 array.array("q", [1, 2, 3]), array.array("B", [1, 2, 3]),
                 memoryview(array.array("i", [1, 2, 3])), (ctypes.c_int32 * 3)(1, 2, 3),
                 (ctypes.c_int64 * 3)(1, 2, 3), memoryview(array.array("i", [1, 0, 2, 0, 3]))[::2]]
        if numpy:
            kinds += [numpy.array([1, 2, 3], dtype) for dtype in ("i4", "i8", "u2", ">i4")]
            kinds += [numpy.array([1, 0, 2, 0, 3])[::2], [numpy.int64(1), 2, 3]]
        for ids in kinds:
            batch = kt.Batch(self.case.ctx)
            batch.add(ids, ids)
            batch.add(ids)
            self.assertEqual(list(batch.input_ids), [1, 2, 3, 1, 2, 3])
            self.assertEqual(list(batch.labels), [1, 2, 3] + [kt.IGNORE_LABEL] * 3)
            self.assertEqual(list(batch.cu_seqlens), [0, 3, 6])
            self.assertEqual((len(batch), batch.num_tokens, batch.num_targets), (2, 6, 3))

    def test_copies_are_apart(self):
        batch = self.case.batch
        ids = batch.input_ids
        ids[0] += 1
        self.assertNotEqual(ids, batch.input_ids)
        self.case.executor.forward(batch)
        logprobs = self.case.executor.logprobs
        before = logprobs.tolist()
        batch.clear()
        self.case.executor.close()
        gc.collect()
        self.assertEqual(logprobs.tolist(), before)

    def test_dlogprobs(self):
        """Every kind of numbers gives the same gradients."""
        case, n = self.case, self.case.batch.num_tokens
        values = array.array("f", [i / 64 - 0.25 for i in range(n)])
        kinds = [values, list(values), array.array("d", values), (ctypes.c_float * n)(*values),
                 memoryview(values)]
        if numpy:
            kinds += [numpy.array(values, "f4"), numpy.array(values, "f8")]
        seen = set()
        for dlogprobs in kinds:
            case.lora.zero_grad()
            case.executor.forward(case.batch, kt.ForwardMode.CUSTOM)
            case.executor.backward(dlogprobs)
            seen.add(self.tensor.grad.tobytes())
        self.assertEqual(len(seen), 1)
        case.executor.forward(case.batch, "custom")
        case.executor.backward(case.executor.logprobs)

    def test_matrix(self):
        data = self.tensor.data
        self.assertIsInstance(data, kt.Floats)
        rows, cols = self.tensor.shape
        self.assertEqual((data.shape, len(data), len(data[0])), ((rows, cols), rows, cols))
        self.assertEqual([x for row in data.tolist() for x in row], list(flat(data)))
        data[1][2] = 0.5
        self.assertEqual(self.tensor.data[1][2], 0.5)
        with self.assertRaises(IndexError):
            data[rows]
        view = memoryview(data)
        self.assertEqual((view.shape, view.readonly, view.itemsize), ((rows, cols), False, 4))
        view.cast("B").cast("f")[cols + 2] = 0.25
        self.assertEqual(data[1][2], 0.25)

    def test_writes_count(self):
        """A value written in place changes what is computed."""
        case = self.case
        before = case.executor.forward(case.batch).loss
        for row in self.tensor.data:
            for i in range(len(row)):
                row[i] *= 3
        case.lora.touch()
        self.assertNotEqual(case.executor.forward(case.batch).loss, before)

    def test_gradients(self):
        case, tensor = self.case, self.tensor
        self.assertFalse(tensor.has_grad)
        case.executor.forward(case.batch)
        case.executor.backward()
        self.assertTrue(tensor.has_grad)
        self.assertTrue(any(flat(tensor.grad)))
        case.lora.zero_grad()
        self.assertFalse(tensor.has_grad or any(flat(tensor.grad)))
        tensor.grad[0][0] = 1.0
        tensor.has_grad = True
        self.assertEqual(kt.Optimizer(case.lora).step(0.0), 1.0)

    def test_capsule_that_nobody_takes(self):
        for _ in range(10):
            self.tensor.data.__dlpack__()
        gc.collect()
        self.assertEqual(arrays._exported, {})
        self.assertEqual(self.tensor.data.__dlpack_device__(), (1, 0))
        for options in ({"stream": 1}, {"dl_device": (2, 0)}):
            with self.assertRaises(BufferError):
                self.tensor.data.__dlpack__(**options)

    @unittest.skipUnless(numpy, "numpy is not installed")
    def test_numpy(self):
        data = self.tensor.data
        for made in (self.tensor.numpy(), numpy.asarray(data), data.numpy()):
            self.assertEqual((made.dtype, made.shape), (numpy.float32, self.tensor.shape))
            self.assertEqual(made.ctypes.data, ctypes.addressof(data))
        self.tensor.numpy()[2] = 0.125
        self.assertEqual(set(data[2]), {0.125})
        if hasattr(numpy, "from_dlpack"):
            made = numpy.from_dlpack(data)
            self.assertEqual(made.ctypes.data, ctypes.addressof(data))
            self.assertEqual((made.dtype, made.shape), (numpy.float32, self.tensor.shape))
            del made
            gc.collect()
            self.assertEqual(arrays._exported, {})
        self.case.executor.forward(self.case.batch)
        logprobs = self.case.executor.logprobs.numpy()
        self.assertEqual(logprobs.shape, (self.case.batch.num_tokens,))


if __name__ == "__main__":
    run()
