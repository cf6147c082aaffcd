"""Commands that train, compare and search: each loads its recipe when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ehrtrack.cli.app import CONFIG_HELP, PASS_THROUGH, cli, load, read_overrides, recipe
from ehrtrack.errors import ConfigError

if TYPE_CHECKING:
    from ehrtrack.config import RunConfig


@recipe("pretraining")
def _pretrain(config: RunConfig) -> None:
    """Pretrain an encoder on the whole records of the training subjects."""
    from ehrtrack.recipes.pretrain import pretrain

    pretrain(config)


@recipe("outcome")
def _finetune(config: RunConfig) -> None:
    """Fine-tune an encoder to a time-to-event outcome: frozen, lora, full or scratch."""
    from ehrtrack.recipes.finetune import finetune

    finetune(config)


@recipe("outcome")
def _baseline(config: RunConfig) -> None:
    """Fit a baseline, such as Cox on code counts, to the same cohort."""
    from ehrtrack.recipes.baseline import baseline

    baseline(config)


@recipe("outcome")
def _sweep(config: RunConfig) -> None:
    """Search settings with Optuna; start it again to continue the same study."""
    from ehrtrack.recipes.sweep import sweep
    from ehrtrack.recipes.work import task_key

    sweep(config, key=task_key())


@recipe("outcome")
def _sensitivity(config: RunConfig) -> None:
    """Fine-tune at several values of one setting, and show what each buys and costs."""
    from ehrtrack.recipes.sensitivity import sensitivity

    sensitivity(config)


@recipe("outcome")
def _negative_controls(config: RunConfig) -> None:
    """Look for leakage: train small twins of a fine-tuning run; exit code 2 if one is not as it has to be."""
    from ehrtrack.recipes.negative_controls import negative_controls

    negative_controls(config)


@recipe("outcome")
def _compare(config: RunConfig) -> None:
    """Make benchmark tables out of the study's runs, and name the best by validation champion."""
    from ehrtrack.recipes.compare import compare

    compare(config)


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
    loaded = load(config, read_overrides(context.args) + given)
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
    loaded = load(config, read_overrides(context.args), objective="mlm")
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
    """Say what was best in studies with as many labels, and what it takes here, before a GPU is rented.

    Any setting can be overridden: --model.size medium --runtime.device cuda.
    """
    loaded = load(config, read_overrides(context.args), kind="outcome")
    from ehrtrack.recipes.advise import advise as run_advise

    click.echo(run_advise(loaded, price=price).to_text())


@cli.command()
def demo() -> None:
    """The main job on embedded data: import, a study over strategies and seeds, its report, the champion."""
    from ehrtrack.recipes.demo import demo as run_demo
    from ehrtrack.tracking.client.connection import check_reachable
    from ehrtrack.tracking.outbox.registration import check_join

    check_reachable()
    check_join()
    run_demo()
