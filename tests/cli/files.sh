#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What kt train finds in its folder: checkpoints with parts that do not belong together, what a kill
# left, links, and files that cannot be read.
. "$(dirname "$0")/common.sh"
make_all
run=(plot_loss=false logging_steps=4 cpu_infer=1)

train() {
    "$KT" train sft.yaml "${run[@]}" "$@" >train.out 2>train.err || fail "$*: $(cat train.err)"
}

refused() { # PATTERN ARGUMENT...: one sentence, and nothing new in out/
    local pattern=$1 before
    shift
    before=$(find out | sort)
    "$KT" train sft.yaml "${run[@]}" "$@" >train.out 2>train.err
    [ $? = 1 ] || fail "$*: not refused"
    [ "$(wc -l <train.err)" = 1 ] && grep -q "$pattern" train.err || fail "$*: $(cat train.err)"
    [ "$before" = "$(find out | sort)" ] || fail "$*: out/ changed"
}

fresh() { # out/ as the run without a break left it, but for the result
    rm -rf out
    cp -rp whole out
    rm out/adapter_model.safetensors
}

ends_well() {
    cmp whole/adapter_model.safetensors out/adapter_model.safetensors || fail "$1: another adapter"
    [ "$(ls whole)" = "$(ls out)" ] || fail "$1: $(diff <(ls whole) <(ls out))"
}

train output_dir=whole

# Parts of another checkpoint, and damaged ones of the right size.
fresh
for part in adapter_model.safetensors optimizer.zst trainer_state.json; do
    cp -r out/checkpoint-4 mixed
    cp out/checkpoint-8/$part mixed
    refused "resume_from_checkpoint: mixed/$part is not the file" resume_from_checkpoint=mixed
    cp out/checkpoint-4/$part mixed
    printf '\x55' | dd of=mixed/$part bs=1 seek=300 conv=notrunc status=none
    cmp -s mixed/$part out/checkpoint-4/$part && fail "$part is what it was"
    refused "resume_from_checkpoint: mixed/$part is not the file" resume_from_checkpoint=mixed
    rm -r mixed
done

# The newest checkpoint that can be gone on from is taken.
rm out/checkpoint-8/optimizer.zst
train
grep -q 'warning: .*out/checkpoint-8; it goes on from checkpoint-4' train.err || fail "$(cat train.err)"
ends_well "without checkpoint-8"
[ -s out/checkpoint-8/optimizer.zst ] || fail "checkpoint-8 was not made whole"

# Checkpoints of weights alone push none out that can be gone on from, and replace none.
fresh
rm -r out/checkpoint-8
train save_only_model=true save_steps=1 save_total_limit=1 resume_from_checkpoint=out/checkpoint-4
[ "$(cd out && echo checkpoint-*)" = 'checkpoint-4 checkpoint-8' ] || fail "left: $(ls out)"
[ -e out/checkpoint-8/optimizer.zst ] && fail "save_only_model"
fresh
train save_only_model=true resume_from_checkpoint=out/checkpoint-4
[ -s out/checkpoint-8/optimizer.zst ] || fail "a checkpoint was replaced by weights alone"
fresh
touch -d '2100-01-01' out/checkpoint-4 # the clock was wrong
rm -r out/checkpoint-8
train save_total_limit=1
[ "$(cd out && echo checkpoint-*)" = checkpoint-8 ] || fail "left: $(ls out)"

# Killed between a checkpoint and the removal of the oldest.
fresh
cp -rp out/checkpoint-4 out/checkpoint-2
train save_total_limit=2
[ "$(cd out && echo checkpoint-*)" = 'checkpoint-4 checkpoint-8' ] || fail "left: $(ls out)"

# What a kill leaves, on file systems that cannot exchange names too.
fresh
rm -r out/checkpoint-8
mv out/checkpoint-4 out/tmp-checkpoint-4.old
mkdir out/tmp-checkpoint-8
touch out/README.md.1-0.tmp out/.kt-probe.1-0.tmp
train
grep -q 'resuming after step 4' train.out || fail "tmp-checkpoint-4.old was not put back"
ends_well "after a kill"
[ -z "$(ls -A out | grep '\.tmp')" ] || fail "left: $(ls -A out)"
cp -r out/checkpoint-4 out/tmp-checkpoint-4.old
cp -r out/checkpoint-4 out/checkpoint-4.old # not ours
train
[ -e out/tmp-checkpoint-4.old ] && fail "tmp-checkpoint-4.old stays beside checkpoint-4"
[ -e out/checkpoint-4.old/optimizer.zst ] || fail "a folder that the user made was removed"

# A line of the log that was cut off is none; one that lacks its end gets it.
fresh
rm -r out/checkpoint-8
head -n 1 whole/trainer_log.jsonl >out/trainer_log.jsonl
truncate -s -1 out/trainer_log.jsonl
train
[ "$(grep -c '"loss"' out/trainer_log.jsonl)" = 2 ] || fail "$(cat out/trainer_log.jsonl)"
printf '{"current_steps": 9, "lo' >>out/trainer_log.jsonl
rm out/adapter_model.safetensors
train
[ "$(grep -c '"loss"' out/trainer_log.jsonl)" = 2 ] || fail "$(cat out/trainer_log.jsonl)"
ends_well "with torn lines"

# A state that lacks numbers, or has others.
fresh
state=out/checkpoint-4/training_state.json
for change in 's/"tokens": [0-9]*/"tokens": "x"/' '/"loss_total"/d' 's/"step": 4/"step": 4.5/' \
    's/"last_logged": 4/"last_logged": 5/' 's/^  "unevaluated.*/  "unevaluated": 0,/'; do
    sed "$change" whole/checkpoint-4/training_state.json >$state
    refused "$state is not what kt train writes" resume_from_checkpoint=out/checkpoint-4
done
{ printf '{"x": ['; printf '0,%.0s' {1..40000}; printf '0]}'; } >$state
refused "$state:1: so many values" resume_from_checkpoint=out/checkpoint-4
printf '[]' >$state
refused "$state:1: expected an object" resume_from_checkpoint=out/checkpoint-4

# Nothing is written through a link.
mkdir victim
echo mine >victim/file
fresh
rm -r out/checkpoint-8 out/trainer_log.jsonl out/README.md
ln -s ../victim out/tmp-checkpoint-8
ln -s ../victim/file out/trainer_log.jsonl
ln -s ../victim/file out/README.md
train
[ "$(ls victim)" = file ] && [ "$(cat victim/file)" = mine ] || fail "written through a link"
ends_well "with links"

# What cannot be read is not absent.
fresh
rm out/trainer_log.jsonl
mkdir out/trainer_log.jsonl
refused 'output_dir: cannot read out/trainer_log.jsonl: Is a directory'
fresh
mv out/checkpoint-8/optimizer.zst out/checkpoint-8/x
ln -s optimizer.zst out/checkpoint-8/optimizer.zst
refused 'resume_from_checkpoint: out/checkpoint-8/optimizer.zst: cannot be read: Too many' \
    resume_from_checkpoint=out/checkpoint-8
rm out/checkpoint-8/optimizer.zst
ln -s /dev/zero out/checkpoint-8/optimizer.zst
refused 'out/checkpoint-8/optimizer.zst is no regular file' resume_from_checkpoint=out/checkpoint-8
fresh
rm out/trainer_log.jsonl
ln -s /dev/zero out/trainer_log.jsonl
refused 'output_dir: cannot read out/trainer_log.jsonl: Operation not supported'
rm out/trainer_log.jsonl
truncate -s 8G out/trainer_log.jsonl
refused 'output_dir: cannot read out/trainer_log.jsonl: File too large'

# A shard that is truncated, whether between two layers or within one.
for i in {1..12}; do
    rm -rf shrinks out
    cp -r model shrinks
    "$KT" train sft.yaml "${run[@]}" model_name_or_path=shrinks max_steps=1000000 >train.out 2>train.err &
    kt=$!
    for ((t = 0; t < 600; t++)); do
        grep -q '"loss"' out/trainer_log.jsonl 2>/dev/null && break
        sleep 0.1
    done
    sleep 0.0$((i % 10))
    truncate -s 4096 shrinks/model-00001-of-00003.safetensors
    wait $kt
    code=$?
    [ $code = 1 ] && [ "$(grep -c '^kt: .*shrinks/model-00001.*truncated' train.err)" = 1 ] ||
        fail "a truncated shard: $code $(cat train.err)"
    [ ! -e out/checkpoint-4 ] || cat train.out train.err | grep -q resume_from_checkpoint=out/checkpoint ||
        fail "how to go on is not told: $(cat train.out train.err)"
done
fresh
if [ "$(id -u)" != 0 ]; then
    chmod 300 out
    refused 'output_dir: cannot list out: Permission denied' 2>/dev/null
    chmod 755 out
fi
echo ok
