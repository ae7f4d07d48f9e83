"""The few facts about a model's shape that analyses on higher floors ask for."""

from __future__ import annotations

from dataclasses import dataclass

from transformer_lens.model_bridge import TransformerBridge

from lens_linear.models.hooks import has_spot, require_bridge
from lens_linear.models.tokenizer import bos_token, n_known_tokens


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, and what its blocks hold.

    ``n_heads`` is 0 for a model without layers. ``n_ffn`` counts the blocks with an MLP, ``n_post_norm``
    those whose attention output passes another norm before it is added. ``bos`` is the id of the
    beginning-of-sequence token, None without a tokenizer or when it has none. ``logit_softcap`` bounds
    the logits (``cap * tanh(logits / cap)``), None where they are not bounded. ``n_tokens`` counts the rows
    of the vocabulary that stand for tokens; padded vocabularies have more.
    """

    name: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    n_ffn: int
    n_post_norm: int
    positions: str  # "standard", "rotary", "none", ...
    logit_softcap: float | None
    bos: int | None
    n_tokens: int


def model_shape(model: TransformerBridge) -> ModelShape:
    """Read the shape of a model.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> shape = model_shape(toy_model(n_layers=3))
        >>> shape.n_layers, shape.n_heads, shape.n_ffn
        (3, 4, 0)
    """
    model = require_bridge(model)
    cfg = model.cfg
    layers = range(cfg.n_layers)
    n_heads = int(cfg.n_heads) if cfg.n_layers else 0
    softcap = float(getattr(cfg, "output_logits_soft_cap", -1.0) or -1.0)
    out = int(getattr(cfg, "d_vocab_out", -1) or -1)
    return ModelShape(
        name=str(cfg.model_name),
        n_layers=int(cfg.n_layers),
        n_heads=n_heads,
        n_key_value_heads=int(getattr(cfg, "n_key_value_heads", None) or n_heads),
        d_model=int(cfg.d_model),
        d_head=int(cfg.d_head),
        d_vocab=int(cfg.d_vocab),
        d_vocab_out=out if out > 0 else int(cfg.d_vocab),
        n_ctx=int(cfg.n_ctx),
        n_ffn=sum(has_spot(model, (layer, "ffn_out")) for layer in layers),
        n_post_norm=sum(hasattr(model.blocks[layer], "ln1_post") for layer in layers),
        positions=str(getattr(cfg, "positional_embedding_type", None) or "standard").lower(),
        logit_softcap=softcap if softcap > 0 else None,
        bos=bos_token(model),
        n_tokens=n_known_tokens(model),
    )
