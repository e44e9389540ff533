"""Recognise a file of predictions, and check it as the test servers of CIRR and CIRCO would.

A file is a JSON object that maps a query id to a list of images. It may come from any method, so nothing here needs a
study. `validate` returns a Verdict; `scoring` uses the same checks.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from searle_lib.data import annotations, own_data
from searle_lib.data.benchmarks import Benchmark, load, read_tables
from searle_lib.data.protocols import PROTOCOLS, Protocol, name_of
from searle_lib.evaluation import rankings
from searle_lib.servers.submissions import SUBSET
from searle_lib.store.reading import FileRefused, printable, read_json, reads

HEADER = ("version", "metric")  # keys of a CIRR file that are no queries
VERSION = "rc2"
LENGTHS = {"recall": rankings.DEPTH, "recall_subset": SUBSET}  # images per query in a CIRR file, by its metric
CIRR_BYTES = 5 * 10**6


@dataclass(frozen=True)
class Verdict:
    """The result of checking a file of predictions.

    Args:
        title: data set, split and metric of the file, as in "CIRR test1, recall".
        queries: for how many queries it has a list.
        notes: one sentence for each thing to know.
        problems: one sentence for each reason to refuse the file.
    """

    title: str
    queries: int
    notes: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """The benchmark that a file predicts, and what its lists may hold.

    Args:
        benchmark: the benchmark; its gallery is empty if the list of images is absent.
        metric: the file's metric for CIRR, else "".
        gallery: the image ids that lists may hold, None if the list of images is absent.
        gallery_file: the name of that list.
    """

    benchmark: Benchmark
    metric: str
    gallery: frozenset[str] | None
    gallery_file: str

    @property
    def dataset(self) -> str:
        """As in "circo", or the name of an own data set."""
        return self.benchmark.dataset

    @property
    def split(self) -> str:
        """As in "val"."""
        return self.benchmark.split

    @property
    def queries(self) -> pd.DataFrame:
        """The queries of the benchmark."""
        return self.benchmark.queries

    @property
    def protocol(self) -> Protocol:
        """How the data set is scored."""
        return self.benchmark.protocol

    @property
    def title(self) -> str:
        """As in "CIRR test1"."""
        return f"{self.protocol.title} {self.split}"

    @property
    def length(self) -> int:
        """How many images a server takes per query."""
        return LENGTHS.get(self.metric, rankings.DEPTH)

    @property
    def shortest(self) -> int:
        """How many images a score needs per query: as many as a server takes, or all of a smaller gallery."""
        size = self.length if self.gallery is None else len(self.gallery) - self.protocol.excludes_reference
        return min(self.length, size)


def validate(file: Path, data_root: Path) -> Verdict:
    """Return whether the server of CIRR or CIRCO would take a file, which is recognised by its content.

    If COCO's list of images is absent, image ids are not checked, and a note says so.

    Raises:
        ValueError: if the file is not a JSON object of predictions.
        FileNotFoundError: if the file or the annotations that it needs do not exist.
    """
    content, repeated = read(file)
    task = recognise(file, content, data_root)
    notes, problems = [], []
    size = file.stat().st_size
    if task.dataset == "cirr" and size > CIRR_BYTES:
        problems.append(
            f"{file.name} has {size:,} bytes and the server takes at most {CIRR_BYTES:,}; write it without "
            "indentation, and no list longer than needed."
        )
    problems += find_problems(file, content, repeated, task)
    submission = task.protocol.submission
    if task.split != submission:
        notes.append(f"this is the validation split, which `score` scores; the server takes {submission}.")
        absent = len(_query_ids(task.dataset, data_root)[0].get(submission, set()) - set(content))
        if task.dataset == "circo" and absent:  # CIRCO's test ids include those of val
            notes.append(f"if this file is meant for {submission}, it lacks {absent:,} queries.")
    if task.dataset == "circo":
        if task.gallery is None:
            notes.append(f"image ids were not checked, because {task.gallery_file} does not exist.")
        if any(isinstance(entry, str) and to_image_id("circo", entry) for entry in _entries(content)):
            notes.append("some image ids are strings; the server converts them, but its examples have integers.")
    queries = len(content.keys() - set(HEADER))
    title = f"{task.title}, {task.metric}" if task.metric else task.title
    return Verdict(title, queries, tuple(notes), tuple(problems))


@reads("is not valid JSON", "write it again", absent="name a file of predictions")
def read(file: Path) -> tuple[dict | list, set[str]]:
    """Return a file's content, and the keys that an object of it has more than once.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not JSON, or holds no predictions.
    """
    repeated = set()

    def to_dict(pairs: list[tuple]) -> dict:
        repeated.update(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return dict(pairs)

    content = read_json(file, to_dict)
    if not isinstance(content, dict | list):
        raise FileRefused(f"{file} holds only {excerpt(content)}; write an object of query id: list of images.")
    if not (content.keys() - set(HEADER) if isinstance(content, dict) else content):
        raise FileRefused(f"{file} holds no predictions; write a list of images for every query.")
    return content, repeated


def recognise(file: Path, content: dict | list, data_root: Path) -> Task:
    """Return the split of CIRR or CIRCO that a file predicts. Raises as `validate` does."""
    if not isinstance(content, dict):
        raise FileRefused(f"{file} is a list; write an object of query id: list of images (FashionIQ has no server).")
    dataset = "cirr" if _is_cirr(content, data_root) else "circo"
    split = find_split(file, dataset, content.keys() - set(HEADER), data_root)
    return load_task(dataset, data_root, split, "all", _find_metric(content) if dataset == "cirr" else "")


def find_split(file: Path, dataset: str, ids: set[str], data_root: Path) -> str:
    """Return the smallest split of CIRR or CIRCO that has all of the query ids, else the one that has most of them.

    Args:
        file: the file with the ids, for its name.
        dataset: cirr or circo.
        ids: its query ids.
        data_root: the folder of the data sets.

    Raises:
        FileRefused: if no split has one of the ids.
        FileNotFoundError: if half of them may be of a split whose annotations do not exist.
    """
    ids_of, error = _query_ids(dataset, data_root)
    by_size = sorted(ids_of, key=lambda split: len(ids_of[split]))
    complete = [split for split in by_size if ids <= ids_of[split]]
    best = complete[0] if complete else max(by_size, key=lambda split: len(ids & ids_of[split]), default=None)
    shared = len(ids & ids_of[best]) if best else 0
    if error and 2 * shared < len(ids):
        raise error
    if not shared:
        splits = f"{PROTOCOLS[dataset].title} {' or '.join(ids_of)}"
        raise FileRefused(
            f"{file} has no query of {splits}, but {min(ids)} for example; write the query ids of the annotations."
        )
    return best


def load_task(dataset: str, data_root: Path, split: str, category: str, metric: str = "") -> Task:
    """Return the task of a split, from its annotations.

    Args:
        dataset: fashioniq, cirr, circo, or a CSV file.
        data_root: the folder of the data sets.
        split: as in "val".
        category: a category of FashionIQ, else "all".
        metric: the file's metric for CIRR, else "".
    """
    if dataset not in PROTOCOLS:
        (benchmark,) = load(dataset, data_root, split)
        return Task(benchmark, metric, frozenset(benchmark.gallery["image"]), own_data.IMAGES)
    place = (dataset, data_root, split, category)
    image_list = annotations.image_list(*place)
    has_list = dataset != "circo" or image_list.is_file()
    no_images = pd.DataFrame(columns=["image", "path"])
    queries, images = read_tables(*place) if has_list else (annotations.queries(*place), no_images)
    names = (dataset, split, category)
    benchmark = Benchmark(*names, name_of(*names), images, queries, (len(queries), len(images)))
    return Task(benchmark, metric, frozenset(images["image"]) if has_list else None, image_list.name)


def find_problems(file: Path, content: dict, repeated: set[str], task: Task, allow_longer: bool = False) -> list[str]:
    """Return one sentence per problem of a CIRR or CIRCO file, in the file's order; absent queries come last.

    Args:
        file: the file, for its name.
        content: its content.
        repeated: the keys that stand in it more than once.
        task: the split that it predicts.
        allow_longer: whether a list may be longer than a server takes.
    """
    problems = _header_problems(file, content, repeated) if task.dataset == "cirr" else []
    queries = task.queries.set_index("query")[["reference", "group"]].T.to_dict("list")
    for query, images in content.items():
        if task.dataset == "cirr" and query in HEADER:
            continue
        name = f"query {query} of {file.name}"
        if query in repeated:
            problems.append(f"{name} has more than one list; keep one of them.")
        if query in queries:
            reference, group = queries[query]
            excluded = reference if task.protocol.excludes_reference else None
            allowed = group if task.metric == "recall_subset" else ()
            problems += list_problems(name, images, task, allow_longer, excluded, allowed)
        else:
            problems.append(f"{name} is not a query of {task.title}; remove it, or correct its id.")
    absent = (query for query in queries if query not in content)
    length = task.shortest if allow_longer else task.length
    problems += [f"query {query} of {task.title} is not in {file.name}; add its {length} images." for query in absent]
    return list(map(printable, problems))


def list_problems(
    name: str,
    images: object,
    task: Task,
    allow_longer: bool = False,
    excluded: str | None = None,
    group: Sequence[str] = (),
) -> list[str]:
    """Return one sentence per problem of a query's list: its length, its entries' type, repeats, forbidden images.

    Args:
        name: the query, as sentences name it.
        images: its list.
        task: the split that it belongs to.
        allow_longer: whether the list may be longer than a server takes.
        excluded: an image that may not be in the list.
        group: if not empty, the only images that may be in the list.
    """
    length = task.shortest if allow_longer else task.length
    rule = f"list {'at least' if allow_longer else 'exactly'} {length} different images"
    if not isinstance(images, list):
        return [f"{name} has {excerpt(images)} instead of a list; {rule}."]
    fits = len(images) == length or (allow_longer and len(images) > length)
    problems = [] if fits else [f"{name} lists {len(images)} images; {rule}."]
    wrong_type = [excerpt(entry) for entry in images if to_image_id(task.dataset, entry) is None]
    times = Counter(image for entry in images if (image := to_image_id(task.dataset, entry)) is not None)
    repeated = [image for image in times if times[image] > 1]
    references = [image for image in times if image == excluded]
    unknown = [image for image in times if task.gallery is not None and image not in task.gallery]
    outsiders = [image for image in times if group and image not in (*group, *references, *unknown)]
    form = "integers" if task.dataset == "circo" else "names in quotes"
    for wrong, reason in (
        (wrong_type, f", which cannot be an image; write {form}"),
        (repeated, f" more than once; {rule}"),
        (references, ", its own reference; leave it out"),
        (unknown, f", which is not in the gallery; list images of {task.gallery_file}"),
        (outsiders, ", which is not in its group; choose members of its img_set"),
    ):
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            problems.append(f"{name} lists {', '.join(wrong[:3])}{more}{reason}.")
    return problems


def to_image_id(dataset: str, entry: object) -> str | None:
    """Return an entry of a list as the image id that `annotations` uses; None if it cannot be one."""
    if dataset == "circo":
        if type(entry) is int and entry >= 0:
            return str(entry)
        digits = isinstance(entry, str) and entry.isascii() and entry.isdigit()
        return (entry.lstrip("0") or "0") if digits else None
    return entry if isinstance(entry, str) else None


def excerpt(value: object) -> str:
    """Return a value as JSON, cut to 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _header_problems(file: Path, content: dict, repeated: set[str]) -> list[str]:
    problems = [f"key {key} stands more than once in {file.name}; keep one." for key in HEADER if key in repeated]
    for key, allowed in (("version", [VERSION]), ("metric", list(LENGTHS))):
        values = " or ".join(f'"{value}"' for value in allowed)
        if key not in content:
            problems.append(f"{file.name} has no key {key}, which CIRR's server needs; add {key}: {values}.")
        elif content[key] not in allowed:
            problems.append(f"{key} of {file.name} is {excerpt(content[key])}; set it to {values}.")
    return problems


def _is_cirr(content: dict, data_root: Path) -> bool:
    """Decide by the header's keys, else by the form of image names, else by which data set has more of the ids."""
    has_names = any(isinstance(entry, str) and entry.startswith(("dev-", "test1-")) for entry in _entries(content))
    if has_names or any(key in content for key in HEADER):
        return True
    shared = {d: [len(content.keys() & ids) for ids in _query_ids(d, data_root)[0].values()] for d in ("cirr", "circo")}
    return max(shared["cirr"], default=0) > max(shared["circo"], default=0)


def _entries(content: dict) -> Iterator[object]:
    return (entry for images in content.values() if isinstance(images, list) for entry in images)


def _query_ids(dataset: str, data_root: Path) -> tuple[dict[str, set[str]], FileNotFoundError | None]:
    """The query ids of each split whose annotations exist, and the error of a split whose annotations do not."""
    ids, error = {}, None
    for split in (PROTOCOLS[dataset].validation, PROTOCOLS[dataset].submission):
        try:
            ids[split] = set(annotations.queries(dataset, data_root, split, "all")["query"])
        except FileNotFoundError as problem:
            error = problem
    return ids, error


def _find_metric(content: dict) -> str:
    """The header's metric; without one, the metric that the lengths of the lists suggest."""
    if content.get("metric") in list(LENGTHS):
        return content["metric"]
    longest = max((len(images) for images in content.values() if isinstance(images, list)), default=0)
    return "recall_subset" if longest <= LENGTHS["recall_subset"] else "recall"
