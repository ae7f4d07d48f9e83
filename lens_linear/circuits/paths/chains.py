"""The arithmetic of path expansion: every chain of heads, each layer once, prefixes shared.

A path is a *source* (token rows, position rows, a bias) followed by heads of rising layers. All paths that
end before layer l are held as one tensor [path, batch, position, d_model]; layer l sends every one of them
through every head in a few matrix products, and its outputs join the list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_int
from lens_linear.circuits.heads.head_circuit import require_attention
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.frozen.frozen_attention import FrozenRun

Heads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PathName:
    """A source and the heads it passes, in order."""

    source: str
    heads: Heads

    def __str__(self) -> str:
        return " → ".join([self.source, *(f"L{layer}H{head}" for layer, head in self.heads)])


def count_paths(n_layers: int, n_heads: int, n_sources: int) -> int:
    """Paths of ``n_sources`` embeddings plus those of value and output biases in every layer."""
    total: int = n_sources * (1 + n_heads) ** n_layers
    for layer in range(n_layers):
        total += (n_heads + 1) * (1 + n_heads) ** (n_layers - 1 - layer)
    return total + 1


def expand(
    frozen: FrozenRun, *, max_terms: int, max_bytes: int
) -> tuple[list[PathName], Tensor, list[Tensor]]:
    """Follow every source through every chain of heads; sources that are zero everywhere are left out.

    Returns:
        The names of all paths, what they leave in the stream [path, batch, position, d_model], and the logits
        of the last paths, which do not pass it; these broadcast to [batch, position, vocab_out].

    Raises:
        InvalidArgumentError: more than ``max_terms`` paths, or more than ``max_bytes`` of memory.
    """
    names, streams = embedding_sources(frozen)
    _require_room(frozen, len(names), max_terms, max_bytes)
    for layer in range(len(frozen.patterns)):
        through = send(frozen, layer, streams)
        new_names = [
            PathName(name.source, (*name.heads, (layer, head)))
            for head in range(len(through))
            for name in names
        ]
        bias_names, biases = bias_sources(frozen, layer)
        names = [*names, *new_names, *bias_names]
        streams = torch.cat([streams, through.flatten(0, 1), biases])
    direct_names, direct = direct_sources(frozen)
    return [*names, *direct_names], streams, direct


def direct_sources(frozen: FrozenRun) -> tuple[list[PathName], list[Tensor]]:
    """Return what is added to the logits without passing the stream."""
    found = {"b_U": frozen.weights.b_U} if bool(frozen.weights.b_U.any()) else {}
    if frozen.rounding[-1] is not None:
        found["rounding of the final norm"] = frozen.rounding[-1]
    return [PathName(name, ()) for name in found], list(found.values())


def embedding_sources(frozen: FrozenRun) -> tuple[list[PathName], Tensor]:
    """Return the token rows and, where they are not all zero, the position rows."""
    names, parts = [PathName("token", ())], [frozen.embedding]
    if frozen.positions is not None and bool(frozen.positions.any()):
        names.append(PathName("position", ()))
        parts.append(frozen.positions.expand_as(frozen.embedding))
    return names, torch.stack(parts)


def send(
    frozen: FrozenRun, layer: int, streams: Float[Tensor, "path batch position d_model"]
) -> Float[Tensor, "head path batch position d_model"]:
    """Send streams through every head of a layer, pattern and norm scale frozen, biases left out."""
    reads = streams / frozen.scales[layer]
    values = torch.einsum("nbpd,hde->hnbpe", reads, require_attention(frozen.weights).W_V[layer])
    return _out(frozen, layer, values)


def bias_sources(
    frozen: FrozenRun, layer: int
) -> tuple[list[PathName], Float[Tensor, "path batch position d_model"]]:
    """Return what a layer writes without reading: value biases through each head, and b_O."""
    attention, shape = require_attention(frozen.weights), frozen.embedding.shape
    names: list[PathName] = []
    parts: list[Tensor] = []
    sources: list[tuple[str, Tensor]] = []
    if bool(attention.b_V[layer].any()):
        bias = attention.b_V[layer][:, None, None, None].expand(-1, 1, *shape[:2], -1)
        sources.append((f"b_V of layer {layer}", bias))
    rounding = frozen.rounding[layer]
    if rounding is not None:
        extra = rounding.permute(2, 0, 1, 3)[:, None]
        sources.append((f"rounding of norm {layer}", extra))
    for name, values in sources:
        out = _out(frozen, layer, values)[:, 0]
        names += [PathName(name, ((layer, head),)) for head in range(len(out))]
        parts += list(out)
    if bool(attention.b_O[layer].any()):
        names.append(PathName(f"b_O of layer {layer}", ()))
        parts.append(attention.b_O[layer].expand(shape))
    empty = frozen.embedding.new_empty(0, *shape)
    return names, torch.stack(parts) if parts else empty


def _out(
    frozen: FrozenRun, layer: int, values: Float[Tensor, "head path batch position d_head"]
) -> Float[Tensor, "head path batch position d_model"]:
    mixed = torch.einsum("bhqk,hnbke->hnbqe", frozen.patterns[layer], values)
    return torch.einsum("hnbqe,hed->hnbqd", mixed, require_attention(frozen.weights).W_O[layer])


def _require_room(frozen: FrozenRun, n_sources: int, max_terms: int, max_bytes: int) -> None:
    require_int("max_terms", max_terms, minimum=1)
    n_layers = len(frozen.patterns)
    heads = frozen.patterns[0].shape[1] if n_layers else 0
    count = count_paths(n_layers, heads, n_sources)
    if count > max_terms:
        raise InvalidArgumentError(
            f"max_terms must be at least {count} for {n_layers} layers of {heads} heads, got {max_terms}; "
            "pass a larger max_terms, or use importance(tokens), which adds up by order without a list"
        )
    size = count * frozen.embedding.numel() * frozen.embedding.element_size()
    if size > max_bytes:
        raise InvalidArgumentError(
            f"the {count} paths of {tuple(frozen.tokens.shape)} tokens take {size / 2**30:.1f} GiB but "
            f"max_bytes is {max_bytes / 2**30:.1f} GiB; pass fewer tokens or a larger max_bytes"
        )
