"""One checksum for any model: of its weights, wherever they came from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from lens_linear.models.checked import CheckedModel, ModelLike, checked

_NAMES_ONLY = ("model_name", "device", "n_devices", "tokenizer_name", "seed", "n_ctx")


def weights_sha256(model: ModelLike) -> str:
    """Return the SHA-256 over names, shapes and bytes of a model's weights, as hexadecimal text."""
    digest = hashlib.sha256()
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, value in sorted(checked(model).bridge.original_model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        place = (value.data_ptr(), value.stride())
        if place in seen:
            continue  # a bridge shows the same tensor by several names
        seen.add(place)
        data = value.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(data.view(torch.uint8).numpy()))
    return digest.hexdigest()


def _code(hook: Any) -> str:
    code = getattr(hook, "__code__", None)
    return "" if code is None else str(code.co_code.hex())


def model_fingerprint(model: CheckedModel) -> str:
    """Return one SHA-256 for weights, configuration and the caller's hooks.

    Equal only for models that compute the same: a hook is told by its place, name and code.
    """
    words = {
        key: value
        for key, value in vars(model.cfg).items()
        if isinstance(value, (bool, int, float, str, type(None))) and key not in _NAMES_ONLY
    }
    stored = model.stored_config
    foreign = {} if stored is None or not hasattr(stored, "to_dict") else stored.to_dict()
    hooks = [
        (name, getattr(hook, "__qualname__", type(hook).__qualname__), _code(hook))
        for name, point in sorted(model.bridge.hook_dict.items())
        for hook in (getattr(handle, "user_hook", handle) for handle in point.fwd_hooks)
    ]
    told = json.dumps([words, foreign, *hooks], sort_keys=True, default=str)
    return hashlib.sha256(f"{told} {weights_sha256(model)}".encode()).hexdigest()
