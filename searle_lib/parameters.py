"""A study's parameters: one flat YAML file, checked against what the notebooks declare before anything runs.

A notebook's cell tagged `parameters` is the only declaration: a name, a type, a default, and a comment that says
what, unit and source. Papermill reads it there, and so does this module.
"""

import ast
import difflib
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml
from papermill import inspect_notebook

Value = str | int | float | bool | list
CHOICES = {  # of a value, or of each element of a list
    "world": ("miniature", "real"),
    "preprocess": ("targetpad", "clip"),
    "precision": ("float32", "bfloat16", "float16"),
    "datasets": ("fashioniq", "cirr", "circo"),
    "evaluate": ("validation", "test"),
    "fashioniq_gallery": ("split", "union"),
    "missing_images": ("error", "report"),
    "fti_words": ("both", "subject", "attributes"),
    "fti_without": ("", "contrastive", "orthogonality", "subject", "attribute", "whole"),
    "caption_split": ("reference", "sane"),
    "methods": ("Image-only", "Text-only", "Image+Text", "SEARLE", "SEARLE-OTI", "FTI4CIR"),
}
MAY_BE_ZERO = ("seed", "phrase_no_repeat_ngram")  # of the whole numbers
_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list}


@dataclass(frozen=True)
class Declared:
    """A parameter as notebooks declare it: its type, its default, what it means, and the notebooks that use it."""

    kind: type
    default: str
    help: str
    notebooks: tuple[str, ...]


def declared(notebooks: list[Path]) -> dict[str, Declared]:
    """Every parameter that a notebook declares, by name. Raises ValueError for one declared without a known type."""
    found: dict[str, Declared] = {}
    for path in notebooks:
        for name, facts in inspect_notebook(str(path)).items():
            kind = _TYPES.get(facts["inferred_type_name"])
            if kind is None:
                raise ValueError(f"{path.name} declares {name} without one of the types {', '.join(_TYPES)}.")
            users = (*found[name].notebooks, path.stem) if name in found else (path.stem,)
            found[name] = Declared(kind, facts["default"], facts["help"], users)
    return found


def defaults(known: dict[str, Declared]) -> dict[str, Value]:
    """What every parameter is where a file does not say."""
    return {name: ast.literal_eval(declared.default) for name, declared in known.items()}


def read(path: Path, known: dict[str, Declared], overrides: typing.Sequence[str] = ()) -> dict[str, Value]:
    """The parameters of a file, then those of `name=value` overrides, each one checked.

    Raises FileNotFoundError or ValueError, in one sentence, for a file that is not there or no flat YAML, a name that
    no notebook declares or that stands twice, and a value of the wrong type, too small, or none of the choices.
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
            raise ValueError(f"-p {override} must be written name=value.")
        checked[name] = check(name, _yaml(text, f"-p {name}"), known, "-p")
    return checked


def _yaml(text: str, source: str) -> object:
    """The content of a YAML text, in which no key may stand twice."""
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


def check(name: str, value: object, known: dict[str, Declared], source: str) -> Value:
    """The value, if the parameter of that name may have it; an int becomes the float or string that is due."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {near[0]} ({', '.join(known[near[0]].notebooks)})?" if near else "no notebook declares it."
        )
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
    if value == []:
        raise ValueError(f"{name} in {source} is empty; name at least one of {', '.join(CHOICES.get(name, ()))}.")
    for one in value if kind is list else [value]:
        if name in CHOICES and one not in CHOICES[name]:
            raise ValueError(f"{name} in {source} holds {one!r}; it must be {' or '.join(CHOICES[name])}.")
    least = 0 if kind is float or name in MAY_BE_ZERO else 1
    if kind in (int, float) and value < least:
        raise ValueError(f"{name} in {source} is {value}; it must be at least {least}.")
    return value
