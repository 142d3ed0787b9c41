# SPDX-License-Identifier: Apache-2.0
"""Run LLaMA-Factory 0.9.4's own data pipeline on data/ with the tokenizer tiny/ and store the ids
and labels that it makes, for test_dataset.c and test_template.c:

    python make_dataset_goldens.py"""
import copy
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ["DISABLE_VERSION_CHECK"] = "1"
from llamafactory.data import template as template_module  # noqa: E402
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer  # noqa: E402
from llamafactory.hparams import get_train_args  # noqa: E402
from llamafactory.model import load_tokenizer  # noqa: E402

HERE = Path(__file__).parent
TEMPLATES = template_module.TEMPLATES
NAME, AUTHOR = "Kite", "the Kite team 风筝"

NAMES = ("deepseek3", "deepseek", "default", "qwen", "qwen3", "qwen3_nothink", "llama2", "llama3", "solar",
         "mistral")
CASES = [dict(dataset=d, template=t) for t in NAMES for d in ("en", "zh", "chat", "tags")]
CASES += [dict(dataset=d, template="qwen3", enable_thinking=e) for d in ("en", "think") for e in (False, None)]
CASES += [dict(dataset="think", template="qwen3"), dict(dataset="think", template="qwen"),
          dict(dataset="think", template="llama2"),
          dict(dataset="think", template="qwen3", mask_history=True, cutoff_len=40),
          dict(dataset="think", template="qwen3", train_on_prompt=True, enable_thinking=False,
               default_system="Think first."),
          dict(dataset="think,chat", template="solar", cutoff_len=70),
          dict(dataset="think,chat", template="solar", mask_history=True, cutoff_len=110)]
CASES += [dict(dataset="en,zh, chat", template="deepseek3", cutoff_len=c) for c in (16, 40, 64, 100)]
CASES += [dict(dataset="zh,chat", template="default", cutoff_len=c, mask_history=True)
          for c in (24, 60, 2048)]
CASES += [dict(dataset="chat", template="qwen", train_on_prompt=True, cutoff_len=50),
          dict(dataset="en,zh", template="deepseek", max_samples=3),
          dict(dataset="en,zh,chat,tags", template="deepseek3", default_system="Be brief."),
          dict(dataset="tags", template="qwen", default_system=""),
          dict(dataset="en,chat", template="deepseek3", val_size=0.3, seed=42),
          dict(dataset="en,zh,chat,tags", template="deepseek3", val_size=5, seed=4294967295),
          dict(dataset="zh", template="qwen", val_size=0.01, seed=0)]
CHATS = [[("user", "Hi there!")], [("system", "Be kind."), ("user", "你好")],
         [("user", "One"), ("assistant", "Two"), ("user", "Three {{idx}} {{content}}")],
         [("system", ""), ("user", "a"), ("assistant", ""), ("user", ""), ("assistant", "d"), ("user", "e\n")],
         [("user", "q"), ("assistant", "wait"), ("observation", "{\"x\": 1}")],
         [("user", "2+2?"), ("assistant", "<think>\nTwo\n\nand two.\n</think>\n\nFour."), ("user", "Sure?"),
          ("assistant", "<think>\n</think>\n\nYes."), ("user", "</think> really?")]]


def arguments(folder: str, output: str, **case):
    case.setdefault("cutoff_len", 2048)
    template_module.TEMPLATES = copy.deepcopy(TEMPLATES)  # default_system changes them for good
    return get_train_args(dict(
        model_name_or_path=f"{folder}/model", stage="sft", do_train=True, finetuning_type="lora",
        output_dir=output, use_cpu=True, report_to="none", dataset_dir=folder, overwrite_cache=True,
        preprocessing_num_workers=1, trust_remote_code=True, **case))


def filled_copy(folder: str) -> None:
    """What LLaMA-Factory leaves to its users."""
    for path in (HERE / "data").iterdir():
        text = path.read_text(encoding="utf-8")
        text = text.replace("{{name}}", NAME).replace("{{author}}", AUTHOR)
        (Path(folder) / path.name).write_text(text, encoding="utf-8")
    model = shutil.copytree(HERE / "tiny", Path(folder) / "model")
    (model / "config.json").write_text('{"model_type": "deepseek_v3"}')  # to load the tokenizer


def pairs(dataset) -> list[dict]:
    return [{"input_ids": e["input_ids"], "labels": e["labels"]} for e in dataset]


def run_case(folder: str, output: str, case: dict) -> dict:
    model_args, data_args, training_args, _, _ = arguments(folder, output, **case)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    module = get_dataset(template, model_args, data_args, training_args, stage="sft",
                         tokenizer=tokenizer)
    result = {"options": case, "train": pairs(module["train_dataset"])}
    if "eval_dataset" in module:
        result["eval"] = pairs(module["eval_dataset"])
    return result


def chat_goldens(folder: str, output: str) -> list[dict]:
    results = []
    for name, thinking in [(n, True) for n in NAMES] + [("qwen3", False), ("qwen3", None), ("qwen", False)]:
        model_args, data_args, _, _, _ = arguments(folder, output, dataset="en", template=name,
                                                   enable_thinking=thinking)
        tokenizer = load_tokenizer(model_args)["tokenizer"]
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        ids = []
        for chat in CHATS:
            system = chat[0][1] if chat[0][0] == "system" else None
            messages = [{"role": r, "content": c} for r, c in chat if r != "system"]
            messages.append({"role": "assistant", "content": ""})
            ids.append(template.encode_oneturn(tokenizer, messages, system)[0])
        results.append({"template": name, "enable_thinking": thinking, "ids": ids,
                        "stop": sorted(template.get_stop_token_ids(tokenizer))})
    return results


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as output:
        filled_copy(folder)
        goldens = {"name": NAME, "author": AUTHOR,
                   "cases": [run_case(folder, output, dict(case)) for case in CASES],
                   "chats": [[{"role": r, "content": c} for r, c in chat] for chat in CHATS],
                   "templates": chat_goldens(folder, output)}
    with open(HERE / "dataset_goldens.json", "w", encoding="utf-8") as f:
        json.dump(goldens, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
