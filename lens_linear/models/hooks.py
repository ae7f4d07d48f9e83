"""Where things are in a bridge: the only table of hook names, and hooks that remove themselves.

A *spot* is a pair ``(layer, what)``. ``what`` is one of

========== ================================================================ ==============================
what       the tensor                                                       shape
========== ================================================================ ==============================
resid_pre  residual stream at the input of the block                        [batch, position, d_model]
resid_post residual stream at the output of the block                       [batch, position, d_model]
attn_in    what the attention reads (after its norm)                        [batch, position, d_model]
attn_out   what the attention writes into the stream (after a post-norm)    [batch, position, d_model]
attn_raw   what W_O and b_O give, before a post-norm or a factor            [batch, position, d_model]
ffn_in     what the FFN reads (after its norm)                              [batch, position, d_model]
ffn_out    what the FFN writes into the stream (after a post-norm)          [batch, position, d_model]
q, k, v    queries, keys, values before any rotation                        [batch, position, head, d_head]
rot_q, _k  queries, keys as scores take them: after norms and rotation      [batch, position, head, d_head]
z          pattern-weighted values, before W_O                              [batch, position, head, d_head]
pattern    attention after softmax                                          [batch, head, query, key]
========== ================================================================ ==============================
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.checks import require_int
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError

What = Literal[
    "resid_pre",
    "resid_post",
    "attn_in",
    "attn_out",
    "attn_raw",
    "ffn_in",
    "ffn_out",
    "q",
    "k",
    "v",
    "rot_q",
    "rot_k",
    "z",
    "pattern",
]
Spot = tuple[int, What]
Edit = tuple[Spot, Callable[[Tensor], Tensor | None]]

_NAMES: dict[str, tuple[str, ...]] = {
    "resid_pre": ("hook_in",),
    "resid_post": ("hook_out",),
    "attn_in": ("attn.hook_in",),
    "attn_out": ("ln1_post.hook_out", "attn.hook_out"),
    "attn_raw": ("attn.o.hook_out", "attn.hook_out"),
    "ffn_in": ("mlp.hook_in",),
    "ffn_out": ("ln2_post.hook_out", "mlp.hook_out"),
    "q": ("attn.hook_q", "attn.q.hook_out"),
    "k": ("attn.hook_k", "attn.k.hook_out"),
    "v": ("attn.hook_v", "attn.v.hook_out"),
    "rot_q": ("attn.hook_rot_q",),
    "rot_k": ("attn.hook_rot_k",),
    "z": ("attn.hook_z", "attn.o.hook_in"),
    "pattern": ("attn.hook_pattern",),
}

# What is written into the stream, where the sublayer's own output is something else. Granite scales it
# after the sublayer, and its bridge has a point of its own there (elsewhere that name is an alias). BLOOM
# and MPT hand the stream to the sublayer, which returns the sum: there the last linear layer is read.
_SCALED = {"attn_out": "hook_attn_out", "ffn_out": "hook_mlp_out"}
_LAST_LINEAR = {"attn_out": ("attn", "attn.o.hook_out"), "ffn_out": ("mlp", "mlp.out.hook_out")}


# What is left of a model whose weights or heads cannot be read, for messages.
STILL_WORK = "linearity_profile and the other analyses of activations still work"


def require_bridge(model: Any) -> TransformerBridge:
    """Accept a ``TransformerBridge`` with a stack of blocks; anything else gets advice."""
    if not isinstance(model, TransformerBridge):
        raise InvalidArgumentError(
            f"model must be a TransformerBridge, got {type(model).__name__}; "
            "use lens_linear.load(name_or_folder) or TransformerBridge.boot_transformers(name)"
        )
    name = getattr(model.cfg, "model_name", "?")
    if not hasattr(model, "blocks") or not hasattr(model, "embed"):
        raise UnsupportedModelError(
            f"model {name!r} has no single stack of blocks; use a causal decoder such as gpt2"
        )
    # A native model that looks both ways is still a sum of paths; an encoder is nothing we know.
    if getattr(model.cfg, "architecture", None) != "TransformerLensNative":
        require_causal(model)
    return model


def is_causal(model: TransformerBridge) -> bool:
    """Say whether tokens see earlier ones only, as the configuration has it."""
    return getattr(model.cfg, "attention_dir", "causal") == "causal"


def require_causal(model: TransformerBridge) -> None:
    """Refuse a model whose tokens see later ones.

    Raises:
        UnsupportedModelError: the configuration says so.
    """
    direction = getattr(model.cfg, "attention_dir", "causal")
    if not is_causal(model):
        raise UnsupportedModelError(
            f"model {getattr(model.cfg, 'model_name', '?')!r} must be causal, but its configuration says "
            f"attention_dir={direction!r}: its tokens see later ones; use a decoder such as gpt2"
        )


_LOCKS: weakref.WeakKeyDictionary[TransformerBridge, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


def model_lock(model: TransformerBridge) -> threading.RLock:
    """Return the model's lock: hooks and modes belong to the model, so one thread at a time runs it.

    A thread may take it again inside itself; another one waits for the end of the pass or the block.
    """
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


def require_blocks(model: TransformerBridge) -> None:
    """Refuse a model without layers."""
    if not model.cfg.n_layers:
        raise UnsupportedModelError(
            f"model {model.cfg.model_name!r} has no blocks; use one with layers, such as load('attn-2l')"
        )


def hook_name(model: TransformerBridge, spot: Spot) -> str:
    """Return the canonical name of the hook point at ``(layer, what)``."""
    if not isinstance(spot, tuple) or len(spot) != 2:
        raise InvalidArgumentError(f"a spot must be a pair (layer, what), got {spot!r}")
    layer, what = spot
    if isinstance(model, TransformerBridge) and type(layer) is int and type(what) is str:
        known = _FOUND.get(model, {}).get((layer, what))
        if known is not None:
            return known  # was checked when it was found
    require_bridge(model)
    require_int("layer", layer, minimum=0, maximum=model.cfg.n_layers - 1)
    if not isinstance(what, str) or what not in _NAMES:
        raise InvalidArgumentError(f"what must be one of {sorted(_NAMES)}, got {what!r}")
    found = _find(model, layer, what)
    if found is None:
        raise UnsupportedModelError(
            f"model {model.cfg.model_name!r} has no {what!r} in layer {layer}; "
            f"looked for {[f'blocks.{layer}.{n}' for n in _NAMES[what]]}; name another spot, e.g. "
            f"({layer}, 'resid_pre')"
        )
    return found


def _special_names(model: TransformerBridge, layer: int, what: str) -> tuple[str, ...]:
    """Where an unusual architecture writes into the stream, tried before the usual names."""
    if what not in _SCALED:
        return ()
    scaled = f"blocks.{layer}.{_SCALED[what]}"
    point = model.hook_dict.get(scaled)
    if point is not None and point.name == scaled:
        return (_SCALED[what],)
    part, linear = _LAST_LINEAR[what]
    inner = getattr(getattr(model.blocks[layer], part, None), "original_component", None)
    if inner is None or "residual" not in inspect.signature(inner.forward).parameters:
        return ()
    return (linear,)


def has_spot(model: TransformerBridge, spot: Spot) -> bool:
    """Say whether the model has a hook point at ``(layer, what)``."""
    return _find(model, *spot) is not None


# A bridge builds its dictionary of hook points anew each time it is asked: 2 ms at 30 layers, and a run
# asks 300 times. What was found stays where it is.
_FOUND: WeakKeyDictionary[TransformerBridge, dict[tuple[int, str], str]] = WeakKeyDictionary()


def _find(model: TransformerBridge, layer: int, what: str) -> str | None:
    known = _FOUND.setdefault(model, {})
    if (layer, what) not in known:
        name = _search(model, layer, what)
        if name is None:
            return None
        known[layer, what] = name
    return known[layer, what]


def _search(model: TransformerBridge, layer: int, what: str) -> str | None:
    endings = (*_special_names(model, layer, what), *_NAMES[what])
    points = model.hook_dict
    names = (f"blocks.{layer}.{ending}" for ending in endings)
    return next((name for name in names if name in points), None)


@contextmanager
def hooked(
    model: TransformerBridge, named: Iterable[tuple[str, Callable[[Tensor], Tensor | None]]]
) -> Iterator[None]:
    """Attach functions to hook points by name for the length of a block.

    A function gets the tensor and may return a new one (None leaves it). Exactly the hooks added here
    are removed at the end, also after an error; hooks of the caller stay. Another thread that asks for
    hooks waits meanwhile, and what it runs itself passes by untouched.
    """
    points = require_bridge(model).hook_dict
    added: list[tuple[Any, Any]] = []
    with model_lock(model):
        try:
            for name, function in named:
                if name not in points:
                    raise UnsupportedModelError(
                        f"model {model.cfg.model_name!r} has no hook point {name!r}; {STILL_WORK}"
                    )
                point = points[name]
                point.add_hook(_adapter(function))
                added.append((point, point.fwd_hooks[-1]))
            yield
        finally:
            for point, handle in reversed(added):
                handle.hook.remove()
                point.fwd_hooks.remove(handle)


@contextmanager
def edited(model: TransformerBridge, edits: Iterable[Edit]) -> Iterator[None]:
    """Replace tensors at spots while the block runs: ``[((layer, what), function), ...]``."""
    with hooked(model, [(hook_name(model, spot), function) for spot, function in edits]):
        yield


def attached(model: TransformerBridge) -> str:
    """How a reason begins where a model has hooks, its own or those of a ``with`` block; "" without any."""
    names = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    if not names:
        return ""
    return (
        f"the model has hooks now ({', '.join(map(repr, names[:3]))}), which may be why: leave the with "
        "block that edits it, or call model.reset_hooks(including_permanent=True); otherwise "
    )


def _adapter(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
    owner = threading.get_ident()

    def hook(tensor: Tensor, hook: Any = None) -> Tensor | None:
        if threading.get_ident() != owner:
            return None
        made = function(tensor)
        # Under a device map what replaces a tensor may come from another device.
        return None if made is None else made.to(tensor.device)

    return hook


_STILL: WeakSet[TransformerBridge] = WeakSet()


@contextmanager
def still(model: TransformerBridge) -> Iterator[None]:
    """While this lasts no module changes its mode, so passes need not look: that costs as much as a block."""
    before = model in _STILL
    _STILL.add(model)
    try:
        yield
    finally:
        if not before:
            _STILL.discard(model)


def is_still(model: TransformerBridge) -> bool:
    """Whether :func:`still` holds."""
    return model in _STILL


def in_training(*roots: nn.Module) -> list[nn.Module]:
    """All modules that are in training mode; ``modules()``, which joins names, takes three times as long."""
    found: dict[int, nn.Module] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting += [child for child in module._modules.values() if child is not None]
    return [module for module in found.values() if module.training]
