# SPDX-License-Identifier: Apache-2.0
"""Write the golden cases of tests/reference/cases (see README.md there for the layout).

    pip install torch==2.9.1 transformers==4.57.1 peft==0.17.1
    pip install --no-deps --target TF517 transformers==5.17.0 'huggingface_hub>=1.5,<2' \
        'tokenizers>=0.23.1,<0.24'
    python make_goldens.py --tf517 TF517              # all cases
    python make_goldens.py --tf517 TF517 v3 v2        # some

Everything is seeded; a second run writes the same bytes on the same machine. The case v2lite is
computed by transformers 5.17 (a child process), then checked here against 4.57.1 with the YaRN
softmax factor put in by hand.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

import engines
import families
import models

LINEARS = ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj",
           "gate_proj", "up_proj", "down_proj", "k_proj", "v_proj", "w1", "w2", "w3",
           "shared_expert_gate"]
STEPS = 10

SPARSE = {**models.V3, "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40,
          "moe_intermediate_size": 12, "num_nextn_predict_layers": 0, "n_routed_experts": 24,
          "num_experts_per_tok": 2, "rope_scaling": None}

CASES = {
    "v3": dict(config=models.V3, seed=30, lengths=(13, 37, 22), shards=3, margin=2e-3),
    "v3bf16": dict(config=models.V3, seed=31, lengths=(13, 37, 22), shards=2, margin=2.5e-2,
                   dtype=torch.bfloat16),
    "v2": dict(config=models.V2, seed=20, lengths=(5, 14, 9), shards=1, margin=1e-3, rslora=True),
    "v2f16": dict(config={**models.V2, "num_hidden_layers": 2}, seed=21, lengths=(5, 14, 9),
                  shards=1, margin=1e-3, dtype=torch.float16),
    "v2lite": dict(config=models.V2LITE, seed=22, lengths=(13, 37, 22), shards=2, margin=1e-3,
                   tf5=True),
    # Two micro-batches of two, each padded to its longest rounded up to a multiple of 8.
    "v3pad": dict(config=SPARSE, seed=23, lengths=(5, 12, 9, 3), padding=(11, 4, 7, 13), shards=1,
                  margin=1e-3),
    # Greedy generation goes far beyond the sliding window.
    "qwen3moe": dict(config=families.QWEN3_MOE, seed=40, lengths=(13, 37, 22), shards=2,
                     margin=1e-3, new_tokens=64, router_lora=True),
    "qwen2moe": dict(config=families.QWEN2_MOE, seed=41, lengths=(5, 18, 9), shards=1,
                     margin=1e-3, new_tokens=64, router_lora=True),
    "mixtral": dict(config=families.MIXTRAL, seed=42, lengths=(13, 27, 12), shards=1,
                    margin=1e-3, new_tokens=64, router_lora=True),
    "qwen3moebf16": dict(config=families.QWEN3_MOE, seed=50, lengths=(13, 37, 22), shards=2,
                         margin=1e-2, new_tokens=64, router_lora=True, dtype=torch.bfloat16),
    "qwen2moebf16": dict(config=families.QWEN2_MOE, seed=51, lengths=(5, 18, 9), shards=1,
                         margin=4e-3, new_tokens=32, router_lora=True, dtype=torch.bfloat16),
    "mixtralbf16": dict(config=families.MIXTRAL, seed=52, lengths=(13, 27, 12), shards=1,
                        margin=1e-2, new_tokens=32, router_lora=True, dtype=torch.bfloat16),
    # The first sequence is shorter than max_position_embeddings, the others are longer, and their
    # padding counts for their length.
    "dynamic": dict(config=families.DYNAMIC, seed=47, lengths=(13, 37, 22), padding=(0, 3, 10),
                    shards=1, margin=0, new_tokens=64, router_lora=True),
    "qwen3": dict(config=families.QWEN3, seed=43, lengths=(13, 37, 22), shards=1, margin=0,
                  new_tokens=64),
    "qwen2": dict(config=families.QWEN2, seed=44, lengths=(13, 37, 22), shards=1, margin=0,
                  new_tokens=64),
    "llama": dict(config=families.LLAMA, seed=45, lengths=(13, 37, 22), shards=1, margin=0,
                  new_tokens=64),
    "llamabf16": dict(config=families.LLAMA, seed=55, lengths=(13, 37, 22), shards=1, margin=0,
                      new_tokens=64, dtype=torch.bfloat16),
    "qwen3bf16": dict(config=families.QWEN3, seed=53, lengths=(13, 37, 22), shards=1, margin=0,
                      new_tokens=64, dtype=torch.bfloat16),
    "mistral": dict(config=families.MISTRAL, seed=46, lengths=(13, 37, 22), shards=1, margin=0,
                    new_tokens=64),
}


def relative(a, b):
    """Relative L2 error; the error itself where b is 0 (a gradient that only unlabelled tokens make)."""
    return ((a.double() - b.double()).norm() / (b.double().norm() or 1)).item()


def make_adapter(model_dir, folder, seed, rslora, router_lora=False):
    """A PEFT adapter over every linear but lm_head, A and B both random. The router has to be a
    linear to be a target."""
    from peft import LoraConfig, get_peft_model
    model = engines.load_model(model_dir)
    present = {n.split(".")[-1] for n, _ in model.named_modules()}
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, use_rslora=rslora, bias="none",
                        task_type="CAUSAL_LM",
                        target_modules=[n for n in LINEARS + ["gate"] * router_lora if n in present])
    model = get_peft_model(model, config)
    gen = torch.Generator().manual_seed(seed + 1000)
    for name, p in sorted(model.named_parameters()):
        if p.requires_grad:
            std = 0.1 if "lora_B" in name else p.shape[1] ** -0.5
            p.data = torch.randn(p.shape, generator=gen) * std
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    text = json.loads(file.read_text())
    text["base_model_name_or_path"] = None
    text["target_modules"].sort()
    file.write_text(json.dumps(text, indent=2, sort_keys=True) + "\n")


def make_data(engine, lengths, vocab, seed, margin):
    """Random tokens, each drawn again until no router decision is closer than the margin."""
    gen = torch.Generator().manual_seed(seed + 2000)
    sequences = []
    for length in lengths:
        ids = torch.empty(0, dtype=torch.int64)
        while len(ids) < length:
            trial = torch.cat([ids, torch.randint(2, vocab, (1,), generator=gen)])
            with torch.no_grad(), engines.Margins(engine) as m:
                engine.logits(trial)
            if m.smallest > margin:
                ids = trial
        sequences.append(ids)
    labels = [ids.clone() for ids in sequences]
    labels[0][:4] = -100      # a prompt
    labels[1][10:15] = -100  # an earlier turn; its first label counts, though nothing predicts it
    labels[2][:3] = -100
    labels[2][-1:] = -100
    return sequences, labels


def backward(engine, sequences, labels, padding):
    """The loss of one step as transformers 4.57.1 computes it, gradients left in .grad."""
    count = sum((l != -100).sum() for l in labels)
    total, logits = 0.0, []
    for p in engine.trainable.values():
        p.grad = None
    for ids, l, pads in zip(sequences, labels, padding):
        out = engine.logits(ids, pads).float()
        shifted = torch.nn.functional.pad(l, (0, 1), value=-100)[1:]
        loss = torch.nn.functional.cross_entropy(out, shifted, reduction="sum") / count
        loss.backward()
        total += loss.item()
        logits.append(out.detach())
    if hasattr(engine, "drop_unused"):
        engine.drop_unused()
    return total, torch.cat(logits)


def adamw(engine, sequences, labels, padding):
    """Ten steps on one batch; updates engine.trainable. -> losses, grad norms before clipping"""
    params = list(engine.trainable.values())
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses, norms = [], []
    for _ in range(STEPS):
        loss, _ = backward(engine, sequences, labels, padding)
        norms.append(torch.nn.utils.clip_grad_norm_(params, 1.0).item())
        optimizer.step()
        losses.append(loss)
    return losses, norms


def grads(engine):
    return {n: p.grad.clone() for n, p in engine.trainable.items() if p.grad is not None}


def compute(engine, sequences, labels, padding=None, new_tokens=32, dynamic=False):
    """Everything in golden.safetensors but PyTorch's own bf16 errors."""
    prompt = sequences[0][:8]
    out = {"input_ids": torch.cat(sequences), "labels": torch.cat(labels),
           "cu_seqlens": torch.tensor([0] + [len(s) for s in sequences]).cumsum(0)}
    if padding:
        out.update(padding=torch.tensor(padding), padding_id=torch.tensor([engines.PAD]))
    padding = padding or [0] * len(sequences)
    with engines.Margins(engine) as m:
        loss, out["logits"] = backward(engine, sequences, labels, padding)
        out["loss"] = torch.tensor([loss])
        out.update({f"grad.{n}": g for n, g in grads(engine).items()})
        out["logits_base"] = torch.cat([engine.base_logits(s, p) for s, p in zip(sequences, padding)])
        out["greedy"], chosen = engine.generate(prompt, new_tokens)
        out["greedy_prompt_len"] = torch.tensor([len(prompt)])
        losses, norms = adamw(engine, sequences, labels, padding)
    out["losses"] = torch.tensor(losses)
    out["grad_norms"] = torch.tensor(norms)
    out.update({f"step{STEPS}.{n}": p.detach().clone() for n, p in engine.trainable.items()})
    out["router_margin"] = torch.tensor([m.smallest])
    top = chosen.topk(2).values
    out["greedy_margin"] = (top[:, 0] - top[:, 1]).min()[None]
    if dynamic:
        out["greedy_logits"] = chosen
    return out


def bf16_errors(case, golden, sequences, labels):
    """PyTorch in bfloat16 with float32 adapter weights under autocast, against the golden."""
    engine = engines.PeftEngine(case / "model", case / "adapter", torch.bfloat16, autocast=True)
    loss, logits = backward(engine, sequences, labels, [0] * len(labels))
    out = {"logits": relative(logits, golden["logits"]),
           "loss": abs(loss - golden["loss"].item()) / golden["loss"].item()}
    mine = grads(engine)
    names = [n for n in engine.trainable if f"grad.{n}" in golden]
    zero = {n: torch.zeros_like(golden[f"grad.{n}"]) for n in names}
    for n in names:
        out[f"grad.{n}"] = relative(mine.get(n, zero[n]), golden[f"grad.{n}"])
    out["grads"] = relative(torch.cat([mine.get(n, zero[n]).flatten() for n in names]),
                            torch.cat([golden[f"grad.{n}"].flatten() for n in names]))
    return {f"bf16_error.{n}": torch.tensor([v]) for n, v in out.items()}


def split(golden):
    cuts = golden["cu_seqlens"][1:-1].tolist()
    return [list(torch.tensor_split(golden[k], cuts)) for k in ("input_ids", "labels")]


def by_transformers5(case, tf517, twin, sequences, labels):
    """Runs this script again with transformers 5.17 first on the path; the twin is 4.57.1's."""
    data = case / "data.safetensors"
    save_file({"input_ids": torch.cat(sequences), "labels": torch.cat(labels), "cu_seqlens":
               torch.tensor([0] + [len(s) for s in sequences]).cumsum(0)}, data)
    env = {**os.environ, "PYTHONPATH": str(tf517)}
    subprocess.run([sys.executable, __file__, "--child", str(case)], env=env, check=True)
    data.unlink()
    golden = load_file(case / "golden.safetensors")
    assert twin.keys() == golden.keys() and torch.equal(twin["greedy"], golden["greedy"])
    worst = max(relative(twin[n], golden[n]) for n in golden
                if golden[n].is_floating_point() and not n.endswith("_margin"))
    print(f"  5.17 against 4.57.1 with the softmax factor: relative L2 {worst:.1e}")
    assert worst < 1e-3
    return golden


def child(case):
    assert transformers.__version__ == "5.17.0", transformers.__version__
    sequences, labels = split(load_file(case / "data.safetensors"))
    golden = compute(engines.MergedEngine(case / "model", case / "adapter"), sequences, labels)
    save_file(golden, case / "golden.safetensors")


def make_case(name, folder, tf517):
    spec = CASES[name]
    case = folder / name
    shutil.rmtree(case, ignore_errors=True)
    config, seed = spec["config"], spec["seed"]
    unused = 5 if config.get("scoring_func") == "sigmoid" else None
    weights = models.make_weights(config, seed, spec.get("dtype", torch.float32), unused)
    models.write_checkpoint(case / "model", config, weights, spec["shards"])
    make_adapter(case / "model", case / "adapter", seed, spec.get("rslora", False),
                 spec.get("router_lora", False))
    for attempt in range(100):
        engine = engines.PeftEngine(case / "model", case / "adapter")
        data = make_data(engine, spec["lengths"], config["vocab_size"], seed + attempt,
                         spec["margin"])
        golden = compute(engine, *data, spec.get("padding"), spec.get("new_tokens", 32),
                         "dynamic" in str(config["rope_scaling"]))
        if spec.get("dtype") == torch.bfloat16:
            golden.update(bf16_errors(case, golden, *data))
        if (golden["router_margin"] > 1e-4 and golden["greedy_margin"] > 1e-3
                and golden.get("bf16_error.loss", 1) > 1e-4):
            break  # errors that cancel in the one number of a loss say nothing of bfloat16
    else:
        sys.exit(f"{name}: every draw of the data has a choice too close to call")
    if spec.get("tf5"):
        golden = by_transformers5(case, tf517, golden, *data)
    save_file({k: v.contiguous() for k, v in golden.items()}, case / "golden.safetensors")
    report(name, case, golden, engine)


def report(name, case, golden, engine):
    unused = [n for n in engine.trainable if f"grad.{n}" not in golden]
    size = sum(f.stat().st_size for f in case.rglob("*") if f.is_file())
    print(f"{name}: loss {golden['losses'][0]:.6f} -> {golden['losses'][-1]:.6f}, router margin "
          f"{golden['router_margin'].item():.1e}, "
          f"greedy margin {golden['greedy_margin'].item():.1e}, "
          f"{len(unused)} tensors without gradient, logits std {golden['logits'].std():.2f}, "
          f"adapter changes logits by {relative(golden['logits'], golden['logits_base']):.2f}, "
          f"{size / 1e6:.2f} MB", flush=True)
    for key in ("bf16_error.logits", "bf16_error.loss", "bf16_error.grads"):
        if key in golden:
            print(f"  {key} {golden[key].item():.2e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "cases")
    parser.add_argument("--tf517", type=Path, help="folder that holds transformers 5.17.0")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.child:
        return child(args.child)
    assert transformers.__version__ == "4.57.1", transformers.__version__
    for name in args.cases or CASES:
        make_case(name, args.out, args.tf517)


if __name__ == "__main__":
    main()
