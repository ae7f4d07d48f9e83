"""Agreement of surrogates with the full model over models, orders and bases, published numbers beside.

One command runs it on the paper's models for a user with internet::

    agreement_table(["gpt2", "gpt2-medium", "gpt2-large"], "imdb").published()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd
import torch

from lens_linear.checks import (
    counted,
    require_choice,
    require_float,
    require_ints,
    require_list,
)
from lens_linear.dynamics.gains.agreement import Agreement
from lens_linear.dynamics.gains.directions import concept_directions, concept_of
from lens_linear.dynamics.gains.gain_profile import GainProfile, adjoint_profile, gain_profile
from lens_linear.dynamics.gains.jacobian_products import BlockJacobians, block_jacobians
from lens_linear.dynamics.gains.prompts import as_prompts
from lens_linear.dynamics.surrogates.bases import BasisLike, build_bases, require_basis
from lens_linear.dynamics.surrogates.surrogate import (
    JACOBIANS,
    JacobianKind,
    Surrogate,
    identify,
    predicted_profile,
    truncated,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import own_modes
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.open.load import load
from lens_linear.tables import Result
from lens_linear.text.concepts import Concept, ConceptSplit

SOURCE = "Nettasinghe & Joseph 2026, arXiv 2603.12541"

# Order-32 surrogate, over the paper's ten concepts: Spearman, Pearson.
PUBLISHED: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"gpt2": (0.77, 0.68), "gpt2-medium": (0.81, 0.74), "gpt2-large": (0.995, 0.997)}
)
# Layers and width: a folder that only bears one of these names is not the paper's model.
_PUBLISHED_SHAPES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"gpt2": (12, 768), "gpt2-medium": (24, 1024), "gpt2-large": (36, 1280)}
)


@dataclass(frozen=True, eq=False)
class AgreementRow:
    """One surrogate scored on one model's evaluation prompts."""

    model: str
    n_layers: int
    d_model: int
    concept: str
    auc: float
    basis: str
    order: int
    jacobian: JacobianKind
    agreement: Agreement

    def values(self) -> dict[str, Any]:
        """Return plain values, the agreement's spread over columns of their own."""
        scores = dataclasses.asdict(self.agreement)
        own = {name: getattr(self, name) for name in list(self.__dataclass_fields__)[:-1]}
        return own | {name: scores[name] for name in scores if name not in own}


@dataclass(frozen=True, eq=False)
class AgreementTable(Result):
    """Agreement of every surrogate with the full model; acts as its table.

    Attributes:
        rows: one a model, basis, order and Jacobian.
        reference: the gains that were predicted: "adjoint" or "empirical".
        n_concept: texts that made the directions.
        n_operating: prompts that identified the surrogates.
        n_evaluation: prompts that scored them.
        seed: of the splits and of random columns.
    """

    _figure = "agreement_by_order"
    _columns = (
        "model",
        "basis",
        "order",
        "jacobian",
        "spearman",
        "pearson",
        "relative_error",
        "ceiling",
    )

    rows: tuple[AgreementRow, ...]
    reference: str
    n_concept: int
    n_operating: int
    n_evaluation: int
    seed: int

    def __repr__(self) -> str:
        models = len({row.model for row in self.rows})
        return (
            f"AgreementTable: {counted(len(self.rows), 'surrogate')} of {counted(models, 'model')} "
            f"against {self.reference} gains "
            f"at {counted(self.n_evaluation, 'prompt')}, identified on {self.n_operating}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a surrogate: model, n_layers, d_model, concept, auc, basis, order, jacobian, and the
        columns of :class:`~lens_linear.dynamics.gains.agreement.Agreement`.
        """
        return pd.DataFrame([row.values() for row in self.rows])

    def reaching(self, spearman: float = 0.95) -> pd.DataFrame:
        """Least order in the table that reaches a mean Spearman, per model, basis and Jacobian.

        Its columns are model, basis, jacobian, order (NaN where none does), best (the highest Spearman),
        up_to (the highest order tried) and ceiling.
        """
        spearman = require_float("spearman", spearman, minimum=-1.0, maximum=1.0)
        groups: dict[tuple[str, str, str], list[AgreementRow]] = {}
        for row in self.rows:
            groups.setdefault((row.model, row.basis, row.jacobian), []).append(row)
        found = []
        for (model, basis, jacobian), rows in groups.items():
            reached = [row.order for row in rows if row.agreement.spearman >= spearman]
            found.append(
                {
                    "model": model,
                    "basis": basis,
                    "jacobian": jacobian,
                    "order": min(reached) if reached else float("nan"),
                    "best": max(row.agreement.spearman for row in rows),
                    "up_to": max(row.order for row in rows),
                    "ceiling": rows[0].agreement.ceiling,
                }
            )
        return pd.DataFrame(found)

    def published(self) -> pd.DataFrame:
        """Order-32 Krylov surrogates beside the paper's; what was not run here says so.

        Its columns are model, published_spearman, published_pearson, spearman, pearson (mean over prompts),
        mean_spearman, mean_pearson (of the mean profiles), concept and source. Of the Jacobians the
        mean one, the paper's, is shown. A model counts as one of the paper's if name and shape agree.
        """
        chosen = [
            row
            for row in self.rows
            if row.basis == "krylov" and row.jacobian == "mean" and row.order == 32
        ]
        measured = {_shown_name(row): row for row in chosen}
        lines = []
        others = [(name, ("none", "none"), "") for name in measured if name not in PUBLISHED]
        paper = [(name, scores, SOURCE) for name, scores in PUBLISHED.items()]
        for name, scores, source in [*paper, *others]:
            line: dict[str, Any] = {"model": name}
            line["published_spearman"], line["published_pearson"] = scores
            columns = ("spearman", "pearson", "mean_spearman", "mean_pearson")
            row = measured.get(name)
            for column in columns:
                line[column] = "not run" if row is None else getattr(row.agreement, column)
            line["concept"] = "not run" if row is None else row.concept
            line["source"] = source
            lines.append(line)
        return pd.DataFrame(lines)


def _shown_name(row: AgreementRow) -> str:
    """Return the paper's name for one of the paper's models; of others their own, with no such name."""
    name, shape = row.model.rstrip("/").split("/")[-1], (row.n_layers, row.d_model)
    if _PUBLISHED_SHAPES.get(name) == shape:
        return name
    return f"{row.model} ({shape[0]} × {shape[1]})" if row.model in PUBLISHED else row.model


@own_modes()
def agreement_table(
    models: Sequence[str | Path | ModelLike] | str | ModelLike,
    concept: Concept | ConceptSplit | str = "mood",
    *,
    orders: Sequence[int] = (8, 16, 32),
    bases: Sequence[BasisLike] = ("krylov", "balanced", "pca", "random"),
    jacobians: Sequence[JacobianKind] = ("prompt", "mean"),
    reference: Literal["adjoint", "empirical"] = "adjoint",
    eps: float = 0.1,
    n_concept: int = 200,
    n_operating: int = 100,
    n_evaluation: int = 200,
    batch_size: int | None = None,
    seed: int = 0,
    on_model: Callable[[str], None] | None = None,
) -> AgreementTable:
    """Score surrogates of several orders and bases on several models.

    Directions come from the concept split, surrogates from the operating split, scores from the
    evaluation split. Surrogates with ``jacobian="mean"`` predict one profile for all evaluation
    prompts; those with ``"prompt"`` reduce each evaluation prompt's own Jacobians in the shared coordinates;
    those with ``"state"`` read each evaluation prompt's state alone.

    Args:
        models: bridges, bundled or Hub names, or folders.
        concept: labelled texts, a name for :func:`~lens_linear.load_concept`, or a split made by you.
        orders: reduced coordinates; those above a model's d_model are cut to it.
        bases: see :mod:`lens_linear.dynamics.surrogates.bases`; names, :class:`Bases`, or functions as
            :func:`~lens_linear.fit_surrogate` takes them, shown under their names.
        jacobians: see :mod:`lens_linear.dynamics.surrogates.surrogate`.
        reference: exact derivatives, or central differences of ``eps`` (2 × layers forward passes).
        eps: step of the central differences.
        n_concept: texts for the directions.
        n_operating: prompts for the surrogates.
        n_evaluation: prompts for the scores.
        batch_size: prompts a forward pass, as many as memory allows (at most 64) by default.
        seed: of the split and of random columns.
        on_model: called with each model's name before it is run.

    Returns:
        AgreementTable: one row a surrogate, ``.reaching(spearman)``, ``.published()``; acts as a table.

    Raises:
        NotEnoughDataError: the concept has too few texts for the three splits.
        InvalidArgumentError: no order, basis or Jacobian, or an unknown one.
        UnknownModelError, OfflineError: a model cannot be found, or fetched.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (agreement by model at order 32).

    Example:
        >>> sizes = {"n_concept": 20, "n_operating": 8, "n_evaluation": 8}
        >>> orders = {"orders": (2, 999), "bases": ("random",), "jacobians": ("prompt",)}
        >>> table = agreement_table("gpt-nano", **sizes, **orders)
        >>> table["spearman"].round(6).tolist()[-1]  # any basis of the whole space is exact
        1.0
    """
    require_choice("reference", reference, ("adjoint", "empirical"))
    bases = require_list("bases", bases, of="names of bases, bases, or functions that make them")
    jacobians = require_list("jacobians", jacobians, of="'prompt', 'mean' and 'state'")
    bases = [require_basis("bases", basis) for basis in bases]
    for jacobian in jacobians:
        require_choice("jacobians", jacobian, JACOBIANS)
    sizes = sorted(set(require_ints("orders", orders, minimum=1)))
    if not sizes or not len(bases) or not len(jacobians):
        raise InvalidArgumentError("orders, bases and jacobians must each name at least one")
    split = _split(concept, n_concept, n_operating, n_evaluation, seed)
    rows: list[AgreementRow] = []
    listed: list[Any] = [models]
    if not isinstance(models, (str, Path, ModelLike)):
        listed = require_list("models", models, of="models or their names")
    for given in listed:
        model = checked(given if isinstance(given, ModelLike) else load(given))
        name = str(given) if isinstance(given, (str, Path)) else model.name
        if on_model is not None:
            on_model(name)
        rows += _score(
            model, name, split, sizes, bases, jacobians, reference, eps, batch_size, seed
        )
    return AgreementTable(
        tuple(rows),
        reference,
        len(split.concept),
        len(split.operating),
        len(split.evaluation),
        seed,
    )


def _split(
    concept: Concept | ConceptSplit | str,
    n_concept: int,
    n_operating: int,
    n_evaluation: int,
    seed: int,
) -> ConceptSplit:
    if isinstance(concept, ConceptSplit):
        return concept
    return concept_of(concept).split(n_concept, n_operating, n_evaluation, seed=seed)


def _score(
    model: CheckedModel,
    name: str,
    split: ConceptSplit,
    orders: Sequence[int],
    bases: Sequence[BasisLike],
    jacobians: Sequence[JacobianKind],
    reference: Literal["adjoint", "empirical"],
    eps: float,
    batch_size: int | None,
    seed: int,
) -> list[AgreementRow]:
    """Score one model; both sets of prompts are linearised once for all surrogates."""
    found = concept_directions(
        model, split.concept, truncate=True, batch_size=batch_size, seed=seed
    )
    directions, readout = found.plain(), found.plain()[-1]
    operating = as_prompts(model, split.operating.texts, truncate=True)
    evaluation = as_prompts(model, split.evaluation.texts, truncate=True)
    here = block_jacobians(model, operating, batch_size=batch_size)
    there = block_jacobians(model, evaluation, batch_size=batch_size)
    exact = adjoint_profile(there, directions, readout)
    if reference == "empirical":
        exact = gain_profile(
            model, evaluation, directions, method="empirical", eps=eps, batch_size=batch_size
        )
    d_model = directions.shape[1]
    sizes = sorted({min(order, d_model) for order in orders})
    rows = []
    for basis in bases:
        built = build_bases(here, directions, readout, order=sizes[-1], kind=basis, seed=seed)
        mean = identify(here, built, directions, readout, jacobian="mean")  # the dearest step
        for jacobian in jacobians:
            largest = dataclasses.replace(mean, jacobian=jacobian)
            for surrogate in truncated(largest, here, sizes):
                score = _agreement(surrogate, there, exact)
                auc = float(torch.nan_to_num(found.auc, nan=0.0).max())
                n_layers = len(directions) - 1
                rows.append(
                    AgreementRow(
                        name,
                        n_layers,
                        d_model,
                        found.concept,
                        auc,
                        surrogate.basis,
                        surrogate.order,
                        jacobian,
                        score,
                    )
                )
    return rows


def _agreement(surrogate: Surrogate, there: BlockJacobians, exact: GainProfile) -> Agreement:
    if surrogate.jacobian == "mean":
        return surrogate.agreement(exact)
    states = there.states() if surrogate.state_gains is not None else None
    found = predicted_profile(surrogate, there.prompts, there, states=states)
    return found.agreement(exact)
