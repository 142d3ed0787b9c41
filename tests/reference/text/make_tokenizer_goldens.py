# SPDX-License-Identifier: Apache-2.0
"""Make the small test tokenizer and the ids that test_tokenizer.c compares with.

    python make_tokenizer_goldens.py              tiny/ and tokenizer_goldens.json,
                                                  tiny_sp/ and sentencepiece_goldens.json
    python make_tokenizer_goldens.py --real DIR   deepseek_v3_goldens.json, from the tokenizer.json and
                                                  tokenizer_config.json in DIR (see README.md)

Needs tokenizers 0.22 and transformers 4.57.1."""
import argparse
import copy
import json
import random
from pathlib import Path

from texts import SENTENCES, texts
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

HERE = Path(__file__).parent
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
V3 = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
      " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+")

LETTERS = ("A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
           "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
           "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
           "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
           "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
           "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
           "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
           "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
           "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
           "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
           "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
           "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
           "\U000118a0-\U000118df\U0001e900-\U0001e943")  # of DeepSeek's first models
LINE_ENDS, EAST_ASIAN = "[\r\n]", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_LLM = [LINE_ENDS, rf"\s?[{LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", EAST_ASIAN]
DEEPSEEK_CODER = [LINE_ENDS, r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN]


def train() -> dict:
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex(p), "isolated") for p in V3]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=900, min_frequency=2, show_progress=False,
                                  special_tokens=[BOS, EOS, PAD],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(SENTENCES * 2, trainer)
    tokenizer.add_tokens([AddedToken(t, special=False)
                          for t in ("<｜User｜>", "<｜Assistant｜>", "<｜tool▁sep｜>")])
    data = json.loads(tokenizer.to_str())
    data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    return data


DEEPSEEK_CONFIG = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False,
                   "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
                   "clean_up_tokenization_spaces": False, "model_max_length": 4096, "legacy": True}
LLAMA_CONFIG = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
                "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None,
                "clean_up_tokenization_spaces": False, "model_max_length": 10**30, "legacy": False}


def write_tokenizer(name: str, data: dict, config: dict) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    for file, value, indent in (("tokenizer.json", data, 0), ("tokenizer_config.json", config, 1)):
        (folder / file).write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n",
                                   encoding="utf-8")


def split_step(pattern: dict, behavior: str, invert: bool = False) -> dict:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def byte_level(add_prefix_space: bool, use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True,
            "use_regex": use_regex}


def sequence(*steps: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def added(content: str, **flags: bool) -> dict:
    return {"id": 0, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": False, **flags}


def variants() -> list[tuple[str, dict]]:
    """Keys of tokenizer.json that replace those of tiny/; "model" is merged."""
    last = byte_level(False, False)
    space, word = {"String": " "}, {"Regex": r"\p{L}+"}
    template = {"type": "TemplateProcessing", "pair": [],
                "single": [{"SpecialToken": {"id": BOS, "type_id": 0}},
                           {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": EOS, "type_id": 0}}],
                "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]}
                                   for i, t in enumerate((BOS, EOS))}}
    return [
        ("as it is", {}),
        ("qwen", {"normalizer": {"type": "NFC"},
                  "pre_tokenizer": sequence(split_step({"Regex": QWEN}, "Isolated"), last)}),
        ("gpt2", {"pre_tokenizer": byte_level(True, True)}),
        ("prefix space, no regex", {"pre_tokenizer": sequence(split_step(word, "Isolated"),
                                                              byte_level(True, False))}),
        ("digits", {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False},
                                              byte_level(False, True))}),
        *[(name, {"pre_tokenizer": sequence(
            *[split_step({"Regex": p}, "Isolated") for p in patterns],
            {"type": "Digits", "individual_digits": True}, last)})
          for name, patterns in (("deepseek-llm", DEEPSEEK_LLM), ("deepseek-coder", DEEPSEEK_CODER))],
        ("removed", {"pre_tokenizer": sequence(split_step(space, "Removed"), last)}),
        ("inverted", {"pre_tokenizer": sequence(split_step(word, "Removed", True), last)}),
        ("merged with previous", {"pre_tokenizer": sequence(split_step(space, "MergedWithPrevious"), last)}),
        ("merged with next", {"pre_tokenizer": sequence(split_step(space, "MergedWithNext"), last)}),
        ("contiguous", {"pre_tokenizer": sequence(split_step({"Regex": r"[\s\d]"}, "Contiguous"), last)}),
        ("empty matches", {"pre_tokenizer": sequence(split_step({"Regex": r"x*"}, "Isolated"), last)}),
        ("classes", {"pre_tokenizer": sequence(split_step({"Regex": r"[^\S\n]+|\D\d\v?|\x41|\u00e9|\P{L}{2}"}, "Isolated"), last)}),
        ("ignore merges", {"model": {"ignore_merges": True}}),
        ("pairs", {"model": {"merges": "pairs"}, "post_processor": {"type": "Sequence", "processors": [
            byte_level(True, True), template]}}),
        ("added tokens", {"normalizer": {"type": "NFC"}, "added_tokens": [
            added(BOS, special=True), added("key", single_word=True), added("<mask>", lstrip=True),
            added("<pad>", rstrip=True, special=True), added("don't", normalized=True), added("é", normalized=True),
            added("<｜User｜>", lstrip=True, rstrip=True, normalized=True), added("<｜User｜>｜"), added("的 "), added(" a a a")]}),
    ]


SPACE = "▁"
FALLBACK = [f"<0x{b:02X}>" for b in range(256)]


def train_sp() -> dict:
    """As Llama 2's tokenizer.json: no pre-tokenizer, a space before the text, bytes where the
    vocabulary lacks a character."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=700, min_frequency=2, show_progress=False,
                                  limit_alphabet=110,
                                  special_tokens=["<unk>", "<s>", "</s>", *FALLBACK])
    tokenizer.train_from_iterator(SENTENCES * 2, trainer)
    data = json.loads(tokenizer.to_str())
    data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    data["added_tokens"] = [added(t, special=True) for t in ("<unk>", "<s>", "</s>")]
    data.update(pre_tokenizer=None, normalizer=LLAMA_NORMALIZER, decoder=LLAMA_DECODER)
    return data


def replace(old: str, new: str) -> dict:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


LLAMA_NORMALIZER = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE},
                                                        replace(" ", SPACE)]}
LLAMA_DECODER = {"type": "Sequence", "decoders": [
    replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}


def metaspace(**options) -> dict:
    return {"type": "Metaspace", "replacement": SPACE, **options}


def sp_variants() -> list[tuple[str, dict]]:
    """Keys of tokenizer.json that replace those of tiny_sp/; "model" is merged."""
    digits = {"type": "Digits", "individual_digits": True}
    marks = [added("<s>", special=True), added("<unk>", special=True), added("key", single_word=True),
             added("<mask>", lstrip=True), added("<pad>", rstrip=True, special=True),
             added("don't", normalized=True), added("a world", normalized=True),
             added("<tool>", lstrip=True, rstrip=True, normalized=True), added(SPACE + "x"), added("<0x41>")]
    few = {"type": "BPE", "unk_token": "?", "byte_fallback": True,
           "vocab": {t: i for i, t in enumerate(["?", SPACE, "e", "l", "o", "lo", SPACE + "e", "<0xC3>", "<0xA9>",
                                                 "<0xC4>", "<0xA0>", "<0x61>", "<0x0A>", "Ċ"])},
           "merges": ["l o", SPACE + " e"]}
    bytes_only = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return [
        ("llama 2", {}),
        ("mistral", {"normalizer": None, "pre_tokenizer": metaspace(prepend_scheme="first", split=False)}),
        ("legacy metaspace", {"normalizer": None, "pre_tokenizer": metaspace(add_prefix_space=True)}),
        ("first, split", {"normalizer": None, "pre_tokenizer": metaspace(prepend_scheme="first"),
                          "added_tokens": marks}),
        ("never, ignore merges", {"normalizer": None, "model": {"ignore_merges": True, "merges": "pairs"},
                                  "pre_tokenizer": metaspace(prepend_scheme="never", split=True, add_prefix_space=False)}),
        ("metaspace, then digits", {"normalizer": None, "pre_tokenizer": sequence(metaspace(), digits)}),
        ("digits, then metaspace", {"normalizer": {"type": "NFC"}, "decoder": metaspace(prepend_scheme="first"),
                                    "pre_tokenizer": sequence(digits, metaspace(prepend_scheme="first"))}),
        ("no byte fallback", {"model": {"byte_fallback": False, "fuse_unk": False},
                              "decoder": metaspace(prepend_scheme="never", split=False)}),
        ("no byte fallback, fused", {"model": {"byte_fallback": False}}),
        ("no unknown token", {"model": {"byte_fallback": False, "unk_token": None}, "decoder": replace(SPACE, "_")}),
        ("some bytes", {"model": {**few, "fuse_unk": False}, "added_tokens": []}),
        ("some bytes, fused", {"model": {**few, "fuse_unk": True}, "added_tokens": [], "decoder": bytes_only}),
        ("some bytes, byte-level", {"model": {**few, "fuse_unk": True, "unk_token": "e"}, "added_tokens": [],
                                    "normalizer": None, "pre_tokenizer": byte_level(False, True)}),
        ("gemma", {"normalizer": replace(" ", SPACE), "decoder": {"type": "Sequence", "decoders": LLAMA_DECODER["decoders"][:3]},
                   "pre_tokenizer": split_step({"String": " "}, "MergedWithPrevious")}),
        ("added tokens", {"added_tokens": marks}),
        ("many steps", {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, replace("e", "ee"), {"type": "Sequence", "normalizers": [replace("ab", "")]},
            {"type": "Prepend", "prepend": SPACE + SPACE}, replace(" ", SPACE)]}, "added_tokens": marks,
            "decoder": {"type": "Sequence", "decoders": [replace("ee", "e"), *LLAMA_DECODER["decoders"][:3], {
                "type": "Strip", "content": " ", "start": 2, "stop": 0}]}}),
    ]


def random_ids(size: int) -> list[list[int]]:
    """Among them bytes that make no character."""
    r = random.Random(7)
    pick = [lambda: r.randrange(size), lambda: 3 + r.choice(b"\xe4\xbd\xa0\xf0\x9f\x98\x80a \n"),
            lambda: 3 + r.randrange(256)]
    return [[r.choice(pick[i % 3:])() for _ in range(r.randint(1, 12))] for i in range(120)]


def apply(base: dict, patch: dict) -> dict:
    data = copy.deepcopy(base)
    for key, value in patch.items():
        if key == "model":
            value = {**data["model"], **value}
            if value["merges"] == "pairs":
                value["merges"] = [m.split(" ") for m in data["model"]["merges"]]
        data[key] = value
    return data


def encode_all(tokenizer, special: bool) -> list[list[int]]:
    return [tokenizer.encode(t.decode(errors="replace"), add_special_tokens=special) for t in texts()]


def write_goldens(folder: str, name: str, variants: list[tuple[str, dict]]) -> None:
    base = json.loads((HERE / folder / "tokenizer.json").read_text(encoding="utf-8"))
    cases = []
    for label, patch in variants:
        tokenizer = Tokenizer.from_str(json.dumps(apply(base, patch)))
        ids = [e.ids for e in encode_all(tokenizer, True)]
        cases.append({"name": label, "patch": patch, "ids": ids,
                      "decoded": [tokenizer.decode(i, skip_special_tokens=False) for i in ids],
                      "size": tokenizer.get_vocab_size()})
    goldens = {"base": folder, "texts": [t.hex() for t in texts()], "cases": cases,
               "auto": encode_all(AutoTokenizer.from_pretrained(HERE / folder), True)}
    tokenizer = Tokenizer.from_str(json.dumps(base))
    goldens["random_ids"] = random_ids(tokenizer.get_vocab_size())
    goldens["random_decoded"] = [tokenizer.decode(i) for i in goldens["random_ids"]]
    with open(HERE / name, "w", encoding="utf-8") as f:
        json.dump(goldens, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def write_real(folder: str) -> None:
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    ids = [e.ids for e in encode_all(tokenizer, False)]
    with open(HERE / "deepseek_v3_goldens.json", "w", encoding="utf-8") as f:
        json.dump({"texts": [t.hex() for t in texts()], "ids": ids}, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real")
    arguments = parser.parse_args()
    if arguments.real:
        write_real(arguments.real)
    else:
        write_tokenizer("tiny", train(), DEEPSEEK_CONFIG)
        write_goldens("tiny", "tokenizer_goldens.json", variants())
        write_tokenizer("tiny_sp", train_sp(), LLAMA_CONFIG)
        write_goldens("tiny_sp", "sentencepiece_goldens.json", sp_variants())
