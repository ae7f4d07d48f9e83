"""Open a model: bundled, a local folder, or a name on the Hugging Face Hub."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import tl_legacy
from transformer_lens.supported_models import DEFAULT_MODEL_ALIASES, get_official_model_name

from lens_linear.checks import require_device, require_int, require_path, shown
from lens_linear.errors import (
    InvalidArgumentError,
    LensLinearError,
    OfflineError,
    UnknownModelError,
    UnsupportedModelError,
)
from lens_linear.models.native import quiet_transformer_lens
from lens_linear.models.open.bundled import BUNDLED, bundled_names
from lens_linear.models.open.cards import CARD
from lens_linear.models.open.folder import load_folder
from lens_linear.models.open.gguf import is_gguf
from lens_linear.models.open.hugging_face import (
    CONFIG,
    load_gguf,
    load_hugging_face_folder,
    placement,
)
from lens_linear.models.open.obtain import OBTAINABLE, not_obtained, obtained_folder


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

    Tried in this order: a bundled name (no network), a folder written by ``lens-linear train``, a real
    model fetched before with ``lens-linear models --get``, a GGUF file (dequantised; the model's name
    says from what), a local Hugging Face folder, the old attention-only Hub names
    (``NeelNanda/Attn_Only_2L512W_C4_Code``), any other Hub name. Only the last two may use the network. A
    folder beside you that is called like a bundled model is meant by ``"./attn-2l"`` or by a ``Path``.

    Args:
        name: e.g. ``"attn-2l"``, ``"gpt-micro@300"``, ``"smollm2-135m"``, ``"path/to/folder"``,
            ``"file.gguf"``, ``"gpt2"``.
        checkpoint: training step of a bundled model whose checkpoints were kept.
        device: where to put it; the processor by default. Not together with ``device_map``.
        dtype: of the weights.
        device_map: spread a Hugging Face model over devices, as ``accelerate`` does.

    Returns:
        The bridge. Nothing is folded, compatibility mode is never switched on, and the global random
        generator is left as it was.

    Raises:
        UnknownModelError: no such model; the message lists the nearest names.
        OfflineError: a Hub model is not in the local cache and the network is not to be had.
        CorruptedFileError: the weights do not match their checksum, are not all there, or cannot be read.
        UnsupportedModelError: a local folder with pickled weights, no causal language model, or an
            architecture that TransformerLens cannot open.

    Example:
        >>> load("attn-2l").cfg.n_layers
        2
    """
    if not isinstance(name, (str, Path)) or not str(name).strip():
        raise InvalidArgumentError(
            f"name must be a model name or a folder, got {name!r}; see lens_linear.available_models()"
        )
    require_path("name", name)
    device = None if device is None else require_device("device", device)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidArgumentError(
            f"dtype must be a floating torch dtype, got {dtype!r}; e.g. torch.bfloat16"
        )
    text, checkpoint = _split_checkpoint(str(name), checkpoint)
    folder = Path(text).expanduser()
    bundled = text in bundled_names() and not (isinstance(name, Path) and _is_dir(folder))
    if bundled or (_is_dir(folder) and (folder / CARD).is_file()):
        _refuse_device_map(text, device_map)
        model = load_folder(BUNDLED / text if bundled else folder, checkpoint=checkpoint)
        return _placed(model, device, dtype)
    if text in OBTAINABLE and not _is_dir(folder):
        found = obtained_folder(text)
        if found is None:
            raise not_obtained(text)
        name, folder = text, found
    if is_gguf(folder):
        _refuse_device_map(text, device_map)
        return load_gguf(folder, device=device, dtype=dtype).eval()
    if checkpoint is not None:
        raise InvalidArgumentError(
            f"checkpoint is for bundled models, got it with {text!r}; bundled: {bundled_names()}"
        )
    if not _is_dir(folder):
        _refuse_paths(text, folder)
        return _from_hub(text, device, dtype, device_map).eval()
    if not (folder / CONFIG).is_file():
        raise UnknownModelError(
            f"folder {str(folder)!r} holds neither {CONFIG} (a Hugging Face model) nor {CARD} (a model "
            "trained with `lens-linear train`); pass the folder that does"
        )
    return load_hugging_face_folder(
        folder,
        name=text if text in OBTAINABLE else None,
        device=device,
        dtype=dtype,
        device_map=device_map,
    ).eval()


def _split_checkpoint(text: str, checkpoint: int | None) -> tuple[str, int | None]:
    """Take ``gpt-micro@300`` apart."""
    if checkpoint is None and "@" in text and text.split("@")[0] in bundled_names():
        text, _, step = text.partition("@")
        if not step.isdecimal():
            raise UnknownModelError(
                f"checkpoint in '{text}@{step}' must be a step; leave it out for the final weights, or "
                "write e.g. gpt-micro@300"
            )
        checkpoint = int(step)
    if checkpoint is not None:
        require_int("checkpoint", checkpoint, minimum=0)
    return text, checkpoint


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no file system takes
        return False


def _refuse_paths(text: str, folder: Path) -> None:
    """Say of what can only be a path that no folder is there."""
    try:
        is_file = folder.is_file()
    except OSError:
        is_file = False
    if is_file:
        raise InvalidArgumentError(
            f"name must be a folder or a model name, but {text!r} is a file; pass its folder"
        )
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UnknownModelError(
            f"there is no folder {shown(str(folder))}; check the path, or pass a bundled name: "
            f"{', '.join(bundled_names())}"
        )


def _refuse_device_map(name: str, device_map: object) -> None:
    if device_map is not None:
        raise InvalidArgumentError(
            f"device_map spreads Hugging Face models only, got {device_map!r} with {name!r}; "
            "pass device instead"
        )


def _placed(
    model: TransformerBridge, device: torch.device | None, dtype: torch.dtype
) -> TransformerBridge:
    if dtype != torch.float32:
        model = model.to(dtype)
        model.cfg.dtype = dtype  # TransformerLens leaves it at float32
    if device is not None:
        model = model.to(device)
    return model.eval()


def _from_hub(
    name: str,
    device: torch.device | None,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] | None,
) -> TransformerBridge:
    try:
        official = get_official_model_name(name)
    except ValueError:
        official = name
        if "/" not in name:
            raise UnknownModelError(
                f"no model is called {shown(name)} here; nearest names: {_nearest(name)}; "
                f"bundled: {', '.join(bundled_names())}; or pass a local folder or a Hub name owner/model"
            ) from None
    legacy = official.startswith(tl_legacy.TL_LEGACY_PREFIXES)
    if legacy:
        _refuse_device_map(name, device_map)
    where = placement(device, device_map)
    try:
        with torch.random.fork_rng(devices=[]), quiet_transformer_lens():
            if legacy:
                boot = TransformerBridge.boot_tl_legacy  # type: ignore[attr-defined]  # set on import
                return boot(official, **where, dtype=dtype)
            return TransformerBridge.boot_transformers(official, **where, dtype=dtype)
    except LensLinearError:
        raise
    except NotImplementedError as error:
        raise UnsupportedModelError(f"{official!r} cannot be opened: {error}") from error
    except Exception as error:
        raise _hub_error(name, error) from error


def _nearest(name: str) -> str:
    """Return known names that look like ``name``, whatever its case, as a list in words."""
    known = {one.lower(): one for one in (*DEFAULT_MODEL_ALIASES, *bundled_names())}
    near = difflib.get_close_matches(name.strip().lower(), known, n=4, cutoff=0.5)
    return ", ".join(known[one] for one in near) or "none"


def _hub_error(name: str, error: Exception) -> LensLinearError:
    kinds = {cls.__name__ for cls in type(error).__mro__}
    text = str(error)
    if (
        kinds & {"RepositoryNotFoundError", "GatedRepoError"}
        or "not a valid model identifier" in text
    ):
        return UnknownModelError(
            f"the Hub has no open model {name!r}; nearest names known: {_nearest(name)}; "
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
