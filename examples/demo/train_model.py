#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the demo model from nothing: corpus, tokenizer, model, evaluation.

    train_model.py --out model --compile       # as the committed model was made, on a GPU
    train_model.py --out /tmp/try --documents 60000 --minutes 1 --batch 8 --device cpu

Needs torch, tokenizers and safetensors. Training stops after --minutes or when the corpus has been
seen --epochs times, whichever comes first; the learning rate follows the fraction done.
"""
import argparse
import json
import math
import multiprocessing
import os
import sys
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

import tokenizer as text  # noqa: E402
from corpus import grammar  # noqa: E402
from model import CONFIG, DemoModel, checkpoint  # noqa: E402

HELD_OUT_SEED_OFFSET = 1000000


def pack(docs, tok, length):
    """Rows of `length` tokens: ids, position in the document, document number in the row, is-target."""
    bos, eos, assistant = (tok.token_to_id(t) for t in (text.BOS, text.EOS, text.ASSISTANT))
    encoded = tok.encode_batch_fast([text.render(d) for d in docs], add_special_tokens=False)
    rows, room = [], []
    for doc, e in zip(docs, encoded):
        ids = np.asarray(e.ids[:length], dtype=np.int16)
        if "text" in doc:
            target = ids != bos
        else:
            ends = np.cumsum(ids == eos) - (ids == eos)
            target = (np.cumsum(ids == assistant) > ends) & (ids != assistant)
        for i in range(len(rows) - 1, max(len(rows) - 40, -1), -1):
            if room[i] >= len(ids):
                break
        else:
            rows.append([])
            room.append(length)
            i = len(rows) - 1
        rows[i].append((ids, target))
        room[i] -= len(ids)
    out = np.zeros((4, len(rows), length), dtype=np.int16)
    out[0], out[2] = tok.token_to_id(text.PAD), -1
    for r, parts in enumerate(rows):
        at = 0
        for number, (ids, target) in enumerate(parts):
            part = out[:, r, at:at + len(ids)]
            part[0], part[1], part[2], part[3] = ids, np.arange(len(ids)), number, target
            at += len(ids)
    return out


def make_block(job):
    seed, first, last, path, length = job
    return pack([grammar.document(seed, i) for i in range(first, last)], Tokenizer.from_file(path), length)


def make_rows(seed, documents, path, length, processes):
    jobs = [(seed, i, min(i + 4000, documents), path, length) for i in range(0, documents, 4000)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return torch.from_numpy(np.concatenate(list(pool.imap(make_block, jobs)), axis=1))


def loss_sum(model, rows, ids, other_weight):
    """Cross-entropy over packed rows [4, B, T] read as `ids`, summed over the targets, and over the
    other text with `other_weight`; and the sum of the weights."""
    truth, positions, number, target = rows.long()
    t = ids.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril()
    mask = ((number.unsqueeze(2) == number.unsqueeze(1)) & causal).unsqueeze(1)
    same = (number[:, 1:] == number[:, :-1]) & (number[:, 1:] >= 0)
    weight = torch.where(target[:, 1:].bool(), 1.0, other_weight) * same
    hidden = model(ids, positions, mask)[:, :-1].reshape(-1, model.c["hidden_size"])
    loss = F.cross_entropy(model.lm_head(hidden).float(), truth[:, 1:].reshape(-1), reduction="none")
    return (loss * weight.reshape(-1)).sum(), weight.sum()


def with_noise(rows, share, vocab):
    """The ids with a share of the questions' tokens replaced by random ones, against brittle reading."""
    ids = rows[0].long()
    hit = (torch.rand(ids.shape, device=ids.device) < share) & (rows[3] == 0) & (ids > 2) & (ids < vocab - 2)
    return torch.where(hit, torch.randint(3, vocab - 2, ids.shape, device=ids.device), ids)


def learning_rate(done, peak, warmup=0.02):
    if done < warmup:
        return peak * done / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))))


def train(model, rows, a):
    decay = [p for p in model.parameters() if p.dim() == 2]
    other = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}],
                                  lr=a.lr, betas=(0.9, 0.95), fused=a.device != "cpu")
    compute = torch.compile(loss_sum) if a.compile else loss_sum
    steps = rows.shape[1] // a.batch * a.epochs
    order = torch.cat([torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(a.seed + e))
                       for e in range(a.epochs)])
    start = None
    model.train()
    for step in range(steps):
        batch = rows[:, order[step * a.batch:(step + 1) * a.batch].to(rows.device)].to(a.device)
        with torch.autocast(a.device, dtype=torch.bfloat16):
            loss, count = compute(model, batch, with_noise(batch, 0.03, CONFIG["vocab_size"]), 0.1)
        (loss / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        now = time.time()
        start = start or now
        done = min(max(step / steps, (now - start) / (60 * a.minutes)), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, a.lr)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or done >= 1.0:
            shares = [(g.load / g.load.mean()).max().item() for g in model.gates()]
            print(f"step {step}/{steps} done {done:.3f} loss {loss.item() / count.item():.4f} norm {norm.item():.3f} "
                  f"largest expert load {max(shares):.2f}x {now - start:.0f} s "
                  f"{step * batch.shape[1] * batch.shape[2] / max(now - start, 1e-3):.0f} tokens/s", flush=True)
        model.balance(0.001 if done < 0.85 else 0.0)
        if done >= 1.0:
            break
    return {"steps": step + 1, "tokens": (step + 1) * a.batch * rows.shape[2], "seconds": round(time.time() - start)}


@torch.no_grad()
def perplexity(model, rows, a):
    total = count = 0
    for part in rows.split(a.batch, dim=1):
        part = part.to(a.device)
        loss, n = loss_sum(model, part, part[0].long(), 0.0)
        total, count = total + loss.item(), count + n.item()
    return math.exp(total / count)


@torch.no_grad()
def answers(model, tok, prompts, device, limit=110, batch=512):
    """Greedy replies; prompts are padded on the left by shifting their positions."""
    eos, pad, out = tok.token_to_id(text.EOS), tok.token_to_id(text.PAD), []
    for first in range(0, len(prompts), batch):
        coded = [e.ids for e in tok.encode_batch(prompts[first:first + batch], add_special_tokens=False)]
        width = max(map(len, coded))
        ids = torch.tensor([[pad] * (width - len(c)) + c for c in coded], device=device)
        shift = torch.tensor([width - len(c) for c in coded], device=device)
        over = torch.zeros(len(coded), dtype=torch.bool, device=device)
        for _ in range(limit):
            place = torch.arange(ids.shape[1], device=device)
            positions = (place - shift.unsqueeze(1)).clamp(min=0)
            see = (place.view(1, -1, 1) >= place) & (place >= shift.view(-1, 1, 1)) | torch.eye(
                ids.shape[1], dtype=torch.bool, device=device)
            hidden = model(ids, positions, see.unsqueeze(1))[:, -1]
            new = model.lm_head(hidden).argmax(-1).masked_fill(over, eos)
            over |= new == eos
            ids = torch.cat([ids, new.unsqueeze(1)], dim=1)
            if over.all():
                break
        for row in ids[:, width:].tolist():
            out.append(tok.decode(row[:row.index(eos)] if eos in row else row))
    return out


def evaluate(model, tok, a):
    """Exact-match share of greedy answers to wordings that training never saw, by group and language."""
    items = grammar.evaluation(a.seed)
    prompts = [text.render({"system": "", "turns": i["history"]}) + text.USER + i["question"] + text.ASSISTANT
               for i in items]
    table, wrong = {}, []
    for item, reply in zip(items, answers(model, tok, prompts, a.device)):
        cell = table.setdefault((item["group"], item["lang"]), [0, 0])
        cell[0] += reply in item["accept"]
        cell[1] += 1
        if reply not in item["accept"]:
            wrong.append(dict(item, reply=reply))
    return table, wrong


def save(model, tok, folder, shards=2):
    tensors = checkpoint(model)
    half, at, files = sum(t.nbytes for t in tensors.values()) / shards, 0, [{} for _ in range(shards)]
    for name, tensor in tensors.items():
        files[min(int(at / half), shards - 1)][name] = tensor
        at += tensor.nbytes
    index = {"metadata": {"total_size": at}, "weight_map": {}}
    for i, part in enumerate(files):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, os.path.join(folder, file), metadata={"format": "pt"})
        os.chmod(os.path.join(folder, file), 0o644)
        index["weight_map"].update(dict.fromkeys(part, file))
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": False}
    for file, value in (("model.safetensors.index.json", index), ("config.json", model.c),
                        ("generation_config.json", generation)):
        with open(os.path.join(folder, file), "w") as f:
            json.dump(value, f, indent=2)
            f.write("\n")
    text.save(tok, folder, model.c["max_position_embeddings"])


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    p.add_argument("--documents", type=int, default=2000000)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--minutes", type=float, default=60.0)
    p.add_argument("--batch", type=int, default=128, help="rows of --length tokens a step")
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cuda")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--processes", type=int, default=os.cpu_count())
    return p.parse_args()


def main():
    a = arguments()
    os.makedirs(a.out, exist_ok=True)
    began = time.time()
    tok = text.train([grammar.document(a.seed, i) for i in range(min(a.documents, 60000))], CONFIG["vocab_size"])
    path = os.path.join(a.out, "tokenizer.json")
    tok.save(path)
    rows = make_rows(a.seed, a.documents, path, a.length, a.processes)
    unseen = make_rows(a.seed + HELD_OUT_SEED_OFFSET, 4000, path, a.length, 1)
    fill = (rows[2] >= 0).float().mean().item()
    print(f"{a.documents} documents, {int((rows[2] >= 0).sum())} tokens, rows {fill:.0%} full, "
          f"{time.time() - began:.0f} s", flush=True)
    torch.manual_seed(a.seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    model = DemoModel(CONFIG).to(a.device)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    run = train(model, rows.to(a.device), a)
    model.eval()
    for p in model.parameters():
        p.data = p.data.bfloat16().float()
    save(model, tok, a.out)
    model.balance(0.0)
    run["documents"], run["perplexity"] = a.documents, round(perplexity(model, unseen, a), 4)
    shares = [g.load / g.load.mean() for g in model.gates()]
    table, wrong = evaluate(model, tok, a)
    print(json.dumps(run))
    for layer, share in enumerate(shares, CONFIG["first_k_dense_replace"]):
        print(f"layer {layer}: expert load {share.min():.2f} to {share.max():.2f} of the mean")
    for (group, lang), (good, total) in sorted(table.items()):
        print(f"{group:20} {lang} {good:4}/{total}")
    good, total = map(sum, zip(*table.values()))
    print(f"{'all':20}    {good:4}/{total} = {good / total:.1%}")
    for item in wrong[::max(1, len(wrong) // 40)]:
        print(json.dumps([item["group"], item["question"], item["accept"][0], item["reply"]], ensure_ascii=False))


if __name__ == "__main__":
    main()
