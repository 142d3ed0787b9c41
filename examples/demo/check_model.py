#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check that model.py computes what transformers' DeepseekV3ForCausalLM computes from its checkpoint.

    check_model.py        random weights and correction biases, float32; prints the relative L2 error
"""
import json
import os
import sys
import tempfile

import torch
from safetensors.torch import save_file

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from model import CONFIG, DemoModel, checkpoint  # noqa: E402


def main():
    import transformers
    torch.manual_seed(8)
    ours = DemoModel(CONFIG).eval()
    for p in ours.parameters():
        p.data = (p.data * 1.5).bfloat16().float()
    for gate in ours.gates():
        gate.e_score_correction_bias.uniform_(0, 0.2)
    with tempfile.TemporaryDirectory() as folder:
        save_file(checkpoint(ours), os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(CONFIG, f)
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                                         output_loading_info=True)
    ids = torch.randint(0, CONFIG["vocab_size"], (2, 600))
    with torch.no_grad():
        want = theirs.eval()(ids).logits
        place = torch.arange(ids.shape[1])
        hidden = ours(ids, place.expand_as(ids), (place.unsqueeze(1) >= place).view(1, 1, len(place), -1))
        got = ours.lm_head(hidden)
    error = ((got - want).norm() / want.norm()).item()
    print(f"transformers {transformers.__version__}: relative L2 error {error:.2e}, missing {list(info['missing_keys'])}, "
          f"unexpected {list(info['unexpected_keys'])}")
    return 0 if error < 2e-5 and not info["missing_keys"] and not info["unexpected_keys"] else 1


if __name__ == "__main__":
    sys.exit(main())
