#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Bad input: one sentence that names the file or the key, and nothing half-written.
. "$(dirname "$0")/common.sh"
make_all
train=("$KT" train sft.yaml)

# The model
refuses 1 'model_name_or_path: nowhere: No such file' "${train[@]}" model_name_or_path=nowhere
make_model no_tokenizer
rm no_tokenizer/tokenizer.json
refuses 1 'model_name_or_path: .*tokenizer.json' "${train[@]}" model_name_or_path=no_tokenizer
refuses 1 'model_name_or_path: .*tokenizer.json' "$KT" chat no_tokenizer template=deepseek3
make_model no_shard
rm no_shard/model-00002-of-00003.safetensors
refuses 1 'model_name_or_path: .*model-00002-of-00003' "${train[@]}" model_name_or_path=no_shard
refuses 1 'model-00002-of-00003' "$KT" info no_shard
make_model cut_shard
truncate -s -16 cut_shard/model-00001-of-00003.safetensors
refuses 1 'model_name_or_path: .*model-00001-of-00003' "${train[@]}" model_name_or_path=cut_shard
make_model no_config
rm no_config/config.json
refuses 1 'model_name_or_path: .*config.json' "${train[@]}" model_name_or_path=no_config

make_model other_tokenizer
sed -i 's/"w": [0-9]*/"w": 4000/' other_tokenizer/tokenizer.json
refuses 1 'model_name_or_path: other_tokenizer: the tokenizer gives id 4000, .* has 197' \
    "${train[@]}" model_name_or_path=other_tokenizer

# Other families: each case with one thing wrong.
make_model gpt2
sed -i 's/DeepseekV3ForCausalLM/GPT2LMHeadModel/' gpt2/config.json
refuses 1 'model_name_or_path: .*config.json: architecture "GPT2LMHeadModel" is not supported; the supported ones are .*DeepseekV3ForCausalLM.*Qwen3MoeForCausalLM.*MixtralForCausalLM.*LlamaForCausalLM' \
    "${train[@]}" model_name_or_path=gpt2
wrong() { # CASE SED-EXPRESSION SENTENCE
    rm -rf wrong
    make_model wrong "$1"
    sed -i "$2" wrong/config.json
    cmp -s wrong/config.json "$CASES/$1/model/config.json" && fail "$2 changed nothing in $1"
    refuses 1 "model_name_or_path: .*$3" "${train[@]}" model_name_or_path=wrong
    refuses 1 "$3" "$KT" info wrong
}
wrong qwen2moe 's/"decoder_sparse_step": 2/"decoder_sparse_step": 1/' 'layers.0.mlp.gate.weight'
wrong qwen3moe 's/"num_experts": 10/"num_experts": 12/' 'num_experts'
wrong mixtral 's/"num_local_experts": 6/"num_local_experts": 5/' 'num_local_experts'
wrong qwen3moe 's/"num_attention_heads": 4/"num_attention_heads": 3/' 'num_key_value_heads'
wrong llama 's/"rope_type": "llama3"/"rope_type": "spiral"/' '"spiral"; default, linear, dynamic'
for kind in Unigram WordPiece WordLevel; do
    sed "s/\"type\": \"BPE\"/\"type\": \"$kind\"/" "$HERE/tokenizer.json" >other_tokenizer/tokenizer.json
    refuses 1 "model_name_or_path: .*model.type is \"$kind\"; libkt reads BPE tokenizers alone" \
        "${train[@]}" model_name_or_path=other_tokenizer
done
rm other_tokenizer/tokenizer.json
touch other_tokenizer/tokenizer.model
refuses 1 'model_name_or_path: .*tokenizer.json: does not exist, and tokenizer.model' \
    "${train[@]}" model_name_or_path=other_tokenizer

# The data
refuses 1 'dataset: .*dataset_info.json' "${train[@]}" dataset_dir=nowhere
refuses 1 'dataset: .*pairz' "${train[@]}" dataset=pairz
refuses 1 'template: llama9 is not known; choose one of .*deepseek3' "${train[@]}" template=llama9
refuses 1 'template: the key is missing' "${train[@]}" template=null
refuses 1 'cutoff_len: 0 is out of range' "${train[@]}" cutoff_len=0
try_data() {
    printf '%s' "$1" >data/pairs.json
    refuses 1 "$2" "${train[@]}"
    refuses 1 "$2" "$KT" data sft.yaml --jsonl
    [ -s refuses.out ] && fail "kt data printed something for $1"
}
try_data '[]' 'dataset: .*pairs.json'
try_data '' 'dataset: .*pairs.json'
try_data '[{"instruction": "a", "output": "b"' 'dataset: .*pairs.json'
try_data '[{"instruction": "a"}]' 'dataset: .*pairs.json: none of the 1 entries'
try_data '[{"instruction": 3, "output": {}}]' 'dataset: .*pairs.json'
printf '[{"instruction": "a", "output": "b"}, {"instruction": "a", "output": null}]' >data/pairs.json
"$KT" data sft.yaml --jsonl >some.out 2>some.err || fail "one label-less sample among others"
[ "$(wc -l <some.out)" = 1 ] || fail "the label-less sample was kept"
grep -q '^kt: warning: .*pairs.json: entry 2' some.err || fail "it was left out in silence"
rm data/pairs.json
refuses 1 'dataset: .*pairs.json' "${train[@]}"
make_data data

# The adapter
refuses 1 'lora_target: .*warp_proj' "${train[@]}" lora_target=warp_proj
refuses 1 'adapter_name_or_path: nowhere' "${train[@]}" adapter_name_or_path=nowhere
refuses 1 'adapter_name_or_path: .*several adapters' "${train[@]}" adapter_name_or_path=a,b
refuses 1 'adapter_name_or_path: ' "${train[@]}" adapter_name_or_path="$CASES/v2lite/adapter"
refuses 1 'adapter_name_or_path: ' "$KT" generate model --prompt hi template=deepseek3 \
    adapter_name_or_path="$CASES/v2lite/adapter"

# The output folder
touch file
refuses 1 'output_dir: cannot create file/out: Not a directory' "${train[@]}" output_dir=file/out
if [ "$(id -u)" != 0 ]; then
    mkdir locked && chmod 500 locked
    refuses 1 'output_dir: cannot write into locked' "${train[@]}" output_dir=locked
fi
mkdir used && cp "$CASES/v3/adapter/"* used
before=$(cat used/* | cksum)
refuses 1 'output_dir: used already holds a result; .*overwrite_output_dir' \
    "${train[@]}" output_dir=used
[ "$before" = "$(cat used/* | cksum)" ] || fail "the full folder was changed"
refuses 1 'resume_from_checkpoint: out holds no checkpoint' "${train[@]}" resume_from_checkpoint=true
refuses 1 'resume_from_checkpoint: gone is not a folder' "${train[@]}" resume_from_checkpoint=gone
refuses 1 'resume_from_checkpoint: used has no ' "${train[@]}" resume_from_checkpoint=used

if command -v flock >/dev/null; then
    mkdir busy
    flock busy "${train[@]}" output_dir=busy >busy.out 2>busy.err
    [ $? = 1 ] || fail "two runs write into one folder"
    grep -q '^kt: .*output_dir: another kt train writes into busy' busy.err || fail "$(cat busy.err)"
    [ -z "$(ls -A busy)" ] || fail "left $(ls -A busy)"
fi

# A file system that is full in mid-run: no torn file, no folder of a checkpoint half made.
(ulimit -f 40; trap '' XFSZ; "${train[@]}" output_dir=small >small.out 2>small.err)
[ $? = 1 ] || fail "a full file system is an error"
[ "$(grep -vc '^kt: warning' small.err)" = 1 ] || fail "not one sentence: $(cat small.err)"
grep -q '^kt: .*output_dir: ' small.err || fail "$(cat small.err)"
[ -z "$(ls small | grep -v trainer_log.jsonl)" ] || fail "half-written: $(ls small)"

# Memory: limits follow from what a run without one plans, and from what a refusal says.
kib() { # PATTERN FILE: the amount that the pattern's group finds, in KiB
    sed -n "s/$1/\\1/p" "$2" | awk '/KiB/ {printf "%d", $1} /MiB/ {printf "%d", $1 * 1024}'
}
evaluates=(val_size=12 eval_strategy=steps eval_steps=1 per_device_eval_batch_size=12
    per_device_train_batch_size=1 gradient_accumulation_steps=1 max_steps=1)
"${train[@]}" "${evaluates[@]}" >plan.out 2>plan.err || fail "$(cat plan.err)"
rm -r out
adapter=$(kib '.* adapter \([^,]*\), .*' plan.out)
total=$(kib '^memory .*: \(.*\) for a step .*' plan.out)
[ "$adapter" -gt 0 ] && [ "$total" -gt $((4 * adapter)) ] || fail "$(cat plan.out)"
refuses 1 'memory_limit: ' "${train[@]}" "${evaluates[@]}" memory_limit=$((adapter / 2))K
refuses 1 'memory_limit: a step needs .*lower per_device_train_batch_size' \
    "${train[@]}" "${evaluates[@]}" memory_limit=$((total / 2))K
step=$(kib '.* a step needs \(.*\), the limit .*' refuses.err)
tenth=103 # of a MiB: how exactly the sentence says it
refuses 1 'memory_limit: an evaluation needs .*lower per_device_eval_batch_size' \
    "${train[@]}" "${evaluates[@]}" memory_limit=$((step + tenth))K
echo ok
