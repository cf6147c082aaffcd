"""The tables of settings as text for the terminal, and as the page of the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from ehrtrack.guide.tables import Table, all_tables, asked_for, tables_of

WIDTH = 100


def settings_text(section: str = "") -> str:
    """The settings of a section for the terminal; without one, which sections there are.

    Raises
    ------
    ConfigError
        If there is no such section.

    Examples
    --------
    >>> print(settings_text("strategy.lp-ft"))
    strategy: name = "lp-ft"
      Settings of LP-FT.
    <BLANKLINE>
      strategy.head_epochs = 3      (whole number, at least 1)
          epochs in which the head alone learns, before everything does
    """
    if section:
        return "\n\n".join(_text(table) for table in tables_of(section))
    lines = ["ehrtrack settings SECTION shows the settings of a section, of one choice, or of a part of it:"]
    for name in dict.fromkeys(table.section for table in all_tables()):
        below = [word for word in asked_for(name) if word != name]
        lines.append(_wrapped(f"{name}: {', '.join(below)}" if below else name, indent=2))
    return "\n".join(lines)


def settings_page() -> str:
    """All settings as one page of Markdown."""
    parts = [
        "# Settings",
        "Every setting has a dotted path, which is the same in TOML, on the command line (`--train.lr 1e-3`), in "
        "`mlflow run -P`, in sweeps, in the matrix of a study, and in the params of MLflow (under `cfg.`). This page "
        "is made from the classes that read the settings; `ehrtrack settings SECTION` prints the same.",
    ]
    section = ""
    for table in all_tables():
        if table.section != section:
            section = table.section
            parts.append(f"## {section}")
        if table.heading != section:
            parts.append(f"### {table.heading.replace('_', chr(92) + '_')}")
        parts.append(_markdown(table.summary))
        if table.settings:
            parts.append("\n".join(["| setting | values | default | meaning |", "|---|---|---|---|", *_rows(table)]))
    return "\n\n".join(parts) + "\n"


def _rows(table: Table) -> Iterable[str]:
    for setting in table.settings:
        default = f"`{setting.default}`" if setting.default else ""
        cells = (f"`{setting.path}`", setting.values.replace('""', "empty"), default, _markdown(setting.meaning))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _markdown(text: str) -> str:
    """Docstrings write literals between two backticks, and Markdown between one."""
    return text.replace("``", "`")


def _text(table: Table) -> str:
    lines = [table.heading, _wrapped(table.summary, indent=2)]
    for setting in table.settings:
        value = f" = {setting.default}" if setting.default else ""
        lines += ["", f"{f'  {setting.path}{value}':<30}  ({setting.values})", _wrapped(setting.meaning, indent=6)]
    return "\n".join(lines)


def _wrapped(text: str, *, indent: int) -> str:
    """Lines of a terminal, without the backticks of docstrings."""
    space = " " * indent
    plain = text.replace("`", "")
    return textwrap.fill(plain, WIDTH, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)
