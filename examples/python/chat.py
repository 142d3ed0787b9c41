# SPDX-License-Identifier: Apache-2.0
"""Answers one question, printing the answer as it is generated.

    chat.py MODEL_DIR QUESTION [ADAPTER_DIR]
"""
import sys

import kt

model_dir, question, *adapter = sys.argv[1:]

with kt.Context() as ctx:
    model, tokenizer = kt.Model(ctx, model_dir), kt.Tokenizer(ctx, model_dir)
    lora = kt.Lora.load(model, adapter[0]) if adapter else None
    generator = kt.Generator(kt.Executor(model, lora), temperature=0)
    prompt = tokenizer.apply_template("deepseek3", [("user", question)])
    decoder = tokenizer.decoder()
    for token in generator.generate(prompt, 200, stop=tokenizer.stop_ids("deepseek3")):
        print(decoder.next(token), end="", flush=True)
    print(decoder.end())
