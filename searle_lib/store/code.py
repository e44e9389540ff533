"""The code behind an artefact: a digest of every definition of this library that a computation reaches.

`code_digest(inversion.optimise)` covers `optimise`, the functions, classes and constants that it names, those that
these name, and so on. It is part of the artefact's key, so an edited formula or constant gives a new artefact.
Docstrings, comments, layout and `raise` statements do not count: they cannot change a result.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
KEEPING = (  # modules that decide how results are kept and not what they are
    *("store.artefacts", "store.checkpoints", "store.code", "store.records", "store.shards"),
    "releases.downloads",
)


@dataclass(frozen=True)
class Source:
    """A module's top-level definitions by name, and what its imports from this library stand for: (module, name)."""

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str]]


@cache
def code_digest(*roots: Callable) -> str:
    """Return ten hexadecimal digits for the functions and classes `roots` and all that they reach in this library."""
    return _digest_of(_reached([(root.__module__, root.__qualname__.partition(".")[0]) for root in roots]))


def notebook_code(path: Path) -> str:
    """Return the digest of a notebook's code cells, without the parameters, and of all that they reach."""
    cells = [cell for cell in _cells(path) if cell["cell_type"] == "code"]
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    source = Source({}, _source_of(tree).imports)  # its own names are in its body, which counts as a whole
    return _digest_of([*map(_plain, tree.body), *_reached(_references("", tree, source))])


def cells_digest(path: Path) -> str:
    """Return a digest of all that a notebook says and does: its cells, without the parameters."""
    sources = [[cell["cell_type"], "".join(cell["source"])] for cell in _cells(path)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:10]


def _cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if "parameters" not in cell["metadata"].get("tags", [])]


def _reached(waiting: list[tuple[str, str]]) -> list[str]:
    """Return the plain form of each definition that is reached from some (module, name), in a fixed order."""
    seen: dict[tuple[str, str], list[str]] = {}
    waiting = list(waiting)
    while waiting:
        module, name = waiting.pop()
        if (module, name) in seen:
            continue
        source = _source(module)
        statements = source.definitions.get(name, [])
        seen[module, name] = [f"{name}: {_plain(statement)}" for statement in statements]
        if name in source.imports:  # a name that the module only passes on
            waiting.append(source.imports[name])
        for statement in statements:
            waiting += _references(module, statement, source)
    return sorted(form for forms in seen.values() for form in forms)


def _references(module: str, tree: ast.AST, source: Source) -> list[tuple[str, str]]:
    """Return the definitions of this library that a piece of code names directly."""
    named = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            package, name = source.imports.get(node.value.id, ("", ""))
            if _file(f"{package}.{name}"):  # texts.encode, of `from searle_lib import texts`
                named.append((f"{package}.{name}", node.attr))
        elif isinstance(node, ast.Name) and node.id in source.definitions:
            named.append((module, node.id))
        elif isinstance(node, ast.Name) and node.id in source.imports:
            named.append(source.imports[node.id])
    return [(of, name) for of, name in named if not _keeps(of) and not _file(f"{of}.{name}")]


@cache
def _source(module: str) -> Source:
    file = _file(module) or Path(sys.modules[module].__file__)
    return _source_of(ast.parse(file.read_text(encoding="utf-8")))


def _source_of(tree: ast.Module) -> Source:
    definitions: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        parts = [part for target in targets if target for part in ast.walk(target)]  # of `X, Y = 1, 2` both
        names = [statement.name] if hasattr(statement, "name") else [p.id for p in parts if isinstance(p, ast.Name)]
        for name in names:
            definitions.setdefault(name, []).append(statement)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    ours = [node for node in imported if node.module.partition(".")[0] == PACKAGE.name]
    imports = {alias.asname or alias.name: (node.module, alias.name) for node in ours for alias in node.names}
    return Source(definitions, imports)


@cache
def _file(module: str) -> Path | None:
    """Return the file of a module or package of this library; None for anything else."""
    package, *rest = module.split(".")
    if package != PACKAGE.name or not all(rest):
        return None
    place = PACKAGE.joinpath(*rest)
    files = (place.with_name(place.name + ".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _keeps(module: str) -> bool:
    return module.partition(".")[2] in KEEPING


def _plain(statement: ast.stmt) -> str:
    """Return a statement as text that layout, comments, docstrings and refusals do not change."""
    return ast.dump(_Plain().visit(ast.parse(ast.unparse(statement))))


class _Plain(ast.NodeTransformer):
    """Drops docstrings and `raise` statements."""

    def visit_Raise(self, node: ast.Raise) -> ast.Pass:
        return ast.Pass()

    def generic_visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = body[1:] or [ast.Pass()]
        return super().generic_visit(node)


def _digest_of(forms: list[str]) -> str:
    return hashlib.sha256("\n".join(forms).encode()).hexdigest()[:10]
