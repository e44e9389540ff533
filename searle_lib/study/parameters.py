"""A study's parameters: one flat YAML file, checked against the notebooks' declarations before anything runs.

The cell of a notebook tagged `parameters` is the only declaration of its parameters: name, type, default, and a comment
with meaning, unit and published value. Each parameter belongs to one notebook; several declare only those of COMMON.
"""

import ast
import difflib
import importlib
import io
import json
import math
import re
import tokenize
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from searle_lib.store.limits import PositiveInt, Seed
from searle_lib.store.reading import FileRefused, one_sentence, printable, reads, show

Value = str | int | float | bool | list
EXECUTION = ("executor", "ray_address", "ray_gpus")
COMMON = ("study", "data_root", "artefact_root", "report_root", "seed", "device", "workers", *EXECUTION)
PLACES = ("study", "data_root", "artefact_root", "report_root")
SPEED = (  # change the speed of a notebook or its intermediate files, and no result
    *("device", "workers", "image_batch_size", "text_batch_size", "phrase_batch_size"),
    *("oti_batch_size", "oti_save_every", "phi_save_every", *EXECUTION),
)
CHOICES = {  # where the allowed values are listed; imported only when a value has to be checked
    "world": "study.workspace:WORLDS",
    "executor": "store.executors:EXECUTORS",
    "preprocess": "data.images:PREPROCESSINGS",
    "precision": "backbone.model:PRECISIONS",
    "datasets": "data.benchmarks:PROTOCOLS",
    "evaluate": "data.benchmarks:EVALUATE",
    "fashioniq_gallery": "data.benchmarks:FASHIONIQ_GALLERIES",
    "missing_images": "data.readable:POLICIES",
    "images_to_invert": "data.benchmarks:IMAGE_LISTS",
    "caption_split": "fti4cir.captions:SPLITS",
    "methods": "evaluation.methods:METHODS",
    "index": "evaluation.indexes:INDEXES",
}
LIKE_FILES = {"datasets": "data.protocols:dataset_names"}  # lists that may also name files; what checks all elements
OPEN_CHOICES = {"methods": "evaluation.methods:is_own"}  # whether a value is allowed that no list has
SETTINGS = {  # the class of which a parameter with this prefix is a field; it states the field's limits
    "phrase_": "searle.settings:PhraseSettings",
    "phrases_": "searle.settings:PhraseSettings",
    "oti_": "searle.settings:OtiSettings",
    "phi_": "searle.settings:PhiSettings",
    "fti_": "fti4cir.settings:Fti4CirSettings",
}
LIMITS = {  # of parameters of no stage; another integer is a count
    "seed": Seed,
    "seeds": list[Seed],
    "other_models": list[str],
    "workers": Annotated[int, Field(gt=0, le=256)],
    "ray_gpus": Annotated[float, Field(gt=0, le=8)],
}
MOST = 2**31 - 1  # of anything that is counted
SMALLEST = 1e-12  # beside 0; single precision computes with nothing smaller, or larger than its inverse
MAX_FILE, MAX_TEXT = 1 << 16, 4096  # bytes and characters
NO_YAML = ("is not valid YAML", "correct it")
OPTIONAL_LISTS = ("images_to_invert", "other_models", "seeds")  # lists that may be empty
_STUDY = re.compile(r"\w[\w .+-]{0,99}")
_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
_PUBLISHED = re.compile(r"\((?:SEARLE|FTI4CIR)[^:)]*: ([^,)\s]+)[,)]")  # as in "(SEARLE, oti-steps: 350)"


@dataclass(frozen=True)
class Declaration:
    """A parameter as notebooks declare it.

    Args:
        kind: its type.
        default: its value unless a parameter file sets another.
        help: the comment: meaning, unit and published value.
        notebooks: the notebooks that declare it.
    """

    kind: type
    default: Value
    help: str
    notebooks: tuple[str, ...]


def read_declarations(notebooks: list[Path]) -> dict[str, Declaration]:
    """Return every parameter that a notebook declares, by name.

    Papermill's own `inspect_notebook` reads the same cell, but takes seconds to import, in every kernel.
    Raises ValueError for a declaration without a known type.
    """
    declarations: dict[str, Declaration] = {}
    for path in notebooks:
        for name, (kind, default, comment) in _parameters_cell(path).items():
            if name in declarations:  # one of COMMON: the first notebook's comment explains it
                first = declarations[name]
                declarations[name] = replace(first, notebooks=(*first.notebooks, path.stem))
            else:
                declarations[name] = Declaration(kind, default, comment, (path.stem,))
    return declarations


def published_values(declarations: Mapping[str, Declaration]) -> dict[str, Value]:
    """Return the published value of each parameter whose declaration states one, by name; places have none."""
    values = {}
    for name, declaration in declarations.items():
        match = _PUBLISHED.search(declaration.help)
        if match and declaration.kind is not list and name not in PLACES:
            values[name] = declaration.kind(match[1])
    return values


def names_of_notebook(declarations: dict[str, Declaration], notebook: str) -> list[str]:
    """Return the names of the parameters that a notebook declares."""
    return [name for name, parameter in declarations.items() if notebook in parameter.notebooks]


def result_parameters(values: dict[str, Value]) -> dict[str, Value]:
    """Return the parameters that decide a result, without PLACES and SPEED."""
    return {name: value for name, value in values.items() if name not in (*PLACES, *SPEED)}


def defaults(declarations: dict[str, Declaration]) -> dict[str, Value]:
    """Return the default of every parameter."""
    return {name: parameter.default for name, parameter in declarations.items()}


def choices(name: str) -> tuple[str, ...]:
    """Return the allowed values of a parameter, or of each element if it is a list; () if any value is allowed."""
    return tuple(_look_up(CHOICES.get(name, "")) or ())


def read(path: Path, declarations: dict[str, Declaration], overrides: typing.Sequence[str] = ()) -> dict[str, Value]:
    """Read a parameter file and `name=value` overrides, and check each value.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not flat YAML, sets a name twice, or sets a name that no notebook declares; or if a
            value has the wrong type, is outside of its limits, or is not one of the choices.
    """
    content = _read_file(path)
    values = {str(name): check(str(name), value, declarations, str(path)) for name, value in content.items()}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"-p {override} must be written name=value, as in -p oti_steps=50.")
        with one_sentence(f"-p {name}", *NO_YAML):
            value = _parse_yaml(text, f"-p {name}")
        values[name] = check(name, value, declarations, "-p")
    return values


def check(name: str, value: object, declarations: dict[str, Declaration], source: str) -> Value:
    """Return the value of a parameter; an int becomes a float or a string where the type asks for it.

    Args:
        name: the parameter.
        value: its value.
        declarations: every parameter that a notebook declares.
        source: where the value is from, for the error's sentence.

    Raises:
        ValueError: for an unknown name, a wrong type, or a value that is not allowed.
    """
    if name not in declarations:
        similar = difflib.get_close_matches(name, declarations, n=1)
        hint = "no notebook declares it."
        if similar:
            hint = f"did you mean {similar[0]} ({', '.join(declarations[similar[0]].notebooks)})?"
        raise ValueError(f"unknown parameter {printable(name):.80} in {source}; {hint}")
    declaration = declarations[name]
    kind = declaration.kind
    if type(value) is int and kind in (float, str):
        value = kind(value)
    if type(value) is not kind:
        actual = type(value).__name__
        hint = " (YAML reads 2e-2 as a string: write 2.0e-2)" if kind is float and isinstance(value, str) else ""
        raise ValueError(
            f"{name} in {source} is {show(value)}, a {actual}, but must be of type {kind.__name__}{hint}; "
            f"notebook {declaration.notebooks[0]} says: {declaration.help or 'nothing'}."
        )
    if value != declaration.default:  # a default needs no check, and no import of its stage
        _check_text(name, value, source)
        _check_choice(name, value, source)
        _check_limits(name, value, source)
    return value


def _check_text(name: str, value: Value, source: str) -> None:
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not (text.isprintable() and len(text) <= MAX_TEXT):
            rule = f"be a text of at most {MAX_TEXT} characters that can be printed"
            raise ValueError(f"{name} in {source} is {show(text)}; it must {rule}.")
    if name == "study" and not _STUDY.fullmatch(value):
        rule = "be the name of a folder: letters, digits, and -, _, . or blanks after the first one"
        raise ValueError(f"{name} in {source} is {show(value)}; it must {rule}.")


def _look_up(place: str) -> object:
    """Return what stands at a place such as "data.images:PREPROCESSINGS"; None for ""."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(f"searle_lib.{module}"), attribute) if module else None


def _check_choice(name: str, value: Value, source: str) -> None:
    allowed = choices(name)
    check_files = _look_up(LIKE_FILES.get(name, ""))
    if value == [] and name not in OPTIONAL_LISTS:
        raise ValueError(f"{name} in {source} is empty; name at least one of {', '.join(allowed)}.")
    for place, one in enumerate(value if isinstance(value, list) else [value]):
        is_open = (check_files and isinstance(one, str)) or _is_open_choice(name, one)
        if allowed and one not in allowed and not is_open:
            raise ValueError(f"{name} in {source} holds {show(one)}; it must be {' or '.join(allowed)}.")
        if allowed and isinstance(value, list) and one in value[:place]:
            raise ValueError(f"{name} in {source} holds {show(one)} twice; name each once.")
    if check_files:
        try:
            check_files(value)
        except ValueError as problem:
            raise ValueError(f"{name} in {source}: {problem}") from None


def _is_open_choice(name: str, value: object) -> bool:
    is_open = _look_up(OPEN_CHOICES.get(name, ""))
    return is_open is not None and is_open(str(value))


def _check_limits(name: str, value: Value, source: str) -> None:
    """Raise ValueError if a value is outside of its limits.

    The limits are those of the stage's Settings. An integer without such limits must be at least 1.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} in {source} is {value}; it must be a finite number.")
    if isinstance(value, float) and value and not SMALLEST <= abs(value) <= 1 / SMALLEST:
        raise ValueError(f"{name} in {source} is {value}; it must be 0, or between {SMALLEST} and {1 / SMALLEST}.")
    limits = LIMITS.get(name) or (PositiveInt if type(value) is int else None)
    if limits is not Seed and type(value) is int and value > MOST:
        raise ValueError(f"{name} in {source} is {show(value)}; it must be at most {MOST}.")
    prefix = next((prefix for prefix in SETTINGS if name.startswith(prefix)), "")
    if prefix:
        settings = _look_up(SETTINGS[prefix])
        fields = typing.get_type_hints(settings, include_extras=True)
        limits = fields.get(name.removeprefix(prefix)) or fields.get(name) or limits
    try:
        TypeAdapter(limits or type(value)).validate_python(value, strict=True)
    except ValidationError as problem:
        rule = problem.errors()[0]["msg"].replace("Input should be", "it must be")
        raise ValueError(f"{name} in {source} is {show(value)}; {rule}.") from None


def _parameters_cell(path: Path) -> dict[str, tuple[type, Value, str]]:
    """Return the type, the default and the comment of each parameter in a notebook's parameters cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    parameters = {}
    for statement in ast.parse(source).body:
        target = getattr(statement, "target", None) or getattr(statement, "targets", [None])[0]
        kind = _TYPES.get(getattr(getattr(statement, "annotation", None), "id", ""))
        if not isinstance(target, ast.Name) or kind is None:
            raise ValueError(f"{path.name} declares {ast.unparse(statement)} without a type of {', '.join(_TYPES)}.")
        parameters[target.id] = (kind, ast.literal_eval(statement.value), comments.get(statement.lineno, ""))
    return parameters


@reads(*NO_YAML, absent="params/mini.yaml is the default one", noun="parameter file", limit=MAX_FILE)
def _read_file(path: Path) -> dict:
    content = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(content, dict | None):
        raise FileRefused(f"{path} must hold one `name: value` per line, but holds a {type(content).__name__}.")
    return content or {}


def _parse_yaml(text: str, source: str) -> object:
    """Return the content of a YAML text, inside `one_sentence`. Raises FileRefused if it sets a key twice."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FileRefused(f"{source} sets {twice} twice; remove one.")
    return yaml.safe_load(text)
