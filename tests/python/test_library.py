# SPDX-License-Identifier: Apache-2.0
"""Which library is loaded, which is refused, and the wheel.

    test_library.py CASES_DIR BUILD_WHEEL BUILD_DIR COMPILER
"""
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ARGUMENTS, CASES, Case, Test, run

import kt

BUILD_WHEEL, BUILD = (Path(argument).resolve() for argument in ARGUMENTS[:2])
COMPILER = ARGUMENTS[2]
PACKAGE = BUILD_WHEEL.parent / "kt"
VARIABLES = ("KT_LIBRARY", "PYTHONPATH", "LD_LIBRARY_PATH", "PYTHONHOME")
CLEAN = {key: value for key, value in os.environ.items() if key not in VARIABLES}

# Prints what a case gives, and every file that is mapped.
PROGRAM = """
import json, sys, kt
with kt.Context(1) as ctx:
    model = kt.Model(ctx, sys.argv[1] + "/model")
    batch = kt.Batch(ctx)
    batch.add(range(20), range(20))
    lora = kt.Lora.load(model, sys.argv[1] + "/adapter")
    loss = kt.Executor(model, lora, compute="f32").forward(batch).loss
maps = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
print(json.dumps([kt.__file__, loss, sorted(maps)]))
"""


def python(*command, program=sys.executable, **environment):
    """Exit status, output and errors of a Python with nothing else in its environment."""
    result = subprocess.run([program, *map(str, command)], env={**CLEAN, **environment}, cwd="/",
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


class Library(Test):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.scratch.name)

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def import_fails(self, library):
        code, _, said = python("-c", "import kt", KT_LIBRARY=str(library),
                               PYTHONPATH=str(PACKAGE.parent))
        self.assertNotEqual(code, 0)
        last = said.splitlines()[-1]
        self.assertTrue(last.startswith("ImportError: "), said)
        return last

    def compile(self, name, source):
        path = self.folder / name
        subprocess.run([*shlex.split(COMPILER), "-shared", "-fPIC", "-x", "c", "-", "-o", path],
                       input=source.encode(), check=True)
        return path

    def test_no_library(self):
        self.assertIn("KT_LIBRARY", self.import_fails("/nonexistent/libkt.so"))
        self.assertIn("KT_LIBRARY", self.import_fails(__file__))
        self.assertIn("no libkt", self.import_fails(self.compile("other.so", "int other;")))

    def test_another_version(self):
        version = ("unsigned kt_version(void) { return %s; }"
                   "unsigned kt_api_version(void) { return %d; }")
        for number, api in (("0x000200", 9), ("0x010000", 9), ("0x000100", 0)):
            path = self.compile("version.so", version % (number, api))
            said = self.import_fails(path)
            self.assertIn("install the two of one release", said)
            self.assertIn(str(path), said)
        # of this version, but without the functions
        said = self.import_fails(self.compile("empty.so", version % ("0x000100", 1)))
        self.assertIn("kt_", said)

    def test_the_systems(self):
        """Without a word and without a bundle: what the loader finds."""
        folder = os.path.dirname(os.environ["KT_LIBRARY"])
        code, out, said = python("-c", "import kt; print(kt.version())", LD_LIBRARY_PATH=folder,
                                 PYTHONPATH=str(PACKAGE.parent))
        self.assertEqual((code, out.strip()), (0, kt.__version__), said)

    def test_wheel(self):
        """Built, installed into a new environment, imported and run from there."""
        built = python(BUILD_WHEEL, BUILD, self.folder / "wheel")
        self.assertEqual(built[0], 0, built[2])
        wheel, = (self.folder / "wheel").glob("libkt-*-py3-none-manylinux_*.whl")
        if python("-m", "venv", self.folder / "venv")[0]:
            self.skipTest("python3 -m venv does not work here")
        programs = self.folder / "venv/bin"
        before = set(os.listdir(programs))
        installed = python("-m", "pip", "install", "--no-index", "--no-deps", wheel,
                           program=programs / "python", PIP_DISABLE_PIP_VERSION_CHECK="1")
        self.assertEqual(installed[0], 0, installed[2])
        self.assertEqual(set(os.listdir(programs)) - before, {"libkt"})
        self.check_import(programs)
        self.check_program(programs)
        checked = python("-m", "pip", "check", program=programs / "python")
        self.assertEqual(checked[0], 0, checked[1])

    def check_import(self, programs):
        folder = CASES.resolve() / "v3bf16"
        code, out, said = python("-c", PROGRAM, folder, program=programs / "python")
        self.assertEqual(code, 0, said)
        place, loss, maps = json.loads(out)
        inside = str(self.folder.resolve() / "venv")
        self.assertTrue(place.startswith(inside), place)
        case = Case("v3bf16")
        case.batch.clear()
        case.batch.add(range(20), range(20))
        self.assertEqual(loss, case.executor.forward(case.batch).loss)
        for library in ("libkt", "libzstd", "libyaml", "libjansson", "libpcre2", "libnuma"):
            files = [path for path in maps if path.rsplit("/", 1)[1].startswith(library)]
            self.assertEqual(len(files), 1, library)
            self.assertTrue(files[0].startswith(inside), files)
        # The environment's word comes before what is inside.
        code, out, said = python("-c", PROGRAM, folder, program=programs / "python",
                                 KT_LIBRARY=os.environ["KT_LIBRARY"])
        self.assertEqual(code, 0, said)
        named = os.path.realpath(os.environ["KT_LIBRARY"])
        self.assertIn(named, json.loads(out)[2])

    def check_program(self, programs):
        for command in ([programs / "libkt"], [programs / "python", "-m", "kt"]):
            result = subprocess.run([*command, "--version"], env={}, cwd="/", check=True,
                                    stdout=subprocess.PIPE)
            self.assertRegex(result.stdout.decode(), r"\d+\.\d+\.\d+")
        failed = subprocess.run([programs / "libkt", "train", "/nonexistent.yaml"], env={},
                                stderr=subprocess.PIPE)
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("/nonexistent.yaml", failed.stderr.decode())

    def test_no_program_without_a_wheel(self):
        code, _, said = python("-m", "kt", "--version", KT_LIBRARY=os.environ["KT_LIBRARY"],
                               PYTHONPATH=str(PACKAGE.parent))
        self.assertEqual(code, 1)
        self.assertIn("install a wheel", said)


if __name__ == "__main__":
    run()
