"""Open a model: bundled, a local folder, or a name on the Hugging Face Hub."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import tl_legacy
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.supported_models import DEFAULT_MODEL_ALIASES, get_official_model_name

from lens_linear._checks import require_device, require_int
from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    LensLinearError,
    OfflineError,
    UnknownModelError,
    UnsupportedModelError,
)
from lens_linear.models.bundled import BUNDLED, bundled_names
from lens_linear.models.folder import CARD, load_folder
from lens_linear.models.spec import quiet_transformer_lens

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


@torch.inference_mode(False)  # weights made under it could not be differentiated through
def load(
    name: str | Path,
    *,
    checkpoint: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    device_map: str | dict[str, Any] | None = None,
) -> TransformerBridge:
    """Open a model as a ``TransformerBridge`` in evaluation mode, with the weights as stored.

    Tried in this order: a bundled name (no network), a folder written by ``lens-linear train``, a local
    Hugging Face folder, the old attention-only Hub names (``NeelNanda/Attn_Only_2L512W_C4_Code``), any
    other Hub name. Only the last two may use the network.

    Args:
        name: e.g. ``"attn-2l"``, ``"gpt-micro@300"``, ``"path/to/folder"``, ``"gpt2"``.
        checkpoint: training step of a bundled model whose checkpoints were kept.
        device: where to put it; the processor by default. Not together with ``device_map``.
        dtype: of the weights.
        device_map: spread a Hugging Face model over devices, as ``accelerate`` does.

    Returns:
        The bridge. Nothing is folded and compatibility mode is never switched on.

    Raises:
        UnknownModelError: no such model; the message lists the nearest names.
        OfflineError: a Hub model is not in the local cache and the network is not to be had.
        CorruptedFileError: the weights do not match their checksum, or cannot be read.
        UnsupportedModelError: TransformerLens cannot open this architecture as one stack of blocks.

    Example:
        >>> load("attn-2l").cfg.n_layers
        2
    """
    if not isinstance(name, (str, Path)) or not str(name).strip():
        raise InvalidArgumentError(
            f"name must be a model name or a folder, got {name!r}; see lens_linear.available_models()"
        )
    if device is not None:
        device = require_device("device", device)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidArgumentError(
            f"dtype must be a floating torch dtype, got {dtype!r}; e.g. torch.bfloat16"
        )
    text = str(name)
    if checkpoint is None and "@" in text and text.split("@")[0] in bundled_names():
        text, _, step = text.partition("@")
        if not step.isdigit():
            raise UnknownModelError(f"checkpoint in {str(name)!r} must be a step, e.g. {text}@300")
        checkpoint = int(step)
    if checkpoint is not None:
        require_int("checkpoint", checkpoint, minimum=0)
    if text in bundled_names():
        return _placed(load_folder(BUNDLED / text, checkpoint=checkpoint), device, dtype)
    folder = Path(text).expanduser()
    if folder.is_dir():
        if (folder / CARD).is_file():
            return _placed(load_folder(folder, checkpoint=checkpoint), device, dtype)
        return _local(folder, device, dtype, device_map)
    if folder.is_file():
        raise InvalidArgumentError(
            f"name must be a folder or a model name, but {text!r} is a file; pass its folder"
        )
    if checkpoint is not None:
        raise InvalidArgumentError(
            f"checkpoint is for bundled models, got it with {text!r}; bundled: {bundled_names()}"
        )
    return _from_hub(text, device, dtype, device_map)


def _placed(
    model: TransformerBridge, device: str | torch.device | None, dtype: torch.dtype
) -> TransformerBridge:
    if dtype != torch.float32:
        model = model.to(dtype)
        model.cfg.dtype = dtype  # TransformerLens leaves it at float32
    if device is not None:
        model = model.to(device)
    return model.eval()


def _local(
    folder: Path,
    device: str | torch.device | None,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] | None,
) -> TransformerBridge:
    if not (folder / "config.json").is_file():
        raise UnknownModelError(
            f"folder {str(folder)!r} holds neither config.json (a Hugging Face model) nor {CARD} (a model "
            "trained with `lens-linear train`); pass the folder that does"
        )
    has_tokenizer = any((folder / file).is_file() for file in _TOKENIZER_FILES)
    try:
        with quiet_transformer_lens():
            if has_tokenizer:
                model = TransformerBridge.boot_transformers(
                    str(folder), **_placement(device, device_map), dtype=dtype
                )
            else:
                model = _without_tokenizer(folder, device, dtype, device_map)
    except LensLinearError:
        raise
    except Exception as error:  # many libraries, many classes: one clear error for the caller
        raise _local_error(folder, error) from error
    return model.eval()


def _placement(
    device: str | torch.device | None, device_map: str | dict[str, Any] | None
) -> dict[str, Any]:
    if device_map is not None:
        if device is not None:
            raise InvalidArgumentError(
                f"pass device or device_map, not both; got {device!r} and {device_map!r}"
            )
        return {"device_map": device_map}
    return {"device": str(device or "cpu")}


def _without_tokenizer(
    folder: Path,
    device: str | torch.device | None,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] | None,
) -> TransformerBridge:
    """Open a folder that has no tokenizer: token tensors work, text does not."""
    from transformers import AutoModelForCausalLM

    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager"}
    if device_map is not None:
        _placement(device, device_map)
        arguments["device_map"] = device_map
    hf_model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, **arguments)
    if device is not None:
        hf_model = hf_model.to(torch.device(device))  # type: ignore[arg-type]
    return build_bridge_from_module(
        hf_model,
        type(hf_model).__name__,
        hf_config=hf_model.config,
        model_name=str(folder),
    )


def _local_error(folder: Path, error: Exception) -> LensLinearError:
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    if any(
        word in type(error).__name__ + str(error) for word in ("Safetensor", "header", "corrupt")
    ):
        return CorruptedFileError(
            f"the weights in {str(folder)!r} cannot be read ({text}); copy the folder again"
        )
    return UnsupportedModelError(
        f"TransformerLens could not open {str(folder)!r} ({text}); check that it holds a causal language "
        "model in Hugging Face format (config.json, *.safetensors)"
    )


def _from_hub(
    name: str,
    device: str | torch.device | None,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] | None,
) -> TransformerBridge:
    try:
        official = get_official_model_name(name)
    except ValueError:
        official = name
        known = [*bundled_names(), *DEFAULT_MODEL_ALIASES]
        if "/" not in name or name.startswith((".", "/", "~")):
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
            raise UnknownModelError(
                f"no model is called {name!r} here; nearest names: {', '.join(near) or 'none'}; bundled: "
                f"{', '.join(bundled_names())}; or pass a local folder or a Hub name owner/model"
            ) from None
    try:
        with quiet_transformer_lens():
            if official.startswith(tl_legacy.TL_LEGACY_PREFIXES):
                model = tl_legacy.boot(official, device=str(device or "cpu"), dtype=dtype)
            else:
                model = TransformerBridge.boot_transformers(
                    official, **_placement(device, device_map), dtype=dtype
                )
    except LensLinearError:
        raise
    except NotImplementedError as error:
        raise UnsupportedModelError(f"{official!r} cannot be opened: {error}") from error
    except Exception as error:
        raise _hub_error(name, error) from error
    return model.eval()


def _hub_error(name: str, error: Exception) -> LensLinearError:
    kinds = {cls.__name__ for cls in type(error).__mro__}
    text = str(error)
    if (
        kinds & {"RepositoryNotFoundError", "GatedRepoError"}
        or "not a valid model identifier" in text
    ):
        near = difflib.get_close_matches(name, [*bundled_names(), *DEFAULT_MODEL_ALIASES], n=4)
        return UnknownModelError(
            f"the Hub has no open model {name!r}; nearest names known: {', '.join(near) or 'none'}; "
            f"bundled: {', '.join(bundled_names())}"
        )
    offline = {
        "OSError",
        "ConnectionError",
        "ConnectError",
        "TimeoutException",
        "OfflineModeIsEnabled",
    }
    if kinds & offline or "offline" in text.lower() or "connect" in text.lower():
        return OfflineError(
            f"{name!r} is not in the local cache and the Hub could not be reached; download the model's "
            "folder where there is network and pass the folder, or use a bundled model: "
            f"{', '.join(bundled_names())}"
        )
    first = text.splitlines()[0][:300] if text else ""
    return UnsupportedModelError(
        f"TransformerLens could not open {name!r} ({type(error).__name__}: {first})"
    )
