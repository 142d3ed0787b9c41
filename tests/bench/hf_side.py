# SPDX-License-Identifier: Apache-2.0
"""The transformers + PEFT side of the speed benchmark: the same LoRA steps as `kt train`.

    pip install torch==2.9.1 transformers==4.57.1 peft==0.17.1
    python make_model.py DIR && kt data DIR/bench.yaml --jsonl > DIR/data.jsonl
    python hf_side.py DIR/model DIR/data.jsonl --adapter DIR/adapter --steps 6 --batch 4 --accum 4
    python hf_side.py DIR/model DIR/data.jsonl --adapter DIR/adapter --all

DATA.jsonl has {"input_ids": [...], "labels": [...]} a line; sequences are taken in file order, over
and over. A plain loop without the Trainer: padded micro-batches, the loss is the token mean of the
step, gradients clipped at 1, fused AdamW. Prints one JSON object: tokens_per_s (tokens that are not
padding, first step left out), peak_rss_bytes, peak_gpu_bytes with --device cuda, time_to_first_step_s (from the start of the process
to the end of the first optimizer step) and its parts, losses. --all runs each setting in a process
of its own and prints a list, the fastest first.

Measure on a quiet machine: torch's threads wait for each other in every operation, so that another
busy process costs it several times what it takes.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time

SETTINGS = [["--dtype", d] + c for d in ("bf16", "bf16-autocast", "fp32")
            for c in ([], ["--checkpointing"])]


def process_age():
    """Seconds since the kernel started this process."""
    with open("/proc/self/stat") as f:
        ticks = int(f.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as f:
        return float(f.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def load(args):
    import torch
    import transformers
    from peft import PeftModel
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    dtype = torch.float32 if args.dtype == "fp32" else torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype,
                                                              attn_implementation="sdpa")
    model = model.to(args.device)
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model = PeftModel.from_pretrained(model, args.adapter, is_trainable=True,
                                      autocast_adapter_dtype=args.dtype != "bf16")
    if args.dtype == "bf16":  # no casts in the way; the optimizer keeps float32 copies
        model = model.to(torch.bfloat16)
    return model.train()


def collate(examples):
    """Right-padded input_ids, attention_mask and labels."""
    import torch
    width = max(len(e["input_ids"]) for e in examples)
    def pad(rows, value):
        return torch.tensor([r + [value] * (width - len(r)) for r in rows])
    return {"input_ids": pad([e["input_ids"] for e in examples], 0),
            "attention_mask": pad([[1] * len(e["input_ids"]) for e in examples], 0),
            "labels": pad([e["labels"] for e in examples], -100)}


class Stepper:
    """One optimizer step at a time; float32 master copies where the adapter itself is bf16."""

    def __init__(self, model, args):
        import torch
        self.torch, self.model, self.args = torch, model, args
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.master = [p.detach().float().requires_grad_() for p in self.params]
        self.optimizer = torch.optim.AdamW(self.master, lr=args.learning_rate, weight_decay=0.0,
                                           fused=True)

    def step(self, examples):
        torch, batch = self.torch, self.args.batch
        count = sum(l != -100 for e in examples for l in e["labels"])
        total = 0.0
        for i in range(0, len(examples), batch):
            inputs = {k: v.to(self.args.device) for k, v in
                      collate(examples[i:i + batch]).items()}
            with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.dtype == "bf16-autocast"):
                loss = self.model(**inputs, use_cache=False, num_items_in_batch=count).loss
            loss.backward()
            total += loss.item()
        for p, m in zip(self.params, self.master):
            m.grad = None if p.grad is None else p.grad.float()
            p.grad = None
        torch.nn.utils.clip_grad_norm_(self.master, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for p, m in zip(self.params, self.master):
                p.copy_(m)
        return total


def measure(args):
    import torch
    imported = process_age()
    model = load(args)
    loaded = process_age()
    with open(args.data) as f:
        data = [json.loads(line) for line in f]
    stepper = Stepper(model, args)
    per_step = args.batch * args.accum
    losses, tokens, first, started = [], 0, None, None
    for s in range(args.steps):
        examples = [data[(s * per_step + i) % len(data)] for i in range(per_step)]
        losses.append(stepper.step(examples))
        if s == 0:
            first, started = process_age(), time.perf_counter()
        else:
            tokens += sum(len(e["input_ids"]) for e in examples)
    seconds = time.perf_counter() - started
    return {"setting": args.dtype + (" checkpointing" if args.checkpointing else ""),
            "batch": args.batch, "accum": args.accum, "threads": args.threads,
            "tokens_per_s": tokens / seconds if args.steps > 1 else None,
            "step_s": seconds / (args.steps - 1) if args.steps > 1 else None,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else None,
            "time_to_first_step_s": first, "import_s": imported, "load_s": loaded - imported,
            "losses": losses}


def measure_all(argv):
    results = []
    for setting in SETTINGS:
        out = subprocess.run([sys.executable, __file__, *argv, *setting], check=True,
                             stdout=subprocess.PIPE).stdout
        results.append(json.loads(out))
    return sorted(results, key=lambda r: -r["tokens_per_s"])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("data", help="tokenized examples, one JSON object a line")
    parser.add_argument("--adapter", required=True, help="PEFT folder to start from")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps; the first is warm-up")
    parser.add_argument("--batch", type=int, default=4, help="sequences a micro-batch")
    parser.add_argument("--accum", type=int, default=4, help="micro-batches a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--dtype", choices=["bf16", "bf16-autocast", "fp32"], default="bf16",
                        help="weights and compute; autocast keeps the adapter in float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--all", action="store_true", help="every dtype, with and without "
                        "checkpointing")
    args = parser.parse_args()
    if args.all:
        result = measure_all([a for a in sys.argv[1:] if a != "--all"])
    else:
        result = measure(args)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
