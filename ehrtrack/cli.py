"""The command line. Every recipe, and the tools around them; heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ehrtrack.errors import ConfigError, EhrtrackError, JoinRefused
from ehrtrack.openmp import set_wait_policy
from ehrtrack.signals import received, signals_end_the_command

if TYPE_CHECKING:
    from ehrtrack.config import Kind, RunConfig

PASS_THROUGH = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": ["-h", "--help"],
}
DISK_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
    errno.EIO, errno.ELOOP, errno.EMFILE,
}  # fmt: skip
"""What a disk says to whoever asks too much of it; another OSError is a bug."""
CONFIG_HELP = "TOML file of the study, such as projects/gi_bleed/finetune.toml"


class _Commands(click.Group):
    """Commands that a signal ends: without a traceback, whatever the signal broke into."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (Exception, KeyboardInterrupt) as error:  # a query that Ctrl-C broke into has an error of its own
            number = received() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
            if number is None:
                raise
            click.echo(f"ehrtrack: ended by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}", err=True)
            sys.exit(128 + number)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ehrtrack")
def cli() -> None:
    """Survival models on electronic health records, with every run tracked and every claim checkable.

    Runs go to MLFLOW_TRACKING_URI, or to sqlite:///mlflow.db in the working folder.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: what the user got wrong ends with one clear message and exit code 2, without a traceback.

    Ctrl-C ends with exit code 130, and SIGTERM with 143.
    """
    set_wait_policy()
    try:
        with signals_end_the_command():
            cli(args=arguments, prog_name="ehrtrack")
    except EhrtrackError as error:
        click.echo("\n".join([f"ehrtrack: {error}", *getattr(error, "__notes__", [])]), err=True)
        if isinstance(error, JoinRefused):
            from ehrtrack.tracking.recovery.liveness import end_mlflow_run

            if end_mlflow_run():
                click.echo("ehrtrack: `mlflow run` is ended, since it would mark that run as FAILED", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        click.echo(
            f"ehrtrack: {error}; see that the disk has room, that the path is one, and that you may use it", err=True
        )
        sys.exit(2)


def _overrides(extra: Sequence[str]) -> list[tuple[str, str]]:
    """Dotted overrides out of ``--strategy.rank 8`` and ``--strategy.rank=8``."""
    overrides, words = [], iter(extra)
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(f"unexpected argument {word!r}; overrides are written --strategy.rank 8")
        dotted, equals, value = word.removeprefix("--").partition("=")
        given = value if equals else next(words, None)
        if given is None:
            raise ConfigError(f"override --{dotted} has no value; write --{dotted} VALUE")
        overrides.append((dotted, given))
    return overrides


def _load(
    config: Path, overrides: list[tuple[str, str]], *, objective: str = "survival", kind: Kind | None = None
) -> RunConfig:
    """The configuration; a missing file is told before anything else is imported."""
    from ehrtrack.study_file import read_study_file

    read_study_file(config)

    from ehrtrack.config import load_config

    return load_config(config, overrides, objective=objective, kind=kind)


def _is_first_rank() -> bool:
    """Whether this process is rank 0 of those that torchrun started, or none of them."""
    return os.environ.get("RANK", "0") == "0"


def _recipe(kind: Kind) -> Callable[[Callable[[RunConfig], Any]], click.Command]:
    """A command that reads ``--config`` and dotted overrides, and checks the tracking server before any work."""

    def decorate(function: Callable[[RunConfig], Any]) -> click.Command:
        @click.pass_context
        def command(context: click.Context, config: Path) -> None:
            loaded = _load(config, _overrides(context.args), kind=kind)
            if _is_first_rank():
                from ehrtrack.tracking.client.connection import check_reachable
                from ehrtrack.tracking.outbox.registration import check_join
                from ehrtrack.tracking.outbox.sender import is_offline
                from ehrtrack.tracking.recovery.lease import mlflow_run_has_heartbeat

                if not is_offline():
                    check_reachable()
                    check_join()
                    with mlflow_run_has_heartbeat():
                        function(loaded)
                    return
            else:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115  rank 0 speaks for all
            function(loaded)

        option = click.option("--config", required=True, type=click.Path(path_type=Path), help=CONFIG_HELP)
        return cli.command(
            name=function.__name__.strip("_"),
            help=f"{function.__doc__}\n\nAny setting can be overridden: --train.epochs 5 --strategy.rank 8.",
            context_settings=PASS_THROUGH,
        )(option(command))

    return decorate


@_recipe("pretraining")
def _pretrain(config: RunConfig) -> None:
    """Pretrain an encoder on the whole records of the training subjects."""
    from ehrtrack.recipes.pretrain import pretrain

    pretrain(config)


@_recipe("outcome")
def _finetune(config: RunConfig) -> None:
    """Fine-tune an encoder to a time-to-event outcome: frozen, lora, full or scratch."""
    from ehrtrack.recipes.finetune import finetune

    finetune(config)


@_recipe("outcome")
def _baseline(config: RunConfig) -> None:
    """Fit a baseline, such as Cox on code counts, to the same cohort."""
    from ehrtrack.recipes.baseline import baseline

    baseline(config)


@_recipe("outcome")
def _sweep(config: RunConfig) -> None:
    """Search settings with Optuna; start it again to continue the same study."""
    from ehrtrack.recipes.sweep import sweep

    sweep(config)


@_recipe("outcome")
def _frontier(config: RunConfig) -> None:
    """Fine-tune at several values of one setting, and show what each buys and costs."""
    from ehrtrack.recipes.frontier import frontier

    frontier(config)


@_recipe("outcome")
def _canary(config: RunConfig) -> None:
    """Look for leakage: train small twins of a fine-tuning run; exit code 2 if one is not as it has to be."""
    from ehrtrack.recipes.canary import canary

    canary(config)


@_recipe("outcome")
def _compare(config: RunConfig) -> None:
    """Make benchmark tables out of the study's runs, and name the best by validation champion."""
    from ehrtrack.recipes.compare import compare

    compare(config)


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
    overrides = _overrides(words)
    if stale == (run_id is not None):
        raise ConfigError("name one run, or say --stale: ehrtrack resume RUN_ID")
    from ehrtrack.recipes.resume import resume as resume_run
    from ehrtrack.recipes.resume import resume_orphans

    if run_id is not None:
        resume_run(run_id, overrides, is_forced=force)
    elif not resume_orphans(overrides, minutes=minutes):
        click.echo("no run was taken up")


@cli.command()
@click.option("--stale", is_flag=True, required=True, help="those that no process writes to, with what to do")
@click.option("--minutes", default=10.0, show_default=True, help="time without a sign of life")
@click.option(
    "--close", is_flag=True, help="end those that cannot go on as KILLED; those that can are left as they are"
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


@cli.command(context_settings=PASS_THROUGH)
@click.option("--config", required=True, type=click.Path(path_type=Path), help=CONFIG_HELP)
@click.option("--recipe", type=click.Choice(["pretrain", "finetune"]), default="pretrain", show_default=True)
@click.option("--shard", default="1/1", show_default=True, help="i/n: do the i-th of n slices of the shards")
@click.option("--engine", help="local or ray; runtime.engine")
@click.option("--workers", type=click.IntRange(min=1), help="shards at the same time; runtime.workers")
@click.pass_context
def tokenize(
    context: click.Context, config: Path, recipe: Literal["pretrain", "finetune"], shard: str, engine: str, workers: int
) -> None:
    """Tokenise a config's dataset ahead of training: all of it, or on n machines a slice each.

    The machines share runtime.cache and the data. They may start in any order, again, and after being killed; the
    last one joins the slices. Any setting can be overridden: --runtime.cache /shared/cache.
    """
    chosen = {"runtime.engine": engine, "runtime.workers": workers}
    given = [(name, str(value)) for name, value in chosen.items() if value is not None]
    loaded = _load(config, _overrides(context.args) + given, kind="pretraining" if recipe == "pretrain" else "outcome")
    from ehrtrack.data.shards import parse_slice

    part = parse_slice(shard)
    from ehrtrack.recipes.tokenize import tokenize as run_tokenize

    run_tokenize(loaded, recipe=recipe, part=part)


@cli.command(context_settings=PASS_THROUGH)
@click.option("--config", required=True, type=click.Path(path_type=Path), help=CONFIG_HELP)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="folder to write")
@click.option("--width", default=0, type=click.IntRange(min=0), help="of a vector; that of model.size where not given")
@click.option(
    "--method",
    default="cooccurrence",
    show_default=True,
    type=click.Choice(["cooccurrence", "skip-gram"]),
    help="which codes share records, factorised; or skip-gram over visits, after Med2Vec",
)
@click.option("--epochs", type=click.IntRange(min=1), help="of skip-gram  [default: 5]")
@click.option("--groups", default=0, type=click.IntRange(min=0), help="of like codes, for data.vocabulary.groups")
@click.pass_context
def embed(
    context: click.Context, config: Path, out: Path, width: int, method: str, epochs: int | None, groups: int
) -> None:
    """Fit code embeddings on the training subjects' records: init.embeddings starts from them."""
    if epochs is not None and method != "skip-gram":
        raise ConfigError(f"--epochs {epochs} is of --method skip-gram; {method} has none: leave it out")
    loaded = _load(config, _overrides(context.args), objective="mlm")
    from ehrtrack.recipes.embed import embed as run_embed
    from ehrtrack.training.settings import SkipGramConfig

    given = {} if epochs is None else {"epochs": epochs}
    skip_gram = SkipGramConfig(**given) if method == "skip-gram" else None
    run_embed(loaded, out, skip_gram, width=width, n_groups=groups)


@cli.command(context_settings=PASS_THROUGH)
@click.option("--config", required=True, type=click.Path(path_type=Path), help=CONFIG_HELP)
@click.option("--price", type=click.FloatRange(min=0), help="of an hour of the machine, in any currency")
@click.pass_context
def advise(context: click.Context, config: Path, price: float | None) -> None:
    """Say which strategy the cohort's size suggests, with parameters, memory, time and cost, before a GPU is rented.

    Any setting can be overridden: --model.size medium --runtime.device cuda.
    """
    loaded = _load(config, _overrides(context.args), kind="outcome")
    from ehrtrack.recipes.advise import advise as run_advise

    click.echo(run_advise(loaded, price=price).to_text())


@cli.command()
def demo() -> None:
    """The main job on embedded data: import, pretrain, fine-tune, baseline, sweep, compare."""
    from ehrtrack.recipes.demo import demo as run_demo
    from ehrtrack.tracking.client.connection import check_reachable
    from ehrtrack.tracking.outbox.registration import check_join

    check_reachable()
    check_join()
    run_demo()


@cli.command(name="import")
@click.argument("source")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="TOML that names columns (events-csv)")
@click.option("--engine", default="local", show_default=True, help="where shards are written: local or ray")
@click.option("--workers", default=1, show_default=True, help="shards written at the same time")
def import_(source: str, path: Path, out: Path, config: Path | None, engine: str, workers: int) -> None:
    """Import event tables as a MEDS dataset: meds, omop, synthea, mimic-iv or events-csv."""
    from ehrtrack.data.importing import import_dataset

    report = import_dataset(source, path, out, config=config, engine=engine, n_workers=workers)
    click.echo(report.to_text())


@cli.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="write it as one page, too")
def describe(data: Path, html: Path | None) -> None:
    """Say what a MEDS dataset holds: subjects, events, results, ages, and what to know before a study."""
    from ehrtrack.recipes.describe import describe as run_describe

    run_describe(data, html)


@cli.command()
@click.option("--subjects", required=True, type=int, help="how many subjects")
@click.option("--seed", default=0, show_default=True, type=int)
@click.option("--world", required=True, help="pretraining-site, target-site or noise")
@click.option("--dial", multiple=True, help="change a dial of the world, such as signal=0; can be repeated")
@click.option("--check", is_flag=True, help="check labels and records against the truth afterwards")
@click.argument("out", type=click.Path(path_type=Path))
def simulate(subjects: int, seed: int, world: str, dial: tuple[str, ...], check: bool, out: Path) -> None:
    """Write a population whose truth is known: a MEDS dataset, labels.parquet and truth.parquet."""
    from ehrtrack.simulate.check import check_truth
    from ehrtrack.simulate.population import simulate as run_simulate
    from ehrtrack.simulate.world import load_world

    run_simulate(load_world(world, dial), out, n_subjects=subjects, seed=seed)
    click.echo(f"{subjects:,} subjects of {world} -> {out}")
    if check:
        click.echo(check_truth(out).to_text())


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
