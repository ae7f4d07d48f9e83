"""Exceptions a caller may want to catch. Every message says: argument, rule, value, next step.

All of them are :class:`LensLinearError`. Those that speak of an argument are also
:class:`ValueError`, so ``except ValueError`` keeps working. Warnings are :class:`LensLinearWarning`; commands
print them as notes.
"""

import errno

INTERRUPTED = "\nlens-linear: interrupted; nothing half-written was left behind"


class LensLinearError(Exception):
    """Base class of every error this package raises on purpose."""


class InvalidArgumentError(LensLinearError, ValueError):
    """An argument breaks a rule: the message names it, the rule, the value and what to do."""


class NotEnoughDataError(InvalidArgumentError):
    """Too few rows, tokens or texts for the quantity that was asked for."""


class NonFiniteError(InvalidArgumentError):
    """NaN or infinity where a finite number is needed; the message says where."""


class UnknownModelError(InvalidArgumentError):
    """No model goes by that name here; the message lists the nearest names."""


class UnsupportedModelError(InvalidArgumentError):
    """The analysis does not hold for this model, so it refuses instead of returning a wrong number."""


class CorruptedFileError(LensLinearError, ValueError):
    """A file does not match its checksum or cannot be read as what it claims to be."""


class FigureTooLargeError(InvalidArgumentError):
    """A figure or dense table would have more cells than ``max_cells``."""


class InsufficientMemoryError(LensLinearError, MemoryError):
    """Memory does not hold what was asked for; the message says how much, and which argument helps."""


class LensLinearWarning(UserWarning):
    """Every warning of this package: the answer stands, and the message says what to know about it."""


class OfflineError(LensLinearError, OSError):
    """Something needs the network, or a package that is not installed, and it is not to be had."""


class WriteError(LensLinearError, OSError):
    """A file could not be written; nothing was left behind and an older file is untouched."""


# What torch's allocator says on Windows, on Linux, on a card, and what the C library says.
_LACKS = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Say whether an error, or one that led to it, means that memory ran out, here or on a card.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(OSError(2, "no such file"))
        (True, False)
    """
    while error is not None:
        words = str(error).lower()
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a card, whatever it says
            return True
        # a library that cannot be mapped names no reason when it is memory
        if any(said in words for said in _LACKS) or words.endswith("segment from shared object"):
            return True
        error = error.__cause__
    return False
