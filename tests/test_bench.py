"""The benchmark's pieces at small sizes: the library's result is that of the plain rendering; and its page."""

import pytest
import torch

from bench import instruments, large_gallery, page, pieces, ranking, runner
from searle_lib.store import shards

pytestmark = pytest.mark.slow

SMALL = {
    "oti": lambda: pieces.oti_steps(3, 2),
    "phi": lambda: pieces.phi_epoch(5, 2),
    "fti": lambda: pieces.fti_step(2),
    "association": lambda: pieces.association(3),
    "phrases": lambda: pieces.written_phrases(3, 4),
    "cirr": lambda: ranking.cirr(60, 90),
    "circo": lambda: ranking.circo(20, 300),
    "embedding": lambda: pieces.embedding(3),
}


@pytest.mark.parametrize("name", SMALL)
def test_both_ways_give_the_same_result(name):
    piece = SMALL[name]()
    assert piece.agree(piece.ours(), piece.plain())


def test_another_result_is_noticed():
    piece = pieces.oti_steps(3, 2)
    assert not piece.agree(piece.ours() * 1.01, piece.plain())


FACTS = {
    "instructions": "AVX2",
    "threads": 2,
    "took": "7:05",
    "gemm_gflops": {"cpu": {"float32": 300.2, "bfloat16": 160.1, "float16": 2.0}},
    "cuda": None,
    "work": {
        "cpu": [
            {
                "name": "OTI, float32",
                "what": "32 images",
                "seconds": {"ours": 0.6, "plain": 10.0},
                "times_faster": 16.67,
                "target": 15.0,
                "missed": False,
                "share_of_gemm": 0.75,
                "floor_seconds": 0.45,
                "time_goes_to": {"matrix products": 0.8, "the rest": 0.2},
                "peak_mib": {"ours": 700, "plain": 4000},
                "agree": True,
            }
        ]
    },
    "growth": {
        title: {"unit": "images", "seconds": {8: 0.1, 16: 0.2, 32: 0.4}, "exponent": 1.0}
        for title in ("OTI", "ranking")
    },
}


def test_the_page_stands_alone_and_says_what_was_measured(tmp_path):
    text = page.write(tmp_path / "index.html", FACTS)
    html = (tmp_path / "index.html").read_text()
    assert "16.7" in text and "75%" in text and "700 / 4,000\N{NO-BREAK SPACE}MiB" in text
    assert "data:image/png" in html and "no CUDA device" in html and "http" not in html.replace("http-equiv", "")


def test_with_cuda_the_same_table_stands_there(tmp_path):
    facts = FACTS | {"cuda": "NVIDIA H100", "work": FACTS["work"] | {"cuda": FACTS["work"]["cpu"]}}
    facts |= {"gemm_gflops": FACTS["gemm_gflops"] | {"cuda": {"float32": 40_000.0, "bfloat16": 500_000.0}}}
    text = page.write(tmp_path / "index.html", facts)
    assert text.count("OTI, float32") == 2 and "NVIDIA H100: matrix products reach float32 40,000" in text
    assert (tmp_path / "index.html").read_text().count("OTI, float32") == 2


def test_a_missed_goal_is_told_with_its_floor_and_where_the_time_goes(tmp_path):
    row = FACTS["work"]["cpu"][0] | {"target": 20.0, "missed": True}
    text = page.write(tmp_path / "index.html", FACTS | {"work": {"cpu": [row]}})
    said = "OTI, float32: the goal is 20 times, 16.7 were measured. The arithmetic that is needed takes 0.450 s at the"
    assert f"{said} machine's own rate; that would be 22.2 times." in text
    assert "Our time goes to: 80% matrix products, 20% the rest." in text
    assert "22.2 times" in (tmp_path / "index.html").read_text()


def test_a_half_precision_slower_than_float32_is_skipped_and_the_table_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(runner.PIECES, "OTI", lambda device: pieces.oti_steps(3, 1))
    monkeypatch.setattr(runner, "ROUNDS", 1)
    rates = {"float32": 100.0, "bfloat16": 8.0, "float16": 50.0}
    rows = runner.measure_work("OTI", "cpu", rates)
    assert [row["name"] for row in rows] == ["OTI, float32", "OTI, bfloat16", "OTI, float16"]
    assert rows[0]["agree"] and rows[0]["peak_mib"]["plain"] > rows[0]["peak_mib"]["ours"]
    text = page.write(tmp_path / "index.html", FACTS | {"work": {"cpu": rows}})
    for said in ("skipped: slower than float32 here (12.5 times)", "skipped: slower than float32 here (2.0 times)"):
        assert said in text and said in (tmp_path / "index.html").read_text()


def test_rates_are_measured_in_every_precision():
    rates = instruments.product_rates("cpu", limit=0.1)
    assert list(rates) == ["float32", "bfloat16", "float16"] and min(rates.values()) > 0


def test_memory_is_what_a_run_adds_even_when_earlier_work_took_more():
    torch.ones(100 * 2**20)  # 400 MiB, free again
    ran = instruments.run(lambda: torch.ones(50 * 2**20).sum(), "cpu")
    assert ran.mib == pytest.approx(200, abs=20) and ran.result == 50 * 2**20


def test_progress_is_one_plain_line_a_part(capsys):
    progress = instruments.Progress(11)
    progress.next("cpu: phi")
    assert capsys.readouterr().err == "[ 1/11]  0:00  cpu: phi\n"


def test_shares_of_time_add_up_and_know_a_matrix_product(capfd):
    x = torch.randn(1500, 1500)
    found = instruments.shares(lambda: x @ x)
    assert sum(found.values()) == pytest.approx(1, abs=0.01) and found["matrix products"] > 0.5
    assert capfd.readouterr() == ("", "")


def test_a_large_gallery_is_ranked_and_its_goal_is_held_to_the_slower_of_two_rates(tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    monkeypatch.setattr(large_gallery, "ROWS", 256)
    monkeypatch.setattr(large_gallery, "CENTRES", 50)
    shards.write(tmp_path / "gallery", 2000, 700, large_gallery.draw)
    facts = {name: part(tmp_path, 6) for name, part in large_gallery.PARTS.items()}
    assert facts["faiss"]["recall"] > 0.9 and facts["exact"]["GB"] > 0.1
    facts["exact"] |= {"GB": 2.9, "seconds": 19.0}
    facts |= {"reading": {"seconds": 10.0, "GB/s": 1.0, "cold": True}, "products again": facts["products"]}
    assert large_gallery.report(facts, 2000, 6) == 0 and "1.90 times the slower of the two" in capsys.readouterr().out
    facts["exact"]["seconds"] = 21.0
    assert large_gallery.report(facts, 2000, 6) == 1 and "missed" in capsys.readouterr().out
