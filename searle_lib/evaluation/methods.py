"""The one list of the methods that a study compares: how each is built, what it needs, its names and its colour.

A method of the library is a row of METHODS. A method of one's own is a class in a Python file, written "FILE.py:Class"
in the parameter `methods`, or an entry point of an installed package. Its class is read from the text of its file, so
that a run can be planned without torch and before any code of the file runs.
"""

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from searle_lib.store.reading import is_name, one_sentence, reads
from searle_lib.store.records import Study

ENTRY_POINTS = "searle_lib.methods"  # the group of an installed package's methods
MAX_FILE = 1 << 20
FURTHER_COLOURS = ("#783cf6", "#726cfc", "#c6782a")  # of methods of one's own, and of other models


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Args:
        composer: its composer's class, as "module:class"; "FILE.py:class" for a file of one's own.
        needs: the notebooks that make its words or network.
        colour: its colour in charts and pages; "" for a method of one's own.
        name_on_large: its name in papers on ViT-L/14, if that is another one.
        file: the file of a method of one's own.
        checkpoint: the parameter that names the file of its network, "" for none.
    """

    composer: str
    needs: tuple[str, ...] = ()
    colour: str = ""
    name_on_large: str = ""
    file: Path | None = None
    checkpoint: str = ""

    def composer_class(self) -> type:
        """Import and return the composer's class."""
        module, _, name = self.composer.rpartition(":")
        return getattr(_import_file(self.file) if module.endswith(".py") else importlib.import_module(module), name)

    def file_sha256(self) -> str:
        """Return the sha256 of the file of a method of one's own, "" for a method of the library."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest() if self.file else ""


_COMPOSERS, _BASELINES = "searle_lib.evaluation.composers", "searle_lib.evaluation.baselines"

# A colour has a contrast of 3 to 1 against the light and the dark page. Any two, and the first of FURTHER_COLOURS,
# differ by 15 (CIELAB) for all readers, with and without the common kinds of colour blindness.
METHODS = {
    "Image-only": Method(f"{_COMPOSERS}:ImageOnly", (), "#9c9373"),
    "Text-only": Method(f"{_COMPOSERS}:TextOnly", (), "#78969b"),
    "Image+Text": Method(f"{_COMPOSERS}:ImageAndText", (), "#6a645e"),
    "SEARLE": Method(f"{_COMPOSERS}:Searle", ("04_phi",), "#99570a", "SEARLE-XL"),
    "Pic2Word": Method(f"{_COMPOSERS}:Pic2Word", (), "#9054b4", checkpoint="pic2word_checkpoint"),
    "LinCIR": Method(f"{_COMPOSERS}:LinCir", (), "#f66042", checkpoint="lincir_checkpoint"),
    "SEARLE-OTI": Method(f"{_COMPOSERS}:SearleOti", ("03_oti",), "#396b89", "SEARLE-XL-OTI"),
    "FTI4CIR": Method(f"{_COMPOSERS}:Fti4CirQueries", ("05_fti4cir",), "#cd68eb"),
    "Tuned sum": Method(f"{_BASELINES}:Sum", (), "#7e6042"),
    "Tuned slerp": Method(f"{_BASELINES}:Slerp", (), "#2aa848"),
    "Tuned product": Method(f"{_BASELINES}:Product", (), "#0ca2c0"),
    "SEARLE PDV": Method(f"{_BASELINES}:SearlePdv", ("04_phi",), "#de7806"),
    "SEARLE-OTI PDV": Method(f"{_BASELINES}:SearleOtiPdv", ("03_oti",), "#9c60fc"),
    "FTI4CIR PDV": Method(f"{_BASELINES}:Fti4CirPdv", ("05_fti4cir",), "#a80ccc"),
}


def by_name(methods: Sequence[str], root: Path) -> dict[str, Method]:
    """Return the methods of a study by their names, in order.

    Args:
        methods: the parameter `methods`: rows of METHODS, names of entry points, and "FILE.py:Class".
        root: the project's folder, where relative files start.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a method is not known, a file has no such class, or a name belongs to two methods.
    """
    chosen: dict[str, Method] = {}
    for text in methods:
        name, method = (text, METHODS[text]) if text in METHODS else _own(text, root)
        if name in chosen or (method.file and name in METHODS):
            raise ValueError(
                f'method {text} has the name {name}, which another method has; write name = "..." in its class.'
            )
        chosen[name] = method
    return chosen


def needed(methods: Iterable[Method]) -> set[str]:
    """Return the notebooks that make the words and networks of some methods."""
    return {notebook for method in methods for notebook in method.needs}


def network_files(methods: Mapping[str, Method], values: Mapping, study: Study) -> dict[str, Path]:
    """Return the file of each method's network, for the methods that have one.

    `values` are the parameters of 06_retrieval. Raises ValueError if a file does not exist.
    """
    files = {name: values[method.checkpoint] for name, method in methods.items() if method.checkpoint}
    for name, file in files.items():
        if not Path(study.path(file)).is_file():
            fault = f"{methods[name].checkpoint} {f'{file} is not a file' if file else 'is empty'}"
            raise ValueError(f"methods holds {name}, but {fault}; set it to the file of its authors' network.")
    return {name: Path(study.path(file)) for name, file in files.items()}


def is_own(text: str) -> bool:
    """Return whether an element of the parameter `methods` names a file or an entry point, whether it exists or not."""
    return ".py:" in text or any(point.name == text for point in entry_points(group=ENTRY_POINTS))


def own_sha256(methods: Sequence[str], root: Path) -> list[str]:
    """Return the sha256 of the file of each method of one's own. Raises as `by_name` does."""
    return [method.file_sha256() for method in by_name(methods, root).values() if method.file]


def colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each method by name; other names take FURTHER_COLOURS in the order of the alphabet.

    Tables differ in their order, as other models may lack data sets; so pass all names of a study.
    """
    others = sorted({name for name in names if name not in METHODS})
    further = {name: FURTHER_COLOURS[place % len(FURTHER_COLOURS)] for place, name in enumerate(others)}
    return {name: method.colour for name, method in METHODS.items()} | further


def _own(text: str, root: Path) -> tuple[str, Method]:
    """Return the name of a method of one's own, and the method. Raises as `by_name` does."""
    point = next((point for point in entry_points(group=ENTRY_POINTS) if point.name == text), None)
    if point:
        module, class_name, name = point.module, point.attr, point.name
        with one_sentence(f"method {text}: module {module}", "cannot be found", "install its package again"):
            file = Path(importlib.util.find_spec(module).origin)
    elif ".py:" in text:
        module, _, class_name = text.rpartition(":")
        name, file = class_name, root / Path(module).expanduser()
    else:
        raise ValueError(f"method {text} is not known; write one of {', '.join(METHODS)}, or FILE.py:Class.")
    classes = _read_classes(file)
    if class_name not in classes:
        written = f"has {', '.join(classes)}" if classes else "has no class"
        raise ValueError(f"method {text}: {file} has no class {class_name}; it {written}.")
    name, needs = classes[class_name].get("name", name), classes[class_name].get("needs", ())
    if not is_name(name) or "/" in name or len(name) > 60:
        raise ValueError(f"method {text} has the name {name!r:.80}; write a short text without / as name.")
    known = sorted(needed(METHODS.values()))
    if not isinstance(needs, tuple) or not all(notebook in known for notebook in needs):
        raise ValueError(f"method {text} has needs {needs!r:.80}; write a tuple of {', '.join(known)}.")
    return name, Method(f"{module}:{class_name}", needs, file=file)


@reads("is not Python code", "correct it", "a path starts at the project's folder", "a method's file", MAX_FILE)
def _read_classes(file: Path) -> dict[str, Mapping[str, object]]:
    """Return the values of `name` and `needs` that the body of each class of a Python file sets, by class."""
    nodes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    pairs = {node.name: [(_assigned(statement), statement) for statement in node.body] for node in nodes}
    return {
        class_name: {name: ast.literal_eval(one.value) for name, one in of_class if name in ("name", "needs")}
        for class_name, of_class in pairs.items()
    }


def _assigned(statement: ast.stmt) -> str:
    """Return the name that a statement assigns to, with or without a type; "" if it assigns to none."""
    target = getattr(statement, "targets", [getattr(statement, "target", None)])[0]
    return getattr(target, "id", "")


def _import_file(file: Path) -> object:
    """Import a Python file; one that has changed since is imported again, under another name."""
    name = f"own_{file.stem}_{hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()[:10]}"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module  # the digest of the code looks it up
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
