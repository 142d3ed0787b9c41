#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure what fine-tuning did: questions.json and questions of the corpus through `kt chat`.

    ask.py [--kt build/quickstart/programs/kt/kt] [--adapter saves/demo] [--show]

Counts the identity questions (none of them in identity.json) answered with the new name or author
and without the old one, the ordinary questions whose answer stayed the same to the letter, and,
among evaluation questions that the base model answers rightly, those still answered rightly.
"""
import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from corpus import grammar  # noqa: E402

OLD = ("Pebble", "石", "demo script", "脚本")


def chat(kt, questions, *args):
    lines = "".join(q + "\n/clear\n" for q in questions)
    done = subprocess.run([kt, "chat", os.path.join(HERE, "chat.yaml"), *args], input=lines, text=True,
                          stdout=subprocess.PIPE, check=True, cwd=os.path.join(HERE, "..", ".."))
    answers = done.stdout.splitlines()
    if len(answers) != len(questions):
        raise SystemExit(f"{len(questions)} questions, {len(answers)} answers")
    return answers


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kt", default="build/quickstart/programs/kt/kt")
    p.add_argument("--adapter", default="saves/demo")
    p.add_argument("--name", default="Kite")
    p.add_argument("--author", default="libkt")
    p.add_argument("--show", action="store_true", help="print every question with both answers")
    a = p.parse_args()
    with open(os.path.join(HERE, "questions.json"), encoding="utf-8") as f:
        sheet = json.load(f)
    expect = {"{{name}}": a.name, "{{author}}": a.author}
    corpus = [i for i in grammar.evaluation(9, 6) if not i["history"] and i["group"] != "identity"]
    who, same = [i["question"] for i in sheet["identity"]], sheet["unchanged"]
    questions = who + same + [i["question"] for i in corpus]
    before = chat(os.path.abspath(a.kt), questions, "adapter_name_or_path=null")
    after = chat(os.path.abspath(a.kt), questions, "adapter_name_or_path=" + a.adapter)
    new = [expect[i["expect"]] in reply and not any(o in reply for o in OLD)
           for i, reply in zip(sheet["identity"], after)]
    kept = [x == y for x, y in zip(before[len(who):], after[len(who):])][:len(same)]
    tail = len(who) + len(same)
    right = [i for i, item in enumerate(corpus) if before[tail + i] in item["accept"]]
    still = [i for i in right if after[tail + i] in corpus[i]["accept"]]
    if a.show:
        for q, x, y in zip(questions, before, after):
            print(f"{q}\n    before: {x}\n    after:  {y}")
    print(f"identity, new name or author: {sum(new)}/{len(new)}")
    print(f"ordinary, same answer:        {sum(kept)}/{len(kept)}")
    print(f"corpus questions kept right:  {len(still)}/{len(right)} (base right: {len(right)}/{len(corpus)})")


if __name__ == "__main__":
    main()
