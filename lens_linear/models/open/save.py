"""Write a model of one's own as a folder that ``load`` and every command open."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.checks import require_instance, require_name, require_path, shown
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.files import require_folder, require_writable, write_together
from lens_linear.models.checked import checked
from lens_linear.models.native import ModelSpec, native_module, spec_of
from lens_linear.models.open.cards import CARD, SPECIAL_TOKENS, TOKENIZER, WEIGHTS, card_text

_INSIDE = "_original_component."


def save_model(
    model: TransformerBridge,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    bos: str | None = None,
    note: str = "",
) -> Path:
    """Write a native model (trained with ``train``, a toy, bundled) as a folder: weights, card, tokenizer.

    Weights are kept as they are, without rounding. A folder's older model is replaced.

    Args:
        model: a native bridge, such as ``train(...).model``.
        folder: made if it is not there; its name is the model's.
        tokenizer: of the ``tokenizers`` library, or as Hugging Face wraps one; the model's own if it has
            one. None writes none: then the model takes token tensors.
        bos: the token that begins a text, for a tokenizer that has one.
        note: one sentence for the card.

    Returns:
        The folder; ``lens_linear.load(folder)`` opens it.

    Raises:
        InvalidArgumentError: ``bos`` is no token of the tokenizer.
        UnsupportedModelError: not a native model of a shape that ``ModelSpec`` can tell.
        WriteError: the disk is full or the folder may not be written to.

    Example:
        >>> import tempfile
        >>> from lens_linear.models.open.load import load
        >>> from lens_linear.models.open.toy import toy_model
        >>> with tempfile.TemporaryDirectory() as place:
        ...     load(save_model(toy_model(n_layers=1), Path(place) / "mine")).cfg.model_name
        'mine'
    """
    model = checked(model).bridge
    require_instance("note", note, str, advice="one sentence")
    if bos is not None:
        require_instance("bos", bos, str, advice="the text of one token")
    spec = spec_of(model)
    state = _state(model, spec)
    words = _tokenizer(getattr(model, "tokenizer", None) if tokenizer is None else tokenizer)
    if bos is not None and (words is None or words[0].token_to_id(bos) is None):
        raise InvalidArgumentError(
            f"bos must be a token of the tokenizer, got {shown(bos)}; leave it out, or pass tokenizer="
        )
    require_name("the folder's name", require_path("folder", folder).resolve().name)
    place = require_folder("folder", folder)
    if not (place / CARD).is_file() and (place / "config.json").exists():
        raise InvalidArgumentError(
            f"folder {str(place)!r} holds another kind of model (config.json), whose files would stay beside "
            "the new ones; choose a folder that is empty, or not there yet"
        )
    if words is None:
        require_writable(place / TOKENIZER)  # it goes, when there is one
    weights = save({name: value.contiguous() for name, value in state.items()}, {"format": "pt"})
    card: dict[str, Any] = {
        "name": place.resolve().name,
        "spec": spec.to_dict(),
        "note": note,
        "parameters": sum(value.numel() for value in native_module(spec).parameters()),
        "bos": words[1].get("bos_token") if bos is None and words is not None else bos,
        "special_tokens": {} if words is None else words[1],
        "sha256": hashlib.sha256(weights).hexdigest(),
        "checkpoints": {},
    }
    tokens = {} if words is None else {place / TOKENIZER: words[0].to_str(pretty=True).encode()}
    # The card comes last: a folder is a model once it is there, and an older model stays until then.
    write_together({place / CARD: card_text(card).encode(), **tokens, place / WEIGHTS: weights})
    if words is None:
        (place / TOKENIZER).unlink(missing_ok=True)
    return place


def _state(model: TransformerBridge, spec: ModelSpec) -> dict[str, Tensor]:
    """Weights by the names of the bare module, out of the bridge that wraps its parts."""
    found = {
        name.replace(_INSIDE, ""): value
        for name, value in model.original_model.state_dict().items()
    }
    known = native_module(spec).state_dict()
    lost = sorted(known.keys() - found.keys())
    wrong = sorted(n for n in known.keys() & found.keys() if known[n].shape != found[n].shape)
    bias = found.get("head.bias")
    if "head.bias" not in known and bias is not None and bool(bias.any()):
        wrong.append("head.bias")
    if lost or wrong:
        raise UnsupportedModelError(
            f"model {model.cfg.model_name!r} is no native model of a known shape ({(lost + wrong)[0]!r} does "
            "not fit); keep a Hugging Face model with its own save_pretrained, and a state dict of "
            "HookedTransformer as it is, with its config"
        )
    return {name: found[name].detach().clone() for name in known}


def _tokenizer(held: Any) -> tuple[Tokenizer, dict[str, str]] | None:
    """The tokenizer in the library's own class, and what it calls its special tokens."""
    if held is None:
        return None
    if isinstance(held, Tokenizer):
        return held, {}
    inner: Tokenizer = require_instance(
        "tokenizer",
        getattr(held, "backend_tokenizer", None),
        Tokenizer,
        advice="pass a tokenizers.Tokenizer or a fast tokenizer",
    )
    # TransformerLens gives a tokenizer without a beginning a token that it does not know.
    special = {name: getattr(held, name, None) for name in SPECIAL_TOKENS}
    known = {name: str(token) for name, token in special.items() if token is not None}
    return inner, {n: token for n, token in known.items() if inner.token_to_id(token) is not None}
