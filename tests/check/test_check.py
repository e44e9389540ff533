"""`check` on small data roots that are complete, broken or absent; its estimates against the real sizes and times."""

import dataclasses
import json
import math
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from conftest import leave_record
from open_clips import CONFIGS, config_with, write_clip

from searle_lib.backbone import embeddings
from searle_lib.check import estimates, findings, report, weights
from searle_lib.data import benchmarks
from searle_lib.data.images import Reader
from searle_lib.evaluation import other_models
from searle_lib.fti4cir import patches
from searle_lib.releases import searle_files
from searle_lib.reporting import stale_pages
from searle_lib.searle import phi, phrase_bank, phrases
from searle_lib.searle.concepts import read_vocabulary
from searle_lib.servers import scoring
from searle_lib.store import code
from searle_lib.store.artefacts import Store
from searle_lib.store.records import Study
from searle_lib.study import parameters, workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def values(world):
    """The mini study's parameters for the session's small world."""
    known = parameters.defaults(parameters.read_declarations(workspace.notebooks(ROOT)))
    return known | {
        "data_root": str(world),
        "clip_model": str(world / "models" / "tiny-clip.pt"),
        "language_model": str(world / "models" / "tiny-gpt-neo"),
        "vocabulary": str(world / "oidv7-class-descriptions.csv"),
        "captions_file": str(world / "ImageNet1K" / "blip_pairs.json"),
        "phi_batch_size": 8,
        "fti_batch_size": 8,
        "workers": 2,
    }


def place(folder):
    """A study whose artefacts and reports lie in a folder."""
    return Study("checked", ROOT, Store(folder / "artefacts"), folder / "reports")


@pytest.fixture(autouse=True)
def short_and_wide(monkeypatch):
    """Measure for a moment only, and print wide tables."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(estimates, "REPEATS", 1)
    monkeypatch.setattr(estimates, "SAMPLE_TEXTS", 8)
    monkeypatch.setattr(estimates, "_multiply_rate", lambda device: 1e12)


def run_check(capsys, values, study):
    code = report.report(values, study)
    return code, capsys.readouterr().out


def test_a_study_that_has_everything_is_ready(values, world, tmp_path, capsys, tiny):
    code, output = run_check(capsys, values, place(tmp_path))
    assert code == 0 and output.rstrip().endswith("ready.") and "✗" not in output
    assert tiny.sha256 in output and "24 listed, 24 readable" in output
    for what in ("disk, all", "memory", "time: OTI", "time: φ", "time: FTI4CIR's training", "time, all"):
        assert what in output


def test_another_model_is_checked_against_the_queries_of_the_study(values, world, tmp_path):
    (circo,) = benchmarks.load("circo", world, "val")
    (tmp_path / "circo.json").write_text(
        json.dumps({query: list(map(int, circo.gallery["image"])) for query in circo.queries["query"]})
    )
    evaluation = scoring.evaluate(tmp_path / "circo.json", "circo", world, name="Mine")
    other_models.add(tmp_path / "mine", "Mine", evaluation, [])
    values |= {"other_models": [str(tmp_path / "mine")]}
    (finding,) = findings.check_other_models(values, place(tmp_path))
    assert finding == findings.Finding("Mine", "", "scores of circo/val")
    (finding,) = findings.check_other_models(values | {"datasets": ["cirr"]}, place(tmp_path))
    assert finding.problems and "and the study evaluates none of them; score the model on" in finding.problems[0]
    assert not list(findings.check_other_models(values | {"data_root": "absent"}, place(tmp_path)))  # said elsewhere
    assert not list(findings.check_other_models(values | {"other_models": []}, place(tmp_path)))


def test_every_image_that_cannot_be_read_is_named_and_listed_in_a_file(values, world, tmp_path, capsys):
    data = shutil.copytree(world, tmp_path / "data", ignore=shutil.ignore_patterns("models"))
    dress, *_ = benchmarks.load("fashioniq", data, "val")
    gone, cut = map(Path, dress.gallery["path"][[2, 5]])
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    values |= {"data_root": str(data)}
    code, output = run_check(capsys, values, place(tmp_path))
    assert code == 1 and "✗   fashioniq/val/dress: images" in output
    assert f"1 of 20 images of fashioniq/val/dress are missing ({gone.stem}; the first should be {gone}; " in output
    assert f"problem: image {cut} cannot be decoded (100 bytes on disk" in output
    listed = (tmp_path / "reports" / "unreadable" / "fashioniq-val-dress.txt").read_text()
    assert listed == f"{gone}\n{cut}\n"
    code, output = run_check(capsys, values | {"missing_images": "report"}, place(tmp_path))
    assert code == 0 and "18 readable, 1 missing, 1 broken" in output.replace("\n", " ")


def test_images_are_decoded_once_for_all_checks(values, world, tmp_path, monkeypatch):
    study = place(tmp_path)
    first = [finding.observed for finding in findings.check_data(values, study)]
    monkeypatch.setattr(findings.readable.images, "read", None)
    assert [finding.observed for finding in findings.check_data(values, study)] == first


def test_a_wrong_root_is_reported_for_every_data_set(values, tmp_path, capsys):
    code, output = run_check(capsys, values | {"data_root": str(tmp_path / "elsewhere")}, place(tmp_path))
    assert code == 1 and "cannot be estimated before the data and the CLIP can be read." in output
    for name in ("FashionIQ", "CIRR", "CIRCO", "ImageNet1K/test"):
        assert f"{tmp_path}/elsewhere/{name} does not exist; put the data set there, or correct data_root." in output
    assert output.count("problem: ") == 4  # each once, though captions want ImageNet too


def test_the_published_sizes_are_expected_of_real_data(values, world, tmp_path):
    results = list(findings.check_data(values | {"world": "real"}, place(tmp_path)))
    table = {finding.subject: finding for finding in results}
    assert (
        table["circo/unlabeled: images"].expected == "123,403" and table["imagenet/test: images"].expected == "100,000"
    )
    assert table["cirr/val: queries"].problems == ()  # the study can run on it
    assert table["cirr/val: queries"].notes[0].startswith("cirr/val: queries: there are 24 and the published data set")
    union = findings.check_data(values | {"world": "real", "fashioniq_gallery": "union"}, place(tmp_path))
    assert "2,628" in [finding.expected for finding in union]


def test_before_the_data_are_here_their_published_sizes_are_counted(values, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report.published, "SHAPES", {"ViT-L/14": (64, 32, 2, 64, 8, 77, 49408, 64, 1, 2)})
    absent = {"world": "real", "data_root": str(tmp_path), "vocabulary": str(tmp_path / "names.csv")}
    absent |= {"clip_model": "ViT-L/14", "device": "cuda", "methods": ["SEARLE", "SEARLE-OTI"]}
    code, output = run_check(capsys, values | absent, place(tmp_path))
    assert code == 1 and "note: where to get CIRCO: annotations at github.com/miccunifi/CIRCO" in output
    assert "absent: FashionIQ val, CIRR val, CIRR test1, CIRCO val, CIRCO test, ImageNet test." in " ".join(
        output.split()
    )
    galleries = 3817 + 6346 + 5373 + 2297 + 2315 + 123_403
    assert f"{galleries + 100_000:,} images x" in output and f"{100_000 + 15_365:,} images x 60 steps" in output
    assert "with random weights in the size of ViT-L/14" in " ".join(output.split())


def leave_run(folder, values, notebook):
    """Leave the record and the page of a notebook that has run with these values."""
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    names = parameters.names_of_notebook(parameters.read_declarations(workspace.notebooks(ROOT)), notebook)
    own = parameters.result_parameters({name: values[name] for name in names})
    study = dataclasses.replace(place(folder), notebook=notebook, parameters=own)
    settings = {"data_root": values["data_root"]} if "data_root" in names else {}
    record = leave_record(study, code.notebook_code_digest(path), **settings)
    record.execution["cells"] = code.cells_digest(path)
    study.write(record)
    (study.reports / f"{notebook}.html").write_text(stale_pages.RECORD.format(record.digest))
    shutil.copy(path, study.reports)


def test_what_has_run_with_these_parameters_is_left_out(values, tmp_path, capsys):
    for notebook in ("02_concepts", "04_phi", "05_fti4cir"):
        leave_run(tmp_path, values, notebook)
    _, output = run_check(capsys, values | {"phi_epochs": 3}, place(tmp_path))
    finished = "02_concepts, 05_fti4cir"
    assert f"because they have run with these parameters: {finished}." in " ".join(output.split())
    assert "time: φ" in output and "time: FTI4CIR" not in output and "disk: patch tokens" not in output


def test_weights_that_do_not_belong_together_are_reported_with_the_others(values, world, tmp_path, capsys):
    wrong = searle_files.write_phi(tmp_path / "SEARLE_ViT-L14.pt", 1, phi.Phi(768, 768).state_dict())
    changed = values | {"phi_checkpoint": str(wrong), "methods": ["SEARLE", "FTI4CIR"], "captions_file": "nowhere.json"}
    changed |= {"blip_model": str(tmp_path / "no-blip")}
    code, output = run_check(capsys, changed, place(tmp_path))
    assert code == 1
    assert "is a φ for embeddings of 768 numbers and tokens of 768, but this CLIP has 128 and 128" in output
    assert f"blip_model {tmp_path / 'no-blip'} is neither a folder nor in the hub's cache; run: hf download" in output


def test_a_device_that_is_not_there_is_reported(values, world, tmp_path, capsys):
    absent = "mps" if not torch.backends.mps.is_available() else "cuda:99"
    code, output = run_check(capsys, values | {"device": absent}, place(tmp_path))
    assert code == 1 and f"device {absent} is not available on this machine; set device to cpu or auto." in output


def test_a_disk_that_is_too_small_is_reported(values, world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 5, 5000))
    code, output = run_check(capsys, values, place(tmp_path))
    assert code == 1 and "5.0 kB free; set artefact_root to a larger disk." in output


@pytest.mark.slow
def test_artefacts_take_about_what_was_estimated(values, world, tmp_path, tiny):
    study = place(tmp_path)
    load = estimates.workload(values, study)
    sizes = estimates.disk(values, tiny, load)
    settings = phrases.Settings(phrases_per_concept=values["phrases_per_concept"])
    written = phrases.generate(study.store, read_vocabulary(values["vocabulary"]), values["language_model"], settings)
    phrase_bank.prepare(study.store, tiny, written)
    loaded = [benchmark for split in benchmarks.load_all(values["datasets"], world).values() for benchmark in split]
    galleries = embeddings.encode_lists(study.store, tiny, benchmarks.galleries_of(loaded))
    embeddings.keep_all_references(study.store, tiny, loaded, galleries)
    table = findings.annotations.imagenet(world)
    patches.encode(study.store, tiny, "captioned", table, Reader(8, 2))

    def taken(name):
        return sum(p.stat().st_size for p in study.store.root.glob(f"{name}*/**/*.safetensors"))

    assert sizes["phrase features and tokens"] == pytest.approx(taken("phrase-bank"), rel=0.02)
    assert sizes["patch tokens"] == pytest.approx(taken("patches"), rel=0.05)
    assert sizes["image embeddings"] == pytest.approx(taken("embeddings") + 24 * tiny.dimension * 4, rel=0.1)


def product(arithmetic):
    """The seconds that an arithmetic column states: a sum of products, whose last factor is in ms."""
    total = 0
    for term in arithmetic.removesuffix("; estimated").split(" + "):
        numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d,]+(?:\.\d+)?", term)]
        total += math.prod(numbers) / 1000
    return total


def test_the_time_of_a_stage_is_its_arithmetic(values, world, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(estimates, "_seconds_per_image", lambda *_: 0.0123)
    monkeypatch.setattr(estimates, "_seconds_per_text", lambda *_: 0.00456)
    load = estimates.workload(values, place(tmp_path))
    stages = {stage.name: stage for stage in estimates.times(values | {"oti_steps": 6000}, tiny, load)}
    phrases = stages.pop("phrases")
    assert set(stages) == {"image embeddings", "text features", "OTI", "φ", "FTI4CIR's training"}
    for stage in stages.values():
        assert stage.seconds == pytest.approx(product(stage.arithmetic)), stage
    images = sum(load.references.values()) + load.unlabeled
    assert stages["OTI"].arithmetic == f"{images} images x 6,000 steps x 2 texts x 3 passes x 4.56 ms; estimated"
    assert stages["FTI4CIR's training"].arithmetic.startswith(f"{load.unlabeled} images x 12.3 ms + 24 images x ")
    assert phrases.seconds > 0 and phrases.arithmetic.endswith("TFLOP/s; estimated, at least this")


def test_an_image_and_a_text_are_measured_on_this_machine(values, tmp_path, tiny, monkeypatch):
    monkeypatch.undo()  # measure in full
    load = estimates.workload(values, place(tmp_path))
    stages = {stage.name: stage for stage in estimates.times(values, tiny, load)}
    assert all(stage.seconds > 0 for stage in stages.values())
    without_images = estimates.times(values, tiny, dataclasses.replace(load, sample=()))
    assert without_images[0].seconds > 0


def test_an_oti_root_that_cannot_be_used_is_reported_among_all_else(values, world, tmp_path, capsys):
    changed = values | {"oti_root": str(tmp_path / "gone"), "concepts_root": str(tmp_path / "gone")}
    code, output = run_check(capsys, changed, place(tmp_path))
    assert code == 1 and "cirr/val: queries" in output and "vocabulary" in output
    assert f"problem: concepts_root {tmp_path / 'gone'} does not exist; correct it, or leave it empty" in output


def test_with_report_the_number_of_remaining_queries_is_reported_and_when_none_is(values, world, tmp_path, capsys):
    data = shutil.copytree(world, tmp_path / "data", ignore=shutil.ignore_patterns("models"))
    (val,) = benchmarks.load("cirr", data, "val")
    paths = dict(zip(val.gallery["image"], val.gallery["path"], strict=True))
    Path(paths[val.queries["group"][0][0]]).unlink()
    values |= {"missing_images": "report", "data_root": str(data)}
    _, output = run_check(capsys, values, place(tmp_path))
    assert "cirr/val: evaluated" in output and "of 24 queries over 23 of 24 images" in output
    for path in val.gallery["path"][1:]:
        Path(path).unlink(missing_ok=True)
    code, output = run_check(capsys, values, place(tmp_path))
    assert code == 1 and "no query of cirr/val has all its images" in output


def test_a_batch_that_does_not_fit_is_reported(values, world, tmp_path, capsys, monkeypatch):
    def too_large(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(report.estimates, "times", too_large)
    code, output = run_check(capsys, values, place(tmp_path))
    assert code == 1 and "1 problem; this study cannot run yet." in output
    assert (
        "a batch of this study does not fit ([enforce fail" in output
        and "lower image_batch_size or text_batch_size" in output
    )


def test_without_clip_nothing_else_is_blamed(values, world, tmp_path, capsys):
    changed = values | {"clip_model": "/nope.pt", "methods": ["FTI4CIR"], "fti_weights": "/released.pth"}
    _, output = run_check(capsys, changed, place(tmp_path))
    assert "clip_model /nope.pt is neither a file nor" in output and "BLIP" not in output and "spaCy" not in output


def test_an_index_without_its_package_is_reported(values, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    changed = values | {"methods": ["Image-only"], "index": "faiss"}
    (finding,) = weights.check_models(changed, place(tmp_path), None)
    assert finding.problems == ("index faiss needs FAISS; run: pip install faiss-cpu, or set index: exact.",)


def test_a_cluster_that_does_not_answer_is_a_problem(values, tmp_path):
    changed = values | {"methods": ["Image-only"], "executor": "ray", "ray_address": "127.0.0.1:1"}
    (finding,) = weights.check_models(changed, place(tmp_path), None)
    assert (
        finding.subject == "Ray cluster" and "no Ray cluster answers at ray_address 127.0.0.1:1" in finding.problems[0]
    )


def test_a_relative_data_root_lies_below_the_project(values, tmp_path):
    study = place(tmp_path)
    assert findings.data_root({"data_root": "data/mini"}, study) == ROOT / "data" / "mini"
    assert findings.data_root({"data_root": "/data"}, study) == Path("/data")


def test_a_check_leaves_no_record_and_names_no_artefact_for_one(values, tmp_path):
    study = place(tmp_path)
    report.report(values | {"methods": ["Image-only"], "datasets": ["circo"]}, study)
    assert study.made == {} and not (tmp_path / "reports" / "records").exists()


def test_vocabulary_and_language_model_are_checked_where_something_is_inverted(values, tmp_path, tiny):
    def subjects(**changes):
        known = values | {"methods": ["SEARLE"], "vocabulary": "/gone.csv"} | changes
        checks = weights.check_models, findings.check_user_files
        return {finding.subject: finding for check in checks for finding in check(known, place(tmp_path), tiny)}

    file = searle_files.write_phi(tmp_path / "phi.pt", 3, phi.Phi(tiny.dimension, tiny.width).state_dict())
    assert set(subjects(phi_checkpoint=str(file))) == {"φ"}
    trained = subjects(phi_checkpoint="last")
    assert set(trained) == {"language model", "vocabulary"}
    assert "vocabulary /gone.csv does not exist; download" in trained["vocabulary"].problems[0]


def test_words_and_concepts_that_a_user_brings_are_checked(values, world, tmp_path, capsys, tiny):
    (val,) = benchmarks.load("circo", world, "val")
    ids = list(benchmarks.reference_table([val])["image"])
    words = torch.zeros(len(ids), tiny.width)
    searle_files.write_tokens(tmp_path / "oti" / "circo" / "val" / "mine", ids, words, words, {})
    changed = values | {"methods": ["SEARLE-OTI"], "datasets": ["circo"], "evaluate": ["validation"]}
    changed |= {"oti_root": str(tmp_path / "oti")}
    code, output = run_check(capsys, changed, place(tmp_path))
    assert code == 0 and f"{len(ids)} of {tmp_path / 'oti' / 'circo' / 'val' / 'mine'}" in output.replace("\n", "")
    searle_files.write_tokens(tmp_path / "oti" / "circo" / "val" / "mine", ids[1:], words[1:], words[1:], {})
    code, output = run_check(capsys, changed, place(tmp_path))
    assert code == 1 and "has tokens of another image list: 1 of" in output


def test_only_images_that_get_words_of_their_own_count_for_oti(values, tmp_path, tiny):
    load = estimates.workload(values, place(tmp_path))
    both, phi = (estimates.disk(values | {"methods": of}, tiny, load) for of in (["SEARLE", "SEARLE-OTI"], ["SEARLE"]))
    references = sum(load.references.values())
    assert both["OTI tokens"] == phi["OTI tokens"] * (references + load.unlabeled) / load.unlabeled
    assert both["image embeddings"] == phi["image embeddings"]  # references are embedded for every method


def test_a_clip_of_open_clip_is_checked_as_any_other(values, tmp_path, capsys):
    folder = write_clip(tmp_path / "tower", CONFIGS["GELU"])
    code, output = run_check(capsys, values | {"clip_model": f"open_clip:local-dir:{folder}"}, place(tmp_path))
    assert code == 0 and "open_clip:tower on cpu: 64 numbers per image, tokens of 64; sha256" in output
    assert "5 patch tokens of 64" in output and "disk: patch tokens" in output
    folder = write_clip(tmp_path / "narrow", config_with(vision_cfg={"layers": [1, 1, 1, 1]}))
    code, output = run_check(capsys, values | {"clip_model": f"open_clip:local-dir:{folder}"}, place(tmp_path))
    sentence = "FTI4CIR's network reads the patch tokens of a vision transformer, and open_clip:narrow has none; "
    assert code == 1 and output.count("problem: ") == 1 and f"problem: {sentence}" in output
    assert "time: OTI" in output and "disk: patch tokens" not in output


def test_without_open_clip_or_without_its_weights_one_sentence_says_what_to_do(values, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", CONFIGS["GELU"])
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"tag": {"hf_hub": "someone/tiny/"}})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    values |= {"clip_model": "open_clip:tiny/tag", "methods": ["SEARLE"]}
    code, output = run_check(capsys, values, place(tmp_path))
    assert code == 1 and "problem: clip_model open_clip:tiny/tag cannot be fetched" in output
    assert "with random weights in the size of open_clip:tiny/tag." in " ".join(output.split())
    monkeypatch.setitem(sys.modules, "open_clip", None)
    code, output = run_check(capsys, values, place(tmp_path))
    assert code == 1 and "clip_model open_clip:tiny/tag needs open_clip; run: pip install open_clip_torch." in output
