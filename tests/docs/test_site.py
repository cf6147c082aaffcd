"""The documentation is built without a warning: pages, links, anchors and references; the README's links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)\s#]+)(?:#[^)\s]*)?\)")


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """A page outside the navigation, a link or an anchor that leads nowhere, and a name that is not there are warnings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = tmp_path / "site"
    assert "strategy.rank" in (pages / "reference" / "settings.html").read_text(encoding="utf-8")
    assert "Usage: ehrtrack study plan" in (pages / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "ehrtrack.finetune" in (pages / "reference" / "python.html").read_text(encoding="utf-8")
    outside = [
        page for page in pages.rglob("*.html") if re.search(r'(src|href)="https?:[^"]+\.(js|css)', page.read_text())
    ]
    assert outside == [], "a page would ask another server for a script or a style"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files_that_are_there(page: str) -> None:
    targets = LINK.findall((ROOT / page).read_text(encoding="utf-8"))

    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
