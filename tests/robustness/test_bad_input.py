"""Every public function, every argument, every way to get it wrong: one of our errors, or an answer.

``LENS_LINEAR_FUZZ=all`` tries every mutation of every argument; otherwise a fixed part of them.
"""

import inspect
import math
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from robust_calls import ATTN, CALLS, GPT, NATURAL, SHAPE, TOKENS, Call, ids
from robust_counts import count
from robust_mutations import mutations

import lens_linear as ll
from lens_linear.errors import (
    InvalidArgumentError,
    LensLinearError,
    NonFiniteError,
    NotEnoughDataError,
    UnknownModelError,
    UnsupportedModelError,
)

EVERY = os.environ.get("LENS_LINEAR_FUZZ") == "all"
PART = 40  # mutations a call in an ordinary run
# Refused as they stand, on purpose: a file that is not there, a model or triples that do not fit.
REFUSED = {
    "Moments.load", "Moments.save", "SyntheticLanguage.encode", "TokenStream", "TokenStream.write",
    "load", "load_linearized", "load_study", "load_tables", "run_study", "read_text", "read_documents",
    "huggingface_text", "stream_huggingface_text", "AttentionOnly(gpt)", "save_tables",
    "verify_induction", "report", "explore", "copy_tutorials",
    "downstream_scores",
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths that a mutation makes up must not land in the checkout."""
    monkeypatch.chdir(tmp_path)


def attempt(call: Call, arguments: dict) -> None:
    """Run a call; anything but an answer or one of our errors is a failure."""
    count("bad calls tried")
    try:
        call.function(**arguments)
    except LensLinearError as error:
        count("of them refused with one of our errors")
        assert len(str(error)) > 20, f"no help in {error!r}"


def bad_arguments(call: Call) -> list[tuple[str, dict]]:
    good = call.arguments()
    found = [
        (f"{name} = {label}", {**good, name: value})
        for name in good
        if name not in call.free
        for label, value in mutations(good[name])
    ]
    if not EVERY and len(found) > PART:
        found = random.Random(call.name).sample(found, PART)
    return found


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_a_bad_argument_is_refused_or_answered(call):
    if call.name in REFUSED:
        with pytest.raises(LensLinearError):
            call.function(**call.arguments())
    else:
        call.function(**call.arguments())
    for what, arguments in bad_arguments(call):
        try:
            attempt(call, arguments)
        except Exception as error:
            raise AssertionError(
                f"{call.name} with {what} raised {type(error).__name__}: {error}"
            ) from error


def test_the_table_names_every_public_function():
    named = {call.name.split()[0].split("(")[0] for call in CALLS}
    rooms = (ll.linalg, ll.text, ll.constructions, ll.circuits, ll.linearity, ll.dynamics)
    public = {
        name
        for where in (ll, *rooms)
        for name in where.__all__
        if inspect.isfunction(getattr(where, name)) or inspect.isbuiltin(getattr(where, name))
    }
    without_arguments = {"available_models", "default_stories", "default_text"}
    missing = sorted(public - named - without_arguments - NOT_FUZZED)
    assert not missing, f"add a good call of {missing} to robust_calls.py"


# Callbacks, numbers that need no check, or a function whose arguments are another's.
# ``save_model`` writes a folder: its arguments have tests of their own (tests/models).
NOT_FUZZED = {"save_model", "row_error", "process", "all_reduce_sum", "gram", "check"}

WEIRD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
# A number of rows that memory cannot hold is no bad argument, and the network is not asked here.
NOT_ANYTHING = {
    "SyntheticLanguage", "SyntheticLanguage.tokens", "SyntheticLanguage.mood_sentences",
    "repeated_tokens", "random_tokens", "Moments", "toy_model", "load", "load bundled",
    "huggingface_text", "stream_huggingface_text", "covariance_shift", "train_ols_attention",
    "regression_data", "memory_capacity", "retrieval_curve", "attention_head_memory",
    "NewtonSchulzAttention", "ModelSpec", "ModelSpec.from_dict", "Recipe.scaled", "Phase",
    "NewtonSchulzAttention.with_context", "build_induction",
    "agreement_table",
}  # fmt: skip
CHEAP = [
    call
    for call in CALLS
    if not {"model", "recipe"} & set(call.good()) and call.name not in NOT_ANYTHING
]


@settings(
    max_examples=2000 if EVERY else 150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_anything_at_all_in_place_of_an_argument(data):
    call = data.draw(st.sampled_from(CHEAP))
    arguments = call.arguments()
    names = sorted(set(arguments) - call.free)
    if not names:
        return
    name = data.draw(st.sampled_from(names))
    value = data.draw(WEIRD)
    if isinstance(value, int) and abs(value) > 100 and name not in ("seed", "layer", "head"):
        value %= 100  # a size, not a fault
    attempt(call, {**arguments, name: value})


DTYPES = [torch.int8, torch.int32, torch.int64, torch.float32, torch.bool, torch.complex64]


@settings(
    max_examples=400 if EVERY else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=st.lists(st.integers(0, 30), max_size=3),
    dtype=st.sampled_from(DTYPES),
    low=st.integers(-3, 30),
    which=st.sampled_from(["profile", "gains", "paths", "counts", "importance"]),
)
def test_any_tensor_in_place_of_tokens(shape, dtype, low, which):
    tokens = torch.randint(low, low + 8, shape).to(dtype)
    functions = {
        "profile": lambda: ll.linearity_profile(GPT(), tokens),
        "gains": lambda: ll.gain_profile(GPT(), tokens, torch.ones(3, 8)),
        "paths": lambda: ll.AttentionOnly(ATTN()).paths(tokens).max_error,
        "importance": lambda: ll.AttentionOnly(ATTN()).importance(tokens).to_dataframe(),
        "counts": lambda: ll.stats.ngrams.bigram_counts(tokens, 20),
    }
    attempt(Call(which, functions[which], dict), {})


def broken(value: float):
    model = ll.toy_model(**SHAPE, attn_only=False, norm="LN")
    with torch.no_grad():
        model.blocks[1].mlp.out.weight[0, 0] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_numbers_name_their_layer(value):
    for function in (ll.linearity_profile, ll.layer_map, ll.replacement_curve):
        with pytest.raises(NonFiniteError, match="layer 1"):
            function(broken(value), TOKENS)
    with pytest.raises(NonFiniteError):
        ll.gain_profile(broken(value), TOKENS, torch.ones(3, 8))


def test_sentences_say_what_to_do():
    cases = [
        (
            NotEnoughDataError,
            "at least 2 sequences",
            lambda: ll.linearity_profile(GPT(), TOKENS[:1]),
        ),
        (InvalidArgumentError, "n_ctx is 16", lambda: ll.linearity_profile(GPT(), ids(4, 17))),
        (InvalidArgumentError, "tokenizer", lambda: ll.linearity_profile(GPT(), TOKENS + 20)),
        (InvalidArgumentError, "load", lambda: ll.linearity_profile("gpt2", TOKENS)),
        (UnsupportedModelError, "MLP", lambda: ll.AttentionOnly(GPT())),
        (UnsupportedModelError, "tokenizer", lambda: ll.tokenize(ATTN(), "text")),
        (UnknownModelError, "attn-2l", lambda: ll.load("attn-2")),
        (NotEnoughDataError, "empty", lambda: ll.tokenize(NATURAL(), "")),
        (InvalidArgumentError, "4294967295", lambda: ll.layer_map(GPT(), TOKENS, seed=2**64)),
        (
            InvalidArgumentError,
            "intercept must be True or False",
            lambda: ll.OLSAttention.from_data([[1.0], [2.0]], [1.0, 2.0], intercept="no"),
        ),
        (InvalidArgumentError, "room for", lambda: ll.tokenize_prompts(NATURAL(), ["word " * 500])),
    ]
    for kind, words, function in cases:
        with pytest.raises(kind, match=words):
            function()


def test_a_wrong_row_in_the_middle_of_a_stream_is_refused_too(tmp_path):
    """Only the first row of a stream is looked at when it is opened; the others when they are run."""
    late = TOKENS.clone()
    late[6, 3] = 29
    stream = ll.text.TokenStream.write(tmp_path / "ids", [late.flatten()], length=12, n_vocab=30)
    for function in (ll.linearity_profile, ll.layer_map, ll.replacement_curve):
        with pytest.raises(InvalidArgumentError, match="vocabulary"):
            function(GPT(), stream)


EQUAL = [
    ("int32 tokens", lambda t: {"tokens": t.int()}),
    ("uint8 tokens", lambda t: {"tokens": t.to(torch.uint8)}),
    ("tokens that are not contiguous", lambda t: {"tokens": t.T.contiguous().T}),
    ("numpy numbers", lambda _: {"seed": np.int64(0), "ridge": np.float32(0.0)}),
    ("another batch size", lambda _: {"batch_size": 3}),
    ("a batch larger than the data", lambda _: {"batch_size": 10**9}),
]


@pytest.mark.parametrize("what", [name for name, _ in EQUAL])
def test_what_is_accepted_gives_the_same_numbers(what):
    changed = dict(EQUAL)[what](TOKENS)
    for function in (ll.linearity_profile, ll.layer_map, ll.replacement_curve):
        want = function(GPT(), TOKENS).to_dataframe().select_dtypes("number")
        got = function(**{"model": GPT(), "tokens": TOKENS, **changed})
        apart = (got.to_dataframe().select_dtypes("number") - want).abs().max().max()
        assert apart < 1e-6, (function.__name__, what)


class Unreadable:
    """Says that it has rows, and raises what nobody expects when it is read."""

    ndim, shape = 2, (3, 4)

    def __getitem__(self, index):
        raise KeyError(index)

    def __float__(self):
        raise KeyError("a number")


def test_things_that_only_look_like_tokens_are_refused():
    directions = ll.dynamics.random_directions(ATTN())
    for call in (
        lambda: ll.stats.bigram_counts(Unreadable(), 20),
        lambda: ll.gain_profile(ATTN(), [[torch.tensor([]), Unreadable()]], directions),
        lambda: ll.circuits.in_context_loss(ATTN(), [[Unreadable(), 3]]),
    ):
        with pytest.raises(InvalidArgumentError, match=r"token ids|a row of ids"):
            call()
