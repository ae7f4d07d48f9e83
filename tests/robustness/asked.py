"""How every public function that takes tokens answers each kind of them, and the page that shows it.

``python tests/robustness/asked.py`` writes ``docs/results/asked.md`` anew; ``test_asked.py`` holds each line
of that page against what the function does.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "docs" / "_ext"), str(Path(__file__).parent)]

from made_pages import ROOMS  # noqa: E402
from robust_calls import CALLS  # noqa: E402
from robust_numbers import check_same, numbers  # noqa: E402

import lens_linear as ll  # noqa: E402
from lens_linear.errors import LensLinearError  # noqa: E402

PAGE = ROOT / "docs" / "results" / "asked.md"
ARGUMENTS = ("tokens", "task", "clean", "prompts", "rows")
# Ids, or texts, that are no rows of a text for the model; and what takes a Task that was checked before.
NO_ROWS = {
    "BigramTable.log_probs": "single ids",
    "BigramCounts.rows": "single ids",
    "ModelWeights.class_directions": "ids of any shape",
    "SyntheticLanguage.decode": "ids of any shape",
    "OLSTransformer.predict": "the ids of its own queries",
    "token_labels": "texts of tokens",
    "forward_logits": "an int64 tensor [row, position]; `run` takes every kind",
    "batched": "rows that were read: a tensor, a stream, or what `as_rows` gave",
    "plots.bigram_table": "single ids",
    "explore": "texts, a Concept or a ConceptSplit; anything else is refused",
    "answer_values": "a Task that `require_task` gave",
    "score_answers": "a Task that `require_task` gave",
    "warn_if_not_next_token": "a Task that `require_task` gave",
    "Task.take": "places of rows",
    "RowView.asked": "places of rows",
    "halves": "rows that `as_rows` gave; anything else is refused",
    "plots.matrix": "labels of the rows of a matrix",
}
# What depends on which answers are right; everything else reads tokens alone.
SCORES = set(
    "replacement_curve ffn_compression run_table AttentionOnly.importance PathExpansion.loss steering_cost "
    "in_context_loss Lens.score direct_logit_attribution patch path_patch ablation_scores score_model "
    "require_task report validation_loss".split()
)
LENGTHS = [12, 9, 12, 7, 10, 8, 11, 12]


def public() -> dict[str, str]:
    """Every public function or method that takes tokens, and by which argument."""
    found = {}
    for room in ("", *ROOMS):
        module = import_module(f"lens_linear.{room}".rstrip("."))
        for name in module.__all__:
            thing, prefix = getattr(module, name), "plots." if room == "plots" else ""
            if not str(getattr(thing, "__module__", "")).startswith("lens_linear"):
                continue
            items = [(f"{prefix}{name}", thing)] if inspect.isfunction(thing) else []
            if inspect.isclass(thing):
                own = inspect.getmembers(thing, inspect.isfunction)
                items = [(f"{name}.{n}", f) for n, f in own if n[0] != "_" or n == "__call__"]
            for full, function in items:
                takes = inspect.signature(inspect.unwrap(function)).parameters
                argument = next((one for one in ARGUMENTS if one in takes), None)
                if argument is not None:
                    found.setdefault(full, argument)
    return found


def argument(one):
    """The argument of a call that holds rows of tokens; None where there is none."""
    for name in ARGUMENTS:
        value = one.good().get(name)
        if isinstance(value, torch.Tensor) and value.ndim == 2 and name in one.arguments():
            return name
    return None


def function_name(one) -> str:
    return one.name.split(" ")[0]


ASKED = [
    one
    for one in CALLS
    if argument(one) is not None
    and function_name(one) not in NO_ROWS
    and one.name not in ("patch", "path_patch")  # their pairs are asked as "... of pairs"
]


class Column:
    """As a column of ``datasets``: rows by slice, no list."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def even(ids):
    """Rows of one length in other clothes."""
    return {
        "uint16": ids.to(torch.uint16),
        "uint64": ids.to(torch.uint64),
        "numpy": ids.numpy().astype("<u2"),
        "lists": ids.tolist(),
        "tokenizer output": {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids)},
        "column": Column(ids.tolist()),
        "task": ll.Task(ids),
    }


def uneven(ids):
    """The same rows of unequal length, padded and not."""
    lengths = [min(ids.shape[1], max(3, n * ids.shape[1] // 12)) for n in LENGTHS]
    lengths = [lengths[i % 8] for i in range(len(ids))] if len(ids) > 1 else [ids.shape[1] - 3]
    rows = [row[:n] for row, n in zip(ids, lengths, strict=True)]
    width = ids.shape[1]

    def pads(row):
        return torch.full((width - len(row),), 13)

    right = torch.stack([torch.cat([row, pads(row)]) for row in rows])
    left = torch.stack([torch.cat([pads(row), row]) for row in rows])
    real = torch.stack([torch.arange(width) < len(row) for row in rows])
    kinds = {
        "uneven rows": [row.tolist() for row in rows],
        "padded right": ll.Task(right, mask=real),
        "padded left": {"input_ids": left.numpy(), "attention_mask": real.flip(1).long()},
        "arrays": np.array([row.numpy().astype("<u2") for row in rows] + [None], dtype=object)[:-1],
    }
    return kinds


def tasks(ids):
    """Other questions about the same rows."""
    labels = (torch.arange(len(ids)) * 7) % 20
    return (ll.Task(ids, labels=labels, positions=2), ll.Task(ids, positions=[1, 2]))


def answer(one, tokens):
    """The numbers a call gives, or the sentence it refuses with; anything else is a failure."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return numbers(one.function(**{**one.arguments(), argument(one): tokens}))
        except LensLinearError as error:
            message = str(error)
            assert len(message) > 40 and "\n" not in message, message
            return message


def kinds_cell(one) -> str:
    """Every kind of even rows gives the numbers of the plain tensor."""
    ids = one.good()[argument(one)]
    plain = answer(one, ids)
    assert plain and not isinstance(plain, str), plain
    for kind, tokens in even(ids).items():
        found = answer(one, tokens)
        assert not isinstance(found, str), f"{kind}: {found}"
        check_same(one.name, found, plain)
    return "same numbers"


def pads_cell(one) -> str:
    """Pads on either side, and none: the same numbers, or one sentence for all."""
    ids = one.good()[argument(one)]
    found = {kind: answer(one, tokens) for kind, tokens in uneven(ids).items()}
    first = found["uneven rows"]
    for kind, value in found.items():
        if isinstance(first, str):
            assert isinstance(value, str), (kind, value)
        else:
            assert not isinstance(value, str), (kind, value)
            check_same(one.name, value, first)
    return f"refused: {_plain(first)}" if isinstance(first, str) else "pads left out"


def labels_cell(one) -> str:
    """Labels and positions: followed where answers are scored, no matter elsewhere."""
    ids = one.good()[argument(one)]
    plain, words = answer(one, ids), []
    for task in tasks(ids):
        found = answer(one, task)
        if isinstance(found, str):
            assert function_name(one) in SCORES and ("Task" in found or "labels" in found), found
            words.append(f"refused: {_plain(found)}")
        elif function_name(one) in SCORES:
            assert found != plain, "labels and positions were passed over in silence"
            words.append("scored")
        else:
            check_same(one.name, found, plain)
            words.append("no matter")
    return words[0] if len(set(words)) == 1 else f"labels {words[0]}; positions {words[1]}"


def _plain(message: str) -> str:
    return message.replace("|", "\\|")


def line(one) -> str:
    """The line of the page for one call."""
    cells = (f"`{one.name}`", kinds_cell(one), pads_cell(one), labels_cell(one))
    return f"| {' | '.join(cells)} |"


def page(lines) -> str:
    others = "\n".join(f"| `{name}` | {words} |" for name, words in sorted(NO_ROWS.items()))
    return _HEAD + "\n".join(sorted(lines)) + _FOOT + others + "\n"


_HEAD = """# What every function makes of tokens

Every public function that takes tokens, asked with each kind of them by `tests/robustness/asked.py`, which
writes this page; a test holds each line against the function.

- *Kinds*: `uint16` and `uint64` tensors, numpy arrays, lists, tokenizer output (`BatchEncoding`), a column of
  a data set and an `ll.Task`, all of one length, against the plain tensor.
- *Uneven rows and masks*: lists and arrays of unequal length, a task with a mask, tokenizer output padded on
  the left, against each other.
- *Labels and positions*: a task with labels at one position, and one that asks for the next token at two
  positions. "Scored": the answer is of what is asked. "No matter": the function does not score answers and
  gives the numbers of plain tokens.

What is refused is refused in the sentence that stands in the cell.

| function | kinds | uneven rows and masks | labels and positions |
|---|---|---|---|
"""
_FOOT = """

These take ids or texts that are no rows for a model:

| function | what it takes |
|---|---|
"""


if __name__ == "__main__":
    PAGE.write_text(page([line(one) for one in ASKED]), encoding="utf-8")
