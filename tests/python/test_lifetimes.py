# SPDX-License-Identifier: Apache-2.0
"""Handles are closed in any order, views keep their memory, and nothing grows."""
import gc
import itertools
import random
import resource
import unittest
import weakref

from common import ADAPTER, CASES, MODEL, Case, Test, run

import kt

try:
    import numpy
except ImportError:
    numpy = None


class Lifetimes(Test):
    def test_any_order(self):
        names = ("ctx", "model", "lora", "executor", "batch")
        for order in itertools.permutations(names):
            case = Case()
            generator, optimizer = kt.Generator(case.executor), kt.Optimizer(case.lora)
            for name in order:
                getattr(case, name).close()
            generator.prompt([1, 2, 3])
            optimizer.step(1e-3)

    def test_children_work_without_their_parents(self):
        case = Case()
        want = case.executor.forward(case.batch)
        case.model.close()
        case.lora.close()
        case.ctx.close()
        self.assertEqual(case.executor.forward(case.batch), want)
        self.refuses(kt.Status.NOT_FOUND, kt.Optimizer(Case().lora).load, "/nonexistent")
        self.refuses(kt.Status.INVALID_ARGUMENT, case.batch.add, [])

    def test_callbacks_live_as_long_as_children(self):
        steps = []
        case = Case(progress=lambda *a: steps.append(a))
        case.ctx.close()
        del case.ctx
        gc.collect()
        case.executor.forward(case.batch)
        self.assertTrue(steps)

    def test_with(self):
        with kt.Context(1) as ctx, kt.Model(ctx, MODEL) as model:
            with kt.Lora(model) as lora, kt.Executor(model, lora) as executor:
                self.assertFalse(executor.closed)
        for handle in (ctx, model, lora, executor):
            self.assertTrue(handle.closed)

    def test_failed_constructors(self):
        """What was not made can be closed, and is collected."""
        with kt.Context(1) as ctx:
            for _ in range(100):
                self.refuses(kt.Status.NOT_FOUND, kt.Model, ctx, "/nonexistent")
        model = kt.Model.__new__(kt.Model)
        model.close()
        self.refuses(kt.Status.STATE, lambda: model.info)

    def test_views_keep_the_adapter(self):
        case = Case()
        tensor = next(iter(case.lora.tensors().values()))
        row, view, grad = tensor.data[1], memoryview(tensor.data), tensor.grad
        want = tensor.data.tobytes()
        used = case.ctx.memory_used
        case.lora.close()
        case.executor.close()
        del tensor
        gc.collect()
        self.assertGreater(case.ctx.memory_used, used // 4)
        self.assertEqual(bytes(view), want)
        self.assertEqual(bytes(row), want[len(row) * 4:len(row) * 8])
        grad[0][0] = 3.5
        del view, row, grad
        gc.collect()
        self.assertLess(case.ctx.memory_used, used // 4)

    @unittest.skipUnless(numpy, "numpy is not installed")
    def test_numpy_views_keep_the_adapter(self):
        case = Case()
        tensors = case.lora.tensors()
        name, tensor = next(iter(tensors.items()))
        part = tensor.numpy()[1:3].T
        capsule = numpy.from_dlpack(tensor.data)
        want = part.copy()
        case.lora.close()
        case.executor.close()
        del tensor, tensors
        gc.collect()
        self.assertTrue((part == want).all())
        self.assertTrue((capsule[1:3].T == want).all())
        used = case.ctx.memory_used
        del part, capsule
        gc.collect()
        self.assertLess(case.ctx.memory_used, used)
        again = kt.Lora.load(case.model, ADAPTER).tensors()[name]
        self.assertTrue((again.numpy()[1:3].T == want).all())

    def test_cycles_are_collected(self):
        """A callback that refers to its context."""
        case = Case()
        case.ctx.set_progress(lambda *_: case.ctx)
        gone = weakref.ref(case.ctx)
        del case
        gc.collect()
        self.assertIsNone(gone())

    def test_random_orders(self):
        random.seed(7)
        kinds = [
            lambda c: kt.Lora(c.model, rank=2), lambda c: kt.Batch(c.ctx),
            lambda c: kt.Executor(c.model, c.lora), lambda c: kt.Optimizer(c.lora),
            lambda c: kt.Generator(c.executor), lambda c: kt.Plan(c.executor, 20),
            lambda c: kt.Rule(c.ctx), lambda c: kt.Model(c.ctx, MODEL)]
        case, alive = Case(), []
        for _ in range(300):
            alive.append(random.choice(kinds)(case))
            while len(alive) > 10:
                alive.pop(random.randrange(len(alive))).close()
        self.assertGreater(case.executor.forward(case.batch).loss, 0)

    def test_nothing_grows(self):
        """Create, use and free, a thousand times over."""
        def resident():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def cycle():
            with kt.Context(1, progress=lambda *_: None) as ctx:
                model = kt.Model(ctx, CASES / "v3bf16/model")
                lora = kt.Lora.load(model, ADAPTER)
                tensors = lora.tensors()
                next(iter(tensors.values())).data.__dlpack__()
                batch = kt.Batch(ctx)
                batch.add([1, 2, 3], [1, 2, 3])
                kt.Executor(model, lora).forward(batch)

        for _ in range(100):
            cycle()
        before = resident()
        for _ in range(900):
            cycle()
        self.assertLess(resident() - before, 4096, "KiB more than after 100")


if __name__ == "__main__":
    run()
