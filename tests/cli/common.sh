# SPDX-License-Identifier: Apache-2.0
# Sourced by every test here. Arguments of a test: the program kt, and the folder of the reference
# cases. The test runs in a folder of its own, which is removed at the end.
set -u
KT=$(realpath "$1")
CASES=$(realpath "$2")
HERE=$(cd "$(dirname "$0")" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK" || exit 1

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

# make_model FOLDER [CASE]: a reference model with a tokenizer for ASCII text.
make_model() {
    mkdir -p "$1"
    cp "$CASES/${2:-v3}"/model/* "$HERE/tokenizer.json" "$HERE/tokenizer_config.json" "$1"
}

# make_data FOLDER: 22 question and answer pairs in alpaca format.
make_data() {
    local names=(ann bob cid dan eve fay gus hal ida jim kay lee mia ned oda pam ray sue tom uma vic wes)
    mkdir -p "$1"
    echo '{"pairs": {"file_name": "pairs.json"}}' >"$1/dataset_info.json"
    {
        echo '['
        for i in "${!names[@]}"; do
            [ "$i" = 0 ] || echo ','
            printf '{"instruction": "who is %s?", "input": "", "output": "%s is the %s of %d."}' \
                "${names[$i]}" "${names[$i]}" "$(printf 'one%.0s' $(seq $((i % 4 + 1))))" "$i"
        done
        echo ']'
    } >"$1/pairs.json"
}

# make_yaml FILE: a training configuration for that model and data.
make_yaml() {
    cat >"$1" <<YAML
model_name_or_path: model
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: all
dataset: pairs
dataset_dir: data
template: deepseek3
cutoff_len: 64
output_dir: out
logging_steps: 1
save_steps: 4
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1.0e-3
max_steps: 8
lr_scheduler_type: cosine
warmup_ratio: 0.1
report_to: none
YAML
}

make_all() {
    make_model model
    make_data data
    make_yaml sft.yaml
}

# refuses CODE PATTERN COMMAND...: the command ends with that code and exactly one sentence on stderr,
# which begins with "kt: " and matches the pattern (warnings aside). Nothing is left in out/.
refuses() {
    local code=$1 pattern=$2 rc
    shift 2
    "$@" >refuses.out 2>refuses.all </dev/null
    rc=$?
    grep -v '^kt: warning: ' refuses.all >refuses.err
    [ "$rc" = "$code" ] || fail "$*: exit code $rc, not $code: $(cat refuses.err)"
    [ "$(wc -l <refuses.err)" = 1 ] || fail "$*: not one sentence: $(cat refuses.err)"
    grep -Eq "^kt: .*($pattern)" refuses.err || fail "$*: \"$(cat refuses.err)\" lacks $pattern"
    [ -z "$(ls -A out 2>/dev/null)" ] || fail "$*: left $(ls -A out)"
}

# json_value FILE KEY: the last "KEY": value of a JSON file.
json_value() {
    sed -n "s/.*\"$2\": \([^,}]*\).*/\1/p" "$1" | tail -n 1
}
