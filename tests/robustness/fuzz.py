"""Calls with several wrong arguments at once, drawn from seeds that are written down.

``python tests/robustness/fuzz.py --seed 20000 --minutes 60`` tries one call a seed, for so many minutes of
processor time: a public function or a figure, one to three of whose arguments are replaced. An answer, or one
of our errors, is right; anything else is printed with its seed, and ``--seed N --once`` tries it again. The
suite runs a few seconds of it.
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from robust_calls import CALLS
from robust_figures import FIGURES
from robust_mutations import mutations

from lens_linear import plots
from lens_linear.errors import LensLinearError

# Numbers of rows or steps that only cost time or memory are no fault to look for.
MOST = 60
# Their good call takes seconds, or asks for a network.
SLOW = {
    "agreement_table", "report", "explore", "huggingface_text", "stream_huggingface_text", "run_study",
    "copy_tutorials", "tour", "train_ols_attention",
}  # fmt: skip


def weird(draw: random.Random, depth: int = 0) -> Any:
    """A value of any kind that a caller could have at hand."""
    numbers = (0, 1, -1, 2, 7, MOST, -(2**40), 0.5, -0.0, 1e-300, 1e300, math.nan, math.inf)
    makers: list[Callable[[], Any]] = [
        lambda: draw.choice(numbers),
        lambda: draw.choice((True, False, None)),
        lambda: "".join(
            chr(draw.choice((65, 0x3164, 0xD800, 0x202E, 60, 0, 10))) for _ in range(3)
        ),
        lambda: draw.choice((b"\xff", object(), Path("no/such"), 1 + 2j, range(3), float, len)),
        lambda: np.array(draw.choice(([1, 2], [[math.nan]], ["a"], []))),
        lambda: torch.randn([draw.randrange(4) for _ in range(draw.randrange(4))]),
        lambda: torch.randint(-3, 30, [draw.randrange(5) for _ in range(draw.randrange(4))]),
        lambda: pd.DataFrame({"layer": [0, None], draw.choice(("x", "effect")): ["a", 1]}),
    ]
    if depth < 2:
        makers += [
            lambda: [weird(draw, depth + 1) for _ in range(draw.randrange(3))],
            lambda: {str(weird(draw, depth + 1)): weird(draw, depth + 1)},
        ]
    return draw.choice(makers)()


def case(seed: int) -> tuple[str, Callable[[], Any]]:
    """What is tried at a seed, in words, and the call itself."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    if draw.random() < 0.35:
        name = draw.choice(sorted(FIGURES))
        function, made = getattr(plots, name), FIGURES[name]()
        parts = made if type(made) is tuple else (made,)
        knobs = parts[-1] if len(parts) > 1 and isinstance(parts[-1], dict) else {}
        places = list(inspect.signature(function).parameters)
        good = {**dict(zip(places, parts[: len(parts) - bool(knobs)], strict=False)), **knobs}
        names, free = places, frozenset[str]()
    else:
        one = draw.choice([call for call in CALLS if call.name not in SLOW])
        name, function, good, free = one.name, one.function, one.arguments(), one.free
        names = list(good)
    names = [each for each in names if each not in free]
    changed = draw.sample(names, min(len(names), draw.choice((1, 1, 2, 3))))
    words = []
    for each in changed:
        value = replaced(draw, good.get(each))
        good[each] = value
        words.append(f"{each}={shown(value)}")
    return f"{name}({', '.join(words)})", lambda: function(**good)


def replaced(draw: random.Random, value: Any) -> Any:
    """Something else in a value's place: a mutation of it, the result of another figure, or anything."""
    kind, known = draw.random(), list(mutations(value))
    if kind < 0.5 and known:
        return draw.choice(known)[1]
    if kind < 0.6:
        made = FIGURES[draw.choice(sorted(FIGURES))]()
        return made[0] if type(made) is tuple else made
    found = weird(draw)
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) > MOST:
        return -MOST
    return value if isinstance(value, torch.nn.Module) and found is None else found


def shown(value: Any) -> str:
    """A value in at most 60 characters that any terminal can show."""
    return f"{type(value).__name__}: {value!a}".replace("\n", " ")[:60]


def attempt(seed: int) -> str | None:
    """Try a seed; what went wrong, or None."""
    words, function = case(seed)
    try:
        function()
    except LensLinearError as error:
        if len(str(error)) > 20:
            return None
        return f"{words}: no help in {error!r}"
    except Exception as error:
        return f"{words}: {type(error).__name__}: {str(error)[:160]}"
    return None


def main() -> int:
    """Try seeds until the time is over; the number of faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--once", action="store_true", help="this seed alone, with its traceback")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.chdir(tempfile.mkdtemp())  # relative paths that a mutation makes up land here
    if options.once:
        words, function = case(options.seed)
        print(words)
        function()
        return 0
    seed, faults = options.seed, 0
    while (began := time.process_time()) < 60 * options.minutes:
        fault = attempt(seed)
        took = time.process_time() - began
        if fault or took > 20:
            faults += fault is not None
            print(f"{seed} ({took:.0f} s) {fault or case(seed)[0]}", flush=True)
        seed += 1
        if seed % 1000 == 0:
            print(
                f"at seed {seed}: {time.process_time() / 60:.1f} minutes, {faults} faults",
                flush=True,
            )
    print(f"seeds {options.seed} to {seed - 1}: {seed - options.seed} calls, {faults} faults")
    return faults


if __name__ == "__main__":
    sys.exit(bool(main()))
