"""What in a record makes a model predict what it predicts: of one subject, or of a sample of test subjects."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from ehrtrack import plots
from ehrtrack.config import RunConfig, override
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.eligibility import REASON
from ehrtrack.data.events import BIRTH, MedsDataset, open_dataset
from ehrtrack.data.labels import of_any_cause, read_labels
from ehrtrack.data.visits import DAYS_PER_YEAR, MICROSECONDS_PER_DAY
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.evaluation.contributions import summarise_contributions
from ehrtrack.files import folder_aside
from ehrtrack.pipeline.explain import CONTRIBUTION, Explanation, Method, days_before, rest_of
from ehrtrack.pipeline.explain import explain as explain_records
from ehrtrack.pipeline.labels import transformer_label
from ehrtrack.pipeline.predictor import Predictor, load_predictor
from ehrtrack.pipeline.records import Record, as_dataset, read_records
from ehrtrack.pipeline.run import RecipeResult, describe, open_run, privacy_of
from ehrtrack.privacy import Privacy
from ehrtrack.reporting.explanation import (
    NO_CAUSE,
    Told,
    cohort_lines,
    document_of,
    label_of,
    scale_of,
    subject_lines,
    timeline,
)
from ehrtrack.reporting.figures import save_figure
from ehrtrack.reporting.html import page
from ehrtrack.tracking.client.queries import fetch_model, get_run
from ehrtrack.tracking.names import EXPLAINED, EXPLANATION, MODEL_RUN

SECTIONS = ("study", "data", "cohort", "runtime")
CODES, TIMES = "explain/codes.csv", "prediction_time"
PSEUDONYM_DIGITS = 12


@dataclass(frozen=True)
class Asked:
    """A model that is asked why, and whom it may be asked about.

    Attributes
    ----------
    times : subject_id, prediction_time and split, a row a subject and time
    reference_years : the age that others are compared with; None where it is not known
    """

    run_id: str
    predictor: Predictor
    config: RunConfig
    dataset: MedsDataset
    times: pl.DataFrame
    reference_years: float | None

    @property
    def model(self) -> str:
        """What the model is called."""
        is_baseline = self.predictor.folder.baseline is not None
        return self.config.baseline.name if is_baseline else transformer_label(self.config)

    @property
    def horizon(self) -> str:
        """Of its risks, in words."""
        return "" if self.predictor.folder.has_classes else f"within {self.predictor.grid.horizon_days:g} days"


def explain(
    model: str,
    subject: str,
    *,
    method: Method = "occlusion",
    data: Path | None = None,
    labels: Path | None = None,
    time: datetime | None = None,
    reference_years: float | None = None,
    n_top: int = 10,
    out: Path | None = None,
    is_logged: bool = False,
    cache: Path | None = None,
) -> Explanation:
    """What each code and each visit of a subject's record contributes to the risk that a model predicts, printed.

    Parameters
    ----------
    model : run id, ``models:/NAME@champion`` or ``models:/NAME/VERSION``
    subject : its id, or the source's where ids are none
    method : ``occlusion``, for any model, or ``integrated-gradients``, for networks and for a lasso
    data : MEDS dataset; that of the model's training if None
    labels : a file or folder with the prediction times (subject_id, prediction_time); the model's cohort if None. Of
        several of the subject the last is explained
    time : the prediction time, whatever cohort or labels say
    reference_years : the age that the subject's is compared with; the median of the cohort, or of the labels, if None
    n_top : codes that are shown; all are in the files
    out : folder to write, with the page, the figure and both tables
    is_logged : keep the page and the table of codes in a run, with the subject under its hash and without dates
    cache : where the run's journal is kept until it is sent; that of the model's configuration if None

    Raises
    ------
    DataError
        If the subject has no record or prediction time, or the model gives it no risk.
    ConfigError
        If `out` is taken, the method is not for this model, or days before the prediction would tell dates.
    """
    _check_free(out)
    asked = _asked(model, data, labels, time, cache)
    privacy = privacy_of(asked.config) if is_logged else None
    _check_private(privacy)
    number = _subject_id(asked.dataset, subject)
    at = _time_of(asked, number, subject) if time is None else time
    reference = reference_years if reference_years is not None else asked.reference_years
    with _only(asked, pl.DataFrame({"subject_id": [number], TIMES: [at]})) as (dataset, times):
        reason = of_any_cause(asked.predictor.predict_dataset(dataset, times))[REASON][0]
        if reason is not None:
            raise DataError(f"the model gives subject {subject} no risk at {at:%Y-%m-%d}: {reason}")
        record = read_records(asked.predictor, dataset, times)[0]
    (explained,) = explain_records(asked.predictor, [record], method=method, reference_years=reference)
    told = _told(asked, explained, record, subject, n_top)
    print("\n".join(subject_lines(explained, told)), flush=True)
    if out is not None:
        _write(out, explained, told)
        print(f"-> {out}", flush=True)
    if privacy is not None:
        _log(asked, explained, told, privacy)
    return explained


def explain_cohort(
    model: str,
    n_subjects: int,
    *,
    method: Method = "occlusion",
    data: Path | None = None,
    labels: Path | None = None,
    n_top: int = 15,
    seed: int = 0,
    out: Path | None = None,
    cache: Path | None = None,
) -> RecipeResult:
    """Explain a sample of test subjects, and log which codes carry the risk in a run that a study's report shows.

    Parameters
    ----------
    model, method, data, cache : as for `explain`
    n_subjects : test subjects of the model's cohort that are drawn; all if there are no more. Of `labels`, whoever
        they name
    n_top : codes that are printed
    seed : of the draw, and of the bootstrap
    out : folder to write, with the contributions of each subject, the summary and the figure

    Raises
    ------
    DataError
        If nobody of the sample can be scored.
    ConfigError
        If `out` is taken, or the method is not for this model.
    """
    _check_free(out)
    asked = _asked(model, data, labels, None, cache)
    records = _sample(asked, n_subjects, seed)
    scale = scale_of(has_classes=asked.predictor.folder.has_classes)
    found = explain_records(asked.predictor, records, method=method)
    each = pl.concat(
        one.codes.select(row=pl.lit(row), code="code", contribution=CONTRIBUTION) for row, one in enumerate(found)
    )
    people = np.array([record.subject_id for record in records])
    summary = summarise_contributions(each, people, seed=seed)
    descriptions = asked.dataset.code_descriptions()
    labelled = pl.Series("label", [label_of(code, descriptions) for code in summary["code"]], dtype=pl.String)
    summary = summary.insert_column(1, labelled)
    n_people = len(np.unique(people))
    said = f"{n_people:,} test subjects, {method}" if labels is None else f"{n_people:,} labelled subjects, {method}"
    record = get_run(asked.run_id)
    with open_run(asked.config, kind=EXPLANATION, sections=SECTIONS, name=f"explain {record.name}") as run:
        run.logger.set_tags({MODEL_RUN: asked.run_id, EXPLAINED: said})
        run.logger.log_table(summary, CODES)
        shown = summary.head(n_top)
        run.logger.log_figure(plots.contributions_plot(shown, scale=scale), "plots/contributions.png")
        facts = {"model": f"{asked.model}, run {asked.run_id}", "explained": said, "contributions": f"to the {scale}"}
        run.logger.set_description(describe("What carries the risk", facts) + f"\n{NO_CAUSE}\n")
        print("\n".join(cohort_lines(shown, said, scale)), flush=True)
        if out is not None:
            with folder_aside(out) as aside:
                each.with_columns(subject_id=pl.Series(people[each["row"].to_numpy()])).drop("row").write_parquet(
                    aside / "contributions.parquet"
                )
                summary.write_csv(aside / "codes.csv")
                save_figure(plots.contributions_plot(shown, scale=scale), aside / "contributions", ("png",))
            print(f"-> {out}", flush=True)
        return run.finished({})


def sample_of(model: str, n_subjects: int, *, seed: int = 0) -> tuple[Predictor, list[Record]]:
    """A model, and the records of test subjects that `explain_cohort` would draw."""
    asked = _asked(model, None, None, None, None)
    return asked.predictor, _sample(asked, n_subjects, seed)


def _asked(model: str, data: Path | None, labels: Path | None, time: datetime | None, cache: Path | None) -> Asked:
    with tempfile.TemporaryDirectory() as folder:
        fetched = fetch_model(model, Path(folder))
        predictor = load_predictor(fetched.folder)
    here: dict[str, str | int | float | bool] = {}
    here |= {} if data is None else {"data.path": str(data)}
    here |= {} if cache is None else {"runtime.cache": str(cache)}
    config = override(predictor.folder.config, here)
    dataset = open_dataset(config.data.path)
    times = _no_times() if time is not None else _times(predictor, config, dataset, labels)
    return Asked(fetched.run_id, predictor, config, dataset, times, _median_age(dataset, times))


def _times(predictor: Predictor, config: RunConfig, dataset: MedsDataset, labels: Path | None) -> pl.DataFrame:
    """Whom the model may be asked about, and when: its own cohort, or those that labels name."""
    if labels is None:
        assert config.cohort is not None  # looked at when the model was read
        cohort = build_cohort(dataset, config.cohort, config.data.split, births=config.data.births)
        return cohort.subjects.select("subject_id", pl.col("index_date").alias(TIMES), "split")
    if predictor.folder.fingerprints.get("data") == dataset.fingerprint():
        raise ConfigError(
            f"{dataset.path} is what the model was trained on, so its own prediction times are explained: leave out "
            "--labels, or give --data with another dataset"
        )
    read = read_labels(labels, dataset, needs_outcome=False).drop_nulls("subject_id")
    return read.select("subject_id", pl.col("index_date").alias(TIMES), split=pl.lit("test"))


def _no_times() -> pl.DataFrame:
    return pl.DataFrame(schema={"subject_id": pl.Int64, TIMES: pl.Datetime("us"), "split": pl.String})


def _median_age(dataset: MedsDataset, times: pl.DataFrame) -> float | None:
    """In years, of those whose birth is known; None where nobody's is."""
    births = dataset.scan().filter(pl.col("code") == BIRTH).group_by("subject_id").agg(birth=pl.col("time").min())
    days = (pl.col(TIMES) - pl.col("birth")).dt.total_microseconds() / MICROSECONDS_PER_DAY
    ages = times.lazy().join(births, on="subject_id").select(days / DAYS_PER_YEAR).collect().to_series().drop_nulls()
    return float(np.median(ages.to_numpy())) if len(ages) else None


def _subject_id(dataset: MedsDataset, subject: str) -> int:
    if dataset.has_hashed_ids():
        found = dataset.source_ids().filter(pl.col("source_id") == subject)["subject_id"]
        if len(found):
            return int(found[0])
    try:
        return int(subject)
    except ValueError as error:
        raise DataError(
            f"subject {subject!r} is not in {dataset.path}, nor an integer; name one as the data or their source do"
        ) from error


def _time_of(asked: Asked, number: int, subject: str) -> datetime:
    """The last prediction time of a subject."""
    of_subject = asked.times.filter(pl.col("subject_id") == number)[TIMES]
    if not len(of_subject):
        raise DataError(
            f"subject {subject} is not in the model's cohort, which tells when a subject's risk is asked for; name one "
            "that is, or give the prediction time: --time 2015-03-08"
        )
    found: datetime = of_subject.sort()[-1]
    return found


def _sample(asked: Asked, n_subjects: int, seed: int) -> list[Record]:
    """The records of test subjects that are drawn; who gets no risk is told."""
    test = asked.times.filter(pl.col("split") == "test").select("subject_id", TIMES)
    drawn = np.random.default_rng(seed).permutation(test.height)[:n_subjects]
    chosen = test[np.sort(drawn)]
    with _only(asked, chosen) as (dataset, times):
        is_scored = of_any_cause(asked.predictor.predict_dataset(dataset, times))[REASON].is_null()
        if not is_scored.any():
            raise DataError(
                f"none of {times.height} test subjects gets a risk of the model, so there is nothing to explain"
            )
        records = read_records(asked.predictor, dataset, times.filter(is_scored))
    kept = [record for record in records if record.codes]
    if len(kept) < chosen.height:
        print(f"{chosen.height - len(kept):,} of {chosen.height:,} have no risk, or no code that is read", flush=True)
    return kept


@contextmanager
def _only(asked: Asked, times: pl.DataFrame) -> Iterator[tuple[MedsDataset, pl.DataFrame]]:
    """The events of these subjects alone, so that nothing else is read again and again; and their times."""
    ids = times["subject_id"].unique().to_list()
    events = asked.dataset.scan().filter(pl.col("subject_id").is_in(ids)).collect()
    if events.is_empty():
        raise DataError(f"subject {ids[0]} is not in {asked.dataset.path}; name one whose events are there")
    with tempfile.TemporaryDirectory() as folder:
        yield as_dataset(events, Path(folder)), times.with_columns(pl.col(TIMES).cast(pl.Datetime("us")))


def _told(asked: Asked, explained: Explanation, record: Record, subject: str, n_top: int) -> Told:
    shown = explained.top(n_top)["code"].to_list()
    n_rest = explained.codes.height - len(shown)
    if explained.method == "occlusion":
        rest = rest_of(asked.predictor, explained, record, shown)
    else:
        rest = float(explained.codes[CONTRIBUTION][len(shown) :].sum()), 0.0
    return Told(
        subject=subject,
        study=asked.config.study,
        model=asked.model,
        run_id=asked.run_id[:12],
        descriptions=asked.dataset.code_descriptions(),
        rest=(n_rest, *rest),
        n_shown=len(shown),
        has_dates=True,
        horizon=asked.horizon,
    )


def _write(out: Path, explained: Explanation, told: Told) -> None:
    with folder_aside(out) as aside:
        (aside / "explanation.html").write_text(page(document_of(explained, told)), encoding="utf-8")
        save_figure(timeline(explained, told), aside / "timeline", ("png",))
        explained.codes.write_csv(aside / "codes.csv")
        explained.visits.write_csv(aside / "visits.csv")


def _log(asked: Asked, explained: Explanation, told: Told, privacy: Privacy) -> None:
    """In a run of its own: the subject under its hash, and no date."""
    name = told.subject
    if privacy.key is not None:
        name = privacy.pseudonyms(pl.Series([explained.subject_id]))[0][:PSEUDONYM_DIGITS]
    hidden = replace(told, subject=name, has_dates=privacy.key is None)
    codes = explained.codes.with_columns(
        pl.Series(f"{end}_days_before", _days_before(explained, f"{end}_time"), dtype=pl.Float64)
        for end in ("first", "last")
    )
    with open_run(asked.config, kind=EXPLANATION, sections=SECTIONS, name=f"explain {name}") as run:
        run.logger.set_tags({MODEL_RUN: asked.run_id})
        run.logger.log_text(page(document_of(explained, hidden)), f"explain/subject_{name}.html")
        run.logger.log_table(codes, f"explain/subject_{name}.csv")
        facts = {"model": f"{asked.model}, run {asked.run_id}", "subject": name, "method": explained.method}
        run.logger.set_description(describe("Explanation of a prediction", facts) + f"\n{NO_CAUSE}\n")
        run.finished({})


def _days_before(explained: Explanation, column: str) -> list[float | None]:
    time = explained.prediction_time
    return [None if moment is None else days_before(time, moment) for moment in explained.codes[column]]


def _check_free(out: Path | None) -> None:
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is there already; name a new folder, or remove it first")


def _check_private(privacy: Privacy | None) -> None:
    if privacy is not None and privacy.key is not None and privacy.hides_days:
        raise ConfigError(
            "this study names a calendar date, from which days before the prediction would give a subject's dates: the "
            "explanation is not sent to the server. Leave out --log; --out keeps it on this machine"
        )
