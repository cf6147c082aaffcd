"""Commands about registered models: who is champion, and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ehrtrack.cli.app import cli
from ehrtrack.errors import ConfigError

_MODEL = "run id, models:/NAME@champion or models:/NAME/VERSION"
_WHY = "the reason, for the record of moves"


@cli.command()
@click.argument("run")
@click.option("--name", default="", help="the registered model  [default: the run's study]")
@click.option("--force", is_flag=True, help="whatever the rules say; a pinned champion stays all the same")
@click.option("--pin", "pins", is_flag=True, help="keep it champion, whatever is promoted or compared later")
@click.option("--merge", "merges", is_flag=True, help="a version that stands alone: an adapter with its base")
@click.option("--why", default="", help=_WHY)
def promote(run: str, name: str, force: bool, pins: bool, merges: bool, why: str) -> None:
    """Make RUN (a run id, or models:/NAME/VERSION) champion of a registered model, unless it is worse.

    It takes the place of a champion of the same cohort than which it is not worse, by the paired interval on the
    validation subjects. The champion before stays as models:/NAME@previous. A version of a run with an adapter holds
    that alone, and finds its base on the server.
    """
    from ehrtrack.recipes.promote import promote as promote_run
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    click.echo(promote_run(run, name=name, is_forced=force, pins=pins, merges=merges, why=why).to_text())


@cli.command()
@click.argument("name")
@click.option("--why", required=True, help=_WHY)
def rollback(name: str, why: str) -> None:
    """Make the previous champion of model NAME champion again; the one rolled back is not proposed any more."""
    from ehrtrack.tracking.client.connection import check_reachable
    from ehrtrack.tracking.client.moves import roll_back

    check_reachable()
    click.echo(str(roll_back(name, why=why)))


@cli.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="let the champion move again")
@click.option("--why", default="", help=_WHY)
def pin(name: str, off: bool, why: str) -> None:
    """Keep the champion of model NAME, whatever is promoted or compared later."""
    from ehrtrack.tracking.client.connection import check_reachable
    from ehrtrack.tracking.client.moves import pin as pin_champion

    check_reachable()
    click.echo(str(pin_champion(name, holds=not off, why=why or "no reason given")))


@cli.command()
@click.argument("name", required=False)
def models(name: str | None) -> None:
    """List the registered models; or the versions of model NAME, with the moves of its champion."""
    from ehrtrack.recipes.registry import list_models, list_versions
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    click.echo(list_versions(name) if name else list_models())


@cli.command()
@click.argument("a")
@click.argument("b")
def diff(a: str, b: str) -> None:
    """How two models differ (run id, models:/NAME@champion or models:/NAME/VERSION): settings, scores, paired."""
    from ehrtrack.recipes.registry import diff as diff_models
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    click.echo(diff_models(a, b))


@cli.command()
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...")
@click.option("--host", default="127.0.0.1", show_default=True, help="another than this machine's needs a token")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 is a free one")
@click.option(
    "--poll", default=5.0, show_default=True, type=click.FloatRange(0.1), help="seconds between looks at the champion"
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 64), help="that compute a batch")
def serve(models: tuple[str, ...], host: str, port: int, poll: float, threads: int) -> None:
    """Answer requests with MODEL (run id, models:/NAME@champion or models:/NAME/VERSION) over HTTP, until it is ended.

    JSON of subjects in, risks out: POST /predict; /health, /model, /openapi.json. A champion that moves is followed.
    Of several models the first answers, or the one whose name the request has.
    Whoever may call it from elsewhere has to know EHRTRACK_SERVE_TOKEN.
    """
    # Before polars is loaded: tables of a few subjects gain nothing by its threads, and wait for them.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    from ehrtrack.serving.command import ServeSettings
    from ehrtrack.serving.command import serve as run_serve

    run_serve(ServeSettings(models, host, port, poll_seconds=poll, n_threads=threads), click.echo)


@cli.command()
@click.option("--model", required=True, help=_MODEL)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="MEDS dataset")
@click.option(
    "--labels",
    required=True,
    type=click.Path(path_type=Path),
    help="subject_id, prediction_time and the outcome: a file or folder",
)
@click.option("--against", multiple=True, help="another model, scored on the same subjects and paired; repeatable")
@click.option("--seed", default=0, show_default=True, help="of the bootstrap")
@click.option("--cache", type=click.Path(path_type=Path), help="for the run's journal  [default: runtime.cache]")
def evaluate(model: str, data: Path, labels: Path, against: tuple[str, ...], seed: int, cache: Path | None) -> None:
    """Score a model on labelled subjects it has never seen, in a run of its own: all measures with intervals."""
    from ehrtrack.recipes.evaluate import evaluate as run_evaluate
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    run_evaluate(model, data, labels, against=against, seed=seed, cache=cache)


@cli.command()
@click.argument("model")
@click.option("--subject", default="", help="whose prediction is explained")
@click.option("--cohort", type=click.IntRange(min=1), help="test subjects that are drawn, and summed up in a run")
@click.option(
    "--method",
    type=click.Choice(["occlusion", "integrated-gradients"]),
    default="occlusion",
    show_default=True,
    help="the latter for networks and the lasso",
)
@click.option("--data", type=click.Path(path_type=Path), help="MEDS dataset  [default: that of the model]")
@click.option(
    "--labels", type=click.Path(path_type=Path), help="prediction times of other data  [default: the model's cohort]"
)
@click.option("--time", type=click.DateTime(), help="the prediction time of --subject  [default: its own]")
@click.option(
    "--reference-age", type=float, help="in years, that the subject's is compared with  [default: the median]"
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=1), help="codes that are shown")
@click.option("--seed", default=0, show_default=True, help="of the draw of --cohort, and of its bootstrap")
@click.option("--out", type=click.Path(path_type=Path), help="folder to write: page, figure and tables")
@click.option("--log", is_flag=True, help="keep the page of --subject in a run, under a hash and without dates")
@click.option("--cache", type=click.Path(path_type=Path), help="for the run's journal  [default: runtime.cache]")
def explain(subject: str, cohort: int | None, **options: Any) -> None:
    """Say what in the record makes MODEL (run id, models:/NAME@champion) predict the risk of a subject.

    Contributions of codes and of visits, by leaving each out or by integrated gradients; they describe the model, and
    not what causes the outcome. With --cohort: which codes carry the risk over test subjects.
    """
    if bool(subject) == (cohort is not None):
        raise ConfigError("name one subject (--subject ID), or a number of test subjects (--cohort N)")
    of_one = [name for name in ("time", "reference_age", "log") if options[name]]
    if cohort is not None and of_one:
        raise ConfigError(f"--{of_one[0].replace('_', '-')} is of one --subject; leave it out with --cohort")
    from ehrtrack.recipes import explain as recipe
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    shared = {name: options[name] for name in ("method", "data", "labels", "out", "cache")}
    shared |= {"model": options["model"], "n_top": options["top"]}
    if cohort is not None:
        recipe.explain_cohort(n_subjects=cohort, seed=options["seed"], **shared)
        return
    of_subject = {"time": options["time"], "reference_years": options["reference_age"], "is_logged": options["log"]}
    recipe.explain(subject=subject, **shared, **of_subject)
