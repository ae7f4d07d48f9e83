"""The Adam baseline, geometry by layer, comparisons and the published table."""

import math

import pytest
import torch
from linearity_data import activations, numpy_r2, small, split, tokens

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg import anisotropy, intrinsic_dimension, spectrum
from lens_linear.linearity.measure.adam import adam_baseline, adam_on_rows
from lens_linear.linearity.measure.compare import compare_profiles
from lens_linear.linearity.measure.geometry import layer_geometry
from lens_linear.linearity.replace.compression import ffn_compression
from lens_linear.models.capture import residual_stream
from lens_linear.studies.published import NOT_RUN, published_beside_measured


def rows(condition, n=2000, d=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2 * n, d, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(d, d, generator=g).double())[0]
    y = z @ torch.randn(d, 4, generator=g).double() + 0.3 * torch.randn(2 * n, 4, generator=g)
    x = z * torch.logspace(0, -math.log10(condition), d, dtype=torch.float64) @ turn
    return x[:n], y[:n], x[n:], y[n:]


def test_adam_reaches_the_closed_form_only_on_well_conditioned_inputs():
    good = adam_on_rows(*rows(1.0), steps=800, learning_rate=1e-2)
    bad = adam_on_rows(*rows(1e4), steps=800, learning_rate=1e-2)
    assert good.closed_form == pytest.approx(bad.closed_form, abs=1e-6), (
        "least squares does not care"
    )
    assert good.closed_form == pytest.approx(numpy_r2(*rows(1.0)), abs=1e-9)
    assert good.r2[-1] > good.closed_form - 0.005
    assert bad.r2[-1] < bad.closed_form - 0.1
    assert good.condition_number < 2 < 5e3 < bad.condition_number < 2e4
    assert bool((bad.r2[1:] <= bad.closed_form).all())
    frame = bad.to_dataframe()
    assert frame.step.tolist()[:4] == [0, 1, 2, 4] and frame.step.iloc[-1] == 800
    assert frame.shortfall.iloc[-1] == pytest.approx(bad.closed_form - float(bad.r2[-1]))
    assert "closed form" in repr(bad)
    x, y, x_test, y_test = rows(1.0)
    double, new = (1e8 * torch.cat([part, part[:, :1]], 1) for part in (x, x_test))
    assert adam_on_rows(double, y, new, y_test, steps=1).condition_number < 4  # of what is there


def test_standardising_cures_unequal_columns():
    x, y, x_test, y_test = rows(1.0)
    scale = torch.ones(12, dtype=torch.float64)
    scale[:3], scale[3:6] = 1000, 1e-3
    outlier = adam_on_rows(x * scale, y, x_test * scale, y_test, steps=1000, learning_rate=1e-2)
    assert outlier.r2_standardized[-1] > outlier.closed_form - 0.01 > outlier.r2[-1]


def test_adam_on_a_model_uses_the_halves_of_the_profile():
    model, ids = small(2), tokens(60)
    train, test = split(ids)
    want = numpy_r2(*activations(model, train, 1, "block"), *activations(model, test, 1, "block"))
    found = adam_baseline(model, ids, 1, site="block", steps=5)
    assert found.closed_form == pytest.approx(want, abs=1e-6)
    assert "block of layer 1 of toy" in repr(found)


def test_geometry_is_that_of_the_residual_stream():
    model, ids = small(2), tokens(30)
    geometry = layer_geometry(model, ids, skip=2)
    stream = residual_stream(model, ids)[:, :, 2:].flatten(1, 2)
    frame = geometry.to_dataframe()
    assert frame.index.tolist() == [0, 1, 2] and set(frame.n_rows) == {30 * 14}
    for boundary in (1, 2):
        cloud = stream[boundary]
        assert frame.anisotropy[boundary] == pytest.approx(anisotropy(cloud), abs=1e-9)
        assert frame.effective_rank[boundary] == pytest.approx(
            spectrum(cloud).effective_rank, abs=1e-6
        )
        assert frame.intrinsic_dimension[boundary] == pytest.approx(
            intrinsic_dimension(cloud).dimension, rel=1e-6
        )
        reference = intrinsic_dimension(cloud, coinciding="reference").dimension
        assert frame.reference_dimension[boundary] == pytest.approx(reference, rel=1e-6)
        assert frame.norm[boundary] == pytest.approx(float(cloud.double().norm(dim=1).mean()))
    few = layer_geometry(model, ids, max_rows=50, seed=1)
    assert few.n_rows == 50 and "n = 50 states" in repr(few)


def test_profiles_side_by_side():
    ids = tokens(40)
    one, two = (ll.linearity_profile(small(n), ids) for n in (2, 3))
    both = compare_profiles({"small": one, "large": two})
    frame = both.to_dataframe()
    assert len(frame) == 5 and frame.name.tolist() == ["small"] * 2 + ["large"] * 3
    assert frame.depth.tolist() == [0, 1, 0, 0.5, 1]
    assert frame[frame.name == "large"].ffn_r2.tolist() == two.to_dataframe().ffn_r2.tolist()
    assert both.summary().ffn_r2_mean["small"] == pytest.approx(float(one.scores["ffn"].mean()))
    with pytest.raises(InvalidArgumentError, match="must be a LinearityProfile"):
        compare_profiles({"x": 3})


def test_published_numbers_stand_beside_measured_and_nothing_is_filled_in():
    empty = published_beside_measured({}).to_dataframe()
    assert (empty.measured == NOT_RUN).all() and {"gpt2", "pythia-160m"} <= set(empty.model)
    assert empty.source.str.contains("arXiv").all()
    model, ids = small(2), tokens(60)
    profile, table = ll.linearity_profile(model, ids), ffn_compression(model, ids)
    frame = published_beside_measured(
        {"owner/GPT2-small": profile, "our-toy": profile, "gpt2": table}
    ).to_dataframe()
    row = frame[(frame.model == "gpt2") & (frame.quantity == "block R² with residual")].iloc[0]
    mean = float(profile.scores["block"].mean())
    assert f"mean {mean:.3f}" in row.measured and row.published == "about 0.99"
    early = frame[(frame.model == "gpt2") & frame.quantity.str.contains("early FFN")].iloc[0]
    assert f"{table.rows[0]['perplexity_increase']:+.2f}" in early.measured
    assert (frame[frame.model == "pythia-160m"].measured == NOT_RUN).all()
    ours = frame[frame.model == "our-toy"]
    assert len(ours) == 3 and (ours.published == "none").all()
    stages = compare_profiles({"step 0": profile, "step 9": profile})
    frame = published_beside_measured({"our-toy": stages}).to_dataframe()
    row = frame[frame.quantity == "block R² during pretraining"].iloc[0]
    assert row.published == "falls" and f"{mean:.3f} (step 0), {mean:.3f} (step 9)" in row.measured
    assert (frame[frame.quantity == "block R² during fine-tuning"].measured == NOT_RUN).all()
    with pytest.raises(InvalidArgumentError, match="must be a LinearityProfile"):
        published_beside_measured({"gpt2": 0.99})


@pytest.mark.parametrize(
    "name, rows, run",
    [
        ("owner/llama-160m", 3, 3),  # two of its family, one of its own
        ("folder/GPT2", 4, 3),  # the perplexity after compression was not run
        ("gpt2-xl", 2, 2),  # of the family, but not the model whose FFNs were published
        ("Llama-2-7b", 2, 2),
        ("optimus", 0, 0),
        ("bloomz", 0, 0),
    ],
)
def test_rows_about_one_model_are_those_a_paper_gives_for_it(name, rows, run):
    profile = ll.linearity_profile(small(1), tokens())
    frame = published_beside_measured({name: profile}).about(name)
    assert len(frame) == rows and int((frame.measured != NOT_RUN).sum()) == run


def test_few_rows_may_have_a_ridge_beside_adam():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 370, 48, generator=g, dtype=torch.float64)
    cut = (x[:70], y[:70] + 0.3 * x[:70], x[70:], y[70:] + 0.3 * x[70:])
    plain, chosen = (adam_on_rows(*cut, steps=2, ridge=ridge) for ridge in (0.0, "loo"))
    assert plain.closed_form < -1 < -0.2 < chosen.closed_form
    assert 'ridge="loo")' in repr(plain) and "the ridge was chosen already" in repr(chosen)
