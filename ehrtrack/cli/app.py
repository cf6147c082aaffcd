"""The command line. Every recipe, and the tools around them; heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ehrtrack import renamed
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


SECTIONS = {
    "Begin": ("demo", "init", "settings", "advise"),
    "Data": ("import", "describe", "simulate", "embed", "tokenize"),
    "Train": ("pretrain", "finetune", "baseline", "resume"),
    "Ask": ("study", "sweep", "work", "report", "compare", "sensitivity", "negative-controls", "landmarks"),
    "Models": ("best", "models", "promote", "rollback", "pin", "diff", "evaluate", "predict", "explain", "serve"),
    "Tracking": ("ui", "server", "doctor", "runs", "sync"),
}
"""Where each command is listed, in the order in which one needs them."""


class _NoTerminal(io.TextIOWrapper):
    """Where errors go but no progress bars."""

    def isatty(self) -> bool:
        return False


class _Commands(click.Group):
    """Commands by their present and former names. A signal ends them without a traceback, whatever it broke into."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, *rest = args
        if name in renamed.COMMANDS:
            renamed.tell(f"`ehrtrack {name}`", f"`ehrtrack {renamed.COMMANDS[name]}`")
        return super().resolve_command(context, [renamed.COMMANDS.get(name, name), *rest])

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS.items():
            room = formatter.width - max(map(len, names)) - 6
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(room)) for name in names])

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
@click.option("-q", "--quiet", is_flag=True, help="say nothing but what went wrong")
@click.option("-v", "--verbose", is_flag=True, help="also tell what is logged on the way, on stderr")
def cli(quiet: bool, verbose: bool) -> None:
    """Survival models on electronic health records, with every run tracked and every claim checkable.

    Runs go to MLFLOW_TRACKING_URI, or to sqlite:///mlflow.db in the working folder.
    """
    if quiet and verbose:
        raise ConfigError("-q and -v exclude each other; give one of them")
    if quiet:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the whole command
        sys.stderr = _NoTerminal(sys.stderr.buffer, encoding=sys.stderr.encoding, line_buffering=True)
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")


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


def read_overrides(extra: Sequence[str]) -> list[tuple[str, str]]:
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


def load(
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


def recipe(kind: Kind) -> Callable[[Callable[[RunConfig], Any]], click.Command]:
    """A command that reads ``--config`` and dotted overrides, and checks the tracking server before any work."""

    def decorate(function: Callable[[RunConfig], Any]) -> click.Command:
        @click.pass_context
        def command(context: click.Context, config: Path) -> None:
            loaded = load(config, read_overrides(context.args), kind=kind)
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
            name=function.__name__.strip("_").replace("_", "-"),
            help=f"{function.__doc__}\n\nAny setting can be overridden: --train.epochs 5 --strategy.rank 8.",
            context_settings=PASS_THROUGH,
        )(option(command))

    return decorate
