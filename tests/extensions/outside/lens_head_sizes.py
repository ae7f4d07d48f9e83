"""A package of somebody else's: a statistic, a basis, a score of heads and a section of the report."""

import pandas as pd
import torch

import lens_linear as ll
from lens_linear.extensions import Extension, HeadScore
from lens_linear.reports import Section, Table


def participation(moments):
    """(Σ λ)² / Σ λ² of the output's covariance: how many directions a layer's output uses."""
    values = torch.linalg.eigvalsh(moments.syy)
    return float(values.sum() ** 2 / (values**2).sum())


def from_states(maps, directions, readout, order):
    """The direction, then the leading directions of the states themselves (not centred)."""
    leading = torch.linalg.svd(maps.states(), full_matrices=False).Vh.mT[..., : order - 1]
    return ll.linalg.complete_basis(torch.cat([directions[..., None], leading], -1), order=order)


def ov_norms(model):
    """‖W_V W_O‖ of every head, norms folded."""
    attention = ll.models.read_weights(model).attention
    return (attention.W_V @ attention.W_O).norm(dim=(-2, -1))


def sizes(model, task):
    """Norms of all heads, largest first."""
    norms = ov_norms(model)
    heads = [f"L{layer}H{head}" for layer in range(len(norms)) for head in range(norms.shape[1])]
    frame = pd.DataFrame({"head": heads, "norm": norms.flatten().numpy()})
    frame = frame.sort_values("norm", ascending=False, ignore_index=True)
    text = f"{frame['head'][0]} is the largest head; {len(task)} rows were asked."
    return Section("How large the heads are", text, [Table(frame, "Frobenius norm of W_V W_O.")])


extension = Extension(
    statistics={"participation": participation},
    bases={"states": from_states},
    head_scores={"ov_norm": HeadScore(ov_norms, "size of OV", "‖W_V W_O‖, 0 and up")},
    sections={"How large the heads are": sizes},
)
