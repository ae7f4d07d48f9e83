"""Pretraining studies: the bundled files, exact reruns, resuming, and honest summaries."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from lens_linear.errors import CorruptedFileError, InvalidArgumentError, NotEnoughDataError
from lens_linear.studies.pretraining import (
    MEASURES,
    STUDIES,
    Study,
    StudyResult,
    load_study,
    run_study,
    validation_rows,
)
from lens_linear.studies.study_tables import load_tables, save_tables

TINY = {
    "name": "tiny",
    "question": "?",
    "seeds": [0, 1],
    "recipe": {
        "spec": {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_vocab": 50, "n_ctx": 16},
        "phases": [{"steps": 3, "rows": 4, "length": 16, "warmup": 1}],
        "checkpoints": [1],
        "precision": "float32",
    },
    "baseline": "plain",
    "variants": {"plain": {}, "cosine": {"cosine": 0.5}, "relu": {"spec": {"activation": "relu"}}},
    "validation": {"rows": 12, "length": 16},
}


def text(n, seed):
    return torch.randint(1, 50, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", STUDIES)
def test_bundled_studies_are_whole(name):
    study = load_study(name)
    assert study.baseline in study.variants and len(study.seeds) >= 3
    recipes = [study.recipe_for(variant, seed) for variant, seed in study.runs()]
    assert len({json.dumps(r.to_dict(), sort_keys=True) for r in recipes}) == len(recipes)
    assert all(recipe.tokens < 1_000_000 for recipe in recipes), (
        "each run takes well under a minute"
    )
    gated = load_study("learned").recipe_for("gated silu", 1)
    assert gated.spec.gated and gated.spec.n_layers == 3 and gated.seed == 1


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "tiny.json"
    path.write_text(json.dumps(TINY))
    return run_study(path, text(500, 0), text(400, 1), folder=folder / "kept"), folder


def test_table_holds_every_run_step_and_layer(result):
    table, _ = result
    frame = table.to_dataframe()
    assert len(frame) == 3 * 2 * 2 * 2 and set(frame.step) == {1, 3}
    assert frame.final.tolist() == (frame.step == 3).tolist()
    assert frame[list(MEASURES)].notna().all().all()
    summary = table.summary()
    row = summary[(summary.variant == "relu") & summary.final].iloc[0]
    by_seed = frame[(frame.variant == "relu") & frame.final].groupby("seed").ffn_r2.mean()
    assert row.ffn_r2_mean == pytest.approx(by_seed.mean())
    assert row.ffn_r2_sd == pytest.approx(by_seed.std()) and row.n_seeds == 2
    spread = table.layer_spread("block_r2")
    assert len(spread) == 6 and (spread.n_seeds == 2).all()
    assert "3 variants x 2 seeds" in repr(table)


def test_finished_runs_are_not_trained_again_and_rerunning_gives_the_same(result, monkeypatch):
    table, folder = result
    assert len(list((folder / "kept").glob("run-*.json"))) == 6
    again = run_study(folder / "tiny.json", text(500, 0), text(400, 1))
    assert again.to_dataframe().equals(table.to_dataframe())
    monkeypatch.setattr("lens_linear.studies.pretraining.train", None)
    kept = run_study(folder / "tiny.json", text(500, 0), text(400, 1), folder=folder / "kept")
    assert kept.to_dataframe().equals(table.to_dataframe())
    with pytest.raises(TypeError):  # another text is another run
        run_study(folder / "tiny.json", text(500, 2), text(400, 1), folder=folder / "kept")


def test_tables_are_written_with_their_settings(result, tmp_path):
    table, _ = result
    paths = save_tables(table, tmp_path / "new", text="random ids")
    assert [path.name for path in paths][:2] == ["tiny.csv", "tiny-summary.csv"]
    frame = pd.read_csv(paths[0])
    assert frame.ffn_r2.tolist() == pytest.approx(table["ffn_r2"].tolist(), abs=1e-6)
    settings = json.loads(paths[-1].read_text())
    assert settings["recipe"] == TINY["recipe"] and settings["text"] == "random ids"
    assert settings["verdict"] == table.verdict().splitlines() and len(settings["verdict"]) == 2
    back = load_tables(tmp_path / "new", "tiny")
    assert back.verdict() == table.verdict() and back.n_tokens == table.n_tokens
    assert back["ffn_r2"].tolist() == pytest.approx(table["ffn_r2"].tolist(), abs=1e-6)
    paths[0].write_text("\n".join(paths[0].read_text().splitlines()[:-8]) + "\n")
    with pytest.raises(CorruptedFileError, match="not those of the settings"):
        load_tables(tmp_path / "new", "tiny")
    with pytest.raises(InvalidArgumentError, match="exists"):
        load_tables(tmp_path, "tiny")


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_in_the_documentation_are_of_the_bundled_recipes(name):
    if not (RESULTS / f"{name}.json").is_file():
        pytest.skip("docs/results is not beside these tests")
    study, found = load_study(name), load_tables(RESULTS, name)
    assert dict(found.study.recipe) == dict(study.recipe)
    assert found.study.variants == study.variants and found.study.seeds == study.seeds
    said = json.loads((RESULTS / f"{name}.json").read_text())["verdict"]
    assert said == found.verdict().splitlines()


def made(effect, noise):
    study = Study(**{**TINY, "seeds": (0, 1, 2), "variants": {"plain": {}, "other": {}}})
    rows = []
    for seed in study.seeds:
        for variant, add in (("plain", 0.0), ("other", effect)):
            value = 0.5 + 0.1 * seed + add + noise * (seed - 1) * (variant == "other")
            row = {"variant": variant, "seed": seed, "step": 3, "final": True, "layer": 0}
            rows.append({**row, **dict.fromkeys(MEASURES, value)})
    return StudyResult(study, tuple(rows), 100, 100, 0.0)


def test_differences_are_paired_by_seed_and_the_verdict_keeps_quiet_about_noise():
    table = made(effect=-0.2, noise=0.01).differences().set_index("measure")
    assert table.difference["loss"] == pytest.approx(-0.2)
    assert table.se["loss"] == pytest.approx(0.01 / 3**0.5)
    assert table.t["loss"] == pytest.approx(-0.2 / (0.01 / 3**0.5))
    said = made(effect=-0.2, noise=0.01).verdict()
    assert "blocks less linear" in said and "validation loss better" in said
    said = made(effect=0.2, noise=0.01).verdict()
    assert "blocks more linear" in said and "validation loss worse" in said
    assert "better" not in made(effect=-0.01, noise=0.05).verdict()
    assert made(effect=-0.01, noise=0.05).verdict().count("no clear change") == 3


def test_the_verdict_with_no_spread_at_all():
    assert made(effect=-0.25, noise=0.0).verdict().count("less linear (-0.2500 ± 0.0000)") == 2
    assert made(effect=0.0, noise=0.0).verdict().count("no clear change (+0.0000") == 3
    assert made(effect=2e-5, noise=1e-9).verdict().count("no clear change (+0.0000") == 3
    alone = made(effect=-0.2, noise=0.0)
    rows = tuple(row for row in alone.rows if row["seed"] == 1)
    alone = StudyResult(alone.study, rows, 100, 100, 0.0)
    assert alone.verdict().count("not known (-0.2000 at one seed has no spread)") == 3
    for lost in (float("nan"), float("inf")):
        assert (
            made(effect=lost, noise=0.0).verdict().count("not known (a run has no finite value)")
            == 3
        )


def test_a_study_is_scaled_as_its_recipes_are():
    rows = {"steps": 400, "length": 16}
    phases = [rows, {**rows, "warmup": 80}]  # 50 steps of warm-up unless it says
    study = Study(**{**TINY, "recipe": {**TINY["recipe"], "phases": phases}})
    for variant, seed in study.runs():
        short = study.scaled(0.1).recipe_for(variant, seed)
        assert short == study.recipe_for(variant, seed).scaled(0.1)
        assert [(phase.steps, phase.warmup) for phase in short.phases] == [(40, 5), (40, 8)]


def test_validation_rows_begin_with_the_beginning():
    rows = validation_rows(torch.arange(1, 31), 6, 3)
    assert rows[:, 0].tolist() == [0, 0, 0] and rows[1, 1:].tolist() == [6, 7, 8, 9, 10]
    with pytest.raises(NotEnoughDataError):
        validation_rows(torch.arange(10), 6, 3)


def test_refusals(tmp_path):
    with pytest.raises(InvalidArgumentError, match="'cosine', 'learned' or the path"):
        load_study("cosin")
    with pytest.raises(InvalidArgumentError, match="exists"):
        load_study(tmp_path / "none.json")
    bad = tmp_path / "bad.json"
    for change in ({"seeds": 3}, {"baseline": "none"}, {"variants": {"plain": {"speed": 1}}}):
        bad.write_text(json.dumps({**TINY, **change}))
        with pytest.raises(CorruptedFileError, match="not a study"):
            load_study(bad)
