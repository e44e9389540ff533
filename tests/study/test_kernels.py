"""Real kernels: the next one gets ready while one is in use, none outlives its run, and a dead one is one sentence."""

import ast
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbclient.util import run_sync

from searle_lib.store import bars
from searle_lib.study import execution, interruption, kernels
from searle_lib.study.run_folder import RunFolder

pytestmark = pytest.mark.slow
LIMIT = 2.0  # seconds in which a kernel must end after its run


def running_kernels():
    """The kernel processes that this process has started."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("kernel_process" in part for part in child.cmdline())]


def ask(kernel, question):
    """The value of an expression in a kernel."""
    client = kernel.manager.client()
    client.start_channels()
    run_sync(client.wait_for_ready)(timeout=120)
    request = client.execute("import os, sys", user_expressions={"value": question})
    reply = {"parent_header": {"msg_id": None}}
    while reply["parent_header"]["msg_id"] != request:
        reply = run_sync(client.get_shell_msg)(timeout=60)
    client.stop_channels()
    return ast.literal_eval(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])


@pytest.fixture
def folder():
    """A run's temporary folder, with a path short enough for sockets."""
    made = RunFolder()
    yield made.path
    made.close()


@pytest.fixture
def quick_kernels(monkeypatch):
    """Kernels that import nothing ahead."""
    monkeypatch.setattr(kernels, "IMPORTS", ())


def test_the_next_kernel_has_its_imports_and_none_is_left(tmp_path, folder):
    ready = kernels.ReadyKernels(tmp_path, 3, folder)
    first, second = ready.take(), ready.take()
    assert len(running_kernels()) == 3  # the third gets ready
    question = "'searle_lib.evaluation.scores' in sys.modules, 'torch' in globals(), os.getcwd()"
    assert ask(second, question) == (True, False, str(tmp_path))
    first.end()
    ready.close()
    assert running_kernels() == [] and interruption.cleanups[-1].__self__.path == folder


def test_no_kernel_gets_ready_behind_the_last(tmp_path, folder):
    ready = kernels.ReadyKernels(tmp_path, 1, folder)
    ready.take()
    assert len(running_kernels()) == 1
    ready.close()
    assert running_kernels() == []


def test_each_kernel_reports_bars_to_a_file_of_its_own(tmp_path, folder, quick_kernels):
    ready = kernels.ReadyKernels(tmp_path, 2, folder)
    first, second = ready.take(), ready.take()
    assert first.bars != second.bars
    assert ask(second, f"os.environ[{bars.FILE!r}]") == str(second.bars)
    first.end()
    ready.close()


def test_a_kernel_that_died_waiting_is_replaced(tmp_path, folder, quick_kernels):
    ready = kernels.ReadyKernels(tmp_path, 1, folder)
    dead = ready.kernels[0]
    os.kill(dead.process.pid, signal.SIGKILL)
    dead.process.wait()
    assert ask(ready.take(), "1 + 1") == 2
    ready.close()


def run_cell(tmp_path, folder, source):
    """Run a notebook of one cell in a kernel, and return what `execute` says and the kernel's notebook."""
    path, output = tmp_path / "notebooks" / "01_cell.ipynb", tmp_path / "01_cell.ipynb"
    path.parent.mkdir()
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=metadata)
    nbformat.write(notebook, path)
    ready = kernels.ReadyKernels(tmp_path, 1, folder)
    try:
        return execution.execute(path, output, {}, ready.take(), folder, lambda heading: None), output
    finally:
        ready.close()


def test_a_notebook_is_moved_from_the_temporary_folder_when_it_is_done(tmp_path, folder, quick_kernels):
    said, output = run_cell(tmp_path, folder, "print(6 * 7)")
    assert said == "" and "42\\n" in output.read_text()
    assert not list(folder.glob("*.ipynb")) and sorted(p.name for p in tmp_path.iterdir()) == [
        "01_cell.ipynb",
        "notebooks",
    ]


def test_a_kernel_that_dies_in_a_cell_is_one_sentence(tmp_path, folder, quick_kernels, capfd):
    said, _ = run_cell(tmp_path, folder, "import os; os.kill(os.getpid(), 9)")
    assert said == "its kernel died (SIGKILL), probably because memory ran out; lower the batch sizes and run again."
    assert "Traceback" not in capfd.readouterr().err


def test_a_kernel_that_dies_while_it_starts_is_one_sentence(tmp_path, folder, quick_kernels, monkeypatch, capfd):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'kernel_process' in ' '.join(sys.orig_argv): sys.exit('no room')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said, _ = run_cell(tmp_path, folder, "1")
    assert said == "its kernel ended with status 1 (SystemExit: no room); correct that, or free memory, and run again."
    assert "Traceback" not in capfd.readouterr().err


def test_a_temporary_folder_that_cannot_be_written_is_named_with_its_remedy(tmp_path, folder, quick_kernels):
    with pytest.raises(OSError, match=r"01_cell.ipynb cannot be written \(.*\); make room in the temporary folder, or"):
        run_cell(tmp_path, folder, f"import shutil; shutil.rmtree({str(folder)!r})")


def test_a_report_folder_that_cannot_be_written_is_named(tmp_path, folder, quick_kernels):
    with pytest.raises(OSError) as raised:
        run_cell(tmp_path, folder, f"import os; os.mkdir({str(tmp_path / '01_cell.ipynb')!r})")
    assert str(tmp_path / "01_cell.ipynb") in str(raised.value)


def test_a_broken_kernel_of_jupyter_does_not_matter(tmp_path, folder, quick_kernels, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["/gone/python"')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    said, _ = run_cell(tmp_path, folder, "1")
    assert said == ""


PARENT = """
import sys, time
from pathlib import Path
from searle_lib.study import kernels
from searle_lib.study.run_folder import RunFolder
kernel = kernels.ReadyKernels(Path.cwd(), 1, RunFolder().path).kernels[0]
print(kernel.process.pid, flush=True)
time.sleep(99)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a kernel looks for its parent once a second")
@pytest.mark.parametrize("moment", [0.0, 0.3, 3.0])
def test_a_kernel_ends_with_its_killed_parent(moment, tmp_path_factory):
    places = os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("t"))}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=places, stdout=subprocess.PIPE, text=True)
    kernel = psutil.Process(int(parent.stdout.readline()))
    time.sleep(moment)
    parent.kill()
    parent.wait()
    psutil.wait_procs([kernel], LIMIT)
    assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE
