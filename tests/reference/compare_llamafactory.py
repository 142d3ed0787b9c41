# SPDX-License-Identifier: Apache-2.0
"""Train the same tiny models with LLaMA-Factory 0.9.4 and with kt, and compare every number.

    pip install llamafactory==0.9.4 torch==2.9.1 transformers==4.57.1 peft==0.17.1
    python compare_llamafactory.py --kt ../../build/kt                 # both, all cases
    python compare_llamafactory.py --work DIR v3                       # LLaMA-Factory alone

Each case makes a model with a tokenizer, an alpaca dataset, an initial adapter and one YAML file;
both programs read that file, only output_dir differs. Compared: loss (1e-4), grad_norm (1e-3) and
learning_rate (1e-6) of each logged step, all relative, what the logs say of epochs and steps, and
the update of the adapter (relative L2 1e-2). Lines read kt / LLaMA-Factory. Exit status 0 when all
agree.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

import families
import make_goldens
import models
import tiny

BASE = {"stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_target": "all",
        "dataset": "tiny", "cutoff_len": 256, "overwrite_cache": True, "logging_steps": 1,
        "save_steps": 4, "plot_loss": True, "overwrite_output_dir": True, "report_to": "none",
        "template": "deepseek3", "create_new_adapter": False, "use_cpu": True, "bf16": False,
        "trust_remote_code": True}

CASES = {
    "v3": dict(config=models.V3, yaml=dict(
        per_device_train_batch_size=1, gradient_accumulation_steps=8, learning_rate=1.0e-3,
        num_train_epochs=3.0, lr_scheduler_type="cosine", warmup_ratio=0.1)),
    "v2": dict(config=models.V2, rslora=True, yaml=dict(
        template="deepseek", per_device_train_batch_size=2, gradient_accumulation_steps=3,
        learning_rate=5.0e-4, num_train_epochs=2.0, lr_scheduler_type="linear", warmup_steps=2,
        disable_shuffling=True, weight_decay=0.01, max_grad_norm=0.5)),
    "v2lite": dict(config={**models.V2LITE, "rope_scaling": None}, yaml=dict(
        template="deepseek", per_device_train_batch_size=4, gradient_accumulation_steps=1,
        learning_rate=1.0e-3, num_train_epochs=2, lr_scheduler_type="constant",
        eval_strategy="epoch", val_size=0.3, per_device_eval_batch_size=3, logging_steps=0.25)),
    "v3eval": dict(config=models.V3, yaml=dict(
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1.0e-3,
        max_steps=9, lr_scheduler_type="constant_with_warmup", warmup_steps=3, val_size=0.2,
        eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=2, logging_steps=2,
        seed=7, data_seed=11)),
    # So few tokens for so many experts that some are chosen by padding alone: they get a gradient
    # of zeros, which AdamW steps with, where an expert that nothing chose is skipped.
    "v3sparse": dict(config={**models.V3, "n_routed_experts": 32, "num_experts_per_tok": 2},
                     yaml=dict(
        per_device_train_batch_size=2, gradient_accumulation_steps=1, learning_rate=1.0e-3,
        max_steps=12, lr_scheduler_type="constant", weight_decay=0.01)),
    "v3groups": dict(config={**models.V3, "n_routed_experts": 64, "num_experts_per_tok": 4,
                             "n_group": 8, "topk_group": 3}, yaml=dict(
        per_device_train_batch_size=1, gradient_accumulation_steps=2, learning_rate=1.0e-3,
        num_train_epochs=1, lr_scheduler_type="cosine", warmup_ratio=0.1,
        default_system="Be brief.", save_strategy="epoch")),
    "restarts": dict(config=models.V3, yaml=dict(
        template="deepseek", per_device_train_batch_size=3, gradient_accumulation_steps=2,
        learning_rate=8.0e-4, num_train_epochs=1.5, lr_scheduler_type="cosine_with_restarts",
        lr_scheduler_kwargs={"num_cycles": 2}, warmup_ratio=0.3, logging_steps=2, cutoff_len=40,
        seed=3)),
    "polynomial": dict(config=models.V3, rslora=True, yaml=dict(
        template="default", per_device_train_batch_size=1, gradient_accumulation_steps=5,
        learning_rate=8.0e-4, num_train_epochs=2, lr_scheduler_type="polynomial", warmup_steps=2,
        train_on_prompt=True, max_samples=13, val_size=3, do_eval=True,
        per_device_eval_batch_size=2, max_grad_norm=0.0)),
    "inverse": dict(config=models.V2, yaml=dict(
        template="default", per_device_train_batch_size=2, gradient_accumulation_steps=4,
        learning_rate=1.0e-3, max_steps=7, lr_scheduler_type="inverse_sqrt", warmup_steps=2,
        mask_history=True, data_seed=99, logging_first_step=True, logging_steps=3,
        adam_beta2=0.95, adam_epsilon=1.0e-6, weight_decay=0.1)),
    "partial": dict(config=models.V3, yaml=dict(
        dataset="tiny,tiny", per_device_train_batch_size=8, gradient_accumulation_steps=8,
        learning_rate=1.0e-3, num_train_epochs=4, lr_scheduler_type="linear", warmup_ratio=0.5,
        save_total_limit=1, save_steps=2)),
    # Adapters over every linear, routers and gates included.
    "qwen2moe": dict(config=families.QWEN2_MOE, router_lora=True, yaml=dict(
        template="deepseek3", per_device_train_batch_size=1, gradient_accumulation_steps=4,
        learning_rate=1.0e-3, max_steps=6, lr_scheduler_type="cosine", warmup_ratio=0.1)),
    "qwen3moe": dict(config=families.QWEN3_MOE, router_lora=True, yaml=dict(
        template="deepseek3", per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=1.0e-3, max_steps=6, lr_scheduler_type="cosine", warmup_ratio=0.1)),
    "qwen2moeone": dict(config=families.QWEN2_MOE, router_lora=True, yaml=dict(
        template="default", per_device_train_batch_size=4, gradient_accumulation_steps=1,
        learning_rate=1.0e-3, max_steps=6, lr_scheduler_type="cosine", weight_decay=0.01)),
    "qwen3moeone": dict(config=families.QWEN3_MOE, router_lora=True, yaml=dict(
        template="deepseek3", per_device_train_batch_size=3, gradient_accumulation_steps=1,
        learning_rate=1.0e-3, max_steps=6, lr_scheduler_type="linear", weight_decay=0.01)),
}


def prepare(name, folder):
    """Model, tokenizer, data, adapter and X.yaml under the folder; -> the YAML's path"""
    spec, seed = CASES[name], 40 + list(CASES).index(name)
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    vocab = tiny.write_tokenizer(model)
    config = {**spec["config"], "vocab_size": vocab, "max_position_embeddings": 512}
    models.write_checkpoint(model, config, models.make_weights(config, seed), shards=2)
    tiny.write_dataset(folder / "data")
    make_goldens.make_adapter(model, folder / "adapter", seed, spec.get("rslora", False),
                              spec.get("router_lora", False))
    keys = {"model_name_or_path": str(model), "adapter_name_or_path": str(folder / "adapter"),
            **BASE, "dataset_dir": str(folder / "data"), "output_dir": str(folder / "lf"),
            "lora_rank": 4, "lora_alpha": 8, **spec["yaml"]}
    file = folder / f"{name}.yaml"
    file.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in keys.items()))
    return file


def run_llamafactory(file, log):
    env = {**os.environ, "OMP_NUM_THREADS": "2", "DISABLE_VERSION_CHECK": "1",
           "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    code = "from llamafactory.cli import main; main()"
    with open(log, "w") as out:
        subprocess.run([sys.executable, "-c", code, "train", str(file)], env=env, stdout=out,
                       stderr=subprocess.STDOUT, check=True)


def run_kt(kt, file, output, log):
    with open(log, "w") as out:
        subprocess.run([kt, "train", str(file), f"output_dir={output}"], stdout=out,
                       stderr=subprocess.STDOUT, check=True)


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def relative(a, b):
    return abs(a - b) / max(abs(b), 1e-30)


LIMITS = {"loss": 1e-4, "eval_loss": 1e-4, "train_loss": 1e-4, "grad_norm": 1e-3,
          "learning_rate": 1e-6, "epoch": 1e-6, "step": 0}


def compare_logs(ours, theirs):
    """-> worst relative difference of each quantity, and what is amiss"""
    worst, amiss = {}, []
    if len(ours) != len(theirs):
        amiss.append(f"{len(ours)} log entries, LLaMA-Factory has {len(theirs)}")
    for mine, other in zip(ours, theirs):
        for key in LIMITS:
            if (key in mine) != (key in other):
                amiss.append(f"step {other['step']}: {key} is in one log only")
            elif key in other:
                d = relative(mine[key], other[key])
                worst[key] = max(worst.get(key, 0.0), d)
                if d > LIMITS[key]:
                    amiss.append(f"step {other['step']}: {key} {mine[key]!r}, "
                                 f"LLaMA-Factory {other[key]!r}")
    return worst, amiss


def compare_adapters(ours, theirs, start):
    """Relative L2 distance of the two updates, over all tensors at once."""
    a, b, s = (load_file(f / "adapter_model.safetensors") for f in (ours, theirs, start))
    if a.keys() != b.keys():
        raise SystemExit(f"adapter tensors differ: {sorted(a.keys() ^ b.keys())[:4]}")
    for n in b:
        if a[n].shape != b[n].shape:
            raise SystemExit(f"{n}: {tuple(a[n].shape)}, LLaMA-Factory {tuple(b[n].shape)}")
    diff = sum((a[n].double() - b[n].double()).square().sum() for n in b).sqrt()
    return (diff / sum((b[n].double() - s[n].double()).square().sum() for n in b).sqrt()).item()


def show_logs(ours, theirs):
    keys = ("loss", "eval_loss", "grad_norm", "learning_rate")
    for mine, other in zip(ours, theirs):
        cells = [f"{k} {mine.get(k, float('nan')):.6g} / {other[k]:.6g}"
                 for k in keys if k in other]
        if cells:
            print(f"  step {other['step']:3d}  " + "   ".join(cells))


def compare(name, folder):
    ours, theirs = history(folder / "kt"), history(folder / "lf")
    show_logs(ours, theirs)
    worst, amiss = compare_logs(ours, theirs)
    update = compare_adapters(folder / "kt", folder / "lf", folder / "adapter")
    if update > 1e-2:
        amiss.append(f"the adapter's update is off by {update:.1e}")
    print(f"{name}: worst relative difference: " +
          ", ".join(f"{k} {v:.1e}" for k, v in worst.items()) + f", adapter update {update:.1e}")
    for line in amiss:
        print(f"  WRONG {line}")
    return not amiss


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--kt", help="the kt program; without it only LLaMA-Factory runs")
    parser.add_argument("--work", type=Path, help="folder to keep (default: a temporary one)")
    parser.add_argument("--reuse", action="store_true",
                        help="keep LLaMA-Factory's results that are in --work already")
    args = parser.parse_args()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    work = args.work or Path(tempfile.mkdtemp(prefix="kt-compare-"))
    good = True
    for name in args.cases or CASES:
        folder = (work / name).resolve()
        if not (args.reuse and (folder / "lf" / "all_results.json").exists()):
            shutil.rmtree(folder, ignore_errors=True)
            run_llamafactory(prepare(name, folder), folder / "lf.log")
        if args.kt:
            shutil.rmtree(folder / "kt", ignore_errors=True)
            run_kt(args.kt, folder / f"{name}.yaml", folder / "kt", folder / "kt.log")
            good &= compare(name, folder)
    if not args.work:
        shutil.rmtree(work)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
