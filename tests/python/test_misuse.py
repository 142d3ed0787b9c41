# SPDX-License-Identifier: Apache-2.0
"""Mistakes of hosts: each is an exception with a sentence, and the interpreter lives on."""
import array
import gc
import os
import pickle
import random
import signal
import tempfile
import threading
import unittest

from common import ADAPTER, CASES, MODEL, Case, Test, run

import kt
from kt import Status

NAN, INFINITY = float("nan"), float("inf")


class Misuse(Test):
    def setUp(self):
        self.case = Case()

    def test_closed(self):
        c = self.case
        generator, optimizer = kt.Generator(c.executor), kt.Optimizer(c.lora)
        plan, rule = kt.Plan(c.executor, 10), kt.Rule(c.ctx)
        uses = [
            (generator, lambda: generator.next()), (generator, lambda: generator.logits),
            (generator, lambda: len(generator)), (generator, lambda: generator.generate([1], 1)),
            (optimizer, lambda: optimizer.step(1e-3)), (optimizer, lambda: optimizer.save("x")),
            (plan, lambda: plan.total()), (plan, lambda: plan.devices()),
            (rule, lambda: rule.add(device="cpu")), (rule, lambda: rule.device("x")),
            (rule, lambda: kt.Executor(c.model, rule=rule)),
            (c.batch, lambda: c.executor.forward(c.batch)), (c.batch, lambda: len(c.batch)),
            (c.batch, lambda: c.batch.add([1])), (c.batch, lambda: c.batch.labels),
            (c.executor, lambda: c.executor.forward(kt.Batch(c.ctx))),
            (c.executor, lambda: c.executor.logprobs), (c.executor, lambda: c.executor.backward()),
            (c.executor, lambda: c.executor.backward([0.0])),
            (c.executor, lambda: kt.Generator(c.executor)),
            (c.executor, lambda: kt.Plan(c.executor, 3)),
            (c.lora, lambda: c.lora.tensors()), (c.lora, lambda: c.lora.save("x")),
            (c.lora, lambda: kt.Optimizer(c.lora)), (c.lora, lambda: kt.Executor(c.model, c.lora)),
            (c.model, lambda: c.model.info), (c.model, lambda: kt.Lora(c.model)),
            (c.model, lambda: c.model.linears()), (c.model, lambda: c.model.__enter__()),
            (c.ctx, lambda: kt.Model(c.ctx, MODEL)), (c.ctx, lambda: c.ctx.cancel()),
            (c.ctx, lambda: c.ctx.memory_used), (c.ctx, lambda: c.ctx.set_log(print)),
            (c.ctx, lambda: c.ctx.set_cancel(print)), (c.ctx, lambda: kt.schedule_rate(c.ctx, 0)),
        ]
        for handle, use in uses:
            handle.close()
            handle.close()
            self.assertTrue(handle.closed)
            self.assertIn("closed", self.refuses(Status.STATE, use))
            self.assertIn("closed", repr(handle))

    def test_types(self):
        c = self.case
        for call in (
                lambda: kt.Model(None, MODEL), lambda: kt.Model(c.ctx, 3),
                lambda: kt.Model(c.ctx, None), lambda: kt.Model(MODEL, c.ctx),
                lambda: kt.Lora("model"), lambda: kt.Lora(c.model, rank="8"),
                lambda: kt.Lora(c.model, rank=8.5), lambda: kt.Lora(c.model, target=8),
                lambda: kt.Lora(c.model, alpha="1"), lambda: kt.Lora.load(c.ctx, ADAPTER),
                lambda: kt.Executor(c.model, c.model), lambda: kt.Executor(c.lora),
                lambda: kt.Executor(c.model, rule="cpu"), lambda: kt.Executor(c.model, device=1),
                lambda: kt.Executor(c.model, compute=1.5), lambda: c.batch.add(3),
                lambda: c.batch.add("123"), lambda: c.batch.add(b"123"),
                lambda: c.batch.add([1.5]), lambda: c.batch.add([None]),
                lambda: c.batch.add([[1, 2], [3, 4]]), lambda: c.batch.add(array.array("f", [1])),
                lambda: c.batch.add({"a": 1}), lambda: c.executor.forward([1, 2]),
                lambda: c.executor.forward(c.batch, None), lambda: c.executor.backward(3.0),
                lambda: c.executor.backward("x"), lambda: c.executor.backward(["x"]),
                lambda: kt.Optimizer(c.executor), lambda: kt.Optimizer(c.lora).step("1"),
                lambda: kt.Optimizer(c.lora).step(None), lambda: kt.Optimizer(c.lora).step(1j),
                lambda: kt.Generator(c.model), lambda: kt.Plan(c.executor, "3"),
                lambda: kt.Context("2"), lambda: kt.Context(log=3), lambda: c.ctx.set_progress(3),
                lambda: c.ctx.set_cancel(3), lambda: kt.convert(c.ctx, MODEL, None),
                lambda: pickle.dumps(c.ctx), lambda: kt.random_permutation(c.ctx, 1.0, 3)):
            with self.assertRaises(TypeError) as caught:
                call()
            self.assertTrue(str(caught.exception))

    def test_values(self):
        c = self.case
        for call in (
                lambda: kt.Context(2 ** 32 + 1), lambda: kt.Context(memory_limit=-1),
                lambda: kt.Lora(c.model, rank=2 ** 32 + 8), lambda: kt.Lora(c.model, seed=-1),
                lambda: kt.Lora(c.model, target="q_proj\0"), lambda: kt.Model(c.ctx, "a\0b"),
                lambda: c.batch.add([2 ** 31]), lambda: c.batch.add([-2 ** 40]),
                lambda: c.batch.add([1, 2], [1]), lambda: c.batch.add([1], [1, 2]),
                lambda: c.batch.add(memoryview(bytes(8)).cast("B", [2, 4])),
                lambda: c.batch.add_padding(0, -1), lambda: c.batch.add_padding(2 ** 31, 1),
                lambda: kt.Executor(c.model, compute="f16"),
                lambda: kt.Executor(c.model, rule=kt.Rule(c.ctx), device="cpu"),
                lambda: c.executor.forward(c.batch, "test"),
                lambda: c.executor.reserve(2 ** 64), lambda: c.executor.set_step(-1),
                lambda: c.executor.experts_backend(2 ** 31),
                lambda: kt.random_permutation(c.ctx, 1, -1)):
            with self.assertRaises(ValueError) as caught:
                call()
            self.assertTrue(str(caught.exception))

    def test_refused_by_the_library(self):
        c = self.case
        refuses, invalid = self.refuses, Status.INVALID_ARGUMENT
        refuses(invalid, kt.Context, -1)
        refuses(Status.NOT_FOUND, kt.Model, c.ctx, "/没有")
        refuses(Status.NOT_FOUND, kt.Lora, c.model, target="nothing")
        refuses(invalid, kt.Lora, c.model, rank=0)
        refuses(invalid, kt.Lora, c.model, dropout=NAN)
        refuses(invalid, kt.Lora, c.model, alpha=1e300)
        refuses(invalid, c.batch.add, [])
        refuses(invalid, c.batch.add, [1], [-5])
        refuses(Status.STATE, kt.Batch(c.ctx).add_padding, 0, 1)
        refuses(invalid, c.executor.forward, kt.Batch(c.ctx))
        refuses(invalid, c.executor.forward, c.batch, 77)
        refuses(invalid, c.executor.reserve, 0)
        refuses(Status.NOT_FOUND, kt.Executor, c.model, experts_backend="none")
        refuses(Status.STATE, kt.Executor(c.model).backward)
        refuses(invalid, kt.Plan, c.executor, 0)
        refuses(invalid, kt.Rule(c.ctx).add, "(")
        refuses(Status.NOT_FOUND, kt.Rule.load, c.ctx, "/nonexistent.yaml")
        refuses(Status.UNSUPPORTED, kt.schedule_rate, c.ctx, 0, type="steps")
        refuses(invalid, kt.convert, c.ctx, MODEL, "/tmp/never", to="q8_0")
        refuses(invalid, kt.Generator, c.executor, temperature=NAN)
        generator = kt.Generator(c.executor, max_length=2)
        refuses(Status.STATE, generator.next)
        self.assertIsNone(generator.logits)
        refuses(invalid, generator.generate, [], 3)
        refuses(invalid, generator.generate, [10 ** 6], 3)
        refuses(invalid, list, generator.generate([1, 2], 3))
        optimizer = kt.Optimizer(c.lora)
        for rate in (-1.0, NAN, INFINITY):
            refuses(invalid, optimizer.step, rate)
        refuses(Status.NOT_FOUND, optimizer.load, "/nonexistent")
        refuses(Status.IO, c.lora.save, "/proc/none")
        bad = kt.Batch(c.ctx)
        bad.add([10 ** 6], [10 ** 6])
        refuses(invalid, c.executor.forward, bad)
        refuses(invalid, c.executor.logits, bad)
        refuses(Status.MISMATCH, c.executor.forward, Case().batch)
        self.assertGreater(c.executor.forward(c.batch).loss, 0)

    def test_backward(self):
        c = self.case
        n, batch, executor = c.batch.num_tokens, c.batch, c.executor
        self.refuses(Status.STATE, executor.backward)
        self.refuses(Status.STATE, executor.backward, [0.0])
        self.assertIsNone(executor.logprobs)
        executor.forward(batch, "eval")
        self.assertEqual(executor.logprobs.shape, (n,))
        self.refuses(Status.STATE, executor.backward, [0.0] * n)
        executor.forward(batch, "custom")
        self.refuses(Status.INVALID_ARGUMENT, executor.backward)
        for wrong in ([], [0.0], [0.0] * (n - 1), [0.0] * (n + 1), [NAN] * n, [INFINITY] * n,
                      [0.0] * (n - 1) + [-INFINITY], [1e300] * n):
            with self.assertRaises(ValueError):
                executor.backward(wrong)
        with self.assertRaises(ValueError):
            executor.reserve(-1)
        executor.backward([0] * n)
        self.refuses(Status.STATE, executor.backward, [0.0] * n)
        executor.forward(batch, "custom")
        batch.add([1], [1])
        self.refuses(Status.STATE, executor.backward, [0.0] * n)
        executor.forward(batch)
        executor.logits(batch)
        self.refuses(Status.STATE, executor.backward)
        self.assertIsNone(executor.logprobs)

    def test_not_finite(self):
        """NaN among gradients, and among values."""
        c = self.case
        tensor = next(iter(c.lora.tensors().values()))
        optimizer = kt.Optimizer(c.lora)
        tensor.grad[0][0] = NAN
        tensor.has_grad = True
        before = tensor.data.tobytes()
        self.refuses(Status.NUMERIC, optimizer.step, 1e-3)
        self.assertEqual(tensor.data.tobytes(), before)
        tensor.has_grad = False
        self.assertEqual(tensor.grad[0][0], 0)
        tensor.data[0][0] = NAN
        c.lora.touch()
        self.refuses(Status.NUMERIC, c.executor.forward, c.batch)
        self.refuses(Status.STATE, c.executor.backward)

    def test_another_thread(self):
        """A call while another thread is in one is refused; it does not wait and does not crash."""
        c = self.case
        inside, done = threading.Event(), threading.Event()
        c.ctx.set_progress(lambda *_: (inside.set(), done.wait(30)))
        worker = threading.Thread(target=lambda: c.executor.forward(c.batch))
        worker.start()
        self.assertTrue(inside.wait(30))
        self.refuses(Status.STATE, c.executor.reserve, 5)
        for call in (lambda: c.executor.forward(c.batch), lambda: c.batch.add([1]),
                     lambda: c.batch.input_ids, lambda: c.lora.tensors(),
                     lambda: kt.Batch(c.ctx), lambda: c.ctx.set_progress(None)):
            self.assertIn("thread", self.refuses(Status.STATE, call))
        self.assertGreater(c.ctx.memory_used, 0)
        executor, c.executor = c.executor, None
        executor.close()
        done.set()
        worker.join(30)
        self.assertFalse(worker.is_alive())
        c.ctx.set_progress(None)
        self.assertGreater(kt.Executor(c.model, c.lora).forward(c.batch).loss, 0)

    def test_threads_at_random(self):
        """Threads that call, look and close without asking each other get answers or refusals."""
        c, others = self.case, []
        batch = kt.Batch(c.ctx)
        batch.add(range(9), range(9))
        shared = [kt.Batch(c.ctx) for _ in range(4)]

        def work(seed):
            draw = random.Random(seed)
            acts = (lambda: c.executor.forward(batch),
                    lambda: draw.choice(shared).add([1, 2], [1, 2]),
                    lambda: draw.choice(shared).input_ids, lambda: draw.choice(shared).clear(),
                    lambda: draw.choice(shared).close(), lambda: c.executor.backward(),
                    lambda: shared.__setitem__(draw.randrange(4), kt.Batch(c.ctx)),
                    lambda: kt.Executor(c.model, c.lora), lambda: c.lora.zero_grad(),
                    lambda: c.executor.logprobs)
            for _ in range(150):
                try:
                    draw.choice(acts)()
                except kt.Error as error:
                    if error.status is not Status.STATE:
                        others.append(str(error))
                except BaseException as error:
                    others.append(repr(error))
                    raise

        workers = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(others, [])
        self.assertGreater(c.executor.forward(batch).loss, 0)

    @unittest.skipUnless(hasattr(os, "fork"), "no fork")
    def test_fork(self):
        """A child neither uses nor frees what its parent made, and may make its own."""
        c = self.case = Case(num_threads=2)
        child = os.fork()
        if child == 0:
            code = 1
            signal.alarm(60)  # freeing waits for threads that the child does not have
            try:
                self.refuses(Status.STATE, c.executor.forward, c.batch)
                c.lora.close()
                c.executor.close()
                c.ctx.close()
                del c
                self.case = None
                gc.collect()
                case = Case()
                code = 0 if case.executor.forward(case.batch).loss > 0 else 2
            finally:
                os._exit(code)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertGreater(c.executor.forward(c.batch).loss, 0)

    def test_messages_are_whole(self):
        error = kt.Error(-6, "nothing")
        again = pickle.loads(pickle.dumps(error))
        self.assertEqual((again.status, str(again)), (Status.NOT_FOUND, "nothing"))
        self.assertEqual(kt.Error(-99, "?").status, -99)

    def test_conversion(self):
        """convert(), Model(check_finite=) and what they tell."""
        with tempfile.TemporaryDirectory() as folder:
            kt.convert(self.case.ctx, MODEL, folder, to="f32")
            with kt.Model(self.case.ctx, folder, check_finite=2) as model:
                model.check_finite()
                self.assertIn(kt.DType.F32, {t.dtype for t in model.tensors()})
                names = [t.name for t in model.tensors()]
                self.assertEqual(names, sorted(names))
                self.assertEqual(model.linears(), self.case.model.linears())
        self.assertEqual(self.case.model.info.path, str(CASES / "v3bf16/model"))


if __name__ == "__main__":
    run()
