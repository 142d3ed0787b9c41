# SPDX-License-Identifier: Apache-2.0
"""terminal.py KT DEMO, in a folder with model/, data/ and sft.yaml (see common.sh)."""
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

KT, DEMO = sys.argv[1:]
HOSTILE = "hi \x1b]0;title\x07\x1b[2J\x7f \u009b31m \u202eevil\u2066 h\u00e9 \U0001f600\t."
SHOWN = "hi \\x1b]0;title\\x07\\x1b[2J\\x7f \\u009b31m \\u202eevil\\u2066 h\u00e9 \U0001f600"

# Whoever runs the tests may ignore these, and programs inherit that.
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)


def check(condition, *what):
    if not condition:
        raise SystemExit("FAIL: " + " ".join(map(str, what)))


def run(*arguments, **options):
    return subprocess.run([KT, *arguments], capture_output=True, text=True, **options)


def wait_for(condition, what):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise SystemExit("FAIL: waited in vain for " + what)


def text_of(path):
    return open(path, "rb").read() if os.path.exists(path) else b""


def same(a, b):
    check(text_of(a) and text_of(a) == text_of(b), a, "and", b, "differ")


class Terminal:
    """A program on a terminal of its own; `text` is what it has shown."""

    def __init__(self, *arguments):
        self.text = ""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execv(KT, [KT, *arguments])

    def read(self):
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # it has ended
            data = b""
        self.text += data.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
        return data

    def until(self, part):
        while part not in self.text:
            check(self.read(), part, "is not in", repr(self.text))

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def end(self):
        while self.read():
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def resume(text):
    """Gives the command that was told."""
    command = re.search(r"^  kt (train .*)$", text, re.M)
    check(command, "no command in", repr(text))
    done = run(*command[1].split())
    check(done.returncode == 0, done.stderr)


LONG = ["max_steps=80", "save_strategy=no", "logging_steps=1", "plot_loss=false"]


def test_tee():
    """Ctrl-C reaches the whole pipeline, and tee ends first."""
    train = f"exec {KT} train sft.yaml output_dir=tee {' '.join(LONG)} 2>tee.err"
    script = f"trap : INT; (trap - INT; {train}) | (trap - INT; exec tee log >/dev/null); exit ${{PIPESTATUS[0]}}"
    p = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    wait_for(lambda: b"step 3/" in text_of("log"), "step 3")
    os.killpg(p.pid, signal.SIGINT)
    check(p.wait() == 130, "exit code behind tee:", p.returncode)
    check([f for f in os.listdir("tee") if f.startswith("checkpoint-")], "no checkpoint")
    resume(text_of("tee.err").decode())
    check(run("train", "sft.yaml", "output_dir=straight", *LONG).returncode == 0, "straight")
    same("straight/adapter_model.safetensors", "tee/adapter_model.safetensors")


def start(folder, **options):
    p = subprocess.Popen([KT, "train", "sft.yaml", "output_dir=" + folder, *LONG],
                         stdout=open(folder + ".out", "w"), stderr=subprocess.STDOUT, **options)
    wait_for(lambda: b"step 3/" in text_of(folder + ".out"), "step 3")
    return p


def test_other_signals():
    for number in (signal.SIGHUP, signal.SIGTERM):
        p = start("by" + number.name)
        p.send_signal(number)
        check(p.wait() == 130, number, "ends with", p.returncode)
        check("resume_from_checkpoint=" in text_of(f"by{number.name}.out").decode(), number)
    p = start("nohup", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    p.send_signal(signal.SIGHUP)
    check(p.wait() == 0, "SIGHUP that was ignored at the start:", p.returncode)


def test_unwritable():
    few = ["train", "sft.yaml", "max_steps=2", "plot_loss=false"]
    with open("/dev/full", "w") as full:
        p = subprocess.run([KT, *few, "output_dir=full"], stdout=full, stderr=subprocess.PIPE, text=True)
        check(p.returncode == 0 and "warning: cannot write to standard output" in p.stderr, p)
        same("full/adapter_model.safetensors", "full/checkpoint-2/adapter_model.safetensors")
        p = subprocess.run([KT, *few, "output_dir=both"], stdout=full, stderr=full)
        check(p.returncode == 0, p)
        for command in (["info", "model"], ["data", "sft.yaml"], ["help"],
                        ["generate", "model", "--prompt", "a", "max_new_tokens=2"]):
            p = subprocess.run([KT, *command], stdout=full, stderr=subprocess.PIPE, text=True)
            check(p.returncode == 1 and p.stderr.startswith("kt: cannot write the output: No space"), p)
    for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        p = subprocess.run(["bash", "-c", f"{KT} {' '.join(few)} output_dir=closed overwrite_output_dir=true {closed}"])
        check(p.returncode == 0, closed, p)
        same("full/adapter_model.safetensors", "closed/adapter_model.safetensors")
    p = subprocess.run(["bash", "-c", f"{KT} data sft.yaml --jsonl --num 99999 | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"],
                       stderr=subprocess.DEVNULL)
    check(p.returncode in (0, 1), "a reader that ends:", p.returncode)


def test_ctrl_c_on_a_terminal():
    t = Terminal("train", "sft.yaml", "output_dir=once", *LONG)
    t.until("step 3/")
    t.type("\x03")
    t.until("stopping after this step")
    check("stopped after" not in t.text.split("stopping")[0], "the answer comes late")
    t.until("stopped after step")
    check(t.end() == 130, t.text)
    resume(t.text)
    same("straight/adapter_model.safetensors", "once/adapter_model.safetensors")


def test_second_ctrl_c():
    """Steps of a second; were the last one not dropped, the run would end with success."""
    slow = ["train", "sft.yaml", "max_steps=2", "cpu_infer=1", "per_device_train_batch_size=66", "dataset_dir=more",
            "gradient_accumulation_steps=1", "logging_steps=1", "plot_loss=false", "--experts", "reference"]
    os.mkdir("more")
    shutil.copy("data/dataset_info.json", "more")
    json.dump(json.load(open("data/pairs.json")) * 3, open("more/pairs.json", "w"))
    t = Terminal(*slow, "output_dir=twice")
    t.until("step 1/2")
    t.type("\x03")
    t.until("stopping after this step")
    t.type("\x03")
    t.until("dropping this step")
    t.until("stopped after step 1\n")
    check(t.end() == 130, t.text)
    check(run(*slow, "output_dir=never").returncode == 0, "slow")
    resume(t.text)
    for name in ("adapter_model.safetensors", "checkpoint-2/optimizer.zst", "checkpoint-2/training_state.json"):
        same("never/" + name, "twice/" + name)


def history(folder):
    """The log without what depends on the clock."""
    items = json.load(open(folder + "/trainer_state.json"))["log_history"]
    return [{k: v for k, v in item.items() if "runtime" not in k and "per_second" not in k} for item in items]


def test_dropped_evaluation():
    """The resumed run makes up for it."""
    slow = ["train", "sft.yaml", "max_steps=2", "cpu_infer=1", "eval_dataset=many", "dataset_dir=many", "eval_steps=1",
            "eval_strategy=steps", "per_device_eval_batch_size=4", "plot_loss=false", "--experts", "reference"]
    os.mkdir("many")
    json.dump({"pairs": {"file_name": "pairs.json"}, "many": {"file_name": "many.json"}},
              open("many/dataset_info.json", "w"))
    shutil.copy("data/pairs.json", "many")
    json.dump(json.load(open("data/pairs.json")) * 8, open("many/many.json", "w"))
    t = Terminal(*slow, "output_dir=dropped")
    t.until("step 1/2")
    t.type("\x03")
    t.until("stopping after this step")
    t.type("\x03")
    t.until("stopped after step 1\n")
    check(t.end() == 130 and "eval_loss" not in t.text, t.text)
    check(run(*slow, "output_dir=evaluated").returncode == 0, "evaluated")
    resume(t.text)
    same("evaluated/adapter_model.safetensors", "dropped/adapter_model.safetensors")
    check(history("evaluated") == history("dropped"), history("dropped"))


def test_hostile_data():
    os.mkdir("hostile")
    shutil.copy("data/dataset_info.json", "hostile")
    json.dump([{"instruction": HOSTILE, "input": "", "output": "ok"}], open("hostile/pairs.json", "w"))
    command = ["data", "sft.yaml", "dataset_dir=hostile", "model_name_or_path=" + DEMO + "/model"]
    t = Terminal(*command)
    check(t.end() == 0 and SHOWN in t.text, repr(t.text))
    left = t.text.replace("\x1b[2m", "").replace("\x1b[0m", "")
    check(not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", left), repr(left))
    check(HOSTILE in run(*command).stdout, "a pipe gets other bytes")


def test_hostile_names():
    name = "no\x1b[31m\x9b"
    t = Terminal("info", name)
    check(t.end() == 1 and "no\\x1b[31m\\u009b" in t.text and "\x1b" not in t.text, repr(t.text))
    check(name in run("info", name).stderr, "a pipe gets other bytes")
    t = Terminal("info", b"\x9b\xff\xe2\x80")  # no UTF-8
    check(t.end() == 1 and "\\x9b\\xff\\xe2\\x80" in t.text, repr(t.text))


def test_hostile_model():
    """A model that writes ESC for M, which this answer holds."""
    shutil.copytree("model", "esc")
    tokenizer = open("esc/tokenizer.json").read()
    open("esc/tokenizer.json", "w").write(tokenizer.replace('"M": ', '"\u011b": ')
                                          .replace("<\uff5cAssistant\uff5c>", "<|eot_id|>"))
    config = open("esc/config.json").read()
    open("esc/config.json", "w").write(config.replace('"max_position_embeddings": 64', '"max_position_embeddings": 256'))
    command = ["generate", "esc", "template=llama3", "max_new_tokens=16", "do_sample=false", "--prompt", "who is ann?"]
    raw = run(*command).stdout
    check("\x1b" in raw, "the model says no ESC:", repr(raw))
    t = Terminal(*command)
    check(t.end() == 0 and raw.replace("\x1b", "\\x1b") in t.text and "\x1b" not in t.text, repr(t.text))
    t = Terminal("chat", *command[1:-2])
    t.until("User: ")
    t.type("who is ann?\n")
    t.until(raw.replace("\x1b", "\\x1b").strip("\n"))
    t.type("/exit\n")
    check(t.end() == 0, repr(t.text))


def test_characters_of_several_tokens():
    command = ["generate", DEMO + "/chat.yaml", "model_name_or_path=" + DEMO + "/model", "adapter_name_or_path=null",
               f"kt_optimize_rule={DEMO}/../kt_optimize_rules/cpu-only.yaml",
               "max_new_tokens=40", "do_sample=false", "--prompt", "可以告诉我你是谁吗？"]
    raw = run(*command).stdout
    check("小石子" in raw, raw)
    t = Terminal(*command)
    check(t.end() == 0 and raw in t.text, repr(t.text))


for name, test in list(globals().items()):
    if name.startswith("test_"):
        begin = time.monotonic()
        test()
        print(f"{name} {time.monotonic() - begin:.1f} s", flush=True)
