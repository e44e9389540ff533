"""Importing this module lets a fork server end with its parent, and each child that it forks end with it.

The fork server of kernels.py imports it first; its environment names the parent. Elsewhere it does nothing.
"""

import os

from searle_lib.study.interruption import PARENT, end_with_parent

if PARENT in os.environ:
    end_with_parent(int(os.environ[PARENT]))
    os.register_at_fork(after_in_child=end_with_parent)
