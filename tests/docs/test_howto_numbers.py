"""What the six pages of own analyses compute, against plain torch; and how long they are."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_docs_code import NUMBERS as PAGES

import lens_linear as ll

pytestmark = pytest.mark.whole

HOWTO = Path(__file__).resolve().parents[2] / "docs" / "howto"
MOST = 25  # lines beyond the page's own mathematics, its functions


def code_of(page):
    text = (HOWTO / f"{page}.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)```", text, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A page's names once its code has run."""
    made = {}

    def run(page, monkeypatch):
        if page not in made:
            monkeypatch.chdir(tmp_path_factory.mktemp(page))
            made[page] = {}
            exec(compile(code_of(page), page, "exec"), made[page])
        return made[page]

    return run


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page):
    code = code_of(page)
    own = {
        line
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = [i for i, line in enumerate(code.splitlines(), 1) if line.strip() and i not in own]
    assert 5 < len(lines) <= MOST, (page, len(lines))


@torch.no_grad()
def test_positions_alone(found, monkeypatch):
    names = found("positional_qk", monkeypatch)
    model, name = names["model"], names["name"]
    head, attn = int(name[-1]), model.blocks[0].attn
    rows = (
        model.pos_embed.W_pos.double()
        if hasattr(model.pos_embed, "W_pos")
        else model.W_pos.double()
    )
    rows = rows - rows.mean(1, keepdim=True)
    q, k = rows @ attn.W_Q[head].double(), rows @ attn.W_K[head].double()
    plain = q @ k.T / q.shape[1] ** 0.5
    table = names["table"].set_index(["query", "key"])
    for query, key in ((9, 8), (40, 3), (77, 77)):
        assert table.score[query, key] == pytest.approx(float(plain[query, key]), rel=1e-4)
    ahead = table.scaled_score[50]
    np.testing.assert_allclose(table.attention[50], np.exp(ahead) / np.exp(ahead).sum(), rtol=1e-6)


@torch.no_grad()
def test_one_score_by_writer(found, monkeypatch):
    names = found("score_by_writer", monkeypatch)
    cache = names["model"].run_with_cache(names["tokens"])[1]
    query, key = names["query"], names["query"] - names["period"] + 1
    q = cache["blocks.1.attn.hook_q"][0, query, 3].double()
    k = cache["blocks.1.attn.hook_k"][0, : query + 1, 3].double()
    scores = k @ q / len(q) ** 0.5
    others = (scores.sum() - scores[key]) / query
    assert names["one"].score.sum() == pytest.approx(float(scores[key] - others), abs=1e-3)
    assert names["one"].component[0] == "L0H0" and float(scores[key] - others) > 3


@torch.no_grad()
def test_a_path_is_cut_as_by_hand(found, monkeypatch):
    names = found("path_patching", monkeypatch)
    model, rows = names["model"], names["clean_rows"]
    assert names["effects"]["effect"].iloc[0] > 0.5
    cache = model.run_with_cache(rows)[1]
    attn = model.blocks[1].attn
    written = cache["blocks.0.attn.hook_z"][:, :, 0] @ model.blocks[0].attn.W_O[0]
    stream = cache["blocks.1.hook_resid_pre"] - written
    keys = model.blocks[1].ln1(stream) @ attn.W_K[3] + attn.b_K[3]

    def replace(k, hook):
        k = k.clone()
        k[:, :, 3] = keys
        return k

    logits = model.run_with_hooks(rows, fwd_hooks=[("blocks.1.attn.hook_k", replace)])
    plain = logits[:, -1].log_softmax(-1)[range(len(rows)), names["half"][:, 5]].mean()
    assert names["without"] == pytest.approx(-float(plain), abs=1e-4)
    assert -float(plain) > names["whole"] + 0.5


@torch.no_grad()
def test_the_effective_rank_over_training(found, monkeypatch):
    names = found("ffn_over_training", monkeypatch)
    profile, model = names["profiles"]["40"], names["models"]["40"]
    out = model.run_with_cache(names["tokens"])[1]["blocks.1.hook_mlp_out"].double()
    values = np.linalg.eigvalsh(np.cov(out.flatten(0, 1).numpy().T))
    shares = values[values > 0] / values[values > 0].sum()
    rank = np.exp(-(shares * np.log(shares)).sum())
    both = (profile["erank"][1] + profile["erank_fit"][1]) / 2  # halves of the rows
    assert both == pytest.approx(rank, rel=0.05) and 2 < rank < 31
    assert profile["erank_low"][1] < profile["erank"][1] < profile["erank_high"][1]
    difference = names["found"].difference("120", "0")
    ends = [names["profiles"][step].scores["ffn"] for step in ("120", "0")]
    np.testing.assert_allclose(difference["ffn_r2"], ends[0] - ends[1], atol=1e-12)
    assert "ProfileDifference: 120 minus 0" in repr(difference) and len(difference.plot().data) > 2


def test_the_new_basis_gives_the_plan_and_the_exact_gains(found, monkeypatch):
    names = found("new_basis", monkeypatch)
    own = names["surrogates"]["seen_by_readout"]
    gains, plan = (
        own.gains[0],
        torch.as_tensor(names["plan"].to_dataframe()["amplitude"].to_numpy()),
    )
    assert torch.allclose(plan, 0.5 * gains / gains.square().sum(), atol=1e-9)
    assert "seen_by_readout" in {line.name for line in names["figure"].data}
    model, split = names["model"], names["split"]
    whole = ll.fit_surrogate(
        model, split, names["directions"], order=model.cfg.d_model, basis=names["seen_by_readout"]
    )
    exact = ll.gain_profile(model, list(split.operating.texts), names["directions"]).gains
    assert torch.allclose(whole.gains, exact, atol=1e-4) and not torch.allclose(
        own.gains, exact, atol=1e-2
    )


@torch.no_grad()
def test_the_task_is_learnt_saved_and_scored(found, monkeypatch):
    names = found("own_training", monkeypatch)
    rows = names["rows"]
    right = names["model"](rows)[:, -1].argmax(-1) == rows[:, :2].sum(1) % 7
    score = ll.stats.score_model(names["run"].model, names["task"]).metric.mean
    assert float(right.float().mean()) == pytest.approx(score) and score > 0.9
