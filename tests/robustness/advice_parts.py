"""What the rows of advice share: toy models, tokens, and results that are costly to make twice."""

import contextlib
import functools
from unittest.mock import patch

import torch
from transformer_lens import TransformerBridge
from transformer_lens.config import TransformerBridgeConfig

import lens_linear as ll
from lens_linear import circuits, dynamics
from lens_linear.models import ModelSpec

SHAPE = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_vocab": 24, "n_ctx": 32}
G = torch.Generator().manual_seed(0)
IDS = torch.randint(24, (12, 16), generator=G)
X, Y = torch.randn(40, 4, generator=G).double(), torch.randn(40, 2, generator=G).double()
PROBE = {"periods": [4, 5], "rows_per_period": 2, "bos": None}


@functools.cache
def toy(**changes):
    return ll.toy_model(**{**SHAPE, **changes})


@functools.cache
def native(**changes):
    """A model whose configuration ``toy_model`` does not take."""
    shape = {**SHAPE, "attn_only": True, "normalization_type": None, "seed": 0, **changes}
    config = TransformerBridgeConfig(d_head=8, act_fn="gelu", **shape)
    return TransformerBridge.boot_native(config).eval()


def mlp():
    return toy(attn_only=False, norm="LN")


@functools.cache
def view():
    return ll.AttentionOnly(toy())


@functools.cache
def wide():
    return ll.AttentionOnly(toy(n_layers=1, d_vocab=4200)).bigrams()


@functools.cache
def attribution():
    return ll.qk_attribution(toy(), IDS[:2], "L1H0")


@functools.cache
def directions():
    return dynamics.random_directions(toy())


@functools.cache
def profile(fit="held-out", n=12):
    return ll.linearity_profile(mlp(), IDS[:n].repeat(2, 1), fit=fit)


@functools.cache
def gains():
    return ll.gain_profile(toy(), IDS, directions())


@functools.cache
def with_tokenizer():
    model = ll.toy_model(n_layers=1, d_model=8, n_heads=1, d_vocab=1024)
    model.tokenizer = known().tokenizer
    return model


@functools.cache
def split():
    return ll.load_concept("mood").split(20, 4, 4)


@functools.cache
def known():
    return ll.load("attn-1l")


def ablated(**options):
    with circuits.ablate_heads(toy(), "L0H0", **options) as model:
        return model(IDS)


def cut(sender, receiver):
    with ll.cut_path(toy(), sender, receiver):
        return toy()(IDS)


def trained(**options):
    spec = ModelSpec(1, d_model=16, n_heads=2, d_vocab=24, n_ctx=16)
    return ll.train(spec, **{"steps": 2, "progress": False, **options})


def batch(step):
    return IDS[:, :16]


MASK = torch.ones(16, dtype=torch.bool)
SHORT = IDS[:, :1]


@functools.cache
def agreement():
    return dynamics.agreement_table(
        [known()],
        "mood",
        orders=(2,),
        bases=("random",),
        jacobians=("mean",),
        n_concept=24,
        n_operating=4,
        n_evaluation=4,
    )


def under(changes, call):
    """Make a call while names of the package are something else."""
    with contextlib.ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(patch(f"lens_linear.{name}", value))
        return call()


def raising(error):
    """A function that raises."""

    def call(*_, **__):
        raise error

    return call


def without_package(name, call):
    """Make a call where a package is not installed."""
    with patch.dict("sys.modules", {name: None}):
        return call()
