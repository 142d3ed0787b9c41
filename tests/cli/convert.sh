#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kt convert: every format, what becomes of a run that is killed, and what is refused.
. "$(dirname "$0")/common.sh"
make_model model
echo '{"eos_token_id": 1}' >model/generation_config.json

ask() {
    "$KT" generate "$1" template=deepseek3 max_new_tokens=8 do_sample=false --prompt 'who is ann?'
}

# There and back: what is decoded from a format answers as the format does.
for format in fp8:F8_E4M3 int8:I8 int4:I4; do
    name=${format%:*}
    "$KT" convert model $name --to $name >log 2>err || fail "$name: $(cat err)"
    [ -s err ] && fail "on stderr: $(cat err)"
    grep -Eq "^$name: [0-9.]+ KiB from [0-9.]+ KiB in 0:00:0" log || fail "$(cat log)"
    "$KT" info $name >info || fail "info $name"
    grep -Eq "^${format#*:} +96 +113,664 " info || fail "$name: $(cat info)"
    grep -Eq '^scales +96 +0 ' info || fail "$name: $(cat info)"
    grep -q '^parameters: *134,208 ' info || fail "$name: $(cat info)"
    diff <(ls model) <(ls $name) || fail "$name has other files"
    cmp model/tokenizer.json $name/tokenizer.json || fail "the tokenizer was not copied"
    "$KT" convert $name $name.f32 --to f32 >log 2>err || fail "$name back: $(cat err)"
    ask $name >a || fail "$name does not answer"
    ask $name.f32 >b || fail "$name.f32 does not answer"
    cmp a b || fail "$name answers otherwise than its numbers"
done
grep -q '"quant_method": "fp8"' fp8/config.json || fail "fp8/config.json"
grep -q '"group_size": 128' int4/config.json || fail "int4/config.json"
grep -q quantization_config int4.f32/config.json && fail "int4.f32/config.json is quantised"
"$KT" convert fp8 bf16 --to bf16 cpu_infer=1 memory_limit=64M >log 2>err || fail "$(cat err)"
"$KT" convert model many --to fp8 cpu_infer=100000 >log 2>err || fail "$(cat err)"
grep -q '^kt: warning: command line: cpu_infer: 100000 threads are more than' err || fail "threads: $(cat err)"
"$KT" convert model adapted --to fp8 adapter_name_or_path=x >log 2>err || fail "$(cat err)"
grep -q 'adapter_name_or_path: is not converted' err || fail "adapter: $(cat err)"
"$KT" info bf16 | grep -Eq '^BF16 +96 +113,664 ' || fail "bf16"
"$KT" convert fp8 experts --to int4 --experts-only >log || fail "experts alone"
"$KT" info experts >info && grep -Eq '^I4 +72 ' info && grep -Eq '^F8_E4M3 +24 ' info ||
    fail "$(cat info)"
"$KT" info experts --tensors >info
grep -q '^model.layers.1.mlp.experts.0.up_proj.weight I4 \[20, 48\] ' info || fail "$(head -20 info)"

# Killed or stopped while the last of four shards is written: only whole files, and the same command
# goes on from there to the same bytes.
size=$((64 << 20))
header='{"model.layers.3.zeros":{"dtype":"U8","shape":['$size'],"data_offsets":[0,'$size']}}'
cp -r model long
{ printf "\\x$(printf %x ${#header})\0\0\0\0\0\0\0%s" "$header"; } >long/zeros.safetensors
truncate -s $((8 + ${#header} + size)) long/zeros.safetensors
sed -i 's/^ *"model.norm.weight": "[^"]*"/&, "model.layers.3.zeros": "zeros.safetensors"/' \
    long/model.safetensors.index.json
"$KT" convert long whole --to int8 >log 2>err || fail "$(cat err)"
wait_for() {
    for _ in $(seq 1000); do
        [ -e "$1" ] && return
        sleep 0.01
    done
    fail "$1 does not come"
}
for signal in KILL INT TERM; do
    "$KT" convert long $signal --to int8 >log 2>err &
    wait_for $signal/model-00003-of-00003.safetensors
    kill -$signal $! 2>/dev/null
    wait $! 2>/dev/null
    rc=$?
    if [ ! -e $signal/kt_convert.json ]; then
        [ $rc = 0 ] || fail "$signal: it was finished, exit code $rc"
        continue
    fi
    if [ $signal != KILL ]; then
        [ $rc = 130 ] && grep -q '^stopped; the same command goes on' log || fail "$signal: $rc"
        ls $signal | grep -q tmp && fail "$signal: half-written: $(ls $signal)"
    fi
    [ -e $signal/config.json ] && fail "$signal: config.json is there too early"
    refuses 1 "$signal: is a conversion that is not finished" "$KT" info $signal
    refuses 1 "$signal: is a conversion that is not finished" "$KT" chat $signal template=deepseek3
    refuses 1 "$signal: holds another conversion" "$KT" convert long $signal --to int4
    "$KT" convert long $signal --to int8 >log 2>err || fail "$signal: $(cat err)"
    diff -r whole $signal || fail "$signal: going on ends with other files"
done

# A full file system
(ulimit -f 300; trap '' XFSZ; "$KT" convert long small --to int8 >log 2>err)
[ $? = 1 ] && [ "$(wc -l <err)" = 1 ] && grep -q '^kt: small/.*: cannot write' err ||
    fail "a full file system: $(cat err)"
ls small | grep -q tmp && fail "half-written: $(ls small)"
before=$(stat -c %i small/*.safetensors)
[ -n "$before" ] || fail "no shard fits into 300 KiB"
"$KT" convert long small --to int8 >log 2>err || fail "$(cat err)"
diff -r whole small || fail "going on ends with other files"

# Refused
refuses 2 '--to int3: is not a format' "$KT" convert model out --to int3
refuses 2 'needs --to' "$KT" convert model out
refuses 2 'needs two folders' "$KT" convert model --to int8
refuses 2 '--fast is not an option' "$KT" convert model out --to int8 --fast
refuses 1 'nowhere: there is no such configuration file or model folder' "$KT" convert nowhere out --to int8
refuses 1 'the checkpoint itself' "$KT" convert model model --to int8
refuses 1 'int8: holds a complete checkpoint already' "$KT" convert model int8 --to int8
mkdir mine && echo text >mine/notes
refuses 1 'mine: is not empty' "$KT" convert model mine --to int8
[ "$(ls mine)" = notes ] || fail "a folder with other files was changed"
refuses 1 'nothing to convert: its linears are I8 already' "$KT" convert int8 out --to int8
refuses 1 'create the folder above it first' "$KT" convert model no/out --to int8
refuses 1 'the buffers of a conversion: .*raise the limit' "$KT" convert model out --to int8 memory_limit=1M
make_model cut
truncate -s -16 cut/model-00001-of-00003.safetensors
refuses 1 'model-00001-of-00003.safetensors: ' "$KT" convert cut out --to int8
make_model gptq
sed -i 's/^{/{"quantization_config": {"quant_method": "gptq", "bits": 4},/' gptq/config.json
refuses 1 'gptq/config.json: .* "gptq", which is not supported; .* kt convert' "$KT" info gptq
refuses 1 'gptq' "$KT" convert gptq out --to int8
cp -r fp8 no_sizes
sed -i 's/"weight_block_size"/"weight_block"/' no_sizes/config.json
refuses 1 'no_sizes/config.json: .*weight_block_size' "$KT" info no_sizes
[ -e out ] && fail "a refused conversion left a folder"
echo ok
