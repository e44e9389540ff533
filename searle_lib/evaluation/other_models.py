"""Models that somebody trained elsewhere: what they retrieve, in a folder, and how a study compares it.

`searle score --to FOLDER` adds an Evaluation to a folder: the scores and the rankings of one benchmark in the tables of
`scores.read_scores`, and a JSON file with their hashes. The parameter `other_models` names such folders; 06_retrieval
puts their rows after those of the study's methods.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from searle_lib.data.benchmarks import Benchmark
from searle_lib.data.protocols import name_of, protocol_of
from searle_lib.evaluation import methods
from searle_lib.store.artefacts import atomic_write, digest, file_sha256, write_json
from searle_lib.store.reading import FileRefused, is_name, read_json, reading, reads
from searle_lib.store.records import Study

REMEDY = "delete its folder, and score the model again"
TABLES = {  # their columns
    "scores": {"dataset", "split", "category", "method", "query", "metric", "value"},
    "rankings": {"dataset", "split", "category", "method", "query", "best", "scores", "group", "rank"},
}
FACTS = dict.fromkeys(("name", "dataset", "split", "category", "queries", "gallery"), str) | {
    "files": dict,
    "tables": dict,
}


@dataclass(frozen=True)
class Evaluation:
    """What a model retrieves for the queries of one benchmark.

    Args:
        benchmark: the benchmark.
        scores: in long form, without rows if targets are secret; a metric that the model's lists cannot tell is absent.
        rankings: a row per query, as `rankings.ranking_table` returns it; without rows if only groups were ranked.
        notes: one sentence for each thing to know.
    """

    benchmark: Benchmark
    scores: pd.DataFrame
    rankings: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """An Evaluation in a folder.

    Args:
        facts: what its JSON file holds, with the keys of FACTS.
        scores: as in Evaluation.
        rankings: as in Evaluation.
    """

    facts: dict
    scores: pd.DataFrame
    rankings: pd.DataFrame

    @property
    def benchmark(self) -> str:
        """The name of the benchmark, as in "cirr/val"."""
        return name_of(self.facts["dataset"], self.facts["split"], self.facts["category"])


@dataclass(frozen=True)
class OtherModel:
    """The content of a folder.

    Args:
        name: the model's name, which stands where a method's name stands.
        folder: the folder.
        sha256: of its JSON files, which hold the hashes of its tables.
        parts: one for each benchmark.
    """

    name: str
    folder: Path
    sha256: str
    parts: tuple[Part, ...]


def require_name(folder: Path, name: str) -> None:
    """Raise ValueError if a model may not have a name, or the folder holds the scores of another model."""
    if not is_name(name) or "/" in name or len(name) > 60 or name in methods.METHODS:
        raise ValueError(f"--name is {name!r:.80}; write a short text without / that is not the name of a method.")
    for file in _files(folder):
        if _read_facts(file)["name"] != name:
            raise ValueError(
                f"{folder} holds scores of {_read_facts(file)['name']}; name another folder for {name}, or delete it."
            )


def add(folder: Path, name: str, evaluation: Evaluation, sources: Sequence[Path]) -> list[Path]:
    """Write an evaluation to a model's folder, and return the files.

    It replaces what the folder has of the same benchmark. But CIRR's server takes a file for the whole gallery and
    another one for the groups, so what came from a file of the other kind stays, unless the evaluation has it, too.

    Args:
        folder: the model's folder; it is made if it does not exist.
        name: the model's name.
        evaluation: what to write.
        sources: the files that it was made from.

    Raises ValueError as `require_name` does, and if the folder is damaged.
    """
    require_name(folder, name)
    benchmark = evaluation.benchmark
    facts = {key: getattr(benchmark, key) for key in ("dataset", "split", "category")}
    facts |= {"name": name, "queries": queries_digest(benchmark), "gallery": gallery_digest(benchmark)}
    kind = "groups" if evaluation.rankings.empty else "gallery"
    files = {kind: {str(path): file_sha256(path) for path in sources}}
    tables = {"scores": evaluation.scores, "rankings": evaluation.rankings}
    stem = benchmark.name.replace("/", "-")
    if (folder / f"{stem}.json").exists():
        earlier = _read_part(folder / f"{stem}.json")
        others = earlier.scores[~earlier.scores["metric"].isin(evaluation.scores["metric"])]
        has_both = {kind, *earlier.facts["files"]} == {"gallery", "groups"}
        is_same = all(earlier.facts[key] == facts[key] for key in ("queries", "gallery"))
        if is_same and has_both and len(others):
            tables["scores"] = pd.concat([others, evaluation.scores], ignore_index=True)
            tables["rankings"] = earlier.rankings if kind == "groups" else evaluation.rankings
            files = earlier.facts["files"] | files
    facts["files"] = files
    paths = [folder / f"{stem}-{table}.parquet" for table in TABLES]
    for table, path in zip(TABLES, paths, strict=True):
        with atomic_write(path) as temporary:
            tables[table].to_parquet(temporary, index=False)
    write_json(folder / f"{stem}.json", facts | {"tables": {path.name: file_sha256(path) for path in paths}})
    return [*paths, folder / f"{stem}.json"]


def read_all(folders: Sequence[str], study_methods: Sequence[str], root: Path) -> list[OtherModel]:
    """Return the models of several folders.

    Args:
        folders: the parameter `other_models`.
        study_methods: the parameter `methods`.
        root: the project's folder, where relative paths start.

    Raises:
        FileNotFoundError: if a folder holds no scores.
        ValueError: if one is damaged, or a name belongs to two models or to a method.
    """
    models: dict[str, OtherModel] = {}
    names = methods.by_name(study_methods, root) if folders else {}
    for folder in folders:
        model = _read(root / Path(folder).expanduser())
        if model.name in models or model.name in names:
            other = models[model.name].folder if model.name in models else "a method of the study"
            raise ValueError(
                f"{model.folder} holds scores of {model.name}, and {other} has that name, too; score it again with "
                "another --name."
            )
        models[model.name] = model
    return list(models.values())


def sha256(folders: Sequence[str], root: Path) -> list[str]:
    """Return the sha256 of the content of each folder, "" for one that holds nothing."""
    return [_sha256(root / Path(folder).expanduser()) for folder in folders]


def select(model: OtherModel, benchmarks: Iterable[Benchmark]) -> tuple[OtherModel, list[str]]:
    """Return a model with what it has of a study's benchmarks, and a sentence for each benchmark that is left out.

    Raises ValueError if it has none of them, other queries or images than the study, or a part of the categories.
    """
    by_name, parts, notes = {one.name: one for one in benchmarks}, [], []
    for part in model.parts:
        if part.benchmark in by_name:
            _require_fit(model, part, by_name[part.benchmark])
            parts.append(part)
        else:
            notes.append(f"{model.name}: {part.benchmark} is left out, since the study does not evaluate it.")
    if not parts:
        raise ValueError(
            f"{model.folder} holds scores of {', '.join(part.benchmark for part in model.parts)}, and the study "
            "evaluates none of them; score the model on a data set of the study, or leave it out of other_models."
        )
    names = [part.benchmark for part in parts]
    splits = {(part.facts["dataset"], part.facts["split"]) for part in parts}
    needed = [name_of(*split, category) for split in splits for category in protocol_of(split[0]).categories]
    absent = next((name for name in needed if name in by_name and name not in names), None)
    if absent:
        raise ValueError(f"{model.folder} lacks {absent}, without which there is no average; score it with --category.")
    return replace(model, parts=tuple(parts)), notes


def read(study: Study, benchmarks: Sequence[Benchmark]) -> tuple[list[OtherModel], list[str]]:
    """Return the other models of a study with what they have of its benchmarks, and what is left out, in sentences.

    Raises as `read_all` and `select` do. The study is in notebook 06_retrieval.
    """
    models = read_all(study.values["other_models"], study.values["methods"], study.root)
    pairs = [select(model, benchmarks) for model in models]
    return [model for model, _ in pairs], [note for _, notes in pairs for note in notes]


def queries_digest(benchmark: Benchmark) -> str:
    """Return the hash of a benchmark's queries, with their targets."""
    return digest(benchmark.queries.to_dict("records"))


def gallery_digest(benchmark: Benchmark) -> str:
    """Return the hash of a gallery's images, "" for one whose list of images is absent."""
    return digest(list(benchmark.gallery["image"])) if len(benchmark.gallery) else ""


def _require_fit(model: OtherModel, part: Part, benchmark: Benchmark) -> None:
    """Raise ValueError if a part has other queries or another gallery than a benchmark."""
    table = part.rankings if len(part.rankings) else part.scores
    own, ids = set(table["query"]), set(benchmark.queries["query"])
    name = benchmark.name
    if own != ids:
        absent, extra = sorted(ids - own), sorted(own - ids)
        fault = f"lacks query {absent[0]}" if absent else f"has query {extra[0]}, which the study lacks"
        raise ValueError(
            f"{model.folder}: of {name} it {fault} ({len(absent or extra):,} in all); score the model on the data of "
            "the study."
        )
    if part.facts["queries"] != queries_digest(benchmark):
        raise ValueError(f"{model.folder}: the queries of {name} have changed since it was scored; score it again.")
    if part.facts["gallery"] not in ("", gallery_digest(benchmark)):
        raise ValueError(
            f"{model.folder}: it was scored on another gallery of {name} than the study's "
            f"{len(benchmark.gallery):,} images; set fashioniq_gallery: split, and score it on the same data."
        )
    outsiders = {image for best in part.rankings["best"] for image in best} - set(benchmark.gallery["image"])
    if outsiders:
        raise ValueError(
            f"{model.folder}: it ranks image {min(outsiders)}, which the study's gallery of {name} lacks "
            f"({len(outsiders):,} in all); use the whole gallery in the study."
        )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def _sha256(folder: Path) -> str:
    files = _files(folder)
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest() if files else ""


def _read(folder: Path) -> OtherModel:
    if not _files(folder):
        raise FileNotFoundError(f"{folder} holds no scores of a model; write them there by `searle score --to`.")
    parts = tuple(map(_read_part, _files(folder)))
    names = list(dict.fromkeys(part.facts["name"] for part in parts))
    if len(names) > 1:
        raise FileRefused(f"{folder} holds scores of {names[0]} and of {names[1]}; give each a folder of its own.")
    return OtherModel(names[0], folder, _sha256(folder), parts)


def _read_part(file: Path) -> Part:
    facts, tables = _read_facts(file), []
    for name, columns in TABLES.items():
        path = file.with_name(f"{file.stem}-{name}.parquet")
        with reading(path, "is not a table of scores", REMEDY):
            if file_sha256(path) != facts["tables"].get(path.name):
                raise FileRefused(f"{path} has changed since {file.name} was written; {REMEDY}.")
            tables.append(pd.read_parquet(path))
            if not columns <= set(tables[-1].columns):
                raise FileRefused(f"{path} lacks one of the columns {', '.join(sorted(columns))}; {REMEDY}.")
    return Part(facts, *tables)


@reads("does not say what scores these are", REMEDY)
def _read_facts(file: Path) -> dict:
    facts = read_json(file)
    if not isinstance(facts, dict) or any(not isinstance(facts.get(name), kind) for name, kind in FACTS.items()):
        raise FileRefused(f"{file} lacks one of {', '.join(FACTS)}; {REMEDY}.")
    return facts
