# SPDX-License-Identifier: Apache-2.0
"""A training loop in Python gives the losses and the adapter of `kt train`, bit for bit; and what
it needs: tokenizer, templates, dataset, schedule, order.

    test_train.py CASES_DIR KT
"""
import json
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from common import ARGUMENTS, CASES, Test, run

import kt

KT = Path(ARGUMENTS[0]).resolve() if ARGUMENTS else None
TOP = Path(__file__).resolve().parents[2]
TOKENIZER = TOP / "tests/cli"  # for ASCII
NAMES = "ann bob cid dan eve fay gus hal ida jim kay lee mia ned oda pam ray sue tom uma".split()
STEPS, MICRO_BATCH, ACCUMULATION, RATE = 7, 2, 2, 1e-3

YAML = """
model_name_or_path: model
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_alpha: 16
lora_dropout: 0.1
lora_target: all
kt_lora_experts: true
dataset: pairs
dataset_dir: data
template: deepseek3
cutoff_len: 64
output_dir: out
logging_steps: 1
save_steps: 100
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1.0e-3
weight_decay: 0.01
max_steps: 7
lr_scheduler_type: cosine
warmup_steps: 2
report_to: none
bf16: true
cpu_infer: 1
"""


class Train(Test):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.scratch.name)
        cls.model = cls.folder / "model"
        shutil.copytree(CASES / "v3/model", cls.model)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / name, cls.model)
        (cls.folder / "data").mkdir()
        pairs = [{"instruction": f"who is {name}?", "input": "",
                  "output": f"{name} is the {'one' * (i % 4 + 1)} of {i}."}
                 for i, name in enumerate(NAMES)]
        (cls.folder / "data/pairs.json").write_text(json.dumps(pairs))
        (cls.folder / "data/dataset_info.json").write_text('{"pairs": {"file_name": "pairs.json"}}')
        cls.ctx = kt.Context(1)
        cls.tokenizer = kt.Tokenizer(cls.ctx, cls.model)
        cls.demo = kt.Tokenizer(cls.ctx, TOP / "examples/demo/model")

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def dataset(self, **options):
        options = {"dataset": "pairs", "dataset_dir": self.folder / "data", "cutoff_len": 64,
                   "template_name": "deepseek3", **options}
        return kt.Dataset(self.ctx, self.tokenizer, **options)

    def fill(self, batch, dataset, step):
        """The sequences of a step as kt train takes them, with the padding of micro batches."""
        size = MICRO_BATCH * ACCUMULATION
        steps = -(-len(dataset) // size)
        order = kt.random_permutation(self.ctx, 42 + step // steps, len(dataset))
        mine = order[step % steps * size:][:size]
        batch.clear()
        for begin in range(0, len(mine), MICRO_BATCH):
            examples = [dataset[i] for i in mine[begin:begin + MICRO_BATCH]]
            width = -(-max(len(e.input_ids) for e in examples) // 8) * 8
            for example in examples:
                batch.add(*example)
                if width > len(example.input_ids):
                    batch.add_padding(self.tokenizer.pad_id, width - len(example.input_ids))

    def train(self):
        """Gives the log, and saves the adapter in ours/."""
        model = kt.Model(self.ctx, self.model)
        lora = kt.Lora(model, rank=4, alpha=16, dropout=0.1, target="all",
                       target_experts=True, seed=42)
        executor = kt.Executor(model, lora, compute="bf16")
        optimizer = kt.Optimizer(lora, weight_decay=0.01)
        batch, dataset, log = kt.Batch(self.ctx), self.dataset(), []
        for step in range(STEPS):
            self.fill(batch, dataset, step)
            executor.set_step(step)
            rate = kt.schedule_rate(self.ctx, step, type="cosine", learning_rate=RATE,
                                    warmup_steps=2, total_steps=STEPS)
            loss = executor.forward(batch).loss
            executor.backward()
            log.append((loss, rate, optimizer.step(rate)))
        lora.save(self.folder / "ours")
        return log

    @unittest.skipUnless(KT, "the program kt is not given")
    def test_as_kt_train(self):
        (self.folder / "sft.yaml").write_text(YAML)
        subprocess.run([KT, "train", "sft.yaml"], cwd=self.folder, check=True,
                       stdout=subprocess.DEVNULL)
        log = self.train()
        history = json.loads((self.folder / "out/trainer_state.json").read_text())["log_history"]
        entries = [entry for entry in history if "loss" in entry]
        self.assertEqual(len(entries), STEPS)
        for (loss, rate, norm), entry in zip(log, entries):
            self.assertEqual(round(loss, 6), entry["loss"])
            self.assertEqual(rate, entry["learning_rate"])
            self.assertEqual(norm, entry["grad_norm"])
        name = "adapter_model.safetensors"
        self.assertEqual((self.folder / "ours" / name).read_bytes(),
                         (self.folder / "out" / name).read_bytes())

    def test_optimizer_state(self):
        """Saved and read back, the next step is the same."""
        def begin():
            model = kt.Model(self.ctx, self.model)
            lora = kt.Lora(model, rank=2)
            return lora, kt.Executor(model, lora), kt.Optimizer(lora)

        def step(lora, executor, optimizer):
            executor.forward(batch)
            executor.backward()
            optimizer.step(RATE)

        batch = kt.Batch(self.ctx)
        self.fill(batch, self.dataset(), 0)
        first = begin()
        step(*first)
        first[2].save(self.folder / "state")
        second = begin()
        for name, tensor in first[0].tensors().items():
            memoryview(second[0].tensors()[name].data).cast("B")[:] = tensor.data.tobytes()
        second[0].touch()
        second[2].load(self.folder / "state")
        step(*first)
        step(*second)
        for name, tensor in first[0].tensors().items():
            self.assertEqual(tensor.data.tobytes(), second[0].tensors()[name].data.tobytes())

    def test_dataset(self):
        dataset = self.dataset()
        self.assertEqual(len(dataset), len(NAMES))
        examples = list(dataset)
        self.assertEqual(dataset[-1], examples[-1])
        for example in examples:
            self.assertEqual(len(example.input_ids), len(example.labels))
            self.assertIn(kt.IGNORE_LABEL, example.labels)
            answer = [i for i in example.labels if i != kt.IGNORE_LABEL]
            self.assertIn(" is the one", self.tokenizer.decode(answer, skip_special=True))
        for index in (len(dataset), -len(dataset) - 1):
            with self.assertRaises(IndexError):
                dataset[index]
        with self.assertRaises(TypeError):
            dataset["0"]
        evaluation = dataset.split(0.25)
        self.assertEqual((len(dataset), len(evaluation)), (15, 5))
        both = [tuple(e.input_ids) for part in (dataset, evaluation) for e in part]
        self.assertEqual(sorted(both), sorted(tuple(e.input_ids) for e in examples))
        self.refuses(kt.Status.INVALID_ARGUMENT, dataset.split, -1.0)
        self.refuses(kt.Status.NOT_FOUND, self.dataset, dataset_dir="/nonexistent")
        with self.assertRaises(TypeError):
            self.dataset(dataset=3)

    def test_tokenizer(self):
        tokenizer, text = self.demo, "héllo wörld, 你好 \u0000 end"
        ids = tokenizer.encode(text)
        self.assertEqual(tokenizer.decode(ids), text)
        ids = self.tokenizer.encode("end")
        self.assertEqual(self.tokenizer.encode("end", add_special=True),
                         [self.tokenizer.bos_id] + ids)
        self.assertEqual((tokenizer.encode(""), tokenizer.decode([])), ([], ""))
        self.assertEqual(tokenizer.decode([tokenizer.eos_id], skip_special=True), "")
        self.assertEqual(tokenizer.decode(tokenizer.encode("a\ud800b"))[0], "a")
        self.assertIsNone(tokenizer.token_id("no such token"))
        self.assertTrue(0 <= tokenizer.eos_id < tokenizer.vocab_size)
        self.refuses(kt.Status.NOT_FOUND, kt.Tokenizer, self.ctx, "/nonexistent")
        for wrong in (b"x", None, 3):
            with self.assertRaises(TypeError):
                tokenizer.encode(wrong)

    def test_decoder(self):
        """Streamed text is the decoded text, whole characters at a time."""
        text = "aaa héllo 你好 \U0001f600!"
        ids = self.demo.encode(text)
        decoder = self.demo.decoder()
        parts = [decoder.next(i) for i in ids] + [decoder.end()]
        self.assertEqual("".join(parts), text)
        self.assertNotIn("\ufffd", "".join(parts))
        cut = [decoder.next(i) for i in self.demo.encode("\U0001f600")[:1]]
        self.assertEqual(cut, [""])
        self.assertEqual(set(decoder.end()), {"\ufffd"})
        self.assertEqual(decoder.next(10 ** 9), "")

    def test_templates(self):
        tokenizer, messages = self.tokenizer, [{"role": "user", "content": "who is ann?"}]
        self.assertIn("deepseek3", kt.template_names())
        ids = tokenizer.apply_template("deepseek3", messages)
        self.assertIn("who is ann?", tokenizer.decode(ids))
        self.assertEqual(tokenizer.apply_template("deepseek3", [("user", "who is ann?")]), ids)
        self.assertIn(tokenizer.eos_id, tokenizer.stop_ids("deepseek3"))
        self.refuses(kt.Status.NOT_FOUND, tokenizer.apply_template, "none", messages)
        for wrong in ([], messages * 2):
            self.refuses(kt.Status.INVALID_ARGUMENT, tokenizer.apply_template, "deepseek3", wrong)
        for wrong in ([{"role": "user"}], [("user", "a\0b")]):
            with self.assertRaises(ValueError):
                tokenizer.apply_template("deepseek3", wrong)
        for wrong in (["hello"], [("user", None)], [3], 3):
            with self.assertRaises(TypeError):
                tokenizer.apply_template("deepseek3", wrong)

    def test_plan_and_rule(self):
        model = kt.Model(self.ctx, self.model)
        executor = kt.Executor(model, kt.Lora(model), device="cpu")
        plan = kt.Plan(executor, 100, max_sequence=20, mode="eval")
        self.assertEqual([d.name for d in plan.devices()], ["cpu"])
        self.assertEqual(plan.total()._replace(name="cpu"), plan.devices()[0])
        self.assertGreater(kt.Plan(executor, 100).total().total_allocated,
                           plan.total().total_allocated)
        rule = kt.Rule(self.ctx)
        rule.add(r"^model\.layers\.1\.", device="cpu:0", experts_backend="reference")
        self.assertEqual(rule.device("model.layers.1.mlp"), "cpu:0")
        self.assertEqual(rule.device("model.layers.2.mlp"), "cpu")
        self.assertEqual(rule.experts_backend("model.layers.1.mlp.experts"), "reference")
        path = TOP / "examples/kt_optimize_rules/cpu-only.yaml"
        self.assertEqual(kt.Rule.load(self.ctx, path).device("lm_head"), "cpu")
        self.assertIsNone(executor.experts_backend(0))
        self.assertEqual(kt.Executor(model, experts_backend="reference").experts_backend(1),
                         "reference")


if __name__ == "__main__":
    run()
