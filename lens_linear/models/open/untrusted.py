"""What a model folder says, read without trusting it, before anything is built or run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lens_linear.errors import CorruptedFileError, UnsupportedModelError
from lens_linear.files import read_json

CONFIG = "config.json"
_DTYPES = ("F64", "F32", "F16", "BF16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
# Each of these is one side of a stored matrix whose other side is the width.
_SIDES = ("vocab_size", "intermediate_size", "n_inner", "ffn_dim", "d_ff")
# A configuration may ask for this many numbers that no file holds (masks, rotary tables).
_SPARE = 2**28
_ROTARY = ("rope_theta", "factor", "rotary_emb_base", "original_max_position_embeddings")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def read_folder(folder: Path) -> dict[str, Any]:
    """Return the configuration of a folder that can be opened without running anything of its own.

    Raises:
        CorruptedFileError: files are missing, damaged, or the configuration does not fit the weights.
        UnsupportedModelError: pickled weights, an adapter without its model, or Python of its own.
    """
    _require_files(folder)
    refuse_adapter(folder)
    config = read_json(folder / CONFIG, advice="copy the folder again, or mend the file")
    _require_weights(folder)
    _require_numbers(config, folder)
    _refuse_own_code(config, folder)
    _require_sizes(config, folder)
    return config


def refuse_adapter(folder: Path) -> None:
    """Refuse a LoRA folder, which holds what is added to a model and not the model.

    Raises:
        UnsupportedModelError: the folder holds an adapter only.
    """
    path = folder / "adapter_config.json"
    if path.is_file() and not (folder / CONFIG).is_file():
        adapter = read_json(path, advice="copy the folder again, or mend the file")
        base = adapter.get("base_model_name_or_path", "?")
        raise UnsupportedModelError(
            f"folder {str(folder)!r} holds an adapter (LoRA) for {str(base)!r}, not a model; merge the two "
            "with peft (merge_and_unload, then save_pretrained) and pass that folder"
        )


def _require_files(folder: Path) -> None:
    """Refuse pipes, devices and sockets: who reads them may wait for ever."""
    for path in sorted(folder.glob("*")):
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise CorruptedFileError(
                f"{path.name!r} in {str(folder)!r} is no regular file (a pipe, a device or a socket); "
                "copy the folder again"
            )


def _require_weights(folder: Path) -> None:
    """Refuse folders whose weights are pickled, absent, or named by an index and not there."""
    if not any(folder.glob("*.safetensors")):
        if any(found for pattern in _PICKLES for found in folder.glob(pattern)):
            raise UnsupportedModelError(
                f"the weights in {str(folder)!r} are pickled, and a pickle can run any program; only "
                "*.safetensors are opened: convert it where you trust it, with model.save_pretrained "
                "of transformers"
            )
        raise CorruptedFileError(
            f"folder {str(folder)!r} holds {CONFIG} but no weights (*.safetensors); copy the folder again"
        )
    for index in folder.glob("*.safetensors.index.json"):
        held = read_json(index, advice="copy the folder again, or mend the file")
        places = held.get("weight_map")
        names = {str(name) for name in places.values()} if isinstance(places, dict) else set()
        outside = sorted(name for name in names if Path(name).name != name)
        if outside:
            raise CorruptedFileError(
                f"{index.name} in {str(folder)!r} names weights outside the folder ({outside[0]!r}); copy "
                "the folder again"
            )
        absent = sorted(name for name in names if not os.path.isfile(folder / name))
        if absent:
            raise CorruptedFileError(
                f"folder {str(folder)!r} lacks {len(absent)} of the {len(names)} files of weights that "
                f"{index.name} names (the first is {absent[0]!r}); copy the folder again"
            )
        if not names or "metadata" not in held:
            raise CorruptedFileError(
                f"{index.name} in {str(folder)!r} must hold 'metadata' and a 'weight_map' that names files; "
                "copy the folder again"
            )
        _require_one_value(folder, sorted(names))


def _require_one_value(folder: Path, names: list[str]) -> None:
    """Refuse a tensor that two files of one index hold with different values."""
    import torch

    first: dict[str, str] = {}
    for name in names:
        with _opened(folder / name) as file:
            for key in list(file.keys()):
                other = first.setdefault(key, name)
                if other == name:
                    continue
                with _opened(folder / other) as before:
                    same = torch.equal(file.get_tensor(key), before.get_tensor(key))
                if not same:
                    raise CorruptedFileError(
                        f"{other} and {name} in {str(folder)!r} hold {key!r} with other values, and only "
                        "one can be the model's; copy the folder again"
                    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The tensors of a file; one error for what cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except CorruptedFileError:
        raise
    except Exception as error:  # the library's own class, or what the bytes lead to
        raise CorruptedFileError(
            f"the weights in {str(path.parent)!r} cannot be read ({path.name}: {str(error)[:160]}); copy "
            "the folder again"
        ) from error


def _require_numbers(config: dict[str, Any], folder: Path) -> None:
    """Refuse numbers that no model has, and NaN, with which every comparison is false."""
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            key = name.rpartition(".")[2]
            says = f"{CONFIG} in {str(folder)!r} says {value} for {name!r}"
            if math.isnan(value):
                raise CorruptedFileError(f"{says}; mend it or copy the folder again")
            if key.endswith(("eps", "epsilon")) and not 0 <= value < 1:
                raise CorruptedFileError(
                    f"{says}, and it must be at least 0 and below 1; mend it or copy the folder again"
                )
            if key in _ROTARY and not 0 < value < math.inf:
                raise CorruptedFileError(
                    f"{says}, and it must be positive and finite; mend it or copy the folder again"
                )
            if key in (*_LAYERS, *_WIDTHS, *_POSITIONS, "vocab_size") and value < 1:
                raise CorruptedFileError(
                    f"{says}, and it must be at least 1; mend it or copy the folder again"
                )


def _refuse_own_code(config: dict[str, Any], folder: Path) -> None:
    """Refuse an architecture that only the folder's own Python knows."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return  # opened as transformers' own class; the folder's Python is not looked at
    if "auto_map" in config:
        raise UnsupportedModelError(
            f"folder {str(folder)!r} needs Python of its own (auto_map in {CONFIG}, model_type {kind!r}); "
            "code in a model folder is never run: use a model that transformers itself knows"
        )


def _require_sizes(config: dict[str, Any], folder: Path) -> None:
    """Hold the sizes in the configuration against the weights, before anything of that size is built."""
    tensors, numbers = _stored(folder)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in _LAYERS:
            _at_most(key, part.get(key), tensors, "tensors are stored", folder)
        width = max((_size(part.get(key)) for key in _WIDTHS), default=0) or 1
        for key in _SIDES:
            asked = _size(part.get(key)) * width
            _at_most(f"{key} x width", asked, numbers, "numbers are stored", folder)
        _at_most("the width", width, numbers, "numbers are stored", folder)
        for key in _POSITIONS:  # some architectures keep a mask of positions x positions
            limit = max(numbers, _SPARE)
            _at_most(key, part.get(key), limit, "positions could be used", folder)


def _size(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _at_most(what: str, value: Any, most: int, of: str, folder: Path) -> None:
    if _size(value) > most:
        raise CorruptedFileError(
            f"{CONFIG} in {str(folder)!r} asks for {what} = {value:,}, but only {most:,} {of}; it belongs to "
            "another model: copy the folder again"
        )


def _stored(folder: Path) -> tuple[int, int]:
    """Count tensors and numbers in the heads of the weight files."""
    tensors = numbers = 0
    coded: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with _opened(path) as file:
            for name in list(file.keys()):
                tensors += 1
                held = file.get_slice(name)
                numbers += math.prod(held.get_shape())
                if name.endswith(".weight") and held.get_dtype() not in _DTYPES:
                    coded.append(f"{name} ({held.get_dtype()})")
    if coded:
        raise UnsupportedModelError(
            f"{len(coded)} weights in {str(folder)!r} are stored as codes, not as numbers of 16 bits or more "
            f"(the first is {coded[0]}): read as they are they would make another model; save it "
            "dequantised, or open a GGUF file of it"
        )
    return tensors, numbers
