#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kt data: ids and labels for programs, text for people.
. "$(dirname "$0")/common.sh"
make_all
cat >data/pairs.json <<'JSON'
[{"instruction": "the one", "input": "", "output": "you"},
 {"instruction": "Why? \"x\"", "output": "Then.\nEnd"}]
JSON
"$KT" data sft.yaml --jsonl >ids 2>err || fail "$(cat err)"
# These ids are those of the tokenizers package.
cat >expected <<'JSON'
{"input_ids": [0, 112, 100, 97, 105, 71, 113, 108, 1], "labels": [-100, -100, -100, -100, -100, -100, -100, 108, 1]}
{"input_ids": [0, 112, 57, 74, 91, 33, 97, 4, 90, 4, 113, 54, 74, 71, 80, 16, 98, 39, 80, 70, 1], "labels": [-100, -100, -100, -100, -100, -100, -100, -100, -100, -100, -100, 54, 74, 71, 80, 16, 98, 39, 80, 70, 1]}
JSON
diff ids expected || fail "ids differ"
"$KT" data sft.yaml --jsonl train_on_prompt=true cutoff_len=6 >ids || fail "train_on_prompt"
[ "$(wc -l <ids)" = 2 ] && ! grep -q -- -100 ids || fail "the prompt takes part in the loss"

"$KT" data sft.yaml --num 1 >shown || fail "shown"
cat >expected <<'TEXT'
--- example 0: 9 tokens, 2 in the loss ---
<｜begin▁of▁sentence｜><｜User｜>the one<｜Assistant｜>>>>you<｜end▁of▁sentence｜><<<

2 examples in all
TEXT
diff shown expected || fail "shown differs"

# Thoughts
cat >data/pairs.json <<'JSON'
[{"instruction": "a", "output": "<think>\nyes\n</think>\n\nb"}, {"instruction": "c", "output": "d"}]
JSON
for thinking in true false null; do
    "$KT" data sft.yaml template=qwen3 cutoff_len=200 enable_thinking=$thinking >shown.$thinking \
        2>err || fail "$(cat err)"
done
[ "$(grep -c '^>>><think>$' shown.true)" = 2 ] && grep -q '^yes$' shown.true || fail "true"
[ "$(grep -c '^<think>$' shown.false)" = 2 ] && ! grep -q yes shown.false || fail "false"
[ "$(grep -c '^<think>$' shown.null)" = 1 ] && [ "$(grep -c '^>>><think>$' shown.null)" = 1 ] &&
    grep -q '^>>>d$' shown.null || fail "null"
echo ok
