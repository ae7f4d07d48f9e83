"""Run a model with some blocks left out: a function of the stream stands in, and the block does not run.

An edit (:mod:`lens_linear.models.hooks`) changes what a block wrote after it ran. Here the block itself is
skipped, so that a model without half of its blocks takes half of the time, and a stream that was kept can be
taken one block further without running those before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import forward_logits, residual_streams, run
from lens_linear.models.checked import CheckedModel
from lens_linear.models.hooks import model_lock
from lens_linear.models.spots import Edit

StandIn = Callable[[Float[Tensor, "batch position d_model"]], Tensor]


class BlockStandIns:
    """Lets functions stand in for blocks of one model.

    Made once a model: its blocks run on two tokens, to see what they return.

    Args:
        model: a bridge.

    Raises:
        UnsupportedModelError: a block returns no stream, or the model cannot run.

    Example:
        >>> from lens_linear.models.checked import checked
        >>> from lens_linear.models.open.toy import toy_model
        >>> model, tokens = checked(toy_model(n_layers=2, seed=0)), torch.arange(6)[None]
        >>> whole = run(model, tokens, record=[(0, "resid_post"), (1, "resid_post")])
        >>> further = BlockStandIns(model).advance(tokens, whole[(0, "resid_post")], 1)
        >>> torch.equal(further, whole[(1, "resid_post")])
        True
    """

    def __init__(self, model: CheckedModel) -> None:
        self.model = model
        self._sizes: dict[int, int | None] = {}
        with model_lock(model), ExitStack() as stack:
            for layer, block in enumerate(model.bridge.blocks):
                handle = block.original_component.register_forward_hook(self._learn(layer))
                stack.callback(handle.remove)
            with torch.no_grad():
                forward_logits(model, torch.zeros(1, 2, dtype=torch.int64))
        if len(self._sizes) < model.n_layers:
            raise UnsupportedModelError(
                f"the blocks of {model.name!r} return no residual stream that another function "
                "could return in their place; use lens_linear.linearize, which runs them all"
            )

    def _learn(self, layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._sizes[layer] = None
            elif isinstance(output, tuple) and output and isinstance(output[0], Tensor):
                self._sizes[layer] = len(output)

        return hook

    @contextmanager
    def applied(self, functions: Mapping[int, StandIn]) -> Iterator[None]:
        """While this lasts, the blocks named do not run: functions make their output of their input.

        Another thread that wants to run the same model waits meanwhile.
        """
        parts = {layer: self.model.bridge.blocks[layer].original_component for layer in functions}
        with model_lock(self.model):
            try:
                for layer, function in functions.items():
                    parts[layer].forward = self._forward(function, self._sizes[layer])
                yield
            finally:
                for part in parts.values():
                    part.__dict__.pop("forward", None)

    def advance(
        self,
        tokens: Int[Tensor, "batch position"],
        stream: Float[Tensor, "batch position d_model"],
        layer: int,
    ) -> Float[Tensor, "batch position d_model"]:
        """Take a stream that stands before ``layer`` through that block alone.

        ``tokens`` are those of the stream: what a block reads besides (positions, masks) is made of them.
        """
        skipped = dict.fromkeys(range(layer), _unchanged)
        with self.applied(skipped):
            out = run(
                self.model,
                tokens,
                record=[(layer, "resid_post")],
                edits=[((layer, "resid_pre"), lambda _: stream)],
                logits=False,
            )
        return out[(layer, "resid_post")]

    def resume(
        self,
        tokens: Int[Tensor, "batch position"],
        stream: Float[Tensor, "batch position d_model"],
        layer: int,
        *,
        edits: Sequence[Edit] = (),
    ) -> Float[Tensor, "batch position vocab"]:
        """Logits of a stream that stands before ``layer``, without running the blocks before it.

        Exact where blocks read nothing of earlier ones but the stream: compare with the logits of a whole
        run once.
        """
        here: Edit = ((layer, "resid_pre"), lambda _: stream)
        with self.applied(dict.fromkeys(range(layer), _unchanged)):
            return run(self.model, tokens, edits=[here, *edits]).logits

    @staticmethod
    def _forward(function: StandIn, size: int | None) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            stream = args[0] if args else kwargs["hidden_states"]
            made = function(stream)
            return made if size is None else (made, *[None] * (size - 1))

        return forward


def lone_blocks(model: CheckedModel, tokens: Int[Tensor, "batch position"]) -> BlockStandIns | None:
    """Stand-ins of a model whose blocks can run alone; None where one is seen to read more than the stream.

    Each block is run alone on ``tokens``, from what reached it in a whole run, and has to give what it gave
    there. Blocks that share keys and values with an earlier one do not, nor does a model in which a hook of
    the caller changes the stream between two blocks.

    Example:
        >>> from lens_linear.models.checked import checked
        >>> from lens_linear.models.open.toy import toy_model
        >>> lone_blocks(checked(toy_model(n_layers=2)), torch.arange(6)[None]) is not None
        True
    """
    try:
        stand_ins = BlockStandIns(model)
        streams = residual_streams(model, tokens)
        again = [stand_ins.advance(tokens, x, layer) for layer, x in enumerate(streams[:-1])]
    except Exception:  # whatever a block misses of those before it
        return None
    same = all(
        float((found - want).double().norm()) <= 1e-3 * float(want.double().norm())
        for found, want in zip(again, streams[1:], strict=True)
    )
    return stand_ins if same else None


def _unchanged(stream: Tensor) -> Tensor:
    return stream
