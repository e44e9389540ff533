import hashlib
import multiprocessing
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pooch
import pytest

from searle_lib.releases import downloads

OLD, NEW = (random.Random(seed).randbytes(300_000) for seed in (1, 2))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    """Serve `server.site.content` up to byte `sent`, with a pause of so many seconds after a third of it."""

    def do_GET(self):
        site = self.server.site
        site.requests += 1
        if site.gone:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", site.kind)
        if site.announced:
            self.send_header("Content-Length", str(len(site.content)))
        self.end_headers()
        self.wfile.write(site.content[:100_000])
        time.sleep(site.pause)
        self.wfile.write(site.content[100_000 : site.sent])


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Answer, "log_message", lambda *_: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.site = SimpleNamespace(
        content=OLD, kind="application/octet-stream", announced=True, sent=None, pause=0, gone=False, requests=0
    )
    server.site.url = f"http://127.0.0.1:{server.server_port}/weights.pt"
    server.handle_error = lambda *_: None  # a client that no longer waits
    threading.Thread(target=server.serve_forever, args=(0.02,)).start()
    yield server.site
    server.shutdown()
    server.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "weights.pt"


def names(path):
    return sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock")


def test_a_fetched_file_is_whole_and_pinned(site, path):
    assert downloads.fetch(site.url, path).read_bytes() == OLD
    assert path.with_name("weights.pt.sha256").read_text() == f"{sha256(OLD)}  weights.pt\n"


def test_a_file_of_unannounced_length_is_fetched(site, path):
    site.announced = False
    assert downloads.fetch(site.url, path).read_bytes() == OLD


def test_a_file_with_a_published_sha256_is_fetched_once_and_nothing_is_written_later(site, path):
    downloads.fetch(site.url, path, sha256(OLD).upper())
    path.with_name("weights.pt.lock").unlink()
    downloads.fetch(site.url, path, sha256(OLD).upper())
    assert site.requests == 1
    assert list(path.parent.iterdir()) == [path]


def test_a_fetched_file_is_as_readable_to_others_as_its_pin(site, path):
    downloads.fetch(site.url, path)
    assert path.stat().st_mode == path.with_name("weights.pt.sha256").stat().st_mode


def test_only_the_progress_of_the_named_file_is_printed(site, path, capsys, monkeypatch):
    monkeypatch.setattr(pooch.get_logger().handlers[0], "stream", sys.stderr)  # not the one of its import
    downloads.fetch(site.url, path)
    out, err = capsys.readouterr()
    lines = err.replace("\r", "\n").split("\n")
    assert "weights.pt: 100%" in lines[-2] and "300k/300k" in lines[-2]
    assert out == "" and all(line.startswith("weights.pt: ") for line in lines if line)


def test_a_connection_cut_off_is_told_and_leaves_nothing(site, path):
    site.sent = 200_000
    with pytest.raises(ConnectionError, match=r"^weights.pt cannot be fetched \(.*200,?000.*\); run again"):
        downloads.fetch(site.url, path)
    assert names(path) == []


def test_a_wrong_published_sha256_is_refused_and_nothing_is_left(site, path):
    with pytest.raises(ValueError, match=rf"^weights.pt from {site.url} is not the file published; it was not kept"):
        downloads.fetch(site.url, path, sha256(NEW))
    assert names(path) == []


def test_a_file_that_differs_from_the_published_sha256_is_refused(site, path):
    downloads.fetch(site.url, path)
    with pytest.raises(ValueError, match=rf"^{path} is not the file published .* not {sha256(NEW)[:12]}.*; delete it"):
        downloads.fetch(site.url, path, sha256(NEW))


def test_a_file_fetched_again_must_be_the_one_that_first_came(site, path):
    downloads.fetch(site.url, path)
    path.unlink()
    site.content = NEW
    with pytest.raises(ValueError, match=r"not the file that first came; .* \(after deleting weights\.pt\.sha256"):
        downloads.fetch(site.url, path)
    assert names(path) == ["weights.pt.sha256"]


def test_a_file_put_there_by_hand_is_pinned_and_another_one_is_refused_later(site, path):
    path.parent.mkdir()
    path.write_bytes(OLD)
    downloads.fetch(site.url, path)
    path.write_bytes(NEW)
    with pytest.raises(ValueError, match="is not the file that first came"):
        downloads.fetch(site.url, path)


def test_a_missing_page_is_told_with_its_status(site, path):
    site.gone = True
    with pytest.raises(ConnectionError, match=r"^weights.pt cannot be fetched \(HTTP 404 Not Found\); run again"):
        downloads.fetch(site.url, path)


def test_a_web_page_in_place_of_the_file_is_refused(site, path):
    site.kind = "text/html; charset=utf-8"
    with pytest.raises(ConnectionError, match="the server sends a web page instead"):
        downloads.fetch(site.url, path)
    assert names(path) == []


def test_a_web_page_that_was_asked_for_is_fetched(site, path):
    site.kind = "text/html"
    assert downloads.fetch(site.url.replace(".pt", ".html?page=1"), path).read_bytes() == OLD


def test_a_server_that_falls_silent_is_not_waited_for(site, path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    site.pause = 2
    with pytest.raises(ConnectionError, match=r"cannot be fetched \(timed out\)"):
        downloads.fetch(site.url, path)


def test_without_network_the_url_and_the_path_are_told(path):
    url = "http://127.0.0.1:9/weights.pt"
    told = rf"^weights.pt cannot be fetched \(Connection refused\); .* download {url} .* and put it at {path}\.$"
    with pytest.raises(ConnectionError, match=told):
        downloads.fetch(url, path)


def test_a_folder_that_may_not_be_written_is_named(site):
    with pytest.raises(PermissionError, match=f"^/sys/searle may not be written to keep {site.url}; set HOME"):
        downloads.fetch(site.url, Path("/sys/searle/weights.pt"))  # not even root makes folders in /sys


def test_a_full_disk_is_told_and_keeps_no_part(site, tmp_path):
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this user may not mount a disk small enough to fill")
    try:
        with pytest.raises(OSError, match=f"^{disk} is full; make room and run again to fetch {site.url}"):
            downloads.fetch(site.url, disk / "weights.pt")
        assert names(disk / "weights.pt") == []
    finally:
        subprocess.run(["umount", disk], check=True)


def fetch_together(barrier, url, path):
    barrier.wait()
    downloads.fetch(url, path)


def test_two_processes_that_fetch_at_once_get_one_whole_file(site, path):
    site.pause = 0.5
    spawn = multiprocessing.get_context("spawn")
    arguments = spawn.Barrier(2), site.url, path
    both = [spawn.Process(target=fetch_together, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert (path.read_bytes(), site.requests) == (OLD, 1)
