"""Results of models of any size, for figures: small real ones, grown along their axes."""

import dataclasses
import re

import numpy as np
import pandas as pd
import torch

import lens_linear as ll
from lens_linear import circuits, constructions, dynamics, linearity
from lens_linear.linearity.replace.compression import CompressionTable
from lens_linear.linearity.replace.runs import RunTable
from lens_linear.models.open.toy import toy_model

SIZES = ((2, 4), (12, 12), (48, 25))


def grown(result, **sizes):
    """The result with its tensors repeated along the named axes of their annotations, a little varied."""

    def along(value, annotation):
        if isinstance(value, dict):
            return {key: along(each, annotation) for key, each in value.items()}
        names = re.search(r"['\"]\s*([\w ]+)['\"]", annotation)
        if not isinstance(value, torch.Tensor) or names is None:
            return value
        for axis, name in enumerate(names[1].split()):
            if name in sizes and axis < value.ndim:
                value = value.index_select(axis, torch.arange(sizes[name]) % value.shape[axis])
        if value.is_floating_point():
            wave = (
                torch.linspace(0, 6, value.numel(), dtype=torch.float64).sin().reshape(value.shape)
            )
            value = value * (1 + 0.05 * wave.to(value.dtype))
        return value

    changes = {}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if dataclasses.is_dataclass(value) and field.name in ("stats", "without_first"):
            changes[field.name] = grown(value, **sizes)
        elif field.init:
            changes[field.name] = along(value, str(field.type))
    return dataclasses.replace(result, **changes)


TOKENS = torch.randint(32, (20, 16), generator=torch.Generator().manual_seed(0))
SHAPE = {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_vocab": 32, "n_ctx": 32}


def results(layers, heads):
    """{figure: its arguments} for every figure whose size follows the model's."""
    attn = toy_model(**SHAPE)
    gpt = toy_model(**SHAPE, attn_only=False, norm="LN")
    draw = np.random.default_rng(0)
    probe = {"periods": [4, 5], "rows_per_period": 2, "bos": None}
    composition = ll.composition_scores(attn, n_random=5)
    scores = torch.rand(3, layers, heads, layers, heads, generator=torch.Generator().manual_seed(1))
    mean = torch.full_like(scores, 0.5)
    composition = dataclasses.replace(
        composition,
        scores=scores.double(),
        baseline_mean=mean.double(),
        baseline_sd=mean.double() / 5,
    )
    inducing = constructions.build_induction(vocab=24, n_ctx=48).model
    scored = grown(ll.induction_scores(inducing, rows_per_period=2), layer=layers, head=heads)
    ablated = circuits.ablation_scores(inducing, **probe)
    profile = grown(ll.linearity_profile(gpt, TOKENS), layer=layers)
    directions = dynamics.random_directions(gpt)
    gains = grown(ll.gain_profile(gpt, list(TOKENS), directions), layer=layers)
    mapped = ll.layer_map(gpt, TOKENS)
    reach = torch.linspace(1, 0.2, layers + 1).expand(layers + 1, -1).double().triu()
    reach = torch.where(reach > 0, reach, torch.nan)
    attribution = ll.qk_attribution(gpt, TOKENS, 1, 0)
    parts = layers * heads + 4
    names = [f"L{i // heads}H{i % heads}" for i in range(layers * heads)]
    attribution = dataclasses.replace(
        grown(attribution, component=parts), components=("embed", "pos", "bias", "FFN 0", *names)
    )
    compressed = [
        {"layer": i, "rank": rank, "map_parameters": 100 * rank, "times_fewer": 64 / rank,
         "loss_increase": 0.1 * i / layers + 1 / rank, "loss_increase_se": 0.01, "ffn_r2": 0.5,
         "ffn_r2_without_first": 0.4, "ffn_first_share": 0.1, "perplexity_increase": 1.0}
        for i in range(layers) for rank in (2, 8, 32)
    ]  # fmt: skip
    curve = ll.replacement_curve(gpt, TOKENS)
    steps = tuple(tuple(range(n)) for n in range(layers + 1))
    curve = dataclasses.replace(
        curve, steps=steps, scores=tuple(curve.scores[i % 3] for i in range(layers + 1)),
        n_parameters=tuple(range(layers + 1)),
    )  # fmt: skip
    cells = pd.DataFrame(
        [{"layer": i, "position": p, "token": f" w{p}", "top": " the", "probability": float(draw.random())}
         for i in range(layers) for p in range(12)]
    )  # fmt: skip
    lens = pd.DataFrame({"layer": range(layers), "kl": np.linspace(4, 0, layers)})
    lens = lens.assign(loss=lens["kl"] + 3, top1=np.linspace(0.2, 1, layers))
    patched = pd.DataFrame(
        {"layer": [i for i in range(layers) for _ in range(heads)], "head": names}
    )
    pattern = circuits.attention_pattern(attn, TOKENS[0, :9], 1)
    n = min(4 * heads, 100)
    attention = torch.rand(1, n, n, generator=torch.Generator().manual_seed(2)).tril()
    attention[..., 0] += 8
    attention = attention / attention.sum(-1, keepdim=True)
    pattern = dataclasses.replace(
        pattern,
        pattern=attention,
        tokens=torch.arange(n),
        token_text=tuple(f" word{i}" for i in range(n)),
    )
    geometry = grown(linearity.layer_geometry(gpt, TOKENS, skip=1), boundary=layers + 1)
    many = {f"step {i}": profile for i in range(min(layers, 30))}
    return {
        "head_scores": (scored,),
        "ablation_map": (grown(ablated, layer=layers, head=heads),),
        "composition_map": (composition,),
        "circuit_graph": (composition, scored),
        "linearity_profile": (profile,),
        "profile_comparison": (linearity.compare_profiles(many),),
        "layer_map": (
            dataclasses.replace(mapped, values=reach, without_first=reach,
                first_share=torch.zeros(layers + 1), boundaries=tuple(range(layers + 1))),
        ),
        "layer_geometry": (geometry,),
        "gain_profiles": ({"exact": gains, "a name of eighty characters " * 3: gains},),
        "schedule_shapes": (ll.min_energy(gains, 0.1),),
        "ffn_compression": (CompressionTable(tuple(compressed), 3.0, 64, "toy", 16, 100, 100, 0),),
        "run_table": (
            RunTable(
                tuple({"method": "linear", "first": i, "last": j, "loss_increase": 0.1 * (j - i)}
                      for i in range(layers) for j in range(i, layers)),
                3.0, "toy", 16, 100, 100, 0,
            ),
        ),
        "replacement_curves": ({"remove": curve},),
        "qk_attribution": (attribution,),
        "attention_pattern": (pattern,),
        "lens_grid": (cells,),
        "lens_profile": (lens,),
        "patching": (patched.assign(effect=draw.normal(size=len(patched))),),
        "direct_logit_attribution": (
            pd.DataFrame({"component": names, "relative": draw.normal(size=len(names))}),
        ),
    }  # fmt: skip
