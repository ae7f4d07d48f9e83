"""Blocks as maps of the last token alone, everything before it frozen.

In a causal model earlier tokens never see the last one, so freezing them is exact: a change of the last
token's residual stream at any layer reaches the output through the last token only. A
:class:`FrozenContext` records one ordinary forward pass (keys, values and the last token's states); after
that every run of the blocks costs one token a prompt instead of the whole prompt.

How the one-token run works, for any architecture: the model itself runs on the last tokens, one position
each. Norms, projections, MLP, post-norms and biases are the model's own modules. Only what is written at
``z`` is computed here: the last query against the recorded keys and values, and its own. The result is
compared with the recorded run, block by block; a model that attends in another way (position biases,
sliding windows) fails this check and is run on whole prompts instead (``path="full"``: slower, as exact).

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> context = freeze_context(toy_model(n_layers=3), torch.arange(12).view(2, 6), torch.tensor([6, 4]))
>>> context
FrozenContext: 2 prompts of 4 to 6 tokens, 3 layers, path 'cache'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted
from lens_linear.errors import InvalidArgumentError, NonFiniteError, UnsupportedModelError
from lens_linear.models.capture import require_model_tokens, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.rotary import Rotary, read_rotary
from lens_linear.models.describe.weights import score_scale
from lens_linear.models.describe.weights_mark import WeightsMark
from lens_linear.models.frozen.block_maps import BlockMaps
from lens_linear.models.spots import Edit, Spot, What
from lens_linear.models.stand_ins import BlockStandIns
from lens_linear.token_rows import TokenRows

Path = Literal["cache", "full"]

# Largest relative error of a block's output, one-token run against recorded run. float32 measures up to
# 2e-6 on the models of the tests, float64 up to 2e-7 where a model takes norms or softmax in float32
# whatever its precision (Llama, Gemma, OPT); a missing rotation or window shows as 1e-2 and more.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
_HALF_TOLERANCE = 3e-2


@dataclass(frozen=True, eq=False)
class _Begun:
    """A block in the middle, run alone from the stream before it."""

    layer: int
    stream: Float[Tensor, "prompt position d_model"]
    stand_ins: BlockStandIns
    rotary: Rotary | None
    mark: WeightsMark

    def edit(self) -> Edit:
        """What puts the stream before the block."""
        return ((self.layer, "resid_pre"), lambda _: self.stream)

    def alone(self) -> AbstractContextManager[None]:
        """While it lasts, no block before this one runs."""
        return self.stand_ins.applied(dict.fromkeys(range(self.layer), lambda stream: stream))


@dataclass(frozen=True, eq=False)
class FrozenContext:
    """One recorded forward pass over some prompts, ready to rerun their last tokens.

    Attributes:
        model: what ran; not changed.
        tokens: ids, padded on the right; what stands after a prompt's end is never read.
        lengths: real tokens of each prompt.
        states: the last token's residual stream, 0 the input of block 0, L the output of the last one.
        keys: per layer, rotated where the model rotates; empty for ``path="full"``.
        values: per layer.
        rotaries: per layer, or None where there is no rotation.
        path: "cache" runs one token a prompt, "full" whole prompts.
        mark: of the weights that ran; a use warns when the model has others.
        begun: where the blocks are one of the middle alone: which, and from which stream.
    """

    model: CheckedModel
    tokens: Int[Tensor, "prompt position"]
    lengths: Int[Tensor, " prompt"]
    states: Float[Tensor, "boundary prompt d_model"]
    keys: tuple[Float[Tensor, "prompt position kv_head d_head"], ...]
    values: tuple[Float[Tensor, "prompt position kv_head d_head"], ...]
    rotaries: tuple[Rotary | None, ...]
    path: Path
    mark: WeightsMark = field(repr=False)
    begun: _Begun | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        low, high = int(self.lengths.min()), int(self.lengths.max())
        return (
            f"FrozenContext: {counted(len(self.lengths), 'prompt')} of {low} to {high} tokens, "
            f"{counted(self.n_layers, 'layer')}, path {self.path!r}{self.mark.note(self.model)}"
        )

    @property
    def n_layers(self) -> int:
        """Blocks recorded."""
        return len(self.states) - 1

    @property
    def first(self) -> int:
        """The first block recorded; states, keys and values are counted from it."""
        return 0 if self.begun is None else self.begun.layer

    def outputs(
        self,
        amplitudes: Float[Tensor, "copy prompt layer"],
        directions: Float[Tensor, "boundary d_model"],
    ) -> Float[Tensor, "copy prompt d_model"]:
        """Return x_L when ``amplitudes[c, p, l] * directions[l]`` is added to the last token's x_l.

        Args:
            amplitudes: one amplitude for each copy, prompt and layer; 0 leaves a layer alone.
            directions: one direction a layer; further rows are not used. If amplitudes or directions require
                gradients, the result carries the graph back to them.

        Returns:
            The last token's state after the last block, in the model's precision.
        """
        amplitudes = amplitudes.to(self.states.device, self.states.dtype)
        directions = directions.to(self.states.device, self.states.dtype)
        copies = len(amplitudes)

        def inject(layer: int) -> Callable[[Tensor], Tensor]:
            offset = amplitudes[:, :, layer, None] * directions[layer]

            def hook(x: Tensor) -> Tensor:
                # Layer 0 starts from the recorded state: a one-token run embeds position 0.
                before = self.states[0][None] if layer == 0 else self._read(x, copies)
                return self._written(x, before + offset)

            return hook

        with torch.set_grad_enabled(amplitudes.requires_grad or directions.requires_grad):
            edits: list[Edit] = [
                ((self.first + layer, "resid_pre"), inject(layer)) for layer in range(self.n_layers)
            ]
            return self._run(copies, edits)[-1]

    def jacobians(self) -> BlockMaps:
        """Return every block's Jacobian products at the recorded states (block inputs cut apart)."""
        leaves = [state.detach().clone().requires_grad_() for state in self.states[:-1]]

        def cut(layer: int) -> Callable[[Tensor], Tensor]:
            def hook(x: Tensor) -> Tensor:
                return self._written(x.detach(), leaves[layer][None])

            return hook

        with torch.enable_grad():
            edits: list[Edit] = [
                ((self.first + layer, "resid_pre"), cut(layer)) for layer in range(self.n_layers)
            ]
            # Indexing belongs in here too: outside, a caller's no_grad would cut the graph.
            outputs = tuple(output[0] for output in self._run(1, edits))
        return BlockMaps(tuple(leaves), outputs)

    def _run(
        self, copies: int, edits: Sequence[Edit]
    ) -> list[Float[Tensor, "copy prompt d_model"]]:
        """Run all blocks with the edits; return each block's output at the last token."""
        if self.begun is None:
            self.mark.warn(self.model, "the frozen context", "freeze it anew", stacklevel=4)
        layers = range(self.first, self.first + self.n_layers)
        spots: list[Spot] = [(layer, "resid_post") for layer in layers]
        edits = list(edits)
        if self.begun is not None and self.path == "full":
            edits.insert(0, self.begun.edit())
        if self.path == "cache":
            for layer in range(self.n_layers):
                edits += _Attention(self, layer, copies).edits()
            tokens = self._last_tokens()[:, None].repeat(copies, 1)
        else:
            tokens = self.tokens.repeat(copies, 1)
        grad = torch.is_grad_enabled()
        with nullcontext() if self.begun is None else self.begun.alone():
            seen = run(self.model, tokens, record=spots, edits=edits, logits=False, grad=grad)
        return [self._read(seen[spot], copies).to(self.states.device) for spot in spots]

    def _last_tokens(self) -> Int[Tensor, " prompt"]:
        return self.tokens.gather(1, self.lengths[:, None] - 1)[:, 0]

    def _read(self, x: Tensor, copies: int) -> Float[Tensor, "copy prompt d_model"]:
        """Take the last real token of every row."""
        rows = x.view(copies, len(self.lengths), *x.shape[1:])
        if self.path == "cache":
            return rows[:, :, 0]
        last = (self.lengths.to(x.device) - 1)[None, :, None, None]
        last = last.expand(copies, -1, 1, x.shape[-1])
        return rows.gather(2, last)[:, :, 0]

    def _written(self, x: Tensor, last: Float[Tensor, "copy prompt d_model"]) -> Tensor:
        """Return x with the last real token of every row replaced."""
        rows = last.flatten(0, 1)[:, None]
        if self.path == "cache":
            return rows.to(x.device).expand_as(x)
        place = (self.lengths.to(x.device) - 1).repeat(len(last))[:, None, None]
        return x.scatter(1, place.expand(-1, 1, x.shape[-1]), rows.to(x))


@dataclass(eq=False)
class _Attention:
    """What one layer's attention writes at ``z`` in a one-token run."""

    context: FrozenContext
    layer: int
    copies: int

    def edits(self) -> list[Edit]:
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], None]:
            def hook(x: Tensor) -> None:
                seen[name] = x.view(self.copies, -1, *x.shape[2:])

            return hook

        def write(z: Tensor) -> Tensor:
            # A one-token run stands at position 0, where rotation does nothing: what the model scores with
            # there differs from q and k by its own norms alone.
            q, k = (_like(seen.get(f"rot_{name}"), seen[name]) for name in ("q", "k"))
            return self._mixed(q, k, seen["v"]).reshape(z.shape).to(z.dtype)

        at, model = self.context.first + self.layer, self.context.model
        edits: list[Edit] = [
            ((at, "q"), keep("q")),
            ((at, "k"), keep("k")),
            ((at, "v"), keep("v")),
            ((at, "z"), write),
        ]
        if model.has((at, "rot_q")) and model.has((at, "rot_k")):
            edits.append(((at, "rot_q"), keep("rot_q")))
            edits.append(((at, "rot_k"), keep("rot_k")))
        return edits

    def _mixed(
        self,
        q: Float[Tensor, "copy prompt head d_head"],
        k: Float[Tensor, "copy prompt kv_head d_head"],
        v: Float[Tensor, "copy prompt kv_head d_head"],
    ) -> Float[Tensor, "copy prompt head d_head"]:
        """Attend from the last token to the recorded ones and to itself."""
        context, model = self.context, self.context.model
        keys = context.keys[self.layer].to(q.device)
        values = context.values[self.layer].to(q.device)
        q, k = self._rotated(q), self._rotated(k)
        groups = k.shape[2]
        q = q.unflatten(2, (groups, q.shape[2] // groups))
        past = torch.einsum("cpgrd,pjgd->cpgrj", q, keys)
        own = torch.einsum("cpgrd,cpgd->cpgr", q, k)[..., None]
        scores = torch.cat([past, own], dim=-1) * score_scale(model, context.first + self.layer)
        softcap = model.score_softcap
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        columns = torch.arange(past.shape[-1], device=q.device)
        real = columns < context.lengths.to(q.device)[:, None] - 1
        real = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        scores = scores.masked_fill(~real[None, :, None, None], float("-inf"))
        pattern = scores.softmax(-1)
        mixed = torch.einsum("cpgrj,pjgd->cpgrd", pattern[..., :-1], values)
        return (mixed + pattern[..., -1:] * v[:, :, :, None]).flatten(2, 3)

    def _rotated(self, x: Float[Tensor, "copy prompt some_head d_head"]) -> Tensor:
        rotary = self.context.rotaries[self.layer]
        if rotary is None:
            return x
        place = self.context.lengths.to(rotary.cos.device) - 1
        at = Rotary(rotary.cos[place].to(x), rotary.sin[place].to(x), rotary.adjacent)
        return at.rotate(x.transpose(1, 2)).transpose(1, 2)


def _like(x: Tensor | None, usual: Tensor) -> Tensor:
    """Return x where the model gave it in the usual shape."""
    return x if x is not None and x.shape == usual.shape else usual


def freeze_context(
    model: ModelLike,
    tokens: Int[Tensor, "prompt position"] | TokenRows,
    lengths: Int[Tensor, " prompt"],
    *,
    path: Path | None = None,
    n_layers: int | None = None,
) -> FrozenContext:
    """Record one forward pass over right-padded prompts, and check the one-token run against it.

    Args:
        model: a causal bridge; not changed.
        tokens: ids padded on the right; what the padding holds does not matter.
        lengths: real tokens of each prompt, 1 or more.
        path: "full" skips the one-token run, "cache" insists on it; None takes it where it is exact.
        n_layers: record the first blocks only; None is all.

    Returns:
        FrozenContext.

    Raises:
        UnsupportedModelError: ``path="cache"`` and the one-token run is not exact for this model.
        NonFiniteError: the residual stream holds NaN or infinity; the message names the first layer.
    """
    model = checked(model)
    model.require_causal()
    tokens = require_model_tokens(model, tokens).to(model.device)
    lengths = lengths.to(tokens.device).long()
    if (
        len(lengths) != len(tokens)
        or int(lengths.min()) < 1
        or int(lengths.max()) > tokens.shape[1]
    ):
        raise InvalidArgumentError(
            f"lengths must lie between 1 and {tokens.shape[1]}, one for each of {len(tokens)} prompts, "
            f"got {lengths.tolist()[:8]}"
        )
    blocks = range(model.n_layers if n_layers is None else n_layers)
    return _checked(_recorded(model, tokens, lengths, blocks, keep=path != "full")[0], path)


def freeze_block(
    model: CheckedModel,
    tokens: Int[Tensor, "prompt position"],
    lengths: Int[Tensor, " prompt"],
    layer: int,
    stream: Float[Tensor, "prompt position d_model"],
    stand_ins: BlockStandIns,
    rotary: Rotary | None,
    mark: WeightsMark,
) -> tuple[BlockMaps, Float[Tensor, "prompt position d_model"]]:
    """The Jacobian products of one block alone, from the stream before it, and the stream after it.

    Block after block, this costs one forward pass and keeps one stream. ``rotary`` is what
    :func:`first_rotary` gave, for at least as many positions; ``mark`` is of the weights, which the caller
    watches: a look at them here would be one at all layers for each block.
    """
    begun = _Begun(layer, stream, stand_ins, rotary, mark)
    tokens = tokens.to(model.device)
    lengths = lengths.to(tokens.device).long()
    context, after = _recorded(model, tokens, lengths, range(layer, layer + 1), begun=begun)
    _require_finite_states(context)
    maps = context.jacobians()
    if context.path == "cache" and _gap(context, maps.outputs) > _limit(context):
        maps = _of_whole_prompts(context).jacobians()
    return maps, after


def _checked(context: FrozenContext, path: Path | None) -> FrozenContext:
    """The context, its one-token run compared with the recorded one."""
    model = context.model
    _require_finite_states(context)
    if context.path == "full":
        return context
    gap, limit = _gap(context, _block_outputs(context)), _limit(context)
    if gap <= limit:
        return context
    if path == "cache":
        raise UnsupportedModelError(
            f"the one-token run of {model.name!r} misses the model's own by {gap:.2g} (limit "
            f"{limit:.0e}): it attends in a way not rebuilt here; leave path out to run whole prompts"
        )
    return _of_whole_prompts(context)


def _of_whole_prompts(context: FrozenContext) -> FrozenContext:
    return replace(context, keys=(), values=(), rotaries=(), path="full")


def _limit(context: FrozenContext) -> float:
    return _TOLERANCE.get(context.states.dtype, _HALF_TOLERANCE)


def _require_finite_states(context: FrozenContext) -> None:
    """Refuse NaN and infinity, naming the first layer where they stand."""
    bad = ~torch.isfinite(context.states).all(-1)  # [boundary, prompt]
    if not bool(bad.any()):
        return
    layer = int(bad.any(1).int().argmax())
    at = context.first + layer
    where = f"the residual stream after layer {at - 1}" if at else "the embedding, before layer 0,"
    raise NonFiniteError(
        f"{where} of {context.model.name!r} holds NaN or infinity at the last token of "
        f"{int(bad[layer].sum())} of {len(context.lengths)} prompts; look at that layer's weights, or load "
        "the model in a wider precision"
    )


def _recorded(
    model: CheckedModel,
    tokens: Tensor,
    lengths: Tensor,
    layers: range,
    *,
    keep: bool = True,
    begun: _Begun | None = None,
) -> tuple[FrozenContext, Tensor]:
    """Run the prompts once; keep the last token's states, keys and values if asked; and the last stream."""
    model.require_blocks()
    keep = keep and all(model.has((0, what)) for what in ("q", "k", "v", "z"))
    # Latent attention keeps its queries and keys head by head, not position by position.
    keep = keep and "MLA" not in type(getattr(model.bridge.blocks[0], "attn", None)).__name__
    place = (lengths - 1)[:, None, None]
    found: dict[Spot, Tensor] = {}

    def last(spot: Spot) -> Edit:
        def hook(x: Tensor) -> None:
            found[spot] = x.detach().gather(1, place.to(x.device).expand(-1, 1, x.shape[-1]))[:, 0]

        return (spot, hook)

    def whole(spot: Spot) -> Edit:
        def hook(x: Tensor) -> None:
            found[spot] = x.detach()

        return (spot, hook)

    end: Spot = (layers[-1], "resid_post")
    spots: list[Spot] = [*((layer, "resid_pre") for layer in layers), end]
    edits = [] if begun is None else [begun.edit()]
    edits += map(last, spots)
    if keep:
        wanted: tuple[What, ...] = ("k", "v", "rot_k") if model.has((0, "rot_k")) else ("k", "v")
        edits += [whole((layer, what)) for layer in layers for what in wanted]
    mark = WeightsMark(model, read=False) if begun is None else begun.mark
    with nullcontext() if begun is None else begun.alone():
        out = run(model, tokens, record=[end], edits=edits, logits=False, finite=False)
    device = tokens.device
    states = torch.stack([found[spot].to(device) for spot in spots])
    if not keep:
        nothing = FrozenContext(model, tokens, lengths, states, (), (), (), "full", mark, begun)
        return nothing, out[end]
    length = tokens.shape[1]
    rotary = first_rotary(model, length) if begun is None else begun.rotary
    if rotary is not None:
        cos, sin = (table[:length].to(device) for table in (rotary.cos, rotary.sin))
        rotary = Rotary(cos, sin, rotary.adjacent)
    keys = tuple(_rotated_keys(found, layer, rotary, device) for layer in layers)
    values = tuple(found[(layer, "v")].to(device) for layer in layers)
    rotaries = (rotary,) * len(layers)
    context = FrozenContext(
        model, tokens, lengths, states, keys, values, rotaries, "cache", mark, begun
    )
    return context, out[end]


def _rotated_keys(
    found: dict[Spot, Tensor], layer: int, rotary: Rotary | None, device: torch.device
) -> Tensor:
    """The keys that queries meet: as the model rotated them where it shows that, else rotated here."""
    keys, ready = found[(layer, "k")].to(device), found.get((layer, "rot_k"))
    if ready is not None and ready.shape == keys.shape:
        return ready.to(device)
    return keys if rotary is None else rotary.rotate(keys.transpose(1, 2)).transpose(1, 2)


def first_rotary(model: CheckedModel, n_positions: int) -> Rotary | None:
    """The rotation of the first layer, None where there is none that can be read.

    One layer is read for all: reading costs a forward pass, and a model whose layers rotate differently
    fails the check of the one-token run and falls back to whole prompts.
    """
    try:
        return read_rotary(model, 0, n_positions)
    except UnsupportedModelError:
        return None


def _block_outputs(context: FrozenContext) -> list[Tensor]:
    """Each block's output in a one-token run from the recorded states."""
    with torch.no_grad():

        def recorded(layer: int) -> Callable[[Tensor], Tensor]:
            return lambda x: context._written(x, context.states[layer][None])

        edits: list[Edit] = [
            ((context.first + layer, "resid_pre"), recorded(layer))
            for layer in range(context.n_layers)
        ]
        return [output[0] for output in context._run(1, edits)]


def _gap(context: FrozenContext, outputs: Sequence[Tensor]) -> float:
    """Largest relative error of a block's output, one-token run against the recorded states."""
    target = context.states[1:]
    error = (torch.stack(list(outputs)).detach() - target).norm(dim=-1)
    error = error / target.norm(dim=-1).clamp_min(1e-30)
    return float(error.max().nan_to_num(nan=float("inf")))
