"""Commands about data: import, describe, simulate; and what helps to write a configuration: init, settings."""

from __future__ import annotations

from pathlib import Path

import click

from ehrtrack.cli.app import cli


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
@click.argument("study")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="folder of a MEDS dataset")
@click.option("--labels", type=click.Path(path_type=Path), help="file or folder of labels, if there are any")
@click.option("--folder", default="projects", show_default=True, type=click.Path(path_type=Path), help="of all studies")
def init(study: str, data: Path, labels: Path | None, folder: Path) -> None:
    """Write the commented configuration files of a new STUDY, from what its dataset holds."""
    from ehrtrack.guide.init import init_study

    out = init_study(study, data, labels=labels, folder=folder)
    click.echo(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    click.echo(f"next: look at {out / 'finetune.toml'}, then ehrtrack study plan {out / 'study.toml'}")


@cli.command()
@click.argument("section", default="")
def settings(section: str) -> None:
    """Show the settings of a SECTION such as train, strategy.lora or data.split; without one, which there are."""
    from ehrtrack.guide.reference import settings_text

    click.echo(settings_text(section))
