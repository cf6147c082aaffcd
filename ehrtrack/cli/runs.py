"""Commands about runs, models and servers that are there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ehrtrack.cli.app import PASS_THROUGH, cli, read_overrides
from ehrtrack.errors import ConfigError


@cli.command(context_settings=PASS_THROUGH)
@click.argument("run_id", required=False)
@click.option("--stale", is_flag=True, help="all runs that no process writes to any more, instead of one")
@click.option("--minutes", default=10.0, show_default=True, help="with --stale: time without a sign of life")
@click.option("--force", is_flag=True, help="do not wait until the run's last sign of life is old")
@click.pass_context
def resume(context: click.Context, run_id: str | None, stale: bool, minutes: float, force: bool) -> None:
    """Go on with a run that was cut off, from its last snapshot, here or on another machine.

    Settings of the machine can be overridden: --runtime.device cuda, --train.batch_tokens 2048, --data.path DIR.
    """
    words = list(context.args)
    if run_id is not None and run_id.startswith("--"):  # click takes an override for the argument
        words, run_id = [run_id, *words], None
    overrides = read_overrides(words)
    if stale == (run_id is not None):
        raise ConfigError("name one run, or say --stale: ehrtrack resume RUN_ID")
    from ehrtrack.recipes.resume import resume as resume_run
    from ehrtrack.recipes.resume import resume_orphans

    if run_id is not None:
        resume_run(run_id, overrides, is_forced=force)
    elif not resume_orphans(overrides, minutes=minutes):
        click.echo("no run was resumed")


@cli.command()
@click.option("--stale", is_flag=True, required=True, help="those that no process writes to, with what to do")
@click.option("--minutes", default=10.0, show_default=True, help="time without a sign of life")
@click.option(
    "--close", is_flag=True, help="end those that cannot be resumed as KILLED; the others are left as they are"
)
def runs(stale: bool, minutes: float, close: bool) -> None:
    """List runs of every kind whose process is gone; `ehrtrack resume --stale` resumes those that can be."""
    from ehrtrack.tracking.recovery.orphans import close_orphans, orphaned_runs

    found = orphaned_runs(minutes=minutes)
    for run in found:
        click.echo(run.to_text())
    if close:
        closed = close_orphans(found)
        click.echo(f"{len(closed)} closed" + "".join(f"\n  {run.record.run_id}" for run in closed))


@cli.command()
@click.argument("study", required=False, default="")
@click.option("--run", "run_id", default="", help="a run's page, by its id")
@click.option("--model", default="", help="a registered model's page, by its name")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="of a server that is started; 0 is a free one")
@click.option("--browser/--no-browser", "opens", default=True, help="whether a browser is opened at the page")
def ui(study: str, run_id: str, model: str, port: int, opens: bool) -> None:
    """Open the tracking UI at the page of STUDY (or of the last one, a run or a model), on the store in use.

    A server that is there already is used; over a local database one is started, for this machine alone.
    """
    if sum(map(bool, (study, run_id, model))) > 1:
        raise ConfigError("name one page: a study, --run ID or --model NAME")
    from ehrtrack.server.ui import show_ui

    show_ui(study=study, run_id=run_id, model=model, port=port, opens=opens, tell=click.echo)


@cli.command()
@click.argument("name")
def best(name: str) -> None:
    """Print the champion of a registered model, such as gi_bleed."""
    from ehrtrack.recipes.compare import describe_champion
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    click.echo(describe_champion(name))


@cli.command()
@click.option("--model", required=True, help="run id, models:/NAME@champion or models:/NAME/VERSION")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="MEDS dataset")
@click.option(
    "--labels", required=True, type=click.Path(path_type=Path), help="subject_id, prediction_time: a file or folder"
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="parquet file to write")
@click.option("--engine", default="local", show_default=True, help="what works on the shards: local or ray")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1), help="shards at the same time")
def predict(model: str, data: Path, labels: Path, out: Path, engine: str, workers: int) -> None:
    """Score subjects with a registered model; those it was not trained for get no risk and a reason."""
    from ehrtrack.recipes.predict import predict as run_predict
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    run_predict(model, data, labels, out, engine=engine, n_workers=workers)


@cli.command()
@click.argument("model")
@click.option("--days", multiple=True, required=True, type=float, help="a landmark, from the index date; repeat it")
def landmarks(model: str, days: tuple[float, ...]) -> None:
    """Score a model (run id, models:/NAME@champion) again later, on those still followed: --days 0 --days 365."""
    from ehrtrack.recipes.landmarks import landmarks as run_landmarks
    from ehrtrack.tracking.client.connection import check_reachable

    check_reachable()
    run_landmarks(model, days)


@cli.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(exists=True, path_type=Path))
def sync(folder: Path | None) -> None:
    """Send what runs could not: their journals under DIR. Exit code 1 if something is left.

    Without DIR those in .ehrtrack, and those in EHRTRACK_HOME (the user's data folder) that are for this server.
    """
    from ehrtrack.home import HERE, known_caches
    from ehrtrack.tracking.outbox.sync import sync as send_all

    folders = [folder] if folder else known_caches()
    runs = [run for one in folders for run in send_all(one, is_shared=folder is None and one != HERE)]
    for run in runs:
        click.echo(run.to_text())
    if not runs:
        click.echo(f"nothing to send in {' and '.join(map(str, folders))}")
    if any(run.problem for run in runs):
        sys.exit(1)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 listens on every network")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--folder", default=Path("server"), show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", default="auto", show_default=True, type=click.Choice(["auto", "postgresql", "sqlite"]))
@click.option("--auth/--no-auth", default=True, show_default=True, help="whether users log in")
@click.option("--user", "users", multiple=True, default=("pod",), show_default=True, help="make a user; repeatable")
@click.option("--address", help="what pods call it, such as https://runs.example.org")
@click.option("--allowed-hosts", default="", help="more names it answers to, with ports, separated by commas")
@click.option("--cors-origins", default="", help="web pages that may call it, separated by commas")
@click.option("--artifacts", help="where files go instead of the folder, such as s3://bucket/path")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 8), help="0.4 GB of memory each")
def server(allowed_hosts: str, cors_origins: str, auth: bool, **options: Any) -> None:
    """Start a tracking server on this machine: runs, files and logins in one folder; Ctrl-C ends it."""
    from ehrtrack.server.command import ServerSettings, serve

    settings = ServerSettings(
        **options,
        has_auth=auth,
        allowed_hosts=tuple(filter(None, allowed_hosts.split(","))),
        cors_origins=tuple(filter(None, cors_origins.split(","))),
    )
    serve(settings, click.echo)


@cli.command()
@click.option("--megabytes", default=10, show_default=True, type=click.IntRange(1, 1000), help="size of the test file")
def doctor(megabytes: int) -> None:
    """Check the server, the way to it, and this machine before a run; exit code 1 if something has to change."""
    from ehrtrack.tracking.doctor import check_all

    findings = []
    for finding in check_all(n_megabytes=megabytes):
        click.echo(finding.to_text())
        findings.append(finding)
    if any(finding.state == "fail" for finding in findings):
        sys.exit(1)
