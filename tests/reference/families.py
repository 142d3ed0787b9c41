# SPDX-License-Identifier: Apache-2.0
"""Tiny configurations of the decoders with grouped-query attention, and the shapes of their tensors.

Each family has a head_dim of its own choice, fewer key and value heads than query heads, and every
feature that its config.json can turn on; between them they have every kind of rope_scaling.
"""
COMMON = {"hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02,
          "tie_word_embeddings": False, "use_cache": True, "bos_token_id": 0, "eos_token_id": 1,
          "vocab_size": 151, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
          "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 128}

QWEN3_MOE = {**COMMON, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
             "head_dim": 12, "attention_bias": True, "use_sliding_window": True,
             "sliding_window": 9, "moe_intermediate_size": 12, "num_experts": 10,
             "num_experts_per_tok": 3, "norm_topk_prob": True, "decoder_sparse_step": 1,
             "mlp_only_layers": [1], "rope_theta": 1000.0,
             "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                              "original_max_position_embeddings": 32, "beta_fast": 4.0}}

QWEN2_MOE = {**COMMON, "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe",
             "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2,
             "num_hidden_layers": 4, "moe_intermediate_size": 12, "num_experts": 16,
             "num_experts_per_tok": 2, "norm_topk_prob": False, "decoder_sparse_step": 2,
             "mlp_only_layers": [], "shared_expert_intermediate_size": 28,
             "tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 2.0}}

MIXTRAL = {**COMMON, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
           "sliding_window": 9, "num_local_experts": 6, "num_experts_per_tok": 2,
           "num_hidden_layers": 2, "intermediate_size": 20, "rms_norm_eps": 1e-5,
           "rope_theta": 1000000.0}

# For sequences longer than max_position_embeddings. transformers wants head_dim to be given here.
DYNAMIC = {**MIXTRAL, "sliding_window": None, "head_dim": 10, "max_position_embeddings": 16,
           "rope_theta": 1000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 8.0}}

# Its last layers see a window, as max_window_layers says.
QWEN3 = {**COMMON, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 12,
         "attention_bias": False, "tie_word_embeddings": True, "use_sliding_window": True,
         "sliding_window": 9, "max_window_layers": 1, "num_hidden_layers": 2}

QWEN2 = {**COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
         "num_key_value_heads": 1, "num_hidden_layers": 3, "use_sliding_window": True,
         "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention",
                                              "sliding_attention"]}

LLAMA = {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama",
         "attention_bias": True, "mlp_bias": True, "num_hidden_layers": 2, "head_dim": 16,
         "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}

MISTRAL = {**COMMON, "architectures": ["MistralForCausalLM"], "model_type": "mistral",
           "head_dim": 12, "sliding_window": 9, "num_hidden_layers": 2}


def attention_shapes(c, p):
    h, kind = c["hidden_size"], c["model_type"]
    dim = c.get("head_dim") or h // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    s = {f"{p}.q_proj.weight": (q, h), f"{p}.k_proj.weight": (kv, h),
         f"{p}.v_proj.weight": (kv, h), f"{p}.o_proj.weight": (h, q)}
    if c.get("attention_bias") or kind.startswith("qwen2"):
        s.update({f"{p}.q_proj.bias": (q,), f"{p}.k_proj.bias": (kv,), f"{p}.v_proj.bias": (kv,)})
    if c.get("attention_bias"):
        s[f"{p}.o_proj.bias"] = (h,)
    if kind.startswith("qwen3"):
        s.update({f"{p}.q_norm.weight": (dim,), f"{p}.k_norm.weight": (dim,)})
    return s


def mlp_shapes(p, hidden, inner, bias=False, names=("gate_proj", "up_proj", "down_proj")):
    gate, up, down = names
    s = {f"{p}.{gate}.weight": (inner, hidden), f"{p}.{up}.weight": (inner, hidden),
         f"{p}.{down}.weight": (hidden, inner)}
    if bias:
        s.update({f"{p}.{gate}.bias": (inner,), f"{p}.{up}.bias": (inner,),
                  f"{p}.{down}.bias": (hidden,)})
    return s


def is_sparse(c, layer):
    if "num_local_experts" in c:
        return True
    return ("num_experts" in c and (layer + 1) % c["decoder_sparse_step"] == 0
            and layer not in c["mlp_only_layers"])


def experts_shapes(c, p):
    h = c["hidden_size"]
    s = {f"{p}.gate.weight": (c.get("num_experts") or c["num_local_experts"], h)}
    for e in range(next(iter(s.values()))[0]):
        if "num_local_experts" in c:
            s.update(mlp_shapes(f"{p}.experts.{e}", h, c["intermediate_size"],
                                names=("w1", "w3", "w2")))
        else:
            s.update(mlp_shapes(f"{p}.experts.{e}", h, c["moe_intermediate_size"]))
    if "shared_expert_intermediate_size" in c:
        s.update(mlp_shapes(f"{p}.shared_expert", h, c["shared_expert_intermediate_size"]))
        s[f"{p}.shared_expert_gate.weight"] = (1, h)
    return s


def layer_shapes(c, layer):
    p, h = f"model.layers.{layer}", c["hidden_size"]
    s = {f"{p}.input_layernorm.weight": (h,), f"{p}.post_attention_layernorm.weight": (h,)}
    s.update(attention_shapes(c, f"{p}.self_attn"))
    if not is_sparse(c, layer):
        return {**s, **mlp_shapes(f"{p}.mlp", h, c["intermediate_size"], c.get("mlp_bias", False))}
    block = "block_sparse_moe" if "num_local_experts" in c else "mlp"
    return {**s, **experts_shapes(c, f"{p}.{block}")}


def model_shapes(c):
    h, v = c["hidden_size"], c["vocab_size"]
    s = {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,)}
    if not c["tie_word_embeddings"]:
        s["lm_head.weight"] = (v, h)
    for layer in range(c["num_hidden_layers"]):
        s.update(layer_shapes(c, layer))
    return s
