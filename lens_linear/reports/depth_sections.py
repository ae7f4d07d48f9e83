"""Sections of a report on FFNs as affine maps and on gains over depth. They only call, and say numbers."""

from __future__ import annotations

from lens_linear import plots as figures
from lens_linear.dynamics.gains.directions import concept_directions
from lens_linear.dynamics.gains.gain_profile import gain_profile
from lens_linear.dynamics.surrogates.surrogate import fit_surrogate
from lens_linear.reports.measured import Measured
from lens_linear.reports.page import Figure, Section, Table
from lens_linear.text.concepts import load_concept

_PROMPTS = 40
_ORDER = 16


def ffn_section(measured: Measured) -> Section:
    """What the loss says when one FFN is its best affine map; how many of the layers were tried."""
    table, n_layers = measured.compression, measured.model.n_layers
    frame = table.to_dataframe()
    tried = frame["layer"].nunique()
    whole = "" if tried == n_layers else f" Of {n_layers} layers {tried} were tried."
    easy = frame.iloc[int(frame["loss_increase"].argmin())]
    hard = frame.iloc[int(frame["loss_increase"].argmax())]
    finding = (
        f"The FFN of layer {int(easy['layer'])} can be one affine map for {easy['loss_increase']:+z.3f} "
        f"nats of loss, that of layer {int(hard['layer'])} for {hard['loss_increase']:+z.3f}.{whole}"
    )
    columns = [
        "layer",
        "ffn_r2",
        "null_r2",
        "times_fewer",
        "loss",
        "loss_increase",
        "loss_increase_se",
    ]
    if table.first_position:
        columns.insert(2, "ffn_r2_without_first")
    prose = (
        f"One FFN of {measured.name} at a time is replaced by the affine map that fits it best, and the "
        f"loss is taken on other text. {finding} R² alone does not say this: what a layer writes may "
        "matter little."
    ) + ("" if not table.first_position else f" {_sentence(table.first_position)}")
    block = Table(frame[columns], f"Loss on {table.n_tokens:,} tokens, maps of {table.n_fit:,}.")
    caption = "Loss after one FFN was replaced by an affine map."
    return Section(
        "FFNs as affine maps", prose, [Figure(table.plot(), caption), block], finding=finding
    )


def _sentence(clause: str) -> str:
    words = clause.removeprefix("; ")
    return f"{words[:1].upper()}{words[1:]}."


def dynamics_section(measured: Measured) -> Section:
    """Gains over depth of a small concept, and how well a linear surrogate predicts them."""
    model, seed = measured.model, measured.seed
    split = load_concept("mood").split(_PROMPTS, _PROMPTS, _PROMPTS, seed=seed)
    directions = concept_directions(model, split.concept, truncate=True)
    profile = gain_profile(model, list(split.evaluation.texts), directions, truncate=True)
    order = min(_ORDER, model.d_model)
    surrogate = fit_surrogate(
        model, list(split.operating.texts), directions, order=order, truncate=True, seed=seed
    )
    agreement = surrogate.agreement(profile)
    gains = profile.mean
    top = int(gains.abs().argmax())
    finding = (
        f"A push along the mood direction counts most at layer {top} of {measured.name} (gain "
        f"{float(gains[top]):.2f}); a linear surrogate of order {order} ranks the layers with Spearman "
        f"{agreement.spearman:.2f}."
    )
    prose = (
        f"The gain of a layer says how far the last stream moves along a direction when the layer's stream "
        f"is pushed along it. {finding} Prompts: {_PROMPTS} of one half to fit, {_PROMPTS} others to "
        "measure."
    )
    drawn = figures.gain_profiles({"measured": profile, f"order {order}": surrogate})
    return Section(
        "Gains over depth",
        prose,
        [Figure(drawn, "Gain of each layer, measured and predicted by the surrogate.")],
        finding=finding,
    )
