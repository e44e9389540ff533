"""Real kernels: the next one gets ready while one is in use, and none is left behind."""

import ast

import psutil
import pytest
from nbclient.util import run_sync

from searle_lib.study import kernels


def running_kernels():
    """The kernel processes that this process has started."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("ipykernel_launcher" in part for part in child.cmdline())]


def ask(kernel, question):
    """The value of an expression in a kernel."""
    client = kernel.client()
    client.start_channels()
    run_sync(client.wait_for_ready)(timeout=120)
    request = client.execute("import os, sys", user_expressions={"value": question})
    reply = {"parent_header": {"msg_id": None}}
    while reply["parent_header"]["msg_id"] != request:
        reply = run_sync(client.get_shell_msg)(timeout=60)
    client.stop_channels()
    return ast.literal_eval(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])


@pytest.mark.slow
def test_the_next_kernel_has_its_imports_and_none_is_left(tmp_path):
    ready = kernels.ReadyKernels(tmp_path, 3)
    first, second = ready.take(), ready.take()
    assert len(running_kernels()) == 3  # the third gets ready
    question = "'searle_lib.evaluation.scores' in sys.modules, 'torch' in globals(), os.getcwd()"
    assert ask(second, question) == (True, False, str(tmp_path))
    run_sync(first.shutdown_kernel)(now=True)
    ready.close()
    assert running_kernels() == []


@pytest.mark.slow
def test_no_kernel_gets_ready_behind_the_last(tmp_path):
    ready = kernels.ReadyKernels(tmp_path, 1)
    ready.take()
    assert len(running_kernels()) == 1
    ready.close()
    assert running_kernels() == []
