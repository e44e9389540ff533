"""A study's parameters: one flat YAML file, checked against what the notebooks declare before anything runs.

A notebook's cell tagged `parameters` is the only declaration: a name, a type, a default, and a comment with meaning,
unit and published value. Each parameter belongs to one notebook; only those of COMMON stand in several.
"""

import ast
import difflib
import importlib
import io
import json
import math
import tokenize
import typing
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from searle_lib.store.limits import PositiveInt, Seed

Value = str | int | float | bool | list
COMMON = ("study", "data_root", "artefact_root", "report_root", "seed", "device", "workers")
PLACES = ("study", "data_root", "artefact_root", "report_root")
SPEED = (  # change how fast a notebook runs and what is kept on the way, and no result
    *("device", "workers", "image_batch_size", "text_batch_size", "phrase_batch_size"),
    *("oti_batch_size", "oti_save_every", "phi_save_every"),
)
CHOICES = {  # where the list of allowed values stands, imported only when a value has to be checked
    "world": "study.workspace:WORLDS",
    "preprocess": "data.images:PREPROCESSINGS",
    "precision": "backbone.model:PRECISIONS",
    "datasets": "data.benchmarks:PROTOCOLS",
    "evaluate": "data.benchmarks:EVALUATE",
    "fashioniq_gallery": "data.benchmarks:FASHIONIQ_GALLERIES",
    "missing_images": "data.readable:POLICIES",
    "images_to_invert": "data.benchmarks:IMAGE_LISTS",
    "caption_split": "fti4cir.captions:SPLITS",
    "methods": "evaluation.methods:METHODS",
}
SETTINGS = {  # of which stage's Settings a parameter with this prefix is a field, which states its limits
    "phrase_": "searle.phrases",
    "phrases_": "searle.phrases",
    "oti_": "searle.oti",
    "phi_": "searle.distillation",
    "fti_": "fti4cir.training",
}
MAY_BE_EMPTY = ("images_to_invert",)  # of the lists
_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list}


@dataclass(frozen=True)
class Declared:
    """A parameter as notebooks declare it: its type, its default, what it means, and the notebooks that declare it."""

    kind: type
    default: Value
    help: str
    notebooks: tuple[str, ...]


def declared(notebooks: list[Path]) -> dict[str, Declared]:
    """Return every parameter that a notebook declares, by name.

    Papermill's own `inspect_notebook` reads the same cell, but takes seconds to import, in every kernel.
    Raises ValueError for one declared without a known type and a literal default.
    """
    known: dict[str, Declared] = {}
    for path in notebooks:
        for name, (kind, default, explained) in _cell(path).items():
            if name in known:  # one of COMMON: the first notebook's words explain it
                known[name] = replace(known[name], notebooks=(*known[name].notebooks, path.stem))
            else:
                known[name] = Declared(kind, default, explained, (path.stem,))
    return known


def of_notebook(known: dict[str, Declared], notebook: str) -> list[str]:
    """Return the names of the parameters that a notebook declares."""
    return [name for name, parameter in known.items() if notebook in parameter.notebooks]


def deciding(values: dict[str, Value]) -> dict[str, Value]:
    """Return the parameters that decide a result, without places and those that only change speed."""
    return {name: value for name, value in values.items() if name not in (*PLACES, *SPEED)}


def defaults(known: dict[str, Declared]) -> dict[str, Value]:
    """Return what every parameter is where a file does not say."""
    return {name: parameter.default for name, parameter in known.items()}


def choices(name: str) -> tuple[str, ...]:
    """Return what a parameter, or each element of a list, may be; () where it is free."""
    module, _, attribute = CHOICES.get(name, "").partition(":")
    return tuple(getattr(importlib.import_module(f"searle_lib.{module}"), attribute)) if module else ()


def read(path: Path, known: dict[str, Declared], overrides: typing.Sequence[str] = ()) -> dict[str, Value]:
    """Return the parameters of a file, then those of `name=value` overrides, each one checked.

    Raises FileNotFoundError or ValueError, in one sentence, for a file that does not exist or is no flat YAML, a name
    that no notebook declares or that stands twice, and a value of the wrong type, too small, or none of the choices.
    """
    if not path.is_file():
        raise FileNotFoundError(f"parameter file {path} does not exist; params/mini.yaml is the default one.")
    content = _yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one `name: value` a line, but holds a {type(content).__name__}.")
    checked = {str(name): check(str(name), value, known, str(path)) for name, value in content.items()}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"-p {override} must be written name=value, as in -p oti_steps=50.")
        checked[name] = check(name, _yaml(text, f"-p {name}"), known, "-p")
    return checked


def check(name: str, value: object, known: dict[str, Declared], source: str) -> Value:
    """Return the value, if the parameter of that name may have it; an int becomes a float or string where due."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = "no notebook declares it."
        if near:
            hint = f"did you mean {near[0]} ({', '.join(known[near[0]].notebooks)})?"
        raise ValueError(f"unknown parameter {name} in {source}; {hint}")
    kind = known[name].kind
    if type(value) is int and kind in (float, str):
        value = kind(value)
    if type(value) is not kind:
        hint = " (YAML reads 2e-2 as a string: write 2.0e-2)" if kind is float and isinstance(value, str) else ""
        raise ValueError(
            f"{name} in {source} is {value!r}, a {type(value).__name__}, but must be of type {kind.__name__}{hint}; "
            f"notebook {known[name].notebooks[0]} says: {known[name].help or 'nothing'}."
        )
    if value != known[name].default:  # a default needs no check, and no import of its stage
        _check_choice(name, value, source)
        _check_limits(name, value, source)
    return value


def _check_choice(name: str, value: Value, source: str) -> None:
    allowed = choices(name)
    if value == [] and name not in MAY_BE_EMPTY:
        raise ValueError(f"{name} in {source} is empty; name at least one of {', '.join(allowed)}.")
    for one in value if isinstance(value, list) else [value]:
        if allowed and one not in allowed:
            raise ValueError(f"{name} in {source} holds {one!r}; it must be {' or '.join(allowed)}.")


def _check_limits(name: str, value: Value, source: str) -> None:
    """Raise ValueError for a value outside its limits: those of its stage's Settings, else at least 1 of an integer."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} in {source} is {value}; it must be a finite number.")
    limits = Seed if name == "seed" else PositiveInt if type(value) is int else None
    prefix = next((prefix for prefix in SETTINGS if name.startswith(prefix)), "")
    if prefix:
        settings = importlib.import_module(f"searle_lib.{SETTINGS[prefix]}").Settings
        fields = typing.get_type_hints(settings, include_extras=True)
        limits = fields.get(name.removeprefix(prefix)) or fields.get(name) or limits
    try:
        TypeAdapter(limits or type(value)).validate_python(value)
    except ValidationError as problem:
        rule = problem.errors()[0]["msg"].replace("Input should be", "it must be")
        raise ValueError(f"{name} in {source} is {value!r}; {rule}.") from None


def _cell(path: Path) -> dict[str, tuple[type, Value, str]]:
    """Return the type, the default and the comment of each parameter of a notebook's parameters cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    source = "\n".join(sources)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    declarations = {}
    for statement in ast.parse(source).body:
        named = getattr(statement, "target", None) or getattr(statement, "targets", [None])[0]
        kind = _TYPES.get(getattr(getattr(statement, "annotation", None), "id", ""))
        if not isinstance(named, ast.Name) or kind is None:
            raise ValueError(f"{path.name} declares {ast.unparse(statement)} without a type of {', '.join(_TYPES)}.")
        declarations[named.id] = (kind, ast.literal_eval(statement.value), comments.get(statement.lineno, ""))
    return declarations


def _yaml(text: str, source: str) -> object:
    """Return the content of a YAML text, in which no key may stand twice."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        content = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(problem).split())}; correct it.") from problem
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{source} sets {twice} twice; remove one.")
    return content
