"""How every function is asked: functions x kinds of tokens, masks, labels and positions.

Each public function that takes tokens either gives the number of the plain, unpadded tokens, or refuses in
a sentence. A function that scores answers follows a task's labels; any other gives the same with and without.
"""

import warnings

import numpy as np
import pytest
import torch
from robust_calls import CALLS, TOKENS
from robust_numbers import check_same, numbers

import lens_linear as ll
from lens_linear.errors import LensLinearError

# What depends on which answers are right; everything else reads tokens alone.
SCORES = {
    "replacement_curve",
    "ffn_compression",
    "run_table",
    "AttentionOnly.importance",
    "AttentionOnly.paths",
    "in_context_loss of text",
    "steering_cost",
    "Lens.score",
}

ASKED = [
    one
    for one in CALLS
    if isinstance(one.good().get("tokens"), torch.Tensor) and one.good()["tokens"].ndim == 2
]
LENGTHS = [12, 9, 12, 7, 10, 8, 11, 12]


class Column:
    """As a column of ``datasets``: rows by slice, no list."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def even(ids):
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
    lengths = [min(ids.shape[1], max(3, n * ids.shape[1] // 12)) for n in LENGTHS]
    rows = [row[:n] for row, n in zip(ids, [lengths[i % 8] for i in range(len(ids))], strict=True)]
    width = ids.shape[1]

    def pads(row):
        return torch.full((width - len(row),), 13)

    right = torch.stack([torch.cat([row, pads(row)]) for row in rows])
    left = torch.stack([torch.cat([pads(row), row]) for row in rows])
    real = torch.stack([torch.arange(width) < len(row) for row in rows])
    return {
        "uneven rows": [row.tolist() for row in rows],
        "padded right": ll.Task(right, mask=real),
        "padded left": {"input_ids": left.numpy(), "attention_mask": real.flip(1).long()},
        "arrays": np.array([row.numpy().astype("<u2") for row in rows], dtype=object),
    }


def answer(one, tokens):
    """The numbers a call gives, or the sentence it refuses with; anything else is a failure."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return numbers(one.function(**{**one.arguments(), "tokens": tokens}))
        except LensLinearError as error:
            message = str(error)
            assert len(message) > 40 and "\n" not in message, message
            return message


@pytest.mark.parametrize("one", ASKED, ids=lambda one: one.name)
def test_tokens_of_every_kind_give_the_same(one):
    ids = one.good()["tokens"]
    plain = answer(one, ids)
    assert not isinstance(plain, str), plain
    for kind, tokens in even(ids).items():
        found = answer(one, tokens)
        assert not isinstance(found, str), f"{kind}: {found}"
        check_same(one.name, found, plain)


@pytest.mark.parametrize("one", ASKED, ids=lambda one: one.name)
def test_pads_change_nothing_or_are_refused(one):
    found = {kind: answer(one, tokens) for kind, tokens in uneven(one.good()["tokens"]).items()}
    first = found["uneven rows"]
    for kind, value in found.items():
        if isinstance(first, str):
            assert isinstance(value, str) and "real tokens" in value, (kind, value)
        else:
            assert not isinstance(value, str), (kind, value)
            check_same(one.name, value, first)


@pytest.mark.parametrize("one", ASKED, ids=lambda one: one.name)
def test_labels_and_positions_are_followed_where_answers_count(one):
    ids = one.good()["tokens"]
    plain = answer(one, ids)
    labels = (torch.arange(len(ids)) * 7) % 20
    for task in (ll.Task(ids, labels=labels, positions=2), ll.Task(ids, positions=[1, 2])):
        found = answer(one, task)
        if isinstance(found, str):
            assert one.name in SCORES and ("Task" in found or "labels" in found), found
        elif one.name in SCORES:
            assert found != plain, "labels and positions were passed over in silence"
        else:
            check_same(one.name, found, plain)


def test_the_table_has_every_room():
    names = {one.name for one in ASKED}
    assert {
        "linearity_profile",
        "AttentionOnly.paths",
        "run",
        "bigram_counts",
        "ablate_heads",
    } <= names
    assert TOKENS.shape == (8, 12)
