"""Hooks that remove themselves, and whose turn it is to run a model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.errors import UnsupportedModelError
from lens_linear.models.checked import STILL_WORK, CheckedModel, ModelLike, checked
from lens_linear.models.spots import Edit, Spot

_LOCKS: weakref.WeakKeyDictionary[TransformerBridge, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


def model_lock(model: CheckedModel) -> threading.RLock:
    """Return the model's lock: hooks and modes belong to the model, so one thread at a time runs it.

    A thread may take it again inside itself; another one waits for the end of the pass or the block.
    """
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(model.bridge, threading.RLock())


def has_spot(model: ModelLike, spot: Spot) -> bool:
    """Say whether the model has a hook point at ``(layer, what)``."""
    return checked(model).has(spot)


@contextmanager
def hooked(
    model: CheckedModel, named: Iterable[tuple[str, Callable[[Tensor], Tensor | None]]]
) -> Iterator[None]:
    """Attach functions to hook points by name for the length of a block.

    A function gets the tensor and may return a new one (None leaves it). Exactly the hooks added here
    are removed at the end, also after an error; hooks of the caller stay. Another thread that asks for
    hooks waits meanwhile, and what it runs itself passes by untouched.
    """
    points = model.bridge.hook_dict
    added: list[tuple[Any, Any]] = []
    with model_lock(model):
        try:
            for name, function in named:
                if name not in points:
                    raise UnsupportedModelError(
                        f"model {model.name!r} has no hook point {name!r}; {STILL_WORK}"
                    )
                point = points[name]
                point.add_hook(_adapter(function))
                added.append((point, point.fwd_hooks[-1]))
            yield
        finally:
            for point, handle in reversed(added):
                handle.hook.remove()
                point.fwd_hooks.remove(handle)


@contextmanager
def edited(model: ModelLike, edits: Iterable[Edit]) -> Iterator[None]:
    """Replace tensors at spots while the block runs: ``[((layer, what), function), ...]``."""
    model = checked(model)
    with hooked(model, [(model.hook_name(spot), function) for spot, function in edits]):
        yield


def attached(model: CheckedModel) -> str:
    """How a reason begins where a model has hooks, its own or those of a ``with`` block; "" without any."""
    names = [name for name, point in model.bridge.hook_dict.items() if point.fwd_hooks]
    if not names:
        return ""
    return (
        f"the model has hooks now ({', '.join(map(repr, names[:3]))}), which may be why: leave the with "
        "block that edits it, or call model.reset_hooks(including_permanent=True); otherwise "
    )


def _adapter(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
    owner = threading.get_ident()

    def hook(tensor: Tensor, hook: Any = None) -> Tensor | None:
        if threading.get_ident() != owner:
            return None
        made = function(tensor)
        # Under a device map what replaces a tensor may come from another device.
        return None if made is None else made.to(tensor.device)

    return hook


_STILL: WeakSet[TransformerBridge] = WeakSet()


@contextmanager
def still(model: CheckedModel) -> Iterator[None]:
    """While this lasts no module changes its mode, so passes need not look: that costs as much as a block."""
    before = model.bridge in _STILL
    _STILL.add(model.bridge)
    try:
        yield
    finally:
        if not before:
            _STILL.discard(model.bridge)


def is_still(model: CheckedModel) -> bool:
    """Whether :func:`still` holds."""
    return model.bridge in _STILL


def in_training(*roots: nn.Module) -> list[nn.Module]:
    """All modules that are in training mode; ``modules()``, which joins names, takes three times as long."""
    found: dict[int, nn.Module] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting += [child for child in module._modules.values() if child is not None]
    return [module for module in found.values() if module.training]
