"""Commands about studies: what one would take, running it, and working for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ehrtrack.cli.app import PASS_THROUGH, cli, read_overrides

FILE = click.argument("file", type=click.Path(path_type=Path))


@cli.group()
def study() -> None:
    """Many runs that answer one question: a TOML file over configurations, seeds and splits."""


@study.command(context_settings=PASS_THROUGH)
@FILE
@click.option("--measure/--no-measure", default=True, show_default=True, help="time steps of training on this machine")
@click.pass_context
def plan(context: click.Context, file: Path, measure: bool) -> None:
    """Show the cells of a study, which of them are done, and what the others take."""
    overrides = _read(context, file)
    from ehrtrack.recipes.plan import plan as run_plan
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    click.echo(run_plan(file, overrides, measures=measure))


@study.command(context_settings=PASS_THROUGH)
@FILE
@click.option("--key", help="of the task that a scheduler starts again  [default: the scheduler's]")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="processes that share the cores"
)
@click.pass_context
def run(context: click.Context, file: Path, key: str | None, workers: int) -> None:
    """Run all cells of a study that are not done, and gather the results; start it again to continue.

    Settings of the machine can be overridden: --runtime.device cuda --runtime.storage postgresql://...
    """
    overrides = _read(context, file)
    with _tracked():
        from ehrtrack.recipes.study import study as run_study
        from ehrtrack.recipes.work import task_key

        run_study(file, overrides, key=task_key() if key is None else key, n_workers=workers)


@cli.command(context_settings=PASS_THROUGH)
@FILE
@click.option("--max-hours", type=click.FloatRange(min=0, min_open=True), help="end well after so long")
@click.option("--key", help="of the task that a scheduler starts again  [default: the scheduler's]")
@click.pass_context
def work(context: click.Context, file: Path, max_hours: float | None, key: str | None) -> None:
    """Run cells of a study, or trials of a sweep, beside other workers, until none is left.

    An array of these is all that a scheduler needs.

    Settings of the machine can be overridden: --runtime.device cuda --runtime.storage postgresql://...
    """
    overrides = _read(context, file)
    with _tracked():
        from ehrtrack.recipes.work import work as run_work

        run_work(file, overrides, key=key, max_hours=max_hours)


@cli.command()
@FILE
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="folder  [default: reports/STUDY, or reports/STUDY-FILE]",
)
def report(file: Path, out: Path | None) -> None:
    """Write the report of a study or a sweep from what the tracking server has: one page, tables and figures."""
    from ehrtrack.study_file import read_study_file

    read_study_file(file)
    from ehrtrack.recipes.report import report as run_report
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    run_report(file, out)


def _read(context: click.Context, file: Path) -> list[tuple[str, str]]:
    """The overrides; a file that is missing is told before anything else is imported."""
    from ehrtrack.study_file import read_study_file

    read_study_file(file)
    return read_overrides(context.args)


@contextmanager
def _tracked() -> Iterator[None]:
    """Make sure of the tracking server before any work; what `mlflow run` made lives while inside."""
    from ehrtrack.tracking.client.connection import check_reachable
    from ehrtrack.tracking.outbox.registration import check_join
    from ehrtrack.tracking.recovery.lease import mlflow_run_has_heartbeat

    check_reachable()
    check_join()
    with mlflow_run_has_heartbeat():
        yield
