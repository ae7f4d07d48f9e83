"""Low-order linear surrogates of the depth dynamics, and how well they predict layerwise gains.

    r_{l+1} = Ā_l r_l + B̄_l u_l,        Ā_l = leftᵀ_{l+1} A_l right_l,   B̄_l = leftᵀ_{l+1} A_l v_l,
    predicted gain of layer k:  C̄ Ā_{L−1} … Ā_{k+1} B̄_k,                  C̄ = C right_L

``order`` is the number of reduced coordinates; :mod:`lens_linear.dynamics.surrogates.bases` says which.
Three meanings of A_l are offered, and they answer different questions:

* ``jacobian="mean"`` (the paper's): A_l is averaged over the operating prompts, so there is *one*
  system with one gain profile for all prompts. What limits it is not the order: no single profile can
  follow gains that differ from prompt to prompt (``Agreement.ceiling``), and at full order a product
  of means is not the mean of products.
* ``jacobian="prompt"``: the bases are shared, the Jacobians are each prompt's own. At full order this
  *is* the adjoint profile. It shows how few coordinates the dynamics need, apart from how much prompts
  differ. Its gains cost one backward sweep whatever the order (:meth:`BlockJacobians.costates`), so it
  is never cheaper than the exact adjoint profile: it is a measurement, not a shortcut.
* ``jacobian="state"`` (ours): as "prompt" at the operating prompts; the gains of a new prompt are
  predicted from its state by a map learnt there (:mod:`lens_linear.dynamics.gains.state_gains`). It takes a
  forward pass and no derivative of the new prompt, and is not bound to one profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, require_choice, require_float_tensor, require_int
from lens_linear.dynamics.gains.agreement import Agreement
from lens_linear.dynamics.gains.directions import last_states
from lens_linear.dynamics.gains.gain_profile import GainProfile, require_directions
from lens_linear.dynamics.gains.jacobian_products import BlockJacobians, block_jacobians
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.dynamics.gains.state_gains import StateGains, fit_state_gains
from lens_linear.dynamics.surrogates.bases import Bases, BasisLike, build_bases, require_basis
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import own_modes
from lens_linear.models.checked import ModelLike, checked
from lens_linear.tables import Result

JacobianKind = Literal["prompt", "mean", "state"]
JACOBIANS: tuple[JacobianKind, ...] = ("prompt", "mean", "state")


@dataclass(frozen=True, eq=False)
class Surrogate(Result):
    """A reduced linear system over depth, with the gains it predicts at the operating prompts.

    Attributes:
        gains: predicted; one row for each operating prompt (``jacobian="prompt"`` and ``"state"``) or the
            one row of the mean system (``"mean"``).
        A: Ā_0 ... Ā_{L−1}, from the mean Jacobian.
        B: B̄_0 ... B̄_{L−1}, from the mean Jacobian.
        C: C̄.
        bases: the reduced coordinates.
        directions: v_0 ... v_L.
        readout: C.
        jacobian: see the module's head.
        lengths: tokens of each operating prompt.
        key: checksum of the operating prompts.
        state_gains: for ``"state"``, the map from a prompt's state to its gains; else None.
    """

    gains: Float[Tensor, "row layer"]
    A: Float[Tensor, "layer order order"]
    B: Float[Tensor, "layer order"]
    C: Float[Tensor, " order"]
    bases: Bases
    directions: Float[Tensor, "boundary d_model"]
    readout: Float[Tensor, " d_model"]
    jacobian: JacobianKind
    lengths: Int[Tensor, " prompt"]
    key: str
    state_gains: StateGains | None = None

    _figure = "gain_profiles"

    def __repr__(self) -> str:
        return (
            f"Surrogate: order {self.order} of {self.directions.shape[1]}, {self.basis} basis, "
            f"{self.jacobian} Jacobian, {counted(len(self.B), 'layer')}, identified on "
            f"{counted(len(self.lengths), 'prompt')}"
        )

    @property
    def order(self) -> int:
        """Reduced coordinates."""
        return self.bases.order

    @property
    def basis(self) -> str:
        """Name of the basis."""
        return self.bases.kind

    @property
    def mean(self) -> Float[Tensor, " layer"]:
        """Mean predicted gain over the operating prompts."""
        return self.gains.mean(0)

    @property
    def system_gains(self) -> Float[Tensor, " layer"]:
        """Gains of the one mean system (A, B, C), whatever ``jacobian`` says."""
        return reduced_gains(self.A, self.B, self.C)

    @property
    def profile(self) -> GainProfile:
        """The predicted gains as a profile of the operating prompts."""
        gains = self.gains.expand(len(self.lengths), -1)
        return GainProfile(gains, "surrogate", None, self.readout, self.lengths, self.key)

    def agreement(self, profile: GainProfile) -> Agreement:
        """Score the surrogate on a profile: Spearman, Pearson and relative error over layers.

        On other prompts than its own, its mean prediction stands for every prompt (nothing of the new
        prompt is used); on its own operating prompts each row meets its own. To let every new prompt
        use its own Jacobian or state, score ``surrogate.predict(model, prompts)`` instead.

        Args:
            profile: exact or empirical gains, as a rule on evaluation prompts.

        Returns:
            Agreement.
        """
        return self.profile.agreement(profile)

    @own_modes()
    def predict(
        self,
        model: ModelLike,
        prompts: PromptsLike | Prompts,
        *,
        attention_mask: Tensor | None = None,
        truncate: bool = False,
        batch_size: int | None = None,
    ) -> GainProfile:
        """Predict the gains of other prompts in the same reduced coordinates.

        With ``jacobian="prompt"`` every prompt's own Jacobians are reduced; with ``"state"`` its state
        is read; with ``"mean"`` the one system's gains are repeated.

        Returns:
            GainProfile with ``method="surrogate"``.
        """
        model = checked(model)
        prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
        if self.state_gains is not None:
            states = last_states(model, prompts, batch_size=batch_size)
            return predicted_profile(self, prompts, states=states)
        maps = None
        if self.jacobian == "prompt":
            maps = block_jacobians(model, prompts, batch_size=batch_size)
        return predicted_profile(self, prompts, maps)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer: gain_mean, gain_sd, system_gain, order, basis, jacobian, n_prompts."""
        return pd.DataFrame(
            {
                "gain_mean": self.mean.cpu().numpy(),
                "gain_sd": self.gains.std(0, correction=0).cpu().numpy(),
                "system_gain": self.system_gains.cpu().numpy(),
                "order": self.order,
                "basis": self.basis,
                "jacobian": self.jacobian,
                "n_prompts": len(self.lengths),
            }
        ).rename_axis("layer")


def reduced_gains(
    A: Float[Tensor, "layer order order"],
    B: Float[Tensor, "layer order"],
    C: Float[Tensor, " order"],
) -> Float[Tensor, " layer"]:
    """Return ``C A_{L−1} … A_{k+1} B_k`` for every layer k of a reduced system.

    Example:
        >>> A = torch.tensor([[[9.0]], [[0.5]], [[2.0]]])
        >>> reduced_gains(A, torch.ones(3, 1), torch.ones(1)).tolist()
        [1.0, 2.0, 1.0]
    """
    A, B = require_float_tensor("A", A, ndim=3), require_float_tensor("B", B, ndim=2)
    row = require_float_tensor("C", C, ndim=1)
    if not len(B) or A.shape != (*B.shape, len(row)) or B.shape[1] != len(row):
        raise InvalidArgumentError(
            f"A, B and C must have shapes [layer, order, order], [layer, order] and [order], got "
            f"{tuple(A.shape)}, {tuple(B.shape)} and {tuple(row.shape)}; take them from one surrogate"
        )
    found = []
    for layer in reversed(range(len(B))):
        found.append(row @ B[layer])
        row = row @ A[layer]
    return torch.stack(found[::-1])


@own_modes()
def fit_surrogate(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    directions: Float[Tensor, "boundary d_model"],
    *,
    order: int = 32,
    basis: BasisLike = "krylov",
    jacobian: JacobianKind = "prompt",
    readout: Float[Tensor, " d_model"] | None = None,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
) -> Surrogate:
    """Identify a linear surrogate of the depth dynamics on operating prompts.

    ``r_{l+1} = Ā_l r_l + B̄_l u_l``, ``Ā_l = leftᵀ A_l right``, predicted gain ``C̄ Ā_{L−1} … Ā_{k+1}
    B̄_k``; see the head of :mod:`lens_linear.dynamics.surrogates.surrogate` for the three readings of A_l.

    Gains are in units of readout per unit added. ``order = d_model`` with ``jacobian="prompt"`` gives
    the adjoint profile back; order 1 with an orthonormal basis keeps v_l alone.

    Costs one forward pass over the prompts and about ``order`` products over their last tokens.

    Args:
        model: a causal bridge.
        prompts: the operating prompts (of a ConceptSplit its operating part); keep them apart from those
            that made the directions and those that score.
        directions: v_0 ... v_L, unit rows.
        order: reduced coordinates, 1 to d_model; capped at d_model.
        basis: "krylov" (paper), "balanced" (ours), "pca", "random" and "krylov-stationary" (controls); or
            the name of one that an installed package adds (:mod:`lens_linear.extensions`); or your own:
            :class:`Bases`, or a function ``(maps, directions, readout, order)`` that returns columns
            [boundary, d_model, order], or a pair (right, left) of such; ``maps`` is a
            :class:`~lens_linear.dynamics.BlockJacobians`.
        jacobian: "prompt", "mean" or "state".
        readout: C; v_L by default.
        attention_mask: for a padded tensor.
        truncate: keep the last tokens of prompts longer than the context.
        batch_size: prompts a forward pass, and in memory at a time; as many as memory allows (at most 64) by
            default. Of several batches "krylov" carries the residual streams from layer to layer; where
            these would take more than a batch in memory does, prompts are run again for each layer's product
            (half of the layers' number of passes in all).
        seed: of random columns.

    Returns:
        Surrogate with ``.gains``, ``.agreement(profile)`` and ``.predict(model, prompts)``.

    Raises:
        InvalidArgumentError: directions, order or prompts do not fit the model.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (Krylov complement, mean Jacobian); Rowley 2005
        for balanced proper orthogonal decomposition.

    Example:
        >>> import torch
        >>> from lens_linear.dynamics.gains.directions import random_directions
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> prompts = torch.randint(64, (6, 12), generator=torch.Generator().manual_seed(0))
        >>> directions = random_directions(model)
        >>> from lens_linear.dynamics.gains.gain_profile import gain_profile
        >>> full = fit_surrogate(model, prompts, directions, order=16)
        >>> bool((full.gains - gain_profile(model, prompts, directions).gains).abs().max() < 1e-4)
        True
    """
    model = checked(model)
    require_int("order", order, minimum=1)
    basis = require_basis("basis", basis)
    require_choice("jacobian", jacobian, JACOBIANS)
    directions, readout = require_directions(model, directions, readout)
    prompts = as_prompts(
        model, prompts, attention_mask=attention_mask, truncate=truncate, part="operating"
    )
    maps = block_jacobians(model, prompts, batch_size=batch_size)
    order = min(order, directions.shape[-1])
    bases = build_bases(maps, directions, readout, order=order, kind=basis, seed=seed)
    return identify(maps, bases, directions, readout, jacobian=jacobian)


def identify(
    maps: BlockJacobians,
    bases: Bases,
    directions: Float[Tensor, "boundary d_model"],
    readout: Float[Tensor, " d_model"],
    *,
    jacobian: JacobianKind,
) -> Surrogate:
    """Reduce Jacobians that are already there; all of ``fit_surrogate`` but its bases."""
    if bases.products is None:
        seen = maps.mean_pull(bases.left[1:].mT)
        A = seen @ bases.right[:-1]
        B = torch.einsum("lrd,ld->lr", seen, directions[:-1])
    else:
        # The first column of each basis is v_l at length 1, so its product holds Ā_l v_l.
        A = bases.left[1:].mT @ bases.products
        B = A[..., 0] * directions[:-1].norm(dim=-1, keepdim=True)
    C = readout @ bases.right[-1]
    return _surrogate(maps, (A, B, C), bases, directions, readout, jacobian)


def _surrogate(
    maps: BlockJacobians,
    system: tuple[Tensor, Tensor, Tensor],
    bases: Bases,
    directions: Tensor,
    readout: Tensor,
    jacobian: JacobianKind,
) -> Surrogate:
    """Put the mean system and its bases together with the gains that ``jacobian`` asks for."""
    if jacobian == "mean":
        gains = reduced_gains(*system)[None]
    else:
        gains = maps.gains(directions, readout, right=bases.right, left=bases.left)
    state_gains = fit_state_gains(maps.states(), gains) if jacobian == "state" else None
    prompts = maps.prompts
    return Surrogate(
        gains,
        *system,
        bases,
        directions,
        readout,
        jacobian,
        prompts.lengths,
        prompts.key,
        state_gains,
    )


def predicted_profile(
    surrogate: Surrogate,
    prompts: Prompts,
    maps: BlockJacobians | None = None,
    *,
    states: Float[Tensor, "boundary prompt d_model"] | None = None,
) -> GainProfile:
    """Predict gains of prompts from their Jacobians, from their states, or from the mean system."""
    if surrogate.state_gains is not None and states is not None:
        gains = surrogate.state_gains.predict(states)
    elif maps is None:
        gains = surrogate.system_gains.expand(len(prompts), -1)
    else:
        bases = surrogate.bases
        gains = maps.gains(
            surrogate.directions, surrogate.readout, right=bases.right, left=bases.left
        )
    return GainProfile(gains, "surrogate", None, surrogate.readout, prompts.lengths, prompts.key)


def truncated(surrogate: Surrogate, maps: BlockJacobians, orders: Sequence[int]) -> list[Surrogate]:
    """Return the surrogate at lower orders; the mean system is cut, prompt gains are swept again."""
    found = []
    for order in orders:
        system = (
            surrogate.A[:, :order, :order],
            surrogate.B[:, :order],
            surrogate.C[:order],
        )
        bases = surrogate.bases.truncated(order)
        found.append(
            _surrogate(
                maps, system, bases, surrogate.directions, surrogate.readout, surrogate.jacobian
            )
        )
    return found
