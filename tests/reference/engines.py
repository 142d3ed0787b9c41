# SPDX-License-Identifier: Apache-2.0
"""Two ways to compute the same numbers: PEFT's own LoRA layers, and weights merged by autograd.

Both engines offer `trainable` (PEFT tensor name -> leaf tensor), `logits(ids)` for one sequence
with the adapter on, `base_logits(ids)` without it, and `generate(ids, n)`; the first one computes
`logits(ids, padding)` with that many padding tokens after the sequence, whose logits it drops.
The merged engine computes W + s B A inside the autograd graph and runs the model on the result
(torch.func.functional_call): the exact LoRA gradients for a transformers version whose routed
experts are one fused parameter, where PEFT has no linear to wrap.
"""
import json
import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

PAD = 2


def load_model(folder, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def add_yarn_softmax_factor(model):
    """What DeepSeek's code and transformers 5.17 do for V2 and 4.57.1 leaves out."""
    rope = model.config.rope_scaling
    if model.config.model_type != "deepseek_v2" or not (rope or {}).get("mscale_all_dim"):
        return
    mscale = 0.1 * rope["mscale_all_dim"] * math.log(rope["factor"]) + 1.0
    for layer in model.model.layers:
        layer.self_attn.scaling *= mscale * mscale


def fresh_rope(model):
    """Rotary embeddings with dynamic scaling keep the frequencies of the longest call so far; here
    every call begins as in a model that was just loaded."""
    for m in model.modules():
        if getattr(m, "rope_type", None) == "dynamic":
            m.register_buffer("inv_freq", m.original_inv_freq, persistent=False)
            m.max_seq_len_cached = m.original_max_seq_len


def greedy(model, ids, new_tokens):
    """-> prompt and new tokens, and the logits of the latter"""
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, use_cache=True,
                              pad_token_id=0, eos_token_id=None, bos_token_id=0)
    model.generation_config = config
    fresh_rope(model)
    with torch.no_grad():
        out = model.generate(ids[None], attention_mask=torch.ones_like(ids[None]),
                             generation_config=config, return_dict_in_generate=True,
                             output_logits=True)
    return out.sequences[0], torch.cat(out.logits).float()


class PeftEngine:
    def __init__(self, model_dir, adapter_dir, dtype=torch.float32, autocast=False):
        from peft import PeftModel
        base = load_model(model_dir, dtype)
        add_yarn_softmax_factor(base)
        self.model = PeftModel.from_pretrained(base, adapter_dir, is_trainable=True,
                                               autocast_adapter_dtype=False).eval()
        self.autocast = autocast
        self.trainable = {}
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                p.data = p.data.float()
                self.trainable[name.replace(".default.", ".")] = p

    def logits(self, ids, padding=0):
        mask = (torch.arange(len(ids) + padding) < len(ids)).long()
        ids = torch.nn.functional.pad(ids, (0, padding), value=PAD)
        fresh_rope(self.model)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            out = self.model(input_ids=ids[None], attention_mask=mask[None], use_cache=False)
        return out.logits[0][:len(ids) - padding]

    def base_logits(self, ids, padding=0):
        with torch.no_grad(), self.model.disable_adapter():
            return self.logits(ids, padding)

    def generate(self, ids, new_tokens):
        return greedy(self.model, ids, new_tokens)

    def routers(self):
        return routers(self.model)


class MergedEngine:
    """Needs the per-expert checkpoint names only in the adapter; fused or not in the model."""

    def __init__(self, model_dir, adapter_dir):
        self.model = load_model(model_dir)
        config = json.loads((Path(adapter_dir) / "adapter_config.json").read_text())
        root = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
        self.scale = config["lora_alpha"] / root
        tensors = load_file(Path(adapter_dir) / "adapter_model.safetensors")
        self.trainable = {n: t.clone().requires_grad_() for n, t in tensors.items()}
        self.params = {n: p.detach() for n, p in self.model.named_parameters()}
        self.hits = set()
        for name, router in self.routers().items():
            router.register_forward_hook(lambda _m, _i, out, name=name: self.note(name, out[-1]))

    def note(self, name, chosen):
        self.hits.update((name, e) for e in chosen.unique().tolist())

    def merged(self):
        params = dict(self.params)
        for name, a in self.trainable.items():
            if not name.endswith(".lora_A.weight"):
                continue
            target = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            delta = self.scale * (self.trainable[name.replace("lora_A", "lora_B")] @ a)
            expert = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj", target)
            if not expert:
                params[target + ".weight"] = params[target + ".weight"] + delta
                continue
            prefix, e, which = expert[1], int(expert[2]), expert[3]
            fused = f"{prefix}.{'down_proj' if which == 'down' else 'gate_up_proj'}"
            rows = params[fused].shape[1]
            top = rows // 2 if which == "up" else 0
            pad = F.pad(delta, (0, 0, top, rows - top - delta.shape[0]))
            full = torch.zeros_like(params[fused]).index_add(0, torch.tensor([e]), pad[None])
            params[fused] = params[fused] + full
        return params

    def logits(self, ids, padding=0):
        assert padding == 0
        return torch.func.functional_call(self.model, self.merged(), kwargs={
            "input_ids": ids[None], "use_cache": False}).logits[0]

    def base_logits(self, ids, padding=0):
        assert padding == 0
        with torch.no_grad():
            return self.model(input_ids=ids[None], use_cache=False).logits[0]

    def drop_unused(self):
        """A fused parameter gets zeros where a linear that never ran would get no gradient."""
        for name, p in self.trainable.items():
            expert = re.fullmatch(r"base_model\.model\.(.*\.mlp)\.experts\.(\d+)\..*", name)
            if expert and (f"{expert[1]}.gate", int(expert[2])) not in self.hits:
                p.grad = None
        self.hits.clear()

    def generate(self, ids, new_tokens):
        with torch.no_grad():
            for name, p in self.merged().items():
                self.model.get_parameter(name).copy_(p)
        out = greedy(self.model, ids, new_tokens)
        with torch.no_grad():
            fresh = load_model(self.model.config._name_or_path).named_parameters()
            for name, p in fresh:
                self.model.get_parameter(name).copy_(p)
        return out

    def routers(self):
        return routers(self.model)


def routers(model):
    """Those that are linears get the top_k that their block has."""
    found = {n: m for n, m in model.named_modules()
             if n.endswith(("mlp.gate", "block_sparse_moe.gate"))}
    for name, router in found.items():
        if not hasattr(router, "top_k"):
            router.top_k = model.get_submodule(name.rpartition(".")[0]).top_k
    return found


def router_weight(router):
    """With what LoRA adds to it, where it is a target."""
    weight = router.weight.detach().float()
    if hasattr(router, "get_delta_weight") and not router.disable_adapters:
        weight = weight + router.get_delta_weight("default").detach().float()
    return weight


def router_margin(router, hidden):
    """Smallest distance, over tokens, by which a choice of groups or experts was made."""
    x = hidden.detach().float().reshape(-1, hidden.shape[-1])
    logits = x @ router_weight(router).T
    v3 = hasattr(router, "e_score_correction_bias")
    scores = logits.sigmoid() + router.e_score_correction_bias if v3 else logits.softmax(-1)
    groups = getattr(router, "n_group", None) or getattr(router, "num_group", None) or 1
    keep = router.topk_group if groups > 1 else 1
    if router.top_k == logits.shape[1]:
        return float("inf")
    by_group = scores.view(len(x), groups, -1)
    best = by_group.topk(2).values.sum(-1) if v3 else by_group.max(-1).values
    margin = torch.tensor(float("inf"))
    if keep < groups:
        top = best.topk(keep + 1).values
        margin = (top[:, -2] - top[:, -1]).min()
    mask = torch.zeros_like(best).scatter_(1, best.topk(keep).indices, 1.0).bool()
    allowed = by_group.masked_fill(~mask[..., None], -1e9).view(len(x), -1)
    top = allowed.topk(router.top_k + 1).values
    return torch.minimum(margin, (top[:, -2] - top[:, -1]).min()).item()


class Margins:
    """Collects the smallest router margin while it is entered."""

    def __init__(self, engine):
        self.engine, self.smallest = engine, float("inf")

    def __enter__(self):
        routers = self.engine.routers().values()
        self.hooks = [r.register_forward_pre_hook(self.look) for r in routers]
        return self

    def look(self, router, args):
        self.smallest = min(self.smallest, router_margin(router, args[0]))

    def __exit__(self, *_):
        for h in self.hooks:
            h.remove()
