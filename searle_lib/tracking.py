"""Optional logging of a training to Comet: only where the package and a key are there."""

import importlib.util
import os
from collections.abc import Callable

Log = Callable[[dict[str, float]], None]


def comet(name: str, facts: dict) -> Log:
    """Return what to call with every epoch's row; it does nothing without the package comet-ml and COMET_API_KEY.

    The workspace is that of COMET_WORKSPACE, which Comet reads itself.
    """
    if not importlib.util.find_spec("comet_ml") or not os.environ.get("COMET_API_KEY"):
        return lambda row: None
    experiments = []

    def log(row: dict[str, float]) -> None:
        if not experiments:  # none is opened for a training that is there already
            from comet_ml import Experiment

            experiments.append(Experiment(project_name="searle"))
            experiments[0].set_name(name)
            experiments[0].log_parameters(facts)
        experiments[0].log_metrics(row, epoch=int(row["epoch"]))

    return log
