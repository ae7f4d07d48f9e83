"""Token ids of every kind come out alike, and a Task puts labels and positions where they belong."""

import dataclasses

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.token_rows import read_token_rows, require_tokens

EVEN = [[3, 1, 4], [1, 5, 9]]
LEFT = {"input_ids": [[-1, -1, 5], [1, 2, 3]], "attention_mask": [[0, 0, 1], [1, 1, 1]]}


class Column(list):
    """As a data set's column: rows by number and by slice, no list to the eye."""


class Dataset:
    def __init__(self, **columns):
        self.columns_ = columns
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self.columns_.values())))

    def __getitem__(self, name):
        return self.columns_[name]


INTEGERS = [
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.uint64,
]


@pytest.mark.parametrize(
    "value",
    [
        *(torch.tensor(EVEN).to(dtype) for dtype in INTEGERS),
        np.array(EVEN, dtype="<u2"),
        np.array(EVEN, dtype=">u4"),
        EVEN,
        tuple(map(tuple, EVEN)),
        [torch.tensor(row) for row in EVEN],
        {"input_ids": torch.tensor(EVEN), "attention_mask": torch.ones(2, 3)},
        Dataset(input_ids=EVEN, text=["a", "b"]),
        [{"input_ids": row} for row in EVEN],
    ],
    ids=lambda value: getattr(value, "dtype", type(value).__name__),
)
def test_every_kind_gives_the_same_ids(value):
    rows = read_token_rows("tokens", value)
    assert rows.tokens.tolist() == EVEN and rows.tokens.dtype == torch.int64 and rows.mask is None
    assert require_tokens("tokens", value, n_vocab=10).tolist() == EVEN


def test_rows_of_unequal_length_and_left_pads_go_right():
    ragged = read_token_rows("tokens", [[1, 2, 3], np.array([4], dtype=np.uint16)])
    assert ragged.tokens.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert ragged.mask.tolist() == [[True, True, True], [True, False, False]]
    left = read_token_rows(
        "tokens", LEFT
    )  # the pad's id does not matter, also outside the vocabulary
    assert left.tokens.tolist() == [[5, 0, 0], [1, 2, 3]] and left.left.tolist() == [2, 0]
    wide = read_token_rows(
        "tokens", torch.tensor([[7, 1, 2], [7, 3, 4]]), mask=[[0, 1, 1], [0, 1, 1]]
    )
    assert wide.tokens.tolist() == [[1, 2], [3, 4]] and wide.mask is None
    with pytest.raises(InvalidArgumentError, match="rows of 1 to 3 real tokens"):
        require_tokens("tokens", LEFT)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ("text", InvalidArgumentError, "tokenize"),
        (["two", "texts"], InvalidArgumentError, "tokenize"),
        ([[1, "a"]], InvalidArgumentError, "holds 'a'"),
        ([[1.5]], InvalidArgumentError, "whole token ids"),
        (np.ones((2, 2)), InvalidArgumentError, "whole token ids"),
        ([[True]], InvalidArgumentError, "whole token ids"),
        ([], NotEnoughDataError, "at least one row"),
        ([[1], []], NotEnoughDataError, "empty"),
        (iter([[1]]), InvalidArgumentError, r"list\(\.\.\.\)"),
        (None, InvalidArgumentError, "NoneType"),
        (Dataset(text=["a"]), InvalidArgumentError, "'text'"),
        ({"train": Dataset(input_ids=EVEN)}, InvalidArgumentError, "'train'"),
        ({"input_ids": EVEN, "labels": EVEN}, InvalidArgumentError, "Task"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), InvalidArgumentError, "shape"),
        (torch.eye(3).to_sparse().long(), InvalidArgumentError, "dense"),
        ([torch.ones(2, 3, dtype=torch.int64)], InvalidArgumentError, "list of rows"),
    ],
)
def test_what_holds_no_ids_is_refused_in_a_sentence(value, error, words):
    with pytest.raises(error, match=words):
        read_token_rows("tokens", value)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 0, 1], [1, 1, 1]], "row 0"),
        ([[1, 1], [1, 1]], "shape"),
        ([[0, 0, 0], [1, 1, 1]], "row 0"),
    ],
)
def test_masks_that_say_nothing_clear_are_refused(mask, words):
    with pytest.raises(InvalidArgumentError, match=words):
        ll.Task(EVEN, mask=mask)


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (ll.Task(EVEN), [[1, 4, -100], [5, 9, -100]]),
        (ll.Task([[1, 2, 3], [4, 5]]), [[2, 3, -100], [5, -100, -100]]),
        (ll.Task(EVEN, positions=-2), [[-100, 4, -100], [-100, 9, -100]]),
        (ll.Task(LEFT, labels=[7, 8]), [[7, -100, -100], [-100, -100, 8]]),
        (ll.Task(LEFT, labels=[7, 8], positions=2), [[7, -100, -100], [-100, -100, 8]]),
        (ll.Task(LEFT, labels=[[9, 9, 4], [5, -100, 6]]), [[4, -100, -100], [5, -100, 6]]),
        (ll.Task([[1, 2], [3]], labels=[[4, 5], [6]]), [[4, 5], [6, -100]]),
        (ll.Task(EVEN, labels=[[1, 2], [3, 4]], positions=[2, 0]), [[2, -100, 1], [4, -100, 3]]),
        (
            ll.Task(EVEN, labels=[3, 4], positions=torch.tensor([0, -2])),
            [[3, -100, -100], [-100, 4, -100]],
        ),
        (
            ll.Task(EVEN, labels=[[1, 2, 3], [4, 5, 6]], positions=torch.tensor([[0, 1], [1, 2]])),
            [[1, 2, -100], [-100, 5, 6]],
        ),
        (ll.Task([1, 2, 3], labels=[4, 5, 6]), [[4, 5, 6]]),
        (ll.Task(EVEN, labels=["b", "a"], names=["a", "b"]), [[-100, -100, 1], [-100, -100, 0]]),
    ],
)
def test_answers_stand_where_they_were_asked(task, targets):
    assert task.targets.tolist() == targets
    again = dataclasses.replace(task, metric="accuracy")
    assert again.targets.tolist() == targets and torch.equal(again.tokens, task.tokens)
    last = task.take(torch.tensor([len(task) - 1]))
    width = last.tokens.shape[1]
    assert last.targets.tolist() == [targets[-1][:width]] and last.lengths[0] == width
    assert f"{int(task.asked.sum())} answers" in repr(task)


def test_pairs_hold_a_right_and_a_wrong_answer():
    task = ll.Task(EVEN, labels=[[1, 2], [3, 4]], metric="logit_difference")
    assert task.targets[:, 2].tolist() == [1, 3] and task.wrong[:, 2].tolist() == [2, 4]
    both = ll.Task(EVEN, labels=torch.tensor([[[1, 2], [5, 6]]] * 2), positions=[1, 2])
    none = [-100, -100]
    pairs = [[[9, 8], [9, 8], [4, 7]], [[5, 6], none, [6, 8]]]
    every = ll.Task(LEFT, labels=torch.tensor(pairs), metric="logit_difference")
    assert every.targets.tolist() == [[4, -100, -100], [5, -100, 6]]
    assert every.wrong.tolist() == [[7, -100, -100], [6, -100, 8]]
    two = ll.Task(EVEN, labels=torch.tensor(pairs), positions=[2, 0], metric="logit_difference")
    assert two.targets.tolist() == [[9, -100, 4], [5, -100, 6]]
    assert two.wrong.tolist() == [[8, -100, 7], [6, -100, 8]]
    assert both.targets.tolist() == [[-100, 1, 5]] * 2 and both.wrong.tolist() == [[-100, 2, 6]] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"positions": -1}, "last token of row 0"),
        ({"positions": 3, "labels": [1, 2]}, "leaves row 0"),
        ({"positions": [1, -2], "labels": [[1, 2], [3, 4]]}, "twice"),
        ({"positions": torch.tensor([1, 2, 0]), "labels": [1, 2]}, "2 rows"),
        ({"positions": 1.5}, "whole numbers"),
        ({"labels": [[1, 2], [3, 4]]}, "one a position"),
        ({"labels": [1, 2, 3]}, "one a row"),
        ({"labels": [0.5, 1.0]}, "whole numbers"),
        ({"labels": [-1, 2]}, "from 0"),
        ({"labels": [[-100] * 3] * 2}, "asks for nothing"),
        ({"labels": [[1, 2], [3]]}, "one entry for each token"),
        ({"labels": ["a", "c"], "names": ["a", "b"]}, "among names"),
        ({"names": ["a", "a"]}, "once"),
        ({"metric": "acc"}, "accuracy"),
    ],
)
def test_questions_without_an_answer_are_refused_in_a_sentence(arguments, words):
    with pytest.raises(InvalidArgumentError, match=words):
        ll.Task(EVEN, **arguments)
