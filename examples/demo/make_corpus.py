#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the demo corpus: short conversations in English and Chinese, all made from our own tables.

    make_corpus.py --documents 400000 --seed 1 --out corpus.jsonl [--evaluation questions.jsonl]

A line is {"text": ...} or {"system": ..., "turns": [[user, reply], ...]}. Document i depends on the
seed and i alone, so any number of processes gives the same file.
"""
import argparse
import json
import multiprocessing
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from corpus import grammar  # noqa: E402


def block(job):
    seed, first, last = job
    return [grammar.document(seed, i) for i in range(first, last)]


def blocks(seed, documents, processes, size=2000):
    """Yield the corpus as lists of documents, made by `processes` processes, in order."""
    jobs = [(seed, i, min(i + size, documents)) for i in range(0, documents, size)]
    with multiprocessing.Pool(processes) as pool:
        yield from pool.imap(block, jobs)


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def everyday(seed, count, banned):
    """Ordinary exchanges in alpaca format, nothing about who the model is, in English and Chinese by turns."""
    rng, rows = random.Random(f"{seed}/everyday"), {}
    topics = [t for t in grammar.TOPIC_LIST if t not in (grammar.identity_talk, grammar.story)]
    while len(rows) < count:
        turns = rng.choice(topics)(grammar.Speaker(rng, grammar.LANGUAGES[len(rows) % 2]))
        question, reply = turns[-1]
        if question not in banned:
            rows[question] = {"instruction": question, "input": "", "output": reply, "history": turns[:-1]}
    return list(rows.values())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--documents", type=int, default=1000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--processes", type=int, default=os.cpu_count())
    p.add_argument("--out", required=True)
    p.add_argument("--evaluation")
    p.add_argument("--everyday", help="also write everyday.json, which keeps old answers alive in fine-tuning")
    a = p.parse_args()
    write_lines(a.out, (doc for docs in blocks(a.seed, a.documents, a.processes) for doc in docs))
    if a.evaluation:
        write_lines(a.evaluation, grammar.evaluation(a.seed))
    if a.everyday:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "questions.json"), encoding="utf-8") as f:
            banned = set(json.load(f)["unchanged"])
        with open(a.everyday, "w", encoding="utf-8") as f:
            json.dump(everyday(a.seed, 600, banned), f, ensure_ascii=False, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
