"""A model that was checked once, with the facts that analyses ask for: what they hand down to one another.

A public function takes a bridge and makes a :class:`CheckedModel` of it; what it calls gets that and checks
nothing again. Facts are read when they are asked for, so that a model is described as it is then.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.checks import counted, require_int
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.models.spots import NAMES, Spot, find_spot

NormKind = Literal["none", "layer", "rms"]

# What is left of a model whose weights or heads cannot be read, for messages.
STILL_WORK = "linearity_profile and the other analyses of activations still work"

_LAST_IDS: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class CheckedModel:
    """A causal decoder with one stack of blocks: the bridge, its sizes, its vocabulary and its norms.

    Every function that takes a bridge takes one of these too, and then checks nothing again.

    Attributes:
        bridge: the model itself; not changed.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> checked(toy_model(n_layers=3))
        CheckedModel 'toy': 3 layers × 4 heads, d_model 32, vocabulary 64
    """

    bridge: TransformerBridge

    def __repr__(self) -> str:
        return (
            f"CheckedModel {self.name!r}: {counted(self.n_layers, 'layer')} × "
            f"{counted(self.n_heads, 'head')}, d_model {self.d_model}, vocabulary {self.d_vocab}"
        )

    @property
    def cfg(self) -> Any:
        """TransformerLens' configuration, for what has no name here."""
        return self.bridge.cfg

    @property
    def stored_config(self) -> Any:
        """The configuration that transformers keeps with the weights, None for other models."""
        return getattr(getattr(self.bridge, "original_model", None), "config", None)

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(getattr(self.cfg, "model_name", "?"))

    @property
    def n_layers(self) -> int:
        """Blocks."""
        return int(self.cfg.n_layers)

    @property
    def n_heads(self) -> int:
        """Attention heads a block; 0 for a model without layers."""
        return int(getattr(self.cfg, "n_heads", 0) or 0) if self.n_layers else 0

    @property
    def n_key_value_heads(self) -> int:
        """Keys and values a block, fewer than heads where these share them."""
        return int(getattr(self.cfg, "n_key_value_heads", None) or self.n_heads)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.cfg.d_model)

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return int(self.cfg.d_head)

    @property
    def d_vocab(self) -> int:
        """Rows of the vocabulary."""
        return int(self.cfg.d_vocab)

    @property
    def d_vocab_out(self) -> int:
        """Logits a position."""
        out = int(getattr(self.cfg, "d_vocab_out", -1) or -1)
        return out if out > 0 else self.d_vocab

    @property
    def n_ctx(self) -> int:
        """Longest sequence."""
        return int(self.cfg.n_ctx)

    @property
    def eps(self) -> float:
        """What norms add to the variance; 0 without norms."""
        return float(getattr(self.cfg, "eps", 0.0) or 0.0)

    @property
    def n_ffn(self) -> int:
        """Blocks with an MLP."""
        return sum(self.has((layer, "ffn_out")) for layer in range(self.n_layers))

    @property
    def n_post_norm(self) -> int:
        """Blocks whose attention output passes another norm before it is added."""
        return sum(hasattr(self.bridge.blocks[at], "ln1_post") for at in range(self.n_layers))

    @property
    def positions(self) -> str:
        """How positions come in: "standard", "rotary", "none", ..."""
        return str(getattr(self.cfg, "positional_embedding_type", None) or "standard").lower()

    @property
    def is_causal(self) -> bool:
        """Whether tokens see earlier ones only, as the configuration has it."""
        return bool(getattr(self.cfg, "attention_dir", "causal") == "causal")

    @property
    def logit_softcap(self) -> float | None:
        """Bound of the logits (``cap * tanh(logits / cap)``), None where they are not bounded."""
        return _bound(self.cfg, "output_logits_soft_cap")

    @property
    def score_softcap(self) -> float | None:
        """Bound of the attention scores (Gemma 2), None where they are not bounded."""
        return _bound(self.cfg, "attn_scores_soft_cap")

    @property
    def device(self) -> torch.device:
        """Where the model wants its tokens."""
        weight = getattr(self.bridge.embed, "weight", None)
        return (next(self.bridge.parameters()) if weight is None else weight).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights, as the first of them has it."""
        return next(self.bridge.parameters()).dtype

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, None without one."""
        return getattr(self.bridge, "tokenizer", None)

    @property
    def bos(self) -> int | None:
        """Id of the beginning-of-sequence token, None where the model knows none.

        TransformerLens gives a tokenizer without one a token that the model has no row for, or that the
        tokenizer reads as unknown: none either.
        """
        tokenizer = self.tokenizer
        value = getattr(tokenizer, "bos_token_id", None)
        if value is None or int(value) >= self.d_vocab:
            return None
        unknown = value == getattr(tokenizer, "unk_token_id", None)
        return None if unknown and tokenizer.bos_token != tokenizer.unk_token else int(value)

    @property
    def n_tokens(self) -> int:
        """Rows of the vocabulary that stand for tokens: those up to the tokenizer's last one.

        Vocabularies are often padded to a round number; what stands behind the last token was never trained.
        """
        tokenizer, n_vocab = self.tokenizer, self.d_vocab
        if tokenizer is None or len(tokenizer) >= n_vocab:
            return n_vocab
        known = _LAST_IDS.get(tokenizer)
        if known is None or known[0] != len(tokenizer):
            # Ids can have holes, so the number of tokens is not enough.
            known = _LAST_IDS[tokenizer] = len(tokenizer), max(tokenizer.get_vocab().values()) + 1
        return min(known[1], n_vocab)

    @property
    def norm(self) -> NormKind:
        """The kind of its norms: "none", "layer" (centres, then divides) or "rms".

        Raises:
            UnsupportedModelError: another kind.
        """
        name = self.cfg.normalization_type
        if name is None:
            return "none"
        if name.upper() in ("LN", "LNPRE"):
            return "layer"
        if name.upper() in ("RMS", "RMSPRE"):
            return "rms"
        raise UnsupportedModelError(
            f"norm {name!r} is neither LayerNorm, RMSNorm nor none, so weights cannot be folded; {STILL_WORK}"
        )

    @property
    def reading_norm(self) -> NormKind:
        """The norm before the attention: none where blocks have post-norms only (OLMo 2)."""
        blocks = [self.bridge.blocks[layer] for layer in range(self.n_layers)]
        if blocks and not any(hasattr(block, "ln1") for block in blocks):
            return "none"
        return self.norm

    @property
    def final_norm(self) -> NormKind:
        """The norm before the unembedding; ``cfg.final_rms`` makes it RMS in any model."""
        return "rms" if getattr(self.cfg, "final_rms", False) else self.norm

    def has(self, spot: Spot) -> bool:
        """Say whether the model has a hook point at ``(layer, what)``."""
        return find_spot(self.bridge, *spot) is not None

    def hook_name(self, spot: Spot) -> str:
        """Return the canonical name of the hook point at ``(layer, what)``.

        Raises:
            InvalidArgumentError: no spot of this model.
            UnsupportedModelError: the model does not show it.
        """
        if not isinstance(spot, tuple) or len(spot) != 2:
            raise InvalidArgumentError(f"a spot must be a pair (layer, what), got {spot!r}")
        layer, what = spot
        if type(layer) is not int or not 0 <= layer < self.n_layers:
            require_int("layer", layer, minimum=0, maximum=self.n_layers - 1)
        if not isinstance(what, str) or what not in NAMES:
            raise InvalidArgumentError(f"what must be one of {sorted(NAMES)}, got {what!r}")
        found = find_spot(self.bridge, layer, what)
        if found is None:
            raise UnsupportedModelError(
                f"model {self.name!r} has no {what!r} in layer {layer}; "
                f"looked for {[f'blocks.{layer}.{n}' for n in NAMES[what]]}; name another spot, e.g. "
                f"({layer}, 'resid_pre')"
            )
        return found

    def require_causal(self) -> CheckedModel:
        """Refuse a model whose tokens see later ones.

        Raises:
            UnsupportedModelError: the configuration says so.
        """
        if not self.is_causal:
            raise UnsupportedModelError(
                f"model {self.name!r} must be causal, but its configuration says "
                f"attention_dir={self.cfg.attention_dir!r}: its tokens see later ones; use a decoder such as "
                "gpt2"
            )
        return self

    def require_blocks(self) -> CheckedModel:
        """Refuse a model without layers."""
        if not self.n_layers:
            raise UnsupportedModelError(
                f"model {self.name!r} has no blocks; use one with layers, such as load('attn-2l')"
            )
        return self


ModelLike = TransformerBridge | CheckedModel


def checked(model: ModelLike) -> CheckedModel:
    """Accept a ``TransformerBridge`` with a stack of blocks; anything else gets advice.

    Args:
        model: a bridge; what was checked before comes back as it is.

    Returns:
        CheckedModel.

    Raises:
        InvalidArgumentError: no bridge.
        UnsupportedModelError: no single stack of blocks, or an encoder.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = checked(toy_model(n_layers=3))
        >>> checked(model) is model, model.n_layers, model.n_ffn
        (True, 3, 0)
    """
    if isinstance(model, CheckedModel):
        return model
    if not isinstance(model, TransformerBridge):
        raise InvalidArgumentError(
            f"model must be a TransformerBridge, got {type(model).__name__}; "
            "use lens_linear.load(name_or_folder) or TransformerBridge.boot_transformers(name)"
        )
    found = CheckedModel(model)
    if not hasattr(model, "blocks") or not hasattr(model, "embed"):
        raise UnsupportedModelError(
            f"model {found.name!r} has no single stack of blocks; use a causal decoder such as gpt2"
        )
    # A native model that looks both ways is still a sum of paths; an encoder is nothing we know.
    if getattr(model.cfg, "architecture", None) != "TransformerLensNative":
        found.require_causal()
    return found


def _bound(cfg: Any, name: str) -> float | None:
    value = float(getattr(cfg, name, -1.0) or -1.0)
    return value if value > 0 else None
