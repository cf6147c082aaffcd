"""The documentation is built without a warning, and the links of pages beside it lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)\s#]+)(?:#[^)\s]*)?\)")
FROM_ELSEWHERE = re.compile(r"""(src|href)=["']?(https?:)?//[^"' >]+\.(js|css)""")
"""A script or a style that a reader's browser would ask another server for."""


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """A page outside the navigation, a link or an anchor that leads nowhere, and a missing name are warnings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(tmp_path / "site").as_posix(): page for page in (tmp_path / "site").rglob("*.html")}
    texts = {name: page.read_text(encoding="utf-8") for name, page in pages.items()}
    assert "strategy.rank" in texts["reference/settings.html"]
    assert "Usage: ehrtrack study plan" in texts["reference/commands.html"]
    assert "ehrtrack.finetune" in texts["reference/python.html"]
    assert [name for name, text in texts.items() if FROM_ELSEWHERE.search(text)] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files_that_are_there(page: str) -> None:
    targets = LINK.findall((ROOT / page).read_text(encoding="utf-8"))

    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
