"""Each series writes its own section of the page, and leaves the others as they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from harness import Account, report
from reliability import TITLE, write_section


def test_a_section_is_added_once_and_then_replaced_in_its_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for name, text in (("kills", "one"), ("outages", r"two \1"), ("kills", "three")):
        write_section(page, name, text)
    sections = "\n<!-- kills -->\nthree\n<!-- end of kills -->\n\n<!-- outages -->\ntwo \\1\n<!-- end of outages -->\n"
    assert page.read_text() == TITLE + sections


def test_the_kills_say_how_many_of_how_many_were_made() -> None:
    page = report(Account(n_faults=3, points=Counter({"step SIGKILL": 2, "end SIGINT": 1})), 1, 40)
    assert "| 3 of 40 |" in page
    assert "| all | 2 | 0 | 1 |" in page
