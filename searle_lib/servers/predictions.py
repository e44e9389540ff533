"""Files of predictions that people bring: recognised, and checked as the test servers would.

CIRR's and CIRCO's are objects of query id: list of images, in their servers' forms (searle.md, section 5). They may
come from any method, so nothing here asks for a study; `scoring` scores them.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from searle_lib.data import annotations
from searle_lib.data.benchmarks import PROTOCOLS
from searle_lib.evaluation import rankings
from searle_lib.servers.submissions import SUBSET

HEADER = ("version", "metric")  # keys of a CIRR file that are no queries
VERSION = "rc2"
LENGTHS = {"recall": rankings.DEPTH, "recall_subset": SUBSET}  # of a CIRR list, by the file's metric
CIRR_BYTES = 5 * 10**6


@dataclass(frozen=True)
class Verdict:
    """What a predictions file is, for how many queries it has a list, and what is wrong with it, a sentence each."""

    what: str
    queries: int
    notes: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What a file is of, and what its lists must be; `gallery` is None where its images are not known."""

    dataset: str
    split: str
    metric: str  # "" but for CIRR
    queries: pd.DataFrame
    gallery: frozenset[str] | None
    gallery_file: str

    @property
    def title(self) -> str:
        """As in "CIRR test1"."""
        return f"{PROTOCOLS[self.dataset].title} {self.split}"

    @property
    def length(self) -> int:
        """How many images a server takes a query, and a score needs at least."""
        return LENGTHS.get(self.metric, rankings.DEPTH)


def validate(file: Path, data_root: Path) -> Verdict:
    """Whether CIRR's or CIRCO's server would take a file, which is recognised by its content.

    Raises ValueError for a file that is no JSON object of predictions, FileNotFoundError for annotations that it
    needs and that are not there. COCO's image list is not needed: without it ids are not checked, and a note says so.
    """
    given, repeated = read(file)
    task = recognised(file, given, data_root)
    notes, problems = [], []
    if task.dataset == "cirr" and file.stat().st_size > CIRR_BYTES:
        problems.append(
            f"{file.name} has {file.stat().st_size:,} bytes and the server takes at most {CIRR_BYTES:,}; write it "
            "without indentation, and no list longer than asked."
        )
    problems += problems_of(file, given, repeated, task, longer=False)
    submission = PROTOCOLS[task.dataset].submission
    if task.split != submission:
        notes.append(f"this is the validation split, which `score` scores; the server takes {submission}.")
        lacking = len(_known(task.dataset, data_root)[0].get(submission, set()) - set(given))
        if task.dataset == "circo" and lacking:  # whose test ids hold those of val
            notes.append(f"should it be meant for {submission}, it lacks {lacking:,} queries.")
    if task.dataset == "circo":
        if task.gallery is None:
            notes.append(f"ids were not checked against the gallery, as {task.gallery_file} is not there.")
        if any(isinstance(entry, str) and image_of("circo", entry) for entry in _entries(given)):
            notes.append("some ids are strings; the server casts them, and its examples have integers.")
    queries = len(given.keys() - set(HEADER))
    what = f"{task.title}, {task.metric}" if task.metric else task.title
    return Verdict(what, queries, tuple(notes), tuple(problems))


def read(file: Path) -> tuple[dict | list, set[str]]:
    """A file's content, and the keys that stand more than once in an object of it. Raises ValueError when empty."""
    repeated = set()

    def noting_repeats(pairs: list[tuple]) -> dict:
        repeated.update(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return dict(pairs)

    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; name a file of predictions.")
    try:
        given = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=noting_repeats)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{file} is not valid JSON ({problem}); write it again.") from problem
    if not isinstance(given, dict | list):
        raise ValueError(f"{file} is {shown(given)} and no predictions; write an object of query id: list of images.")
    if not (given.keys() - set(HEADER) if isinstance(given, dict) else given):
        raise ValueError(f"{file} holds no predictions; write a list of images for every query.")
    return given, repeated


def recognised(file: Path, given: dict | list, data_root: Path) -> Task:
    """What a file of CIRR's or CIRCO's form is of."""
    if not isinstance(given, dict):
        raise ValueError(f"{file} is a list; write an object of query id: list of images (FashionIQ has no server).")
    dataset = "cirr" if _is_cirr(given, data_root) else "circo"
    split = _split(file, dataset, given.keys() - set(HEADER), data_root)
    return task_of(dataset, data_root, split, "all", _metric(given) if dataset == "cirr" else "")


def task_of(dataset: str, data_root: Path, split: str, category: str, metric: str = "") -> Task:
    where = (dataset, data_root, split, category)
    listed = annotations.image_list(*where)
    known = dataset != "circo" or listed.is_file()
    gallery = frozenset(annotations.gallery(*where)["image"]) if known else None
    return Task(dataset, split, metric, annotations.queries(*where), gallery, listed.name)


def _is_cirr(given: dict, data_root: Path) -> bool:
    """By a key of the header; without one by the names listed, or by the ids when more of them are CIRR's."""
    named = any(isinstance(entry, str) and entry.startswith(("dev-", "test1-")) for entry in _entries(given))
    if named or any(key in given for key in HEADER):
        return True
    shared = {d: [len(given.keys() & ids) for ids in _known(d, data_root)[0].values()] for d in ("cirr", "circo")}
    return max(shared["cirr"], default=0) > max(shared["circo"], default=0)


def _entries(given: dict) -> Iterator[object]:
    return (entry for value in given.values() if isinstance(value, list) for entry in value)


def _known(dataset: str, data_root: Path) -> tuple[dict[str, set[str]], FileNotFoundError | None]:
    """Query ids of the splits that are there, and why one is not."""
    known, absent = {}, None
    for split in (PROTOCOLS[dataset].validation, PROTOCOLS[dataset].submission):
        try:
            known[split] = set(annotations.queries(dataset, data_root, split, "all")["query"])
        except FileNotFoundError as problem:
            absent = problem
    return known, absent


def _split(file: Path, dataset: str, ids: set[str], data_root: Path) -> str:
    """The smallest split that has all of the ids, or else the one that has most of them."""
    known, absent = _known(dataset, data_root)
    by_size = sorted(known, key=lambda split: len(known[split]))
    holding = [split for split in by_size if ids <= known[split]]
    best = holding[0] if holding else max(by_size, key=lambda split: len(ids & known[split]), default=None)
    shared = len(ids & known[best]) if best else 0
    if absent and 2 * shared < len(ids):
        raise absent
    if not shared:
        said = f"{PROTOCOLS[dataset].title} {' or '.join(known)} (but {min(ids)}, for one)"
        raise ValueError(f"{file} has no query of {said}; key lists by query id.")
    return best


def _metric(given: dict) -> str:
    """The header's metric, or what the lists' lengths speak for where it has none."""
    if given.get("metric") in list(LENGTHS):
        return given["metric"]
    longest = max((len(value) for value in given.values() if isinstance(value, list)), default=0)
    return "recall_subset" if longest <= LENGTHS["recall_subset"] else "recall"


def problems_of(file: Path, given: dict, repeated: set[str], task: Task, longer: bool) -> list[str]:
    """Sentences on a CIRR or CIRCO file, in its order, those on queries that it lacks last."""
    problems = _header_problems(file, given, repeated) if task.dataset == "cirr" else []
    asked = task.queries.set_index("query")[["reference", "group"]].T.to_dict("list")
    for query, value in given.items():
        if task.dataset == "cirr" and query in HEADER:
            continue
        where = f"query {query} of {file.name}"
        if query in repeated:
            problems.append(f"{where} stands there more than once; keep one of its lists.")
        if query in asked:
            reference, group = asked[query]
            excluded = reference if PROTOCOLS[task.dataset].excludes_reference else None
            among = group if task.metric == "recall_subset" else ()
            problems += list_problems(where, value, task, longer, excluded, among)
        else:
            problems.append(f"{where} is none of {task.title}'s; take it out, or correct its id.")
    lacking = (f"query {query} of {task.title} is not in {file.name}" for query in asked if query not in given)
    return problems + [f"{said}; add its {task.length} images." for said in lacking]


def _header_problems(file: Path, given: dict, repeated: set[str]) -> list[str]:
    problems = [f"key {key} stands more than once in {file.name}; keep one." for key in HEADER if key in repeated]
    for key, allowed in (("version", [VERSION]), ("metric", list(LENGTHS))):
        wanted = " or ".join(f'"{value}"' for value in allowed)
        if key not in given:
            problems.append(f"{file.name} has no key {key}, which CIRR's server needs; add {key}: {wanted}.")
        elif given[key] not in allowed:
            problems.append(f"{key} of {file.name} is {shown(given[key])}; set it to {wanted}.")
    return problems


def list_problems(
    where: str, value: object, task: Task, longer: bool, excluded: str | None = None, among: Sequence[str] = ()
) -> list[str]:
    """Sentences on one query's list: its length, its entries' type, repeats, and images that may not be in it."""
    many = f"list {'at least' if longer else 'exactly'} {task.length} different images"
    if not isinstance(value, list):
        return [f"{where} has {shown(value)} instead of a list; {many}."]
    enough = len(value) == task.length or (longer and len(value) > task.length)
    problems = [] if enough else [f"{where} lists {len(value)} images; {many}."]
    wrong = [shown(entry) for entry in value if image_of(task.dataset, entry) is None]
    times = Counter(image for entry in value if (image := image_of(task.dataset, entry)) is not None)
    repeated = [image for image in times if times[image] > 1]
    reference = [image for image in times if image == excluded]
    unknown = [image for image in times if task.gallery is not None and image not in task.gallery]
    strangers = [image for image in times if among and image not in (*among, *reference, *unknown)]
    form = "integers" if task.dataset == "circo" else "names in quotes"
    for images, said in (
        (wrong, f", which cannot be an image; write {form}"),
        (repeated, f" more than once; {many}"),
        (reference, ", its own reference; leave it out"),
        (unknown, f", not of the gallery; list images of {task.gallery_file}"),
        (strangers, ", not of its group; choose from its img_set's members"),
    ):
        if images:
            more = f" and {len(images) - 3} more" if len(images) > 3 else ""
            problems.append(f"{where} lists {', '.join(images[:3])}{more}{said}.")
    return problems


def image_of(dataset: str, entry: object) -> str | None:
    """An entry of a list as `annotations` writes image ids; None for what cannot be one."""
    if dataset == "circo":
        if type(entry) is int and entry >= 0:
            return str(entry)
        digits = isinstance(entry, str) and entry.isascii() and entry.isdigit()
        return (entry.lstrip("0") or "0") if digits else None
    return entry if isinstance(entry, str) else None


def shown(value: object) -> str:
    written = json.dumps(value)
    return written if len(written) <= 40 else written[:37] + "..."
