"""Small pretraining studies: one recipe file, one call, one table with the spread between seeds.

A study file (JSON) names a base recipe, variants that change it, seeds, and what to validate on. Bundled:
``"cosine"`` (the regulariser at several weights) and ``"learned"`` (seed, activation, weight decay and
training time against the FFN profile). Every model is tiny, so that the whole table takes minutes on one
thread. What such a model shows need not hold for a large one, and the summary says which model it was.

``lens-linear train cosine --corpus FILE`` does all of it from the command line.

>>> load_study("cosine").variants["cosine 0.3"]
{'cosine': 0.3}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Int
from torch import Tensor, nn

from lens_linear.checks import counted, require_file, require_float, require_int
from lens_linear.errors import CorruptedFileError, InvalidArgumentError
from lens_linear.files import read_json, write_text
from lens_linear.linearity.measure.profile import linearity_profile
from lens_linear.models.native import bridge_from_module, native_module
from lens_linear.progress import sequence_bar
from lens_linear.studies.baking import validation_rows
from lens_linear.tables import Result
from lens_linear.training.loop import train, validation_loss
from lens_linear.training.recipes import Recipe, scaled

STUDIES = ("cosine", "learned")
MEASURES = ("loss", "block_r2", "block_r2_no_residual", "ffn_r2", "update_ratio")


@dataclass(frozen=True)
class Study:
    """A base recipe, what varies, and how it is judged; see the bundled files for the format."""

    name: str
    question: str
    seeds: tuple[int, ...]
    recipe: Mapping[str, Any]
    baseline: str
    variants: Mapping[str, Mapping[str, Any]]
    validation: Mapping[str, int]

    def recipe_for(self, variant: str, seed: int) -> Recipe:
        """The recipe of one run."""
        values = {**self.recipe, **self.variants[variant]}
        values["spec"] = {**self.recipe["spec"], **self.variants[variant].get("spec", {})}
        return Recipe.from_dict({**values, "name": f"{variant}, seed {seed}", "seed": seed})

    def scaled(self, factor: float) -> Study:
        """The same study with every run and its warm-up shortened (or lengthened) by ``factor``."""
        factor = require_float("factor", factor, minimum=1e-9)
        variants = {name: scaled(change, factor) for name, change in self.variants.items()}
        return replace(self, recipe=scaled(self.recipe, factor), variants=variants)

    def runs(self) -> list[tuple[str, int]]:
        """Every (variant, seed)."""
        return [(variant, seed) for variant in self.variants for seed in self.seeds]


@dataclass(frozen=True, eq=False)
class StudyResult(Result):
    """One row per run, step and layer; acts as that table.

    Attributes:
        study: the study.
        rows: the measurements.
        n_tokens: validation tokens the scores were taken on.
        n_text: tokens of the training text.
        minutes: training time, all runs together.
    """

    _figure = "study_measures"
    _columns = (
        "variant",
        "seed",
        "step",
        "layer",
        "loss",
        "block_r2",
        "block_r2_no_residual",
        "ffn_r2",
    )

    study: Study
    rows: tuple[Mapping[str, Any], ...]
    n_tokens: int
    n_text: int
    minutes: float

    def to_dataframe(self) -> pd.DataFrame:
        """Columns: variant, seed, step, final, layer, loss (validation, nats per token) and the scores."""
        return pd.DataFrame(list(self.rows))

    def summary(self) -> pd.DataFrame:
        """Per variant and step: mean over layers, then mean and spread (sd) over seeds, of each measure."""
        frame = self.to_dataframe()
        by_run = frame.groupby(["variant", "step", "final", "seed"], sort=False)[
            list(MEASURES)
        ].mean()
        grouped = by_run.groupby(["variant", "step", "final"], sort=False)
        table = grouped.agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
        table.columns = ["_".join(pair) for pair in table.columns.to_flat_index()]
        return table.assign(n_seeds=grouped.size()).reset_index()

    def differences(self) -> pd.DataFrame:
        """Final models, each variant minus the baseline of the same seed: mean, standard error, t, seeds.

        Seeds share the initial weights and the batches, so the difference is paired. With three seeds
        a t of either sign must pass 4.3 for a two-sided p of 0.05.
        """
        frame = self.to_dataframe()
        final = frame[frame.final].groupby(["variant", "seed"], sort=False)[list(MEASURES)].mean()

        def of(variant: str) -> Any:
            return final.xs(variant, level="variant")

        out = []
        for variant in self.study.variants:
            if variant == self.study.baseline:
                continue
            apart = of(variant) - of(self.study.baseline)
            for measure in MEASURES:
                values = apart[measure]
                error = values.std() / math.sqrt(len(values)) if len(values) > 1 else math.nan
                mean = values.mean()
                t = mean / error if error else math.copysign(math.inf, mean) if mean else math.nan
                row = {"variant": variant, "measure": measure, "difference": mean}
                out.append({**row, "se": error, "t": t, "n_seeds": len(values)})
        return pd.DataFrame(out)

    def layer_spread(self, measure: str = "ffn_r2") -> pd.DataFrame:
        """Final models, one row per variant and layer: mean, sd, minimum and maximum over seeds."""
        frame = self.to_dataframe()
        grouped = frame[frame.final].groupby(["variant", "layer"], sort=False)[measure]
        return grouped.agg(
            mean="mean", sd="std", min="min", max="max", n_seeds="count"
        ).reset_index()

    def verdict(self) -> str:
        """Say in words, per variant, whether it is less linear and has a lower loss than the baseline."""
        table = self.differences().set_index(["variant", "measure"])
        lines = []
        for variant in dict.fromkeys(table.index.get_level_values(0)):
            block = _direction(table.loc[(variant, "block_r2")], "more linear", "less linear")
            inner = _direction(
                table.loc[(variant, "block_r2_no_residual")], "more linear", "less linear"
            )
            loss = _direction(table.loc[(variant, "loss")], "worse", "better")
            lines.append(
                f"{variant}: blocks {block}, without the residual {inner}, validation loss {loss}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"StudyResult {self.study.name!r}: {counted(len(self.study.variants), 'variant')} x "
            f"{counted(len(self.study.seeds), 'seed')}, scored on n = "
            f"{counted(self.n_tokens, 'validation token', ',')}, "
            f"{self.minutes:.1f} minutes of training"
        )


def _direction(row: Any, up: str, down: str) -> str:
    # 4.30 is the two-sided 5 % point of t with 2 degrees of freedom; larger studies need less.
    degrees = int(row["n_seeds"]) - 1
    limit = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}.get(degrees, 2.6)
    if not math.isfinite(row["difference"]):
        return "not known (a run has no finite value)"
    if degrees < 1:
        return f"not known ({row['difference']:+.4f} at one seed has no spread)"
    size = f"{row['difference']:+.4f} ± {row['se']:.4f}"
    # A difference that its own digits print as zero is no verdict, however small its error.
    if not abs(row["t"]) > limit or not float(f"{row['difference']:.4f}"):
        return f"no clear change ({size})"
    return f"{up if row['difference'] > 0 else down} ({size})"


def load_study(name: str | Path) -> Study:
    """Read a bundled study by name, or a study file.

    Args:
        name: "cosine", "learned", or the path of a .json file.

    Returns:
        Study: ``.runs()``, ``.recipe_for(variant, seed)``, ``.scaled(factor)``.

    Raises:
        InvalidArgumentError: no such study or file.
        CorruptedFileError: the file is not a study.

    Example:
        >>> study = load_study("cosine")
        >>> len(study.runs()), study.baseline  # four variants, three seeds
        (12, 'cosine 0')
    """
    if str(name) in STUDIES:
        source = resources.files("lens_linear.linearity") / "studies" / f"{name}.json"
        values = json.loads(source.read_text(encoding="utf-8"))
    elif not str(name).endswith(".json"):
        raise InvalidArgumentError(
            f"name must be one of {', '.join(map(repr, STUDIES))} or the path of a .json file, got "
            f"{str(name)!r}"
        )
    else:
        values = read_json(
            require_file("name", name),
            advice="a study holds name, question, seeds, recipe, baseline, variants and validation",
        )
    try:
        study = Study(**{**values, "seeds": tuple(values["seeds"])})
        for variant, seed in study.runs():
            study.recipe_for(variant, seed)
        if study.baseline not in study.variants:
            raise KeyError(study.baseline)
        require_int("validation rows", study.validation["rows"], minimum=2)
        require_int("validation length", study.validation["length"], minimum=2)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptedFileError(
            f"{str(name)!r} is not a study ({error}); needed: name, question, seeds, recipe, baseline, "
            "variants, validation"
        ) from error
    return study


def run_study(
    study: Study | str | Path,
    stream: Int[Tensor, " token"],
    validation: Int[Tensor, " held_out"],
    *,
    folder: str | Path | None = None,
    progress: bool = False,
    device: str = "cpu",
) -> StudyResult:
    """Train every run of a study and measure the linearity of each model on validation text.

    Args:
        study: a study, the name of a bundled one, or a file.
        stream: training ids, one after the other.
        validation: ids of text that is not in ``stream``.
        folder: keeps one small JSON file per finished run; started again, those are not trained anew.
        progress: show a bar over runs.
        device: where to train.

    Returns:
        StudyResult; ``.summary()``, ``.differences()``, ``.layer_spread()``, ``.verdict()``.

    Raises:
        NotEnoughDataError: too little text.
        CorruptedFileError: a file in ``folder`` cannot be read.

    Source: Razzhigaev et al. 2024, arXiv 2405.12250, section 5 (the bundled study "cosine"); paired seeds
        and the verdict are ours.

    Example:
        >>> import torch
        >>> small = {"seeds": (0,), "variants": {"cosine 0": {}}, "validation": {"rows": 8, "length": 64}}
        >>> study = replace(load_study("cosine").scaled(0.004), **small)  # one run of two steps
        >>> ids = torch.randint(1024, (3000,), generator=torch.Generator().manual_seed(0))
        >>> result = run_study(study, ids[:2000], ids[2000:])
        >>> len(result), round(float(result["loss"].mean()))  # three layers, about log 1024 nats
        (3, 7)
    """
    study = study if isinstance(study, Study) else load_study(study)
    rows = validation_rows(validation, study.validation["length"], study.validation["rows"])
    keep = None if folder is None else Path(folder)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    text = hashlib.sha256(stream.int().numpy().tobytes() + rows.numpy().tobytes()).hexdigest()
    out: list[Mapping[str, Any]] = []
    minutes = 0.0
    runs = study.runs()
    with sequence_bar(len(runs), study.name, show=progress) as bar:
        for count, (variant, seed) in enumerate(runs, start=1):
            recipe = study.recipe_for(variant, seed)
            found = _kept(keep, recipe, text)
            if found is None:
                found = _run(recipe, stream, rows, device)
                if keep is not None:
                    write_text(_file(keep, recipe, text), json.dumps(found))
            minutes += found["minutes"]
            out += [{"variant": variant, "seed": seed, **row} for row in found["rows"]]
            bar(count)
    tokens = (len(rows) // 2) * rows.shape[1]
    return StudyResult(study, tuple(out), tokens, len(stream), minutes)


def _run(recipe: Recipe, stream: Tensor, rows: Tensor, device: str) -> dict[str, Any]:
    trained = train(recipe, stream, progress=False, device=device)
    stages: list[tuple[int, bool, nn.Module]] = []
    for step, weights in trained.checkpoints.items():
        early = native_module(recipe.spec, seed=recipe.seed)
        early.load_state_dict(weights)
        stages.append((step, False, early))
    stages.append((recipe.steps, True, trained.module.cpu()))
    out: list[dict[str, Any]] = []
    for step, final, stage in stages:
        out += _measure(recipe, stage.eval(), rows, step, final)
    return {"minutes": trained.minutes, "recipe": recipe.to_dict(), "rows": out}


def _measure(
    recipe: Recipe, module: nn.Module, rows: Tensor, step: int, final: bool
) -> Sequence[dict[str, Any]]:
    loss = validation_loss(module, rows)
    bridge = bridge_from_module(module, recipe.spec, name=recipe.name)  # type: ignore[arg-type]
    frame = linearity_profile(bridge, rows, sites=("block", "ffn"), batch_size=64).to_dataframe()
    names = [measure for measure in MEASURES if measure != "loss"]
    return [
        {
            "step": step,
            "final": final,
            "layer": int(layer),  # type: ignore[call-overload]
            "loss": loss,
            **{name: float(row[name]) for name in names},
        }
        for layer, row in frame.iterrows()
    ]


def _file(folder: Path, recipe: Recipe, text: str) -> Path:
    question = json.dumps([recipe.to_dict(), text], sort_keys=True)
    return folder / f"run-{hashlib.sha256(question.encode()).hexdigest()[:16]}.json"


def _kept(folder: Path | None, recipe: Recipe, text: str) -> dict[str, Any] | None:
    if folder is None or not _file(folder, recipe, text).is_file():
        return None
    path = _file(folder, recipe, text)
    try:
        found = read_json(path, advice="remove it to train again")
        _ = found["minutes"], found["rows"]  # what is missing is refused here
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptedFileError(
            f"{str(path)!r} is not a finished run ({error}); remove it to train again"
        ) from error
    return found
