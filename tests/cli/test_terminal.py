"""Any standard stream, an interrupt at any moment, numbers that nothing takes; and Python's state is kept."""

import contextlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest

import lens_linear.cli.parser
from lens_linear.cli import main, terminal

pytestmark = pytest.mark.whole

COMMAND = [sys.executable, "-m", "lens_linear"]


def shell(line, **environment):
    """What a shell line writes to its own streams, and its status."""
    done = subprocess.run(
        ["bash", "-c", line.replace("lens-linear", " ".join(COMMAND))],
        capture_output=True, env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


HOLES = """
import sys, torch
from lens_linear.cli.terminal import loading

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if sys.argv[1:]:
    with loading():
        pass
start, kept = resident(), []
for _ in range(60):
    passing = [torch.ones(2 << 20) for _ in range(2)]  # 8 MiB each
    kept.append(torch.ones(1 << 18))  # 1 MiB stays
    del passing
print(resident() - start)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc: memory is not read")
def test_a_command_keeps_no_holes_between_matrices_that_stay():
    run = [sys.executable, "-c", HOLES]
    bare = {name: value for name, value in os.environ.items() if "ALLOC" not in name}

    def grown(*words):
        done = subprocess.run([*run, *words], capture_output=True, check=True, env=bare)
        return int(done.stdout)

    command = grown("own")
    assert command < 120 << 20  # 60 MiB stay
    # Where the system puts the heap decides: five of six processes keep half a gigabyte.
    assert any(grown() > 2 * command for _ in range(8))


def test_letters_that_the_terminal_lacks_are_codes(capsys):
    shown = {}
    for encoding in ("utf-8", "ascii", "latin-1"):
        held = io.BytesIO()
        with contextlib.redirect_stdout(io.TextIOWrapper(held, encoding=encoding)) as stream:
            assert main(["linearity", "attn-0l"]) == 2  # no layers: the sentence goes to stderr
            assert main(["linearity", "attn-1l", "--sequences", "60"]) == 0
            assert stream.errors == "strict"  # as it was
        shown[encoding] = held.getvalue()
    whole = shown["utf-8"].decode()
    assert "R²" in whole and "–" in whole
    for encoding in ("ascii", "latin-1"):
        assert shown[encoding] == whole.encode(encoding, "backslashreplace")


@pytest.mark.parametrize(
    "line, status, words",
    [
        ("lens-linear models >&-", 2, b"standard output is closed"),
        ("lens-linear models >/dev/full", 2, b"No space left on device"),
        ("lens-linear --help >/dev/full", 2, b"No space left on device"),
        ("lens-linear models 2>&- >/dev/null", 0, b""),
        ("lens-linear circuits attn-9l 2>&-", 2, b""),
        ("lens-linear models | true; exit ${PIPESTATUS[0]}", 0, b""),
    ],
)
def test_streams_that_are_closed_full_or_gone(line, status, words):
    code, out, err = shell(line)
    assert code == status, err[-300:]
    assert words in err and b"Traceback" not in err and b"Exception ignored" not in err and not out


@pytest.mark.parametrize("command", ["explore", "report"])
def test_a_page_whose_name_is_not_utf8(tmp_path, command):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.html")
    code, out, err = shell(f"lens-linear {command} attn-0l --out $'{tmp_path}/caf\\xe9.html'")
    assert code == 0, err[-300:]
    assert os.path.exists(name) and b"caf\\udce9.html" in out


class Looked(io.StringIO):
    """A terminal that somebody looks at."""

    def isatty(self):
        return True


def waited(stream, monkeypatch, words, seconds, **options):
    """What a wait of so many seconds writes."""
    monkeypatch.setattr(sys, "stderr", stream)
    with terminal.waiting(words, **options):
        time.sleep(seconds)
    return stream.getvalue()


def test_a_wait_moves_on_a_terminal_and_is_lines_in_a_log(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    said = waited(Looked(), monkeypatch, "opening x", 1.5)
    assert re.fullmatch(r"opening x \.{3}(\ropening x \.{3} [1-9] s)+\n", said)
    long = "opening " + 30 * "x"  # 42 cells: a second line would be counted into, so none is
    assert waited(Looked(), monkeypatch, long, 0) == f"{long} ...\n"
    assert waited(Looked(), monkeypatch, "reading", 0, after=1.0) == ""
    assert waited(Looked(), monkeypatch, "reading", 1.2, show=False) == ""
    monkeypatch.setattr(terminal, "_LINES", 0.4)
    said = waited(io.StringIO(), monkeypatch, "opening x", 0.6)
    assert re.fullmatch(r"opening x \.{3}\n(opening x \.{3} \d s\n)+", said)


def test_an_interrupt_while_the_parser_is_built(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(lens_linear.cli.parser, "build_parser", interrupted)
    assert main(["models"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("alloc_cpu.cpp: DefaultCPUAllocator: can't allocate memory: 7 bytes"),
    ],
)
def test_a_lack_of_memory_anywhere_is_a_sentence(monkeypatch, capsys, error):
    def failing():
        raise error

    monkeypatch.setattr(lens_linear.cli.parser, "build_parser", failing)
    assert main(["dynamics", "gpt-nano"]) == 2
    assert re.fullmatch(
        r"lens-linear dynamics: memory ran out; .* a smaller model .*\n", capsys.readouterr().err
    )


def test_an_interrupt_at_any_early_moment():
    for delay in (0.15, 0.5, 1, 1.5, 2):  # from the interpreter's start to the libraries' C++ code
        child = subprocess.Popen(
            [*COMMAND, "circuits", "attn-1l"], stderr=-1, stdout=-1,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
        )  # fmt: skip
        try:
            child.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
        assert child.returncode in (130, -signal.SIGINT, 1) and not out, delay


@pytest.mark.parametrize("line", [["models"], ["circuits", "attn-9l"], ["circuits", "attn-0l"]])
def test_called_from_python_it_leaves_warnings_and_logging_alone(line, capsys):
    filters, disabled = list(warnings.filters), logging.root.manager.disable
    main(line)
    capsys.readouterr()
    assert warnings.filters == filters and logging.root.manager.disable == disabled
    with pytest.warns(UserWarning, match="still here"):
        warnings.warn("still here", stacklevel=1)


HUGE = str(10**30)


@pytest.mark.parametrize(
    "line",
    [
        f"circuits attn-1l --seed {HUGE}",
        f"circuits attn-1l --top {HUGE}",
        f"linearity attn-1l --sequences {HUGE}",
        f"linearity attn-1l --skip {HUGE}",
        f"dynamics gpt-nano --prompts {HUGE}",
        "dynamics gpt-nano --basis nosuch",
        "train attn-1l --scale nan",
        "train attn-1l --scale inf",
        "train attn-1l --scale -1",
        "train attn-1l --scale 1e300",
        f"train attn-1l --scale 1e-300 --seed {HUGE}",
        f"explore attn-0l --seed {HUGE}",
    ],
)
def test_numbers_that_nothing_takes(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(line.split())
    except SystemExit as stop:
        status = stop.code
    shown = capsys.readouterr()
    last = shown.err.replace("\r", "\n").strip().splitlines()[-1]
    assert status == 2 and not shown.out and last.startswith("lens-linear"), shown.err[-500:]
    assert not list(tmp_path.iterdir())
