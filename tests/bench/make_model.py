# SPDX-License-Identifier: Apache-2.0
"""Write the speed benchmark's model, tokenizer, dataset, initial adapter and YAML into a folder.

    python make_model.py DIR                  # about 100 M parameters, 32 experts, BF16
    python make_model.py DIR --layers 13 --experts 64 --sequences 128
    python make_model.py DIR --architecture qwen3moe      # about 106 M parameters, 64 experts

The architecture is DeepSeek-V3's (MLA, sigmoid routing in groups, a shared expert) or Qwen3-MoE's
(grouped-query attention, norms of each head, 8 experts chosen by softmax); the weights are random, drawn from a seed with the scale that keeps activations near one, so routing spreads over
the experts as in a trained model. The data are word salad in alpaca format with lengths like those
of instruction data. A second run writes the same bytes. Needs torch, safetensors, tokenizers.
"""
import argparse
import json
import math
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reference"))
import families  # noqa: E402
import models  # noqa: E402
import tiny  # noqa: E402

V3 = {**models.V3, "vocab_size": 12800, "hidden_size": 512, "intermediate_size": 1408,
          "moe_intermediate_size": 256, "num_hidden_layers": 7, "num_nextn_predict_layers": 0,
          "num_attention_heads": 8, "num_key_value_heads": 8, "q_lora_rank": 256,
          "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
          "n_routed_experts": 32, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
          "rope_scaling": None, "max_position_embeddings": 4096}
QWEN3_MOE = {**families.QWEN3_MOE, "vocab_size": 12800, "hidden_size": 512, "intermediate_size": 1408,
             "moe_intermediate_size": 128, "num_hidden_layers": 7, "num_attention_heads": 8,
             "num_key_value_heads": 2, "head_dim": 64, "num_experts": 64, "num_experts_per_tok": 8,
             "attention_bias": False, "mlp_only_layers": [], "use_sliding_window": False,
             "sliding_window": None, "rope_theta": 1000000.0, "rope_scaling": None,
             "max_position_embeddings": 4096}
# config, the key that counts its experts
ARCHITECTURES = {"deepseek_v3": (V3, "n_routed_experts"), "qwen3moe": (QWEN3_MOE, "num_experts")}


def write_data(folder, count, mean, seed):
    """Answers whose lengths are log-normal about the mean, in tokens of the tiny tokenizer."""
    rng = random.Random(seed)
    records = []
    for i in range(count):
        tokens = min(max(rng.lognormvariate(math.log(mean), 0.5), 24), 6 * mean)
        words = [rng.choice(tiny.DEEDS) for _ in range(max(1, round(tokens / 4.6)))]
        records.append({"instruction": f"What do you know about the {rng.choice(tiny.THINGS)}?",
                        "input": "", "output": ", ".join(words) + "."})
    (folder / "bench.json").write_text(json.dumps(records, ensure_ascii=False, indent=0) + "\n")
    info = {"bench": {"file_name": "bench.json"}}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")


def linears(config, experts):
    """Module path -> (out, in) of everything that the adapter covers."""
    found = {}
    for name, shape in models.model_shapes(config).items():
        path = name.removesuffix(".weight")
        if len(shape) != 2 or path.endswith(("embed_tokens", "lm_head", ".gate")):
            continue
        if experts or ".experts." not in path:
            found[path] = shape
    return found


def write_adapter(folder, config, rank, experts, seed):
    """A fresh LoRA in PEFT's format: A Kaiming-uniform, B zero."""
    gen = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (rows, cols) in sorted(linears(config, experts).items()):
        a = (torch.rand(rank, cols, generator=gen) * 2 - 1) / math.sqrt(cols)
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.zeros(rows, rank)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    leaf = sorted({p.split(".")[-1] for p in linears(config, experts)})
    text = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank,
            "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "fan_in_fan_out": False,
            "base_model_name_or_path": None, "target_modules": leaf,
            "exclude_modules": None if experts else r".*\.mlp\.experts\..*"}
    (folder / "adapter_config.json").write_text(json.dumps(text, indent=2) + "\n")


def write_yaml(folder, args):
    keys = {"model_name_or_path": str(folder / "model"), "adapter_name_or_path":
            str(folder / "adapter"), "create_new_adapter": False, "stage": "sft", "do_train": True,
            "finetuning_type": "lora", "lora_rank": args.rank, "lora_target": "all",
            "dataset": "bench", "dataset_dir": str(folder / "data"), "template": "deepseek3",
            "cutoff_len": 2048, "disable_shuffling": True, "output_dir": str(folder / "out"),
            "overwrite_output_dir": True, "logging_steps": 1, "save_strategy": "no",
            "report_to": "none", "per_device_train_batch_size": args.batch,
            "gradient_accumulation_steps": args.accum, "learning_rate": 1e-4,
            "lr_scheduler_type": "constant", "max_steps": args.steps, "bf16": True}
    (folder / "bench.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in keys.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="deepseek_v3")
    parser.add_argument("--layers", type=int, help="default: 7")
    parser.add_argument("--experts", type=int, help="default: 32, or 64")
    parser.add_argument("--hidden", type=int, help="default: 512")
    parser.add_argument("--sequences", type=int, default=64, help="examples in the dataset")
    parser.add_argument("--mean-tokens", type=int, default=160, help="of an answer, about")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accum", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lora-experts", action="store_true", help="LoRA on routed experts too")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = args.folder.resolve()
    base, experts = ARCHITECTURES[args.architecture]
    sizes = {"num_hidden_layers": args.layers, experts: args.experts, "hidden_size": args.hidden}
    config = {**base, **{k: v for k, v in sizes.items() if v is not None}}
    weights = models.make_weights(config, args.seed, torch.bfloat16)
    models.write_checkpoint(folder / "model", config, weights, shards=2)
    tiny.write_tokenizer(folder / "model")
    (folder / "data").mkdir(exist_ok=True)
    write_data(folder / "data", args.sequences, args.mean_tokens, args.seed)
    write_adapter(folder / "adapter", config, args.rank, args.lora_experts, args.seed)
    write_yaml(folder, args)
    print(f"{sum(w.numel() for w in weights.values()) / 1e6:.1f} M parameters in {folder}")


if __name__ == "__main__":
    main()
