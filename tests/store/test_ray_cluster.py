"""Ranges on a real Ray cluster: two nodes on loopback, with a raylet each."""

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import ray
import torch
import torch.nn.functional as F

from bench.nodes import nodes
from searle_lib import ranking
from searle_lib.store import bars, ray_cluster, ray_worker, shards
from searle_lib.store.artefacts import Store
from searle_lib.store.executors import SERIAL
from searle_lib.store.files import Unwritable
from searle_lib.store.ray_cluster import Ray
from searle_lib.store.reading import PACKAGE

pytestmark = pytest.mark.slow
ROWS, SIZE = 40, 5


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each."""
    with nodes(1, 1) as running:
        yield running
        ray.shutdown()


@pytest.fixture(scope="module")
def executor(cluster):
    """An executor on both nodes; its workers live until a test ends them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    executor = Ray(cluster.address, 1.0, "cpu")
    executor.connect()
    wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2)
    yield executor
    executor.close()
    torch.set_num_threads(threads)


def wait_until(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def computed_by(process, seconds=0.2):
    """A function for shards that tells which process computed each row, and when."""

    def work(first, end):
        time.sleep(seconds)
        rows = torch.arange(first, end)
        return {"rows": rows, "process": torch.full_like(rows, os.getpid())}

    return work


def test_the_workers_of_both_nodes_compute_what_this_process_would(tmp_path, executor, cluster):
    def work(first, end):
        time.sleep(0.3)
        return {"rows": torch.arange(first, end).float().sin()}

    shards.write(tmp_path / "serial", ROWS, SIZE, work)
    shards.write(tmp_path / "ray", ROWS, SIZE, work, executor=executor)
    expected, actual = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("serial", "ray")
    )
    assert actual == expected and len(actual) == ROWS // SIZE
    assert [len(cluster.named("Actor", number)) for number in (0, 1)] == [1, 1]


def test_a_worker_saves_where_it_sees_the_disk_of_the_notebook(tmp_path, executor, monkeypatch):
    monkeypatch.setattr(shards.Shards, "__call__", lambda *arguments: pytest.fail("this process saved a shard"))
    shards.write(tmp_path, ROWS, SIZE, computed_by(os.getpid()), executor=executor)
    assert len(list(tmp_path.iterdir())) == ROWS // SIZE


def test_finished_ranges_are_not_computed_again(tmp_path, executor):
    shards.write(tmp_path, ROWS, SIZE, computed_by(os.getpid()), executor=executor)
    (tmp_path / f"rows-{SIZE:09d}-{2 * SIZE:09d}.safetensors").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    shards.write(tmp_path, ROWS, SIZE, computed_by(os.getpid()), executor=executor)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(after) == len(before) + 1 and before.items() <= after.items()


def test_without_somewhere_to_save_the_results_come_back(executor):
    computed = dict(executor.map(lambda first, end: first * end, [(0, 2), (2, 5)]))
    assert computed == {(0, 2): 0, (2, 5): 10}


def test_workers_rank_the_blocks_of_a_gallery_as_one_process_does(executor, monkeypatch):
    monkeypatch.setattr(ranking, "ROWS", 40)
    vectors = F.normalize(torch.randn(206, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    vectors[150] = vectors[3]  # a tie between two blocks
    rows = {"k": 7, "candidates": torch.tensor([[3, 150], [80, -1]]), "excluded": torch.tensor([10, 80])}
    expected, actual = (
        vars(ranking.search_blocks(vectors[:2], vectors, executor=one, **rows)) for one in (SERIAL, executor)
    )
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_a_refusal_on_a_worker_is_the_sentence_with_its_node(tmp_path, executor):
    from searle_lib.data import images

    with pytest.raises(FileNotFoundError, match=r"^node \S+: image .*none\.png does not exist"):
        shards.write(tmp_path, 4, 2, lambda first, end: images.read(Path("none.png")), executor=executor)


def test_a_mistake_on_a_worker_shows_its_traceback(tmp_path, executor):
    with pytest.raises(ray.exceptions.RayTaskError, match="ZeroDivisionError"):
        shards.write(tmp_path, 4, 2, lambda first, end: 1 / 0, executor=executor)


def test_a_refusal_ends_every_worker(tmp_path, executor, cluster):
    def work(first, end):
        if first == 0:
            raise ZeroDivisionError
        time.sleep(60)

    with pytest.raises(ray.exceptions.RayTaskError):
        shards.write(tmp_path, ROWS, SIZE, work, executor=executor)
    wait_until(lambda: not cluster.named("Actor"), 2)


def test_the_ranges_of_a_killed_worker_go_to_the_others(tmp_path, executor, capsys):
    def work(first, end):
        flag = tmp_path / "killed"
        if first == 10 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"rows": torch.arange(first, end)}

    computed = shards.run(tmp_path / "shards", ROWS, SIZE, work, executor=executor)
    assert computed["rows"].tolist() == list(range(ROWS))
    assert "died" in capsys.readouterr().out


def test_a_range_that_kills_its_workers_is_given_up(tmp_path, executor):
    def work(first, end):
        if first == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"rows": torch.arange(first, end)}

    with pytest.raises(RuntimeError, match="rows 10 to 14 ended 3 workers"):
        shards.write(tmp_path, ROWS, SIZE, work, executor=executor)


def test_what_a_worker_says_is_said_once(tmp_path, executor, capsys):
    def work(first, end):
        bars.say("memory ran short")
        return {"rows": torch.arange(first, end)}

    shards.write(tmp_path, ROWS, SIZE, work, executor=executor)
    said = [line for line in capsys.readouterr().out.splitlines() if "memory ran short" in line]
    assert len(said) == 1


def test_the_bar_shows_the_workers(tmp_path, executor, monkeypatch):
    monkeypatch.setenv(bars.FILE, str(tmp_path / "bar.json"))
    shown = []
    monkeypatch.setattr(bars.ReportedBar, "set_postfix_str", lambda bar, text: shown.append(text))
    shards.write(tmp_path / "shards", ROWS, SIZE, computed_by(os.getpid(), 0.5), executor=executor)
    assert "2 workers" in shown


def test_a_worker_that_writes_for_too_long_is_a_sentence(tmp_path, executor, monkeypatch, capsys):
    monkeypatch.setattr(ray_cluster, "SLOW_DISK", 1.0)
    monkeypatch.setattr(ray_cluster, "LOST_DISK", 4.0)
    os.mkfifo(tmp_path / "pipe")  # whoever opens it to write waits for a reader, as for a disk that does not answer

    class Waiting(shards.Shards):
        def __call__(self, result, first, end):
            (self.folder / "pipe").open("w")

    with pytest.raises(Unwritable, match=r"has been saving a shard to .*; mend its disk"):
        list(executor.map(lambda first, end: None, [(0, 1)], Waiting(tmp_path, 1)))
    assert capsys.readouterr().out.count("does that answer?") == 1


def test_the_cluster_says_how_many_workers_it_has_room_for(executor):
    assert executor.describe() == "2 nodes, with room for 2 workers of 1 CPUs each"


def test_a_worker_needs_a_node_with_enough_cpus(tmp_path, executor, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ValueError, match="a worker takes 2 CPUs, and the largest node of the cluster has 1; set OMP_N"):
        shards.write(tmp_path, ROWS, SIZE, computed_by(os.getpid()), executor=executor)


def test_a_study_on_gpus_needs_a_node_with_gpus(tmp_path, executor):
    with pytest.raises(ValueError, match="a worker takes 1 GPUs, and the largest node of the cluster has 0; set devi"):
        shards.write(tmp_path, ROWS, SIZE, computed_by(os.getpid()), executor=Ray(executor.address, 1.0, "cuda"))


def test_workers_that_died_since_the_last_stage_cost_no_range_a_try(tmp_path, cluster, executor):
    shards.write(tmp_path / "first", ROWS, SIZE, computed_by(os.getpid(), 0.5), executor=executor)
    for _ in range(ray_cluster.TRIES + 1):
        for process in cluster.named("Actor"):
            process.kill()
        computed = dict(executor.map(lambda first, end: first, [(0, 1)]))
        assert computed == {(0, 1): 0}


def test_an_interrupt_ends_the_workers_within_two_seconds(cluster, executor):
    timer = threading.Timer(8, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(executor.map(lambda first, end: time.sleep(60), [(0, 1), (1, 2)]))
    wait_until(lambda: not cluster.named("Actor") and not cluster.named("Files"), 2)


def test_workers_without_work_end(cluster, executor, monkeypatch):
    monkeypatch.setattr(ray_cluster, "IDLE", 0.5)
    assert dict(executor.map(lambda first, end: first, [(0, 1)])) == {(0, 1): 0}
    wait_until(lambda: not cluster.named("Actor"), 10)


@pytest.fixture(scope="module")
def head():
    """A head without CPUs, to which a test adds the node that it needs."""
    ray.shutdown()
    with nodes(0) as running:
        yield running
        ray.shutdown()


@pytest.fixture
def node(head):
    """Start the one node that computes; its command runs in a namespace of its own after some shell commands."""
    executors = []

    def start(mounts):
        head.start(1, before=("unshare", "-m", "sh", "-ec", f'{mounts}\nexec "$@"', "sh"))
        executors.append(Ray(head.address, 1.0, "cpu"))
        executors[0].connect()
        wait_until(lambda: sum(node["Alive"] and node["Resources"].get("CPU", 0) for node in ray.nodes()) == 1)
        return executors[0]

    yield start
    executors[0].end_workers()
    head.kill(1)
    wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="only root may give a node other disks",
)


@needs_namespaces
def test_a_node_with_another_library_is_refused(tmp_path, node):
    shutil.copytree(PACKAGE, tmp_path / "searle_lib", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "searle_lib" / "plain.py").open("a") as file:
        file.write("# another version\n")
    executor = node(f"mount --bind {tmp_path}/searle_lib {PACKAGE}")
    with pytest.raises(
        ValueError, match=r"^node \S+ has searle_lib \w+, and this notebook \w+; install the same there"
    ):
        shards.write(tmp_path / "shards", ROWS, SIZE, computed_by(os.getpid()), executor=executor)
    assert not list((tmp_path / "shards").glob("rows-*"))


@needs_namespaces
def test_a_node_without_the_disk_of_the_notebook_sends_its_results(tmp_path, node):
    executor = node(f"mount -t tmpfs none {tmp_path}")
    computed = shards.run(tmp_path / "shards", ROWS, SIZE, computed_by(os.getpid(), 0), executor=executor)
    assert computed["rows"].tolist() == list(range(ROWS)) and os.getpid() not in computed["process"]


@needs_namespaces
def test_a_node_with_other_weights_is_refused(tmp_path, node, world):
    from searle_lib.backbone import embeddings
    from searle_lib.backbone.model import load_clip

    clip = tmp_path / "clip.pt"
    shutil.copy(world / "models" / "tiny-clip.pt", clip)
    backbone = load_clip(str(clip))
    weights = torch.load(clip, weights_only=True)
    torch.save({**weights, "logit_scale": torch.tensor(1.0)}, tmp_path / "other.pt")
    executor = node(f"mount --bind {tmp_path}/other.pt {clip}")
    store = Store(tmp_path / "store", "02_concepts", executor)
    pictures = sorted((world / "ImageNet1K").rglob("*.*"))[:2]
    table = pd.DataFrame({"image": [path.stem for path in pictures], "path": [str(path) for path in pictures]})
    with pytest.raises(ValueError, match=r"^node \S+: clip_model \S+clip.pt has other weights here"):
        embeddings.encode(store, backbone, "few", table)


@needs_namespaces
def test_a_node_that_may_not_write_is_refused(tmp_path, node):
    folder = tmp_path / "shards"
    folder.mkdir()
    executor = node(f"mount --bind {tmp_path} {tmp_path}\nmount -o remount,bind,ro {tmp_path}")
    with pytest.raises(Unwritable, match=r"^node \S+: rows-\S+ cannot be written to .*Read-only file system"):
        shards.write(folder, ROWS, SIZE, computed_by(os.getpid(), 0), executor=executor)


@needs_namespaces
def test_a_full_disk_is_one_sentence(tmp_path, node):
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    try:
        executor = node("true")
        with pytest.raises(Unwritable, match=r"^node \S+: the disk of \S+ is full"):
            shards.write(folder, 2, 1, lambda first, end: {"x": torch.zeros(end - first, 1 << 16)}, executor=executor)
    finally:
        executor.end_workers()
        subprocess.run(["umount", "-l", str(folder)], check=True)


@needs_namespaces
def test_a_node_without_the_disk_copies_the_rows_that_a_stage_reads(tmp_path, node):
    shards.write(tmp_path / "bank", 10, 4, lambda first, end: {"rows": torch.arange(first, end) * 10})
    bank = shards.memory_map(tmp_path / "bank")["rows"]
    executor = node(f"mount -t tmpfs none {tmp_path}")
    looked_up = shards.run(
        tmp_path / "shards", 10, 3, lambda first, end: {"x": bank[torch.arange(first, end)]}, executor=executor
    )
    assert looked_up["x"].tolist() == [row * 10 for row in range(10)]


def test_an_executor_whose_connection_has_ended_closes_and_opens_no_other():
    ray.shutdown()
    executor = Ray("127.0.0.1:1", 1.0, "cpu", workers=[SimpleNamespace(actor=None)])
    executor.close()
    assert not executor.workers and not ray.is_initialized()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_copies_that_another_user_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_worker.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = ray_worker.folder_of_copies()
    assert folder.stat().st_mode & 0o777 == 0o700 and ray_worker.folder_of_copies() == folder
    os.chown(folder, 12345, 12345)
    with pytest.raises(PermissionError, match=f"{folder} belongs to another user; remove it, or set TMPDIR"):
        ray_worker.folder_of_copies()


@needs_namespaces
def test_a_node_whose_workers_cannot_start_is_given_up(tmp_path, node, monkeypatch, capsys):
    monkeypatch.setattr(ray_cluster, "WAIT_FOR_WORKER", 20.0)
    broken = tmp_path / "broken.py"
    broken.write_text("import os\nos._exit(1)\n")
    executor = node(f"mount --bind {broken} {PACKAGE}/store/ray_worker.py")
    with pytest.raises(
        ConnectionError, match="no worker of the Ray cluster has started for 20 s; look at `ray status`"
    ):
        shards.write(tmp_path / "shards", ROWS, SIZE, computed_by(os.getpid(), 0), executor=executor)
    assert capsys.readouterr().out.count("died") == ray_cluster.TRIES


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:x"])
def test_an_address_without_a_cluster_is_refused_at_once(tmp_path, address):
    ray.shutdown()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=f"no Ray cluster answers at ray_address {address} .*correct ray_address"):
        shards.write(tmp_path, ROWS, SIZE, computed_by(os.getpid(), 0), executor=Ray(address, 1.0, "cpu"))
    assert time.monotonic() - began < 10
