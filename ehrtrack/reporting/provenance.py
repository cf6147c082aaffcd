"""Where it all comes from: runs, fingerprints, versions, machine, and the command that makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import tomli_w

from ehrtrack.reporting.document import Column, Part, Prose, Row, Section, Table, Verbatim
from ehrtrack.reporting.material import Material, shown_repeat
from ehrtrack.runlog import TEST
from ehrtrack.study.settings import StudySettings
from ehrtrack.tracking.client.queries import RunRecord
from ehrtrack.tracking.names import GIT_COMMIT, GIT_DIRTY

PACKAGES = (
    "ehrtrack",
    "torch",
    "peft",
    "mlflow",
    "optuna",
    "numpy",
    "polars",
    "scikit-learn",
    "scikit-survival",
    "lifelines",
)
FINGERPRINT = "fingerprint."


def provenance_section(material: Material) -> Section:
    """All that is needed to check the report, or to make it again."""
    parts: list[Part] = [
        Verbatim("Made again by", "\n".join(_commands(material))),
        _facts_table(material),
        _runs_table(material),
        Verbatim("The file", material.file or study_toml(material.settings), is_folded=True),
        *_settings(material),
    ]
    if material.missing:
        parts.insert(2, _missing_table(material))
    else:
        parts.insert(2, Prose(("No cell of the study is missing.",)))
    return Section("provenance", "Provenance", tuple(parts))


def _settings(material: Material) -> list[Part]:
    """All settings of the run whose cohort is shown: those of the data and the cohort hold for the study."""
    if not material.configurations:
        return []
    record = material.records.get(shown_repeat(material.configurations).row.run_id)
    if record is None:
        return []
    lines = [f"{path} = {value}" for path, value in sorted(record.params.items())]
    return [Verbatim(f"All settings of {material.shown_run}", "\n".join(lines), is_folded=True)]


def _commands(material: Material) -> list[str]:
    commits = _of_runs(material, GIT_COMMIT)
    checkout = [f"git checkout {commits[0]}"] if len(commits) == 1 else []
    return [*checkout, *material.commands]


def _of_runs(material: Material, tag: str) -> list[str]:
    """The values of a tag among all runs, sorted."""
    return sorted({record.tags[tag] for record in material.records.values() if tag in record.tags})


def _facts_table(material: Material) -> Table:
    environment = material.environment
    packages: Mapping[str, str] = environment.get("packages", {})
    torch: Mapping[str, Any] = environment.get("torch", {})
    gpus = ", ".join(torch.get("gpus", []))
    rows = [("study", material.study), ("run of the study", material.run_id)]
    rows += [("commit", ", ".join(_of_runs(material, GIT_COMMIT)) or "unknown")]
    if "true" in _of_runs(material, GIT_DIRTY):
        rows += [("code", "some runs were made by code that differs from its commit")]
    rows += [
        (f"fingerprint of the {name.removeprefix(FINGERPRINT)}", ", ".join(values))
        for name in (f"{FINGERPRINT}data", f"{FINGERPRINT}vocabulary", f"{FINGERPRINT}cohort")
        if (values := _of_runs(material, name))
    ]
    rows += [
        (title, str(value))
        for title, value in (
            ("machine", environment.get("cpu", "")),
            ("processors", environment.get("n_cpus", "")),
            ("GPU", gpus or ("none" if torch else "")),
            ("system", environment.get("platform", "")),
            ("Python", environment.get("python", "")),
        )
        if value
    ]
    rows += [(name, packages[name]) for name in PACKAGES if name in packages]
    return Table(
        "versions",
        "Code, data and machine. Machine and versions are those of one run.",
        pl.DataFrame(rows, schema=["what", "value"], orient="row"),
        (Column("", lambda row: row["what"]), Column("", lambda row: row["value"])),
    )


def _runs_table(material: Material) -> Table:
    metric = material.metric
    rows = []
    for one in material.configurations:
        for repeat in one.repeats:
            rows.append(
                {
                    "configuration": one.label,
                    "seed": repeat.seed,
                    "cohort": repeat.row.cohort_fingerprint,
                    "score": repeat.row.metrics.get(metric.named(TEST)),
                    "run": repeat.row.run_id,
                }
            )
    rows += [_other("pretraining", record) for record in material.pretrainings]
    rows += [_other("negative controls", record) for record in material.controls]
    pages = material.pages

    def page(row: Row) -> str:
        return pages.get(row["run"], "")

    return Table(
        "runs",
        "Every run that the report rests on.",
        pl.DataFrame(rows, infer_schema_length=None),
        (
            Column("run", lambda row: row["run"][:12], link=page),
            Column("configuration", lambda row: row["configuration"]),
            Column("seed", lambda row: "" if row["seed"] is None else str(row["seed"]), is_right=True),
            Column("cohort and split", lambda row: row["cohort"]),
            Column(
                f"test {metric.title}", lambda row: "" if row["score"] is None else f"{row['score']:.4f}", is_right=True
            ),
        ),
    )


def _other(kind: str, record: RunRecord) -> dict[str, Any]:
    seed = record.params.get("runtime.seed", "")
    return {
        "configuration": f"{kind}: {record.name}",
        "seed": int(seed) if seed.isdigit() else None,
        "cohort": "",
        "score": None,
        "run": record.run_id,
    }


def _missing_table(material: Material) -> Table:
    rows = list(material.missing.items())
    return Table(
        "missing",
        "Cells of the study without a finished run: the tables above are without them.",
        pl.DataFrame(rows, schema=["cell", "reason"], orient="row"),
        (Column("cell", lambda row: row["cell"]), Column("why", lambda row: row["reason"])),
    )


def study_toml(settings: StudySettings) -> str:
    """The study's file as its settings say it; comments are not kept.

    >>> print(study_toml(StudySettings(question="Q?", baseline="b.toml", matrix={"baseline": ["cox"]},
    ...     reference={"baseline": "cox"})).splitlines()[0])
    question = "Q?"
    """
    plain = settings.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return tomli_w.dumps(plain)
