# SPDX-License-Identifier: Apache-2.0
"""Write the Unicode tables of libkt/text, from unicodedata 14 and the `tokenizers` package:

    python make_unicode_tables.py ../../../libkt/text

unicode_new.inc    characters that `tokenizers` gives a general category and Unicode 14, the oldest that a
                   supported PCRE2 knows, leaves unassigned: {first, last, category}
unicode_word.inc   \\w as added tokens with single_word see it: {first, last}

Needs Python 3.11 (unicodedata 14) and tokenizers 0.22."""
import sys
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp".split()
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def members(category: str, text: str) -> set[int]:
    split = pre_tokenizers.Split(Regex(r"\p{%s}" % category), "removed", invert=True)
    return {ord(c) for piece, _ in split.pre_tokenize_str(text) for c in piece}


def word_characters() -> list[int]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens([AddedToken("ab", single_word=True)])
    return [c for c in POINTS if not tokenizer.encode("ab" + chr(c)).ids]


def ranges(points: list[int]) -> list[tuple[int, int]]:
    out: list[list[int]] = []
    for p in points:
        if out and out[-1][1] == p - 1:
            out[-1][1] = p
        else:
            out.append([p, p])
    return [(a, b) for a, b in out]


def write(path: Path, items: list[str]) -> None:
    lines, line = [], ""
    for item in items:
        if len(line) + len(item) > 97:
            lines.append(line.rstrip())
            line = ""
        line += item + ", "
    lines.append(line.rstrip())
    path.write_text("/* SPDX-License-Identifier: Apache-2.0 */\n"
                    "/* Made by tests/reference/text/make_unicode_tables.py. */\n"
                    + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
    folder = Path(sys.argv[1])
    text = "".join(map(chr, POINTS))
    new = []
    for category in CATEGORIES:
        points = [c for c in sorted(members(category, text)) if unicodedata.category(chr(c)) == "Cn"]
        new += [f"{{{a:#x}, {b:#x}, \"{category}\"}}" for a, b in ranges(points)]
    write(folder / "unicode_new.inc", new)
    write(folder / "unicode_word.inc",
          [f"{{{a:#x}, {b:#x}}}" for a, b in ranges(word_characters())])


if __name__ == "__main__":
    main()
