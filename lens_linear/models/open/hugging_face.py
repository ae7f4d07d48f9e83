"""A local Hugging Face folder as a ``TransformerBridge``: safetensors only, and all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformer_lens.model_bridge.sources.transformers.helpers import (
    get_hf_model_class_for_architecture,
)
from transformer_lens.utilities.multi_gpu import count_unique_devices

from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    LensLinearError,
    UnsupportedModelError,
)
from lens_linear.models.capture import model_device, require_runs
from lens_linear.models.checked import checked
from lens_linear.models.native import quiet_transformer_lens
from lens_linear.models.open.gguf import read_gguf
from lens_linear.models.open.untrusted import CONFIG, read_folder
from lens_linear.token_labels import text_label

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_CAUSAL = ("AutoModelForCausalLM", "AutoModelForImageTextToText")


class _WholeWeights:
    """Stands for an ``AutoModel`` class; refuses weights that would be filled up at random.

    ``logits`` are what transformers alone computes for a few tokens, before a bridge takes the model over.
    """

    def __init__(self, auto_class: Any) -> None:
        self.auto_class = auto_class
        self.logits: Tensor | None = None

    def from_pretrained(self, folder: str, **arguments: Any) -> Any:
        model, loaded = self.auto_class.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, **arguments
        )
        missing = sorted(loaded["missing_keys"])
        if missing:
            raise CorruptedFileError(
                f"the weights in {folder!r} lack {len(missing)} tensors that config.json asks for (the "
                f"first is {missing[0]!r}); copy the folder again, or mend its config.json"
            )
        _refuse_cut(folder, loaded["unexpected_keys"], model)
        self.logits = _plain_logits(model)
        return model


def _refuse_cut(folder: str, unused: Iterable[str], model: Any) -> None:
    """Refuse weights of more blocks than the configuration asks for: the model would end in its middle."""
    known = {re.sub(r"\d+", "#", name) for name in model.state_dict()}
    beyond = sorted(name for name in unused if re.sub(r"\d+", "#", name) in known)
    if beyond:
        raise CorruptedFileError(
            f"the weights in {folder!r} hold {len(beyond)} tensors of blocks that config.json does not ask "
            f"for (the first is {beyond[0]!r}), so the model would be cut; mend the number of layers there, "
            "or copy the folder again"
        )


@contextmanager
def never_asking() -> Iterator[None]:
    """Make transformers refuse where it would ask on standard input whether to run a folder's Python."""
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    try:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def placement(
    device: torch.device | None, device_map: str | dict[str, Any] | None
) -> dict[str, Any]:
    """Return where a Hugging Face model goes, as ``boot_transformers`` wants to hear it."""
    if device_map is None:
        return {"device": str(device or "cpu")}
    if device is not None:
        raise InvalidArgumentError(
            f"pass device or device_map, not both; got {str(device)!r} and {device_map!r}"
        )
    return {"device_map": device_map}


def load_hugging_face_folder(
    folder: Path,
    *,
    name: str | None = None,
    device: torch.device | None,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] | None,
    n_ctx: int | None = None,
) -> TransformerBridge:
    """Open a local folder of a causal language model; without a tokenizer it takes token tensors only.

    ``n_ctx`` beyond the model's own context is for rotary models whose rotation does not depend on it; the
    weights never see another.

    Raises:
        CorruptedFileError: files are missing, damaged, or do not fit one another.
        UnsupportedModelError: pickled weights, or no causal language model.
    """
    arguments = placement(device, device_map)
    n_ctx = _longer_context(read_folder(folder), n_ctx)
    try:
        with torch.random.fork_rng(devices=[]), quiet_transformer_lens(), never_asking():
            whole = _WholeWeights(_causal_class(folder))
            if any((folder / file).is_file() for file in _TOKENIZER_FILES):
                model = TransformerBridge.boot_transformers(
                    str(folder.absolute()),  # a bare name may be one that TransformerLens knows
                    **arguments,
                    dtype=dtype,
                    model_class=whole,
                    n_ctx=n_ctx,
                )
            else:
                model = _without_tokenizer(folder, whole, device, dtype, device_map, n_ctx)
    except LensLinearError:
        raise
    except Exception as error:  # many libraries, many classes: one clear error for the caller
        raise _local_error(folder, error) from error
    # For messages and titles: not the whole path.
    model.cfg.model_name = text_label(name or folder.resolve().name)
    _require_faithful(model.eval(), whole.logits)
    return model


def _longer_context(config: dict[str, Any], n_ctx: int | None) -> int | None:
    """What the configuration must say to run ``n_ctx`` tokens, where it may say it; else None.

    The scale of longrope and dynamic rotations is computed from the context that the configuration names, so
    another one there is another model, for short texts too.
    """
    text = config.get("text_config") or config
    own = text.get("max_position_embeddings") or text.get("n_positions")
    kinds = str([value for name, value in text.items() if name.startswith("rope_")])
    turned = any(name.startswith(("rope_", "rotary_")) for name in text)
    scaled = any(kind in kinds for kind in ("'longrope'", "'su'", "'dynamic'"))
    if n_ctx is None or own is None or n_ctx <= own or scaled or not turned:
        return None
    return n_ctx


def load_gguf(path: Path, *, device: torch.device | None, dtype: torch.dtype) -> TransformerBridge:
    """Open a GGUF file, dequantised; the model's name says so.

    Raises:
        OfflineError: the package ``gguf`` is not installed.
        CorruptedFileError: the file is cut short.
        UnsupportedModelError: transformers or TransformerLens do not open it.
    """
    read = read_gguf(path, dtype=dtype)
    expected = _plain_logits(read.model)
    try:
        with torch.random.fork_rng(devices=[]), quiet_transformer_lens(), never_asking():
            hf_model = read.model if device is None else read.model.to(device)
            if read.tokenizer is None:
                model = _bridge_without_tokenizer(hf_model, path)
            else:
                # Without this mark TransformerLens loads the tokenizer anew from where it came from.
                read.tokenizer.init_kwargs["add_bos_token"] = True
                model = TransformerBridge.boot_transformers(
                    str(path.absolute()), hf_model=hf_model, tokenizer=read.tokenizer, dtype=dtype
                )
    except Exception as error:
        raise _local_error(path, error) from error
    model.cfg.model_name = f"{text_label(path.stem)} (dequantised {read.quantization})"
    _require_faithful(model.eval(), expected)
    return model


def _plain_logits(hf_model: Any) -> Tensor | None:
    """Return what transformers computes for a few tokens; None where it wants more than tokens."""
    try:
        tokens = _few_tokens(hf_model.get_input_embeddings().weight)
        with torch.no_grad():
            logits: Tensor = hf_model.eval()(tokens, use_cache=False).logits
            return logits.float().cpu()
    except Exception:
        return None


def _few_tokens(table: Tensor) -> Tensor:
    """Sixteen tokens spread over the vocabulary: rows at its beginning are often never trained."""
    return torch.linspace(0, len(table) - 1, 16, dtype=torch.float64).long().to(table.device)[None]


def _require_faithful(model: TransformerBridge, expected: Tensor | None) -> None:
    """Refuse a bridge that does not run, gives no numbers, or other logits than transformers alone."""
    table = model.embed.weight if hasattr(model.embed, "weight") else torch.zeros(8)
    logits = require_runs(checked(model), _few_tokens(table)).float().cpu()
    if expected is None or expected.shape != logits.shape:
        return
    if not expected.isfinite().all():
        raise CorruptedFileError(
            f"transformers itself computes NaN or infinite logits for {model.cfg.model_name!r}: its weights "
            "are damaged, or overflow in this precision; get the files again, or pass dtype=torch.float32"
        )
    gap = float((logits - expected).norm() / expected.norm().clamp_min(1e-30))
    if not gap <= (1e-3 if model.cfg.dtype in (torch.float32, torch.float64) else 0.25):
        raise UnsupportedModelError(
            f"TransformerLens computes other logits for {model.cfg.model_name!r} than transformers itself "
            f"(relative gap {gap:.2g}): it ignores something in {CONFIG}, so every number would be of "
            "another model; use a model that it opens faithfully"
        )


def _causal_class(folder: Path) -> Any:
    """Return the ``AutoModel`` class of the folder's architecture, if it predicts the next token."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    architecture = determine_architecture_from_hf_config(config)
    auto_class = get_hf_model_class_for_architecture(architecture)
    if auto_class.__name__ not in _CAUSAL:
        raise UnsupportedModelError(
            f"{str(folder)!r} holds a {architecture}, which is no causal language model; pass a model "
            "that predicts the next token from the ones before it"
        )
    return auto_class


def _without_tokenizer(
    folder: Path,
    whole: _WholeWeights,
    device: torch.device | None,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] | None,
    n_ctx: int | None,
) -> TransformerBridge:
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager"}
    if n_ctx is not None:
        arguments["max_position_embeddings"] = n_ctx
    if device_map is not None:
        arguments["device_map"] = device_map
    hf_model = whole.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False, **arguments
    )
    if device is not None:
        hf_model = hf_model.to(device)
    bridge = _bridge_without_tokenizer(hf_model, folder)
    if device_map is not None:
        # What TransformerLens needs to know to gather the weights of layers on several devices.
        bridge.cfg.device = str(model_device(bridge))
        bridge.cfg.n_devices = count_unique_devices(hf_model)
    return bridge


def _bridge_without_tokenizer(hf_model: Any, path: Path) -> TransformerBridge:
    return build_bridge_from_module(
        hf_model, type(hf_model).__name__, hf_config=hf_model.config, model_name=str(path)
    )


def _local_error(folder: Path, error: Exception) -> LensLinearError:
    seen = type(error).__name__ + str(error)
    if "remote_code" in seen or "custom code" in seen:
        return UnsupportedModelError(
            f"{str(folder)!r} needs Python of its own (auto_map); code in a model folder is never run: use a "
            "model, and a tokenizer, that transformers itself knows"
        )
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    if "ignore_mismatched_sizes" in seen:
        return CorruptedFileError(
            f"the weights in {str(folder)!r} have other shapes than {CONFIG} says; they belong to another "
            "model: copy the folder again"
        )
    if any(word in seen for word in ("Safetensor", "header", "corrupt")):
        return CorruptedFileError(
            f"the weights in {str(folder)!r} cannot be read ({text}); copy the folder again"
        )
    return UnsupportedModelError(
        f"TransformerLens could not open {str(folder)!r} ({text}); check that it holds a causal language "
        "model in Hugging Face format (config.json, *.safetensors)"
    )
