#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kt chat through a pipe and kt generate, with an adapter and without; kt info.
. "$(dirname "$0")/common.sh"
make_all
cat >chat.yaml <<'YAML'
model_name_or_path: model
template: deepseek3
infer_backend: ktransformers
trust_remote_code: true
use_kt: true
cpu_infer: 1
chunk_size: 8192
max_new_tokens: 8
YAML

# Greedy answers are the same however they are asked for.
ask() {
    "$KT" generate "$@" --prompt 'who is ann?' do_sample=false
}
ask chat.yaml >a 2>err || fail "$(cat err)"
[ -s err ] && fail "on stderr: $(cat err)"
ask model template=deepseek3 max_new_tokens=8 temperature=0 >b || fail "generate from a folder"
diff a b || fail "a folder and a configuration differ"
printf 'who is ann?' | "$KT" generate chat.yaml --prompt - do_sample=false >b || fail "from stdin"
diff a b || fail "a prompt from stdin differs"
refuses 1 'the prompt holds a NUL character' bash -c "printf 'who\\0is' | '$KT' generate chat.yaml --prompt -"

# What lies where a conversation shall be saved may be a file.
mkfifo pipe
for target in pipe . model/; do
    printf 'who is ann?\n/save %s\n/exit\n' $target | "$KT" chat chat.yaml do_sample=false >b 2>err
    grep -q "^kt: cannot write $target" err || fail "/save $target: $(cat err)"
done
[ -p pipe ] && [ -s model/config.json ] || fail "/save replaced what is no file"
printf 'who is ann?\n/clear\n\nwho is ann?\n/exit\nnever\n' |
    "$KT" chat chat.yaml do_sample=false >b 2>err || fail "$(cat err)"
diff <(cat a a) b || fail "a conversation that was cleared differs"
ask chat.yaml chunk_size=3 >b || fail "chunks"
diff a b || fail "the prompt in chunks differs"

# Experts backends give the same greedy answer; what is not there or unknown is told.
ask chat.yaml --experts llamafile >b || fail "--experts llamafile"
diff a b || fail "--experts llamafile answers differently"
"$KT" generate chat.yaml --prompt='who is ann?' --experts=llamafile do_sample=false >b ||
    fail "options with ="
diff a b || fail "options with = answer differently"
ask chat.yaml --experts reference >b || fail "--experts reference"
diff a b || fail "--experts reference answers differently"
printf 'who is ann?' | "$KT" chat chat.yaml --experts llamafile do_sample=false >b || fail "chat --experts"
diff a b || fail "kt chat --experts answers differently"
refuses 1 'kt_experts: .*abacus' "$KT" generate chat.yaml --prompt x --experts abacus
refuses 2 '--experts needs a value' "$KT" chat chat.yaml --experts
grep -q amx_bf16 /proc/cpuinfo ||
    refuses 1 'kt_experts: .*AMX-BF16' "$KT" generate chat.yaml --prompt x --experts amx
grep -q amx_int8 /proc/cpuinfo ||
    refuses 1 'kt_experts: .*AMX-INT8' "$KT" generate chat.yaml --prompt x --experts amx-int8
# More threads than cores are told, once, and not obeyed; an unbound thread answers the same.
ask chat.yaml cpu_infer=100000 >b 2>err || fail "$(cat err)"
diff a b || fail "as many threads as cores"
[ "$(wc -l <err)" = 1 ] && grep -Eq '^kt: warning: command line: cpu_infer: 100000 threads are more than the [0-9]+ cores? that this process may use; it runs [0-9]+$' err ||
    fail "too many threads: $(cat err)"
ask chat.yaml cpu_infer=2 kt_pin_threads=false >b || fail "unbound threads"
diff a b || fail "unbound threads answer something else"

# Sampling depends on the seed alone.
n=0
for seed in 1 1 2 3 4; do
    n=$((n + 1))
    "$KT" generate chat.yaml --prompt 'who is ann?' seed=$seed top_p=1 top_k=0 temperature=1.5 \
        >sample$seed.$n || fail "seed $seed"
done
cmp sample1.1 sample1.2 || fail "the same seed, another answer"
[ "$(cat sample*.? | sort -u | wc -l)" -gt 1 ] || fail "all seeds give one answer"

# Several turns, saved.
printf 'who is bob?\nand cid?\n/save talk.json\n' | "$KT" chat chat.yaml >b || fail "turns"
[ "$(grep -c '"role": "user"' talk.json)" = 2 ] || fail "/save"
[ "$(grep -c '"role": "assistant"' talk.json)" = 2 ] || fail "/save"
printf 'who is bob?\n/save nowhere/talk.json\n' | "$KT" chat chat.yaml >b 2>err
[ $? = 1 ] && grep -q '^kt: cannot write nowhere/talk.json' err || fail "/save into nothing"
printf '/clera\n' | "$KT" chat chat.yaml >b 2>err
[ $? = 1 ] && grep -q '^kt: /clera is no command' err && [ ! -s b ] || fail "a mistyped command"
printf '/etc/motd says hi\n' | "$KT" chat chat.yaml >b || fail "a prompt that begins with a slash"
"$KT" chat chat.yaml default_system='be brief' </dev/null >b || fail "no prompt at all"
[ -s b ] && fail "something was said without a prompt"

# An adapter changes the answer; a new one, whose B is zero, does not.
"$KT" train sft.yaml max_steps=1 learning_rate=0 >/dev/null 2>err || fail "$(cat err)"
ask chat.yaml adapter_name_or_path=out >b || fail "with a new adapter"
diff a b || fail "a new adapter changes the answer"
"$KT" train sft.yaml overwrite_output_dir=true learning_rate=0.02 max_steps=30 >/dev/null 2>err ||
    fail "$(cat err)"
ask chat.yaml adapter_name_or_path=out >b || fail "with an adapter"
cmp -s a b && fail "30 steps changed nothing"

# Beyond the context: a sentence, not a crash.
long=$(printf 'word %.0s' $(seq 100))
refuses_context() {
    "$KT" generate chat.yaml --prompt "$long" >b 2>err
    [ $? = 1 ] && [ "$(wc -l <err)" = 1 ] && grep -q '^kt: .* 64; .*/clear' err || fail "$(cat err)"
}
refuses_context
"$KT" generate chat.yaml --prompt the max_new_tokens=500 do_sample=false >b 2>err ||
    fail "an answer that fills the context"
grep -q '^kt: warning: .*64' err || fail "the end of the context is told: $(cat err)"
"$KT" generate model --prompt 'the one' max_new_tokens=4 >b || fail "without a template"

# Thoughts: null is a value of its own, and ends the prompt as false does.
sed 's/<｜Assistant｜>/<|im_end|>/' "$HERE/tokenizer.json" >model/tokenizer.json
for thinking in true false null; do
    ask chat.yaml template=qwen3 max_new_tokens=8 enable_thinking=$thinking >thinking.$thinking ||
        fail "enable_thinking=$thinking"
done
cmp -s thinking.true thinking.false && fail "an empty thought changes nothing"
diff thinking.false thinking.null || fail "false and null differ"

# A stop word ends the answer: the token "M", once it is called <|eom_id|>, does so.
sed 's/<｜Assistant｜>/<|eot_id|>/' "$HERE/tokenizer.json" >model/tokenizer.json
sed -i 's/"max_position_embeddings": 64/"max_position_embeddings": 256/' model/config.json
answer=$(ask model template=llama3 max_new_tokens=16 2>/dev/null)
[[ $answer == ?*M?* ]] || fail "no M within \"$answer\""
sed -i 's/"M": /"<|eom_id|>": /' model/tokenizer.json
stopped=$(ask model template=llama3 max_new_tokens=16)
[ "$stopped" = "${answer%%M*}" ] || fail "\"$stopped\" did not stop within \"$answer\""
make_model model

# kt info
"$KT" info model >b || fail "info"
grep -q '^architecture: *DeepseekV3ForCausalLM$' b || fail "architecture"
grep -Eq '^parameters: .* active for a token' b || fail "parameters"
grep -Eq '^F32 +[0-9]+ ' b || fail "data types"
"$KT" info model --tensors | grep -q '^model.embed_tokens.weight F32 \[197, 48\] ' || fail "tensors"
"$KT" info model --tensors | grep -q '(not used)$' || fail "the MTP layer is marked"
echo ok
