import sys
from types import ModuleType
from typing import ClassVar

from searle_lib import training


class Recorder:
    """Stands in for comet_ml.Experiment and remembers what it was told."""

    made: ClassVar[list] = []

    def __init__(self, **facts):
        self.told = [("made", facts)]
        Recorder.made.append(self)

    def set_name(self, name):
        self.told.append(("name", name))

    def log_parameters(self, facts):
        self.told.append(("parameters", facts))

    def log_metrics(self, row, epoch):
        self.told.append(("metrics", row, epoch))


def test_comet_logs_nothing_without_its_package_or_key(monkeypatch):
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    monkeypatch.setenv("COMET_API_KEY", "key")
    assert training.comet_logger("mini", {})({"epoch": 1}) is None


def test_comet_opens_an_experiment_at_the_first_row_and_gets_every_row(monkeypatch):
    Recorder.made.clear()
    module = ModuleType("comet_ml")
    module.Experiment = Recorder
    module.__spec__ = ModuleType("spec")
    monkeypatch.setitem(sys.modules, "comet_ml", module)
    monkeypatch.setenv("COMET_API_KEY", "key")
    log = training.comet_logger("mini", {"epochs": 2})
    assert not Recorder.made
    log({"epoch": 1.0, "distil": 3.0})
    log({"epoch": 2.0, "distil": 2.0})
    (experiment,) = Recorder.made
    assert experiment.told == [
        ("made", {"project_name": "searle"}),
        ("name", "mini"),
        ("parameters", {"epochs": 2}),
        ("metrics", {"epoch": 1.0, "distil": 3.0}, 1),
        ("metrics", {"epoch": 2.0, "distil": 2.0}, 2),
    ]
