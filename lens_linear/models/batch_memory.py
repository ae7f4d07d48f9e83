"""How many sequences go through a model at once: as many as memory allows, of any length."""

from __future__ import annotations

from lens_linear.checks import require_int
from lens_linear.errors import InsufficientMemoryError
from lens_linear.linalg.memory import free_bytes, size_text, usable_bytes
from lens_linear.models.checked import CheckedModel

# A pass over more tokens than this is not faster a token: it only leaves the processor's caches.
_TOKENS = 4096
# On a processor not over more activations of a block either: at width 768 five rows of 256 took 9.7 s,
# sixteen 12.3 s.
_ACTIVATIONS = 2**27
# Nor over more logits: 34 million and their float32 copy take a quarter of a gigabyte.
_LOGITS = 2**25


def sequence_bytes(model: CheckedModel, length: int, *, logits: bool = True) -> int:
    """Bytes that one sequence takes at the widest place of a forward pass.

    One layer's attention holds three tables [head, length, length] at once (scores, mask added, softmax),
    its FFN three of [length, d_mlp]; logits and their float32 copy stand alone.
    """
    size = max(
        (p.element_size() for p in model.bridge.parameters() if p.is_floating_point()), default=4
    )
    width = max(model.d_model, int(getattr(model.cfg, "d_mlp", 0) or 0))
    table = 3 * model.n_heads * length**2 * size
    block = table + 3 * length * width * size + 8 * length * model.d_model * size
    return max(block, length * model.d_vocab * (size + 4) if logits else 0)


def sequences_a_pass(
    model: CheckedModel,
    length: int,
    batch_size: int | None = None,
    *,
    logits: bool = True,
    blocks: int = 1,
) -> int:
    """Sequences of ``length`` tokens a forward pass: ``batch_size``, or what half of the free memory holds.

    Args:
        model: a bridge.
        length: tokens a sequence.
        batch_size: the caller's own number.
        logits: whether the pass goes on to the logits.
        blocks: how many blocks' activations stay until the pass is over.

    Raises:
        InsufficientMemoryError: not even one sequence fits.

    Example:
        >>> from lens_linear.models.checked import checked
        >>> from lens_linear.models.open.toy import toy_model
        >>> sequences_a_pass(checked(toy_model(n_layers=1)), 64)
        64
    """
    if batch_size is not None:
        return require_int("batch_size", batch_size, minimum=1)
    device = model.device
    needed = blocks * sequence_bytes(model, length, logits=logits)
    if needed > free_bytes(device):
        raise InsufficientMemoryError(
            f"one sequence of {length:,} tokens needs about {size_text(needed)} in a forward pass, and "
            f"{size_text(free_bytes(device))} are free; pass shorter sequences, e.g. "
            "lens_linear.tokenize(model, text, length=256)"
        )
    most = [_TOKENS // max(1, length), usable_bytes(device=device) // max(1, needed)]
    if device.type == "cpu":
        most.append(_ACTIVATIONS // max(1, sequence_bytes(model, length, logits=False)))
    if logits:
        most.append(_LOGITS // max(1, length * model.d_vocab))
    return max(1, min(most))
