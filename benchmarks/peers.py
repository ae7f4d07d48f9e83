"""Tools of TransformerLens, beside what gives the same numbers here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from meter import Row, medians
from transformer_lens import head_detector
from transformer_lens.tools.analysis import JacobianLens

import lens_linear as ll
from lens_linear.circuits.induction.repeated_rows import draw_repeated
from lens_linear.dynamics.gains.directions import random_directions
from lens_linear.models.checked import checked


def tools(quick: bool, _folder: Path) -> list[Row]:
    """TransformerLens' head detector and its Jacobian lens, beside what gives the same numbers here."""
    return [_head_detector(quick), _jacobian_lens(quick)]


def _head_detector(quick: bool) -> Row:
    """The same random rows, and of them the same mean attention to the token before."""
    model = ll.load("attn-1l" if quick else "gpt-mini")
    rows = draw_repeated(checked(model), periods=None, rows_per_period=8, bos=None, seed=0)
    kinds = ("previous_token", "duplicate_token", "induction")

    def theirs() -> torch.Tensor:
        found = []
        for row in rows.tokens.split(1):
            # It asks for text; here it gets the row itself.
            given = SimpleNamespace(cfg=model.cfg, to_tokens=lambda _text, row=row: row)
            with torch.no_grad():
                cache = model.run_with_cache(row, remove_batch_dim=True)[1]
            wanted = [
                getattr(head_detector, f"get_{kind}_head_detection_pattern") for kind in kinds
            ]
            found.append(
                [head_detector.detect_head(given, "", of(row), cache=cache) for of in wanted]
            )
        return torch.stack([torch.stack(scores) for scores in found])

    length = rows.tokens.shape[1]  # the first position has none before it
    before = theirs()[rows.periods == 0, 0].double().mean(0) * length / (length - 1)
    ours = ll.induction_scores(model, bos=None).to_dataframe()["prev_token"].to_numpy()
    apart = np.abs(before.flatten().numpy() - ours).max()
    taken = medians(
        1 if quick else 3, ours=partial(ll.induction_scores, model, bos=None), theirs=theirs
    )
    return Row(
        "induction_scores, with controls and what heads copy, against three runs of detect_head of TransformerLens",
        f"{model.cfg.model_name}, {len(rows.tokens)} rows, previous-token scores apart by {apart:.1e}",
        f"{taken['ours']:.2f} s against {taken['theirs']:.2f} s",
        taken["ours"] / taken["theirs"],
        "×",
        None if quick else 0.6,
    )


def _jacobian_lens(quick: bool) -> Row:
    """Derivatives of a readout along one direction at every layer: of the last token of one prompt."""
    words = "gain_profile, adjoint, of one direction, against JacobianLens.fit of TransformerLens, whole matrices"
    try:
        model = ll.load("smollm2-135m")
    except ll.errors.UnknownModelError:
        return Row(words, "SmolLM2-135M", "the model is not on this machine", None, "×", 1.0)
    text, n = (
        "The miller walked along the river until he came to the old bridge.",
        4 if quick else 12,
    )
    directions = random_directions(model)

    def theirs() -> JacobianLens:
        return JacobianLens.fit(
            model, [text], corpus="one sentence", dim_batch=96, max_seq_len=n + 1,
            skip_first_positions=n - 1, show_progress=False,
        )  # fmt: skip

    ids = model.to_tokens(text)[:, :n]
    lens, gains = theirs(), ll.gain_profile(model, ids, directions).gains[0]
    far = [
        float(
            directions[-1].float()
            @ lens._matrix_on(layer, "cpu").float()
            @ directions[layer + 1].float()
        )
        for layer in lens.source_layers
    ]
    known = gains[torch.tensor(lens.source_layers) + 1]
    apart = float((known - torch.tensor(far)).abs().max() / known.abs().max())
    taken = medians(1, ours=partial(ll.gain_profile, model, ids, directions), theirs=theirs)
    return Row(
        words,
        f"SmolLM2-135M, {n} tokens, gains apart by {apart:.1e} of the largest",
        f"{taken['ours']:.2f} s against {taken['theirs']:.2f} s",
        taken["ours"] / taken["theirs"],
        "×",
        None if quick else 0.05,
    )
