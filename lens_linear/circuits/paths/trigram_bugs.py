"""The bugs of skip-trigrams: what a head must also say because it holds its table in factored form.

One head cannot store "s … a → x" and "s … b → y" as separate facts: attending from a to s and from b to s
is the QK circuit, raising x and y is the OV circuit, and the two know nothing of each other. So it also
raises y after "s … a" and x after "s … b". The paper's example: "keep … in → mind" and "keep … at → bay"
bring "keep … in → bay" and "keep … at → mind".

Source: Elhage et al. 2021, "Skip-trigram 'bugs'".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import require_int
from lens_linear.circuits.heads.head_circuit import HeadCircuit, require_circuits
from lens_linear.circuits.paths.skip_trigrams import HeadEffects, SkipTrigrams
from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result
from lens_linear.token_rows import TokenRows, require_tokens


@dataclass(frozen=True, eq=False)
class SkipTrigramBugs(Result):
    """Crossed skip-trigrams, strongest first.

    Attributes:
        heads: the heads whose effects are summed.
        crossed: (source, destination, out) that no wanted triple contains.
        wanted: the two wanted triples it is crossed from: (destination, out) of the first, of the second.
        effect: estimated rise of the crossed out's logit above the average token's.
        wanted_effect: the smaller effect of the two wanted triples.
        count, expected: how often the crossed triple occurs in the corpus, and how often it would if the
            source told nothing; None without a corpus.
    """

    _figure = "skip_trigram_bugs"
    _columns = (
        "source_label",
        "destination_label",
        "out_label",
        "effect",
        "wanted_effect",
        "wanted_out_label",
        "count",
        "lift",
    )

    heads: tuple[str, ...]
    crossed: Int[Tensor, "n 3"]
    wanted: Int[Tensor, "n 4"]
    effect: Float[Tensor, " n"]
    wanted_effect: Float[Tensor, " n"]
    count: Float[Tensor, " n"] | None = None
    expected: Float[Tensor, " n"] | None = None
    labels: Sequence[str] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"SkipTrigramBugs: {len(self.crossed)} crossed skip-trigrams of {', '.join(self.heads)}, "
            f"{int((self.effect > 0).sum())} of them raised"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns source, destination, out, effect, wanted_effect, wanted_out, other_destination, ...

        ``wanted_out`` is what should follow this destination, ``other_destination`` the one that ``out``
        belongs to; with a corpus also count, expected, lift (count over expected).
        """
        ids = {
            "source": self.crossed[:, 0],
            "destination": self.crossed[:, 1],
            "out": self.crossed[:, 2],
            "wanted_out": self.wanted[:, 1],
            "other_destination": self.wanted[:, 2],
        }
        columns: dict[str, Any] = {name: value.numpy() for name, value in ids.items()}
        columns["effect"] = self.effect.numpy()
        columns["wanted_effect"] = self.wanted_effect.numpy()
        if self.count is not None and self.expected is not None:
            columns["count"] = self.count.numpy()
            columns["expected"] = self.expected.numpy()
            columns["lift"] = (self.count / self.expected).numpy()
        if self.labels is not None:
            for name, value in ids.items():
                columns[f"{name}_label"] = [self.labels[t] for t in value.tolist()]
        return pd.DataFrame(columns)


def skip_trigram_bugs(
    heads: HeadCircuit | Sequence[HeadCircuit],
    wanted: Any,
    *,
    tokens: Int[Tensor, "sequence position"] | TokenRows | None = None,
    window: int = 64,
    context: int = 32,
    k: int = 100,
) -> SkipTrigramBugs:
    """Cross wanted skip-trigrams that share a source, and say how far the heads raise the wrong ones.

    Args:
        heads: one head, or several whose effects are summed.
        wanted: triples that are true: a table with columns source, destination, out (a
            :class:`~lens_linear.circuits.paths.skip_trigrams.SkipTrigrams`, or the DataFrame of
            ``stats.ngrams.skip_trigram_counts``), or an integer tensor [n, 3].
        tokens: a corpus [sequence, position] in which the crossed triples are counted.
        window: how far back the source may stand there.
        context: as in :func:`~lens_linear.circuits.paths.skip_trigrams.skip_trigrams`.
        k: rows.

    Returns:
        SkipTrigramBugs: the crossed triples that the heads raise most, with how far the wanted ones are
        raised, in logits; acts as a table.

    Raises:
        InvalidArgumentError: no two wanted triples share a source with different destinations and outs.

    Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, skip-trigram "bugs".

    Example:
        >>> import torch
        >>> from lens_linear.circuits.heads.head_circuit import head_circuit
        >>> from lens_linear.models.open.toy import toy_model
        >>> wanted = torch.tensor([[5, 1, 2], [5, 3, 4]])
        >>> bugs = skip_trigram_bugs(head_circuit(toy_model(n_layers=1), 0, 0), wanted)
        >>> sorted(map(tuple, bugs.crossed.tolist()))
        [(5, 1, 4), (5, 3, 2)]
    """
    heads = require_circuits([heads] if isinstance(heads, HeadCircuit) else heads)
    k = require_int("k", k, minimum=1)
    true = _triples(wanted)
    crossed, parents = _cross(true)
    if not len(crossed):
        raise InvalidArgumentError(
            f"wanted holds {len(true)} triples but no two share a source with different destinations and "
            "outs; pass more triples"
        )
    estimates = [HeadEffects(head, context) for head in heads]

    def effect(triples: Tensor) -> Tensor:
        return torch.stack([each.effect(triples)[0] for each in estimates]).sum(0)

    raised = effect(crossed)
    source = crossed[:, :1]
    both = [effect(torch.cat([source, parents[:, i : i + 2]], dim=1)) for i in (0, 2)]
    keep = raised.argsort(descending=True, stable=True)[:k]
    crossed, parents = crossed[keep], parents[keep]
    count = expected = None
    if tokens is not None:
        count, expected = _count(tokens, crossed, window, heads[0].model.d_vocab)
    least = torch.minimum(*both)[keep]
    names = tuple(head.name for head in heads)
    return SkipTrigramBugs(
        names, crossed, parents, raised[keep], least, count, expected, heads[0].labels
    )


def _triples(wanted: Any) -> Int[Tensor, "n 3"]:
    if isinstance(wanted, Tensor):
        if wanted.ndim != 2 or wanted.shape[1] != 3 or wanted.is_floating_point():
            raise InvalidArgumentError(
                f"wanted must be integer triples [n, 3], got {wanted.dtype} {tuple(wanted.shape)}"
            )
        return wanted.long()
    if isinstance(wanted, SkipTrigrams):
        return wanted.triples
    if not hasattr(wanted, "columns") or not set(_COLUMNS) <= set(wanted.columns):
        raise InvalidArgumentError(
            f"wanted must be triples [n, 3] or a table with the columns {', '.join(_COLUMNS)}, got "
            f"{type(wanted).__name__}; pass what skip_trigrams returned"
        )
    columns = [torch.as_tensor(wanted[name].to_numpy().copy()) for name in _COLUMNS]
    return torch.stack(columns, dim=1).long()


_COLUMNS = ("source", "destination", "out")


def _cross(true: Int[Tensor, "n 3"]) -> tuple[Int[Tensor, "m 3"], Int[Tensor, "m 4"]]:
    known = set(map(tuple, true.tolist()))
    by_source: dict[int, list[tuple[int, int]]] = {}
    for source, destination, out in true.tolist():
        by_source.setdefault(source, []).append((destination, out))
    found: dict[tuple[int, int, int], tuple[int, int, int, int]] = {}
    for source, pairs in by_source.items():
        for (d1, o1), (d2, o2) in permutations(dict.fromkeys(pairs), 2):
            triple = (source, d1, o2)
            if d1 != d2 and o1 != o2 and triple not in known:
                found.setdefault(triple, (d1, o1, d2, o2))
    return (
        torch.tensor(list(found), dtype=torch.int64).reshape(-1, 3),
        torch.tensor(list(found.values()), dtype=torch.int64).reshape(-1, 4),
    )


def _count(
    tokens: Tensor | TokenRows, triples: Int[Tensor, "n 3"], window: int, n_vocab: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Count triples with the source among the ``window`` tokens before the destination."""
    rows = require_tokens("tokens", tokens, n_vocab=n_vocab, min_length=2)
    window = require_int("window", window, minimum=1)
    here, following = rows[:, :-1], rows[:, 1:]
    n_here = torch.bincount(here.flatten(), minlength=n_vocab).double()
    count, expected = torch.zeros(len(triples)).double(), torch.zeros(len(triples)).double()
    for source in triples[:, 0].unique().tolist():
        before = torch.nn.functional.pad((rows == source).cumsum(1), (1, 0))[:, :-1]
        far = torch.nn.functional.pad(before, (window, 0))[:, : before.shape[1]]
        armed = (before - far > 0)[:, :-1]
        for i in (triples[:, 0] == source).nonzero().flatten().tolist():
            at = here == triples[i, 1]
            hit = following == triples[i, 2]
            base = float((at & hit).sum()) / max(1.0, float(n_here[triples[i, 1]]))
            count[i] = float((at & hit & armed).sum())
            expected[i] = float((at & armed).sum()) * base
    return count, expected
