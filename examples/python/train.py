# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a model on a dataset of dataset_info.json.

    train.py MODEL_DIR DATASET_DIR DATASET OUTPUT_DIR [STEPS]
"""
import sys

import kt

SEQUENCES = 8
model_dir, dataset_dir, names, output = sys.argv[1:5]
steps = int(sys.argv[5]) if len(sys.argv) > 5 else 20

with kt.Context() as ctx:
    model = kt.Model(ctx, model_dir)
    dataset = kt.Dataset(ctx, kt.Tokenizer(ctx, model_dir), dataset=names, cutoff_len=512,
                         dataset_dir=dataset_dir, template_name="deepseek3", name="Kite",
                         author="libkt")
    lora = kt.Lora(model, rank=8, target="all")
    executor, optimizer, batch = kt.Executor(model, lora), kt.Optimizer(lora), kt.Batch(ctx)
    order = kt.random_permutation(ctx, 42, len(dataset))
    for step in range(steps):
        batch.clear()
        for i in range(step * SEQUENCES, (step + 1) * SEQUENCES):
            batch.add(*dataset[order[i % len(order)]])
        executor.set_step(step)
        loss = executor.forward(batch).loss
        executor.backward()
        norm = optimizer.step(kt.schedule_rate(ctx, step, type="cosine", learning_rate=2e-3,
                                               total_steps=steps))
        print(f"step {step + 1}  loss {loss:.4f}  grad norm {norm:.3f}")
    lora.save(output)
