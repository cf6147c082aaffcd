"""Writes the tables of studies' results into the pages that quote them, from `projects/*/results`.

    python tests/fill_results.py            # writes
    python tests/fill_results.py --check    # exit code 1 and the pages' names where one says something else
    python tests/fill_results.py --take reports/nafld    # keeps tables and figures of a report first
    python tests/fill_results.py --take reports/nafld-all_labels    # of another question of the same study

A page quotes a study between two lines; what stands between them is written by this command and by nobody else:

    <!-- results: nafld/labels -->
    <!-- end of results -->

The results of another file of a study are ``nafld-all_labels/labels``, in ``projects/nafld/results-all_labels``.

There is ``STUDY/main``, a line a configuration; ``STUDY/labels`` and ``STUDY/slopes``, C-index and calibration slope by
the number of labels; and ``STUDY/said``, what was found in words, with the commit and the machine. Of all studies there
is ``all/findings``, ``all/counts`` and ``all/costs`` (`findings`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import findings
import polars as pl
from pages import number, table

ROOT = Path(__file__).parents[1]
TABLES = (
    "cost",
    "differences",
    "label_curve",
    "label_efficiency",
    "main",
    "runs",
    "sanity",
    "splits",
    "table_one",
    "versions",
)
FIGURES = ("differences", "label_curve")
"""What of a report is kept with the project."""
QUOTED = re.compile(r"(<!-- results: (?P<study>[\w-]+)/(?P<what>\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
LABELS = re.compile(r"^(?P<model>.*?)(?: · )?(?P<labels>\d[\d,]*|all) labels$")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill, or check, every page of the project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a page differs")
    parser.add_argument("--take", type=Path, help="folder of a report, named as the project is", metavar="REPORT")
    given = parser.parse_args(arguments)
    check = given.check
    if given.take is not None:
        take(given.take, _results(ROOT, given.take.resolve().name))
    stale = [page for page in pages(ROOT) if (text := page.read_text("utf-8")) != filled(text, ROOT)]
    for page in stale:
        if not check:
            page.write_text(filled(page.read_text("utf-8"), ROOT), encoding="utf-8")
        print(f"{page.relative_to(ROOT)}: {'differs from the results' if check else 'written'}")
    picture = ROOT / findings.PICTURE
    is_old = not findings.is_of(picture, ROOT / "projects")
    if is_old:
        if not check:
            picture.write_bytes(findings.picture(ROOT / "projects"))
        print(f"{findings.PICTURE}: {'shows other values than the results' if check else 'drawn'}")
    return int(check and (bool(stale) or is_old))


def take(report: Path, results: Path) -> None:
    """Keep the tables and figures of a report in the project, in place of those that were there."""
    kept = [Path("tables") / f"{name}.csv" for name in TABLES] + [Path("figures") / f"{name}.png" for name in FIGURES]
    shutil.rmtree(results, ignore_errors=True)
    for path in kept:
        if (report / path).exists():
            (results / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(report / path, results / path)


def _results(root: Path, report: str) -> Path:
    """Where the results of a report are kept, by the name of its folder.

    >>> _results(Path(), "nafld-all_labels").as_posix()
    'projects/nafld/results-all_labels'
    """
    study, hyphen, file = report.partition("-")
    return root / "projects" / study / f"results{hyphen}{file}"


def pages(root: Path) -> list[Path]:
    """The pages that quote results."""
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("projects/*/README.md")]
    return sorted(page for page in found if QUOTED.search(page.read_text("utf-8")))


def filled(text: str, root: Path) -> str:
    """A page with what it quotes as the results have it now.

    Raises
    ------
    FileNotFoundError
        If it quotes a study that has no results.
    KeyError
        If it quotes what there is not.
    """

    def quoted(match: re.Match[str]) -> str:
        if match["study"] == "all":
            return f"{match[1]}\n{OF_ALL[match['what']](root / 'projects')}\n\n{match[4]}"
        tables = _results(root, match["study"]) / "tables"
        return f"{match[1]}\n{QUOTES[match['what']](tables)}\n\n{match[4]}"

    return QUOTED.sub(quoted, text)


def _main(tables: Path) -> str:
    """A line a configuration."""
    header = ["configuration", "runs", "trainable", "seconds", "test C-index (sd)", "IBS", "calibration slope"]
    rows = pl.read_csv(tables / "main.csv").to_dicts()
    reference = next((str(row["reference"]) for row in rows if row["reference"]), "")
    header += [f"difference to {reference or 'the reference'} (95 % interval)", "finding"]
    body = [
        [
            str(row["configuration"]),
            str(row["n_repeats"]),
            f"{row['n_trainable']:,}" if row["n_trainable"] is not None else "",
            f"{row['seconds']:.{1 if row['seconds'] < 10 else 0}f}" if row["seconds"] is not None else "",
            _with_sd(row, "test_c_index"),
            number(row["test_ibs"], 4),
            number(row["test_calibration_slope"], 2),
            _interval(row),
            str(row["finding"] or ""),
        ]
        for row in rows
    ]
    return table(header, body, right=(1, 2, 3))


def _by_labels(tables: Path) -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Models, the best first; numbers of labels; and the row of each of both."""
    rows = [row | _of_labels(row["configuration"]) for row in pl.read_csv(tables / "main.csv").to_dicts()]
    numbers = sorted({row["labels"] for row in rows if row["labels"] is not None}, key=_of_all_last)

    def place(model: str) -> tuple[list[float], str]:
        """By the scores with the most labels, where a model has one, and then with fewer."""
        return [-_score(rows, model, number) for number in reversed(numbers)], model

    models = sorted({str(row["model"]) for row in rows}, key=place)
    return models, numbers, {(row["model"], row["labels"]): row for row in rows}


def _labels(tables: Path) -> str:
    """C-index by the number of labels, and the differences to the reference where there are most of them."""
    models, numbers, found = _by_labels(tables)
    header = ["model", *(f"{number} labels" for number in numbers)]
    header.append(f"difference at {numbers[-1]} labels (95 % interval)")
    body = [
        [
            model,
            *(_with_sd(found.get((model, number), {}), "test_c_index") for number in numbers),
            _interval(found.get((model, numbers[-1]), {})),
        ]
        for model in models
    ]
    return table(header, body)


def _slopes(tables: Path) -> str:
    """The calibration slope by the number of labels: below 1 where risks are told too far apart."""
    models, numbers, found = _by_labels(tables)
    body = [
        [model, *(number(found.get((model, of), {}).get("test_calibration_slope"), 2) for of in numbers)]
        for model in models
    ]
    return table(["model", *(f"{of} labels" for of in numbers)], body)


def _said(tables: Path) -> str:
    """What was found in the metric by which models are chosen, in words."""
    every = pl.read_csv(tables / "differences.csv").to_dicts()
    differences = [row for row in every if row["metric"] == every[0]["metric"]]  # that by which models are chosen
    shown = [row for row in differences if row["question"] or row["finding"] in ("better", "worse", "equivalent")]
    sentences = [f"{row['question'] or ''} {_capital(row['sentence'])}.".strip() for row in shown]
    not_shown = sum(row["finding"] == "no difference shown" and not row["question"] for row in differences)
    if not_shown:
        sentences.append(f"Of {not_shown} further differences to the reference none is shown.")
    efficiency = tables / "label_efficiency.csv"
    if efficiency.exists():
        sentences += [f"{_capital(text)}." for text in _together(pl.read_csv(efficiency)["text"].to_list())]
    versions = dict(pl.read_csv(tables / "versions.csv").iter_rows())
    n_runs = pl.read_csv(tables / "runs.csv").height
    made = f"{n_runs} finished runs, commit `{versions['commit'][:7]}`, {versions['processors']} processors"
    return "\n".join([*(f"- {sentence}" for sentence in sentences), "", f"*{made} ({versions['machine']}).*"])


QUOTES: Mapping[str, Callable[[Path], str]] = {"main": _main, "labels": _labels, "slopes": _slopes, "said": _said}
OF_ALL: Mapping[str, Callable[[Path], str]] = {
    "findings": findings.findings,
    "counts": findings.counts,
    "costs": findings.costs,
}


def _together(sentences: Sequence[str]) -> list[str]:
    """Sentences, of which those that deny the same of several models are one.

    >>> _together(["lora does not equal cox", "full needs 128 labels", "full does not equal cox"])
    ['lora and full do not equal cox', 'full needs 128 labels']
    """
    denied: dict[str, list[str]] = {}
    for sentence in sentences:
        model, does_not, rest = sentence.partition(" does not equal ")
        denied.setdefault(rest if does_not else sentence, []).append(model)
    told = {rest: [", ".join(names[:-1]), names[-1]] for rest, names in denied.items()}
    return [
        sentence
        if sentence in sentences
        else f"{names[0]} and {names[1]} do not equal {sentence}"
        if names[0]
        else f"{names[1]} does not equal {sentence}"
        for sentence, names in told.items()
    ]


def _of_labels(configuration: str) -> dict[str, str | None]:
    match = LABELS.match(configuration)
    return {"model": match["model"], "labels": match["labels"]} if match else {"model": configuration, "labels": None}


def _of_all_last(number: str) -> float:
    return float("inf") if number == "all" else float(number.replace(",", ""))


def _score(rows: Sequence[Mapping[str, object]], model: str, number: str) -> float:
    of_model = {row["labels"]: row["test_c_index"] for row in rows if row["model"] == model}
    return float(str(of_model.get(number) or 0))


def _with_sd(row: Mapping[str, object], name: str) -> str:
    score, spread = row.get(name), row.get(f"{name}_sd")
    return number(score, 3) + (f" ({number(spread, 3)})" if spread is not None else "")


def _interval(row: Mapping[str, object]) -> str:
    if row.get("difference") is None:
        return ""
    lower, upper = (number(row[f"difference_{side}"], 3) for side in ("lower", "upper"))
    return f"{number(row['difference'], 3, sign='+')} [{lower}, {upper}]"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


if __name__ == "__main__":
    sys.exit(main())
