"""The command line: `searle run params/mini.yaml`, or `python -m searle_lib run params/mini.yaml`."""

import argparse
import json
import sys
from pathlib import Path

from searle_lib.evaluation import comparisons, scores
from searle_lib.store import artefacts
from searle_lib.store.records import Missing, Stale, Study
from searle_lib.study import run, workspace


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 when all is well, 1 with a sentence for each problem when not."""
    given = _parser().parse_args(arguments)
    try:
        return given.run(given)
    except (run.Stopped, Missing, Stale, artefacts.Damaged, ValueError, OSError) as problem:
        print(f"error: {_sentence(problem)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here.", file=sys.stderr)
        return 130


def _sentence(problem: Exception) -> str:
    """What went wrong; the system's own errors with the file and a remedy."""
    if not isinstance(problem, OSError) or problem.filename is None:
        return str(problem)
    said = f"{problem.filename}: {problem.strerror}"
    if problem.errno in artefacts.FULL:
        return f"{said}; make room there, or set artefact_root and report_root to a larger disk."
    return f"{said}; set data_root, artefact_root and report_root to folders that this user may read and write."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="searle", description="Composed image retrieval, a study.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, run, explained, *arguments):
        made = commands.add_parser(name, help=explained, description=explained)
        made.set_defaults(run=run)
        for names, options in arguments:
            made.add_argument(*names, **options)
        return made

    params = (["params"], {"type": Path, "help": "the study's parameter file, such as params/mini.yaml"})
    changes = (["-p"], {"dest": "overrides", "action": "append", "metavar": "NAME=VALUE", "help": "change a parameter"})
    file = (["file"], {"type": Path, "help": "a file of predictions"})
    data = (["--data-root"], {"type": Path, "required": True, "help": "the folder of FashionIQ, CIRR and CIRCO"})
    to = (["--to"], {"type": Path, "required": True, "help": "the folder to write to"})
    running = command(
        "run", _run, "run a study's notebooks in order, but for those that are unchanged", params, changes
    )
    running.add_argument("--again", action="store_true", help="run notebooks that are unchanged, too")
    which = running.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="NOTEBOOK", help="run this notebook alone, such as 06_retrieval")
    which.add_argument("--from", dest="first", metavar="NOTEBOOK", help="start from this notebook, such as 03_oti")
    command("check", _check, "look at all that a study needs before anything is computed", params, changes)
    command("submit", _submit, "write the files that the test servers take, from a study's rankings", params, changes)
    command("export", _export, "write a study's φ and OTI tokens in the authors' form", params, changes, to)
    command("validate", _validate, "say whether a test server would take a file of CIRR or CIRCO", file, data)
    tables = [([name], {"type": Path, "help": "a results.csv"}) for name in ("first", "second")]
    command("compare", _compare, "say how far the numbers of two results.csv lie apart", *tables)
    dataset = (["--dataset"], {"required": True, "choices": ["fashioniq", "cirr", "circo"]})
    category = (["--category"], {"choices": ["dress", "shirt", "toptee"], "help": "of FashionIQ"})
    command(
        "score", _score, "print the validation metrics of a file, in percent, as JSON", file, dataset, data, category
    )
    return parser


def _run(given: argparse.Namespace) -> int:
    index = run.run(given.params, given.only, given.first, given.overrides, given.again)
    if given.only in (None, "07_results"):
        run.main_table(_study(given)[1])
    print(f"\n{index}")
    return 0


def _study(given: argparse.Namespace) -> tuple[dict, Study]:
    """Return a study's parameters and its records, as a command sees them."""
    values = run.read_values(given.params, given.overrides)
    return values, workspace.find_study(values, given.command)


def _check(given: argparse.Namespace) -> int:
    from searle_lib.check import report  # this and the others below load torch, which `run` does not need

    values, study = _study(given)
    workspace.draw_world(study.root, values)
    return report.report(values, study)


def _submit(given: argparse.Namespace) -> int:
    from searle_lib.servers import predictions, submissions

    values, study = _study(given)
    run.require_same(study, "06_retrieval", values, given.params)
    _, rankings = scores.read_scores(study)
    sizes = scores.made_with(study)["sizes"]
    for name in sizes:
        if name.split("/")[1].startswith("test") and submissions.incomplete(name, sizes):
            print(submissions.incomplete(name, sizes))
    refused = 0
    files = submissions.write_all(study.reports / "submissions", rankings, sizes)
    for file in files:
        problems = predictions.validate(file, study.root / values["data_root"]).problems
        refused += bool(problems)
        print(f"{file}: {problems[0] if problems else 'as its server takes it'}")
    if not files:
        print("nothing was written; a server takes CIRR's and CIRCO's complete test splits (evaluate: [test]).")
    return int(refused > 0 or not files)


def _export(given: argparse.Namespace) -> int:
    from searle_lib.study import export

    values, study = _study(given)
    run.require_same(study, "06_retrieval", values, given.params)
    for written in export.export(study, given.to):
        print(written)
    return 0


def _compare(given: argparse.Namespace) -> int:

    apart = comparisons.apart(given.first, given.second)
    print(apart.to_string())
    same = bool((apart <= comparisons.SAME).all())
    print(
        f"every number agrees to {comparisons.SAME} points."
        if same
        else f"some differ by more than {comparisons.SAME} points."
    )
    return int(not same)


def _validate(given: argparse.Namespace) -> int:
    from searle_lib.servers import predictions

    verdict = predictions.validate(given.file, given.data_root)
    print(f"{verdict.what}: {verdict.queries:,} queries")
    for note in verdict.notes:
        print(f"note: {note}")
    for problem in verdict.problems[:20]:
        print(f"problem: {problem}")
    if len(verdict.problems) > 20:
        print(f"and {len(verdict.problems) - 20:,} more problems.")
    print("a server would refuse it." if verdict.problems else "as its server takes it.")
    return int(bool(verdict.problems))


def _score(given: argparse.Namespace) -> int:
    from searle_lib.servers import scoring

    print(json.dumps(scoring.score(given.file, given.dataset, given.data_root, given.category), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
