#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What a terminal does: signals, readers that go away, and control sequences from outside.
. "$(dirname "$0")/common.sh"
python3 -c 'import pty' 2>/dev/null || exit 77
make_all
python3 "$HERE/terminal.py" "$KT" "$HERE/../../examples/demo"
