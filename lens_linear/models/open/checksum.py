"""One checksum for any model: of its weights, wherever they came from."""

from __future__ import annotations

import hashlib

import torch

from lens_linear._tl import TransformerBridge
from lens_linear.models.hooks import require_bridge


def weights_sha256(model: TransformerBridge) -> str:
    """Return the SHA-256 over names, shapes and bytes of a model's weights, as hexadecimal text."""
    digest = hashlib.sha256()
    for name, value in sorted(require_bridge(model).original_model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        data = value.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
