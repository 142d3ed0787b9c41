# SPDX-License-Identifier: Apache-2.0
"""Make the small test tokenizer and the ids that test_tokenizer.c compares with.

    python make_tokenizer_goldens.py              tiny/ and tokenizer_goldens.json
    python make_tokenizer_goldens.py --real DIR   deepseek_v3_goldens.json, from the tokenizer.json and
                                                  tokenizer_config.json in DIR (see README.md)

Needs tokenizers 0.22 and transformers 4.57.1."""
import argparse
import copy
import json
import tempfile
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


def train() -> Tokenizer:
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
    return tokenizer


def write_tiny() -> None:
    folder = HERE / "tiny"
    folder.mkdir(exist_ok=True)
    data = json.loads(train().to_str())
    data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, indent=0) + "\n",
                                           encoding="utf-8")
    config = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False,
              "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
              "clean_up_tokenization_spaces": False, "model_max_length": 4096, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1)
                                                  + "\n", encoding="utf-8")


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
        ("deepseek v2", {"pre_tokenizer": sequence(
            split_step({"Regex": "[\r\n]"}, "Isolated"), split_step({"Regex": r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+"}, "Isolated"),
            split_step({"Regex": r"\s?[!-/:-~！-／：-～‘-‟　-。]+"}, "Isolated"),
            split_step({"Regex": r"\s+$"}, "Isolated"), split_step({"Regex": "[一-龥ࠀ-一가-\ud7ff]+"}, "Isolated"),
            {"type": "Digits", "individual_digits": True}, last)}),
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


def write_goldens() -> None:
    base = json.loads((HERE / "tiny/tokenizer.json").read_text(encoding="utf-8"))
    cases = []
    for name, patch in variants():
        tokenizer = Tokenizer.from_str(json.dumps(apply(base, patch)))
        ids = [e.ids for e in encode_all(tokenizer, True)]
        cases.append({"name": name, "patch": patch, "ids": ids,
                      "decoded": [tokenizer.decode(i, skip_special_tokens=False) for i in ids],
                      "size": tokenizer.get_vocab_size()})
    hex_texts = [t.hex() for t in texts()]
    auto = AutoTokenizer.from_pretrained(HERE / "tiny")
    with open(HERE / "tokenizer_goldens.json", "w", encoding="utf-8") as f:
        json.dump({"texts": hex_texts, "cases": cases, "auto": encode_all(auto, True)}, f,
                  ensure_ascii=False, separators=(",", ":"))
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
        write_tiny()
        write_goldens()
