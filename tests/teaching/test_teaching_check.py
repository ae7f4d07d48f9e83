"""What a student and a grader get from ``check``."""

import json

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear._tl import FactoredMatrix
from lens_linear.errors import InvalidArgumentError
from lens_linear.teaching.answers import Wrong, call, number, require_close, tensor
from lens_linear.teaching.checker import Checker, CheckResult, find_exercise
from lens_linear.teaching.early import say_when_too_early


def right(W_E, W_U, b_U):
    return W_E @ W_U + b_U


def wrong(W_E, W_U, b_U):
    return W_E @ W_U


def stub(*arguments):
    raise NotImplementedError("exercise 1.1")


def test_right_wrong_and_stub():
    check = Checker()
    assert check("1.1", right).passed and bool(check("1.1", right))
    result = check("1.1", stub)
    assert not result and result.attempts == 2 and "Not written yet" in result.message
    assert not check("1.1", wrong)


def test_variants_of_a_right_answer_pass():
    check = Checker()
    assert check("1.1", lambda a, b, c: torch.einsum("ad,db->ab", a.double(), b.double()) + c)
    assert check("1.1", lambda a, b, c: (a @ b + c).numpy())
    assert check("1.1", lambda a, b, c: (a @ b + c).tolist())


def test_an_answer_that_later_cells_cannot_use_passes_with_a_word_about_it():
    check = Checker()
    assert "torch.as_tensor" in check("1.1", lambda a, b, c: (a @ b + c).numpy()).message
    assert "torch.as_tensor" in check("1.1", lambda a, b, c: (a @ b + c).tolist()).message
    assert "as_tensor" not in check("1.1", right).message

    def planted(n, source, destination, out):
        qk, ov = torch.zeros(n, n), torch.zeros(n, n)
        qk[destination, source] = ov[source, out] = 10
        return [qk, ov]

    assert check("2.7", planted).passed and "as_tensor" not in check("2.7", planted).message


def test_a_name_is_looked_up_where_it_is_checked_and_may_be_missing():
    check = Checker()
    assert check("1.1", "right").passed and not check("1.1", "wrong").passed
    early = check("1.2", "bigram_table")
    assert not early.passed and early.attempts == 0
    assert "run the cell of exercise 1.2 first" in early.message and "Hint" not in early.message


def cell(shell, source, capsys):
    shell.run_cell(source)
    return capsys.readouterr().out


def test_a_bare_name_that_is_not_there_yet_is_said_in_a_notebook(capsys):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    say_when_too_early(lambda exercise, name: f"{exercise} lacks {name}", shell)
    shell.run_cell(
        "gone_by = 1\ndef check(*answer): return answer\ndef inside(): check('3.2', gone)"
    )
    for source in (
        "check('2.1', gone)",
        'x = 1\ncheck(\n    "2.1",\n    answer=gone, strict=True)',
    ):
        told = cell(shell, source, capsys)
        assert "2.1 lacks gone" in told and "NameError" not in told
    for source in ("gone", "inside()", "check('2.1', gone_by)\ngone"):
        assert "NameError" in cell(shell, source, capsys)
    shell.set_custom_exc((KeyError,), lambda *_, **__: None)
    say_when_too_early(lambda *_: "not me", shell)
    assert shell.custom_exceptions == (KeyError,)


def halved(kind):
    return lambda q, k: pattern(q.to(kind), k.to(kind))


def pattern(q, k):
    future = torch.ones(len(q), len(q)).triu(1).bool()
    return (q @ k.T / q.shape[1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1)


def unscaled(q, k):
    return pattern(q * q.shape[1] ** 0.5, k)


def scaling_its_input(q, k):
    q /= q.shape[1] ** 0.5
    return pattern(q, k * q.shape[1] ** 0.5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_judged_to_its_own_digits_and_said(kind):
    result = Checker()("2.1", halved(kind))
    assert result.passed and str(kind) in result.message
    assert "√d_head" in Checker()("2.1", lambda q, k: unscaled(q, k).to(kind)).message
    # The tolerance of one answer does not reach the next: this is off by 0.002 in float32.
    assert not Checker()("2.1", lambda q, k: pattern(q, k) * 1.002)


def low_rank(table, rank, keep=1.0):
    u, s, vh = torch.linalg.svd(table, full_matrices=False)
    s[rank:] = 0
    s[rank - 1] *= keep
    return (u * s) @ vh


def affine(x, y, ridge=0.0):
    centred = x - x.mean(0)
    gram = centred.T @ centred
    weight = torch.linalg.pinv(gram + ridge * gram.diagonal().diag()) @ centred.T @ (y - y.mean(0))
    return weight, y.mean(0) - x.mean(0) @ weight


def root(x, turn=0.3, power=-0.5):
    """One of the roots of the inverse of XᵀX: turned, none of its columns is an eigenvector."""
    values, vectors = torch.linalg.eigh(x.T @ x)
    above = torch.ones_like(vectors).triu(1)
    return vectors * values**power @ torch.linalg.matrix_exp(turn * (above - above.T))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "exercise, right, wrong",
    [
        ("1.6", low_rank, lambda t, r: low_rank(t, r, keep=0.9)),
        ("5.2", affine, lambda x, y: affine(x, y, ridge=0.1)),
        ("7.2", root, lambda x: root(x, power=-0.55)),
    ],
)
def test_a_rank_or_an_inverse_in_half_precision_passes_and_a_near_miss_does_not(
    kind, exercise, right, wrong
):
    def as_kind(answer, *arguments):
        """Inputs rounded to the format, computed, rounded again."""
        rounded = [a.to(kind).to(a.dtype) if torch.is_tensor(a) else a for a in arguments]
        made = answer(*rounded)
        return [part.to(kind) for part in made] if isinstance(made, tuple) else made.to(kind)

    result = Checker()(exercise, lambda *a: as_kind(right, *a))
    assert result.passed and str(kind) in result.message
    assert not Checker()(exercise, lambda *a: as_kind(wrong, *a))


@pytest.mark.parametrize(
    "exercise, answer, word",
    [
        ("2.1", scaling_its_input, "input number 1"),
        ("2.2", lambda E, Q, K: FactoredMatrix(E @ Q / K.shape[1] ** 0.5, (E @ K).T), "`.AB`"),
        ("2.2", lambda E, Q, K: list(E @ Q / K.shape[1] ** 0.5 @ (E @ K).T), "torch.stack"),
        ("7.5", lambda k, v: list(torch.einsum("nr,nm->nrm", k, v).cumsum(0)), "torch.stack"),
        ("1.1", lambda E, U, b: list(E @ U + b), "torch.stack"),
    ],
)
def test_a_right_answer_that_breaks_later_cells_passes_with_a_word(exercise, answer, word):
    result = Checker()(exercise, answer)
    assert result.passed and word in result.message


def test_whole_numbers_where_later_cells_multiply_are_said():
    def planted(n_vocab, source, destination, out):
        qk, ov = torch.zeros(2, n_vocab, n_vocab, dtype=torch.int64)
        qk[destination, source], ov[source, out] = 10, 10
        return qk, ov

    result = Checker()("2.7", planted)
    assert result.passed and "int64" in result.message


def test_hints_come_one_by_one_when_asked_for():
    check = Checker()
    hints = find_exercise("1.1").hints
    messages = [check("1.1", wrong).message for _ in range(4)]
    assert not any(hint in message for hint in hints for message in messages)
    assert all("Stuck?" in message for message in messages)
    other = Checker()
    first, second = other.hint("1.1"), other.hint("1.1")
    assert hints[0] in first and hints[1] not in first and hints[1] in second
    assert "no more hints" in second and other.hint("1.1") == second
    assert hints[1] in other("1.1", wrong).message
    assert repr(other.hint("1.2")).startswith("Hint 1")


def test_a_stub_earns_no_hints():
    check = Checker()
    for _ in range(5):
        assert "Hint" not in check("1.1", stub).message
    assert check("1.1", stub).attempts == 0


def test_results_are_for_a_grader(tmp_path):
    check = Checker()
    check("1.2", stub)
    check("1.1", wrong)
    check("1.1", right)
    assert [(r.exercise, r.passed, r.attempts) for r in check.results()] == [
        ("1.1", True, 2),
        ("1.2", False, 0),
    ]
    saved = json.loads(check.save(tmp_path / "r.json").read_text())
    assert saved[0] == {"exercise": "1.1", "passed": True, "attempts": 2,
                        "message": check.results()[0].message}  # fmt: skip
    frame = check.to_dataframe()
    assert list(frame.columns) == ["exercise", "passed", "attempts", "message"]
    assert "1 of 2" in repr(check)
    check.reset()
    assert check.results() == () and list(check.to_dataframe().columns) == list(frame.columns)


def test_results_are_frozen_and_shown_safely():
    result = CheckResult("1.1", False, "<script>alert(1)</script>\nuse `x < y`", 1)
    with pytest.raises(AttributeError):
        result.passed = True
    page = result._repr_html_()
    assert "<script>" not in page and "<code>x &lt; y</code>" in page and "<br>" in page
    assert repr(result).startswith("✗ exercise 1.1")


@pytest.mark.parametrize("name", ["1.99", "10.1", "nonsense", 1.1, None, ""])
def test_unknown_exercises_are_refused_with_names(name):
    with pytest.raises(InvalidArgumentError, match="exercise must be a name"):
        Checker()(name, right)
    with pytest.raises(InvalidArgumentError):
        Checker().hint(name)


def test_a_student_error_names_the_line_and_the_case():
    def broken(W_E, W_U, b_U):
        return W_E @ W_U.T.T.T

    message = Checker()("1.1", broken).message
    assert "RuntimeError" in message and "return W_E @ W_U.T.T.T" in message
    assert "a tensor of shape (3, 2)" in message


def test_arguments_are_copies():
    def in_place(W_E, W_U, b_U):
        W_E.zero_()
        return W_E @ W_U + b_U

    x = torch.ones(2)
    call(lambda t: t.zero_(), x)
    assert bool((x == 1).all())
    assert not Checker()("1.1", in_place)
    call(lambda parts: parts[0].zero_(), [x])
    assert bool((x == 1).all())


def test_exit_in_an_answer_does_not_end_the_session():
    message = Checker()("1.1", lambda *_: exit()).message
    assert "SystemExit" in message


def test_keyboard_interrupt_is_not_swallowed():
    def stopped(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Checker()("1.1", stopped)


@pytest.mark.parametrize(
    "value, word",
    [(None, "return statement"), ("abc", "should be a tensor"), ([1.0, float("nan")], "1 of 2 numbers"),
     (torch.ones(2) * 1j, "complex"), ([1.0, 2.0, 3.0], "shape")],
)  # fmt: skip
def test_reading_a_tensor(value, word):
    with pytest.raises(Wrong, match=word):
        tensor(value, shape=(2,))


def test_a_single_nan_is_named():
    with pytest.raises(Wrong, match="The entropy is nan"):
        number(float("nan"), what="The entropy")


def test_reading_numbers_and_factored_matrices():
    assert number(torch.tensor([[2.0]])) == 2.0
    with pytest.raises(Wrong, match="one number"):
        number([1.0, 2.0])
    factored = FactoredMatrix(torch.eye(2), torch.ones(2, 3))
    assert tensor(factored, shape=(2, 3)).sum() == 6


def test_require_close_shows_the_worst_entry():
    with pytest.raises(Wrong, match=r"at \[1\]: yours is 5, expected 2"):
        require_close(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0]), "No.")
    with pytest.raises(Wrong, match="yours is 3, expected 2"):
        require_close(3.0, 2.0, "No.")
    require_close(torch.tensor([1.0]), torch.tensor([1.0 + 1e-6]), "No.")


def test_the_public_name_is_shared():
    assert ll.check is ll.teaching.checker.check


def _pairs(product):
    """All pairs of layers, with products of some kind."""

    def gains(A, v, C):
        found = []
        for k in range(len(A)):
            row = C
            for layer in reversed(range(k, len(A))):
                row = product(row, A[layer])
            found.append(sum(float(a) * float(b) for a, b in zip(row, v[k], strict=True)))
        return torch.tensor(found)

    return gains


def _sham(A, v, C):
    return _sweep(A, v, C) if len(A) < 50 else torch.zeros(len(A))


def _sweep(A, v, C):
    found, row = [], np.asarray(C)
    for layer in reversed(range(len(A))):
        row = row @ np.asarray(A[layer])
        found.append(float(row @ np.asarray(v[layer])))
    return torch.tensor(found[::-1])


@pytest.mark.parametrize(
    "answer, word",
    [
        (_pairs(lambda row, A: torch.nn.functional.linear(row, A.T)), "not in one sweep"),
        (_pairs(lambda row, A: torch.inner(row, A.T)), "not in one sweep"),
        (_pairs(lambda row, A: np.asarray(row) @ np.asarray(A)), "not in one sweep"),
        (_pairs(lambda row, A: row @ A), "not in one sweep"),
        (_sham, "wrong with 60"),
        (_sweep, "Correct. One sweep"),
    ],
    ids=["linear", "inner", "numpy", "torch", "sham", "sweep"],
)
def test_one_sweep_is_told_from_all_pairs_of_layers(answer, word, capsys):
    result = ll.check("6.4", answer)
    assert word in result.message, result.message


@pytest.mark.parametrize(
    "product, word",
    [
        (lambda A, B: torch.einsum("ar,rb->ab", A, B), "whole token by token matrix"),
        (
            lambda A, B: torch.as_tensor(np.asarray(A) @ np.asarray(B)),
            "whole token by token matrix",
        ),
        (lambda A, B: A @ B, "whole token by token matrix"),
        (lambda A, B: torch.einsum("ra,ab->rb", B, A), "Correct"),
        (lambda A, B: torch.as_tensor(np.asarray(B) @ np.asarray(A)), "Correct"),
    ],
    ids=["einsum", "numpy", "torch", "small-einsum", "small-numpy"],
)
def test_the_large_matrix_is_refused_whatever_makes_it(product, word):
    def score(A, B):
        values = torch.linalg.eigvals(product(A, B))
        return float(values.real.sum() / values.abs().sum())

    assert word in ll.check("2.6", score).message


def test_a_score_of_inputs_in_half_precision_counts_in_every_draw():
    """Shifted too far, half precision leaves a column constant, and what is left of it is rounding."""
    from lens_linear.teaching.answers import fresh_cases
    from lens_linear.teaching.lesson_4 import _linearity_score

    def answer(x, y):
        x, y = (t.bfloat16().to(t.dtype) for t in (x, y))
        x, y = x - x.mean(0), y - y.mean(0)
        left = (y - x @ torch.linalg.lstsq(x, y).solution).square().sum()
        return (1 - left / y.square().sum()).bfloat16()

    for draw in range(120):
        with fresh_cases(draw):
            assert _linearity_score(answer).startswith("Correct"), draw
