# SPDX-License-Identifier: Apache-2.0
"""Compare the library's ids and decoded texts with those of the `tokenizers` package, live, for random
tokenizers of the kinds that libkt reads, on random texts:

    python check_tokenizers.py BUILD_FOLDER [--seed N] [--cases N]

Exit code 1 when an id or a text differs, or libkt refuses one that it should read."""
import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from make_tokenizer_goldens import FALLBACK, QWEN, SPACE, added, byte_level, metaspace, replace, sequence, split_step
from texts import SENTENCES, texts
from tokenizers import Tokenizer, models, pre_tokenizers, trainers


class Maker:
    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.sentences = [s for s in SENTENCES if "\0" not in s]  # no key in libkt's JSON holds a NUL
        self.pool = [t.decode(errors="replace") for t in texts() if len(t) < 300]
        self.pool += ["<s>", "</s>", "<tool>", "key", SPACE, " ", "  ", "\n", "<0x41>", "e", "\0"]

    def maybe(self, p: float) -> bool:
        return self.random.random() < p

    def text(self) -> bytes:
        r = self.random
        text = "".join(r.choice(self.pool) for _ in range(r.choice([0, 1, 1, 2, 3, 5])))
        start = r.randrange(len(text) + 1) if self.maybe(0.4) else 0
        raw = text[start:start + r.randint(1, 400)].encode()
        if self.maybe(0.2):
            raw = raw[r.randint(0, 3):len(raw) - r.randint(0, 3)]
        return raw

    def model(self, pieces: bool) -> dict:
        """A vocabulary from some of the sentences."""
        r, special = self.random, ["<unk>", "<s>", "</s>"]
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = (pre_tokenizers.Metaspace() if pieces
                                   else pre_tokenizers.ByteLevel(add_prefix_space=self.maybe(0.5)))
        options = dict(vocab_size=r.randint(300, 1200), min_frequency=1, show_progress=False)
        if pieces:
            kept = r.choice([FALLBACK, FALLBACK, FALLBACK[:200], []])
            options.update(limit_alphabet=r.randint(20, 400), special_tokens=special + kept)
        else:
            options.update(special_tokens=special,
                           initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if self.maybe(0.7) else [])
        tokenizer.train_from_iterator(r.sample(self.sentences, 30), trainers.BpeTrainer(**options))
        model = json.loads(tokenizer.to_str())["model"]
        model.update(byte_fallback=pieces and self.maybe(0.7), fuse_unk=self.maybe(0.5), ignore_merges=self.maybe(0.4),
                     unk_token=r.choice(["<unk>", "<unk>", None]))
        return model

    def normalizer(self) -> dict | None:
        r = self.random
        steps = [r.choice([{"type": "NFC"}, {"type": "Prepend", "prepend": r.choice([SPACE, SPACE, "ab"])},
                           replace(" ", SPACE), replace(" ", SPACE), replace("e", r.choice(["", "é", "ee"])),
                           replace("\n\n", "\n")]) for _ in range(r.choice([0, 1, 1, 2, 4]))]
        if len(steps) == 1 and self.maybe(0.5):
            return steps[0]
        return {"type": "Sequence", "normalizers": steps} if steps or self.maybe(0.2) else None

    def split(self) -> dict:
        r = self.random
        behavior = r.choice(["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"])
        return r.choice([{"type": "Digits", "individual_digits": self.maybe(0.5)},
                         split_step({"Regex": r.choice([QWEN, r"\p{N}{1,3}", r"\s+", r"[a-e]+"])}, behavior, self.maybe(0.2)),
                         split_step({"String": r.choice([" ", SPACE, "e", "."])}, behavior)])

    def pre_tokenizer(self, pieces: bool) -> dict | None:
        steps = [self.split() for _ in range(self.random.choice([0, 0, 1, 2]))]
        if pieces and self.maybe(0.7):
            options = self.random.choice([{}, {"add_prefix_space": True}, {"split": False}])
            scheme = self.random.choice([{}, {"prepend_scheme": "first"}, {"prepend_scheme": "always"},
                                         {"prepend_scheme": "never"}])
            steps.insert(self.random.randint(0, len(steps)), metaspace(**options, **scheme))
        if not pieces:
            steps.append(byte_level(self.maybe(0.5), self.maybe(0.5)))
        if len(steps) == 1 and self.maybe(0.5):
            return steps[0]
        return sequence(*steps) if steps or self.maybe(0.2) else None

    def decoder(self, pieces: bool) -> dict:
        if not pieces:
            return byte_level(True, True)
        if self.maybe(0.2):
            return metaspace(prepend_scheme=self.random.choice(["first", "never", "always"]))
        steps = [replace(SPACE, self.random.choice([" ", "", "_"])) for _ in range(self.random.choice([0, 1, 1]))]
        if self.maybe(0.7):
            steps.append({"type": "ByteFallback"})
        if self.maybe(0.7):
            steps.append({"type": "Fuse"})
            if self.maybe(0.7):
                steps.append({"type": "Strip", "content": " ", "start": self.random.choice([0, 1, 3]), "stop": 0})
        return {"type": "Sequence", "decoders": steps}

    def tokenizer(self) -> dict:
        """What libkt refuses is drawn again."""
        while True:
            data = self.draw()
            first = '"prepend_scheme": "first"' in json.dumps(data["pre_tokenizer"])
            if not first or all(part not in json.dumps(data["normalizer"]) for part in
                                ('"Prepend"', '"content": ""', '"content": "ee"', '"content": "\\n"')):
                return data

    def draw(self) -> dict:
        pieces = self.maybe(0.75)
        contents = ["<s>", "</s>", "<unk>", "key", "<tool>", " the", SPACE + "a", "é", "e\u0301", "world", "<0x41>"]
        marks = [added(t, **{flag: self.maybe(0.25) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")})
                 for t in self.random.sample(contents, self.random.randint(0, 6))]
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": marks,
                "normalizer": self.normalizer(), "pre_tokenizer": self.pre_tokenizer(pieces), "post_processor": None,
                "decoder": self.decoder(pieces), "model": self.model(pieces)}


def ours(build: str, file: Path, some: list[bytes]) -> list[tuple]:
    run = subprocess.run([f"{build}/tests/unit/tokenize", str(file), "0", "decode"], capture_output=True,
                         input=b"".join(b"%d\n" % len(t) + t for t in some))
    if run.returncode:
        print(run.stderr.decode())
    lines = run.stdout.split(b"\n")[:-1]
    return [([int(i) for i in ids.split()], bytes.fromhex(text.decode()).decode())
            for ids, text in zip(lines[::2], lines[1::2])]


def theirs(file: Path, some: list[bytes]) -> list[tuple | None]:
    """None where the package itself gives up."""
    tokenizer, results = None, []
    for text in some:
        try:
            tokenizer = tokenizer or Tokenizer.from_file(str(file))
            ids = tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False).ids
            results.append((ids, tokenizer.decode(ids, skip_special_tokens=False)))
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            results.append(None)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=100)
    arguments = parser.parse_args()
    maker, wrong, checked = Maker(arguments.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        for case in range(arguments.cases):
            data = maker.tokenizer()
            file.write_text(json.dumps(data), encoding="utf-8")
            some = [maker.text() for _ in range(120)]
            got, want = ours(arguments.build, file, some), theirs(file, some)
            checked += len(some) - want.count(None)
            differ = [i for i in range(len(some)) if want[i] and got[i:i + 1] != want[i:i + 1]]
            wrong += len(differ)
            if differ:
                name = f"different-{arguments.seed}-{case}.json"
                Path(name).write_text(json.dumps(data), encoding="utf-8")
                print(f"{name}: {len(differ)} differ, such as {some[differ[0]]!r}")
    print(f"checked {arguments.cases} tokenizers, {checked} texts, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
