#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A model in GGUF files does what the same model does as a Hugging Face checkpoint.
. "$(dirname "$0")/common.sh"
make_data data
make_yaml sft.yaml
GGUF=$(realpath "$CASES/../gguf")
mkdir -p model gguf
cp "$GGUF"/deepseek3/* "$HERE/tokenizer.json" "$HERE/tokenizer_config.json" model
cp "$GGUF"/deepseek3-*.gguf "$HERE/tokenizer.json" "$HERE/tokenizer_config.json" gguf
first=gguf/deepseek3-00001-of-00003.gguf

"$KT" info model --tensors >a || fail "info"
"$KT" info $first --tensors >b || fail "info of a GGUF file"
"$KT" info gguf --tensors >c || fail "info of a folder with GGUF files"
diff <(sed 's/ model.safetensors$//' a) <(sed 's/ deepseek3-.*gguf$//' b) || fail "tensors differ"
diff b c || fail "a folder and the file in it differ"
"$KT" info "$GGUF/quantised.gguf" >b || fail "info of blocks"
for row in 'Q8_0 ' 'Q4_0 ' 'Q4_K ' 'Q6_K ' 'F32 '; do
    grep -q "^$row" b || fail "$row is not in: $(cat b)"
done

ask() {
    "$KT" generate "$@" --prompt 'who is ann?' do_sample=false max_new_tokens=8
}
ask model >a || fail "generate"
ask $first >b || fail "generate from a GGUF file"
diff a b || fail "answers differ"

train() {
    "$KT" train sft.yaml output_dir="out_$1" model_name_or_path="$2" >"log_$1" 2>&1 ||
        fail "$(cat "log_$1")"
}
train a model
train b $first
cmp out_a/adapter_model.safetensors out_b/adapter_model.safetensors || fail "adapters differ"
cmp out_a/tokenizer.json out_b/tokenizer.json || fail "the tokenizer was not copied"
ask model adapter_name_or_path=out_b >a || fail "generate with an adapter"
ask $first adapter_name_or_path=out_b >b || fail "generate from a GGUF file with an adapter"
diff a b || fail "answers with an adapter differ"

rm gguf/tokenizer.json
refuses 1 '"tokenizer.ggml.model" is "", .*put the model.s tokenizer.json' \
    "$KT" generate $first --prompt x
rm gguf/deepseek3-00002-of-00003.gguf
refuses 1 'deepseek3-00002-of-00003.gguf: no such file' "$KT" info $first
refuses 1 'nowhere.gguf: No such file' "$KT" info nowhere.gguf
