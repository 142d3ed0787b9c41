# SPDX-License-Identifier: Apache-2.0
"""Make prefix_space_goldens.json: ids of transformers' AutoTokenizer for tiny_sp/ with each value of
add_prefix_space and legacy in tokenizer_config.json.

    python make_prefix_space_goldens.py

With add_prefix_space, transformers makes the tokenizer from tokenizer.model, so one with the tokens of
tiny_sp/ is written beside its tokenizer.json. Needs transformers 4.57.1, sentencepiece and protobuf."""
import json
import shutil
import tempfile
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2
from texts import texts
from transformers import AutoTokenizer

HERE = Path(__file__).parent
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
KINDS = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}


def write_model(file: Path) -> None:
    """A BPE model: the earlier a token was merged, the higher its score."""
    model = sentencepiece_model_pb2.ModelProto()
    vocab = json.loads((HERE / "tiny_sp/tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    for token, i in sorted(vocab.items(), key=lambda item: item[1]):
        model.pieces.add(piece=token, score=-i,
                         type=KINDS.get(token, BYTE if token.startswith("<0x") else NORMAL))
    trainer = model.trainer_spec
    trainer.model_type, trainer.byte_fallback = 2, True
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    model.normalizer_spec.name = "identity"
    file.write_bytes(model.SerializeToString())


def main() -> None:
    config = json.loads((HERE / "tiny_sp/tokenizer_config.json").read_text(encoding="utf-8"))
    del config["model_max_length"]
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(HERE / "tiny_sp/tokenizer.json", folder)
        write_model(folder / "tokenizer.model")
        for legacy in (True, False):
            for space in (None, True, False):
                config.update(legacy=legacy, add_prefix_space=space)
                (folder / "tokenizer_config.json").write_text(json.dumps(config))
                tokenizer = AutoTokenizer.from_pretrained(folder)
                ids = [tokenizer.encode(t.decode(errors="replace")) for t in texts()]
                cases.append({"config": dict(config), "ids": ids,
                              "decoded": [tokenizer.decode(i) for i in ids]})
    with open(HERE / "prefix_space_goldens.json", "w", encoding="utf-8") as f:
        json.dump({"texts": [t.hex() for t in texts()], "cases": cases}, f, ensure_ascii=False,
                  separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
