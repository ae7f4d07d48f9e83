"""Read a student's answer and say in plain words what is wrong with it. Used by every lesson.

A check is a function of the answer that raises :class:`Wrong` with a sentence for the student, and
otherwise returns a remark (or nothing). Whatever a student's function raises comes back as
:class:`Wrong` too, so that a wrong answer never ends in a traceback.
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Wrong(Exception):
    """The answer is not right; the text is for the student."""


class NotWritten(Wrong):
    """The exercise is still the stub."""


@dataclass(frozen=True)
class Exercise:
    """How one exercise is checked.

    Args:
        check: takes the answer; raises :class:`Wrong`; may return a remark shown on success.
        hints: from a nudge to nearly the answer; revealed one by one.
        whole: the result is token ids or true and false, so whole numbers are what later cells want.
    """

    check: Callable[[Any], str | None]
    hints: tuple[str, ...]
    whole: bool = False


def call(answer: Any, *arguments: Any, case: str = "", untouched: str = "") -> Any:
    """Call a student's function on copies of the arguments; every failure becomes :class:`Wrong`.

    Args:
        answer: what the student passed; must be callable.
        *arguments: tensors, and lists of tensors, are cloned, so that in-place edits cannot change
            the case.
        case: what this call is, for the message: "on a vocabulary of 3".
        untouched: what is wrong where the answer changes its first argument in place; allowed by default.
    """
    if not callable(answer):
        raise Wrong(
            f"This exercise wants the function itself, but it got a value of type "
            f"{type(answer).__name__}. Pass the name of the function without brackets."
        )
    copies = [copied(argument) for argument in arguments]
    _format.set(None)
    try:
        result = answer(*copies)
    except NotImplementedError:
        raise NotWritten(
            "Not written yet: replace the line that raises NotImplementedError by your own code, "
            "run that cell, then run this one again."
        ) from None
    except Wrong:
        raise
    except (Exception, SystemExit) as error:  # exit() in an answer must not end a grader
        where = _where(answer, error)
        text = str(error).strip().splitlines()
        about = f": {text[0]}" if text else ""
        given = _shapes(arguments)
        raise Wrong(
            f"Your function raised {type(error).__name__}{about}{where}"
            f"{' ' + case if case else ''}. It was called with {given}."
        ) from None
    if untouched and changed(arguments[0], copies[0]):
        raise Wrong(untouched)
    return result


_INFINITE = "Look for a division by zero or the logarithm of zero."


def tensor(
    value: Any,
    *,
    shape: Sequence[int] | None = None,
    what: str = "The result",
    infinite: str = _INFINITE,
) -> Float[Tensor, "..."]:
    """Read a tensor, array, list, number or factored matrix as float64 with the shape asked for.

    ``infinite`` is said where NaN or infinity comes back.
    """
    if value is None:
        raise Wrong(f"{what} is None. Does your function end with a return statement?")
    if hasattr(value, "AB"):  # a FactoredMatrix is as good as its product
        value = value.AB
    try:
        got = _one_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(
            f"{what} should be a tensor, but it is of type {type(value).__name__}."
        ) from None
    if got.is_complex():
        raise Wrong(f"{what} holds complex numbers; return real ones (take .real).")
    if got.dtype in _HALF:
        _format.set(got.dtype)
    got = got.to(torch.float64)
    if shape is not None and tuple(got.shape) != tuple(shape):
        raise Wrong(f"{what} has shape {tuple(got.shape)}, but it should be {tuple(shape)}.")
    bad = int((~torch.isfinite(got)).sum())
    if bad:
        found = (
            f" is {float(got)}."
            if got.ndim == 0
            else f": {bad} of {got.numel()} numbers are NaN or infinite."
        )
        raise Wrong(f"{what}{found} {infinite}")
    return got


_HALF = (torch.float16, torch.bfloat16)
_ROUNDINGS = 4  # of a right answer in half precision, of its largest number
#: The format of half precision that the latest answer, or a part of it, came in.
_format: ContextVar[torch.dtype | None] = ContextVar("format", default=None)


def _one_tensor(value: Any) -> Tensor:
    """Read what holds numbers as one tensor: lists of rows and of matrices too."""
    if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
        return torch.stack([_one_tensor(part) for part in value])
    if isinstance(value, (list, tuple)):
        value = np.asarray(value)  # keeps every digit; torch would read a list as float32
    return torch.as_tensor(value)


def unfit(value: Any, *, whole: bool = False) -> str | None:
    """What keeps later cells from going on with a result whose numbers are right, or None."""
    if isinstance(value, np.ndarray):
        return _FOREIGN
    if hasattr(value, "AB"):
        return (
            "You return a FactoredMatrix. The cells below go on with the matrix: return its `.AB`."
        )
    if isinstance(value, (list, tuple)):
        pair = len(value) == 2 and all(not isinstance(part, Tensor) or part.ndim for part in value)
        if not pair or any(isinstance(part, (int, float)) for part in value):
            return _FOREIGN
        return next((told for part in value if (told := unfit(part))), None)
    if isinstance(value, Tensor) and value.dtype in _HALF:
        return (
            f"You return {value.dtype}, which keeps two or three digits, and so closely it was judged. "
            "The cells below go on in float32: return it with `.float()`."
        )
    if isinstance(value, Tensor) and value.ndim and not (whole or value.is_floating_point()):
        return (
            f"You return a tensor of {value.dtype}. The cells below multiply it with float32: return "
            "it with `.float()`."
        )
    return None


_FOREIGN = (
    "You return an array or a list. The cells below go on with a torch tensor: return "
    "`torch.as_tensor(...)` of it, or `torch.stack(...)` of a list of tensors, before you run them."
)


def number(value: Any, *, what: str = "The result", infinite: str = _INFINITE) -> float:
    """Read one finite number; a tensor with one element will do. ``infinite`` as in :func:`tensor`."""
    got = tensor(value, what=what, infinite=infinite)
    if got.numel() != 1:
        raise Wrong(f"{what} should be one number, but it has shape {tuple(got.shape)}.")
    return float(got.reshape(()))


def require_close(
    got: Any,
    want: Any,
    message: str,
    *,
    atol: float = 1e-5,
    rtol: float = 1e-4,
    show: bool = True,
) -> None:
    """Raise :class:`Wrong` with ``message`` unless ``|got - want| <= atol + rtol |want|``.

    Args:
        got: the student's tensor or number.
        want: what it should be, same shape.
        message: what is wrong, one or two sentences.
        atol: absolute tolerance; float32 answers must pass.
        rtol: relative tolerance.
        show: add the entry that is furthest off, yours and expected.
    """
    got = torch.as_tensor(got, dtype=torch.float64)
    want = torch.as_tensor(want, dtype=torch.float64)
    atol, rtol = _as_coarse(want, atol, rtol, roundings=_ROUNDINGS)
    off = (got - want).abs() - atol - rtol * want.abs()
    if bool((off <= 0).all()):
        return
    if show:
        index = torch.unravel_index(off.argmax(), off.shape) if off.ndim else ()
        place = f" at {[int(i) for i in index]}" if off.ndim else ""
        yours, expected = float(got[tuple(index)]), float(want[tuple(index)])
        yours, expected = yours + 0.0, expected + 0.0  # no minus before a zero
        message = f"{message} Furthest off{place}: yours is {yours:.4g}, expected {expected:.4g}."
    raise Wrong(message)


def matches(got: Any, want: Any, *, atol: float = 1e-5, rtol: float = 1e-4) -> bool:
    """Whether two tensors or numbers agree; used to recognise a common mistake."""
    got = torch.as_tensor(got, dtype=torch.float64)
    want = torch.as_tensor(want, dtype=torch.float64)
    atol, rtol = _as_coarse(want, atol, rtol, roundings=1)
    return got.shape == want.shape and bool(torch.allclose(got, want, atol=atol, rtol=rtol))


def name_slip(got: Any, want: Any, slips: Mapping[str, Any]) -> None:
    """Raise :class:`Wrong` with what is said of a common slip, where the answer is that and not ``want``.

    Args:
        got: the student's tensor or number, on a case where no two slips agree.
        want: what it should be.
        slips: what each slip gives, under the sentence to say.
    """
    if matches(got, want):
        return
    for said, value in slips.items():
        if matches(got, value):
            raise Wrong(said)


def half_format() -> torch.dtype | None:
    """The format of half precision that the latest answer came in, if any."""
    return _format.get()


def _as_coarse(want: Tensor, atol: float, rtol: float, *, roundings: int) -> tuple[float, float]:
    """Tolerances no finer than the number format that the answer came in."""
    grain = 0.0 if (half := _format.get()) is None else roundings * torch.finfo(half).eps
    size = float(want.abs().max()) if want.numel() else 0.0
    return max(atol, grain * size), max(rtol, grain)


def largest(want: Float[Tensor, "..."], *_: Tensor) -> Float[Tensor, ""]:
    """The size that the roundings of an answer are measured against, unless an exercise knows better."""
    return want.abs().max()


def row_largest(want: Float[Tensor, "row column"], *_: Tensor) -> Float[Tensor, "row 1"]:
    """The same for an answer whose rows have units of their own."""
    return want.abs().amax(dim=1, keepdim=True)


def exact(
    got: Float[Tensor, "..."],
    nearest: Callable[..., Float[Tensor, "..."]],
    *inputs: Float[Tensor, "..."],
    size: Callable[..., Float[Tensor, "..."]] = largest,
) -> Float[Tensor, "..."]:
    """The right answer next to one in half precision, whose rank or inverse rounding has spoilt.

    An answer in float16 or bfloat16 counts as right within four roundings of a right answer, to the question
    or to the question with its inputs rounded to that format. Any other answer comes back as it is.

    Args:
        got: the answer, as :func:`tensor` has just read it.
        nearest: of the answer and the inputs, the right answer that is nearest to it.
        *inputs: of the question, in float64.
        size: of the right answer and the inputs, what a rounding is a share of.
    """
    if (half := _format.get()) is None:
        return got
    for given in (inputs, [x.to(half).to(x.dtype) for x in inputs]):
        want = nearest(got, *given)
        rounding = torch.finfo(half).eps * size(want, *given)
        if bool(((got - want).abs() <= _ROUNDINGS * rounding).all()):
            return nearest(got, *inputs)
    return got


#: What is added to the seed of every case: 0 in a notebook, any number where a grader draws new ones.
_draw: ContextVar[int] = ContextVar("draw", default=0)


@contextmanager
def fresh_cases(draw: int) -> Iterator[None]:
    """Draw other cases than a notebook's own checks, so that nobody can have looked them up."""
    before = _draw.set(draw)
    try:
        yield
    finally:
        _draw.reset(before)


def generator(seed: int) -> torch.Generator:
    """Local generator of a case."""
    return torch.Generator().manual_seed(seed + _draw.get())


def random_tensor(*shape: int, seed: int = 0) -> Float[Tensor, "..."]:
    """Standard normal float32 tensor of a case."""
    return torch.randn(*shape, generator=generator(seed))


def random_integers(low: int, high: int, count: int, *, seed: int) -> list[int]:
    """Different whole numbers of a case, in no order, ``high`` left out."""
    return (low + torch.randperm(high - low, generator=generator(seed))[:count]).tolist()


def copied(argument: Any) -> Any:
    """Clone a tensor, or a list of them; anything else is passed on as it is."""
    if isinstance(argument, Tensor):
        return argument.clone()
    return [copied(part) for part in argument] if isinstance(argument, list) else argument


def changed(was: Any, now: Any) -> bool:
    """Whether a tensor, or one in a list, is not what :func:`copied` kept."""
    if isinstance(was, list) and isinstance(now, list):
        return len(was) != len(now) or any(map(changed, was, now))
    if not (isinstance(was, Tensor) and isinstance(now, Tensor)):
        return False
    same = was.shape == now.shape and torch.allclose(was, now, rtol=0, atol=0, equal_nan=True)
    return not same


def _shapes(arguments: Sequence[Any]) -> str:
    parts = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            parts.append(f"a tensor of shape {tuple(argument.shape)}")
        elif isinstance(argument, list) and argument and isinstance(argument[0], Tensor):
            parts.append(f"a list of {len(argument)} tensors")
        elif isinstance(argument, (int, float, str, bool, type(None))):
            parts.append(repr(argument))
        else:
            parts.append(f"a {type(argument).__name__}")
    return ", ".join(parts) if parts else "no arguments"


def _where(answer: Any, error: BaseException) -> str:
    """Return the line of the student's own code where the error arose, if it is known."""
    told = getattr(
        error, "student_line", None
    )  # from a process of its own, when notebooks are graded
    if told is not None:
        return f", in your line `{told}`" if told else ""
    code = getattr(inspect.unwrap(answer), "__code__", None)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename
    ]
    return f", in your line `{own[-1].line}`" if own and own[-1].line else ""


def outgrown(answer: Any, large: tuple[Any, ...], small: tuple[Any, ...]) -> bool:
    """Whether ten times the size takes 30 times as long, and more than .15 s: work of the square, or more.

    Whatever the answer computes with. A machine that pauses once does not count against it.
    """
    if (first := _seconds(answer, large)) <= 0.15:
        return False
    return min(first, _seconds(answer, large)) > max(0.15, 30 * _seconds(answer, small))


def _seconds(answer: Any, given: tuple[Any, ...]) -> float:
    start = time.perf_counter()
    answer(*given)
    return time.perf_counter() - start
