import hashlib
import json
import multiprocessing
import random
import re
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from searle_lib.releases import downloads

OLD, NEW = (random.Random(seed).randbytes(300_000) for seed in (1, 2))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    """Serves `server.site`, in one of the ways that it names, and notes what was asked and sent."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        site = self.server.site
        noted = {"range": self.headers["Range"], "if_range": self.headers["If-Range"], "sent": 0}
        site.asked.append(noted)
        if site.gone:
            return self.send_error(404)
        total, start, body = len(site.content), 0, site.content
        wanted = re.fullmatch(r"bytes=(\d+)-", noted["range"] or "")
        strong = None if site.etag.startswith("W/") else site.etag
        if wanted and site.ranges and (not site.if_range or noted["if_range"] in (None, strong)):
            start = int(wanted[1])
        if start and start >= total:
            noted["status"], body = 416, b""
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
        elif start:
            noted["status"], body = 206, body[start - site.offset :]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start - site.offset}-{total - 1}/{total}")
        else:
            noted["status"] = 200
            self.send_response(200)
        self.send_header("Content-Type", site.kind)
        if site.etag:
            self.send_header("ETag", site.etag)
        if not site.chunked:
            self.send_header("Content-Length", str(len(body)))
        elif noted["status"] != 416:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        time.sleep(site.pause)
        sent = body[: site.cut]
        noted["sent"] = len(sent)
        if site.chunked and sent:
            sent = f"{len(sent):x}\r\n".encode() + sent + b"\r\n" + (b"" if site.cut else b"0\r\n\r\n")
        self.wfile.write(sent)


@pytest.fixture
def site(monkeypatch):
    """A web site with one file; `cut` ends an answer after so many bytes, as a lost connection does."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.site = SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_port}/weights.pt",
        content=OLD,
        etag='"old"',
        kind="application/octet-stream",
        chunked=False,  # which leaves the length unsaid
        ranges=True,
        if_range=True,
        offset=0,  # how many bytes before the place asked for it begins
        cut=None,
        pause=0,
        gone=False,
        asked=[],
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "weights.pt"


def names(path):
    return sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock")


def cut_off(site, path, after=100_000):
    site.cut = after
    with pytest.raises(ConnectionError) as problem:
        downloads.fetch(site.url, path)
    site.cut = None
    return str(problem.value)


def test_a_fetched_file_is_whole_and_pinned(site, path):
    assert downloads.fetch(site.url, path) == path
    assert path.read_bytes() == OLD
    assert path.with_name("weights.pt.sha256").read_text() == f"{sha256(OLD)}  weights.pt\n"
    assert names(path) == ["weights.pt", "weights.pt.sha256"]


def test_a_file_that_is_there_is_not_fetched_again(site, path):
    for _ in range(2):
        downloads.fetch(site.url, path, sha256(OLD).upper())
    assert len(site.asked) == 1


def test_progress_counts_the_bytes_of_the_whole_file(site, path, capsys):
    cut_off(site, path)
    downloads.fetch(site.url, path)
    last = re.split(r"[\r\n]+", capsys.readouterr().err.strip())[-1]
    assert last.startswith("weights.pt: 100%") and "300k/300k" in last


def test_a_cut_off_download_goes_on_from_where_it_stopped(site, path):
    assert cut_off(site, path) == (
        "weights.pt came to 100,000 of 300,000 bytes (the connection ended); run again, it goes on from there."
    )
    assert path.with_name("weights.pt.part").read_bytes() == OLD[:100_000]
    assert not path.exists()
    downloads.fetch(site.url, path)
    assert path.read_bytes() == OLD
    assert site.asked[1] == {"range": "bytes=100000-", "if_range": '"old"', "sent": 200_000, "status": 206}
    assert names(path) == ["weights.pt", "weights.pt.sha256"]


def test_a_download_that_is_cut_off_twice_goes_on_twice(site, path):
    cut_off(site, path)
    assert "came to 150,000 of 300,000 bytes" in cut_off(site, path, 50_000)
    downloads.fetch(site.url, path, sha256(OLD))
    assert [noted["sent"] for noted in site.asked] == [100_000, 50_000, 150_000]


def test_a_weak_etag_is_enough_to_go_on(site, path):
    site.etag = 'W/"old"'
    cut_off(site, path)
    downloads.fetch(site.url, path)
    assert path.read_bytes() == OLD
    assert site.asked[1]["sent"] == 200_000


def test_a_server_without_ranges_makes_it_start_over(site, path):
    site.ranges = False
    cut_off(site, path)
    downloads.fetch(site.url, path)
    assert path.read_bytes() == OLD
    assert [noted["status"] for noted in site.asked] == [200, 200]


CHANGES = [
    pytest.param(*etags, length, id=f"{kind}-{length // 1000}kB")
    for kind, *etags in (("strong", '"old"', '"new"'), ("weak", 'W/"old"', 'W/"new"'), ("none", "", ""))
    for length in (300_000, 250_000, 100_000, 60_000)
    if kind != "none" or length != len(OLD)  # which only a published sha256 can tell
]


@pytest.mark.parametrize("etag, changed, length", CHANGES)
@pytest.mark.parametrize("if_range", [True, False], ids=["obeyed", "ignored"])
def test_a_file_that_changed_meanwhile_comes_whole_and_unmixed(site, path, if_range, etag, changed, length):
    site.etag = etag
    site.if_range = if_range
    cut_off(site, path)
    site.content, site.etag = NEW[:length], changed
    downloads.fetch(site.url, path)
    assert path.read_bytes() == NEW[:length]


def test_a_mixture_that_nothing_but_the_published_sha256_tells_is_refused_and_then_fetched_anew(site, path):
    site.etag = ""
    cut_off(site, path)
    site.content = NEW
    with pytest.raises(ValueError, match="not the file published"):
        downloads.fetch(site.url, path, sha256(NEW))
    downloads.fetch(site.url, path, sha256(NEW))
    assert path.read_bytes() == NEW


def test_an_answer_that_begins_elsewhere_than_asked_is_not_appended(site, path):
    cut_off(site, path)
    site.offset = 10
    downloads.fetch(site.url, path)
    assert path.read_bytes() == OLD


def test_a_part_from_another_address_is_not_continued(site, path):
    cut_off(site, path)
    site.content = NEW
    downloads.fetch(site.url + "?version=2", path)
    assert path.read_bytes() == NEW
    assert site.asked[-1]["range"] is None


def test_a_part_without_its_origin_is_not_continued(site, path):
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(NEW[:1000])
    downloads.fetch(site.url, path)
    assert path.read_bytes() == OLD


def test_a_download_killed_before_the_renaming_needs_no_network(path):
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(OLD)
    facts = {"url": "http://127.0.0.1:9/weights.pt", "validator": "", "size": len(OLD)}
    path.with_name("weights.pt.part.json").write_text(json.dumps(facts))
    downloads.fetch(facts["url"], path)
    assert path.read_bytes() == OLD
    assert names(path) == ["weights.pt", "weights.pt.sha256"]


def test_a_file_of_unannounced_length_comes_whole(site, path):
    site.chunked = True
    downloads.fetch(site.url, path)
    assert path.read_bytes() == OLD


def test_a_file_of_unannounced_length_goes_on_where_it_was_cut_off(site, path):
    site.chunked = True
    assert "of an unknown number of bytes" in cut_off(site, path)
    kept = path.with_name("weights.pt.part").stat().st_size
    assert 0 < kept <= 100_000
    downloads.fetch(site.url, path)
    assert path.read_bytes() == OLD
    assert site.asked[1]["sent"] == len(OLD) - kept


def test_a_file_that_nothing_tells_from_another_is_not_continued(site, path):
    site.chunked, site.etag = True, ""
    cut_off(site, path)
    site.content = NEW
    downloads.fetch(site.url, path)
    assert path.read_bytes() == NEW


def test_a_file_of_unannounced_length_whose_rest_ends_early_is_not_whole(site, path):
    site.chunked = True
    cut_off(site, path)
    site.chunked = False
    assert "of 300,000 bytes" in cut_off(site, path, 50_000)


def test_when_nothing_lies_beyond_the_part_it_is_whole(site, path):
    site.chunked = True
    cut_off(site, path)
    path.with_name("weights.pt.part").write_bytes(OLD)
    downloads.fetch(site.url, path)
    assert path.read_bytes() == OLD
    assert [noted["status"] for noted in site.asked] == [200, 416]


def test_a_wrong_sha256_is_refused_and_nothing_is_left(site, path):
    with pytest.raises(ValueError) as problem:
        downloads.fetch(site.url, path, sha256(NEW))
    assert str(problem.value) == (
        f"weights.pt from {site.url} is not the file published (its sha256 is {sha256(OLD)[:12]}..., not "
        f"{sha256(NEW)[:12]}...); it was not kept, run again to fetch it anew."
    )
    assert names(path) == []


def test_a_file_that_differs_from_the_published_sha256_is_refused(site, path):
    downloads.fetch(site.url, path)
    with pytest.raises(ValueError) as problem:
        downloads.fetch(site.url, path, sha256(NEW))
    assert str(problem.value) == (
        f"{path} is not the file published (its sha256 is {sha256(OLD)[:12]}..., not {sha256(NEW)[:12]}...); "
        "delete it and weights.pt.sha256 to fetch it again."
    )
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("look", [downloads.pinned, lambda path: downloads.fetch("http://127.0.0.1:9/", path)])
def test_a_file_that_differs_from_its_pin_is_refused(site, path, look):
    downloads.fetch(site.url, path)
    path.write_bytes(NEW)
    with pytest.raises(ValueError) as problem:
        look(path)
    assert str(problem.value) == (
        f"{path} is not the file that first came (its sha256 is {sha256(NEW)[:12]}..., not {sha256(OLD)[:12]}...); "
        "delete it and weights.pt.sha256 to fetch it again."
    )


def test_a_file_put_there_by_hand_is_pinned_when_first_met(path):
    path.parent.mkdir()
    path.write_bytes(OLD)
    assert downloads.pinned(path) == downloads.pinned(path) == sha256(OLD)
    assert path.with_name("weights.pt.sha256").read_text().split() == [sha256(OLD), "weights.pt"]


def test_a_file_fetched_again_must_be_the_one_that_first_came(site, path):
    downloads.fetch(site.url, path)
    path.unlink()
    site.content = NEW
    with pytest.raises(ValueError, match=r"not the file that first came .* \(after deleting weights\.pt\.sha256"):
        downloads.fetch(site.url, path)
    assert names(path) == ["weights.pt.sha256"]


def test_a_published_sha256_outranks_the_pin(site, path):
    downloads.fetch(site.url, path)
    path.write_bytes(NEW)
    downloads.fetch(site.url, path, sha256(NEW))
    assert downloads.pinned(path) == sha256(NEW)


def test_without_network_the_sentence_names_the_address_and_the_place(path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/weights.pt"
    with pytest.raises(ConnectionError) as problem:
        downloads.fetch(url, path)
    assert str(problem.value) == (
        f"weights.pt cannot be fetched (Connection refused); download {url} on a machine with network and put it at "
        f"{path}."
    )
    assert names(path) == []


def test_a_server_that_falls_silent_is_not_waited_for_forever(path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ConnectionError, match=r"cannot be fetched \(timed out\)"),
    ):
        downloads.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pt", path)


def test_a_missing_page_is_told_with_its_status_and_keeps_the_part(site, path):
    cut_off(site, path)
    site.gone = True
    with pytest.raises(ConnectionError) as problem:
        downloads.fetch(site.url, path)
    assert str(problem.value) == (
        f"weights.pt cannot be fetched (HTTP 404 Not Found); download {site.url} on a machine with network and put "
        f"it at {path}."
    )
    assert path.with_name("weights.pt.part").read_bytes() == OLD[:100_000]


def test_a_web_page_in_place_of_the_file_is_not_taken_for_it(site, path):
    site.kind = "text/html; charset=utf-8"
    with pytest.raises(ConnectionError, match="sends a web page instead"):
        downloads.fetch(site.url, path)
    assert names(path) == []


def test_a_full_disk_keeps_the_part_and_says_how_much_is_missing(site, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a disk small enough to fill")
    try:
        path = disk / "weights.pt"
        with pytest.raises(OSError) as problem:
            downloads.fetch(site.url, path)
        kept = path.with_name("weights.pt.part").stat().st_size
        assert 0 < kept < 128 * 1024
        assert str(problem.value) == (
            f"{disk} is full, weights.pt needs {len(OLD) - kept:,} more bytes of 300,000; make room and run again, it "
            "goes on from there."
        )
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        downloads.fetch(site.url, path)
        assert path.read_bytes() == OLD
        assert site.asked[1]["sent"] == len(OLD) - kept
    finally:
        subprocess.run(["umount", disk], check=True)


def fetch_together(barrier, url, path):
    barrier.wait()
    downloads.fetch(url, path)


def test_two_processes_that_fetch_at_once_get_one_whole_file(site, path):
    site.pause = 0.5
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=fetch_together, args=(barrier, site.url, path)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert path.read_bytes() == OLD
    assert len(site.asked) == 1
