"""Open a model: bundled, a local folder or file, or a name on the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import tl_legacy
from transformer_lens.supported_models import get_official_model_name

from lens_linear.checks import require_device, require_instance, require_int, require_path, shown
from lens_linear.errors import (
    CorruptedFileError,
    InsufficientMemoryError,
    InvalidArgumentError,
    LensLinearError,
    UnknownModelError,
    is_out_of_memory,
)
from lens_linear.linalg.precision import own_modes
from lens_linear.models.native import plain_defaults, quiet_transformer_lens
from lens_linear.models.open.bundled import (
    BUNDLED,
    bundled_names,
    refuse_absent_folder,
    unknown_name,
)
from lens_linear.models.open.cards import CARD
from lens_linear.models.open.folder import load_folder
from lens_linear.models.open.gguf import is_gguf
from lens_linear.models.open.hooked_state import SUFFIXES, load_hooked_state
from lens_linear.models.open.hub import checkpoint_revision, hub_error, hub_folder, nearest_names
from lens_linear.models.open.hugging_face import (
    load_gguf,
    load_hugging_face_folder,
    never_asking,
    placement,
)
from lens_linear.models.open.obtain import OBTAINABLE, not_obtained, obtained_folder
from lens_linear.models.open.untrusted import CONFIG, refuse_adapter


@own_modes()
@plain_defaults()
def load(
    name: str | Path,
    *,
    checkpoint: int | None = None,
    revision: str | None = None,
    n_ctx: int | None = None,
    config: dict[str, Any] | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    device_map: str | dict[str, Any] | None = None,
) -> TransformerBridge:
    """Open a model as a ``TransformerBridge`` in evaluation mode, with the weights as stored.

    Tried in this order: a bundled name (no network), a folder written by ``lens-linear train``, a real
    model fetched before with ``lens-linear models --get``, a GGUF file (dequantised; the model's name
    says from what), a state dict of HookedTransformer (with ``config``), a local Hugging Face folder, the
    old attention-only Hub names (``NeelNanda/Attn_Only_2L512W_C4_Code``), any other Hub name. Only the last
    two may use the network, and a Hub model meets every check that a folder meets. A folder beside you
    that is called like a bundled model is meant by ``"./attn-2l"`` or by a ``Path``.

    Args:
        name: e.g. ``"attn-2l"``, ``"gpt-micro@300"``, ``"smollm2-135m"``, ``"path/to/folder"``,
            ``"file.gguf"``, ``"weights.pt"``, ``"gpt2"``.
        checkpoint: training step of a bundled model whose checkpoints were kept, or of a Hub model whose
            steps are published (``EleutherAI/pythia-70m``, ``stanford-crfm/...``).
        revision: branch, tag or commit of a Hub model. Not together with ``checkpoint``.
        n_ctx: longest sequence to allow; beyond the model's own context for rotary Hugging Face models
            only, where the rotation does not depend on the context (longrope's and dynamic ones do).
        config: of a HookedTransformer state dict: its ``cfg.to_dict()`` or what it was made with as a dict,
            or a JSON file of it; one that lies beside the weights under the same name is found.
        device: where to put it; the processor by default. Not together with ``device_map``.
        dtype: of the weights; torch's own defaults for type and device change nothing here.
        device_map: spread a Hugging Face model over devices, as ``accelerate`` does.

    Returns:
        The bridge. Nothing is folded, compatibility mode is never switched on, and the global random
        generator is left as it was. No code of a folder is ever run.

    Raises:
        UnknownModelError: no such model; the message lists the nearest names.
        OfflineError: a model is not on this machine and the network is not to be had.
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
    if revision is not None:
        require_instance("revision", revision, str, advice="pass a branch, a tag or a commit")
    if n_ctx is not None:
        require_int("n_ctx", n_ctx, minimum=2)
    text, checkpoint = _split_checkpoint(str(name), checkpoint)
    if revision is not None and checkpoint is not None:
        raise InvalidArgumentError(
            f"pass revision or checkpoint, not both; got {revision!r} and {checkpoint}"
        )
    where = _Where(device, dtype, device_map, n_ctx)
    with _room_for(text):
        model = _open(name, text, checkpoint, revision, config, where)
    path = Path(text).expanduser()
    own = text if text in bundled_names() or not path.exists() else str(path.resolve())
    model.__dict__[_ORIGIN] = {"name": own, "revision": revision, "checkpoint": checkpoint}
    return _limited(model, n_ctx)


def origin(model: TransformerBridge) -> dict[str, Any] | None:
    """Return the arguments by which :func:`load` finds this model again; None when it did not open it."""
    return model.__dict__.get(_ORIGIN)


_ORIGIN = "_lens_linear_origin"


@dataclass(frozen=True)
class _Where:
    """How the caller wants the weights."""

    device: torch.device | None
    dtype: torch.dtype
    device_map: str | dict[str, Any] | None
    n_ctx: int | None


def _open(
    name: str | Path,
    text: str,
    checkpoint: int | None,
    revision: str | None,
    config: dict[str, Any] | str | Path | None,
    where: _Where,
) -> TransformerBridge:
    """Open what the name means; see :func:`load` for the order."""
    folder = Path(text).expanduser()
    is_dir = os.path.isdir(folder)  # False where no file system takes such a name
    bundled = text in bundled_names() and not (isinstance(name, Path) and is_dir)
    if bundled or (is_dir and (folder / CARD).is_file()):
        _refuse("with a model of ours", text, revision=revision, config=config)
        _refuse_device_map(text, where.device_map)
        model = load_folder(BUNDLED / text if bundled else folder, checkpoint=checkpoint)
        return _placed(model, where)
    if config is None and checkpoint is None and revision is None:
        config = _config_beside(folder)
    if config is not None:
        _refuse("with config", text, revision=revision, checkpoint=checkpoint)
        _refuse_device_map(text, where.device_map)
        return _placed(_hooked_state(folder, config, where), where)
    if is_dir or text in OBTAINABLE or is_gguf(folder):
        _refuse("for Hub models", text, revision=revision)
        _refuse("for bundled models and those on the Hub", text, checkpoint=checkpoint)
        return _open_local(text, folder, is_dir, where)
    _refuse_paths(text, folder)
    return _from_hub(text, checkpoint, revision, where)


def _open_local(text: str, folder: Path, is_dir: bool, where: _Where) -> TransformerBridge:
    if is_gguf(folder):
        _refuse_device_map(text, where.device_map)
        return load_gguf(folder, device=where.device, dtype=where.dtype).eval()
    label = None
    if not is_dir:
        found, label = obtained_folder(text), text
        if found is None:
            raise not_obtained(text)
        folder = found
    return _from_folder(folder, label, where)


def _from_folder(folder: Path, label: str | None, where: _Where) -> TransformerBridge:
    with _called(folder, label):
        refuse_adapter(folder)
        if not (folder / CONFIG).is_file():
            raise UnknownModelError(
                f"folder {str(folder)!r} holds neither {CONFIG} (a Hugging Face model) nor {CARD} (a model "
                "trained with `lens-linear train`); pass the folder that does"
            )
        return load_hugging_face_folder(
            folder,
            name=label,
            device=where.device,
            dtype=where.dtype,
            device_map=where.device_map,
            n_ctx=where.n_ctx,
        ).eval()


@contextmanager
def _room_for(text: str) -> Iterator[None]:
    """Call a lack of memory that, where a library takes it for a damaged file or an unknown model."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InsufficientMemoryError) or not is_out_of_memory(error):
            raise
        raise InsufficientMemoryError(
            f"memory ran out while {text!r} was opened; its files may well be whole: pass "
            "dtype=torch.bfloat16 for half of it, or open a smaller model"
        ) from error


@contextmanager
def _called(folder: Path, label: str | None) -> Iterator[None]:
    """Call a folder of the cache by the name that the caller knows, in every error."""
    try:
        yield
    except LensLinearError as error:
        if label is None:
            raise
        said = str(error)
        for words in (f"folder {str(folder)!r}", repr(str(folder))):
            said = said.replace(words, repr(label))
        said = said.replace(str(folder), label).replace(
            "copy the folder again", "remove it from the local cache and get it again"
        )
        raise type(error)(said) from error


def _config_beside(path: Path) -> Path | None:
    """The config that lies beside a state dict under the same name, as ``weights.json``."""
    beside = path.with_suffix(".json") if path.suffix in SUFFIXES else None
    return beside if beside and os.path.isfile(path) and os.path.isfile(beside) else None


def _hooked_state(
    path: Path, config: dict[str, Any] | str | Path, where: _Where
) -> TransformerBridge:
    if path.suffix not in SUFFIXES or not path.is_file():
        raise InvalidArgumentError(
            f"config goes with a file of weights ({', '.join(SUFFIXES)}), got {str(path)!r}; leave config "
            "out for folders and Hub names"
        )
    return load_hooked_state(path, config, dtype=where.dtype)


def _refuse(where: str, text: str, **given: object) -> None:
    """Refuse arguments that mean nothing for this kind of model."""
    for word, value in given.items():
        if value is not None:
            raise InvalidArgumentError(
                f"{word} does not go {where}, got {word}={shown(value)} and {text!r}; leave it out"
                if where.startswith("with")
                else f"{word} is {where}, got {word}={shown(value)} with {text!r}; leave it out"
            )


def _limited(model: TransformerBridge, n_ctx: int | None) -> TransformerBridge:
    """Let the model take at most ``n_ctx`` tokens; weights stay as they are."""
    if n_ctx is None or n_ctx == model.cfg.n_ctx:
        return model
    if n_ctx > model.cfg.n_ctx:
        raise InvalidArgumentError(
            f"n_ctx must be at most {model.cfg.n_ctx} for {model.cfg.model_name!r}, whose positions end "
            f"there, got {n_ctx}; leave it out, or pass a smaller value"
        )
    model.cfg.n_ctx = n_ctx
    return model


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


def _refuse_paths(text: str, folder: Path) -> None:
    """Say of what can only be a path that no folder is there."""
    is_file = os.path.isfile(folder)
    if is_file and folder.suffix.lower() == ".gguf":
        raise CorruptedFileError(
            f"{text!r} is no GGUF file ({folder.stat().st_size:,} bytes that do not begin with GGUF): a "
            "download that broke off or brought something else; get the file again"
        )
    if is_file:
        raise InvalidArgumentError(
            f"name must be a folder or a model name, but {text!r} is a file; pass its folder, or config= "
            "with a state dict of HookedTransformer"
        )
    refuse_absent_folder(text, folder)


def _refuse_device_map(name: str, device_map: object) -> None:
    if device_map is not None:
        raise InvalidArgumentError(
            f"device_map spreads Hugging Face models only, got {device_map!r} with {name!r}; "
            "pass device instead"
        )


def _placed(model: TransformerBridge, where: _Where) -> TransformerBridge:
    if where.dtype != torch.float32:
        model = model.to(where.dtype, print_details=False)
        model.cfg.dtype = where.dtype  # TransformerLens leaves it at float32
    if where.device is not None:
        model = model.to(where.device, print_details=False)
    return model.eval()


def _from_hub(
    name: str, checkpoint: int | None, revision: str | None, where: _Where
) -> TransformerBridge:
    try:
        official = get_official_model_name(name)
    except ValueError:
        official = name
        if "/" not in name:
            raise unknown_name(name, nearest_names(name)) from None
    if official.startswith(tl_legacy.TL_LEGACY_PREFIXES):
        _refuse("for models in Hugging Face format", name, revision=revision)
        return _legacy(name, official, checkpoint, where)
    if checkpoint is not None:
        revision = checkpoint_revision(official, checkpoint)
    label = official if revision is None else f"{official}@{revision}"
    return _from_folder(hub_folder(official, revision=revision), label, where)


def _legacy(name: str, official: str, checkpoint: int | None, where: _Where) -> TransformerBridge:
    """Open a repository that holds a HookedTransformer's state dict."""
    _refuse_device_map(name, where.device_map)
    try:
        with torch.random.fork_rng(devices=[]), quiet_transformer_lens(), never_asking():
            boot = TransformerBridge.boot_tl_legacy  # type: ignore[attr-defined]  # set on import
            place = placement(where.device, None)
            model: TransformerBridge = boot(
                official, checkpoint_value=checkpoint, **place, dtype=where.dtype
            )
    except LensLinearError:
        raise
    except Exception as error:
        raise hub_error(name, error) from error
    return model.eval()
