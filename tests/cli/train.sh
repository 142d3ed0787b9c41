#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kt train from end to end: the files, the counting, evaluation, and resuming bit for bit.
. "$(dirname "$0")/common.sh"
make_all

train() {
    "$KT" train sft.yaml "$@" >train.out 2>train.err || fail "$*: $(cat train.err)"
    [ -s train.err ] && fail "$*: unexpected on stderr: $(cat train.err)"
    return 0
}

same() {
    cmp "$1" "$2" || fail "$1 and $2 differ"
}

# A whole run. 22 examples, 2 at a time: 11 batches, 2 of them a step: 6 steps an epoch.
echo x >model/tokenizer.model # transformers may ask for it
train plot_loss=false
for f in adapter_model.safetensors adapter_config.json trainer_state.json trainer_log.jsonl \
    train_results.json all_results.json README.md tokenizer.json tokenizer_config.json \
    tokenizer.model; do
    [ -s out/$f ] || fail "out/$f is missing"
    [ "$f" = trainer_log.jsonl ] || [ "$f" = all_results.json ] || [ "$f" = train_results.json ] ||
        [ "$f" = README.md ] || [ -s out/checkpoint-4/$f ] || fail "checkpoint-4/$f is missing"
done
[ -d out/checkpoint-8 ] || fail "the last step is saved"
[ "$(wc -l <out/trainer_log.jsonl)" = 9 ] || fail "8 log lines and a last one are expected"
[ -z "$(find out -name '*.tmp' -o -name 'tmp-*')" ] || fail "temporary files were left"
[ "$(json_value out/trainer_state.json global_step)" = 8 ] || fail "global_step"
[ "$(json_value out/trainer_state.json num_train_epochs)" = 2 ] || fail "num_train_epochs"
grep -q '"epoch": 0.181818' out/trainer_log.jsonl || fail "epoch after the first step: 2 of 11"
grep -q '"current_steps": 6, .*"epoch": 1.0,' out/trainer_log.jsonl || fail "epoch after six steps"
grep -Eq '^trainable params: [0-9,]+ \|\| all params: [0-9,]+ \|\| trainable%: [0-9.]+$' train.out ||
    fail "parameter counts"
grep -q '^memory .*for a step of up to' train.out || fail "memory plan"
grep -Eq '^device   cpu: [0-9]+ cores?( of [0-9]+ hardware threads)?, [0-9]+ NUMA nodes?, [0-9]+ threads?( pinned to cores| in their nodes)?, [A-Za-z]' train.out ||
    fail "device: $(grep ^device train.out)"

auto=cpu
grep -q amx_bf16 /proc/cpuinfo && auto='(amx|cpu)'
grep -Eqx "experts  $auto" train.out || fail "what auto chose: $(grep ^experts train.out)"

# The same command again goes on from the last checkpoint, which has nothing left to do.
cp out/adapter_model.safetensors before
train
same before out/adapter_model.safetensors
[ "$(wc -l <out/trainer_log.jsonl)" = 9 ] || fail "the log has one last line"

# Stopped after 4 steps, resumed from there: the same bits, whatever the dropout.
train output_dir=whole lora_dropout=0.1 bf16=true
train output_dir=half lora_dropout=0.1 bf16=true
rm -r half/checkpoint-8 half/adapter_model.safetensors
train output_dir=half lora_dropout=0.1 bf16=true resume_from_checkpoint=half/checkpoint-4
grep -q 'resuming after step 4' train.out || fail "it did not resume"
same whole/adapter_model.safetensors half/adapter_model.safetensors
same whole/checkpoint-8/optimizer.zst half/checkpoint-8/optimizer.zst
same whole/checkpoint-8/training_state.json half/checkpoint-8/training_state.json
same whole/checkpoint-8/trainer_state.json half/checkpoint-8/trainer_state.json
[ "$(wc -l <half/trainer_log.jsonl)" = 9 ] || fail "the log goes on where the checkpoint was"

# The same where experts are shared with a device: the steps before the checkpoint find out how, those
# behind it go by that.
far=(kt_device=cpu-far kt_experts=auto)
train output_dir=far "${far[@]}"
grep -q '"experts_sharing": "kt-sharing-1 f' far/checkpoint-4/training_state.json || fail "how experts are shared"
cp -r far near
rm -r near/checkpoint-8 near/adapter_model.safetensors
train output_dir=near "${far[@]}" resume_from_checkpoint=near/checkpoint-4
same far/adapter_model.safetensors near/adapter_model.safetensors

# A record that is given is gone by from the start, and one that is none is refused.
record=$(sed -n 's/.*"experts_sharing": "\(.*\)".*/\1/p' far/checkpoint-8/training_state.json)
for run in one two; do
    train output_dir=$run "${far[@]}" kt_experts_sharing="$record" save_strategy=no
done
same one/adapter_model.safetensors two/adapter_model.safetensors
"$KT" train sft.yaml output_dir=none kt_experts_sharing=none >other.out 2>other.err && fail "no record"
grep -q 'kt_experts_sharing: this is no record' other.err || fail "$(cat other.err)"

# A checkpoint of a run with other batches is refused.
"$KT" train sft.yaml output_dir=new gradient_accumulation_steps=4 \
    resume_from_checkpoint=half/checkpoint-4 >other.out 2>other.err
[ $? = 1 ] || fail "a checkpoint of other batches was taken"
grep -q 'gradient_accumulation_steps: is 4, but the checkpoint half/checkpoint-4 was made with 2' \
    other.err || fail "$(cat other.err)"
[ -e new ] && fail "a refused run left a folder"

cp -r data other
sed -i 's/who is ann/who was ann/' other/pairs.json
"$KT" train sft.yaml output_dir=new dataset_dir=other resume_from_checkpoint=half/checkpoint-4 \
    >other.out 2>other.err
[ $? = 1 ] || fail "a checkpoint of other data was taken"
grep -q 'dataset: its tokens are not those' other.err || fail "$(cat other.err)"
[ -e new ] && fail "a refused run left a folder"

# So is a torn one.
for f in optimizer.zst trainer_state.json training_state.json adapter_model.safetensors; do
    cp -r half/checkpoint-4 torn
    truncate -s 60 torn/$f
    "$KT" train sft.yaml output_dir=new resume_from_checkpoint=torn >other.out 2>other.err
    [ $? = 1 ] || fail "a torn $f was taken"
    [ "$(wc -l <other.err)" = 1 ] || fail "not one sentence: $(cat other.err)"
    grep -q "resume_from_checkpoint: .*torn/$f" other.err || fail "$(cat other.err)"
    [ -e new ] && fail "a refused run left a folder"
    rm -r torn
done

# Killed before the first checkpoint and while one was written: nothing of that stays.
mkdir -p killed/tmp-checkpoint-3 killed/tmp-notes
touch killed/adapter_model.safetensors.123-0.tmp killed/a-1.tmp
echo '{"current_steps": 1, "total_steps": 8}' >killed/trainer_log.jsonl
train output_dir=killed save_strategy=no
[ "$(cd killed && echo *tmp*)" = 'a-1.tmp tmp-notes' ] || fail "left: $(cd killed && echo *tmp*)"
[ "$(wc -l <killed/trainer_log.jsonl)" = 9 ] || fail "the log of the killed run was kept"

# An error in mid-run says how to go on from the newest checkpoint.
(ulimit -f 8; trap '' XFSZ; "$KT" train sft.yaml output_dir=full save_steps=1 max_steps=80 \
    lora_target=q_a_proj lora_rank=1 save_total_limit=2 >full.out 2>full.err)
[ $? = 1 ] || fail "the log outgrows the limit on files"
newest=$(ls -dv full/checkpoint-* | tail -n 1)
grep -q "^  kt train .*resume_from_checkpoint=$newest\$" full.out || fail "$(tail -n 3 full.out)"

# The experts backend that is asked for computes: plain C rounds otherwise than vectors.
train output_dir=plain max_steps=3 --experts reference
train output_dir=vectors max_steps=3 --experts llamafile
train output_dir=again max_steps=3 kt_experts=llamafile
same vectors/adapter_model.safetensors again/adapter_model.safetensors
cmp -s vectors/adapter_model.safetensors plain/adapter_model.safetensors &&
    fail "--experts reference computes what llamafile does"
grep -qx 'experts  cpu' train.out || fail "$(grep ^experts train.out)"
cat >layers.yaml <<'YAML'
- match: {name: "^model.layers.2.mlp.experts$"}
  replace: {class: KTransformersExperts, kwargs: {backend: reference}}
- match: {name: "experts$"}
  replace: {class: KTransformersExperts, kwargs: {backend: llamafile}}
YAML
train output_dir=layers max_steps=1 kt_optimize_rule=layers.yaml
grep -qx 'experts  cpu in layer 1, reference in layer 2' train.out || fail "$(grep ^experts train.out)"

# A backend that is not here is replaced, and the warning says by which.
sed 's/reference/abacus/' layers.yaml >abacus.yaml
"$KT" train sft.yaml output_dir=abacus max_steps=1 kt_optimize_rule=abacus.yaml >abacus.out 2>abacus.err ||
    fail "$(cat abacus.err)"
grep -Eqx "kt: warning: the rule's experts backend \"abacus\" is not here; using \"$auto\"" abacus.err ||
    fail "$(cat abacus.err)"

# Interrupted by Ctrl-C somewhere: a checkpoint, the command that goes on, and the same bits.
long=(max_steps=300 save_strategy=no logging_steps=1)
train output_dir=straight "${long[@]}"
"$KT" train sft.yaml output_dir="cut short" "${long[@]}" >cut.out 2>cut.err &
pid=$!
for _ in $(seq 1000); do
    [ "$(wc -l <"cut short/trainer_log.jsonl")" -ge 5 ] && break
    sleep 0.01
done 2>/dev/null
kill -INT $pid
wait $pid
[ $? = 130 ] || fail "exit code after Ctrl-C"
[ -s cut.err ] && fail "on stderr: $(cat cut.err)"
[ -e "cut short/adapter_model.safetensors" ] && fail "an interrupted run has no result"
command=$(sed -n 's/^  kt train/train/p' cut.out)
command=${command/train sft.yaml/train}
eval "$command"
same straight/adapter_model.safetensors "cut short/adapter_model.safetensors"
[ "$(wc -l <"cut short/trainer_log.jsonl")" = 301 ] || fail "the log of the resumed run"

# Going on with an adapter trains exactly its tensors; overwrite starts anew and clears the log.
train adapter_name_or_path=whole overwrite_output_dir=true max_steps=2 save_strategy=no
[ "$(wc -l <out/trainer_log.jsonl)" = 3 ] || fail "the old log was kept"

# Evaluation, fractions of steps and epochs, a limit on checkpoints, models without state.
train output_dir=eval max_steps=-1 num_train_epochs=1.5 val_size=0.2 eval_strategy=steps \
    eval_steps=2 save_steps=0.25 save_total_limit=2 save_only_model=true logging_steps=0.5 \
    per_device_eval_batch_size=2 plot_loss=false
[ "$(json_value eval/trainer_state.json max_steps)" = 8 ] || fail "ceil(1.5 * 5) steps"
[ "$(ls -d eval/checkpoint-*)" = "eval/checkpoint-6
eval/checkpoint-8" ] || fail "checkpoints: $(ls -d eval/checkpoint-*)"
[ -e eval/checkpoint-8/optimizer.zst ] && fail "save_only_model"
grep -q '"eval_loss"' eval/eval_results.json || fail "eval_results.json"
[ "$(grep -c '"eval_loss"' eval/trainer_log.jsonl)" = 4 ] || fail "evaluations at 2, 4, 6, 8"
"$KT" train sft.yaml output_dir=eval resume_from_checkpoint=last 2>&1 |
    grep -q 'resume_from_checkpoint: eval/checkpoint-8 has no training_state.json' ||
    fail "a checkpoint without state was taken"
"$KT" train sft.yaml output_dir=only do_train=false do_eval=true val_size=0.2 >train.out 2>&1 ||
    fail "evaluation alone: $(cat train.out)"
[ -s only/eval_results.json ] || fail "evaluation alone"

# File order, epochs as the moment to log, save and evaluate.
train output_dir=order disable_shuffling=true max_steps=-1 num_train_epochs=2 \
    logging_strategy=epoch save_strategy=epoch
[ -d order/checkpoint-6 ] && [ -d order/checkpoint-12 ] || fail "a checkpoint each epoch"
[ "$(wc -l <order/trainer_log.jsonl)" = 3 ] || fail "a log line each epoch"
echo ok
