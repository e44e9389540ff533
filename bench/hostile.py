"""Read thousands of broken and hostile files with every reader of files from outside, and count what happens.

`python -m bench.hostile --inputs 20000` prints a table: a row for each reader. An input must be read, or refused in one
sentence that names a file. The seeds are real annotations and outputs of the authors' code where they are at hand
(REAL_DATA and KNOWN_ANSWERS, as in the tests), and a drawn world. Another process reads; it is killed after TIMEOUT.
"""

import argparse
import contextlib
import io
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pandas as pd
import torch

from bench import mutations
from bench.hostile_files import CIRCO, CIRR, DRESS, IDS, PICTURES, ROOT, write_seeds
from searle_lib.data import benchmarks, images
from searle_lib.evaluation import other_models
from searle_lib.fti4cir import captions
from searle_lib.miniworld import writers
from searle_lib.releases import fti4cir_file, searle_files
from searle_lib.searle import concepts
from searle_lib.servers import predictions, scoring, vectors
from searle_lib.study import parameters

TIMEOUT = 10  # seconds an input
MEMORY = 2 << 30  # bytes an input, beyond what the process has
SIZES = writers.Sizes(6, 20, 4, 2, 8, 4, 90, 24)
Mutation = Callable[[Random, bytes], bytes]


@dataclass(frozen=True)
class Reader:
    """A reader under attack.

    Args:
        files: the files that are mutated, below the folder of the seeds.
        mutate: how.
        read: reads them; takes the folder.
    """

    files: tuple[str, ...]
    mutate: Mutation
    read: Callable[[Path], None]


def _load(folder: Path, dataset: str, split: str) -> None:
    for benchmark in benchmarks.load(dataset, folder, split):
        for path in benchmark.gallery["path"]:
            if ".." in Path(path).parts or not path.startswith(str(folder)):
                raise AssertionError(f"{path} is outside of the data root")


def _score(folder: Path, dataset: str, file: str, category: str | None = None) -> None:
    _check_range(scoring.score(folder / file, dataset, folder, category)["metrics"])


def _check_range(metrics: dict) -> None:
    if not all(0 <= value <= 100 for value in metrics.values()):
        raise AssertionError(f"a metric is out of range: {metrics}")


def _vectors(folder: Path, ending: str) -> None:
    places = [folder / f"{name}.{ending}" for name in ("queries", "gallery")]
    _check_range(scoring.report(vectors.evaluate(*places, "circo", folder))["metrics"])


def _model(folder: Path) -> None:
    other_models.read_all(["model"], ["Image-only"], folder)


def _parameters(folder: Path) -> None:
    declarations = parameters.read_declarations(sorted((ROOT / "notebooks").glob("*.ipynb")))
    parameters.read(folder / "mini.yaml", declarations)


def _override(folder: Path) -> None:
    """Each line of the file is an override."""
    declarations = parameters.read_declarations(sorted((ROOT / "notebooks").glob("*.ipynb")))
    text = (folder / "mini.yaml").read_bytes().decode("utf-8", "surrogateescape")
    for line in text.splitlines():
        name, colon, value = line.partition("#")[0].partition(": ")
        if colon:
            parameters.read(folder / "empty.yaml", declarations, [f"{name}={value}"])


def _image(folder: Path, name: str) -> None:
    for preprocess in images.PREPROCESSINGS:
        images.to_pixels(images.read(folder / name), 32, preprocess)


READERS = {
    "FashionIQ": Reader(DRESS, mutations.mutate_json, lambda folder: _load(folder, "fashioniq", "val")),
    "CIRR": Reader(CIRR, mutations.mutate_json, lambda folder: _load(folder, "cirr", "val")),
    "CIRCO": Reader(CIRCO, mutations.mutate_json, lambda folder: _load(folder, "circo", "val")),
    "score, CIRR": Reader(
        ("cirr.json", *CIRR), mutations.mutate_json, lambda folder: _score(folder, "cirr", "cirr.json")
    ),
    "score, CIRCO": Reader(
        ("circo.json", *CIRCO), mutations.mutate_json, lambda folder: _score(folder, "circo", "circo.json")
    ),
    "score, FashionIQ": Reader(
        ("dress.json", *DRESS),
        mutations.mutate_json,
        lambda folder: _score(folder, "fashioniq", "dress.json", "dress"),
    ),
    "score, TREC": Reader(
        ("circo.trec",), mutations.mutate_lines, lambda folder: _score(folder, "circo", "circo.trec")
    ),
    "score, .npz": Reader(
        ("queries.npz", "gallery.npz"), mutations.mutate_archive, lambda folder: _vectors(folder, "npz")
    ),
    "score, .safetensors": Reader(
        ("queries.safetensors", "gallery.safetensors"),
        mutations.mutate_bytes,
        lambda folder: _vectors(folder, "safetensors"),
    ),
    "scores of a model": Reader(
        ("model/circo-val.json", "model/circo-val-scores.parquet", "model/circo-val-rankings.parquet"),
        mutations.mutate_bytes,
        _model,
    ),
    "validate": Reader(
        ("cirr.json", "circo.json"),
        mutations.mutate_json,
        lambda folder: [predictions.validate(folder / name, folder) for name in ("cirr.json", "circo.json")],
    ),
    "parameters": Reader(("mini.yaml",), mutations.mutate_lines, _parameters),
    "parameters, -p": Reader(("mini.yaml",), mutations.mutate_lines, _override),
    "vocabulary": Reader(
        ("names.csv",), mutations.mutate_lines, lambda folder: concepts.read_vocabulary(folder / "names.csv")
    ),
    "concepts": Reader(
        ("near.csv",), mutations.mutate_lines, lambda folder: searle_files.read_concepts(folder / "near.csv", IDS)
    ),
    "captions": Reader(
        ("blip_pairs.json",), mutations.mutate_json, lambda folder: captions.read(folder / "blip_pairs.json", IDS)
    ),
    "phrases": Reader(
        ("phrases.pkl",), mutations.mutate_pickle, lambda folder: searle_files.read_phrases(folder / "phrases.pkl")
    ),
    "phrases, zip": Reader(
        ("phrases.zip",), mutations.mutate_archive, lambda folder: searle_files.read_phrases(folder / "phrases.zip")
    ),
    "names of tokens": Reader(
        ("exp/" + searle_files.NAMES,),
        mutations.mutate_pickle,
        lambda folder: searle_files.read_tokens(folder / "exp", IDS, 6),
    ),
    "tokens": Reader(
        ("exp/" + searle_files.EMA, "exp/" + searle_files.LAST),
        mutations.mutate_tensors,
        lambda folder: searle_files.read_tokens(folder / "exp", IDS, 6),
    ),
    "φ": Reader(("phi.pt",), mutations.mutate_tensors, lambda folder: searle_files.read_phi(folder / "phi.pt", 8, 8)),
    "φ of the authors": Reader(
        ("phi_3.pt",), mutations.mutate_tensors, lambda folder: searle_files.read_phi(folder / "phi_3.pt", 64, 64)
    ),
    "FTI4CIR's module": Reader(
        ("module.pth",), mutations.mutate_archive, lambda folder: fti4cir_file.read_module(folder / "module.pth")
    ),
    **{
        name: Reader((name,), mutations.mutate_image, lambda folder, name=name: _image(folder, name))
        for name in PICTURES
    },
}


def attack(seeds: Path, inputs: int, seed: int = 0) -> pd.DataFrame:
    """Read `inputs` mutated files, spread over READERS; return the counts of each outcome, a row for each reader."""
    names = list(READERS)
    jobs = [(names[index % len(names)], index) for index in range(inputs)]
    counts: dict[str, Counter] = {name: Counter() for name in names}
    context = multiprocessing.get_context("spawn")
    while jobs:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, str(seeds), jobs, seed), daemon=True)
        process.start()
        theirs.close()
        done, finished, ready = 0, False, False
        with contextlib.suppress(EOFError):
            wait = 120  # for the imports
            while not finished and ours.poll(wait):
                outcome = ours.recv()
                wait, finished = TIMEOUT, outcome is None
                ready = True
                if outcome and outcome[0] != "ready":
                    counts[jobs[done][0]].update(outcome[:1])
                    counts[jobs[done][0]]["seconds"] = max(counts[jobs[done][0]]["seconds"], outcome[1])
                    counts[jobs[done][0]]["MB"] = max(counts[jobs[done][0]]["MB"], outcome[2])
                    done += 1
        if not ready:
            raise RuntimeError("the process that reads could not read the whole files; see its error above")
        if not finished:
            kind = "hang" if process.is_alive() else "crash"
            print(f"{kind}: {jobs[done]}", file=sys.stderr)
            counts[jobs[done][0]][kind] += 1
            done += 1
            process.kill()
        process.join()
        jobs = jobs[done:]
    columns = ["read", "refused", "traceback", "no name", "hang", "crash", "over 2 GB", "seconds", "MB"]
    return pd.DataFrame.from_dict(counts, orient="index").reindex(columns=columns).fillna(0)


def _work(connection, seeds: str, jobs: list[tuple[str, int]], seed: int) -> None:
    """Read the inputs one after the other; send (outcome, seconds, MB) of each, and None at the end."""
    used = 1024 * int(_status("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2 * MEMORY, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(seeds, Path(temporary) / "in")
        whole = {file: (folder / file).read_bytes() for reader in READERS.values() for file in reader.files}
        known = {path.name for path in folder.rglob("*") if path.is_file()} | {"test.json"}
        for reader in READERS.values():
            with contextlib.redirect_stderr(io.StringIO()):
                reader.read(folder)  # whole files are read, and caches are warm
        connection.send(("ready",))
        for name, index in jobs:
            reader, random = READERS[name], Random(f"{seed} {name} {index}")
            file = random.choice(reader.files)
            mutated = reader.mutate(random, whole[file])
            (folder / file).write_bytes(mutated)
            Path("/proc/self/clear_refs").write_text("5")
            before, start = int(_status("VmHWM")), time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                outcome, detail = _outcome(reader, folder, known)
            seconds, grown = time.perf_counter() - start, (int(_status("VmHWM")) - before) / 1024
            if grown * 2**20 > MEMORY:
                outcome = "over 2 GB"
            if outcome not in ("read", "refused"):
                print(f"{outcome}: {name} {index} {file} {detail} {mutated[:200]!r}", file=sys.stderr)
            connection.send((outcome, seconds, grown))
            (folder / file).write_bytes(whole[file])
        connection.send(None)


def _outcome(reader: Reader, folder: Path, known: set[str]) -> tuple[str, str]:
    try:
        reader.read(folder)
    except (ValueError, OSError) as problem:
        sentence = str(problem)
        one = sentence.isprintable() and len(sentence) < 1500 and "; " in sentence
        named = any(name in sentence for name in known) or sentence.startswith(("-p ", "unknown parameter"))
        named = named or (" in -p" in sentence)
        return ("refused", "") if one and named else ("no name", repr(problem))
    except Exception as problem:  # counted as a fault of the reader
        return "traceback", repr(problem)
    return "read", ""


def _status(field: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(field))


def main() -> int:
    """Attack every reader and print the counts; return 1 if anything was neither read nor refused in a sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        world = writers.write(Path(temporary) / "world" / "data", sizes=SIZES)
        table = attack(write_seeds(Path(temporary) / "seeds", world), options.inputs, options.seed)
    table.loc["all"] = [*table.iloc[:, :-2].sum(), *table.iloc[:, -2:].max()]
    print(table.round({"seconds": 1}).astype({name: int for name in table if name != "seconds"}).to_string())
    return int(table.loc["all"].iloc[2:7].sum() > 0)


if __name__ == "__main__":
    sys.exit(main())
