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
echo ok
