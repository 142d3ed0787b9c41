# SPDX-License-Identifier: Apache-2.0
"""Kills kt train and kt convert anywhere and goes on, in a folder with model/, data/ and sft.yaml. After
a kill every checkpoint must be whole, the same command must go on, and the result must have the bytes
of a run without a break, with no file left over. The same for files that may not grow beyond a limit,
as on a full disk, where a sentence must be told and nothing unfinished stays. Prints its seed."""
import argparse
import glob
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

PARTS = {"adapter_config.json", "adapter_model.safetensors", "optimizer.zst", "training_state.json",
         "trainer_state.json", "tokenizer.json", "tokenizer_config.json"}


def check(condition, *what):
    if not condition:
        raise SystemExit("FAIL: " + " ".join(map(str, what)))


def tree(folder):
    return {name: hashlib.sha256(open(f"{folder}/{name}", "rb").read()).hexdigest()
            for name in os.listdir(folder) if os.path.isfile(f"{folder}/{name}")}


def history(folder):
    """The log without what depends on the clock."""
    state = json.load(open(folder + "/trainer_state.json"))
    return [{k: v for k, v in item.items() if "runtime" not in k and "per_second" not in k}
            for item in state["log_history"]]


class Train:
    folder = "out"
    same = ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"]

    def __init__(self, kt):
        self.command = [kt, "train", "sft.yaml", "max_steps=16", "save_steps=1", "save_total_limit=2",
                        "plot_loss=false", "val_size=4", "eval_strategy=steps", "eval_steps=3",
                        "per_device_train_batch_size=1", "cpu_infer=1"]

    def after_kill(self):
        for folder in glob.glob("out/checkpoint-*"):
            check(set(os.listdir(folder)) == PARTS, "torn:", folder, os.listdir(folder))
        for name in glob.glob("out/*.json") + glob.glob("out/checkpoint-*/*.json"):
            json.load(open(name))

    def compare(self, whole):
        check(set(os.listdir(self.folder)) == set(os.listdir(whole)), "files:", os.listdir(self.folder))
        check(history(self.folder) == history(whole), "another history")
        lines = [json.loads(line) for line in open(self.folder + "/trainer_log.jsonl")]
        check(len(lines) == sum(1 for _ in open(whole + "/trainer_log.jsonl")), "lines of the log:", len(lines))
        a, b = tree(self.folder), tree(whole)
        for name in self.same:
            check(a[name] == b[name], "another", name)


class Convert:
    folder = "dst"

    def __init__(self, kt, cases):
        self.command = [kt, "convert", cases + "/v3/model", "dst", "--to", "int4", "cpu_infer=1"]

    def after_kill(self):
        if os.path.exists("dst/config.json"):
            check(os.path.exists("dst/model.safetensors.index.json"), "config.json is not the last file")

    def compare(self, whole):
        check(tree("dst") == tree(whole), "another folder")


def run(job, seconds):
    """Whether it was killed, and its exit code and errors."""
    p = subprocess.Popen(job.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = p.communicate(timeout=seconds)
        return False, p.returncode, errors
    except subprocess.TimeoutExpired:
        p.send_signal(signal.SIGKILL)
        p.communicate()
        return True, 0, ""


def try_limits(job, count):
    """Needs what try_kills left."""
    whole = job.folder + ".whole"
    largest = max(os.path.getsize(f"{whole}/{name}") for name in tree(whole))
    refused = 0
    for _ in range(count):
        shutil.rmtree(job.folder, ignore_errors=True)
        limit = random.randrange(largest)
        p = subprocess.run(job.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        check(p.returncode == 0 or (p.returncode == 1 and p.stderr.startswith("kt: ") and
                                    p.stderr.count("\n") == 1), limit, p.returncode, p.stderr)
        refused += p.returncode
        left = glob.glob(f"{job.folder}/**/*.tmp", recursive=True) + glob.glob(f"{job.folder}/tmp-*")
        check(not left, "left at a limit of", limit, left)
        job.after_kill()
        _, code, errors = run(job, 600)
        check(code == 0 or is_complete(job, errors), "cannot go on:", errors)
        job.compare(whole)
    print(f"{job.command[1]}: {count} limits on files, {refused} reached", flush=True)


def is_complete(job, errors):
    """A kill after the last rename and before the end: kt convert does not begin again."""
    return isinstance(job, Convert) and "holds a complete checkpoint already" in errors


def try_kills(job, count):
    begin = time.monotonic()
    check(run(job, 600)[1] == 0, "the run without a break")
    lasts = time.monotonic() - begin
    whole = job.folder + ".whole"
    os.rename(job.folder, whole)
    kills = runs = 0
    while kills < count:
        shutil.rmtree(job.folder, ignore_errors=True)
        for attempt in range(5):
            killed, code, errors = run(job, random.uniform(0, 1.05) * lasts if attempt < 4 else 600)
            kills += killed
            if not killed:
                break
            job.after_kill()
        check(code == 0 or is_complete(job, errors), "cannot go on:", errors)
        job.compare(whole)
        runs += 1
    print(f"{job.command[1]}: {kills} kills, {runs} runs of {lasts:.2f} s", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kt")
    parser.add_argument("cases")
    parser.add_argument("--count", type=int, default=20, help="kills in all")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    a = parser.parse_args()
    print("seed", a.seed, flush=True)
    random.seed(a.seed)
    for job in (Train(a.kt), Convert(a.kt, a.cases)):
        try_kills(job, (a.count + 1) // 2)
        try_limits(job, (a.count + 7) // 8)


if __name__ == "__main__":
    main()
