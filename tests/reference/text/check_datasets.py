# SPDX-License-Identifier: Apache-2.0
"""Compare `kt data --jsonl` with LLaMA-Factory 0.9.4's own loader, live, on random datasets, templates
and options:

    python check_datasets.py KT TOKENIZER_FOLDER [--seed N] [--cases N]

KT is the program, TOKENIZER_FOLDER holds tokenizer.json and tokenizer_config.json. Exit code 1 when an
id or a label differs."""
import argparse
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["DISABLE_VERSION_CHECK"] = "1"
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer  # noqa: E402
from llamafactory.data import template as template_module  # noqa: E402
from llamafactory.hparams import get_train_args  # noqa: E402
from llamafactory.model import load_tokenizer  # noqa: E402
from texts import texts  # noqa: E402

TEMPLATES = template_module.TEMPLATES
INFO = {"a": {"file_name": "a.json",
              "columns": {"prompt": "instruction", "query": "input", "response": "output",
                          "system": "system", "history": "history"}},
        "s": {"file_name": "s.jsonl", "formatting": "sharegpt",
              "columns": {"messages": "conversations", "system": "sys"}}}


class Maker:
    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.pool = [t.decode(errors="replace") for t in texts() if len(t) < 400 and b"\0" not in t]
        self.pool += ["", " ", "{{content}}", "{{idx}} {{content}}", "<think>", "</think>", "\n"]
        self.pool += ["<think>\nLet me see.\n\nYes.\n</think>\n\n", "<think>\n\n</think>\n\n"] * 8

    def text(self) -> str:
        return "".join(self.random.choice(self.pool)
                       for _ in range(self.random.choice([0, 1, 1, 1, 2, 3, 8])))

    def alpaca(self) -> dict:
        r = self.random
        entry = {"instruction": self.text(), "input": self.text(), "output": self.text(),
                 "system": r.choice([self.text(), None, None, ""]), "history": None}
        if r.random() < 0.7:
            entry["history"] = [[self.text(), self.text()] for _ in range(r.choice([0, 0, 1, 2, 4]))]
        if r.random() < 0.08:
            entry["output"] = None
        return entry

    def sharegpt(self) -> dict:
        r, messages = self.random, []
        if r.random() < 0.3:
            messages.append({"from": "system", "value": self.text()})
        for _ in range(r.choice([1, 1, 2, 3])):
            asks = r.choice(["human"] * 8 + ["observation"])
            messages += [{"from": asks, "value": self.text()}, {"from": "gpt", "value": self.text()}]
        if r.random() < 0.1:
            r.shuffle(messages)
        if r.random() < 0.1:
            messages.pop()
        return {"conversations": messages, "sys": r.choice([None, "", self.text()])}

    def options(self) -> dict:
        r = self.random
        options = {"dataset": r.choice(["a", "s", "a,s"]),
                   "template": r.choice(["deepseek", "deepseek3", "default", "qwen", "llama2", "llama3", "mistral", "solar",
                                         "qwen3", "qwen3", "qwen3", "qwen3_nothink"]),
                   "cutoff_len": r.choice([8, 16, 33, 64, 128, 300, 2048])}
        options.update(r.choice([{}, {}, {"mask_history": True}, {"train_on_prompt": True}]))
        if options["template"] == "solar":
            options.pop("train_on_prompt", None)
        options.update(r.choice([{}, {"enable_thinking": False}, {"enable_thinking": None}]))
        options.update(r.choice([{}, {}, {"max_samples": r.randint(20, 100)}]))
        options.update(r.choice([{}, {}, {"default_system": "Answer shortly."}]))
        return options

    def write(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "dataset_info.json").write_text(json.dumps(INFO), encoding="utf-8")
        alpaca = [self.alpaca() for _ in range(80)]
        (folder / "a.json").write_text(json.dumps(alpaca, ensure_ascii=False), encoding="utf-8")
        lines = [json.dumps(self.sharegpt(), ensure_ascii=self.random.random() < 0.5)
                 for _ in range(80)]
        (folder / "s.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def theirs(settings: dict) -> list[tuple]:
    template_module.TEMPLATES = copy.deepcopy(TEMPLATES)  # default_system changes them for good
    model_args, data_args, training_args, _, _ = get_train_args(
        dict(settings, use_cpu=True, report_to="none", overwrite_cache=True,
             preprocessing_num_workers=1))
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    module = get_dataset(template, model_args, data_args, training_args, stage="sft",
                         tokenizer=tokenizer)
    return [(e["input_ids"], e["labels"]) for e in module["train_dataset"]]


def ours(kt: str, settings: dict, folder: Path) -> list[tuple]:
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in settings.items()]
    (folder / "c.yaml").write_text("".join(lines))
    run = subprocess.run([kt, "data", str(folder / "c.yaml"), "--jsonl"], check=True,
                         capture_output=True, text=True)
    return [(e["input_ids"], e["labels"]) for e in map(json.loads, run.stdout.splitlines())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kt")
    parser.add_argument("tokenizer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=10)
    arguments = parser.parse_args()
    maker, wrong = Maker(arguments.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker.write(folder / "data")
        (folder / "model").mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(arguments.tokenizer) / file, folder / "model")
        (folder / "model/config.json").write_text('{"model_type": "deepseek_v3"}')
        for _ in range(arguments.cases):
            options = maker.options()
            settings = dict(model_name_or_path=f"{folder}/model", stage="sft", do_train=True,
                            finetuning_type="lora", output_dir=f"{folder}/out",
                            dataset_dir=f"{folder}/data", **options)
            want, got = theirs(settings), ours(arguments.kt, settings, folder)
            wrong += got != want
            print("case:", "same" if got == want else "DIFFERS", len(want), len(got), options)
            for number, (a, b) in enumerate(zip(want, got)):
                if a != b:
                    print("  example", number, "length", len(a[0]), len(b[0]))
                    break
    print(f"checked {arguments.cases}, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
