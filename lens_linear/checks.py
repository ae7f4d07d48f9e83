"""The one place where arguments are checked. Each check returns the value it accepted."""

from __future__ import annotations

import difflib
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from lens_linear.errors import InvalidArgumentError, NonFiniteError, NotEnoughDataError

if TYPE_CHECKING:
    import torch

Choice = TypeVar("Choice", bound=str)


@runtime_checkable
class HasTexts(Protocol):
    """A concept, or a split of one."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, none blank."""
        ...


def counted(n: int, noun: str, spec: str = "") -> str:
    """A number and what it counts: "1 row", "2 rows", "0 queries"; ``spec`` formats the number."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeo" else f"{noun}s"
    hissing = noun.endswith(("ch", "ss", "x")) and not noun.endswith("poch")
    many = f"{noun}es" if hissing else many
    return f"{n:{spec}} {noun if n == 1 else many}"


def require_int(
    name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Accept a whole number in ``[minimum, maximum]`` (bool is refused)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidArgumentError(
            f"{name} must be a whole number, got {shown(value)} ({type(value).__name__}); pass an int"
        )
    return int(_in_range(name, int(value), minimum, maximum))


def require_seed(value: Any) -> int:
    """Accept a seed in ``[0, 2³²)``, the range in which the seeds derived from it fit every generator."""
    return require_int("seed", value, minimum=0, maximum=2**32 - 1)


def require_bool(name: str, value: Any) -> bool:
    """Accept True or False, also NumPy's; anything else that Python calls true is refused."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise InvalidArgumentError(
            f"{name} must be True or False, got {shown(value)} ({type(value).__name__}); pass a bool"
        )
    return bool(value)


def require_float(
    name: str, value: Any, *, minimum: float | None = None, maximum: float | None = None
) -> float:
    """Accept a finite real number in ``[minimum, maximum]``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidArgumentError(
            f"{name} must be a number, got {shown(value)} ({type(value).__name__}); pass a float"
        )
    if not math.isfinite(float(value)):
        raise NonFiniteError(f"{name} must be finite, got {shown(value)}; pass a finite number")
    return float(_in_range(name, float(value), minimum, maximum))


def _in_range(name: str, value: Any, minimum: Any, maximum: Any) -> Any:
    if minimum is not None and value < minimum:
        raise InvalidArgumentError(
            f"{name} must be at least {minimum}, got {value}; pass a larger value"
        )
    if maximum is not None and value > maximum:
        raise InvalidArgumentError(
            f"{name} must be at most {maximum}, got {value}; pass a smaller value"
        )
    return value


def require_choice(name: str, value: Any, options: Iterable[Choice]) -> Choice:
    """Accept one of ``options``; the error lists them and names the nearest."""
    options = tuple(options)
    if not isinstance(value, str) or value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidArgumentError(
            f"{name} must be one of {', '.join(map(repr, options))}, got {shown(value)}{hint}"
        )
    chosen: Any = value
    return chosen  # type: ignore[no-any-return]


def require_instance(
    name: str, value: Any, kinds: type | tuple[type, ...], *, advice: str = "see its docstring"
) -> Any:
    """Accept an object of one of ``kinds``; ``advice`` says where such objects come from."""
    if not isinstance(value, kinds):
        names = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise InvalidArgumentError(
            f"{name} must be a {names}, got {shown(value)} ({type(value).__name__}); {advice}"
        )
    return value


def require_list(name: str, value: Any, *, of: str) -> list[Any]:
    """Accept a list, tuple, range, array or 1-D tensor, not one word or a mapping; a list out."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(require_iterable(name, value, of=of))


def texts_in(name: str, value: Any) -> list[str] | None:
    """The texts of a list, an array, a column of a table or data set, or a concept; None where it holds ids.

    One string is one text. What holds them in its ``texts`` (a concept, a split) gives these.
    """
    if isinstance(value, (str, bytes)):
        value = [value]
    value = getattr(value, "texts", value)
    named = getattr(value, "column_names", getattr(value, "columns", ()))
    columns = [str(column) for column in (value if isinstance(value, Mapping) else named)]
    if columns:
        if {"input_ids", "tokens"} & {*columns}:
            return None
        raise InvalidArgumentError(
            f"{name} must be one column of texts, got a {type(value).__name__} with "
            f"{', '.join(map(repr, columns[:8]))}; pass e.g. {name}[{columns[0]!r}]"
        )
    if not isinstance(value, Iterable) or isinstance(value, Mapping) or hasattr(value, "is_sparse"):
        return None
    listed = next((f for f in ("tolist", "to_pylist") if hasattr(value, f)), None)
    items = list(getattr(value, listed)() if listed else value)
    wrong = next((i for i, item in enumerate(items) if not isinstance(item, str)), None)
    if wrong is None:
        return [str(item) for item in items] if items else None
    if any(isinstance(item, (str, bytes)) for item in items):
        raise InvalidArgumentError(
            f"{name} must hold texts alone, got {shown(items[wrong])} ({type(items[wrong]).__name__}) at "
            f"{wrong}; leave it out, decode bytes, or pass ids for all"
        )
    return None


def require_texts(name: str, value: Any, *, empty: str = "pass at least one text") -> list[str]:
    """Accept texts as :func:`texts_in` reads them, at least one."""
    if isinstance(value, str):
        raise InvalidArgumentError(
            f"{name} must be a list of str, got one; wrap it in [], or for one long text use tokenize"
        )
    found = texts_in(name, value)
    no_axis = getattr(value, "ndim", 1) == 0  # a tensor of one number says that it has a length
    if found is None and not no_axis and isinstance(value, Sized) and not len(value):
        raise NotEnoughDataError(f"{name} is empty; {empty}")
    if found is None:
        raise InvalidArgumentError(
            f"{name} must be a list or a column of str, or a concept, got {shown(value)} "
            f"({type(value).__name__}); pass text, not ids"
        )
    return found


def require_iterable(name: str, value: Any, *, of: str) -> Iterable[Any]:
    """Accept anything that can be gone through once, generators too, but not one word or a mapping."""
    no_axis = (
        getattr(value, "ndim", 1) == 0
    )  # a tensor or an array of one number says that it is iterable
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or no_axis:
        raise InvalidArgumentError(
            f"{name} must be a list of {of}, got {shown(value)} ({type(value).__name__}); "
            f"{'wrap it in []' if isinstance(value, (str, bytes)) else 'pass a list of them'}"
        )
    return value


def require_ints(
    name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None
) -> list[int]:
    """Accept a list of whole numbers, each in ``[minimum, maximum]``."""
    items = require_list(name, value, of="whole numbers")
    return [require_int(name, item, minimum=minimum, maximum=maximum) for item in items]


def require_floats(
    name: str, value: Any, *, minimum: float | None = None, maximum: float | None = None
) -> list[float]:
    """Accept a list of finite numbers, each in ``[minimum, maximum]``."""
    items = require_list(name, value, of="numbers")
    return [require_float(name, item, minimum=minimum, maximum=maximum) for item in items]


def shown(value: Any) -> str:
    """Return a ``repr`` that fits into a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def head_name(layer: int, head: int) -> str:
    """Write a head as every table does: ``L1H3`` for head 3 of layer 1."""
    return f"L{layer}H{head}"


def require_head(name: str, value: Any, *, n_layers: int, n_heads: int) -> tuple[int, int]:
    """Accept a head as ``"L1H3"`` or as a pair (layer, head); the pair comes out."""
    pair = value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*L(\d{1,9})H(\d{1,9})\s*", value, re.ASCII | re.IGNORECASE)
        pair = tuple(map(int, match.groups())) if match else None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InvalidArgumentError(
            f"{name} must be a head such as 'L1H3', or a pair (layer, head), got {shown(value)}; take one of "
            "a table's column 'head'"
        )
    layer = require_int("layer", pair[0], minimum=0, maximum=n_layers - 1)
    return layer, require_int("head", pair[1], minimum=0, maximum=n_heads - 1)


def require_heads(name: str, value: Any, *, n_layers: int, n_heads: int) -> list[tuple[int, int]]:
    """Accept one head or a list of different ones, each as in :func:`require_head`."""
    if isinstance(value, str) or (
        isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, int) for v in value)
    ):
        value = [value]
    items = require_list(name, value, of="heads such as 'L1H3' or (1, 3)")
    found = [require_head(name, item, n_layers=n_layers, n_heads=n_heads) for item in items]
    if len(set(found)) != len(found):
        shown_heads = ", ".join(head_name(*head) for head in found)
        raise InvalidArgumentError(f"{name} names a head twice: {shown_heads}; name each once")
    return found


def require_layers(name: str, value: Any, n_layers: int) -> list[int]:
    """Accept an int or a sequence of distinct layer indices in ``[0, n_layers)``; sorted list out."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, range, set, frozenset)):
        raise InvalidArgumentError(
            f"{name} must be a layer index or a list of them, got {shown(value)}; pass e.g. [0, 1]"
        )
    layers = [require_int(name, v, minimum=0, maximum=n_layers - 1) for v in value]
    if len(set(layers)) != len(layers):
        raise InvalidArgumentError(f"{name} names a layer twice: {layers}; name each layer once")
    return sorted(layers)


def require_float_tensor(
    name: str, value: Any, *, ndim: int | None = None, finite: bool = True
) -> torch.Tensor:
    """Accept a dense real floating tensor with ``ndim`` axes and, by default, only finite entries."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise InvalidArgumentError(
            f"{name} must be a torch tensor, got {type(value).__name__}; use torch.as_tensor({name})"
        )
    if not value.is_floating_point():
        advice = ".dequantize()" if value.is_quantized else ".float()"
        raise InvalidArgumentError(
            f"{name} must hold real floating numbers, got dtype {value.dtype}; call {advice} on it"
        )
    # A subclass may report any device: where it keeps its entries is its own affair.
    empty = value.is_meta and type(value) in (torch.Tensor, torch.nn.Parameter)
    if value.layout is not torch.strided or empty:
        kind, advice = ("sparse", "call .to_dense() on it")
        if empty:
            kind, advice = ("a shape without data on the meta device", "load its weights first")
        raise InvalidArgumentError(f"{name} must hold its entries, got {kind}; {advice}")
    if ndim is not None and value.ndim != ndim:
        raise InvalidArgumentError(
            f"{name} must have {ndim} axes, got shape {tuple(value.shape)}; reshape it first"
        )
    if finite:
        require_finite(name, value)
    return value


def require_finite(name: str, value: torch.Tensor) -> torch.Tensor:
    """Accept a tensor without NaN or infinity; the error counts the bad entries."""
    import torch

    if value.is_floating_point() and value.element_size() == 1:
        value = value.float()  # torch has no isfinite for eight bits
    if value.numel() and not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise NonFiniteError(
            f"{name} holds {bad} NaN or infinite entries out of {value.numel()}; "
            "check the data or the model that produced it"
        )
    return value


def require_rows(name: str, n: int, *, minimum: int, why: str) -> int:
    """Accept at least ``minimum`` rows; ``why`` says what they are needed for."""
    if n < minimum:
        raise NotEnoughDataError(
            f"{name} has {n} rows but needs at least {minimum} ({why}); pass more data"
        )
    return n


def require_device(name: str, value: Any) -> torch.device:
    """Accept a device that this machine has."""
    import torch

    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except Exception as error:  # an AssertionError, a RuntimeError or others, as torch was built
        first = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InvalidArgumentError(
            f"{name} must be a device of this machine such as 'cpu' or 'cuda:0', got {shown(value)} "
            f"({first})"
        ) from error
    return device


def require_callable(name: str, value: Any, *, advice: str) -> Any:
    """Accept a function or anything else that can be called."""
    if not callable(value):
        raise InvalidArgumentError(
            f"{name} must be a function, got {shown(value)} ({type(value).__name__}); {advice}"
        )
    return value


def require_step(value: Any) -> Callable[[str], None]:
    """Accept ``on_step``, a function of one word; None says nothing."""
    if value is None:
        return lambda _word: None
    step: Callable[[str], None] = require_callable(
        "on_step", value, advice="pass a function of one word"
    )
    return step


def require_file(name: str, value: Any) -> Path:
    """Accept the path of an existing regular file."""
    path = require_path(name, value)
    if not path.is_file():
        there = path.exists()
        raise InvalidArgumentError(
            f"{name} must be {'a regular file' if there else 'a file that exists'}, got {str(path)!r}"
            f"{', which is a folder, a device or a pipe: write what it gives to a file' * there}; "
            "check the path"
        )
    return path


def require_name(name: str, value: Any) -> str:
    """Accept a name that can be a folder's, inside the folder it is meant for and on any system."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ,._-]{0,99}", value):
        raise InvalidArgumentError(
            f"{name} must be at most 100 letters, digits, spaces or ,._- and begin with a letter or "
            f"digit, got {shown(value)}; it names a folder: choose e.g. 'my-model'"
        )
    return value


def require_path(name: str, value: Any) -> Path:
    """Accept a non-empty path."""
    if not isinstance(value, (str, Path)):
        raise InvalidArgumentError(
            f"{name} must be a path, got {shown(value)}; pass a str or pathlib.Path"
        )
    if not str(value) or "\0" in str(value):
        raise InvalidArgumentError(
            f"{name} must be a path, got {shown(value)}; write the name of a file or folder"
        )
    try:
        parts = [os.fsencode(part) for part in Path(value).parts]
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{name} must be a path, got {shown(value)}, which holds half a character; write it anew"
        ) from error
    if any(len(part) > 255 for part in parts) or sum(map(len, parts)) > 4000:
        raise InvalidArgumentError(
            f"{name} must be a path with at most 255 bytes a part, got {shown(str(value))}; shorten it"
        )
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # ~someone who is not known here
        raise InvalidArgumentError(
            f"{name} must be a path on this machine, got {str(value)!r} ({error}); write it without ~"
        ) from error
