"""The code that an artefact depends on, as a digest: every definition of this library that a computation reaches.

`code_digest(oti.optimise)` covers `optimise`, the functions, classes and constants that it names, the ones that these
name, and so on. The digest is part of the artefact's key, so an edited formula or constant gives a new artefact.
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
STORAGE_MODULES = (  # decide how results are stored, and not what the results are
    *("store.artefacts", "store.bars", "store.batches", "store.checkpoints", "store.code", "store.contents"),
    *("store.executors", "store.files", "store.ray_cluster", "store.ray_worker", "store.records", "store.shards"),
    *("store.tensors", "releases.downloads"),
)


@dataclass(frozen=True)
class Source:
    """A module's source.

    Args:
        definitions: the top-level statements that define each name.
        imports: for each name imported from this library, its (module, name) there.
    """

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str]]


@cache
def code_digest(*roots: Callable) -> str:
    """Return ten hexadecimal digits for functions and classes, and for all that they reach in this library."""
    return _digest(_reachable([(root.__module__, root.__qualname__.partition(".")[0]) for root in roots]))


def notebook_code_digest(path: Path) -> str:
    """Return the digest of a notebook's code cells, without the parameters cell, and of all that they reach."""
    cells = [cell for cell in _cells(path) if cell["cell_type"] == "code"]
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    source = Source({}, _parse(tree).imports)  # the body counts as a whole, so its own names need no lookup
    return _digest([*map(_normalise, tree.body), *_reachable(_references("", tree, source))])


def cells_digest(path: Path) -> str:
    """Return the digest of a notebook's cells, text and code, without the parameters cell."""
    sources = [[cell["cell_type"], "".join(cell["source"])] for cell in _cells(path)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:10]


def _cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if "parameters" not in cell["metadata"].get("tags", [])]


def _reachable(roots: list[tuple[str, str]]) -> list[str]:
    """Return the normal form of each definition that some (module, name) pairs reach, sorted."""
    forms: dict[tuple[str, str], list[str]] = {}
    queue = list(roots)
    while queue:
        definition = queue.pop()
        if definition not in forms:
            forms[definition], references = _definition(*definition)
            queue += references
    return sorted(form for of_name in forms.values() for form in of_name)


@cache
def _definition(module: str, name: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the normal forms of a name's definitions in a module, and the (module, name) pairs that these name."""
    source = _source(module)
    statements = source.definitions.get(name, [])
    forms = [f"{name}: {_normalise(statement)}" for statement in statements]
    passed_on = [source.imports[name]] if name in source.imports else []  # the module only imports this name
    return forms, passed_on + [pair for statement in statements for pair in _references(module, statement, source)]


def _references(module: str, tree: ast.AST, source: Source) -> list[tuple[str, str]]:
    """Return the definitions of this library that a piece of code names directly, as (module, name)."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            package, name = source.imports.get(node.value.id, ("", ""))
            if _module_file(f"{package}.{name}"):  # `texts.split` after `from searle_lib.backbone import texts`
                names.append((f"{package}.{name}", node.attr))
        elif isinstance(node, ast.Name) and node.id in source.definitions:
            names.append((module, node.id))
        elif isinstance(node, ast.Name) and node.id in source.imports:
            names.append(source.imports[node.id])
    return [
        (home, name)
        for home, name in names
        if home.partition(".")[2] not in STORAGE_MODULES and not _module_file(f"{home}.{name}")
    ]


@cache
def _source(module: str) -> Source:
    file = _module_file(module) or Path(sys.modules[module].__file__)
    return _parse(ast.parse(file.read_text(encoding="utf-8")))


def _parse(tree: ast.Module) -> Source:
    definitions: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        parts = [part for target in targets if target for part in ast.walk(target)]  # `X, Y = 1, 2` defines both
        names = [statement.name] if hasattr(statement, "name") else [p.id for p in parts if isinstance(p, ast.Name)]
        for name in names:
            definitions.setdefault(name, []).append(statement)
    all_imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    from_library = [node for node in all_imports if node.module.partition(".")[0] == PACKAGE.name]
    imports = {alias.asname or alias.name: (node.module, alias.name) for node in from_library for alias in node.names}
    return Source(definitions, imports)


@cache
def _module_file(module: str) -> Path | None:
    """Return the file of a module or package of this library; None for anything else."""
    package, *rest = module.split(".")
    if package != PACKAGE.name or not all(rest):
        return None
    path = PACKAGE.joinpath(*rest)
    files = (path.with_name(path.name + ".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _normalise(statement: ast.stmt) -> str:
    """Return a statement as text that layout, comments, docstrings and `raise` statements do not change."""
    return ast.dump(_Normaliser().visit(ast.parse(ast.unparse(statement))))


class _Normaliser(ast.NodeTransformer):
    """Drops docstrings and `raise` statements."""

    def visit_Raise(self, node: ast.Raise) -> ast.Pass:
        return ast.Pass()

    def generic_visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = body[1:] or [ast.Pass()]
        return super().generic_visit(node)


def _digest(forms: list[str]) -> str:
    return hashlib.sha256("\n".join(forms).encode()).hexdigest()[:10]
