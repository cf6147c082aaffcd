"""The queue: who takes which cell, what is told of it, and what becomes of the cells of a worker that died."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from ehrtrack.search.storage import shown, study_storage
from ehrtrack.study.cells import Cell, Study, read_study
from ehrtrack.study.queue import Finished, Queue

WriteStudy = Callable[..., Path]
STUDY = """
question = "Is full better than scratch?"
finetune = "finetune.toml"
pretrain = "pretrain.toml"
reference = { strategy = "scratch" }
[matrix]
strategy = ["full", "scratch"]
[repeats]
"runtime.seed" = [0, 1]
"""
LABELS = [
    *("pretrain · seed 0", "full · seed 0", "scratch · seed 0"),
    *("pretrain · seed 1", "full · seed 1", "scratch · seed 1"),
]


@pytest.fixture
def study(write_study: WriteStudy) -> Study:
    return read_study(write_study(STUDY))


@pytest.fixture
def worker(study: Study, tmp_path: Path) -> Callable[..., Queue]:
    """Makes workers of the study, each with a queue of its own in one database."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def make(key: str = "", done: Mapping[str, Finished] | None = None, *, tries_again: bool = False) -> Queue:
        queue = Queue(study, study_storage(tmp_path / "queue.db"), key=key)
        queue.fill(done or {}, tries_again=tries_again)
        return queue

    return make


def states(queue: Queue) -> list[str]:
    found = queue.standing()
    return [found[cell.key].state for cell in queue.study.cells]


def taken(queue: Queue) -> str:
    cell = queue.take()
    return cell.label if cell else ""


def take(queue: Queue) -> Cell:
    cell = queue.take()
    assert cell is not None
    return cell


def let_die(queue: Queue) -> None:
    """Have what a worker holds lapse, as if its machine was no more; the clock is moved, not waited for."""
    with queue.claims._engine.begin() as connection:
        connection.exec_driver_sql(
            "update ehrtrack_claims set beat = datetime(beat, '-1 hour') where holder = ?", (queue.claims.worker,)
        )


def test_each_cell_is_taken_by_one_worker_and_waits_for_what_it_starts_from(worker: Callable[..., Queue]) -> None:
    one, two = worker(), worker()
    assert [cell.label for cell in one.study.cells] == LABELS
    pretraining = take(one)
    assert pretraining.label == "pretrain · seed 0"
    assert [taken(two) for _ in range(4)] == ["scratch · seed 0", "pretrain · seed 1", "scratch · seed 1", ""]
    assert states(one) == ["running", "waiting", "running", "running", "waiting", "running"]
    one.finish(pretraining, Finished("a" * 32, 0.0))
    assert one.standing()[pretraining.key].run_id == "a" * 32
    assert taken(two) == "full · seed 0"
    assert taken(one) == ""


def test_cells_are_in_the_queue_once_however_many_workers_fill_it(worker: Callable[..., Queue]) -> None:
    queues = [worker() for _ in range(3)]
    assert len(queues[0]._trials.get_trials()) == 6
    trial = queues[0]._trials.get_trials()[1]
    assert trial.params == {"recipe": "finetune", "strategy.name": "full", "runtime.seed": "0"}
    assert trial.user_attrs["label"] == "full · seed 0"


def test_a_cell_that_failed_is_tried_once_more_and_then_left_with_the_reason(worker: Callable[..., Queue]) -> None:
    queue = worker()
    cell = take(queue)
    assert queue.fail(cell, "DataError: no events")
    assert take(queue) == cell
    assert not queue.fail(cell, "DataError: no events again")
    standing = queue.standing()
    assert (standing[cell.key].state, standing[cell.key].reason) == ("failed", "DataError: no events again")
    dependent = next(other for other in queue.study.cells if other.base == cell.key)
    assert standing[dependent.key].state == "blocked"
    assert [taken(queue) for _ in range(4)] == ["scratch · seed 0", "pretrain · seed 1", "scratch · seed 1", ""]


def test_a_study_that_is_started_again_tries_once_more_what_failed_and_a_worker_does_not(
    worker: Callable[..., Queue],
) -> None:
    queue = worker()
    cell = take(queue)
    queue.fail(cell, "once")
    take(queue)
    queue.fail(cell, "twice")
    assert states(worker())[0] == "failed"
    again = worker(tries_again=True)
    assert states(again)[:2] == ["waiting", "waiting"]
    assert take(again) == cell
    assert not again.fail(cell, "thrice")


def test_cells_that_are_done_on_the_server_are_never_taken_also_from_a_new_database(
    worker: Callable[..., Queue], study: Study
) -> None:
    done = {cell.key: Finished("b" * 32, 0.7) for cell in study.cells if cell.label != "full · seed 1"}
    queue = worker(done=done)
    assert [taken(queue), taken(queue)] == ["full · seed 1", ""]
    values = {
        trial.user_attrs["label"]: trial.value for trial in queue._trials.get_trials() if trial.state.is_finished()
    }
    assert values["scratch · seed 0"] == 0.7


DONE = Finished("run 1", 0.7)


@pytest.mark.parametrize(
    "end",
    [
        lambda queue, cell: queue.finish(cell, DONE),
        lambda queue, cell: queue.fail(cell, "its server was away in the end"),
        lambda queue, cell: queue.put_back(cell),
    ],
)
def test_a_cell_that_a_new_worker_sees_done_on_the_server_before_its_own_tells_how_it_ended_is_done_once(
    worker: Callable[..., Queue], end: Callable[[Queue, Cell], None]
) -> None:
    one = worker()
    cell = take(one)
    late = one._last_trials()[cell.key]  # as it was seen by a worker that fills the queue at the same moment
    two = worker(done={cell.key: DONE})
    end(one, cell)
    two._tell(late, DONE)
    for queue in (one, two):
        assert (queue.standing()[cell.key].state, queue.standing()[cell.key].run_id) == ("done", "run 1")


def test_a_cell_that_was_lost_before_it_began_is_left_to_the_worker_that_took_it_over(
    worker: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = worker(), worker()
    cell = one.study.cells[0]
    set_state = one._set

    def sleeps(*arguments: Any, **named: Any) -> bool:
        monkeypatch.undo()
        let_die(one)
        assert take(two) == cell
        return set_state(*arguments, **named)

    monkeypatch.setattr(one, "_set", sleeps)
    assert taken(one) == "scratch · seed 0"
    two.finish(cell, DONE)
    assert two.standing()[cell.key].state == "done"


def test_a_cell_that_is_done_before_it_began_here_is_passed_over(
    worker: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = worker(), worker()
    cell = one.study.cells[0]
    note = one._note

    def sleeps(*arguments: Any) -> None:
        monkeypatch.undo()
        let_die(one)
        two.finish(take(two), DONE)
        note(*arguments)

    monkeypatch.setattr(one, "_note", sleeps)
    assert taken(one) == "scratch · seed 0"
    assert one.standing()[cell.key].run_id == "run 1"


def test_a_cell_that_a_worker_gives_up_for_good_after_it_lost_it_is_done_when_the_other_has_its_run(
    worker: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = worker(), worker()
    cell = take(one)
    assert one.fail(cell, "once")
    assert take(one) == cell
    hold = one.claims.hold

    def sleeps(what: str) -> None:
        hold(what)
        let_die(one)
        assert take(two) == cell

    monkeypatch.setattr(one.claims, "hold", sleeps)
    one.fail(cell, "twice")
    two.finish(cell, DONE)
    assert (two.standing()[cell.key].state, two.standing()[cell.key].run_id) == ("done", "run 1")


def test_a_cell_whose_run_is_gone_from_the_server_is_made_again(
    worker: Callable[..., Queue], study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    done = {cell.key: Finished("b" * 32, 0.7) for cell in study.cells}
    worker(done=done)
    gone = study.cells[2]
    queue = worker(done={key: one for key, one in done.items() if key != gone.key})
    assert "scratch · seed 0: its run is not on the tracking server any more" in capsys.readouterr().out
    assert [taken(queue), taken(queue)] == ["scratch · seed 0", ""]


def test_a_cell_of_a_worker_that_died_goes_to_another_and_what_the_dead_one_says_later_does_not_count(
    worker: Callable[..., Queue],
) -> None:
    from ehrtrack.tracking.recovery.claims import ClaimLost

    one, two = worker(), worker()
    cell = take(one)
    let_die(one)
    assert take(two) == cell
    with pytest.raises(ClaimLost):
        one.finish(cell, Finished("a" * 32, 0.0))
    one.put_back(cell)
    assert states(two)[0] == "running"
    two.finish(cell, Finished("c" * 32, 0.0))
    assert two.standing()[cell.key].run_id == "c" * 32


def test_a_worker_with_the_key_of_one_before_goes_on_at_once_with_what_that_held(
    worker: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        cell = take(worker("417 3"))
    assert taken(worker("417 4")) == "scratch · seed 0"
    assert take(worker("417 3")) == cell
    assert taken(worker("417 3")) == "pretrain · seed 1"  # by mistake beside that one, which lives on this machine


def test_a_cell_that_was_put_back_waits_and_has_not_failed(worker: Callable[..., Queue]) -> None:
    queue = worker()
    cell = take(queue)
    queue.put_back(cell)
    assert (states(queue)[0], queue.standing()[cell.key].failures) == ("waiting", 0)
    assert take(worker()) == cell


def test_a_worker_of_another_machine_lives_if_it_renews_a_claim_and_not_if_it_lets_it_lapse(
    worker: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        other = worker()
    claims = worker().claims
    assert not claims.lives("record")
    assert other.claims.take("record")
    monkeypatch.setattr(claims, "wait", lambda: other.claims.hold("record"))
    assert claims.lives("record")
    monkeypatch.setattr(claims, "wait", lambda: let_die(other))
    assert not claims.lives("record")
    assert claims.take("record")
    monkeypatch.setattr(claims, "wait", lambda: pytest.fail("a process of this machine is looked at, not waited for"))
    assert claims.lives("record")


def test_the_password_of_an_address_is_not_shown() -> None:
    assert shown("postgresql+psycopg2://a:secret@host:1/db") == "postgresql+psycopg2://a:***@host:1/db"
    assert "secret" not in shown("no address: secret")
