"""What the documentation has beside the pages in docs/: pages of the repository, and references made from the code.

A page links to files as they lie in the repository, so that its links work there too. Here a link to a page of the
site stays one, and a link to any other file becomes its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    *("projects/*/README.md", "projects/*/results/figures/*.png", "projects/*/results/*.md", "docker/README.md"),
    *("benchmarks/README.md", "benchmarks/results/*.md", "CHANGELOG.md", "CONTRIBUTING.md"),
)
"""Files beside docs/ that the site has, at the same place."""
BASES = (
    *("ehrtrack.objectives.base.OutcomeObjective", "ehrtrack.objectives.base.PretrainingObjective"),
    *("ehrtrack.strategies.base.Strategy", "ehrtrack.baselines.base.Baseline", "ehrtrack.data.sources.base.Source"),
)
"""Classes that additions derive from."""
ENTRY = re.compile(r"^(\w+(?:, \w+)*) : (.+)$", re.MULTILINE)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s:]+?)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every project behind what they found, at the head of the results."""
    results = next(entry["Results"] for entry in config.nav or [] if "Results" in entry)
    results[1:1] = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("projects/*/README.md"))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and those that are made."""
    from ehrtrack.guide.reference import settings_page

    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "reference/settings.md", content=settings_page()))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/python.md", content=python_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links from where files lie in the repository to where they are on the site."""
    here = page.file.src_uri
    is_outside = (ROOT / here).is_file()
    folder = Path(here).parent if is_outside else Path("docs", here).parent

    def moved(link: re.Match[str]) -> str:
        path = os.path.normpath(folder / link["target"])
        on_site = Path(path).as_posix().removeprefix("docs/")
        if files.get_file_from_path(on_site) is None:
            return f"`{path}`" if (ROOT / path).exists() and not link["image"] else link[0]
        target = Path(os.path.relpath(on_site, Path(here).parent)).as_posix()
        return f"{link['image']}[{link['text']}]({target}{link['anchor'] or ''})"

    return LINK.sub(moved, markdown)


def commands_page() -> str:
    """What ``--help`` says of every command."""
    from ehrtrack.cli import cli

    parts = ["# Commands", "What `ehrtrack COMMAND --help` says."]
    for name, command, context in _commands(cli, click.Context(cli, info_name="ehrtrack")):
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts) + "\n"


def python_page() -> str:
    """The public functions, and the classes that additions derive from, for mkdocstrings to fill in."""
    import ehrtrack

    parts = [
        "# Python",
        "Every command is a function, for notebooks and scripts. What is imported waits until it is used.",
        "## Functions",
        *(_documented(f"{module}.{at}", f"ehrtrack.{name}") for name, (module, at) in sorted(ehrtrack._PLACES.items())),
        "## Classes to derive from",
        "An addition is one class in one file: [add an objective](../extending/objective.md).",
        *(_documented(name, name) for name in BASES),
    ]
    return "\n\n".join(parts) + "\n"


def _documented(path: str, heading: str) -> str:
    return f"::: {path}\n    options:\n      heading: {heading}\n      toc_label: {heading.rpartition('.')[2]}"


class Described(griffe.Extension):
    """Reads ``name : what it is`` of a docstring as a description, where numpydoc would have a type there."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            obj.docstring.value = ENTRY.sub(r"\1\n    \2", obj.docstring.value)


def _commands(group: click.Group, above: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name, command in sorted(group.commands.items()):
        context = click.Context(command, info_name=name, parent=above)
        if isinstance(command, click.Group):
            yield from _commands(command, context)
        else:
            yield context.command_path, command, context
