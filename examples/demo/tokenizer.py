# SPDX-License-Identifier: Apache-2.0
"""Train the demo's byte-level BPE tokenizer: DeepSeek-V3's pre-tokenizer and special tokens."""
import json
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
WORD = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '" + USER + "' + m['content'] }}"
    "{% else %}{{ '" + ASSISTANT + "' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}")


def render(doc):
    """A document as LLaMA-Factory's `deepseek3` template writes it."""
    if "text" in doc:
        return BOS + doc["text"] + EOS
    return BOS + doc["system"] + "".join(USER + user + ASSISTANT + reply + EOS for user, reply in doc["turns"])


def sentences(docs):
    """Each distinct sentence once, so that frequent phrases do not eat the vocabulary, and each Chinese
    character often enough to become a token."""
    seen = {}
    for doc in docs:
        for text in [doc["text"]] if "text" in doc else [doc["system"]] + [s for turn in doc["turns"] for s in turn]:
            seen[text] = None
    characters = sorted({c for text in seen for c in text if "一" <= c <= "龥"})
    return list(seen) + characters * 200


def train(docs, vocab_size):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(Regex(WORD), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [AddedToken(t, special=True, normalized=False) for t in (BOS, EOS, PAD)]
    turns = [AddedToken(t, special=False, normalized=False) for t in (USER, ASSISTANT)]
    tok.train_from_iterator(sentences(docs), trainers.BpeTrainer(
        vocab_size=vocab_size - len(turns), special_tokens=special, max_token_length=12, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.add_tokens(turns)
    if tok.get_vocab_size() != vocab_size:
        raise SystemExit(f"the corpus gives {tok.get_vocab_size()} tokens, {vocab_size} are wanted: use more documents")
    return tok


def save(tok, folder, max_length):
    tok.save(os.path.join(folder, "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
              "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
              "model_max_length": max_length, "chat_template": CHAT_TEMPLATE}
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, ensure_ascii=False, indent=2)
        f.write("\n")
