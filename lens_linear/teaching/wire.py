"""Values on their way from a student's process to the judge's, without unpickling what the student sent.

The judge may send anything that pickles: the student's process unpickles what a trusted process made. The
way back holds only plain data: numbers, text, tensors, arrays, lists, dicts, factored matrices, moments, or
plotly figures. Whatever else an answer returns arrives as an empty object of the same type name, so that a
check can say what it got.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import json
import pickle
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lens_linear._tl import FactoredMatrix, TransformerBridge
from lens_linear.linalg.moments import Moments
from lens_linear.models.native import recipe_of_native

_DEPTH = 40
_MOST = 512 * 2**20  # bytes of one message


def send(where: socket.socket, content: bytes) -> None:
    """Send one message: its length, then its bytes."""
    where.sendall(struct.pack(">Q", len(content)) + content)


def receive(where: socket.socket) -> bytes:
    """Receive one message.

    Raises:
        ConnectionError: the other side is gone, or sent nonsense.
        TimeoutError: the socket's timeout passed.
    """
    (length,) = struct.unpack(">Q", _exactly(where, 8))
    if length > _MOST:
        raise ConnectionError("a message of impossible length")
    return _exactly(where, length)


def _exactly(where: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = where.recv(min(length - len(parts), 2**20))
        if not part:
            raise ConnectionError("the other side has closed")
        parts += part
    return bytes(parts)


def pack_arguments(arguments: tuple[Any, ...]) -> bytes:
    """Pickle arguments in the judge; small native models travel as shape and weights."""
    out = io.BytesIO()
    pickler = pickle.Pickler(out)
    pickler.dispatch_table = copyreg.dispatch_table.copy()
    pickler.dispatch_table[TransformerBridge] = recipe_of_native
    pickler.dump(arguments)
    return out.getvalue()


def encode(value: Any) -> bytes:
    """Turn what an answer returned into bytes."""
    tensors: dict[str, Tensor] = {}
    tree = _tree(value, tensors, 0)
    header = json.dumps(tree).encode("utf-8", "surrogatepass")
    return struct.pack(">Q", len(header)) + header + save_tensors(tensors)


def _tree(value: Any, tensors: dict[str, Tensor], depth: int) -> Any:
    def deeper(part: Any) -> Any:
        return _tree(part, tensors, depth + 1)

    if value is None or type(value) in (bool, int, float, str):
        return {"plain": value}
    if depth > _DEPTH:
        return {"opaque": "deep nesting"}
    if isinstance(value, Tensor):
        return {"tensor": _keep(value, tensors), "grad": bool(value.requires_grad)}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        return {"array": _keep(torch.from_numpy(np.array(value, order="C")), tensors)}
    if isinstance(value, (list, tuple)):
        return {
            type(value).__name__ if type(value) in (list, tuple) else "tuple": [
                deeper(v) for v in value
            ]
        }
    if isinstance(value, dict):
        return {"dict": [[deeper(k), deeper(v)] for k, v in value.items()]}
    if isinstance(value, FactoredMatrix):
        return {"factored": [deeper(value.A), deeper(value.B)]}
    if isinstance(value, Moments):
        return {"moments": deeper(_moments_bytes(value))}
    if type(value).__module__.startswith("plotly."):
        figure: Any = value
        return {"figure": figure.to_json()} if hasattr(figure, "to_json") else {"opaque": "figure"}
    return {"opaque": type(value).__name__}


def _keep(value: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
    held = value.detach().as_subclass(Tensor).cpu()
    complex_ = held.is_complex()
    held = torch.view_as_real(held.resolve_conj()) if complex_ else held
    name = str(len(tensors))
    tensors[name] = held.contiguous().clone()
    return {"name": name, "complex": complex_}


def _moments_bytes(value: Moments) -> Tensor | None:
    if value.n == 0:
        return None
    with tempfile.TemporaryDirectory() as folder:
        content = value.save(Path(folder) / "moments").read_bytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def decode(content: bytes) -> Any:
    """Read what :func:`encode` made, in the judge.

    Raises:
        ConnectionError: the bytes are not what :func:`encode` makes.
    """
    try:
        (length,) = struct.unpack(">Q", content[:8])
        tree = json.loads(content[8 : 8 + length].decode("utf-8", "surrogatepass"))
        return _value(tree, load_tensors(content[8 + length :]))
    except Exception as error:
        raise ConnectionError(
            f"the answer's result could not be read ({type(error).__name__})"
        ) from error


def _value(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    (kind, held) = next(iter(tree.items()))

    def deeper(part: Any) -> Any:
        return _value(part, tensors)

    if kind == "tensor":
        value = _kept(held, tensors)
        return value.requires_grad_(bool(tree.get("grad")) and value.is_floating_point())
    simple: dict[str, Any] = {
        "plain": lambda: held,
        "array": lambda: _kept(held, tensors).numpy(),
        "list": lambda: [deeper(part) for part in held],
        "tuple": lambda: tuple(deeper(part) for part in held),
        "dict": lambda: {deeper(k): deeper(v) for k, v in held},
        "factored": lambda: FactoredMatrix(*(deeper(part) for part in held)),
        "moments": lambda: _moments_from(deeper(held)),
        "figure": lambda: importlib.import_module("plotly.io").from_json(held),
        "opaque": lambda: type(str(held), (), {})(),
    }
    return simple[kind]()


def _kept(held: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    value = tensors[held["name"]]
    return torch.view_as_complex(value) if held["complex"] else value


def _moments_from(content: Tensor | None) -> Moments:
    if content is None:
        return Moments()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "moments"
        path.write_bytes(bytes(content.tolist()))
        return Moments.load(path)
