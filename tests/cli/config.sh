#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The command line and the configuration: every key is known, every mistake is told with its place.
. "$(dirname "$0")/common.sh"

check() {
    "$KT" train "$@" --check >check.out 2>&1 || fail "$*: $(cat check.out)"
}

# Keys
make_yaml sft.yaml
check sft.yaml
check "$HERE/keys.yaml" do_train=true dataset=pairs
check sft.yaml 'lr_scheduler_type=cosine_with_restarts' 'lr_scheduler_kwargs={num_cycles: 2}'
check sft.yaml 'lr_scheduler_kwargs={"num_cycles": 2}' 'dataset=[a, b]' learning_rate=1e-4 bf16=True
check sft.yaml resume_from_checkpoint=null adapter_name_or_path=~ deepspeed=
check sft.yaml ddp_timeout=180000000 trust_remote_code=true
grep -q 'ddp_timeout: there is one process' check.out || fail "no reason given for ddp_timeout"
[ "$(grep -c trust_remote_code: check.out)" = 1 ] || fail "a reason is given once"

# A refused value in the file may be put right on the command line.
(cat sft.yaml; echo 'deepspeed: ds.json') >deep.yaml
refuses 1 'deep.yaml:21: deepspeed: ds.json is not supported' "$KT" train deep.yaml
check deep.yaml deepspeed=null

try() {
    (cat sft.yaml; echo "$1") >bad.yaml
    refuses 1 "$2" "$KT" train bad.yaml
}
try 'lora_rnak: 8' 'bad.yaml:21: lora_rnak: unknown key; did you mean lora_rank\?'
try 'lora_rank: 8' 'bad.yaml:21: lora_rank: .*line 5'
try 'seed: many' 'bad.yaml:21: seed: many must be a whole number'
try 'enable_thinking: 2' 'bad.yaml:21: enable_thinking: 2 must be true or false'
try 'bf16: perhaps' 'bad.yaml:21: bf16: perhaps must be true or false'
try 'weight_decay: -1' 'bad.yaml:21: weight_decay: -1 is out of range'
try 'lora_dropout: 1' 'bad.yaml:21: lora_dropout: 1 is out of range'
try 'save_strategy: sometimes' 'bad.yaml:21: save_strategy: sometimes is not possible'
try 'packing: true' 'bad.yaml:21: packing: true is not supported; .*use false'
try 'fp16: true' 'bad.yaml:21: fp16: true is not supported; use bf16: true'
try 'quantization_bit: 4' 'bad.yaml:21: quantization_bit: 4 is not supported'
try 'warmup_steps: [1, 2]' 'bad.yaml:21: warmup_steps: .* must be a whole number'
try 'eval_strategy: steps' 'bad.yaml:21: eval_strategy: evaluation needs eval_dataset or val_size'
try 'memory_limit: lots' 'bad.yaml:21: memory_limit: lots is not a size'
try 'kt_optimize_rule: none.yaml' 'bad.yaml:21: kt_optimize_rule: none.yaml: No such file'
refuses 1 'command line: per_device_train_batch_size: 5000000000 is too many' \
    "$KT" train sft.yaml per_device_train_batch_size=5000000000
for change in stage=dpo finetuning_type=full report_to=wandb cutoff_len=0 max_steps=0 \
    lr_scheduler_type=fast optim=sgd create_new_adapter=1 save_steps=2.5; do
    refuses 1 "command line: ${change%%=*}: " "$KT" train sft.yaml "$change"
done
refuses 1 'lr_scheduler_kwargs: the schedule cosine has no argument power' \
    "$KT" train sft.yaml 'lr_scheduler_kwargs={power: 2}'

# YAML
{ printf 'model_name_or_path: &x "%050000d"\nlora_target: [' 0; printf '*x,%.0s' {1..4000}; echo ']'; } >bomb.yaml
refuses 1 'bomb.yaml:2: lora_target: the value is too large' "$KT" train bomb.yaml
{ printf 'lora_target: '; printf '[%.0s' {1..1000}; } >bomb.yaml
refuses 1 'bomb.yaml:1: lists and groups are nested' "$KT" train bomb.yaml
printf 'k%d: 1\n' {1..2000} >bomb.yaml
refuses 1 'bomb.yaml: more than 1024 keys' "$KT" train bomb.yaml
{ printf '? "'; printf 'a%.0s' {1..300000}; printf '"\n: 1\n'; } >bomb.yaml
refuses 1 'bomb.yaml:1: a key is a word of at most 128 characters' "$KT" train bomb.yaml
(cat sft.yaml; printf 'bf16: '; printf 'a%.0s' {1..300000}) >bomb.yaml
refuses 1 'bomb.yaml:21: bf16: a{200} must be true or false' "$KT" train bomb.yaml
refuses 2 'command line: a key is a word of at most 128' "$KT" train sft.yaml "$(printf 'a%.0s' {1..129})=1"
try '"lora_rank\0x": 8' 'bad.yaml:21: a key is a word .* none of them is NUL'
try 'adapter_name_or_path: "a\0b"' 'bad.yaml:21: adapter_name_or_path: the value holds a NUL character'
try 'adapter_name_or_path: ["a\0b"]' 'bad.yaml:21: adapter_name_or_path: the value holds a NUL character'
try 'vllm_config: {[a]: 1}' 'bad.yaml:21: vllm_config: a key in the value is no plain word'
refuses 1 'lr_scheduler_kwargs: num_cycles must be a number' \
    "$KT" train sft.yaml 'lr_scheduler_kwargs={num_cycles: nan}'
head -c 1100000 /dev/zero | tr '\0' '#' >bomb.yaml
refuses 1 'bomb.yaml: more than 1048576 bytes' "$KT" train bomb.yaml
printf 'stage: sft\nlora_rank: [8\n' >broken.yaml
refuses 1 'broken.yaml:[23]: not valid YAML' "$KT" train broken.yaml
printf -- '- a\n- b\n' >list.yaml
refuses 1 'list.yaml:1: expected lines of the form key: value' "$KT" train list.yaml
: >empty.yaml
refuses 1 'empty.yaml: the file is empty' "$KT" train empty.yaml
(cat sft.yaml; printf -- '---\nseed: 3\n') >two.yaml
refuses 1 'two.yaml:22: a second document begins here' "$KT" train two.yaml
try 'lr_scheduler_kwargs: &a {x: *a}' 'bad.yaml:21: lr_scheduler_kwargs: .*contains itself'
{
    echo 'a: &a [x,x,x,x,x,x,x,x,x]'
    last=a
    for name in b c d e f g h; do
        echo "$name: &$name [*$last,*$last,*$last,*$last,*$last,*$last,*$last,*$last,*$last]"
        last=$name
    done
} >swollen.yaml
refuses 1 'swollen.yaml:4: d: the value is too large' timeout 20 "$KT" train swollen.yaml
printf 'stage: \xff\xfe\x01\x00sft\n' >noise.yaml
refuses 1 'noise.yaml' "$KT" train noise.yaml
refuses 1 'gone.yaml: there is no such configuration' "$KT" train gone.yaml

# Command line
refuses 2 'kt frobnicate|frobnicate is not a command' "$KT" frobnicate
refuses 2 'not an option of kt train' "$KT" train sft.yaml --fast
refuses 2 'kt train needs a path' "$KT" train
refuses 2 'expected key=value' "$KT" train sft.yaml learning_rate
refuses 2 '.*--prompt' "$KT" generate model
refuses 2 '--num needs a value' "$KT" data sft.yaml --num
refuses 2 '--num x' "$KT" data sft.yaml --num x
refuses 2 '--num needs a value' "$KT" data sft.yaml --nu
refuses 2 '--check takes no value' "$KT" train sft.yaml --check=yes
refuses 2 '--fast is not an option of kt train' "$KT" train sft.yaml --fast=3
refuses 2 '-c is not an option of kt train' "$KT" train sft.yaml -c
refuses 2 '--checks is not an option of kt train' "$KT" train sft.yaml --checks
refuses 2 '--num x: ' "$KT" data sft.yaml --num=x
refuses 2 '--num : ' "$KT" data sft.yaml --num=
refuses 2 'kt train needs a path' "$KT" train --check --
refuses 1 'kt_experts: .*abacus' "$KT" train sft.yaml --experts=abacus
"$KT" train --check --experts=reference -- sft.yaml bf16=true >check.out 2>&1 || fail "--: $(cat check.out)"
refuses 2 'expected key=value' "$KT" train sft.yaml -- --check
# The last word counts, wherever an option stands.
refuses 1 'kt_experts: .*abacus' "$KT" train --check sft.yaml kt_experts=reference --experts=abacus
check sft.yaml --exp abacus kt_experts=reference
"$KT" >/dev/null 2>&1
[ $? = 2 ] || fail "kt alone is a usage error"
"$KT" --version | grep -Eq '^kt [0-9]+\.[0-9]+\.[0-9]+$' || fail "--version"
for topic in '' train chat generate data info keys; do
    "$KT" help $topic | grep -q . || fail "help $topic"
done
for c in train chat generate data info; do
    "$KT" $c --help | grep -q "^usage: kt $c" || fail "$c --help"
done
if [ -e /dev/full ]; then
    "$KT" help keys >/dev/full 2>full.err
    [ $? = 1 ] && grep -q '^kt: cannot write' full.err || fail "a full disk under the output"
fi
echo ok
