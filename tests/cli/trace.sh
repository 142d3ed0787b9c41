#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# --trace and --profile of kt train, kt chat and kt generate: they change nothing that is computed.
. "$(dirname "$0")/common.sh"
make_all

# check_trace FILE DEVICE PHASE ...: readable, and what it should have is there.
check_trace() {
    python3 - "$@" <<'PYTHON'
import collections, json, sys
path, device, *phases = sys.argv[1:]
events = json.load(open(path))["traceEvents"]
names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
spans = [e for e in events if e["ph"] == "X"]
assert spans and all(e["dur"] >= 0 and e["ts"] >= 0 for e in spans), "times"
assert {e["args"]["phase"] for e in spans} >= set(phases), "phases"
tracks = collections.defaultdict(list)
for e in spans:
    tracks[names[e["tid"]]].append(e)
assert {"host thread", "CPU" if device == "cpu" else device + " compute"} <= tracks.keys(), tracks.keys()
for name, track in tracks.items():
    if name == "host thread":
        continue
    track.sort(key=lambda e: e["ts"])
    for a, b in zip(track, track[1:]):
        assert b["ts"] >= a["ts"] + a["dur"] - 0.002, (name, a, b)
work = [e for e in spans if e["name"] in ("gemm", "linear_forward")]
assert all(e["args"]["flops"] > 0 and e["args"]["bytes"] > 0 for e in work), "work"
assert work and any(e["args"].get("layer") == 1 for e in work), "layers"
PYTHON
}

# check_profile FILE PHASE: it is there, and no resource (two spaces in) is busy for longer than it.
check_profile() {
    grep -q "^$2: " "$1" || fail "$1 has no phase $2"
    grep -q '^  [a-zA-Z]' "$1" || fail "$1 has no resources"
    awk '/^  [a-zA-Z]/ && substr($0, 52, 6) > 100.05 { exit 1 }' "$1" ||
        fail "a resource that is more than busy: $(cat "$1")"
}

"$KT" train sft.yaml output_dir=plain max_steps=3 plot_loss=false >plain.log 2>&1 ||
    fail "$(cat plain.log)"
"$KT" train sft.yaml output_dir=traced max_steps=3 plot_loss=false --trace t.json --profile \
    >traced.log 2>&1 || fail "$(cat traced.log)"
cmp plain/adapter_model.safetensors traced/adapter_model.safetensors || fail "a trace changes training"
check_trace t.json cpu forward backward optimizer || fail "t.json"
check_profile traced.log backward
grep -q "busy %" plain.log && fail "a profile that nobody asked for"
"$KT" train sft.yaml output_dir=far max_steps=2 plot_loss=false kt_device=cpu-far --trace=far.json \
    >far.log 2>&1 || fail "$(cat far.log)"
grep -q "busy %" far.log && fail "--trace alone prints a profile"
check_trace far.json cpu-far forward backward optimizer || fail "far.json"

cat >chat.yaml <<'YAML'
model_name_or_path: model
template: deepseek3
max_new_tokens: 8
do_sample: false
kt_device: cpu-far
YAML
"$KT" generate chat.yaml --prompt 'who is ann?' >a || fail "generate"
"$KT" generate chat.yaml --prompt 'who is ann?' --trace g.json >b || fail "generate --trace"
cmp a b || fail "a trace changes the answer"
check_trace g.json cpu-far prompt decode || fail "g.json"
printf 'who is ann?\n' | "$KT" chat chat.yaml --trace c.json --profile >b 2>c.log ||
    fail "chat --profile: $(cat c.log)"
cmp a b || fail "a trace changes the conversation"
check_trace c.json cpu-far prompt decode || fail "c.json"
check_profile c.log decode

# A file that cannot be made is told before anything is trained, and nothing is left of it.
refuses 1 '--trace: .*nowhere/t.json' "$KT" train sft.yaml output_dir=none --trace nowhere/t.json
refuses 2 '--trace needs a value' "$KT" train sft.yaml --trace
refuses 2 '--profile takes no value' "$KT" train sft.yaml --profile=1
for command in train chat generate; do
    "$KT" help $command | grep -q -- '--trace FILE' || fail "kt help $command"
done
ls ./*.tmp 2>/dev/null && fail "unfinished files"
echo ok
