# SPDX-License-Identifier: Apache-2.0
"""What the comparisons with whole programs need beside weights: a tokenizer and a small dataset.

The tokenizer is a byte-level BPE trained here, with the special tokens of DeepSeek-V3's; the data
are question and answer pairs in alpaca format made from word lists. Both come from fixed seeds.
"""
import json
import random
from pathlib import Path

SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
TURNS = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]
VOCAB = 384

THINGS = ["river", "lantern", "bicycle", "harbour", "orchard", "violin", "compass", "library",
          "teapot", "glacier", "森林", "火车"]
PLACES = ["in the valley", "near the old bridge", "behind the station", "on the third floor",
          "across the lake", "在城里"]
DEEDS = ["slowly turns", "was painted blue", "holds seven stones", "opens at dawn",
         "sings in the rain", "比山还老"]


def examples(count, seed):
    """Alpaca records of quite different lengths; some with input, system or history."""
    rng = random.Random(seed)
    records = []
    for i in range(count):
        a, b = rng.sample(THINGS, 2)
        place = rng.choice(PLACES)
        deeds = [rng.choice(DEEDS) for _ in range(rng.randint(1, 6))]
        record = {"instruction": f"What do you know about the {a}?", "input": "",
                  "output": f"The {a} {place} " + ", and ".join(deeds) + "."}
        if i % 3 == 1:
            record["input"] = f"It stands {place}, with the {b}."
        if i % 5 == 2:
            record["system"] = f"You are {{{{name}}}}, keeper of the {b}."
        if i % 4 == 3:
            record["history"] = [[f"And the {b}?", f"The {b} {rng.choice(DEEDS)}."]]
        records.append(record)
    return records


def write_dataset(folder, count=22, seed=5):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(examples(count, seed), ensure_ascii=False, indent=1)
    (folder / "tiny.json").write_text(text + "\n")
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system",
               "history": "history"}
    info = {"tiny": {"file_name": "tiny.json", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")


def write_tokenizer(folder):
    """tokenizer.json and tokenizer_config.json for VOCAB tokens."""
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers,
                            processors, trainers)
    tok = Tokenizer(models.BPE())
    words = (r"\p{N}{1,3}|[一-龥]+|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*"
             r"|\s+(?!\S)|\s+")
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(TURNS), special_tokens=SPECIAL,
                                  show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    corpus = [t for r in examples(200, 6) for t in (r["instruction"], r["input"], r["output"])]
    tok.train_from_iterator(corpus, trainer)
    tok.add_tokens([AddedToken(t, normalized=False) for t in TURNS])
    tok.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A {SPECIAL[0]} $B",
        special_tokens=[(SPECIAL[0], 0)])
    folder = Path(folder)
    tok.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True,
              "add_eos_token": False, "bos_token": SPECIAL[0], "eos_token": SPECIAL[1],
              "pad_token": SPECIAL[2], "model_max_length": 512,
              "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2))
    return tok.get_vocab_size()
