"""Real kernels: they have their imports, none outlives its run, and a dead one is one sentence."""

import ast
import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbclient.util import run_sync

from searle_lib.store import bars
from searle_lib.study import execution, interruption, kernels, run
from searle_lib.study.run_folder import RunFolder

pytestmark = pytest.mark.slow
LIMIT = 2.0  # seconds in which a kernel must end after its run


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
def started(tmp_path, folder):
    """Kernels in a folder of their own, which end with the test."""
    with contextlib.closing(kernels.Kernels(tmp_path, folder)) as started:
        yield started


def test_a_kernel_has_its_imports_but_no_name_of_theirs(started, tmp_path):
    question = "'searle_lib.evaluation.scores' in sys.modules, 'torch' in globals(), os.getcwd()"
    assert ask(started.start(), question) == (True, False, str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no lock is without a name")
def test_a_killed_kernel_leaves_no_lock_with_a_name(started):
    assert ask(started.start(), "__import__('multiprocessing').get_start_method()") == "fork"


def test_no_import_of_the_fork_server_opens_a_gpu():
    code = (
        "import importlib, torch\n"
        "torch.cuda._device_count_nvml = lambda: 1  # as if there were a GPU, which must not be opened before a fork\n"
        "torch._C._cuda_getDeviceCount = torch.cuda.init = None\n"
        "from searle_lib.study import kernels\n"
        "for name in kernels.IMPORTS[1:]: importlib.import_module(name)\n"
        "assert not torch.cuda.is_initialized()"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | run.ENVIRONMENT).returncode == 0


def test_a_kernel_imports_for_itself_once_the_library_was_edited(started, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "PACKAGE", tmp_path)  # other files than those that the fork server imported
    assert not ask(started.start(), "'searle_lib.evaluation.scores' in sys.modules")


def test_each_kernel_has_an_environment_and_a_file_of_bars_of_its_own(started, monkeypatch):
    monkeypatch.setenv("FIRST", "1")
    first = started.start()
    monkeypatch.delenv("FIRST")
    second = started.start()
    question = f"os.environ[{bars.FILE!r}], os.environ.get('FIRST')"
    assert first.bars != second.bars
    assert [ask(first, question), ask(second, question)] == [(str(first.bars), "1"), (str(second.bars), None)]


def test_no_kernel_is_left_when_a_run_closes(tmp_path, folder):
    started = kernels.Kernels(tmp_path, folder)
    processes = [psutil.Process(started.start().process.pid) for _ in range(2)]
    started.close()
    assert not any(process.is_running() for process in processes)
    assert interruption.cleanups[-1].__self__.path == folder


def run_cell(tmp_path, folder, source, root=None):
    """Run a notebook of one cell in a kernel, and return what `execute` says and the kernel's notebook."""
    path, output = tmp_path / "notebooks" / "01_cell.ipynb", tmp_path / "01_cell.ipynb"
    path.parent.mkdir()
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=metadata)
    nbformat.write(notebook, path)
    with contextlib.closing(kernels.Kernels(root or tmp_path, folder)) as started:
        return execution.execute(path, output, {}, started.start(), folder, lambda heading: None), output


def test_a_notebook_is_moved_from_the_temporary_folder_when_it_is_done(tmp_path, folder):
    said, output = run_cell(tmp_path, folder, "print(6 * 7)")
    assert said == "" and "42\\n" in output.read_text()
    assert not list(folder.glob("*.ipynb")) and sorted(p.name for p in tmp_path.iterdir()) == [
        "01_cell.ipynb",
        "notebooks",
    ]


def test_a_kernel_that_dies_in_a_cell_is_one_sentence(tmp_path, folder, capfd):
    said, _ = run_cell(tmp_path, folder, "import os; os.kill(os.getpid(), 9)")
    assert said == "its kernel died (SIGKILL), probably because memory ran out; lower the batch sizes and run again."
    assert "Traceback" not in capfd.readouterr().err


def test_a_kernel_that_dies_while_it_starts_is_one_sentence(tmp_path, folder, capfd):
    said, _ = run_cell(tmp_path, folder, "1", root=tmp_path / "absent")
    assert re.fullmatch(r"its kernel ended with status 1 \(FileNotFoundError: .*absent'\); correct that, or .*\.", said)
    assert "Traceback" not in capfd.readouterr().err


def test_a_kernel_that_cannot_be_forked_is_one_sentence(started, monkeypatch):
    def refuse(process):
        raise EOFError("unexpected EOF")

    monkeypatch.setattr(multiprocessing.context.ForkServerProcess, "start", refuse)
    with pytest.raises(OSError, match=r"^no kernel can start \(unexpected EOF\); free memory and run the same command"):
        started.start()


def test_a_temporary_folder_that_cannot_be_written_is_named_with_its_remedy(tmp_path, folder):
    with pytest.raises(OSError, match=r"01_cell.ipynb cannot be written \(.*\); make room in the temporary folder, or"):
        run_cell(tmp_path, folder, f"import shutil; shutil.rmtree({str(folder)!r})")


def test_a_report_folder_that_cannot_be_written_is_named(tmp_path, folder):
    with pytest.raises(OSError) as raised:
        run_cell(tmp_path, folder, f"import os; os.mkdir({str(tmp_path / '01_cell.ipynb')!r})")
    assert str(tmp_path / "01_cell.ipynb") in str(raised.value)


def test_a_broken_kernel_of_jupyter_does_not_matter(tmp_path, folder, monkeypatch):
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
started = kernels.Kernels(Path.cwd(), RunFolder().path)
print("imports", flush=True)
if sys.argv[1] == "kernel":
    started.start()
    print("kernel", flush=True)
time.sleep(99)
"""


def test_where_the_path_of_the_servers_socket_is_too_long_kernels_import_for_themselves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / ("x" * (60 - len(str(tmp_path_factory.getbasetemp()))))
    folder.mkdir()
    places = os.environ | {"TMPDIR": str(folder)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "kernel"], env=places, stdout=subprocess.PIPE, text=True)
    assert [parent.stdout.readline() for _ in range(2)] == ["imports\n", "kernel\n"]
    commands = [" ".join(child.cmdline()) for child in psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    parent.wait()
    assert any("multiprocessing.spawn" in command for command in commands)
    assert not any("multiprocessing.forkserver" in command for command in commands)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a kernel looks for its parent once a second")
@pytest.mark.parametrize("moment", ["imports", "kernel"])
def test_kernels_and_their_server_end_with_their_killed_parent(moment, tmp_path_factory):
    places = os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("t"))}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, moment], env=places, stdout=subprocess.PIPE, text=True)
    while parent.stdout.readline() != f"{moment}\n":
        assert parent.poll() is None
    time.sleep(0.3)  # a server in its first moments sees the end only after its imports
    descendants = psutil.Process(parent.pid).children(recursive=True)
    assert len(descendants) >= (3 if moment == "kernel" else 2)  # a resource tracker is among them
    parent.kill()
    parent.wait()
    alive = [process for process in psutil.wait_procs(descendants, LIMIT)[1]]
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)
