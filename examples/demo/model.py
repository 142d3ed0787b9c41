# SPDX-License-Identifier: Apache-2.0
"""The demo model: DeepSeek-V3's architecture written for fast training of a tiny model.

The mathematics is that of transformers' DeepseekV3ForCausalLM (MLA with a query rank, YaRN,
sigmoid routing with a correction bias, group-limited top-k, a shared expert). Routed experts are
held as one wide MLP whose hidden units are scaled by the routing weights, which for 16 small
experts is much faster than gathering tokens; `checkpoint` cuts them into per-expert tensors.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
    "vocab_size": 3072, "hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 96,
    "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 96, "kv_lora_rank": 64,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "rope_interleave": True,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 32.0,
                     "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    "attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": False,
    "use_cache": True, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}
DROPOUT = 0.1  # while the demo model is made; not a part of the architecture


def yarn_frequencies(c):
    """Rotary frequencies mixed between extrapolation and interpolation (YaRN, arXiv 2309.00071)."""
    y, dim, base = c["rope_scaling"], c["qk_rope_head_dim"], c["rope_theta"]

    def turns_at(rotations):
        return dim * math.log(y["original_max_position_embeddings"] / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(turns_at(y["beta_fast"])), 0)
    high = min(math.ceil(turns_at(y["beta_slow"])), dim - 1)
    plain = base ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - ramp) + plain / y["factor"] * ramp


def softmax_scale(c):
    y = c["rope_scaling"]
    m = 0.1 * y["mscale_all_dim"] * math.log(y["factor"]) + 1.0
    return (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5 * m * m


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        f = x.float()
        return (self.weight * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + self.eps))).to(x.dtype)


def linear(a, b):
    return nn.Linear(a, b, bias=False)


def rotate(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, heads, hidden = c, c["num_attention_heads"], c["hidden_size"]
        self.q_a_proj = linear(hidden, c["q_lora_rank"])
        self.q_a_layernorm = Norm(c["q_lora_rank"], 1e-6)
        self.q_b_proj = linear(c["q_lora_rank"], heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]))
        self.kv_a_proj_with_mqa = linear(hidden, c["kv_lora_rank"] + c["qk_rope_head_dim"])
        self.kv_a_layernorm = Norm(c["kv_lora_rank"], 1e-6)
        self.kv_b_proj = linear(c["kv_lora_rank"], heads * (c["qk_nope_head_dim"] + c["v_head_dim"]))
        self.o_proj = linear(heads * c["v_head_dim"], hidden)
        self.scale = softmax_scale(c)

    def forward(self, x, cos, sin, mask):
        c, (b, t, _) = self.c, x.shape
        heads, nope, rope, vd = (c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim",
                                                "v_head_dim"))
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(b, t, heads, nope + rope).transpose(1, 2)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([c["kv_lora_rank"], rope], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(b, t, heads, nope + vd).transpose(1, 2)
        k_nope, v = kv.split([nope, vd], dim=-1)
        q_nope, q_rope = q.split([nope, rope], dim=-1)
        q = torch.cat([q_nope, rotate(q_rope, cos, sin)], dim=-1)
        k = torch.cat([k_nope, rotate(k_rope.unsqueeze(1), cos, sin).expand(-1, heads, -1, -1)], dim=-1)
        v = F.pad(v, (0, nope + rope - vd))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)[..., :vd]
        return self.o_proj(out.transpose(1, 2).reshape(b, t, heads * vd))


class MLP(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(hidden, inner), linear(hidden, inner), linear(inner, hidden)

    def forward(self, x, unit_weights=None):
        h = F.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(h if unit_weights is None else h * unit_weights)


class Gate(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.empty(c["n_routed_experts"], c["hidden_size"]))
        self.register_buffer("e_score_correction_bias", torch.zeros(c["n_routed_experts"]))
        self.register_buffer("load", torch.zeros(c["n_routed_experts"]), persistent=False)

    def forward(self, x):
        """Routing weights of every expert, zero for those not chosen: [tokens, experts], float32."""
        c = self.c
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        with torch.no_grad():
            biased = scores + self.e_score_correction_bias
            groups = biased.view(-1, c["n_group"], c["n_routed_experts"] // c["n_group"])
            best = groups.topk(2, dim=-1)[0].sum(-1).topk(c["topk_group"], dim=-1)[1]
            allowed = torch.zeros_like(groups[..., 0]).scatter_(1, best, 1.0).unsqueeze(-1).expand_as(groups)
            chosen = biased.masked_fill(allowed.reshape_as(biased) == 0, -1.0).topk(c["num_experts_per_tok"], dim=-1)[1]
            picked = torch.zeros_like(scores).scatter_(1, chosen, 1.0)
            self.load += picked.sum(0)
        weights = scores * picked
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * c["routed_scaling_factor"]


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.inner = c["moe_intermediate_size"]
        self.gate = Gate(c)
        self.experts = MLP(c["hidden_size"], c["n_routed_experts"] * self.inner)
        self.shared_experts = MLP(c["hidden_size"], c["n_shared_experts"] * self.inner)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights = self.gate(flat).to(x.dtype).repeat_interleave(self.inner, dim=1)
        return self.experts(flat, weights).view_as(x) + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        dense = index < c["first_k_dense_replace"]
        self.mlp = MLP(c["hidden_size"], c["intermediate_size"]) if dense else MoE(c)

    def forward(self, x, cos, sin, mask):
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin, mask), DROPOUT, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), DROPOUT, self.training)


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.register_buffer("frequencies", yarn_frequencies(c), persistent=False)

    def forward(self, ids, positions, mask):
        angles = (positions.float().unsqueeze(-1) * self.frequencies).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)


class DemoModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.model = Body(c)
        self.lm_head = linear(c["hidden_size"], c["vocab_size"])
        for name, p in self.named_parameters():
            if p.dim() == 2:
                inner = c["moe_intermediate_size"] if "experts.down" in name else p.shape[1]
                std = 0.02 if "embed" in name else inner ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std /= math.sqrt(2 * c["num_hidden_layers"])
                nn.init.normal_(p, std=std)

    def gates(self):
        return [layer.mlp.gate for layer in self.model.layers if isinstance(layer.mlp, MoE)]

    @torch.no_grad()
    def balance(self, step_size):
        """DeepSeek-V3's auxiliary-loss-free balancing: raise the bias of experts under the mean load.
        The bias is shifted to be non-negative, which changes no choice."""
        for gate in self.gates():
            gate.e_score_correction_bias += step_size * torch.sign(gate.load.mean() - gate.load)
            gate.e_score_correction_bias -= gate.e_score_correction_bias.min()
            gate.load.zero_()

    def forward(self, ids, positions, mask):
        return self.model(ids, positions, mask)


def checkpoint(model):
    """The tensors under the names of DeepSeek-V3's checkpoints: BF16, the correction bias F32."""
    out, c = {}, model.c
    for name, tensor in model.state_dict().items():
        if "mlp.experts." in name:
            dim = 1 if "down_proj" in name else 0
            for e, part in enumerate(tensor.chunk(c["n_routed_experts"], dim=dim)):
                out[name.replace("experts.", f"experts.{e}.")] = part.bfloat16().contiguous().cpu()
        else:
            keep = "e_score_correction_bias" in name
            out[name] = (tensor.float() if keep else tensor.bfloat16()).contiguous().cpu()
    return out
