"""Token ids of any usual kind, read in one place: tensors, arrays, lists, tokenizer output, data sets.

Whatever comes in leaves as ids [row, position] in int64 with real tokens first: rows of unequal length,
and rows padded on the left, are padded on the right with 0 and a mask says what is real. A causal model
never sees what stands right of a token, so such pads change nothing and positions count from a row's start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import numpy as np

from lens_linear.checks import shown
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Integer
    from torch import Tensor

_COLUMNS = ("input_ids", "tokens")


@runtime_checkable
class TokenRows(Protocol):
    """What stands for tokens: an array [sequence, position] of any whole numbers, or rows on disk."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Tensor: ...


@runtime_checkable
class PaddedTokens(Protocol):
    """What :class:`lens_linear.Task` is to rooms below it: ids padded on the right, and what is real."""

    @property
    def tokens(self) -> Tensor:
        """Ids [row, position]."""
        ...

    @property
    def mask(self) -> Tensor:
        """Bool, True for real tokens."""
        ...


class PaddedRows(NamedTuple):
    """Ids [row, position], real tokens first; the mask is None where all are real.

    ``left`` says how many pads stood before each row's first real token, ``width`` how many columns the
    ids had as they came.
    """

    tokens: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"] | None
    left: Int[Tensor, " row"]
    width: int


def read_token_rows(name: str, value: Any, *, mask: Any = None) -> PaddedRows:
    """Read token ids of any kind into rows padded on the right.

    Args:
        name: of the argument, for messages.
        value: a tensor or array of any integer dtype, [row, position] or one row; a list of rows, also of
            unequal length; what a tokenizer returns (``input_ids`` and ``attention_mask``); a
            ``datasets.Dataset`` with a column of ids, or that column; a ``Task``.
        mask: 1 for real tokens, 0 for pads on either side, of the shape of the ids.

    Raises:
        InvalidArgumentError: text, fractions, or anything else that holds no ids; a mask with a hole.
        NotEnoughDataError: no rows, or a row without a token.
    """
    ids, own = _read(name, value)
    if mask is not None:
        if own is not None:
            raise InvalidArgumentError(
                f"{name} brings its own mask (attention_mask, or rows of unequal length), and mask was "
                "passed too; pass only one of them"
            )
        own = require_mask("mask", mask, ids)
    if ids.numel() == 0:
        raise NotEnoughDataError(f"{name} holds no token ids; pass at least one row of ids")
    return _right_padded(name, ids, own)


def require_tokens(
    name: str,
    value: Any,
    *,
    n_vocab: int | None = None,
    n_ctx: int | None = None,
    min_length: int = 1,
) -> Tensor:
    """Accept token ids ``[sequence, position]`` of any kind without pads; int64 out."""
    rows = read_token_rows(name, value)
    if rows.mask is not None:
        shortest, longest = (int(end) for end in rows.mask.sum(1).aminmax())
        raise InvalidArgumentError(
            f"{name} has rows of {shortest} to {longest} real tokens, but here all rows must have one "
            f"length, without pads; pass rows of one length at a time, or cut all to {shortest}"
        )
    return check_ids(name, rows.tokens, n_vocab=n_vocab, n_ctx=n_ctx, min_length=min_length)


def check_ids(
    name: str,
    tokens: Int[Tensor, "row position"],
    *,
    n_vocab: int | None = None,
    n_ctx: int | None = None,
    min_length: int = 1,
) -> Int[Tensor, "row position"]:
    """Accept ids that fit a vocabulary and a context."""
    if tokens.shape[1] < min_length or tokens.numel() == 0:
        raise NotEnoughDataError(
            f"{name} has shape {tuple(tokens.shape)} but needs at least 1 sequences of "
            f"at least {min_length} tokens; pass more or longer text"
        )
    if n_ctx is not None and tokens.shape[1] > n_ctx:
        raise InvalidArgumentError(
            f"{name} has {tokens.shape[1]} tokens a sequence but the model's context n_ctx is "
            f"{n_ctx}; cut the sequences, e.g. {name}[:, :{n_ctx}]"
        )
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or (n_vocab is not None and high >= n_vocab):
        raise InvalidArgumentError(
            f"{name} holds ids from {low} to {high} but the vocabulary has ids 0 to "
            f"{n_vocab - 1 if n_vocab is not None else '...'}; was another model's tokenizer used?"
        )
    return tokens


def require_mask(name: str, value: Any, tokens: Tensor) -> Tensor:
    """Accept a mask of the shape of ``tokens`` (1 or True for real tokens, 0 or False for padding)."""
    import torch

    mask = value
    if not isinstance(mask, torch.Tensor):
        try:
            whole = value[0 : len(value)] if hasattr(value, "__len__") else value
            mask = torch.as_tensor(np.asarray(whole))
        except (ValueError, TypeError, RuntimeError, KeyError):
            mask = None
    if mask is not None and mask.ndim == 1 and len(tokens) == 1:
        mask = mask[None]
    if mask is None or mask.shape != tokens.shape:
        got = tuple(mask.shape) if mask is not None else type(value).__name__
        raise InvalidArgumentError(
            f"{name} must be a tensor of the shape of the tokens {tuple(tokens.shape)}, got {got}; "
            "pass one 0 or 1 for each token"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidArgumentError(
            f"{name} must hold 1 for real tokens and 0 for padding only, got other values; "
            "pass e.g. (tokens != pad_id).long()"
        )
    known: Tensor = mask
    return known


def require_stream(name: str, value: Any, *, n_vocab: int) -> Tensor:
    """Accept token ids [token], one after the other, as they are (no copy)."""
    import torch

    if not isinstance(value, torch.Tensor) or value.ndim != 1:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise InvalidArgumentError(
            f"{name} must be one row of token ids, a tensor [token], got {got}; flatten it, or use "
            "encode_stream(tokenizer, text)"
        )
    if value.numel():
        require_tokens(name, value, n_vocab=n_vocab)
    return value


def flat_ids(
    name: str, ids: Sequence[int] | Integer[Tensor | np.ndarray, " token"]
) -> Int[Tensor, " token"]:
    """Accept a flat run of token ids >= 0 as an int64 tensor."""
    import torch

    try:
        tensor = torch.as_tensor(list(ids) if isinstance(ids, range) else ids)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidArgumentError(
            f"{name} must be a flat list of whole token ids ({error}); "
            "join nested lists before packing them"
        ) from error
    if tensor.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.dtype is torch.bool:
        raise InvalidArgumentError(
            f"{name} must be a flat list of whole token ids, got shape {tuple(tensor.shape)} and "
            f"dtype {tensor.dtype}; flatten it, and pass ids rather than text"
        )
    tensor = tensor.long()
    if int(tensor.min()) < 0:
        raise InvalidArgumentError(
            f"{name} must hold ids >= 0, got {int(tensor.min())}; was padding left in?"
        )
    return tensor


def _read(name: str, value: Any) -> tuple[Tensor, Tensor | None]:
    """Ids [row, position] in int64 as they came, and the mask that came with them."""
    import torch

    if isinstance(value, torch.Tensor):
        return (
            _read_items(name, list(value.unbind()))
            if value.is_nested
            else (_ids(name, value), None)
        )
    if isinstance(getattr(value, "tokens", None), torch.Tensor) and hasattr(value, "mask"):
        return value.tokens, value.mask  # a Task, known by what it holds
    if isinstance(value, np.ndarray):
        return _read_array(name, value)
    if isinstance(value, Mapping):
        return _read_columns(name, value, [str(column) for column in value])
    columns = getattr(value, "column_names", getattr(value, "columns", None))
    if columns is not None:
        return _read_columns(name, value, [str(column) for column in columns])
    if hasattr(value, "ids") and hasattr(value, "attention_mask"):  # tokenizers.Encoding
        return _with_mask(name, value.ids, value.attention_mask)
    if hasattr(value, "tolist") and hasattr(value, "__len__"):
        value = value.tolist()
    if isinstance(value, (str, bytes)) or not (
        hasattr(value, "__len__") and hasattr(value, "__getitem__")
    ):
        _refuse(name, value)
    if isinstance(value, (list, tuple, range)):
        return _read_items(name, list(value))
    whole = value[0 : len(value)]  # a stream of rows gives a tensor, a column of a data set a list
    return (
        _read(name, whole)
        if isinstance(whole, (torch.Tensor, list, np.ndarray))
        else _refuse(name, value)
    )


def _refuse(name: str, value: Any) -> NoReturn:
    advice = (
        "use torch.tensor(ids), lens_linear.tokenize(model, text) or tokenize_prompts(model, texts)"
    )
    if hasattr(value, "__iter__") and not isinstance(value, (str, bytes)):
        advice = "take rows out of it first, e.g. list(...) or list(dataset.take(1000))"
    raise InvalidArgumentError(
        f"{name} must be token ids, e.g. a tensor of token ids [sequence, position] or a list of rows, got "
        f"{type(value).__name__}; {advice}"
    )


def _ids(name: str, value: Tensor) -> Tensor:
    import torch

    if value.is_floating_point() or value.is_complex() or value.dtype is torch.bool:
        if value.numel() == 0:
            raise NotEnoughDataError(f"{name} is empty; pass at least one row of token ids")
        raise InvalidArgumentError(
            f"{name} must hold whole token ids, got dtype {value.dtype}; call .long() on ids"
        )
    if value.is_quantized:
        raise InvalidArgumentError(
            f"{name} must hold whole token ids, got quantized numbers ({value.dtype}); call "
            ".dequantize().long() on ids"
        )
    # A subclass may report any device: where it keeps its entries is its own affair.
    if value.layout is not torch.strided or (value.is_meta and type(value) is torch.Tensor):
        raise InvalidArgumentError(
            f"{name} must be a dense tensor that holds its ids, got layout {value.layout} on "
            f"{value.device}; call .to_dense(), or load the data"
        )
    if value.ndim == 1:
        value = value[None]
    if value.ndim != 2:
        raise InvalidArgumentError(
            f"{name} must have shape [sequence, position], got {tuple(value.shape)}; reshape it"
        )
    return value.long()


def _read_array(name: str, value: np.ndarray) -> tuple[Tensor, Tensor | None]:
    import torch

    if value.dtype.kind in "OUS":
        return _read_items(name, list(value))
    if value.dtype.kind not in "iu" and value.size:
        raise InvalidArgumentError(
            f"{name} must hold whole token ids, got dtype {value.dtype}; use .astype('int64') on ids"
        )
    return _ids(name, torch.from_numpy(value.astype(np.int64))), None


def _read_columns(name: str, value: Any, names: list[str]) -> tuple[Tensor, Tensor | None]:
    """A mapping or a data set: its column of ids, with the mask that stands beside it."""
    found = next((column for column in _COLUMNS if column in names), None)
    if found is None or not hasattr(value, "__getitem__"):
        raise InvalidArgumentError(
            f"{name} must be token ids, or hold them in a column 'input_ids', got {type(value).__name__} "
            f"with {', '.join(map(repr, names[:8])) or 'no such column'}; pass a split and a column that "
            "holds ids, e.g. dataset['train']['input_ids'], or tokenize the text first"
        )
    labels = value["labels"] if "labels" in names else None
    if labels is not None:
        raise InvalidArgumentError(
            f"{name} holds 'labels' beside its ids, which can mean answers or a copy of the ids; pass "
            f"lens_linear.Task({found}, labels=..., mask=...), or the ids alone"
        )
    return _with_mask(
        name, value[found], value["attention_mask"] if "attention_mask" in names else None
    )


def _with_mask(name: str, ids: Any, mask: Any) -> tuple[Tensor, Tensor | None]:
    tokens, own = _read(name, ids)
    if mask is None or own is not None:
        return tokens, own  # rows of unequal length say themselves what is real
    return tokens, require_mask("attention_mask", mask, tokens)


def _read_items(name: str, items: list[Any]) -> tuple[Tensor, Tensor | None]:
    """One row of numbers, or rows that may differ in length."""
    import torch

    if not items:
        raise NotEnoughDataError(f"{name} is empty; pass at least one row of token ids")
    if not any(map(_is_row, items)):
        return _ids(name, _numbers(name, items)), None
    rows, masks = [], []
    for item in items:
        plain = isinstance(item, (list, tuple)) and item and not _is_row(item[0])
        ids, mask = (_ids(name, _numbers(name, item)), None) if plain else _read(name, item)
        if len(ids) != 1 or (isinstance(item, torch.Tensor) and item.ndim != 1):
            raise InvalidArgumentError(
                f"{name} must be a list of rows of ids, but one item has shape {tuple(ids.shape)}; join "
                "them with torch.cat, or flatten each"
            )
        rows.append(ids[0].cpu())
        masks.append(
            torch.ones(ids.shape[1], dtype=torch.bool) if mask is None else mask[0].bool().cpu()
        )
    lengths = {len(row) for row in rows}
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = pad(rows, batch_first=True)
    real = pad(masks, batch_first=True)
    return tokens, None if len(lengths) == 1 and bool(real.all()) else real


def _numbers(name: str, items: Sequence[Any]) -> Tensor:
    import torch

    try:
        return torch.tensor(list(items))
    except Exception as error:  # whatever the items raise when they are asked for a number
        odd = next((i for i in items if not isinstance(i, (int, np.integer))), items[0])
        raise InvalidArgumentError(
            f"{name} must be token ids, e.g. a tensor of token ids [sequence, position] or a list of rows, "
            f"but holds {shown(odd)} ({type(odd).__name__}); for text use lens_linear.tokenize(model, text)"
        ) from error


def _is_row(item: Any) -> bool:
    return hasattr(item, "__len__") and getattr(item, "ndim", 1) > 0


def _right_padded(name: str, ids: Tensor, mask: Tensor | None) -> PaddedRows:
    """Shift each row's real tokens to the front; pads become 0, columns without a real token go."""
    import torch

    left = torch.zeros(len(ids), dtype=torch.int64)
    if mask is None:
        return PaddedRows(ids, None, left, ids.shape[1])
    real = mask.to("cpu").bool()
    counts = real.sum(1)
    if int(counts.min()) == 0:
        row = int((counts == 0).nonzero()[0])
        raise NotEnoughDataError(f"{name} has no real token in row {row}; leave empty rows out")
    left = real.int().argmax(1)
    column = torch.arange(real.shape[1])
    unbroken = (column >= left[:, None]) & (column < (left + counts)[:, None])
    if not torch.equal(real, unbroken):
        row = int((real != unbroken).any(1).nonzero()[0])
        raise InvalidArgumentError(
            f"mask must mark one unbroken run of real tokens in each row, but row {row} of {name} has pads "
            "between them; pad on one side"
        )
    width = int(counts.max())
    place = (left[:, None] + torch.arange(width)).clamp(max=real.shape[1] - 1)
    kept = torch.arange(width) < counts[:, None]
    moved = ids.gather(1, place.to(ids.device))
    tokens = moved.masked_fill(~kept.to(ids.device), 0)
    return PaddedRows(tokens, None if bool(kept.all()) else kept, left, ids.shape[1])
