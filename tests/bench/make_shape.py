# SPDX-License-Identifier: Apache-2.0
"""Write a model of a published one's true sizes with random weights, and a fresh adapter for it.

    python make_shape.py v2lite DIR                # DeepSeek-V2-Lite, BF16, 31 GB
    python make_shape.py v3slice DIR               # DeepSeek-V3: 1 dense and 3 MoE layers, FP8, 36 GB
    python make_shape.py qwen3 DIR --layers 12     # Qwen3-30B-A3B, 12 of its 48 layers, BF16

Weights are normal with the scale that keeps activations near one, so that routing spreads over the
experts; nothing is trained. The adapter covers attention, dense MLPs and shared experts. A shard a
layer; drawn on a GPU where there is one. Needs torch and safetensors.
"""
import argparse
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reference"))
import families  # noqa: E402
import models  # noqa: E402
from make_model import write_adapter  # noqa: E402

V2LITE = {**models.V2LITE, "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
          "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
          "num_key_value_heads": 16, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
          "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2,
          "num_experts_per_tok": 6, "max_position_embeddings": 163840,
          "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                           "beta_fast": 32, "beta_slow": 1,
                           "original_max_position_embeddings": 4096}}
V3SLICE = {**models.V3, "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
           "moe_intermediate_size": 2048, "num_hidden_layers": 4, "num_nextn_predict_layers": 0,
           "first_k_dense_replace": 1, "num_attention_heads": 128, "num_key_value_heads": 128,
           "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
           "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
           "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
           "max_position_embeddings": 163840,
           "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                            "beta_fast": 32, "beta_slow": 1,
                            "original_max_position_embeddings": 4096},
           "quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
                                   "activation_scheme": "dynamic",
                                   "weight_block_size": [128, 128]}}
QWEN3 = {**families.QWEN3_MOE, "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
         "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
         "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
         "attention_bias": False, "mlp_only_layers": [], "use_sliding_window": False,
         "sliding_window": None, "rope_theta": 1000000.0, "rope_scaling": None,
         "max_position_embeddings": 40960, "tie_word_embeddings": False}
SHAPES = {"v2lite": V2LITE, "v3slice": V3SLICE, "qwen3": QWEN3}
BLOCK, LARGEST = 128, 448.0


def draw(name, shape, gen, device):
    noise = torch.randn(shape, generator=gen, device=device)
    if name.endswith("bias"):
        return noise * 0.1
    if len(shape) == 1:
        return 1.0 + 0.1 * noise
    if name.endswith("embed_tokens.weight"):
        return noise
    return noise / math.sqrt(shape[1])


def to_fp8(w):
    """Values and the inverse scale of each block, as DeepSeek-V3's checkpoint has them."""
    rows, cols = w.shape
    padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-cols // BLOCK) * BLOCK, device=w.device)
    padded[:rows, :cols] = w
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    scale = blocks.abs().amax(dim=(1, 3)) / LARGEST
    values = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:rows, :cols]
    return values.to(torch.float8_e4m3fn), scale


def is_quantized(name, shape):
    return len(shape) == 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight",
                                                  ".gate.weight"))


def make_shard(names, shapes, fp8, gen, device):
    tensors = {}
    for name in names:
        w = draw(name, shapes[name], gen, device)
        if fp8 and is_quantized(name, shapes[name]):
            values, scale = to_fp8(w)
            tensors[name] = values.cpu().contiguous()
            tensors[name + "_scale_inv"] = scale.cpu().contiguous()
        else:
            dtype = torch.float32 if name.endswith("_bias") else torch.bfloat16
            tensors[name] = w.to(dtype).cpu().contiguous()
    return tensors


def shard_of(name):
    parts = name.split(".")
    return int(parts[2]) + 1 if parts[1] == "layers" else 0


def write_model(folder, config, seed):
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gen = torch.Generator(device=device).manual_seed(seed)
    shapes, index, shards = models.model_shapes(config), {}, {}
    for name in sorted(shapes):
        shards.setdefault(shard_of(name), []).append(name)
    for i, names in sorted(shards.items()):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = make_shard(names, shapes, "quantization_config" in config, gen, device)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}, indent=2))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="default: all of the shape's")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    config = dict(SHAPES[args.shape])
    if args.layers:
        config["num_hidden_layers"] = args.layers
    write_model(args.folder / "model", config, args.seed)
    write_adapter(args.folder / "adapter", config, args.rank, False, args.seed)


if __name__ == "__main__":
    main()
