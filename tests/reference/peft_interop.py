# SPDX-License-Identifier: Apache-2.0
"""Check that libkt and PEFT read each other's adapters, routed experts included.

    pip install torch==2.9.1 transformers==4.57.1 peft==0.17.1
    python peft_interop.py ../../build/libkt/libkt.so

For each checkpoint of cases/: libkt makes an adapter (B filled at random too), saves it, and its
logits must be those of transformers + PEFT with that folder; PEFT makes one and saves it, and the
logits must agree as well; a folder that PEFT loads and saves again must hold the same tensors.
Prints the relative L2 error of each, and of the adapter's effect alone (with it minus without it).
Exit status 0 when all are below 1e-5. PEFT's deepseek_v2 with YaRN gets the softmax factor that
transformers 4.57.1 lacks.
"""
import argparse
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

import engines
import make_goldens
from libkt import Library

LIMIT = 1e-5


def make_ours(lib, model, folder, rslora, experts):
    """An adapter over all linears, routed experts too if asked, written by libkt; -> its handle"""
    lora = lib.create_lora(model, 4, rslora, experts)
    gen = torch.Generator().manual_seed(7)
    for name, tensor in lib.tensors(lora).items():
        if ".lora_B." in name:
            tensor.copy_(torch.randn(tensor.shape, generator=gen) * 0.1)
    lib.save_lora(lora, folder)
    return lora


def compare(title, ours, base, engine, ids):
    """-> True when libkt's logits are PEFT's, and so is what the adapter adds to them"""
    with torch.no_grad():
        theirs, their_base = engine.logits(ids), engine.base_logits(ids)
    error = make_goldens.relative(ours, theirs)
    effect = make_goldens.relative(ours - base, theirs - their_base)
    print(f"  {title}: logits {error:.1e}, effect of the adapter {effect:.1e}")
    return error < LIMIT and effect < LIMIT


def same_tensors(a, b):
    a, b = (load_file(f / "adapter_model.safetensors") for f in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def check_ours(lib, model, case, work, base, ids, experts):
    """libkt writes, PEFT reads, finds as many tensors, agrees, and writes the same back."""
    ours = work / f"ours{experts}"
    lora = make_ours(lib, model, ours, case.name == "v2", experts)
    logits = lib.logits(model, lora, ids.tolist(), base.shape[1])
    count = len(lib.tensors(lora))
    lib.lib.kt_lora_free(lora)
    engine = engines.PeftEngine(case / "model", ours)
    good = compare(f"{count} tensors written by libkt, {len(engine.trainable)} found by PEFT",
                   logits, base, engine, ids)
    engine.model.save_pretrained(work / "again")
    return good and count == len(engine.trainable) and same_tensors(ours, work / "again")


def check_theirs(lib, model, case, base, ids):
    lora = lib.load_lora(model, case / "adapter")
    logits = lib.logits(model, lora, ids.tolist(), base.shape[1])
    count = len(lib.tensors(lora))
    lib.lib.kt_lora_free(lora)
    engine = engines.PeftEngine(case / "model", case / "adapter")
    good = compare(f"{len(engine.trainable)} tensors written by PEFT, {count} found by libkt",
                   logits, base, engine, ids)
    return good and count == len(engine.trainable)


def check(lib, case, work):
    golden = load_file(case / "golden.safetensors")
    ids = golden["input_ids"][:int(golden["cu_seqlens"][1])]
    print(case.name)
    model = lib.load_model(case / "model")
    base = lib.logits(model, None, ids.tolist(), golden["logits"].shape[1])
    good = all([check_ours(lib, model, case, work, base, ids, 1),
                check_ours(lib, model, case, work, base, ids, 0),
                check_theirs(lib, model, case, base, ids)])
    lib.lib.kt_model_free(model)
    if not good:
        print("  WRONG")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libkt.so")
    parser.add_argument("cases", nargs="*", help="names under cases/ (default: all)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    root = Path(__file__).parent / "cases"
    names = args.cases or sorted(p.name for p in root.iterdir() if p.is_dir())
    lib = Library(args.library)
    good = True
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            good &= check(lib, root / name, Path(work))
    print("all agree" if good else "NOT all agree")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
