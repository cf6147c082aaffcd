"""Ctrl-C and SIGTERM end a command without a traceback; a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from ehrtrack.cli import main
from ehrtrack.errors import DataError
from ehrtrack.signals import signals_end_the_command

ENDS = [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]


@pytest.fixture(autouse=True)
def handlers() -> object:
    """Those of a program that nobody started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


def exit_code(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


@pytest.mark.parametrize(("number", "code", "name"), ENDS)
@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("ehrtrack.simulate.population.simulate", ("simulate", "--subjects", "9", "--world", "noise", "out")),
        ("ehrtrack.data.importing.import_dataset", ("import", "meds", "in", "out")),
        ("ehrtrack.recipes.tokenize.tokenize", ("tokenize", "--config", "projects/gi_bleed/finetune.toml")),
    ],
)
def test_a_command_without_a_run_ends_by_the_signal_and_without_a_traceback(
    work: str,
    words: tuple[str, ...],
    number: signal.Signals,
    code: int,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(work, lambda *_, **__: signal.raise_signal(number))
    monkeypatch.chdir(Path(__file__).parents[1])
    assert exit_code(*words) == code
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert number == signal.SIGTERM or told == f"ehrtrack: ended by {name}\n"
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_an_error_that_ctrl_c_made_of_a_query_is_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As duckdb does: it asks Python for signals while it works, and makes an error of its own of them."""

    def query(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("Query interrupted") from None

    monkeypatch.setattr("ehrtrack.data.importing.import_dataset", query)
    assert exit_code("import", "meds", "in", "out") == 130
    assert capsys.readouterr().err == "ehrtrack: ended by Ctrl-C\n"


@pytest.mark.parametrize(("number", "code", "name"), ENDS)
def test_a_signal_that_comes_in_a_callback_of_the_interpreter_ends_the_command_after_it(
    number: signal.Signals, code: int, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is raised there is printed and lost."""
    is_over = []

    class Thing:
        pass

    def work(*_: object, **__: object) -> None:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
        del thing
        is_over.append(reference)
        threading.Event().wait(60)

    monkeypatch.setattr("ehrtrack.data.importing.import_dataset", work)
    assert exit_code("import", "meds", "in", "out") == code
    assert is_over
    assert "Exception ignored" not in capsys.readouterr().err


def test_an_error_of_a_command_that_got_no_signal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("no such folder")

    with pytest.raises(KeyboardInterrupt), signals_end_the_command():
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr("ehrtrack.data.importing.import_dataset", fail)
    assert exit_code("import", "meds", "in", "out") == 2


def test_a_signal_that_is_ignored_stays_so_and_other_threads_change_nothing() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals_end_the_command():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found = []

    def look() -> None:
        with signals_end_the_command():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from ehrtrack.signals import signals_end_the_command
with signals_end_the_command():
    try:
        print("working", flush=True)
        while True:  # a signal that comes right before one long sleep would be seen after it
            time.sleep(0.05)
    except BaseException:
        print("ending", flush=True)
        while True:  # a signal that comes right before one long sleep would be seen after it
            time.sleep(0.05)
"""


def test_a_second_ctrl_c_ends_the_process_at_once_and_a_second_sigterm_does_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child, child.stdout as lines:
        assert lines.readline() == "working\n"
        child.send_signal(signal.SIGTERM)
        assert lines.readline() == "ending\n"
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == -signal.SIGINT


def test_workers_of_a_command_end_by_ctrl_c_without_a_word(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the whole group."""
    script = tmp_path / "several.py"
    script.write_text(SEVERAL)
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stderr is not None
    for number in (1, 2):
        wait_for(tmp_path / f"at-{number}", child)
    os.killpg(child.pid, signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert (child.returncode, told) == (130, "ehrtrack: ended by Ctrl-C\n")


def wait_for(file: Path, child: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert child.poll() is None, "it ended before it was interrupted"
        threading.Event().wait(0.05)


SEVERAL = """
import signal, sys, time
from pathlib import Path

def work(number):
    (Path(sys.argv[1]) / f"at-{number}").touch()
    while True:  # a signal that comes right before one long sleep would be seen after it
        time.sleep(0.05)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from ehrtrack import cli
    from ehrtrack.data.engines.local import open_engine
    import ehrtrack.data.importing

    def import_two(*_, **__):
        with open_engine(2) as engine:
            engine.map(work, [1, 2])

    ehrtrack.data.importing.import_dataset = import_two
    cli.main(["import", "meds", "in", "out"])
"""
