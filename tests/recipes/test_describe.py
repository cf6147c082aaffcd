"""`ehrtrack describe`: the account for the terminal, and the page, which is of no one and needs nothing beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from simulated import Population, study, write_dataset

from ehrtrack.cli import cli
from ehrtrack.data.description import describe_dataset
from ehrtrack.data.events import BIRTH, MedsDataset
from ehrtrack.errors import DataError
from ehrtrack.pipeline.description_page import description_page
from ehrtrack.recipes.describe import describe
from ehrtrack.recipes.pretrain import DESCRIPTION, pretrain

N = 60


@pytest.fixture
def dataset(tmp_path: Path) -> MedsDataset:
    """Births of three are missing, and a code is in one subject's record a hundred times."""
    made = write_dataset(tmp_path / "meds", Population(n_subjects=N))
    events = pl.read_parquet(made.shards[0])
    events = events.filter(~((pl.col("code") == BIRTH) & pl.col("subject_id").is_in([3, 5, 8])))
    rare = events.filter(pl.col("time").is_not_null()).head(1).with_columns(code=pl.lit("NOTE//Jane Doe <jane>"))
    pl.concat([events, *[rare] * 100]).sort("subject_id", "time", nulls_last=False).write_parquet(made.shards[0])
    return made


def test_the_command_prints_the_account_and_a_chart_of_each(dataset: MedsDataset, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "description.html"
    result = CliRunner().invoke(cli, ["describe", str(dataset.path), "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert "Subjects: 60\n" in result.output
    assert "Subjects without a birth: 3\n" in result.output
    for title in (
        "Events a year",
        "Times without a clock",
        "Ages at events",
        "length of their record",
        "frequent codes",
    ):
        assert f"\n{title}" in result.output or title in result.output
    assert page.is_file()


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        describe(tmp_path / "nowhere")


class _Tags(HTMLParser):
    """Checks that tags are closed, and collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str | None] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(dataset: MedsDataset) -> None:
    page = description_page(describe_dataset(dataset))
    tags = _Tags()
    tags.feed(page)
    assert (tags.open, tags.fetched) == ([], [])
    assert not tags.names & {"script", "link", "img", "iframe"}
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_hides_what_is_of_a_few_subjects(dataset: MedsDataset) -> None:
    found = describe_dataset(dataset)
    page = description_page(found)
    assert "<dt>Subjects without a birth</dt><dd>&lt;11</dd>" in page
    assert "Jane" not in page  # 100 events, of one subject
    assert found.codes["code"].str.contains("Jane").any()
    small = [str(n) for n in range(1, 11)]
    shown = re.findall(r'<td class="count">([^<]*)</td>', page)
    assert not set(shown) & set(small)
    lengths = dict(found.lengths.iter_rows())
    few = [label for label, n in lengths.items() if 0 < n < 11]
    assert few
    for label in few:
        assert f'<td class="label">{label}</td><td class="count">&lt;11</td><td><i style="width:0.0%">' in page


def test_a_single_hidden_number_does_not_follow_from_the_sum(dataset: MedsDataset) -> None:
    found = describe_dataset(dataset)
    lengths = pl.DataFrame({"label": ["a", "b", "c", "d"], "n_subjects": [20, 5, 14, 0]})
    page = description_page(replace(found, lengths=lengths))
    counts = dict(re.findall(r'<td class="label">([a-d])</td><td class="count">([^<]*)</td>', page))
    assert counts == {"a": "20", "b": "&lt;11", "c": "–", "d": "0"}


def test_shares_near_their_ends_do_not_tell_of_a_few_events(dataset: MedsDataset) -> None:
    found = describe_dataset(dataset)
    years = pl.DataFrame(
        {"label": ["x", "y"], "n_events": [1000, 1000], "n_subjects": [50, 50], "n_without_clock": [8, 992]}
    )
    page = description_page(replace(found, years=years))
    shares = re.findall(r'<td class="label">[xy]</td><td class="count">(\d+%)</td>', page)
    assert shares == ["0%", "100%"]


def test_pretraining_logs_the_page(tmp_path: Path, local_store: Path) -> None:
    dataset = write_dataset(tmp_path / "meds", Population(n_subjects=N))
    train = {"epochs": 1, "batch_tokens": 512}
    run = pretrain(study(dataset.path, local_store / "cache", objective={"name": "mlm"}, train=train))
    page = next(file for file in local_store.rglob(DESCRIPTION) if run.run_id in str(file))
    assert "<dt>Subjects</dt><dd>60</dd>" in page.read_text()
