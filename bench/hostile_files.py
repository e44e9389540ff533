"""Whole files for every reader that `bench.hostile` attacks, from a drawn world and the real files that are at hand."""

import json
import os
import pickle
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

from searle_lib.data import benchmarks
from searle_lib.evaluation import other_models
from searle_lib.releases import pic2word_file, searle_files
from searle_lib.searle import phi
from searle_lib.servers import scoring, trec

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("REAL_DATA", ROOT.parent / "shared" / "data"))
KNOWN = Path(os.environ.get("KNOWN_ANSWERS", ROOT.parent / "shared" / "known_answers"))
ENTRIES = 40  # of a real caption file
IDS = [f"ILSVRC2012_test_{number:08d}" for number in range(1, 25)]
CIRR = ("CIRR/cirr/captions/cap.rc2.val.json", "CIRR/cirr/image_splits/split.rc2.val.json")
CIRCO = ("CIRCO/annotations/val.json", "CIRCO/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json")
DRESS = ("FashionIQ/captions/cap.dress.val.json", "FashionIQ/image_splits/split.dress.val.json")
PICTURES = ("pictures/x.png", "pictures/x.jpg", "pictures/x.webp", "pictures/x.gif", "pictures/grey.png")


def write_seeds(folder: Path, world: Path) -> Path:
    """Write whole files for every reader below a folder, from a drawn world and the real files that are at hand."""
    shutil.copytree(
        world, folder, ignore=shutil.ignore_patterns("models", "images", "unlabeled2017", "dev", "test", "test1")
    )
    _shorten_real_files(folder)
    shutil.copy(ROOT / "params" / "mini.yaml", folder)
    (folder / "empty.yaml").write_text("")
    (folder / "names.csv").write_text("LabelName,DisplayName\n" + "".join(f"/m/{n},Name {n}\n" for n in range(30)))
    near = pd.DataFrame([[image, *(f"Name {(row + n) % 30}" for n in range(5))] for row, image in enumerate(IDS)])
    near.to_csv(folder / "near.csv", index=False, header=["Image Name", *map(str, range(1, 6))])
    pairs = [{"img_id": image[-8:], "subject": "a dog", "attribute": "on a chair"} for image in IDS]
    (folder / "blip_pairs.json").write_text(json.dumps(pairs))
    phrases = {f"Name {n}": [f"a photo of Name {n} that is {word}" for word in ("big", "é")] for n in range(30)}
    (folder / "phrases.pkl").write_bytes(pickle.dumps(phrases))
    with zipfile.ZipFile(folder / "phrases.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("GPTNeo27B/concept_to_phrases.pkl", pickle.dumps(phrases))
    searle_files.write_tokens(folder / "exp", IDS, torch.randn(24, 6), torch.randn(24, 6), {})
    searle_files.write_phi(folder / "phi.pt", 3, phi.Phi(8, 8).state_dict())
    parts = {"weight": torch.randn(8, 8), "bias": torch.randn(8)}
    layers = ("layers.0.0", "layers.1.0", pic2word_file.OUTPUT)
    network = {f"module.{layer}.{part}": value for layer in layers for part, value in parts.items()}
    torch.save({"epoch": 30, "name": "x", "state_dict": {}, pic2word_file.KEY: network}, folder / "pic2word.pt")
    known = KNOWN / "phi_3.pt"
    shutil.copy(known if known.is_file() else folder / "phi.pt", folder / "phi_3.pt")
    _write_module(folder / "module.pth")
    (folder / "pictures").mkdir()
    picture = Image.effect_noise((60, 40), 90)
    for name in PICTURES:
        (picture if "grey" in name else picture.convert("RGB")).save(folder / name)
    _write_predictions(folder)
    return folder


def _shorten_real_files(folder: Path) -> None:
    """Put the first entries of real caption files, and their whole image lists, in the place of the drawn ones."""
    for captions_file, image_list in (DRESS, CIRR, (CIRCO[0], None)):
        if not (REAL / captions_file).is_file():
            continue
        entries = json.loads((REAL / captions_file).read_text())[:ENTRIES]
        (folder / captions_file).write_text(json.dumps(entries))
        if image_list:
            shutil.copy(REAL / image_list, folder / image_list)
            (folder / image_list).chmod(0o644)
        else:
            ids = {i for entry in entries for i in (entry["reference_img_id"], *entry["gt_img_ids"])}
            ids |= set(range(1, 60))
            listed = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in sorted(ids)]
            (folder / CIRCO[1]).write_text(json.dumps({"images": listed}))
            (folder / "CIRCO/annotations/test.json").unlink()


def _write_predictions(folder: Path) -> None:
    """Write perfect predictions, as far as fifty images are."""
    (cirr,), (circo,) = (benchmarks.load(dataset, folder, "val") for dataset in ("cirr", "circo"))
    dress = benchmarks.load("fashioniq", folder, "val")[0]

    def lists(benchmark: benchmarks.Benchmark) -> list[list[str]]:
        rows = []
        for query in benchmark.queries.itertuples():
            best = dict.fromkeys([*query.ground_truths, *query.group, *benchmark.gallery["image"]])
            best.pop(query.reference, None)
            rows.append(list(best)[:50])
        return rows

    head = {"version": "rc2", "metric": "recall"}
    (folder / "cirr.json").write_text(json.dumps(head | dict(zip(cirr.queries["query"], lists(cirr), strict=True))))
    ids = [[int(image) for image in row] for row in lists(circo)]
    (folder / "circo.json").write_text(json.dumps(dict(zip(circo.queries["query"], ids, strict=True))))
    entries = json.loads((folder / DRESS[0]).read_text())
    ranked = [entry | {"ranking": row} for entry, row in zip(entries, lists(dress), strict=True)]
    (folder / "dress.json").write_text(json.dumps(ranked))
    evaluation = scoring.evaluate(folder / "circo.json", "circo", folder, name="Mine")
    other_models.add(folder / "model", "Mine", evaluation, [folder / "circo.json"])
    (run,) = trec.write_all(folder / "run", evaluation.rankings, [])
    run.rename(folder / "circo.trec")
    for name, ids in (("queries", circo.queries["query"]), ("gallery", circo.gallery["image"])):
        rows = torch.randn(len(ids), 8)
        numpy.savez(folder / f"{name}.npz", ids=ids.to_list(), vectors=rows.numpy())
        save_file({"vectors": rows}, folder / f"{name}.safetensors", {"ids": json.dumps(ids.to_list())})


def _write_module(path: Path) -> None:
    """Write a small module under the name of one of the authors' modules."""
    authors = types.ModuleType("i2t_model")
    authors.Network = type("Network", (torch.nn.Module,), {"__module__": "i2t_model"})
    sys.modules["i2t_model"] = authors
    module = authors.Network()
    module.first, module.norm = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)
    torch.save(module, path)
    del sys.modules["i2t_model"]
