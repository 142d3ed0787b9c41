# SPDX-License-Identifier: Apache-2.0
"""Callbacks: what they get, what they raise, and Ctrl-C."""
import contextlib
import os
import signal
import sys
import threading
import time

from common import ADAPTER, MODEL, Case, Test, run

import kt
from kt import Status


class Broken(Exception):
    pass


def breaks(*_):
    raise Broken("on purpose")


@contextlib.contextmanager
def nothing_unraisable(test):
    """Fails when an exception was printed because nobody could get it."""
    seen, before = [], sys.unraisablehook
    sys.unraisablehook = seen.append
    try:
        yield
    finally:
        sys.unraisablehook = before
    test.assertEqual(seen, [])


class Callbacks(Test):
    def test_log_and_progress(self):
        lines, steps = [], []
        case = Case(log=lambda *a: lines.append(a), progress=lambda *a: steps.append(a))
        self.assertTrue(all(isinstance(l, kt.LogLevel) and isinstance(m, str) for l, m in lines))
        self.assertTrue(any("skipped" in m for _, m in lines), lines)
        case.executor.forward(case.batch)
        self.assertTrue(steps)
        for what, done, total in steps:
            self.assertIsInstance(what, str)
            self.assertTrue(0 <= done <= total, (what, done, total))
        case.ctx.set_progress(None)
        before = len(steps)
        case.executor.forward(case.batch)
        self.assertEqual(len(steps), before)

    def test_warnings_while_a_context_is_made(self):
        lines = []
        with kt.Context(10 ** 6, log=lambda *a: lines.append(a)) as ctx:
            self.assertLess(ctx.num_threads, 10 ** 6)
        self.assertEqual([level for level, _ in lines], [kt.LogLevel.WARNING])
        with self.assertRaises(Broken):
            kt.Context(10 ** 6, log=breaks)

    def test_cancel(self):
        case = Case()
        asked = []
        case.ctx.set_cancel(lambda: asked.append(1))
        loss = case.executor.forward(case.batch)
        self.assertTrue(asked)
        case.ctx.set_cancel(lambda: True)
        self.refuses(Status.CANCELLED, case.executor.forward, case.batch)
        case.ctx.set_cancel(None)
        case.ctx.cancel()
        self.refuses(Status.CANCELLED, case.executor.forward, case.batch)
        case.ctx.cancel()
        case.ctx.clear_cancel()
        self.assertEqual(case.executor.forward(case.batch), loss)

    def test_exceptions(self):
        """Each kind of callback that raises ends the call with its exception; the next is well."""
        case = Case()
        loss = case.executor.forward(case.batch)
        with nothing_unraisable(self):
            for kind in ("progress", "cancel"):
                calls = []
                getattr(case.ctx, "set_" + kind)(lambda *a: (calls.append(a), breaks()))
                with self.assertRaises(Broken) as caught:
                    case.executor.forward(case.batch)
                self.assertEqual(caught.exception.args, ("on purpose",))
                self.assertEqual(len(calls), 1, "a callback is not called after it raised")
                getattr(case.ctx, "set_" + kind)(None)
                self.refuses(Status.STATE, case.executor.backward)
                self.assertEqual(case.executor.forward(case.batch), loss)
            case.ctx.set_log(breaks)
            with self.assertRaises(Broken):  # though the call itself went well
                kt.Model(case.ctx, MODEL)
            case.ctx.set_log(None)
            self.assertEqual(case.executor.forward(case.batch), loss)

    def test_exit_and_generators(self):
        """SystemExit and StopIteration are exceptions like others."""
        case = Case()
        for kind in (SystemExit, StopIteration, GeneratorExit, KeyboardInterrupt):
            def raises(*_, kind=kind):
                raise kind
            case.ctx.set_progress(raises)
            with nothing_unraisable(self), self.assertRaises(kind):
                case.executor.forward(case.batch)
        case.ctx.set_progress(None)
        self.assertGreater(case.executor.forward(case.batch).loss, 0)

    def test_calls_from_callbacks(self):
        """What looks is allowed, other contexts too; the rest is refused and ends the call."""
        case, other = Case(), Case()
        got = []

        def looks(*_):
            got.append((case.batch.num_tokens, case.ctx.num_threads,
                        case.lora.num_parameters, len(case.batch.input_ids),
                        other.executor.forward(other.batch).loss))

        case.ctx.set_progress(looks)
        loss = case.executor.forward(case.batch)
        self.assertEqual({g[-1] for g in got}, {loss.loss})
        case.ctx.set_progress(lambda *_: case.batch.clear())
        self.refuses(Status.STATE, case.executor.forward, case.batch)
        case.ctx.set_progress(None)
        case.executor.forward(case.batch, "custom")
        zeros = [0.0] * case.batch.num_tokens

        def refused(*_):
            try:
                case.executor.forward(case.batch)
            except kt.Error:
                pass

        case.ctx.set_cancel(refused)
        kt.Generator(case.executor).prompt([1, 2, 3])
        case.ctx.set_cancel(None)
        self.refuses(Status.STATE, case.executor.backward, zeros)  # not another one than was meant
        case.ctx.set_progress(lambda *_: case.batch.clear())
        self.refuses(Status.STATE, case.executor.forward, case.batch)
        case.ctx.set_progress(lambda *_: case.executor.close())
        case.executor.forward(case.batch)
        self.assertTrue(case.executor.closed)

    def test_exceptions_belong_to_their_thread(self):
        case = Case()
        refused = []

        def calls_elsewhere(*_):
            def call():
                try:
                    case.batch.clear()
                except kt.Error as error:
                    refused.append(error.status)
            other = threading.Thread(target=call)
            other.start()
            other.join()
            breaks()

        case.ctx.set_progress(calls_elsewhere)
        with self.assertRaises(Broken):
            case.executor.forward(case.batch)
        self.assertEqual(refused, [Status.STATE])

    def interrupt(self, case, batch, number):
        """Sends a signal once a forward is on its way, and gives what the forward did."""
        def send():
            begun.wait(30)
            time.sleep(0.005)
            os.kill(os.getpid(), number)

        begun = threading.Event()
        case.ctx.set_cancel(lambda: begun.set())
        sender = threading.Thread(target=send)
        sender.start()
        try:
            return case.executor.forward(batch)
        finally:
            sender.join()

    def test_ctrl_c(self):
        case = Case()
        batch = kt.Batch(case.ctx)
        for _ in range(150):
            batch.add(range(60), range(60))
        for progress in (None, lambda *_: None):
            case.ctx.set_progress(progress)
            with nothing_unraisable(self), self.assertRaises(KeyboardInterrupt):
                self.interrupt(case, batch, signal.SIGINT)
        before = signal.signal(signal.SIGTERM, breaks)
        try:
            with nothing_unraisable(self), self.assertRaises(Broken):
                self.interrupt(case, batch, signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)
        self.assertGreater(case.executor.forward(case.batch).loss, 0)

    def test_load_is_cancelled(self):
        with kt.Context(1, cancel=lambda: True) as ctx:
            self.refuses(Status.CANCELLED, kt.Model, ctx, MODEL)
            ctx.set_cancel(None)
            kt.Lora.load(kt.Model(ctx, MODEL), ADAPTER)


if __name__ == "__main__":
    run()
