"""The command line: `searle run params/mini.yaml`, or `python -m searle_lib run params/mini.yaml`.

Each command is a function that takes the parsed options and returns the exit status. It imports what it needs itself,
so `run` waits for neither torch nor the pages.
"""

from searle_lib.study import interruption

with interruption.installed():  # these imports take a second
    import argparse
    import json
    import sys
    from dataclasses import replace
    from pathlib import Path

    from searle_lib.store import artefacts
    from searle_lib.store.records import MissingInput, StaleInput, Study
    from searle_lib.study import run, workspace

REFUSALS = (run.NotebookFailed, MissingInput, StaleInput, artefacts.DamagedArtefact, ValueError, OSError)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status, and print an error as one sentence.

    `arguments` are those of the command line if they are None; only then a Ctrl-C ends the process.
    """
    if arguments is None:
        interruption.install()
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except REFUSALS as problem:
        print(f"error: {_sentence(problem)}", file=sys.stderr)
        return 1


def _sentence(problem: Exception) -> str:
    """Return what went wrong; for an error of the system with the file and what to do."""
    if not isinstance(problem, OSError) or problem.filename is None:
        return str(problem)
    sentence = f"{problem.filename}: {problem.strerror}"
    if problem.errno in artefacts.DISK_FULL:
        return f"{sentence}; make room there, or set artefact_root and report_root to a larger disk."
    return f"{sentence}; set data_root, artefact_root and report_root to folders that this user may read and write."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="searle", description="Composed image retrieval, a study.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, function, help_text, *arguments):
        added = commands.add_parser(name, help=help_text, description=help_text)
        added.set_defaults(run=function)
        for names, settings in arguments:
            added.add_argument(*names, **settings)
        return added

    params = (["params"], {"type": Path, "help": "the study's parameter file, such as params/mini.yaml"})
    changes = (["-p"], {"dest": "overrides", "action": "append", "metavar": "NAME=VALUE", "help": "change a parameter"})
    file = (["file"], {"type": Path, "help": "a file of predictions"})
    data = (["--data-root"], {"type": Path, "required": True, "help": "the folder of FashionIQ, CIRR and CIRCO"})
    folder = (["--to"], {"type": Path, "required": True, "help": "the folder to write to"})
    running = command("run", _run, "run a study's notebooks in order, except unchanged ones", params, changes)
    running.add_argument("--again", action="store_true", help="run unchanged notebooks, too")
    selection = running.add_mutually_exclusive_group()
    selection.add_argument("--only", metavar="NOTEBOOK", help="run this notebook alone, such as 06_retrieval")
    selection.add_argument("--from", dest="first", metavar="NOTEBOOK", help="start from this notebook, such as 03_oti")
    command("render", _render, "render every page of a study again, and run nothing", params, changes)
    part = (["--part"], {"type": int, "required": True, "metavar": "K", "help": "which part, from 1 to N"})
    of = (["--of"], {"type": int, "required": True, "metavar": "N", "help": "how many parts there are"})
    help_text = "compute one part of the shards that the next notebook misses, as a job of an array"
    command("shards", _shards, help_text, params, changes, part, of)
    command("check", _check, "check everything that a study needs before anything is computed", params, changes)
    command("submit", _submit, "write a study's rankings as files for the test servers", params, changes)
    help_text = "write a study's φ and OTI tokens in the authors' format, or its rankings in TREC's"
    exporting = command("export", _export, help_text, params, changes, folder)
    exporting.add_argument("--trec", action="store_true", help="write rankings as run files, and targets as qrels")
    action = (["action"], {"choices": ["list", "prune"], "help": "prune removes what no study's record names"})
    yes = (["--yes"], {"action": "store_true", "help": "remove without asking"})
    help_text = "list the store's artefacts by study, or remove those that no study's record names"
    command("artefacts", _artefacts, help_text, action, params, changes, yes)
    command("validate", _validate, "check whether a test server would accept a file of CIRR or CIRCO", file, data)
    help_text = "a parameter file, a study's folder, or a results.csv"
    studies = [([name], {"type": Path, "help": help_text}) for name in ("first", "second")]
    comparing = command("compare", _compare, "compare the numbers of two studies, in a table and a page", *studies)
    comparing.add_argument("--to", type=Path, metavar="FILE", help="the page (reports/compare-FIRST-SECOND.html)")
    help_text = "exit with status 1 if any number differs by more (two results.csv: 0.05 if this is left out)"
    comparing.add_argument("--tolerance", type=float, metavar="POINTS", help=help_text)
    dataset = (["--dataset"], {"required": True, "help": "fashioniq, cirr, circo, or a CSV file of your own"})
    category = (["--category"], {"choices": ["dress", "shirt", "toptee"], "help": "of FashionIQ"})
    help_text = "print the validation metrics of a model's predictions or vectors, in percent, as JSON"
    scoring = command("score", _score, help_text, dataset, data, category)
    scoring.add_argument("file", type=Path, nargs="?", help="a file of predictions, or a TREC run")
    for noun in ("queries", "gallery"):
        help_text = f"a .safetensors or .npz with the vectors and the ids of the {noun}"
        scoring.add_argument(f"--{noun}", type=Path, metavar="FILE", help=help_text)
    scoring.add_argument("--name", help="the model's name, where a study compares it")
    help_text = "the model's folder; a study with it in other_models compares the model"
    scoring.add_argument("--to", type=Path, metavar="FOLDER", help=help_text)
    picture = (["image"], {"type": Path, "help": "an image file, the reference"})
    sentence = (["caption"], {"help": 'how the target differs from it, such as "is red"'})
    asking = command(
        "query", _query, "show what a study's methods retrieve for an image of your own", picture, sentence
    )
    asking.add_argument("--study", required=True, metavar="NAME", help="a study that has run, such as mini")
    help_text = "whose gallery is ranked, such as circo/val; else the running example's"
    asking.add_argument("--benchmark", default="", metavar="NAME", help=help_text)
    asking.add_argument("--to", type=Path, metavar="FILE", help="the page (reports/STUDY/query.html)")
    pictures = (["--images"], {"type": Path, "required": True, "help": "COCO's val2017, or Visual Genome's images"})
    task = (["file"], {"type": Path, "help": "a task's JSON file, such as change_object.json"})
    command("genecis", _genecis, "write a task of GeneCIS as a data set of your own", task, pictures, folder)
    return parser


def _read_study(options: argparse.Namespace) -> tuple[dict, Study]:
    """Return a study's parameters, and its records as a command sees them."""
    values = run.read_values(options.params, options.overrides)
    return values, workspace.find_study(values, options.command)


def _run(options: argparse.Namespace) -> int:
    front_page = run.run(options.params, options.only, options.first, options.overrides, options.again)
    if options.only in (None, "07_results"):
        run.print_main_table(_read_study(options)[1])
    print(f"\n{front_page}")
    return 0


def _render(options: argparse.Namespace) -> int:
    print(run.render(options.params, options.overrides))
    return 0


def _shards(options: argparse.Namespace) -> int:
    from searle_lib.study import parts

    print(parts.compute(options.params, options.part, options.of, options.overrides))
    return 0


def _check(options: argparse.Namespace) -> int:
    from searle_lib.check import report

    values, study = _read_study(options)
    workspace.draw_world(study.root, values)
    return report.report(values, study)


def _submit(options: argparse.Namespace) -> int:
    from searle_lib.evaluation import scores
    from searle_lib.servers import predictions, submissions

    values, study = _read_study(options)
    run.require_same_values(study, "06_retrieval", values, options.params)
    _, rankings = scores.read_scores(study)
    sizes = scores.provenance(study)["sizes"]
    for name in sizes:
        if name.split("/")[1].startswith("test") and submissions.incomplete(name, sizes):
            print(submissions.incomplete(name, sizes))
    refused = 0
    files = submissions.write_all(study.reports / "submissions", rankings, sizes)
    for file in files:
        problems = predictions.validate(file, study.root / values["data_root"]).problems
        refused += bool(problems)
        print(f"{file}: {problems[0] if problems else 'its server would accept it'}")
    if not files:
        print("nothing was written; a server needs a complete test split of CIRR or CIRCO (evaluate: [test]).")
    return int(refused > 0 or not files)


def _export(options: argparse.Namespace) -> int:
    from searle_lib.study import export

    values, study = _read_study(options)
    run.require_same_values(study, "06_retrieval", values, options.params)
    for path in (export.export_rankings if options.trec else export.export)(study, options.to):
        print(path)
    return 0


def _artefacts(options: argparse.Namespace) -> int:
    from searle_lib.study import inventory

    study = _read_study(options)[1]
    entries = inventory.read(study.store, study.reports.parent)
    print(inventory.table(entries))
    unnamed = inventory.unnamed(entries)
    if options.action == "list" or not unnamed:
        return 0
    print(
        f"\nNo record in {study.reports.parent} names {len(unnamed)} of them. They serve to make others, belong to "
        "earlier parameters, or to a study that runs now. A run that needs one makes it again."
    )
    if not options.yes and _ask("Remove them? [y/N] ") != "y":
        print("nothing was removed; answer y, or pass --yes.")
        return 1
    removed = inventory.prune(study.store, unnamed)
    print(f"removed {len(removed)} artefacts, {sum(entry.bytes for entry in removed) / 1e6:,.1f} MB.")
    return 0


def _ask(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:  # no terminal
        return ""


def _compare(options: argparse.Namespace) -> int:
    from searle_lib.evaluation import comparisons
    from searle_lib.reporting import comparison

    paths = (options.first, options.second)
    (first, first_records), (second, second_records) = map(_numbers, paths)
    target = options.to or workspace.project_root() / "reports" / f"compare-{first.name}-{second.name}.html"
    if first.name == second.name:
        first, second = (replace(numbers, name=str(path)) for numbers, path in zip((first, second), paths, strict=True))
    table = comparisons.compare(first, second)
    notes = comparisons.unpaired(first, second) + comparisons.in_one_only(first, second)
    print("\n".join([comparisons.text_table(table, first.name, second.name), "", *notes]))
    print("\n".join(comparisons.sentences(table, first.name, second.name)))
    print(f"\n{comparison.write(first, second, table, target, (first_records, second_records))}")
    tolerance = options.tolerance
    if tolerance is None and all(path.suffix == ".csv" for path in paths):
        tolerance = comparisons.SAME
    if tolerance is None:
        return 0
    differences = comparisons.largest_differences(first, second)
    print(f"\n{differences.to_string()}")
    same = bool((differences <= tolerance).all())
    print(f"{'every number agrees to' if same else 'some numbers differ by more than'} {tolerance} points.")
    return int(not same)


def _numbers(path: Path) -> tuple:
    """Return the numbers and the records of a study; `path` is its parameter file, its folder, or a results.csv."""
    from searle_lib.evaluation import comparisons
    from searle_lib.reporting import run_facts

    if path.is_dir():
        study = workspace.load_study(path.resolve().name, str(path.resolve().parent))
    elif path.suffix == ".csv":
        return comparisons.read_csv(path), {}
    else:
        values = run.read_values(path, [])
        study = workspace.find_study(values, "compare")
        run.require_same_values(study, "06_retrieval", values, path)
    return comparisons.read(study), run_facts.read_records(study)


def _validate(options: argparse.Namespace) -> int:
    from searle_lib.servers import predictions

    verdict = predictions.validate(options.file, options.data_root)
    print(f"{verdict.title}: {verdict.queries:,} queries")
    for note in verdict.notes:
        print(f"note: {note}")
    for problem in verdict.problems[:20]:
        print(f"problem: {problem}")
    if len(verdict.problems) > 20:
        print(f"and {len(verdict.problems) - 20:,} more problems.")
    print("a server would refuse it." if verdict.problems else "its server would accept it.")
    return int(bool(verdict.problems))


def _score(options: argparse.Namespace) -> int:
    from searle_lib.evaluation import other_models
    from searle_lib.servers import scoring, vectors

    pair, rest = [options.queries, options.gallery], (options.dataset, options.data_root, options.category)
    if (options.file is None) != all(pair) or any(pair) != all(pair):
        raise ValueError("score takes a file of predictions, or both --queries and --gallery; name what you have.")
    if (options.name is None) != (options.to is None):
        raise ValueError("--name and --to belong together; add the other one.")
    if options.to:
        other_models.require_name(options.to, options.name)
    if options.file:
        evaluation = scoring.evaluate(options.file, *rest, options.name or "")
    else:
        evaluation = vectors.evaluate(*pair, *rest, options.name or "")
    for note in evaluation.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.to:
        other_models.add(options.to, options.name, evaluation, [options.file] if options.file else pair)
    print(json.dumps(scoring.report(evaluation), indent=1))
    return 0


def _query(options: argparse.Namespace) -> int:
    from searle_lib.reporting import query_page

    study = workspace.load_study(options.study)
    answer = query_page.ask(study, options.image, options.caption, options.benchmark)
    print(query_page.text_table(answer))
    print(f"\n{query_page.write(answer, options.caption, options.to or study.reports / 'query.html')}")
    return 0


def _genecis(options: argparse.Namespace) -> int:
    from searle_lib.data import genecis

    print(genecis.convert(options.file, options.images, options.to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
