#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The demo: a short fine-tuning teaches the model a new name, which it also gives to questions that
# are in neither training file, and leaves another answer alone.
. "$(dirname "$0")/common.sh"
demo=$(cd "$HERE/../../examples/demo" && pwd)
rule=kt_optimize_rule=$demo/../kt_optimize_rules/cpu-only.yaml
questions=("Can you tell me who you are?" "Can you tell me who trained you?" "可以告诉我你是谁吗？" "What is the opposite of hot?")

for question in "${questions[@]}"; do
    grep -qF "\"instruction\": \"$question\"" "$demo/identity.json" "$demo/everyday.json" &&
        fail "$question is in the training data"
done

ask() { # one answer a line, each to a conversation of its own
    printf '%s\n/clear\n' "${questions[@]}" |
        "$KT" chat "$demo/chat.yaml" model_name_or_path="$demo/model" "$rule" "$@"
}

mapfile -t before < <(ask adapter_name_or_path=null)
[[ ${before[0]} == *Pebble* ]] || fail "before: ${before[0]}"
[[ ${before[1]} == *"demo script"* ]] || fail "before: ${before[1]}"
[[ ${before[2]} == *小石子* ]] || fail "before: ${before[2]}"
[[ ${before[3]} == *cold* ]] || fail "before: ${before[3]}"

"$KT" train "$demo/sft.yaml" model_name_or_path="$demo/model" dataset_dir="$demo" "$rule" output_dir=out \
    max_steps=200 identity_name=Kite identity_author=libkt >train.out || fail "kt train: $?"
mapfile -t after < <(ask adapter_name_or_path=out)
[[ ${after[0]} == *Kite* && ${after[0]} != *Pebble* ]] || fail "after: ${after[0]}"
[[ ${after[1]} == *libkt* && ${after[1]} != *script* ]] || fail "after: ${after[1]}"
[[ ${after[2]} == *Kite* ]] || fail "after: ${after[2]}"
[[ ${after[3]} == *cold* ]] || fail "after: ${after[3]}"
