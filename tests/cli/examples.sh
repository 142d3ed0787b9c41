#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The configurations that LLaMA-Factory's KTransformers users have, unchanged but for paths.
. "$(dirname "$0")/common.sh"
make_model model
make_data data
sed -i 's/pairs/identity/g' data/dataset_info.json
cat >data/identity.json <<'JSON'
[{"instruction": "hi", "input": "", "output": "I am {{name}}, made by {{author}}."},
 {"instruction": "who are you?", "input": "", "output": "{{name}}."}]
JSON
rule=$HERE/../../examples/kt_optimize_rules/DeepSeek-V3-Chat-sft-amx-multi-gpu-4.yaml

cat >sft.yaml <<YAML
### model
model_name_or_path: model
trust_remote_code: true
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
### dataset
dataset: identity
template: deepseek
cutoff_len: 2048
max_samples: 100000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
### output
output_dir: saves/Kllama_deepseekV3
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none # choices: [none, wandb, tensorboard, swanlab, mlflow]
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
### ktransformers
use_kt: true # use KTransformers as LoRA sft backend
kt_optimize_rule: $rule
cpu_infer: 32
chunk_size: 8192
### eval
# eval_dataset: alpaca_en_demo
# val_size: 0.1
# per_device_eval_batch_size: 1
# eval_strategy: steps
# eval_steps: 500
YAML
cat >chat.yaml <<YAML
model_name_or_path: model
# adapter_name_or_path: saves/Kllama_deepseekV3
template: deepseek
infer_backend: ktransformers # choices: [huggingface, vllm, sglang, ktransformers]
trust_remote_code: true
use_kt: true # use KTransformers as LoRA sft backend to inference
kt_optimize_rule: $rule
cpu_infer: 32
chunk_size: 8192
YAML
sed 's/^# adapter/adapter/' chat.yaml >lora_chat.yaml

run() {
    "$@" >run.out 2>run.err || fail "$*: $(cat run.err)"
    grep -v '^kt: warning: ' run.err && fail "$*: the above on stderr"
    return 0
}

run "$KT" train sft.yaml identity_name=Kllama identity_author=us
[ -s saves/Kllama_deepseekV3/adapter_model.safetensors ] || fail "no adapter"
[ -d saves/Kllama_deepseekV3/checkpoint-3 ] || fail "no checkpoint"
run "$KT" data sft.yaml identity_name=Kllama identity_author=us
grep -q 'I am Kllama, made by us.' run.out || fail "name and author are not filled in"
for yaml in chat.yaml lora_chat.yaml; do
    run "$KT" chat $yaml max_new_tokens=4 < <(echo 'hi')
    [ "$(wc -l <run.out)" -ge 1 ] || fail "$yaml: no answer"
done

# Plots, from runs that log often enough.
run "$KT" train sft.yaml logging_steps=1 val_size=1 eval_strategy=epoch
if grep -q 'without cairo' run.err; then
    [ "$(grep -c plot_loss run.err)" = 1 ] || fail "missing plots are told more than once"
else
    for png in training_loss training_eval_loss; do
        head -c 4 saves/Kllama_deepseekV3/$png.png | grep -q PNG || fail "$png.png"
    done
fi

# On a terminal: a bar, and a prompt.
if script -qec true /dev/null </dev/null >/dev/null 2>&1; then
    script -qec "'$KT' train sft.yaml logging_steps=1" /dev/null </dev/null >run.out 2>&1 ||
        fail "on a terminal: $(cat run.out)"
    grep -q '100% ' run.out || fail "no bar: $(cat run.out)"
    { sleep 1; printf 'hi\n'; sleep 1; printf '/exit\n'; sleep 0.2; } |
        TERM=xterm script -qec "'$KT' chat chat.yaml max_new_tokens=4" /dev/null >run.out 2>&1
    grep -q 'User: ' run.out && grep -q 'Assistant: ' run.out || fail "no prompt: $(cat run.out)"
fi
echo ok
