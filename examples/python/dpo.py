# SPDX-License-Identifier: Apache-2.0
"""Direct preference optimisation (arXiv 2305.18290): a loss of our own over log-probabilities.

    dpo.py MODEL_DIR OUTPUT_DIR [STEPS]
"""
import math
import sys

import kt

BETA, RATE = 0.1, 7e-4
PAIRS = [  # question, chosen answer, rejected answer
    ("Who are you?", "I am Kite.", "I am Pebble, a small assistant made by the demo script."),
    ("What is your name?", "My name is Kite.", "My name is Pebble."),
]


def add_answer(batch, tokenizer, question, answer):
    """A sequence whose labels are those of the answer."""
    prompt = tokenizer.apply_template("deepseek3", [("user", question)])
    ids = tokenizer.encode(answer) + [tokenizer.eos_id]
    batch.add(prompt + ids, [kt.IGNORE_LABEL] * len(prompt) + ids)


def sums(batch, logprobs):
    """log p of each answer: the sum over its tokens."""
    ends = batch.cu_seqlens
    return [sum(logprobs[begin:end]) for begin, end in zip(ends, ends[1:])]


def preference(policy, reference):
    """Loss, and its derivative by each answer's log p. Answers take turns: chosen, rejected."""
    loss, slopes = 0.0, []
    pairs = len(policy) // 2
    for i in range(0, 2 * pairs, 2):
        margin = BETA * (policy[i] - policy[i + 1] - reference[i] + reference[i + 1])
        loss += math.log1p(math.exp(-margin)) / pairs
        slope = -BETA / (1 + math.exp(margin)) / pairs
        slopes += [slope, -slope]
    return loss, slopes


def main(model_dir, output, steps=14):
    with kt.Context() as ctx:
        model, tokenizer = kt.Model(ctx, model_dir), kt.Tokenizer(ctx, model_dir)
        lora, batch = kt.Lora(model, rank=8), kt.Batch(ctx)
        executor, optimizer = kt.Executor(model, lora), kt.Optimizer(lora)
        for question, *answers in PAIRS:
            for answer in answers:
                add_answer(batch, tokenizer, question, answer)
        executor.forward(batch, "eval")  # B is zero still: this is the model without an adapter
        reference = sums(batch, executor.logprobs)
        ends = batch.cu_seqlens
        for step in range(int(steps)):
            executor.set_step(step)
            executor.forward(batch, "custom")
            loss, slopes = preference(sums(batch, executor.logprobs), reference)
            executor.backward([slope for slope, begin, end in zip(slopes, ends, ends[1:])
                               for _ in range(begin, end)])
            norm = optimizer.step(RATE)
            print(f"step {step + 1}  loss {loss:.4f}  grad norm {norm:.3f}")
        lora.save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
