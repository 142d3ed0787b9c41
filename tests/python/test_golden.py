# SPDX-License-Identifier: Apache-2.0
"""Numbers of tests/reference through the package."""
import json
import tempfile
from pathlib import Path

from common import CASES, Case, Test, error, flat, run

import kt

NAMES = ("v3bf16", "v2lite", "qwen2moe", "mixtral", "dynamic", "qwen3")


def each(test):
    """Runs a test with each of the cases."""
    def run_all(self):
        for name in NAMES:
            with self.subTest(name):
                test(self, Case(name))
    return run_all


class Golden(Test):
    @each
    def test_loss_and_gradients(self, case):
        loss = case.executor.forward(case.batch)
        case.executor.backward()
        self.assertLess(abs(loss.loss / case.numbers["loss"][0] - 1), 1e-5)
        self.assertEqual(loss.num_targets, case.batch.num_targets)
        for tensor_name, tensor in case.lora.tensors().items():
            golden = "grad." + tensor_name
            self.assertEqual(tensor.has_grad, golden in case.numbers, tensor_name)
            if tensor.has_grad:
                self.assertLess(error(flat(tensor.grad), case.numbers[golden]), 1e-4)

    @each
    def test_logits(self, case):
        logits = case.executor.logits(case.batch)
        self.assertEqual(logits.shape, (case.batch.num_tokens, case.model.info.vocab_size))
        self.assertLess(error(flat(logits), case.numbers["logits"]), 1e-5)

    @each
    def test_ten_steps(self, case):
        optimizer = kt.Optimizer(case.lora, weight_decay=0.01)
        for loss, norm in zip(case.numbers["losses"], case.numbers["grad_norms"]):
            got = case.executor.forward(case.batch).loss
            case.executor.backward()
            self.assertLess(abs(got / loss - 1), 1e-4)
            self.assertLess(abs(optimizer.step(1e-3) / norm - 1), 1e-3)
        for tensor_name, tensor in case.lora.tensors().items():
            golden = case.numbers["step10." + tensor_name]
            self.assertLess(error(flat(tensor.data), golden), 1e-3)

    @each
    def test_custom_loss_is_the_mean(self, case):
        """The token mean, written as a loss of the host's own."""
        mean = case.executor.forward(case.batch)
        case.executor.backward()
        want = {n: flat(t.grad) for n, t in case.lora.tensors().items()}
        case.lora.zero_grad()
        custom = case.executor.forward(case.batch, "custom")
        self.assertEqual(custom.loss, mean.loss)
        total = -sum(case.executor.logprobs.tolist()) / mean.num_targets
        self.assertLess(abs(total / mean.loss - 1), 1e-6)
        case.executor.backward([-1 / mean.num_targets] * case.batch.num_tokens)
        for n, t in case.lora.tensors().items():
            if t.has_grad and any(want[n]):
                self.assertLess(error(flat(t.grad), want[n]), 1e-5)

    @each
    def test_greedy(self, case):
        greedy, begin = case.numbers["greedy"], case.numbers["greedy_prompt_len"][0]
        generator = kt.Generator(case.executor, temperature=0)
        got = list(generator.generate(greedy[:begin], len(greedy) - begin))
        self.assertEqual(got, list(greedy[begin:]))
        self.assertEqual(len(generator), len(greedy))
        again = generator.generate(greedy[:begin], 9, stop=[got[0]])
        self.assertEqual(list(again), [])

    def test_save_and_load(self):
        """What is saved comes back bit for bit."""
        import tempfile
        case = Case("v3bf16")
        with tempfile.TemporaryDirectory() as folder:
            case.lora.save(folder)
            again = kt.Lora.load(case.model, folder)
            for name, tensor in case.lora.tensors().items():
                self.assertEqual(tensor.data.tobytes(), again.tensors()[name].data.tobytes())
            self.refuses(kt.Status.MISMATCH, kt.Lora.load, case.model, CASES / "v2/adapter")

    def test_trace(self):
        case = Case("v2lite")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            trace = kt.Trace(case.ctx, path)
            case.executor.forward(case.batch)
            case.executor.backward()
            rows = trace.finish()
            events = json.loads(path.read_text())["traceEvents"]
        phases = {row.phase: row for row in rows if row.resource is None}
        self.assertEqual([phases[p].count for p in ("forward", "backward")], [1, 1])
        for row in rows:
            if row.resource is not None and row.operation is None:
                self.assertLessEqual(row.seconds, phases[row.phase].seconds * (1 + 1e-9))
        self.assertIn("linear_forward", {event["name"] for event in events})

    def test_sharing(self):
        case = Case("v2lite")
        record = case.executor.get_sharing()
        case.executor.set_sharing(record)
        self.assertEqual(case.executor.get_sharing(), record)
        with self.assertRaises(kt.Error):
            case.executor.set_sharing("something else")


if __name__ == "__main__":
    run()
