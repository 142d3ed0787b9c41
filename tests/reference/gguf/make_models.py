# SPDX-License-Identifier: Apache-2.0
"""Write tiny models with random weights twice: as Hugging Face checkpoints and as GGUF files.

    pip install gguf==0.19.0 transformers==4.57.1 torch==2.9.1
    python make_models.py

NAME/ gets config.json and model.safetensors; NAME.gguf (or the set NAME-0000i-of-0000n.gguf) the
same numbers, under the names that the package gguf maps them to. quantised.gguf holds blocks, and
quantised.json what they decode to: for each tensor shape, type, sum, and the sum of element i times
i % 7 + 1. tokenizer.gguf has no tensors, but the tokenizer of ../text/tiny."""
import json
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
TINY = dict(vocab_size=24, hidden_size=16, intermediate_size=20, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            rms_norm_eps=1e-5, rope_theta=5000.0, bos_token_id=3, eos_token_id=5,
            tie_word_embeddings=False)
QWEN_MOE = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=12)
DEEPSEEK = dict(TINY, num_key_value_heads=4, kv_lora_rank=6, qk_nope_head_dim=6,
                qk_rope_head_dim=4, v_head_dim=5, moe_intermediate_size=12, n_routed_experts=8,
                num_experts_per_tok=3, n_shared_experts=2, first_k_dense_replace=1,
                routed_scaling_factor=2.5,
                rope_scaling=dict(type="yarn", factor=40, beta_fast=32, beta_slow=1, mscale=0.707,
                                  mscale_all_dim=0.707, original_max_position_embeddings=64))
MODELS = {
    "deepseek3": ("DeepseekV3ForCausalLM", "deepseek2",
                  dict(DEEPSEEK, vocab_size=200, model_type="deepseek_v3", q_lora_rank=7, n_group=4,
                       topk_group=2, norm_topk_prob=True, scoring_func="sigmoid",
                       topk_method="noaux_tc", num_nextn_predict_layers=0)),
    "deepseek2": ("DeepseekV2ForCausalLM", "deepseek2",
                  dict(DEEPSEEK, model_type="deepseek_v2", q_lora_rank=None, n_group=1,
                       topk_group=1, norm_topk_prob=False, scoring_func="softmax",
                       topk_method="greedy")),
    "qwen2moe": ("Qwen2MoeForCausalLM", "qwen2moe",
                 dict(TINY, **QWEN_MOE, model_type="qwen2_moe", decoder_sparse_step=1,
                      norm_topk_prob=False, shared_expert_intermediate_size=14,
                      mlp_only_layers=[], rope_scaling=dict(rope_type="linear", factor=2.5))),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3moe",
                 dict(TINY, **QWEN_MOE, model_type="qwen3_moe", head_dim=6, decoder_sparse_step=1,
                      norm_topk_prob=True, mlp_only_layers=[],
                      rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=8.0,
                                        original_max_position_embeddings=32))),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", dict(TINY, model_type="qwen2",
                                                tie_word_embeddings=True)),
    "llama": ("LlamaForCausalLM", "llama",
              dict(TINY, model_type="llama", attention_bias=True, mlp_bias=True)),
    "mixtral": ("MixtralForCausalLM", "llama",
                dict(TINY, model_type="mixtral", num_local_experts=4, num_experts_per_tok=2,
                     sliding_window=None)),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", dict(TINY, model_type="qwen3", head_dim=8)),
}
ARCH = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}


def random_weights(config: dict) -> dict:
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    weights = {name: torch.randn_like(t, dtype=torch.float32)
               for name, t in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        weights.pop("lm_head.weight")
    return weights


def write_keys(w: gguf.GGUFWriter, config: dict, arch: str) -> None:
    rope = config.get("rope_scaling") or {}
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(1 if arch == "deepseek2" else config["num_key_value_heads"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base(config["rope_theta"])
    if kind := rope.get("rope_type", rope.get("type")):
        w.add_rope_scaling_type(gguf.RopeScalingType(kind))
        w.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "beta_fast" in rope:
        w.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if "beta_slow" in rope:
        w.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if "head_dim" in config:
        w.add_key_length(config["head_dim"])
        w.add_value_length(config["head_dim"])
    if "num_experts_per_tok" in config:
        w.add_expert_count(next(config[key] for key in ("num_experts", "n_routed_experts",
                                                        "num_local_experts") if key in config))
        w.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        w.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        w.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    w.add_bos_token_id(config["bos_token_id"])
    w.add_eos_token_id(config["eos_token_id"])
    if arch == "deepseek2":
        write_deepseek_keys(w, config)


def write_deepseek_keys(w: gguf.GGUFWriter, config: dict) -> None:
    v3 = config["scoring_func"] == "sigmoid"
    w.add_vocab_size(config["vocab_size"])
    w.add_leading_dense_block_count(config["first_k_dense_replace"])
    if config["q_lora_rank"]:
        w.add_q_lora_rank(config["q_lora_rank"])
    w.add_kv_lora_rank(config["kv_lora_rank"])
    key = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    if v3:  # the newer form, beside the sizes of the latent space
        w.add_key_length(config["kv_lora_rank"] + config["qk_rope_head_dim"])
        w.add_value_length(config["kv_lora_rank"])
        w.add_key_length_mla(key)
        w.add_value_length_mla(config["v_head_dim"])
    else:
        w.add_key_length(key)
        w.add_value_length(config["v_head_dim"])
    w.add_rope_dimension_count(config["qk_rope_head_dim"])
    w.add_rope_scaling_yarn_log_mul(0.1 * config["rope_scaling"]["mscale_all_dim"])
    w.add_expert_shared_count(config["n_shared_experts"])
    w.add_expert_weights_scale(config["routed_scaling_factor"])
    w.add_expert_weights_norm(config["norm_topk_prob"])
    w.add_expert_group_count(config["n_group"])
    w.add_expert_group_used_count(config["topk_group"])
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if v3
                             else gguf.ExpertGatingFuncType.SOFTMAX)


def stack_experts(weights: dict) -> dict:
    out, experts = {}, {}
    for name, t in weights.items():
        head, found, rest = name.partition(".experts.")
        if found:
            number, rest = rest.split(".", 1)
            stacked = f"{head}.experts.{rest}"
            if "block_sparse_moe" in head:  # the package knows the stack by another name
                stacked = f"{head[6:]}.experts.{rest}".replace("block_sparse_moe", "feed_forward")
            experts.setdefault(stacked, {})[int(number)] = t
        else:
            out[name.replace(".e_score_correction_bias", ".e_score_correction.bias")] = t
    for name, parts in experts.items():
        out[name] = torch.stack([parts[i] for i in sorted(parts)])
    return out


def split_kv_b(weights: dict, config: dict) -> dict:
    """The newer form of DeepSeek's kv_b_proj: keys of each head, transposed, and values."""
    out = {}
    for name, t in weights.items():
        if "kv_b_proj" not in name:
            out[name] = t
            continue
        key, value = config["qk_nope_head_dim"], config["v_head_dim"]
        k, v = t.view(-1, key + value, t.shape[1]).split([key, value], dim=1)
        out[name.replace("kv_b", "k_b")] = k.transpose(1, 2).contiguous()
        out[name.replace("kv_b", "v_b")] = v.contiguous()
    return out


def interleave(weights: dict, config: dict) -> dict:
    """The halves of each head's queries and keys, as the architecture llama has them."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    out = {}
    for name, t in weights.items():
        if n := heads.get(name.split(".")[-2]):
            t = t.reshape(n, 2, -1, *t.shape[1:]).swapaxes(1, 2).reshape(t.shape).contiguous()
        out[name] = t
    return out


def add_tensor(w: gguf.GGUFWriter, name: str, t: torch.Tensor) -> None:
    if t.dim() == 2 and t.shape[0] == 1:
        t = t[0]
    if t.dtype == torch.bfloat16:
        w.add_tensor(name, t.view(torch.uint16).numpy().view(np.uint8), raw_dtype=Q.BF16)
    else:
        w.add_tensor(name, t.numpy())


def narrow(weights: dict) -> dict:
    """Every third matrix in bfloat16, every third in float16, where a row of blocks allows."""
    kinds = [torch.float32, torch.bfloat16, torch.float16]
    return {name: t.to(kinds[hash_name(name) % 3]) if t.dim() > 1 and "kv_b" not in name else t
            for name, t in weights.items()}


def hash_name(name: str) -> int:
    return sum(map(ord, re.sub(r"experts\.\d+", "", name)))


def write_model(name: str) -> None:
    architecture, arch, config = MODELS[name]
    weights = narrow(random_weights(config))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": [architecture], **config}, indent=1) + "\n")
    save_file(weights, folder / "model.safetensors")
    split = {"split_max_tensors": 18} if name == "deepseek3" else {}
    w = gguf.GGUFWriter(HERE / f"{name}.gguf", arch, **split)
    w.add_name("a tiny model with random weights")
    w.add_array("general.tags", ["tiny", "random"])
    write_keys(w, config, arch)
    names = gguf.get_tensor_name_map(ARCH[arch], config["num_hidden_layers"])
    tensors = stack_experts(weights)
    if name == "deepseek3":
        tensors = split_kv_b(tensors, config)
    if arch == "llama":
        tensors = interleave(tensors, config)
    for tensor, t in tensors.items():
        add_tensor(w, names.get_name(tensor, try_suffixes=(".weight", ".bias")), t)
    finish(w)


def finish(w: gguf.GGUFWriter) -> None:
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# The formats of one model's modules, as files quantised by usual recipes mix them.
BLOCKS = {"embed_tokens": "Q4_0", "lm_head": "Q6_K", "q_proj": "Q4_K", "k_proj": "Q8_0",
          "v_proj": "Q6_K", "o_proj": "Q4_0", "gate_proj": "Q4_K", "up_proj": "Q4_K",
          "down_proj": "Q8_0"}


def random_blocks(rng: np.random.Generator, shape: tuple, kind: Q) -> np.ndarray:
    """Numbers of about one, as blocks: quantised where the package can, random bits elsewhere."""
    if kind in (Q.Q8_0, Q.Q4_0):
        return gguf.quants.quantize(rng.standard_normal(shape).astype(np.float32), kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, size), np.uint8)
    scales = {Q.Q4_K: [(0, 0.003), (2, 0.02)], Q.Q6_K: [(208, 0.0007)]}[kind]
    for at, scale in scales:
        data[..., at:at + 2] = np.array([scale], np.float16).view(np.uint8)
    return data.reshape(*shape[:-1], -1)


def write_quantised() -> None:
    config = dict(MODELS["qwen3moe"][2], hidden_size=256, moe_intermediate_size=32,
                  intermediate_size=32, head_dim=32, num_attention_heads=2, num_key_value_heads=1,
                  num_experts=3, num_hidden_layers=1, rope_scaling=None)
    rng = np.random.default_rng(3)
    w = gguf.GGUFWriter(HERE / "quantised.gguf", "qwen3moe")
    write_keys(w, config, "qwen3moe")
    names = gguf.get_tensor_name_map(ARCH["qwen3moe"], 1)
    goldens = {}
    for name, t in stack_experts(random_weights(config)).items():
        kind = Q[BLOCKS.get(name.split(".")[-2], "F32")]
        if kind == Q.F32:
            data = values = t.numpy() * np.float32(0.1)
        else:
            data = random_blocks(rng, tuple(t.shape), kind)
            values = gguf.quants.dequantize(data, kind)
        w.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data,
                     raw_dtype=kind)
        parts = {name: values}
        if t.dim() == 3:
            parts = {name.replace(".experts.", f".experts.{i}."): v for i, v in enumerate(values)}
        for part, v in parts.items():
            flat = v.astype(np.float64).ravel()
            goldens[part] = {"shape": list(v.shape), "type": kind.name, "sum": flat.sum(),
                             "weighted": float(flat @ (np.arange(flat.size) % 7 + 1))}
    finish(w)
    (HERE / "quantised.json").write_text(json.dumps(goldens, indent=1) + "\n")


def write_tokenizer() -> None:
    tokenizer = json.loads((HERE / "../text/tiny/tokenizer.json").read_text())
    names = {i: name for name, i in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(names, gguf.TokenType.NORMAL)
    for token in tokenizer["added_tokens"]:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = gguf.TokenType.CONTROL
    kinds[902] = gguf.TokenType.USER_DEFINED
    for i in range(903, 912):  # as many rows as an embedding table may have beyond the tokens
        names[i], kinds[i] = f"[PAD{i}]", gguf.TokenType.UNUSED
    w = gguf.GGUFWriter(HERE / "tokenizer.gguf", "deepseek2")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("deepseek-v3")
    w.add_token_list([names[i] for i in range(912)])
    w.add_token_types([kinds[i] for i in range(912)])
    w.add_token_merges(tokenizer["model"]["merges"] if isinstance(tokenizer["model"]["merges"][0], str)
                       else [" ".join(pair) for pair in tokenizer["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_pad_token_id(2)
    w.add_add_bos_token(True)
    finish(w)


def main() -> None:
    for name in MODELS:
        write_model(name)
    write_quantised()
    write_tokenizer()


if __name__ == "__main__":
    main()
