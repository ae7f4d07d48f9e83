"""Where things are in a bridge: the only table of hook names.

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
from collections.abc import Callable
from typing import Literal
from weakref import WeakKeyDictionary

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

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

NAMES: dict[str, tuple[str, ...]] = {
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

# A bridge builds its dictionary of hook points anew each time it is asked: 2 ms at 30 layers, and a run
# asks 300 times. What was found stays where it is.
_FOUND: WeakKeyDictionary[TransformerBridge, dict[tuple[int, str], str]] = WeakKeyDictionary()


def find_spot(bridge: TransformerBridge, layer: int, what: str) -> str | None:
    """The canonical name of the hook point; None where the bridge has none."""
    known = _FOUND.setdefault(bridge, {})
    if (layer, what) not in known:
        name = _search(bridge, layer, what)
        if name is None:
            return None
        known[layer, what] = name
    return known[layer, what]


def _search(bridge: TransformerBridge, layer: int, what: str) -> str | None:
    endings = (*_special_names(bridge, layer, what), *NAMES[what])
    points = bridge.hook_dict
    names = (f"blocks.{layer}.{ending}" for ending in endings)
    return next((name for name in names if name in points), None)


def _special_names(bridge: TransformerBridge, layer: int, what: str) -> tuple[str, ...]:
    """Where an unusual architecture writes into the stream, tried before the usual names."""
    if what not in _SCALED:
        return ()
    scaled = f"blocks.{layer}.{_SCALED[what]}"
    point = bridge.hook_dict.get(scaled)
    if point is not None and point.name == scaled:
        return (_SCALED[what],)
    part, linear = _LAST_LINEAR[what]
    inner = getattr(getattr(bridge.blocks[layer], part, None), "original_component", None)
    if inner is None or "residual" not in inspect.signature(inner.forward).parameters:
        return ()
    return (linear,)
