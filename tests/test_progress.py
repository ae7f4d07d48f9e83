"""Progress: lines in a log, what is inside a step moves it, nothing goes back."""

import os
import struct
import subprocess
import sys
import threading

import pytest

from lens_linear import progress
from lens_linear.progress import LogLines, sequence_bar, step_bar, watched, worded_bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds_with_the_time_left(clock):
    lines = []
    bar = LogLines(8, "fitting", write=lines.append)
    bar.set_postfix_str("")
    for second in range(1, 25):
        clock[0] = second
        bar.update(0.25)
    assert lines == [
        "fitting: 0%, 00:00 passed, ? left",
        "fitting: 31%, 00:10 passed, 00:22 left",  # 10 s for 2.5 of 8
        "fitting: 62%, 00:20 passed, 00:12 left",
    ]


def test_a_run_that_goes_on_tells_the_time_left_from_its_own_steps(clock, capsys):
    with worded_bar(100, "train", show=True, begun=60) as done:
        for step in (70, 80, 90):
            clock[0] += 6
            done(step, f"step {step}")
    assert capsys.readouterr().err.splitlines() == [
        "train: 60%, 00:00 passed, ? left",
        "train: 80%, 00:12 passed, 00:12 left: step 80",
    ]


def test_work_without_a_bar_tells_its_count_and_the_time_left(clock):
    done, said = progress.countdown(4), []
    for seconds in (30, 30, 60, 10):
        clock[0] += seconds
        said.append(done())
    assert said == [
        "1 of 4, 01:30 left",
        "2 of 4, 01:00 left",
        "3 of 4, 00:40 left",
        "4 of 4, 00:00 left",
    ]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [0, 44])
def test_a_terminal_of_width_0_gets_its_bar(columns):
    from fcntl import ioctl
    from termios import TIOCSWINSZ

    ours, theirs = os.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", columns // 2, columns, 0, 0))
    code = (
        "from lens_linear.progress import sequence_bar\n"
        "with sequence_bar(4, 'fitting', show=True) as done: done(1)"
    )
    asked = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=asked, check=True)
    os.write(theirs, b"|")  # so that there is something to read
    shown = os.read(ours, 10_000).decode()
    os.close(theirs)
    os.close(ours)
    assert "fitting:" in shown and "left" in shown
    assert max(map(len, shown.split("\r"))) <= (columns or 80)


def test_a_heavy_step_counts_as_so_many(clock, capsys):
    with step_bar(4, "tour", show=True, heavy={"long": 3}) as begin:
        for word in ("short", "long", "end"):
            begin(word)
            clock[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["tour: 0%", "tour: 25%", "tour: 100%"]


def shares(capsys, body):
    """What a step bar of two steps said, in percent, while ``body`` ran in its second step."""
    with step_bar(2, "report", show=True) as begin:
        begin("one")
        begin("two")
        body()
        begin("end")
    return [int(line.split(": ")[1].split("%")[0]) for line in capsys.readouterr().err.splitlines()]


def test_a_bar_inside_a_step_moves_the_step(clock, capsys):
    def body():
        with sequence_bar(4, "rows", show=False) as done:
            for count in (1, 2, 3, 4):
                clock[0] += 20
                done(count)
        for _ in watched(range(2), 2):
            clock[0] += 20

    # The first report takes half of the step's 50 to 100 %, the second half of what is left.
    assert shares(capsys, body) == [0, 50, 56, 62, 69, 75, 81, 88, 100]


def test_loops_inside_loops_move_within_one_item(clock, capsys):
    def body():
        for _ in watched(range(2), 2):
            for _ in watched(range(2), 2):
                clock[0] += 20

    seen = shares(capsys, body)
    assert seen == sorted(seen) and len(set(seen)) >= 6 and seen[-1] == 100


def test_nothing_is_drawn_unless_asked(capsys, monkeypatch):
    with step_bar(2, "x", show=False) as begin:
        begin("a")
    with sequence_bar(2, "x", show=False) as done:
        done(1)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with sequence_bar(2, "x", show=True) as done:
        done(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("say", [True, False])
def test_while_forked_work_gives_nothing_it_is_said_what_is_waited_for(monkeypatch, say):
    monkeypatch.setattr(progress, "_QUIET", 0.05)
    out, into = os.pipe()
    threading.Timer(0.3, os.write, (into, b"x")).start()
    said = []
    assert progress.readable([out], "anna.ipynb", said.append if say else None) == [out]
    if say:
        assert 2 <= len(said) <= 6 and all("anna.ipynb" in words for words in said)
    assert not said or say
    for end in (out, into):
        os.close(end)
