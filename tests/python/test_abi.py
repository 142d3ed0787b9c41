# SPDX-License-Identifier: Apache-2.0
"""Structs, constants and prototypes of the package against libkt's headers: tests/abi/dump makes a
C program of these, which prints what the compiler thinks.

    test_abi.py CASES_DIR DUMP INCLUDE_DIR BUILT_INCLUDE_DIR LIBKT_SO
"""
import ctypes
import re
import subprocess
import unittest

from common import ARGUMENTS, Test, run

import kt
from kt import _abi, _structs

#: Callbacks that a host in Python cannot give: any thread may call them, in the middle of anything.
ABSENT_CALLBACKS = {"kt_alloc_callback", "kt_free_callback"}
#: kt_tokenizer_apply_template_thinking with a constant.
ABSENT_FUNCTIONS = {"kt_tokenizer_apply_template"}
ENUMS = {"KT_ERROR_": kt.Status, "KT_LOG_": kt.LogLevel, "KT_ISA_": kt.Isa, "KT_DTYPE_": kt.DType,
         "KT_COMPUTE_": kt.Compute, "KT_FORWARD_": kt.ForwardMode, "KT_THINKING_": kt.Thinking}


def read_dump():
    text = subprocess.run(ARGUMENTS, check=True, stdout=subprocess.PIPE).stdout.decode()
    structs, constants, prototypes, callbacks = {}, {}, set(), set()
    for line in text.splitlines():
        kind, _, rest = line.strip().partition(" ")
        if kind == "struct":
            name, size = rest.split()
            structs[name] = {"": int(size)}
        elif line.startswith("    "):
            structs[name][kind] = tuple(map(int, rest.split()))
        elif kind == "constant":
            constant, value = rest.split()
            constants[constant] = int(value)
        elif kind == "prototype":
            prototypes.add(rest)
        elif kind == "callback":
            callbacks.add(rest)
    return structs, constants, prototypes, callbacks


class Abi(Test):
    @classmethod
    def setUpClass(cls):
        cls.structs, cls.constants, cls.prototypes, cls.callbacks = read_dump()

    def test_structs(self):
        ours = {}
        for name, struct in vars(_structs).items():
            if name.startswith("kt_"):
                ours[name] = {"": ctypes.sizeof(struct)}
                for field, _ in struct._fields_:
                    place = getattr(struct, field)
                    ours[name][field] = place.offset, place.size
        self.assertEqual(ours, self.structs)

    def test_constants(self):
        ours = {"KT_OK": 0, "KT_API_VERSION": _abi.API_VERSION,
                "KT_FORWARD_FLAGS": self.constants["KT_FORWARD_FLAGS"]}  # there is no flag yet
        for prefix, kind in ENUMS.items():
            ours.update({prefix + name: int(value) for name, value in kind.__members__.items()})
        del ours["KT_ERROR_OK"]
        self.assertEqual(ours, self.constants)

    def test_signs_and_kinds(self):
        """Types of fields, which sizes do not tell."""
        headers = "".join(path.read_text() for path in sorted(self.headers()))
        headers = re.sub(r"/\*.*?\*/", "", headers, flags=re.S)
        seen = 0
        for name, body in re.findall(r"typedef struct (kt_\w+) \{(.*?)\n\}", headers, flags=re.S):
            kinds = dict(getattr(_structs, name)._fields_)
            for line in re.sub(r"#\w+[^\n]*", "", body).split(";"):
                found = re.match(r"\s*((?:const )?(?:unsigned )?\w+)\s+(.*)$", line, flags=re.S)
                for field in found[2].split(",") if found else ():
                    self.check_field(name, found[1], field.strip(), kinds)
                    seen += 1
        self.assertGreater(seen, 120)

    def check_field(self, struct, base, field, kinds):
        field = re.sub(r"\[\d+\]", "", field)
        bare = field.lstrip("*")
        kind = kinds[bare]
        if field.startswith("*") or base.endswith("_callback"):
            text = base == "const char"
            self.assertIs(kind, ctypes.c_char_p if text else ctypes.c_void_p, (struct, field))
            return
        kind = getattr(kind, "_type_", kind) if issubclass(kind, ctypes.Array) else kind
        names = {"int32_t": "c_int32", "uint32_t": "c_uint32", "int64_t": "c_int64",
                 "uint64_t": "c_uint64", "size_t": "c_size_t", "float": "c_float",
                 "double": "c_double", "unsigned char": "c_ubyte"}
        self.assertIs(kind, getattr(ctypes, names[base]), (struct, field))

    @staticmethod
    def headers():
        from pathlib import Path
        return Path(ARGUMENTS[1], "kt").glob("*.h")

    def test_prototypes(self):
        absent = {line for line in self.prototypes
                  if re.search(r"(kt_\w+)\(", line)[1] in ABSENT_FUNCTIONS}
        self.assertEqual(len(absent), len(ABSENT_FUNCTIONS))
        self.assertEqual(set(_abi.PROTOTYPES), self.prototypes - absent)
        names = [name for name, _, _ in _abi.functions()]
        self.assertEqual(len(names), len(set(names)))
        for name in names:
            self.assertRegex(name, r"^kt_[a-z_]+$")

    def test_callbacks(self):
        absent = {line for line in self.callbacks if line.split()[0] in ABSENT_CALLBACKS}
        self.assertEqual(set(_abi.CALLBACKS), self.callbacks - absent)

    def test_version(self):
        self.assertEqual(kt.__version__, kt.version())


if __name__ == "__main__":
    run()
