"""Where a study's files lie, as one of its notebooks sees them.

Apart from `study`, which runs notebooks: a notebook needs its places and none of papermill.
"""

from dataclasses import dataclass
from pathlib import Path

from searle_lib.artefacts import Store

WORLDS = ("miniature", "real")


@dataclass(frozen=True)
class Workspace:
    """Where a notebook finds its data, keeps its artefacts, and leaves its reports."""

    root: Path
    data: Path
    store: Store
    reports: Path

    def path(self, name: str) -> str:
        """A file's or folder's path, if there is one of that name below the project's root; else the name itself."""
        there = self.root / Path(name).expanduser()
        return str(there) if name and there.exists() else name


def open_workspace(
    notebook: str, study: str, data_root: str, artefact_root: str, report_root: str, world: str = "real"
) -> Workspace:
    """The places of a study as seen from a notebook; relative ones lie below the project's root.

    With world "miniature" the data root is drawn when it is not there yet. Raises ValueError for another world.
    """
    if world not in WORLDS:
        raise ValueError(f"world is {world}; it must be {' or '.join(WORLDS)}.")
    root = project_root()
    data = root / Path(data_root).expanduser()
    if world == "miniature":
        from searle_lib.miniworld import writers

        writers.write(data)
    return Workspace(
        root,
        data,
        Store(root / Path(artefact_root).expanduser(), notebook),
        root / Path(report_root).expanduser() / study,
    )


def project_root() -> Path:
    """The nearest folder from here upwards that holds `notebooks` and `params`; else the current folder."""
    here = Path.cwd()
    both = (folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir())
    return next((folder for folder in both if (folder / "params").is_dir()), here)
