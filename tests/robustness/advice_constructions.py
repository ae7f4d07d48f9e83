"""Advice of the constructions: attention that is least squares, memories, trained heads."""

import functools

import numpy as np
import torch
from advice_parts import IDS, X, Y, toy

import lens_linear as ll
from lens_linear import constructions
from lens_linear.constructions import NewtonSchulzAttention
from lens_linear.constructions.memory.energies import parse_energy
from lens_linear.constructions.memory.trained_heads import row_losses
from lens_linear.models.checked import checked


@functools.cache
def layer(**options):
    return ll.OLSAttention.from_data(X, Y, **options)


def trained_ols(**options):
    return ll.train_ols_attention(**{"epochs": 3, "seeds": 2, "n": 20, **options})


def memory(keys, queries=None, **options):
    return constructions.attention_head_memory(
        keys, queries, **{"n_patterns": (2, 4), "max_queries": 8, **options}
    )


def of_size(x=1.0, y=1.0, *, row=X[:3]):
    """A layer of data of other sizes, in float32."""
    return ll.OLSAttention.from_data(X * x, Y * y).predict(row * x)


def with_output(change, **options):
    """A layer whose weights were changed by hand."""
    made = ll.OLSAttention.from_data(X, Y, **options)
    with torch.no_grad():
        change(made)
    return made


def loaded(change=None, **options):
    """A layer that takes over the state of another one."""
    state = dict(layer().state_dict())
    if change is not None:
        state.pop(change)
    made = ll.OLSAttention.from_data(X, Y, **options)
    made.load_state_dict(state)
    return made


def mixed(made):
    made.W_O += 1


def huge(made):
    made.W_O *= 1e300
    made.W_V *= 1e300


SIZES = torch.tensor([1.0, 1.0, 1.0, 1e-160], dtype=torch.float64)


ROWS = [
    # ranges of numbers
    (
        lambda: ll.OLSAttention.from_data(X * 1e-30, Y * 1e30).float().coefficients,
        r"bring x and y to one scale \(predict\(\) needs no slopes\)|float64",
        lambda: (
            layer().float().coefficients,
            ll.OLSAttention.from_data(X * 1e-30, Y * 1e30).predict(X[:3] * 1e-30),
        ),
    ),
    (
        lambda: layer().hat(X.repeat(10**5, 1).expand(-1, -1)),
        "pass some of the rows",
        lambda: layer().hat(X[:3]),
    ),
    (
        lambda: with_output(mixed, form="paper").hat(),
        r"build the layer with from_data\(x, y\)",
        lambda: layer(form="paper").hat(),
    ),
    (
        lambda: with_output(mixed, form="in-context").hat(),
        "read hook_hat with run_with_cache",
        lambda: with_output(mixed, form="in-context").run_with_cache(X[:3]),
    ),
    (
        lambda: trained_ols(x=X * SIZES, y=Y[:, 0]),
        "divide each column by its size",
        lambda: trained_ols(x=X * SIZES / SIZES, y=Y[:, 0]),
    ),
    (
        lambda: trained_ols(x=X, y=Y[:, 0] * 1e200),
        "divide y by its size",
        lambda: trained_ols(x=X, y=Y[:, 0]),
    ),
    (
        lambda: constructions.swap_memories((X, Y), (X[:, :2], Y)),
        "pass data with the same columns",
        lambda: constructions.swap_memories((X, Y), (X + 1, Y)),
    ),
    (
        lambda: constructions.swap_memories((X, Y), (X, 0 * Y)),
        "pass other labels",
        lambda: constructions.swap_memories((X, Y), (X, Y + 1)),
    ),
    (
        lambda: ll.OLSAttention.from_data(X * 1e-60, Y).float(),
        r"scale it up, or use a module in float64 \(module.double\(\)\)",
        lambda: (
            ll.OLSAttention.from_data(X, Y).float(),
            ll.OLSAttention.from_data(X * 1e-60, Y).double(),
        ),
    ),
    (
        lambda: loaded("_extra_state"),
        r"save it again with module.state_dict\(\), or build the module from its data",
        loaded,
    ),
    (
        lambda: loaded(form="paper"),
        "load it into one that is built with the same form",
        lambda: loaded(form="in-context"),
    ),
    (
        lambda: with_output(huge).predict(X),
        r"bring x_new, context and labels to one scale, or use module.double\(\)",
        lambda: layer().double().predict(X),
    ),
    # least squares
    (
        lambda: constructions.build_induction(8, 16, sharpness=(1,)),
        "two scores, one a head",
        lambda: constructions.build_induction(8, 16, sharpness=(9.0, 9.0)),
    ),
    (
        lambda: constructions.build_induction(9, 16),
        "change n_ctx by 1",
        lambda: constructions.build_induction(9, 17),
    ),
    (
        lambda: NewtonSchulzAttention(4, layers=3, w_in=torch.eye(3)),
        "pass the L of an OLSAttention built on the same columns|one row for each",
        lambda: NewtonSchulzAttention(4, layers=3, w_in=layer().W_Q),
    ),
    (
        lambda: NewtonSchulzAttention(4, layers=3)(X),
        r"call with_context\(x, y\)",
        lambda: NewtonSchulzAttention(4, layers=3).with_context(X, Y)(X),
    ),
    (
        lambda: NewtonSchulzAttention(3, layers=3).with_context(X, Y),
        "must have 3 columns",
        lambda: NewtonSchulzAttention(4, layers=3).with_context(X, Y),
    ),
    (
        lambda: NewtonSchulzAttention(4, layers=3).with_context(X, Y)(X[:, :2]),
        "must have 4 columns",
        lambda: NewtonSchulzAttention(4, layers=3).with_context(X, Y)(X[:2]),
    ),
    (
        lambda: layer().hat(X[:3]).leverage,
        r"call hat\(\) without x_new",
        lambda: layer().hat().leverage,
    ),
    (
        lambda: layer().with_context(X[:, :2], Y),
        "build a new module with from_data",
        lambda: ll.OLSAttention.from_data(X[:, :2], Y),
    ),
    (
        lambda: (
            ll.OLSAttention.from_data(X[:, [0, 0]], Y) and trained_ols(x=X[:, [0, 0]], y=Y[:, 0])
        ),
        "drop the columns that others determine",
        lambda: trained_ols(x=X[:, :1], y=Y[:, 0]),
    ),
    (
        lambda: trained_ols(x=X),
        "pass both or neither",
        lambda: (trained_ols(x=X, y=Y[:, 0]), trained_ols()),
    ),
    (
        lambda: trained_ols(x=X, y=0 * Y[:, 0]),
        "nothing to learn",
        lambda: trained_ols(x=X, y=Y[:, 0]),
    ),
    (
        lambda: trained_ols(learning_rate=1e6, epochs=40),
        "pass a smaller one",
        lambda: trained_ols(learning_rate=1e-3, epochs=40),
    ),
    (
        lambda: constructions.ols_transformer(layer(intercept=True), X[:3]),
        "add a column of ones to x and build it with intercept=False",
        lambda: constructions.ols_transformer(
            ll.OLSAttention.from_data(torch.cat([X, torch.ones(40, 1)], 1), Y, intercept=False),
            torch.cat([X, torch.ones(40, 1)], 1)[:3],
        ),
    ),
    (
        lambda: constructions.ols_transformer(layer(form="paper"), X[:3], layers=2),
        "build the layer with form='in-context'",
        lambda: constructions.ols_transformer(layer(form="in-context"), X[:3], layers=2),
    ),
    (
        lambda: constructions.ols_transformer(layer(), X[:3, :2]),
        "must have 4 columns",
        lambda: constructions.ols_transformer(layer(), X[:3]),
    ),
    (
        lambda: constructions.swap_memories(X, (X, Y)),
        "pass two tensors",
        lambda: constructions.swap_memories((X, Y), (X + 1, Y)),
    ),
    (
        lambda: constructions.covariance_shift(conditions=(), seeds=2),
        r"pass \(1, 4\)",
        lambda: constructions.covariance_shift(
            conditions=(1, 4), seeds=2, layers=2, n=32, base_rows=64
        ),
    ),
    (
        lambda: ll.OLSAttention.from_data(np.ma.masked_less(X.numpy(), 0), Y),
        "drop those rows or fill them first",
        lambda: ll.OLSAttention.from_data(np.ma.masked_less(X.numpy(), 0).filled(0.0), Y),
    ),
    (
        lambda: ll.OLSAttention.from_data("x", Y),
        "pass a torch tensor, a numpy array or a data frame of numbers",
        lambda: ll.OLSAttention.from_data(X.numpy(), Y),
    ),
    (
        lambda: ll.OLSAttention.from_data(X[:0], Y[:0]),
        "pass more data",
        lambda: ll.OLSAttention.from_data(X, Y),
    ),
    (
        lambda: ll.OLSAttention.from_data(X, Y[None]),
        "pass one row of labels for each row of x",
        lambda: ll.OLSAttention.from_data(X, Y[None][0]),
    ),
    (
        lambda: ll.OLSAttention.from_data(X, Y).float().predict(X * 1e200),
        r"scale x_new down, or use a module in float64 \(module.double\(\)\)",
        lambda: ll.OLSAttention.from_data(X, Y).double().predict(X * 1e100),
    ),
    (
        lambda: constructions.spectral_root(X, noise=torch.ones(3)),
        r"see rounding\(x\)",
        lambda: constructions.spectral_root(X, noise=torch.ones(4).double() * 1e-9),
    ),
    # memories
    (
        lambda: ll.memory_capacity(dims=[]),
        r"pass \(64, 128\)",
        lambda: ll.memory_capacity(energies="quadratic", dims=(64, 128), seeds=1, queries=8),
    ),
    (
        lambda: ll.memory_capacity(energies="exponential", dims=[60], max_patterns=500),
        "pass a smaller d or more noise",
        lambda: (
            ll.memory_capacity(
                energies="exponential", dims=[4], max_patterns=5000, seeds=1, queries=8
            ),
            ll.memory_capacity(
                energies="exponential", dims=[20], noise=0.3, max_patterns=50000, seeds=1, queries=8
            ),
        ),
    ),
    (
        lambda: constructions.attention_dial(betas=(), orders=()),
        r"pass betas=\(1.0,\)",
        lambda: constructions.attention_dial(betas=(1.0,), orders=(), d=2, n=8, queries=2, seeds=2),
    ),
    (
        lambda: parse_energy("cubic"),
        "pass e.g. 'polynomial-3'",
        lambda: parse_energy("polynomial-3"),
    ),
    (
        lambda: constructions.hopfield_update(X[:3], X[:, :2]),
        r"pass \[q, d\] and \[k, d\]",
        lambda: constructions.hopfield_update(X[:3], X),
    ),
    (
        lambda: constructions.head_dial(toy(), IDS, betas=()),
        r"pass betas=\(1.0,\)",
        lambda: constructions.head_dial(
            toy(n_ctx=64), IDS.repeat(1, 3), heads=["L0H0"], betas=(1.0,)
        ),
    ),
    (
        lambda: constructions.head_dial(toy(), IDS[:, :3]),
        "pass longer rows",
        lambda: constructions.head_dial(
            toy(n_ctx=64), IDS.repeat(1, 3), heads=["L0H0"], betas=(1.0,)
        ),
    ),
    (
        lambda: memory(X, energies=()),
        "must each name at least one|pass",
        lambda: memory(X, energies=("quadratic",)),
    ),
    (lambda: memory(X, values=X[:3]), "one row for each key", lambda: memory(X, values=Y)),
    (
        lambda: memory(X, X[:, :2]),
        "for grouped-query heads pass the group's keys",
        lambda: memory(X, X),
    ),
    (
        lambda: memory(X, X[:5], causal=True),
        "pass queries, or causal=False",
        lambda: (memory(X, X, causal=True), memory(X, X[:5], causal=False)),
    ),
    (
        lambda: constructions.retrieval_curve(energies=()),
        "must each name at least one|pass 'quadratic'",
        lambda: constructions.retrieval_curve(
            energies="quadratic", d=10, n_patterns=(2,), noise=(0.0,), seeds=1
        ),
    ),
    (
        lambda: constructions.trained_heads(toy(), IDS[:, :3]),
        "pass longer rows",
        lambda: constructions.trained_heads(toy(), IDS, heads=["L0H0"], exchanges=()),
    ),
    (
        lambda: constructions.trained_heads(toy(), IDS, exchanges=("no",)),
        "must be one of 'other context'",
        lambda: constructions.trained_heads(
            toy(), IDS, heads=["L0H0"], exchanges=("other context",)
        ),
    ),
    (
        lambda: NewtonSchulzAttention(4, layers=3, w_in=torch.diag(SIZES**2)).with_context(X, Y)(X),
        r"pass a w_in that brings them to one size \(W_Q of an OLSAttention\)",
        lambda: NewtonSchulzAttention(4, layers=3, w_in=layer().W_Q).with_context(X, Y)(X),
    ),
    (
        lambda: row_losses(checked(toy()), IDS, 4, 0, 0, torch.full((12, 16, 8), torch.nan)),
        "load the model in a wider precision",
        lambda: row_losses(checked(toy()), IDS, 4, 0, 0, torch.zeros(12, 16, 8)),
    ),
]
