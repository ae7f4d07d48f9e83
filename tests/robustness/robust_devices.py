"""A second device on a machine that has none: tensors that say they live elsewhere, and refuse to be mixed.

``elsewhere(tensor)`` keeps its numbers in ordinary memory but reports another device. While
``SecondDevice()`` is entered every operation is looked at, and what a GPU would refuse is refused: operands
on two devices, a generator of the processor, tensors handed to numpy without ``.cpu()``. What is allowed runs
on the processor, so the numbers can be compared. ``split(model)`` lays the last block on a third device, as
a device map does.

The devices are called ``meta:0`` and ``meta:1``, names that need no hardware; the numbers are real.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FIRST, SECOND = torch.device("meta:0"), torch.device("meta:1")
PROCESSOR = torch.device("cpu")
_MOVES = {"_to_copy", "copy_", "copy", "lift_fresh", "_local_scalar_dense"}
_BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}
_plain_subclass = torch.Tensor._make_subclass


class Elsewhere(torch.Tensor):
    """A tensor that reports another device; ``inside`` holds its numbers."""

    inside: torch.Tensor

    @staticmethod
    def __new__(cls, inside, device):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inside.shape,
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=device,
        )
        made.inside = inside
        return made

    def __setitem__(self, where, value):
        if not isinstance(value, torch.Tensor):  # torch would make the number without asking us
            value = torch.tensor(value, dtype=self.dtype)
        super().__setitem__(where, value)

    def tolist(self):
        return self.inside.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _carry_out(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """While entered, tensors can be made on the other devices and moved to and fro."""

    def __enter__(self):
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(
            True
        )  # torch.tensor(..., device=...) is made here, then moved
        torch.Tensor._make_subclass = staticmethod(_subclass)
        return super().__enter__()

    def __exit__(self, *error):
        torch.Tensor._make_subclass = staticmethod(_plain_subclass)
        torch._C._set_only_lift_cpu_tensors(self.before)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _carry_out(func, args, kwargs or {})


def _subclass(cls, data, *rest):
    if not isinstance(data, Elsewhere):
        return _plain_subclass(cls, data, *rest)
    both = type(cls.__name__, (cls, Elsewhere), {})
    return Elsewhere.__new__(both, data.inside, data.device)


def _carry_out(func, args, kwargs):
    flat = [*_flat(args), *_flat(kwargs.values())]
    tensors = [a for a in flat if isinstance(a, torch.Tensor)]
    if kwargs.get("device") is None and not any(isinstance(t, Elsewhere) for t in tensors):
        return func(*args, **kwargs)  # on the processor alone
    name = func._schema.name.removeprefix("aten::")
    _refuse_mixture(name, args, tensors)
    target = _target(kwargs.get("device"), tensors)
    away = target != PROCESSOR
    if away and any(isinstance(a, torch.Generator) for a in flat):
        raise RuntimeError(f"{name}: a generator of {target} is needed, not one of the processor")
    ours = {k: PROCESSOR if k == "device" and v is not None else v for k, v in kwargs.items()}
    out = func(*_each(_inside, args), **{k: _each(_inside, v) for k, v in ours.items()})
    if torch.Tag.inplace_view in func.tags and isinstance(args[0], Elsewhere):
        with torch._C._DisableTorchDispatch():  # squeeze_ and its kind: the outer shape changes too
            func(*args, **kwargs)
        return args[0]
    if func._schema.is_mutable:
        known = {id(t.inside): t for t in tensors if isinstance(t, Elsewhere)}
        return _each(lambda v: known.get(id(v), v), out)
    return _each(lambda v: Elsewhere(v, target) if away and torch.is_tensor(v) else v, out)


def _flat(values):
    """What an operation was given, lists of tensors spread out: there is nothing deeper."""
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _each(change, value):
    """The change of one value, or of each in a list. Torch's tree_map took half the time."""
    return (
        type(value)(_each(change, one) for one in value)
        if isinstance(value, (list, tuple))
        else change(value)
    )


def _inside(value):
    return value.inside if isinstance(value, Elsewhere) else value


def _target(asked, tensors):
    """Where the answer lies: the device asked for, or that of the operands that are no single numbers."""
    if asked is not None:
        asked = torch.device(asked)
        return FIRST if asked == torch.device("meta") else asked
    away = [t for t in tensors if isinstance(t, Elsewhere)]
    return next((t.device for t in away if t.dim()), away[0].device if away else PROCESSOR)


def _refuse_mixture(name, args, tensors):
    if name in _MOVES:
        return
    if name in _BY_INDEX and isinstance(args[0], Elsewhere):  # indices may come from the processor
        tensors = [args[0], *(t for t in args[2:] if isinstance(t, torch.Tensor))]
    counted = [t for t in tensors if isinstance(t, Elsewhere) or t.dim()]
    places = sorted({str(t.device) for t in counted})
    if len(places) > 1:
        raise RuntimeError(f"{name}: expected all tensors on one device, found {places}")


def elsewhere(value):
    """The tensor, or a copy of the model, on the second device."""
    if isinstance(value, torch.Tensor):
        return Elsewhere(value.detach(), FIRST)
    model = _copied(value)
    _move(model, FIRST)
    return model


def on_card(value):
    """The tensor, or a copy of the model, on a CUDA device: where a machine has one."""
    return value.cuda() if isinstance(value, torch.Tensor) else _copied(value).to("cuda")


def split(model):
    """A copy of the model as a device map lays it: the last block and what follows on a third device."""
    model = _copied(model)
    last = model.blocks[-1].original_component
    last.register_forward_pre_hook(_bring, with_kwargs=True)
    unembed = model.unembed.original_component
    unembed.register_forward_hook(lambda _module, _args, out: out.to(FIRST))
    for part in (model.blocks[-1], getattr(model, "ln_final", None), model.unembed):
        if part is not None:
            _move(part, SECOND)
    _move(model, FIRST)
    model.cfg.n_devices, model.cfg.device = 2, str(FIRST)  # as TransformerLens sets them
    return model


def _copied(model):
    for block in model.blocks:
        block.attn._captured_pre_ln_residual = None  # hooks of an earlier copy write here
    return copy.deepcopy(model)


def _bring(_module, args, kwargs):

    def moved(value):
        return value.to(SECOND) if torch.is_tensor(value) else value

    return _each(moved, args), {name: _each(moved, value) for name, value in kwargs.items()}


def _move(part, device):
    for module in part.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and not isinstance(value, Elsewhere):
                moved = Elsewhere(value.detach(), device)
                module._parameters[name] = torch.nn.Parameter(
                    moved, requires_grad=value.requires_grad
                )
        for name, value in list(module._buffers.items()):
            if value is not None and not isinstance(value, Elsewhere):
                module._buffers[name] = Elsewhere(value, device)


def let_weights_be_read(monkeypatch):
    """TransformerLens refuses to read weights on a device called meta; ours hold numbers."""
    for module in list(sys.modules.values()):
        if getattr(module, "unreadable_weight_reason", None) is not None:
            monkeypatch.setattr(module, "unreadable_weight_reason", lambda _weight: None)
