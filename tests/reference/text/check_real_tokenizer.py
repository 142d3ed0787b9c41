# SPDX-License-Identifier: Apache-2.0
"""Compare the library's ids with those of the `tokenizers` package, live, for a tokenizer.json:

    python check_real_tokenizer.py TOKENIZER_JSON BUILD_FOLDER [FILE ...]

on the texts of texts.py, on every code point of Unicode and on the given files. Exit code 1 when an
id differs. Code points that Unicode assigned after version 16 are left out: the packages differ there
among themselves. Give a tokenizer.json without tokenizer_config.json beside it."""
import subprocess
import sys
import time
from pathlib import Path

from texts import texts
from tokenizers import Tokenizer


def code_points() -> list[bytes]:
    out = []
    for first in range(0, 0x110000, 64):
        chars = [chr(c) for c in range(first, first + 64)
                 if not 0xD800 <= c < 0xE000 and not 0x11DC0 <= c < 0x11E00]
        out.append("".join(f"a{c} {c}{c}1" for c in chars).encode())
    return out


def main() -> int:
    file, build, *files = sys.argv[1:]
    all_texts = texts() + code_points() + [Path(f).read_bytes() for f in files]
    start = time.monotonic()
    run = subprocess.run([f"{build}/tests/unit/tokenize", file, "0"], check=True, capture_output=True,
                         input=b"".join(b"%d\n" % len(t) + t for t in all_texts))
    middle = time.monotonic()
    got = [[int(i) for i in line.split()] for line in run.stdout.split(b"\n")[:-1]]
    tokenizer = Tokenizer.from_file(file)
    want = [tokenizer.encode(t.decode(errors="replace"), add_special_tokens=False).ids
            for t in all_texts]
    end = time.monotonic()
    wrong = [t for t, a, b in zip(all_texts, got, want, strict=True) if a != b]
    print(f"{len(all_texts)} texts, {sum(map(len, all_texts))} bytes, {len(wrong)} differ; "
          f"libkt {middle - start:.1f} s, tokenizers {end - middle:.1f} s")
    for text in wrong[:5]:
        print(repr(text[:200]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
