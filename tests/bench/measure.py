# SPDX-License-Identifier: Apache-2.0
"""Runs `kt train` and hf_side.py as processes and measures them from outside."""
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KT = HERE.parent.parent / "build" / "bench" / "examples" / "kt" / "kt"


def build():
    """A release build of its own, in build/bench."""
    folder = KT.parents[2]
    if not (folder / "build.ninja").exists():
        subprocess.run(["meson", "setup", folder, HERE.parent.parent, "-Dbuildtype=release"],
                       check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", folder, "programs/kt/kt"], check=True,
                   stdout=subprocess.DEVNULL)


def make_model(folder, flags=(), **options):
    """make_model.py with --key value for each option; a folder that is there is kept."""
    if not (folder / "bench.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        values = [f for k, v in options.items() for f in (f"--{k.replace('_', '-')}", str(v))]
        subprocess.run([sys.executable, HERE / "make_model.py", folder, *values, *flags], check=True,
                       stdout=sys.stderr)
    data = folder / "data.jsonl"
    if not data.exists():
        with open(data, "w") as f:
            subprocess.run([KT, "data", folder / "bench.yaml", "--jsonl"], check=True, stdout=f)
    return folder


def step_tokens(folder, steps, per_step):
    """Tokens that each step sees; both sides take the examples in file order, over and over."""
    lengths = [len(json.loads(line)["input_ids"]) for line in open(folder / "data.jsonl")]
    return [sum(lengths[(s * per_step + i) % len(lengths)] for i in range(per_step))
            for s in range(steps)]


def run_kt(folder, steps, batch=4, accum=4, threads=2, **keys):
    """One `kt train`. It is ready when it has told the number of parameters, the last thing before
    the first step; a step ends when its line stands in trainer_log.jsonl."""
    log, screen = folder / "out" / "trainer_log.jsonl", folder / "kt.log"
    log.unlink(missing_ok=True)
    keys = {"max_steps": steps, "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accum, "cpu_infer": threads, **keys}
    ready, ends, done = None, [], (0, 0, None)
    with open(screen, "w") as out:
        start = time.perf_counter()
        process = subprocess.Popen([KT, "train", folder / "bench.yaml",
                                    *(f"{k}={v}" for k, v in keys.items())],
                                   stdout=out, stderr=subprocess.STDOUT)
        while done[0] == 0:
            now = time.perf_counter() - start
            if ready is None and b"trainable params" in screen.read_bytes():
                ready = now
            lines = log.read_bytes().count(b"\n") if log.exists() else 0
            ends += [now] * (min(lines, steps) - len(ends))
            time.sleep(0.005)
            done = os.wait4(process.pid, os.WNOHANG)
    if done[1] != 0 or len(ends) < steps:
        raise SystemExit(f"kt train failed; see {screen}")
    tokens = step_tokens(folder, steps, batch * accum)
    losses = [json.loads(line).get("loss") for line in open(log)][:steps]
    seconds = ends[-1] - ends[0]
    return {"tokens_per_s": sum(tokens[1:]) / seconds if steps > 1 else None,
            "step_s": seconds / (steps - 1) if steps > 1 else None, "ready_s": ready,
            "peak_rss_bytes": done[2].ru_maxrss * 1024, "time_to_first_step_s": ends[0],
            "losses": losses}


def run_hf(folder, steps, batch, accum, threads, flags):
    """One hf_side.py process, or a list of results with --all among the flags."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    out = subprocess.run([sys.executable, HERE / "hf_side.py", folder / "model",
                          folder / "data.jsonl", "--adapter", folder / "adapter", "--steps",
                          str(steps), "--batch", str(batch), "--accum", str(accum), "--threads",
                          str(threads), *flags], check=True, stdout=subprocess.PIPE, env=env).stdout
    result = json.loads(out)
    for r in result if isinstance(result, list) else [result]:
        r["ready_s"] = r["import_s"] + r["load_s"]
    return result


def middle(results, key):
    """Median and the spread (largest - smallest) over it."""
    values = [r[key] for r in results]
    median = statistics.median(values)
    return median, (max(values) - min(values)) / median
