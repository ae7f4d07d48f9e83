"""Concept directions: where, at each layer, the last token's state tells two classes of text apart.

>>> from lens_linear.models.open.toy import toy_model
>>> random_directions(toy_model(n_layers=3), seed=0).shape
torch.Size([4, 32])
"""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_linear.checks import counted, require_choice, require_float, require_seed
from lens_linear.dynamics.gains.annotated_tensor import MadeTensor
from lens_linear.dynamics.gains.jacobian_products import frozen_batches, states_of
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.linalg.precision import own_modes
from lens_linear.models.checked import ModelLike, checked
from lens_linear.text.concepts import Concept, ConceptSplit, load_concept

DirectionMethod = Literal["mean-difference", "whitened", "logistic"]
_FOLDS = 5


class ConceptDirections(MadeTensor):
    """Unit rows [layers + 1, d_model], pointing from class 0 to class 1; usable as a tensor.

    Beside the values: ``concept`` (name), ``method``, ``n_texts``, ``filled`` (boundaries whose classes have
    one and the same mean, given the next boundary's direction), and the separation on held-out texts:
    ``auc`` (chance that a text of class 1 projects higher than one of class 0; 0.5 is chance) and
    ``d_prime`` (difference of class means in pooled standard deviations), both [layers + 1].
    """

    _figure = "concept_separation"
    _columns = ("auc", "d_prime", "cosine_to_last")

    concept: str
    method: str
    n_texts: int
    filled: tuple[int, ...]
    auc: Tensor
    d_prime: Tensor

    @property
    def directions(self) -> Float[Tensor, "boundary d_model"]:
        """The rows as a plain tensor."""
        return self.plain()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        best = int(self.auc.nan_to_num(nan=-1.0).argmax())
        auc = f"held-out AUC {float(self.auc[best]):.3f} at boundary {best} (0.5 is chance)"
        read = f" on {counted(self.n_texts, 'text')}, {auc}" if self.n_texts else ", of no texts"
        filled = f", boundaries {list(self.filled)} filled from the next one" if self.filled else ""
        return (
            f"ConceptDirections of {self.concept!r}: {self.shape[0]} layer boundaries of width "
            f"{self.shape[1]}, {self.method}{read}{filled}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer boundary: auc, d_prime, filled, cosine_to_last, method, n_texts."""
        rows = self.plain()
        frame = pd.DataFrame(
            {
                "auc": self.auc.cpu().numpy(),
                "d_prime": self.d_prime.cpu().numpy(),
                "filled": [boundary in self.filled for boundary in range(len(rows))],
                "cosine_to_last": (rows @ rows[-1]).cpu().numpy(),
                "method": self.method,
                "n_texts": self.n_texts,
            }
        )
        return frame.rename_axis("boundary")


@own_modes()
def concept_directions(
    model: ModelLike,
    concept: Concept | ConceptSplit | str,
    *,
    method: DirectionMethod = "mean-difference",
    shrinkage: float = 0.5,
    truncate: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
) -> ConceptDirections:
    """One unit direction for each layer boundary, from class 0 to class 1 of a concept.

    * ``"mean-difference"``: ``v_l ∝ μ₁ − μ₀``, as in the paper;
    * ``"whitened"``: ``v_l ∝ S⁻¹ (μ₁ − μ₀)``, S the pooled within-class covariance (linear discriminant);
    * ``"logistic"``: the weight vector of a regularised logistic regression.

    All texts make the direction. Its separation is measured on texts it has not seen: each of five folds is
    projected on the direction of the other four. With no relation the AUC is 0.5, and its standard
    deviation about ``√((n+1) / (3 n²))`` for n balanced texts (0.04 at 200).

    Args:
        model: a causal bridge with a tokenizer.
        concept: labelled texts; of a :class:`ConceptSplit` its ``concept`` part; a name is passed to
            :func:`~lens_linear.load_concept`. Keep the texts on which gains are measured out of it
            (``concept.split``).
        method: see above.
        shrinkage: share of the mean variance mixed into S ("whitened"); for "logistic" the ridge on the
            weights of standardised states, a multiple of d_model + 1 beside the summed loss
            (scikit-learn's ``C = 1 / (shrinkage (d_model + 1))``). 0 to 1.
        truncate: keep the last tokens of texts longer than the context.
        batch_size: prompts a forward pass, as many as memory allows (at most 64) by default.
        seed: of the folds.

    Returns:
        ConceptDirections [layers + 1, d_model], float64.

    Raises:
        NotEnoughDataError: fewer than 10 texts of a class.
        InvalidArgumentError: the classes have the same mean state at every layer.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (mean difference on a concept split).

    Example:
        >>> from lens_linear.models.open.load import load
        >>> from lens_linear.text.concepts import load_concept
        >>> model = load("gpt-nano")
        >>> split = load_concept("mood").split(20, 10, 10, seed=0)
        >>> directions = concept_directions(model, split.concept)
        >>> tuple(directions.shape)
        (5, 96)
    """
    require_choice("method", method, ("mean-difference", "whitened", "logistic"))
    shrinkage = require_float("shrinkage", shrinkage, minimum=0.0, maximum=1.0)
    seed = require_seed(seed)
    model = checked(model)
    concept = concept_of(concept)
    labels = torch.tensor(concept.labels, dtype=torch.bool)
    if min(int(labels.sum()), int((~labels).sum())) < 10:
        raise NotEnoughDataError(
            f"concept {concept.name!r} has {int(labels.sum())} texts of class 1 and "
            f"{int((~labels).sum())} of class 0, but a direction needs at least 10 of each; add texts"
        )
    states = last_states(model, list(concept.texts), truncate=truncate, batch_size=batch_size)
    rows, filled = _directions(states, labels.to(states.device), method, shrinkage)
    auc, d_prime = _held_out(states, labels.to(states.device), method, shrinkage, seed)
    return ConceptDirections(
        rows,
        concept=concept.name,
        method=method,
        n_texts=len(labels),
        filled=filled,
        auc=auc,
        d_prime=d_prime,
    )


@own_modes()
def random_directions(model: ModelLike, *, seed: int = 0) -> ConceptDirections:
    """Unit rows drawn at random: the control for every claim about a concept's direction.

    Args:
        model: a bridge.
        seed: of the draw.

    Returns:
        ConceptDirections [boundary, d_model] named "random", with NaN for the separation.

    Raises:
        InvalidArgumentError: ``model`` is no bridge, or a negative seed.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> random_directions(toy_model(n_layers=3), seed=0).norm(dim=-1).round(decimals=6).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    model = checked(model)
    generator = torch.Generator().manual_seed(require_seed(seed))
    rows = torch.randn(model.n_layers + 1, model.d_model, generator=generator, dtype=torch.float64)
    unknown = torch.full((model.n_layers + 1,), float("nan"), dtype=torch.float64)
    return ConceptDirections(
        rows / rows.norm(dim=-1, keepdim=True),
        concept="random",
        method="random",
        n_texts=0,
        filled=(),
        auc=unknown,
        d_prime=unknown,
    )


def last_states(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    *,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    batch_size: int | None = None,
) -> Float[Tensor, "boundary prompt d_model"]:
    """Return x_0 ... x_L of the last real token of every prompt, float64.

    x_0 is the embedding, x_l the residual stream at the input of block l, x_L what the final norm reads.

    Args:
        model: a causal bridge.
        prompts: texts, rows of ids, or a padded tensor.
        attention_mask: for a padded tensor, 1 for real tokens, 0 for padding.
        truncate: keep the last tokens of prompts longer than the context.
        batch_size: prompts a forward pass, as many as memory allows (at most 64) by default.

    Returns:
        States [boundary, prompt, d_model], prompts in the order given.

    Raises:
        NotEnoughDataError: no prompts, or an empty one.
        InvalidArgumentError: a prompt does not fit the context or the vocabulary.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model, long = toy_model(n_layers=3), torch.arange(8)
        >>> states = last_states(model, [torch.arange(5), long])
        >>> logits = states[-1, 1].float() @ model.W_U
        >>> states.shape, torch.allclose(logits, model(long[None])[0, -1], atol=1e-5)
        (torch.Size([4, 2, 32]), True)
    """
    model = checked(model)
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    return states_of(frozen_batches(model, prompts, batch_size=batch_size, whole=True))


def concept_of(concept: Any) -> Concept:
    """The texts that make directions: a concept, that part of a split, or what a name stands for."""
    if isinstance(concept, str):
        return load_concept(concept)
    if isinstance(concept, ConceptSplit):
        return concept.concept
    if not isinstance(concept, Concept):
        raise InvalidArgumentError(
            f"concept must be a Concept or a name, got {type(concept).__name__}; use "
            "lens_linear.load_concept(name) or lens_linear.Concept(name, texts, labels, source)"
        )
    return concept


def _directions(
    states: Float[Tensor, "boundary text d_model"],
    labels: Bool[Tensor, " text"],
    method: DirectionMethod,
    shrinkage: float,
) -> tuple[Float[Tensor, "boundary d_model"], tuple[int, ...]]:
    if method == "logistic":
        rows = torch.stack([_logistic(x, labels, shrinkage) for x in states])
    else:
        rows = states[:, labels].mean(1) - states[:, ~labels].mean(1)
        if method == "whitened":
            rows = torch.stack(
                [_whiten(x, labels, row, shrinkage) for x, row in zip(states, rows, strict=True)]
            )
    # Roundoff of a mean of equal states is far below this; a real difference is far above.
    size = states.flatten(1).abs().amax(1)
    spread = (states[:, labels].mean(1) - states[:, ~labels].mean(1)).norm(dim=-1)
    same = spread <= 1e-6 * size.clamp_min(1e-30)
    if bool(same.all()):
        raise InvalidArgumentError(
            "concept must have classes whose last tokens differ, but both have the same mean state at "
            "every layer; check the labels, or texts that all end alike"
        )
    filled = tuple(int(layer) for layer in same.nonzero()[:, 0])
    for layer in reversed(range(len(rows))):
        if layer in filled:
            nearest = next(k for k in [*range(layer + 1, len(rows)), *range(layer)] if not same[k])
            rows[layer] = rows[nearest]
    return rows / rows.norm(dim=-1, keepdim=True), filled


def _whiten(x: Tensor, labels: Tensor, row: Tensor, shrinkage: float) -> Float[Tensor, " d_model"]:
    within = torch.cat([x[labels] - x[labels].mean(0), x[~labels] - x[~labels].mean(0)])
    covariance = within.T @ within / (len(x) - 2)
    ridge = covariance.diagonal().mean().clamp_min(1e-30)
    covariance = (1 - shrinkage) * covariance
    covariance.diagonal().add_(max(shrinkage, 1e-6) * ridge)
    solved: Tensor = torch.linalg.solve(covariance, row)
    return solved


def _logistic(x: Tensor, labels: Tensor, shrinkage: float) -> Float[Tensor, " d_model"]:
    """Newton's method for logistic regression on standardised states; the weight in their own units."""
    scale = x.std(0, correction=0)
    scale = torch.where(scale > 1e-9 * scale.amax().clamp_min(1e-30), scale, torch.inf)
    z = torch.cat([(x - x.mean(0)) / scale, torch.ones_like(x[:, :1])], dim=1)
    y = labels.to(z.dtype)
    penalty = torch.full_like(z[0], max(shrinkage, 1e-6) * z.shape[1])
    penalty[-1] = 1e-9
    weight = torch.zeros_like(z[0])
    for _ in range(50):
        p = torch.sigmoid(z @ weight)
        gradient = z.T @ (p - y) + penalty * weight
        curvature = (z * (p * (1 - p))[:, None]).T @ z + torch.diag(penalty)
        step = torch.linalg.solve(curvature, gradient)
        weight = weight - step
        if float(step.abs().max()) < 1e-9:
            break
    return weight[:-1] / scale


def _held_out(
    states: Tensor, labels: Tensor, method: DirectionMethod, shrinkage: float, seed: int
) -> tuple[Float[Tensor, " boundary"], Float[Tensor, " boundary"]]:
    """Area under the ROC curve and d′ per boundary, averaged over folds that were left out."""
    generator = torch.Generator().manual_seed(seed)
    fold = torch.empty(len(labels), dtype=torch.long)
    for value in (True, False):
        members = (labels.cpu() == value).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        fold[members] = torch.arange(len(members)) % _FOLDS
    areas, distances = [], []
    for held in range(_FOLDS):
        out = (fold == held).to(labels.device)
        rows, _ = _directions(states[:, ~out], labels[~out], method, shrinkage)
        score = torch.einsum("btd,bd->bt", states[:, out], rows)
        positive, negative = score[:, labels[out]], score[:, ~labels[out]]
        higher = (positive[:, :, None] > negative[:, None]).double()
        equal = (positive[:, :, None] == negative[:, None]).double()
        areas.append((higher + equal / 2).mean((1, 2)))
        pooled = (positive.var(1, correction=0) + negative.var(1, correction=0)) / 2
        distances.append((positive.mean(1) - negative.mean(1)) / pooled.clamp_min(1e-30).sqrt())
    return torch.stack(areas).mean(0), torch.stack(distances).mean(0)
