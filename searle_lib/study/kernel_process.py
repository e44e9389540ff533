"""The process of a kernel: ipykernel, which ends with the run that started it.

`python -m searle_lib.study.kernel_process -f FILE` takes the arguments of ipykernel.
"""

import os
import sys

from searle_lib.study.interruption import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(os.environ["JPY_PARENT_PID"]))
    sys.path.pop(0)  # the current folder, which ipykernel adds where a notebook expects it

    from ipykernel import kernelapp

    kernelapp.launch_new_instance()
