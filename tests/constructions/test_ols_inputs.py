"""What may be given to the least-squares layer, and how exact the answer is."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ols_attention import problem

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, NonFiniteError


@pytest.mark.parametrize(
    "make",
    [
        pd.DataFrame,
        lambda a: pd.DataFrame(a, index=np.arange(len(a))[::-1]).astype(object),
        lambda a: pd.DataFrame(a).convert_dtypes(),
        np.ndarray.tolist,
        lambda a: [torch.as_tensor(row) for row in a],
        lambda a: a.astype(">f8"),
        lambda a: a[::-1].copy()[::-1],
        lambda a: a.astype(np.longdouble),
        lambda a: torch.as_tensor(a).to_sparse(),
    ],
)
def test_whatever_holds_numbers_is_read_in_double_precision(make):
    x, y, new = problem("plain", 12, 3, 2, 1)
    want = new @ np.linalg.lstsq(x, y, rcond=None)[0]
    model = ll.OLSAttention.from_data(make(x), make(y))
    np.testing.assert_allclose(model.predict(make(new)), want, atol=1e-12)
    series = ll.OLSAttention.from_data(make(x), pd.Series(y[:, 0])).predict(new)
    np.testing.assert_allclose(series, want[:, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (pd.DataFrame({"a": ["u", "v"]}), InvalidArgumentError, "could not convert string"),
        (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), NonFiniteError, "1 NaN"),
        (np.ma.masked_array(np.eye(2), mask=np.eye(2)), NonFiniteError, "masked entries"),
        ([[1.0, 2.0], [3.0]], InvalidArgumentError, "array of numbers, got list"),
        (np.array([["2026-01-01"]], dtype="M8[D]"), InvalidArgumentError, "array of numbers"),
        (np.eye(2) + 1j, InvalidArgumentError, r"pass e.g. x.real"),
        ([[10**400, 1]], InvalidArgumentError, "too large"),
    ],
)
def test_what_holds_no_finite_real_numbers_is_refused(x, error, words):
    with pytest.raises(error, match=words):
        ll.OLSAttention.from_data(x, [1.0, 2.0])


def exact_ridge(x, y, new, ridge):
    """Ridge predictions in rational arithmetic: no rounding before the last step."""
    rows = [[Fraction(v) for v in row] for row in x.tolist()]
    labels = [Fraction(v) for v in y.tolist()]
    p = x.shape[1]
    system = [
        [sum(r[i] * r[j] for r in rows) + (Fraction(ridge) if i == j else 0) for j in range(p)]
        + [sum(r[i] * t for r, t in zip(rows, labels, strict=True))]
        for i in range(p)
    ]
    for i in range(p):  # Gauss-Jordan: the matrix is positive definite, so no pivoting
        system[i] = [v / system[i][i] for v in system[i]]
        for k in range(p):
            if k != i:
                system[k] = [
                    a - system[k][i] * b for a, b in zip(system[k], system[i], strict=True)
                ]
    return [
        float(sum(Fraction(v) * s[p] for v, s in zip(q, system, strict=True))) for q in new.tolist()
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["in-context", "paper"]), st.sampled_from([0, 0.25]))
def test_columns_over_twelve_decades_are_exact_with_and_without_a_ridge(seed, form, ridge):
    r = np.random.default_rng(seed)
    scale = 10.0 ** r.permutation([-6, 0, 6])
    x, new = r.normal(size=(12, 3)) * scale, r.normal(size=(4, 3)) * scale
    y = r.normal(size=12)
    want = exact_ridge(x, y, new, ridge)
    got = ll.OLSAttention.from_data(x, y, ridge=ridge, form=form).predict(new)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


def test_inference_mode_leaves_a_module_that_can_still_be_trained():
    x, y, new = problem("plain", 12, 3, 1, 5)
    with torch.inference_mode():
        model = ll.OLSAttention.from_data(torch.as_tensor(x).clone(), y)
        swapped = model.with_context(torch.as_tensor(x).clone(), y)
        prediction = model.predict(new)
    for module in (model, swapped):
        module(new).sum().backward()
        assert float(module.W_Q.grad.norm()) > 0
    torch.testing.assert_close(swapped.predict(new), prediction)


def test_gradients_reach_the_queries():
    x, y, new = problem("plain", 12, 3, 1, 5)
    queries = torch.as_tensor(new).requires_grad_()
    model = ll.OLSAttention.from_data(x, y)
    model(queries).sum().backward()
    torch.testing.assert_close(queries.grad[4], model.coefficients[:, 0])
