"""Shapes of small native models, and how one becomes a ``TransformerBridge`` without the network."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.model_bridge.sources.native import NativeModel, initialize_native_model
from transformer_lens.model_bridge.sources.native.model import NativeAttention

from lens_linear.checks import (
    require_bool,
    require_choice,
    require_instance,
    require_int,
    require_seed,
)
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.linalg.memory import require_room

Norm = Literal["none", "LN", "LNPre", "RMS"]
Activation = Literal["gelu", "relu", "silu"]
Positions = Literal["standard", "none", "rotary"]
Attention = Literal["softmax", "linear"]

_NORMS = {"none": None, "LN": "LN", "LNPre": "LNPre", "RMS": "RMS"}


@dataclass(frozen=True)
class ModelSpec:
    """Everything that fixes the shape of a small native model (no weights).

    Args:
        n_layers: blocks, 0 or more.
        d_model: width of the residual stream.
        n_heads: attention heads a block; must divide ``d_model`` (``d_head = d_model / n_heads``).
        d_vocab: tokens in the vocabulary.
        n_ctx: longest sequence.
        attn_only: leave out the MLPs.
        norm: ``"none"``, ``"LN"`` (learnt weight and bias), ``"LNPre"`` (no parameters) or ``"RMS"``.
        activation: of the MLP.
        gated: gated MLP (as in Llama) of width ``d_mlp``.
        d_mlp: MLP width; ``4 * d_model`` when 0.
        positions: ``"standard"`` (learnt, added), ``"none"`` (the same with a table of zeros that
            training leaves alone) or ``"rotary"``.
        attention: ``"softmax"``, or ``"linear"``: the scores themselves are the pattern.
        causal: False lets every token see every other one.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_vocab: int
    n_ctx: int = 128
    attn_only: bool = False
    norm: Norm = "LN"
    activation: Activation = "gelu"
    gated: bool = False
    d_mlp: int = 0
    positions: Positions = "standard"
    attention: Attention = "softmax"
    causal: bool = True

    def __post_init__(self) -> None:
        require_int("n_layers", self.n_layers, minimum=0)
        for name in ("d_model", "n_heads", "d_vocab", "n_ctx"):
            require_int(name, getattr(self, name), minimum=1)
        require_int("d_mlp", self.d_mlp, minimum=0)
        require_choice("norm", self.norm, _NORMS)
        require_choice("activation", self.activation, ("gelu", "relu", "silu"))
        require_choice("positions", self.positions, ("standard", "none", "rotary"))
        require_choice("attention", self.attention, ("softmax", "linear"))
        require_bool("causal", self.causal)
        if self.d_model % self.n_heads:
            raise InvalidArgumentError(
                f"d_model must be a multiple of n_heads, got {self.d_model} and {self.n_heads}; "
                "choose e.g. d_model=128, n_heads=4"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """Build a spec from plain values, as a card or a recipe file holds them."""
        require_instance(
            "the model shape", values, dict, advice="pass a dict of ModelSpec's fields"
        )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - known))
        if unknown:
            raise InvalidArgumentError(
                f"the model shape has unknown entries {unknown}; use some of {sorted(known)}"
            )
        needed = {"n_layers", "d_model", "n_heads", "d_vocab"}
        if needed - set(values):
            raise InvalidArgumentError(
                f"the model shape lacks {sorted(needed - set(values))}; give n_layers, d_model, "
                "n_heads and d_vocab"
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``from_dict`` reads back."""
        return dataclasses.asdict(self)

    def config(self, *, seed: int | None = None) -> TransformerBridgeConfig:
        """Return TransformerLens' configuration for this shape."""
        return TransformerBridgeConfig(
            n_layers=self.n_layers,
            d_model=self.d_model,
            n_heads=self.n_heads,
            d_head=self.d_model // self.n_heads,
            d_vocab=self.d_vocab,
            n_ctx=self.n_ctx,
            d_mlp=self.d_mlp or 4 * self.d_model,
            act_fn=self.activation,
            gated_mlp=self.gated,
            attn_only=self.attn_only,
            normalization_type=_NORMS[self.norm],
            positional_embedding_type="rotary" if self.positions == "rotary" else "standard",
            attention_dir="causal" if self.causal else "bidirectional",
            init_weights=self.n_layers > 0,
            seed=seed,
        )


class LinearAttention(NativeAttention):
    """Attention without softmax: ``pattern = mask ⊙ q kᵀ / √d_head``, ``out = pattern v W_O``."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pattern_fn: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Output and pattern, as the softmax attention that it stands in for gives them."""
        batch, seq, _ = hidden_states.shape
        q, k, v = (
            part(hidden_states).view(batch, seq, self.n_heads, self.d_head).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        if self.rotary is not None:
            q, k = self.rotary.apply_rope(q, k, position_ids=position_ids)
        hidden = self.causal_mask[:seq, :seq] & self.causal
        if attention_mask is not None:
            hidden = self._combine_attention_mask(hidden, attention_mask, batch=batch)
        pattern = (q @ k.transpose(-2, -1) / self.scale).masked_fill(hidden, 0.0)
        if pattern_fn is not None:
            pattern = pattern_fn(pattern)
        return self.o((pattern @ v).transpose(1, 2).reshape(batch, seq, -1)), pattern


def spec_of(model: TransformerBridge) -> ModelSpec:
    """Return the shape of a native bridge.

    Raises:
        UnsupportedModelError: not a native model, or one that no ``ModelSpec`` describes.
    """
    cfg: Any = model.cfg
    kinds = {stored: name for name, stored in _NORMS.items()}
    try:
        spec = ModelSpec(
            n_layers=cfg.n_layers,
            d_model=cfg.d_model,
            n_heads=cfg.n_heads,
            d_vocab=cfg.d_vocab,
            n_ctx=cfg.n_ctx,
            attn_only=bool(cfg.attn_only),
            norm=kinds[cfg.normalization_type],  # type: ignore[arg-type]
            activation=cfg.act_fn,
            gated=bool(cfg.gated_mlp),
            d_mlp=0 if cfg.attn_only else cfg.d_mlp,
            positions="rotary" if cfg.positional_embedding_type == "rotary" else "standard",
        )
        native = cfg.architecture == "TransformerLensNative"
        built = spec.config()
        same = all(
            getattr(cfg, name) == getattr(built, name)
            for name in (
                "d_head",
                "attention_dir",
                "n_key_value_heads",
                "output_logits_soft_cap",
                "eps",
            )
        )
    except (KeyError, AttributeError, ValueError):
        native = same = False
    if not (native and same):
        raise UnsupportedModelError(
            f"model {cfg.model_name!r} is no native model of a shape that ModelSpec tells; keep a Hugging "
            "Face model with its own save_pretrained, and a state dict of HookedTransformer as it is, "
            "with its config"
        )
    return spec


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Build in float32 on the processor, whatever torch's default type and device are set to."""
    dtype = torch.get_default_dtype()
    try:
        if dtype is not torch.float32:
            torch.set_default_dtype(torch.float32)
        with torch.device("cpu"):
            yield
    finally:
        if dtype is not torch.float32:
            torch.set_default_dtype(dtype)


@plain_defaults()
def native_module(spec: ModelSpec, *, seed: int = 0) -> NativeModel:
    """Build the bare torch module for ``spec`` with seeded random weights (fast to train).

    The global random generator is left as it was. With no layers TransformerLens' own initialiser
    divides by zero, so embedding and unembedding are drawn here from the same N(0, 0.64/d_model).
    """
    seed = require_seed(seed)
    config = spec.config(seed=seed)
    mlps = 0 if spec.attn_only else 3 if spec.gated else 2
    each_layer = 4 * spec.d_model + mlps * (config.d_mlp or 0)
    positions = 0 if spec.positions == "rotary" else spec.n_ctx
    numbers = spec.d_model * (2 * spec.d_vocab + positions + spec.n_layers * each_layer)
    require_room(
        4 * numbers,
        "cpu",
        what=f"a model of {numbers:,} parameters",
        advice="make d_vocab, n_ctx, d_model or n_layers smaller",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = NativeModel(config)
        if spec.n_layers:
            initialize_native_model(module, config)
        else:
            scale = 0.8 * spec.d_model**-0.5
            for name, weight in module.named_parameters():
                if not name.startswith("ln_out"):
                    torch.nn.init.normal_(weight, std=scale)
    if spec.attention == "linear":
        for layer in module.layers:
            linear = LinearAttention(config, rotary=module.rotary)
            linear.load_state_dict(layer.attn.state_dict())
            layer.attn = linear
    if spec.positions == "none" and module.pos is not None:
        torch.nn.init.zeros_(module.pos.weight)
        module.pos.weight.requires_grad_(False)
    return module


def bridge_from_module(
    module: NativeModel, spec: ModelSpec, *, tokenizer: Any = None, name: str = "native"
) -> TransformerBridge:
    """Wrap a native module as a ``TransformerBridge`` in evaluation mode."""
    with quiet_transformer_lens():
        bridge = build_bridge_from_module(
            module,
            architecture="TransformerLensNative",
            tl_config=spec.config(),
            tokenizer=tokenizer,
            model_name=name,
        )
    bridge.eval()
    return bridge


@contextmanager
def quiet_transformer_lens(*others: str) -> Iterator[None]:
    """Silence TransformerLens' warnings, and others', about choices that are made here on purpose."""
    loggers = [logging.getLogger(name) for name in (None, "transformer_lens", *others)]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def no_bars_of_libraries() -> Iterator[None]:
    """No bar of transformers' own, for who says already what is waited for, or nothing at all."""
    from transformers.utils import logging as words

    shown = words.is_progress_bar_enabled()
    words.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            words.enable_progress_bar()


def rebuilt(config: TransformerBridgeConfig, weights: dict[str, Tensor]) -> TransformerBridge:
    """Build a native bridge again from its configuration and weights."""
    with quiet_transformer_lens(), torch.random.fork_rng(devices=[]):
        bridge = build_bridge_from_module(
            NativeModel(config),
            architecture="TransformerLensNative",
            tl_config=config,
            tokenizer=None,
            model_name="native",
        )
    bridge.load_state_dict(weights)
    return bridge.eval()


def recipe_of_native(
    model: TransformerBridge,
) -> tuple[Callable[..., TransformerBridge], tuple[TransformerBridgeConfig, dict[str, Tensor]]]:
    """Return how to build this native model again, in the form that ``pickle`` takes.

    Bridges themselves do not pickle: they hold functions that are defined inside functions.
    """
    return rebuilt, (model.cfg, dict(model.state_dict()))
