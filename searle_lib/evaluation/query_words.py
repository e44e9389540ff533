"""The names nearest to each method's pseudo-word of each reference, to see what a method takes a reference for.

Takes composers, keeps a table for the query explorer. A composer without pseudo-words has no rows.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from searle_lib.backbone.model import Backbone
from searle_lib.data import benchmarks
from searle_lib.data.protocols import protocol_of
from searle_lib.evaluation.contract import Composer
from searle_lib.searle import nearest_names
from searle_lib.store.artefacts import digest
from searle_lib.store.code import code_digest
from searle_lib.store.records import Study

COUNT = 3  # names per pseudo-word


def keep_names(study: Study, backbone: Backbone, composers: Mapping[str, Mapping[str, Composer]]) -> None:
    """Keep the names nearest to the pseudo-words of all references of the scored splits; `composers` are by split."""
    names = nearest_names.comparison_names(study)
    tables = benchmarks.group_by_split(benchmark for benchmark in benchmarks.read(study) if benchmark.is_scored)
    references = {split: list(benchmarks.reference_table(of_split)["image"]) for split, of_split in tables.items()}
    with_words = [
        (split, method, composer)
        for split in references
        for method, composer in composers[split].items()
        if hasattr(composer, "subject_words")
    ]
    facts = {"clip": backbone.sha256, "names": digest(list(names)), "references": digest(references)}
    facts |= {"methods": [(split, method, composer.key) for split, method, composer in with_words]}
    facts |= {"code": code_digest(nearest_names.nearest_names, *{type(composer) for *_, composer in with_words})}

    def make(folder: Path) -> None:
        parts = [pd.DataFrame(columns=["dataset", "method", "reference", "names"])]
        for split, method, composer in with_words:
            images = references[split]
            nearest = nearest_names.nearest_names(backbone, composer.subject_words(images), names, COUNT)
            columns = {"dataset": protocol_of(split.partition("/")[0]).title, "method": method}
            parts.append(pd.DataFrame({"reference": images, "names": nearest}).assign(**columns))
        pd.concat(parts, ignore_index=True).to_parquet(folder / "names.parquet", index=False)

    study.keep("nearest-names", facts, make)


def read_names(study: Study) -> pd.DataFrame:
    """Return the table that 06_retrieval kept: columns dataset (its title), method, reference and names."""
    artefact = study.artefact("06_retrieval", "nearest-names")
    return artefact.read(lambda folder: pd.read_parquet(folder / "names.parquet"))
