# SPDX-License-Identifier: Apache-2.0
"""The program kt that a wheel has inside: `libkt train X.yaml`, or `python -m kt train X.yaml`."""
import os
import sys
from pathlib import Path


def main() -> int:
    """Becomes the program; returns when there is none."""
    program = Path(__file__).parent / "_bundle" / "bin" / "kt"
    if not os.access(program, os.X_OK):
        print(f"libkt: {program} is missing or cannot be run; install a wheel that has it inside",
              file=sys.stderr)
        return 1
    os.execv(program, ["libkt", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
