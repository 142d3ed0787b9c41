# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints in the layout of the real ones: here DeepSeek-V2 and V3, in families.py others.

Weights are drawn tensor by tensor from a seed with the scale that keeps activations near one, and
written as safetensors shards with the names, the config keys and the extra layer that DeepSeek's
own checkpoints have. Nothing here imports transformers, so one checkpoint can be read by any
version of it.
"""
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

import families

YARN_V3 = {"type": "yarn", "factor": 4.0, "mscale": 0.9, "mscale_all_dim": 0.6, "beta_fast": 8,
           "beta_slow": 1, "original_max_position_embeddings": 16}
YARN_V2 = {"type": "yarn", "factor": 4, "mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 8,
           "beta_slow": 1, "original_max_position_embeddings": 16}

COMMON = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
          "initializer_range": 0.02, "tie_word_embeddings": False, "use_cache": True,
          "moe_layer_freq": 1, "pretraining_tp": 1, "bos_token_id": 0, "eos_token_id": 1}

V3 = {**COMMON, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
      "vocab_size": 197, "hidden_size": 48, "intermediate_size": 88, "moe_intermediate_size": 20,
      "num_hidden_layers": 3, "num_nextn_predict_layers": 1, "first_k_dense_replace": 1,
      "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16,
      "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 12,
      "n_shared_experts": 1, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
      "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
      "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
      "rope_scaling": YARN_V3, "max_position_embeddings": 64}

V2 = {**COMMON, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
      "vocab_size": 160, "hidden_size": 32, "intermediate_size": 56, "moe_intermediate_size": 20,
      "num_hidden_layers": 3, "first_k_dense_replace": 1, "num_attention_heads": 2,
      "num_key_value_heads": 2, "q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 16,
      "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 12, "n_shared_experts": 2,
      "num_experts_per_tok": 3, "n_group": 3, "topk_group": 2,
      "topk_method": "group_limited_greedy", "scoring_func": "softmax", "norm_topk_prob": False,
      "routed_scaling_factor": 4.0, "aux_loss_alpha": 0.001, "seq_aux": True,
      "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "rope_scaling": None,
      "max_position_embeddings": 64}

V2LITE = {**V2, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
          "routed_scaling_factor": 1.0, "num_hidden_layers": 2, "rms_norm_eps": 1e-6,
          "rope_theta": 10000.0, "rope_scaling": YARN_V2}


def mlp_shapes(prefix, hidden, inner):
    return {f"{prefix}.gate_proj.weight": (inner, hidden),
            f"{prefix}.up_proj.weight": (inner, hidden),
            f"{prefix}.down_proj.weight": (hidden, inner)}


def attention_shapes(c, prefix):
    h, heads, rank = c["hidden_size"], c["num_attention_heads"], c["q_lora_rank"]
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    kv = c["kv_lora_rank"]
    if rank:
        s = {"q_a_proj": (rank, h), "q_a_layernorm": (rank,),
             "q_b_proj": (heads * (nope + rope), rank)}
    else:
        s = {"q_proj": (heads * (nope + rope), h)}
    s.update({"kv_a_proj_with_mqa": (kv + rope, h), "kv_a_layernorm": (kv,),
              "kv_b_proj": (heads * (nope + v), kv), "o_proj": (h, heads * v)})
    return {f"{prefix}.{k}.weight": shape for k, shape in s.items()}


def layer_shapes(c, layer):
    p, h = f"model.layers.{layer}", c["hidden_size"]
    s = {f"{p}.input_layernorm.weight": (h,), f"{p}.post_attention_layernorm.weight": (h,)}
    s.update(attention_shapes(c, f"{p}.self_attn"))
    if layer < c["first_k_dense_replace"]:
        return {**s, **mlp_shapes(f"{p}.mlp", h, c["intermediate_size"])}
    inner = c["moe_intermediate_size"]
    s[f"{p}.mlp.gate.weight"] = (c["n_routed_experts"], h)
    if c["scoring_func"] == "sigmoid":
        s[f"{p}.mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
    for e in range(c["n_routed_experts"]):
        s.update(mlp_shapes(f"{p}.mlp.experts.{e}", h, inner))
    return {**s, **mlp_shapes(f"{p}.mlp.shared_experts", h, inner * c["n_shared_experts"])}


def model_shapes(c):
    """Every tensor of the checkpoint, the multi-token-prediction layers included."""
    if "kv_lora_rank" not in c:
        return families.model_shapes(c)
    h, v, layers = c["hidden_size"], c["vocab_size"], c["num_hidden_layers"]
    s = {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,), "lm_head.weight": (v, h)}
    for layer in range(layers + c.get("num_nextn_predict_layers", 0)):
        s.update(layer_shapes(c, layer))
        if layer >= layers:
            p = f"model.layers.{layer}"
            s.update({f"{p}.embed_tokens.weight": (v, h), f"{p}.enorm.weight": (h,),
                      f"{p}.hnorm.weight": (h,), f"{p}.eh_proj.weight": (h, 2 * h),
                      f"{p}.shared_head.norm.weight": (h,), f"{p}.shared_head.head.weight": (v, h)})
    return s


def draw(name, shape, gen):
    """Norms near one, biases near zero, matrices with variance 1 / fan-in."""
    noise = torch.randn(shape, generator=gen)
    if name.endswith("bias"):
        return noise * 0.1
    if len(shape) == 1:
        return 1.0 + 0.1 * noise
    if name.endswith("embed_tokens.weight"):
        return noise
    gain = 2.0 if name.endswith((".gate.weight", "lm_head.weight")) else 1.0
    return noise * (gain / math.sqrt(shape[1]))


def make_weights(c, seed, dtype=torch.float32, unused_expert=None):
    """Name -> tensor. The router's bias stays float32, as DeepSeek stores it. unused_expert is one
    of the last layer that V3's router shall never choose, so that its LoRA gets no gradient."""
    gen = torch.Generator().manual_seed(seed)
    weights = {n: draw(n, s, gen) for n, s in sorted(model_shapes(c).items())}
    if unused_expert is not None:
        gate = f"model.layers.{c['num_hidden_layers'] - 1}.mlp.gate"
        weights[f"{gate}.e_score_correction_bias"][unused_expert] = -0.9
    return {n: w if n.endswith("_bias") else w.to(dtype).contiguous() for n, w in weights.items()}


def write_checkpoint(folder, c, weights, shards=1):
    """config.json and the shards, split by bytes in name order, with an index if several."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(weights["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    config = {**c, "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    total = sum(w.nbytes for w in weights.values())
    groups, seen = [{} for _ in range(shards)], 0
    for name, w in weights.items():
        groups[min(seen * shards // total, shards - 1)][name] = w
        seen += w.nbytes
    index = {}
    for i, group in enumerate(groups):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(group, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(group, file))
    text = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(text, indent=1) + "\n")
