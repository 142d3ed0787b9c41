# SPDX-License-Identifier: Apache-2.0
"""The programs of examples/python, over the demo model."""
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Test, run

TOP = Path(__file__).resolve().parents[2]
DEMO = TOP / "examples/demo"


def example(name, *args):
    result = subprocess.run([sys.executable, TOP / "examples/python" / name, *map(str, args)],
                            stdout=subprocess.PIPE, check=True)
    return result.stdout.decode()


def losses(output):
    return [float(loss) for loss in re.findall(r"^step \d+  loss ([\d.]+)", output, flags=re.M)]


class Examples(Test):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def test_train_and_chat(self):
        got = losses(example("train.py", DEMO / "model", DEMO, "identity", self.folder / "out", 60))
        self.assertEqual(len(got), 60)
        self.assertLess(got[-1], got[0] / 2)
        question = "Who are you?"
        self.assertIn("Pebble", example("chat.py", DEMO / "model", question))
        self.assertIn("Kite", example("chat.py", DEMO / "model", question, self.folder / "out"))

    def test_dpo(self):
        got = losses(example("dpo.py", DEMO / "model", self.folder / "dpo", 8))
        self.assertAlmostEqual(got[0], 0.6931, 4)  # log 2: policy and reference are the same
        self.assertLess(got[-1], 0.4)
        self.assertTrue((self.folder / "dpo/adapter_model.safetensors").is_file())


if __name__ == "__main__":
    run()
