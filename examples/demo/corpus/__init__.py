# SPDX-License-Identifier: Apache-2.0
"""The demo corpus: tables of facts and phrases, and the grammar that turns them into talk."""
