# SPDX-License-Identifier: Apache-2.0
"""Write training.json: schedules of transformers, permutations of torch, steps of torch's AdamW.

    pip install torch==2.9.1 transformers==4.57.1
    python make_training_goldens.py

The optimizer's case needs no model: LINEARS are the shapes of tests/unit/toy_model.h, each with
A [2, in] and B [out, 2]; parameters and gradients are the formulas below, in the C test too.
"""
import json
import math
from pathlib import Path

import torch
from transformers import get_scheduler

LINEARS = [(12, 16), (16, 20), (24, 16), (16, 24), (12, 16), (16, 20), (16, 8), (16, 8), (16, 8),
           (30, 16)]
STEPS, RANK = 12, 2

SCHEDULES = [
    ("linear", 5e-5, 0, 10, {}),
    ("linear", 1e-4, 3, 20, {}),
    ("cosine", 1e-4, 0, 7, {}),
    ("cosine", 1e-4, 5, 31, {}),
    ("cosine", 2e-4, 2, 20, {"num_cycles": 1.25}),
    ("constant", 3e-4, 0, 5, {}),
    ("constant_with_warmup", 1e-3, 4, 12, {}),
    ("cosine_with_restarts", 1e-4, 3, 25, {}),
    ("cosine_with_restarts", 1e-4, 3, 25, {"num_cycles": 3}),
    ("polynomial", 1e-4, 2, 17, {}),
    ("polynomial", 1e-4, 2, 17, {"power": 2.5, "lr_end": 1e-6}),
    ("inverse_sqrt", 1e-4, 4, 15, {}),
    ("inverse_sqrt", 1e-4, 0, 15, {}),
    ("cosine_with_min_lr", 1e-4, 3, 19, {"min_lr": 1e-5}),
    ("linear", 1e-4, 5, 5, {}),
]


def schedule(kind, rate, warmup, total, extra):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    s = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=total,
                      scheduler_specific_kwargs=dict(extra))
    rates = []
    for _ in range(total + 3):  # past the end too
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        s.step()
    return dict(type=kind, learning_rate=rate, warmup_steps=warmup, total_steps=total,
                num_cycles=extra.get("num_cycles", 0), power=extra.get("power", 1.0),
                lr_end=extra.get("lr_end", extra.get("min_lr", 1e-7)), rates=rates)


def permutation(seed, n):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return dict(seed=seed, n=n, head=order[:50],
                checksum=sum((i + 1) * v for i, v in enumerate(order)) % (2**53))


def has_gradient(linear, step):
    return (7 * linear + 3 * step) % 4 != 0 and not (linear == 5 and step < 6)


def optimizer(weight_decay, max_grad_norm):
    params, offset = [], 0
    for rows, cols in LINEARS:
        for shape in ((RANK, cols), (rows, RANK)):
            n = shape[0] * shape[1]
            values = [math.cos(0.3 * (offset + i)) for i in range(n)]
            params.append((torch.nn.Parameter(torch.tensor(values).view(shape)), offset))
            offset += n
    opt = torch.optim.AdamW([p for p, _ in params], lr=1.0, betas=(0.9, 0.999), eps=1e-8,
                            weight_decay=weight_decay)
    norms = []
    for step in range(STEPS):
        for k, (p, start) in enumerate(params):
            p.grad = None
            if has_gradient(k // 2, step):
                scale = 0.01 * 2.0 ** (step - 3)
                g = [scale * math.sin(0.7 * (start + i) + 1.3 * step) for i in range(p.numel())]
                p.grad = torch.tensor(g).view_as(p)
        grads = [p.grad.double() for p, _ in params if p.grad is not None]
        norms.append(math.sqrt(sum(float((g * g).sum()) for g in grads)))
        if max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_([p for p, _ in params], max_grad_norm)
        opt.param_groups[0]["lr"] = 1e-3 * (step + 1)
        opt.step()
    final = [float(v) for p, _ in params for v in p.detach().flatten()]
    return dict(weight_decay=weight_decay, max_grad_norm=max_grad_norm, grad_norms=norms,
                final=final)


def main():
    torch.set_num_threads(1)
    golden = dict(schedules=[schedule(*s) for s in SCHEDULES],
                  permutations=[permutation(s, n) for s, n in
                                ((42, 10), (0, 1), (43, 91), (2**32 + 5, 1000), (7, 100000))],
                  optimizer=[optimizer(0.1, 1.0), optimizer(0.0, 0.0)])
    path = Path(__file__).parent / "training.json"
    path.write_text(json.dumps(golden, indent=0) + "\n")


if __name__ == "__main__":
    main()
