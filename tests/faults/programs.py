# SPDX-License-Identifier: Apache-2.0
"""Fails one call for memory or of IO after another (see interpose.h) while kt trains five steps, goes
on from a checkpoint, converts a model, and chats; KT is tests/faults/kt-faults, in a folder with
model/, data/ and sft.yaml. Each run must end well with the result of a run without a fault, or with
exit code 1 and one sentence; what is on the disk then must be whole, and the same command without a
fault must go on from it to the same bytes."""
import argparse
import glob
import json
import os
import shutil
import subprocess
import sys

from kills import PARTS, check, history, tree

# A sanitizer's report is no sentence.
SENTENCE = "kt: "
WARNING = "kt: warning: "


class Train:
    """Five steps, with evaluation, and a checkpoint each two."""
    name = "train"
    folder = "out"
    base = None
    stdin = None

    def __init__(self, kt, cases):
        self.command = [kt, "train", "sft.yaml", "max_steps=5", "save_steps=2", "save_total_limit=2",
                        "val_size=4", "eval_strategy=steps", "eval_steps=3", "cpu_infer=1",
                        "per_device_train_batch_size=1", "plot_loss=false"]

    def state(self):
        """All that a run that goes on depends on: no times."""
        if not os.path.isdir(self.folder):
            return None
        found = []
        for path in sorted(glob.glob(self.folder + "/**", recursive=True)):
            if path.endswith(("_log.jsonl", "_state.json", "_results.json", ".png", ".tmp")):
                found.append(path.rsplit(".", 2)[0] if path.endswith(".tmp") else path)
            elif os.path.isfile(path):
                found.append((path, tree(os.path.dirname(path))[os.path.basename(path)]))
        return tuple(found)

    def check_whole(self):
        for folder in glob.glob("out/checkpoint-*"):
            check(set(os.listdir(folder)) - {".tmp"} >= PARTS, "torn:", folder, os.listdir(folder))
        for name in glob.glob("out/*.json") + glob.glob("out/checkpoint-*/*.json"):
            json.load(open(name))

    def compare(self, whole, warned=False):
        found, wanted = set(os.listdir("out")), set(os.listdir(whole))
        check(found == wanted or (warned and found > wanted), "files:", found ^ wanted)
        check(history("out") == history(whole), "another history")
        lines = [[json.loads(line) for line in open(f"{folder}/trainer_log.jsonl")]
                 for folder in ("out", whole)]
        check(len(lines[0]) == len(lines[1]), "lines of the log:", len(lines[0]))
        a, b = tree("out"), tree(whole)
        for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"):
            check(a[name] == b[name], "another", name)

    def is_done(self, errors):
        return False


class Resume(Train):
    """From the checkpoint after two of the five steps."""
    name = "resume"
    base = "base"

    def __init__(self, kt, cases):
        super().__init__(kt, cases)
        subprocess.run(self.command + ["save_total_limit=9", "output_dir=all"], check=True,
                       stdout=subprocess.DEVNULL)
        os.mkdir("base")
        os.rename("all/checkpoint-2", "base/checkpoint-2")
        os.rename("all/trainer_log.jsonl", "base/trainer_log.jsonl")
        shutil.rmtree("all")


class Convert:
    name = "convert"
    folder = "dst"
    base = None
    stdin = None

    def __init__(self, kt, cases):
        self.command = [kt, "convert", "small", "dst", "--to", "int4", "cpu_infer=1"]

    def state(self):
        if not os.path.isdir("dst"):
            return None
        return tuple(sorted(("x.tmp", "") if name.endswith(".tmp") else (name, digest)
                            for name, digest in tree("dst").items()))

    def check_whole(self):
        if os.path.exists("dst/config.json"):
            check(os.path.exists("dst/model.safetensors"), "config.json is not the last file")

    def compare(self, whole, warned=False):
        check(tree("dst") == tree(whole), "another folder")

    def is_done(self, errors):
        return "holds a complete checkpoint already" in errors


class Chat:
    """Two questions of an adapter, and the conversation into a file."""
    name = "chat"
    folder = "talk"
    base = "empty"
    stdin = "who is ann?\nand bob?\n/save talk/talk.json\n/exit\n"

    def __init__(self, kt, cases):
        os.mkdir("empty")
        subprocess.run([kt, "train", "sft.yaml", "max_steps=1", "output_dir=adapter", "cpu_infer=1"],
                       check=True, stdout=subprocess.DEVNULL)
        self.command = [kt, "chat", "model", "template=deepseek3", "adapter_name_or_path=adapter",
                        "max_new_tokens=8", "do_sample=false", "cpu_infer=1"]

    def state(self):
        return tuple(sorted(tree("talk").items()))

    def check_whole(self):
        if os.path.exists("talk/talk.json"):
            check(len(json.load(open("talk/talk.json"))) == 4, "a torn conversation")

    def compare(self, whole, warned=False):
        check(tree("talk") == tree(whole), "another conversation")

    def is_done(self, errors):
        return False


class Walk:
    def __init__(self, job, kind):
        self.job, self.kind = job, kind
        self.whole = f"{job.folder}.{job.name}.whole"
        self.went_on = set()

    def run(self, fault=None):
        """Exit code and errors."""
        environment = dict(os.environ)
        if fault is not None:
            environment.update(KT_FAULT=f"{self.kind}:{fault}", KT_FAULT_COUNT="count")
        p = subprocess.run(self.job.command, input=self.job.stdin or "", stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, errors="replace", env=environment,
                           timeout=120)
        self.output = p.stdout
        return p.returncode, p.stderr

    def prepare(self):
        shutil.rmtree(self.job.folder, ignore_errors=True)
        if self.job.base:
            shutil.copytree(self.job.base, self.job.folder)

    def go_on(self):
        """Without a fault, from what is there; once from the same state."""
        state = self.job.state()
        if state in self.went_on:
            return
        code, errors = self.run()
        check(code == 0 or self.job.is_done(errors), "cannot go on:", code, errors)
        self.job.compare(self.whole)
        self.went_on.add(state)

    def check_end(self, code, errors):
        lines = [line for line in errors.splitlines() if not line.startswith(WARNING)]
        if code == 0:
            check(not lines, "success with errors:", errors)
            check(self.job.name != "chat" or self.output == self.answers, "other answers:", self.output)
            self.job.compare(self.whole, warned=errors != "")
        else:
            check(code == 1 and len(lines) == 1 and lines[0].startswith(SENTENCE), "exit code", code, errors)
        if self.kind == "short":
            check(code == 0, "a short read or write is no error:", errors)

    def try_one(self, n):
        self.prepare()
        code, errors = self.run(n)
        self.check_end(code, errors)
        self.job.check_whole()
        self.go_on()
        return code

    def try_all(self, every, first):
        self.prepare()
        check(self.run()[0] == 0, "the run without a fault")
        self.answers = self.output
        if not os.path.exists(self.whole):
            os.rename(self.job.folder, self.whole)
        self.prepare()
        check(self.run(0)[0] == 0, "the run that counts")
        total = int(open("count").read())
        told = bad = 0
        tried = range(first, total + 1, every)
        for n in tried:
            try:
                told += self.try_one(n)
            except (SystemExit, subprocess.TimeoutExpired, ValueError, OSError) as e:
                bad += 1
                print(f"{self.job.name} {self.kind} {n}: {e}", flush=True)
        print(f"{self.job.name}: {len(tried)} of {total} calls failed ({self.kind}), {told} told, "
              f"{bad} not well", flush=True)
        return bad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kt")
    parser.add_argument("cases")
    parser.add_argument("--kind", default="alloc,io,full,short")
    parser.add_argument("--walk", default="train,resume,convert,chat")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    a = parser.parse_args()
    bad = 0
    for job in (Train, Resume, Convert, Chat):
        if job.name in a.walk.split(","):
            made = job(a.kt, a.cases)
            for kind in a.kind.split(","):
                bad += Walk(made, kind).try_all(a.every, a.first)
    sys.exit(bad != 0)


main()
