"""The engine and tokenizer of the committed bundle, run in node, against Python's numbers."""

import json
import random
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear.circuits import ablate_heads
from lens_linear.circuits.heads.embedding_scales import token_scales
from lens_linear.circuits.induction.ablation import stand_ins
from lens_linear.explorer.live import live_arrays, live_facts, why_not_live
from lens_linear.explorer.packing import pack, unpack_ints
from lens_linear.explorer.payload import _facts, dumps
from lens_linear.models import checked, read_weights
from lens_linear.stats.task_scores import require_task
from lens_linear.token_labels import token_label
from tests.conftest import ROOT, SHARED, absent

pytestmark = pytest.mark.whole

FOLDER = Path(__file__).parent
BUNDLE = Path(ll.__file__).parent / "explorer" / "explorer.js"
BOUND = {"float32": 1e-4, "float16": 0.02}


def ask(tmp_path, *, browser=False, **questions):
    """What the bundle gives, in node; in a page in Chromium where ``browser`` is asked for."""
    if shutil.which("node") is None:
        absent("no Node: the page's engine cannot be run outside a browser")
    file = tmp_path / "questions.json"
    file.write_text(dumps(questions), encoding="utf-8")
    if browser:
        chromium, page = shutil.which("chromium"), tmp_path / "host.html"
        if chromium is None or not (ROOT / "frontend/node_modules/playwright-core").is_dir():
            absent("no chromium or no frontend/node_modules: the page is not run in a browser")
        if not page.is_file():
            ll.explore(ll.load("attn-0l"), ["host"]).save(page)
        job = tmp_path / "job.json"
        job.write_text(json.dumps([{"check": "engine", "file": str(page), "questions": str(file)}]))
        command = ["node", FOLDER / "page.mjs", ROOT / "frontend", chromium, job]
        done = subprocess.run(command, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        return json.loads(done.stdout)[0]
    command = ["node", FOLDER / "engine.mjs", BUNDLE, file]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=300).stdout)


def live_payload(model, precision="float32"):
    model = checked(model)
    weights = read_weights(model)
    means = stand_ins(model, "pooled", require_task(model, reference(model)))
    assert why_not_live(model, weights) is None
    return {
        "model": _facts(model, weights) | live_facts(model),
        "arrays": live_arrays(model, weights, means, precision),
        "scales": pack(token_scales(weights), "float32"),
    }


def reference(model):
    return rows_of(model, 6, 12, seed=9)


def rows_of(model, n, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.cfg.d_vocab, (n, length), generator=generator)


TOYS = {
    "none, standard": {"norm": "none"},
    "layer norm, standard": {"norm": "LN", "n_layers": 3},
    "RMS, rotary": {"norm": "RMS", "positions": "rotary"},
    "no norm, rotary, one layer": {"norm": "none", "positions": "rotary", "n_layers": 1},
    "LNPre, no positions": {"norm": "LNPre", "positions": "none"},
}


def toy(name):
    model = ll.toy_model(seed=3, **TOYS[name])
    with torch.no_grad():  # biases and norm weights that are not their first values
        generator = torch.Generator().manual_seed(1)
        for _, weight in model.original_model.named_parameters():
            if weight.ndim == 1:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", TOYS)
def test_logits_paths_and_ablation_of_every_kind_of_model(tmp_path, name):
    model = toy(name)
    rows = rows_of(model, 3, 9)
    rows[1, :5] = rows[0, :5]  # a shared prefix, so that the cache is used
    asked = [{"ids": rows[i].tolist(), "target": 5 + i} for i in range(3)]
    asked.append({"ids": rows[0].tolist(), "target": 7, "without": ["L0H1"]})
    got = ask(
        tmp_path, payload=live_payload(model), rows=rows.tolist(), paths=asked, without=["L0H1"]
    )
    with torch.no_grad():
        wanted = model(rows)
        with ablate_heads(model, ["L0H1"], reference(model), how="pooled"):
            without = model(rows[:1])[0, -1]
    np.testing.assert_allclose(got["logits"], wanted.numpy(), atol=BOUND["float32"])
    np.testing.assert_allclose(got["without"], without.numpy(), atol=BOUND["float32"])
    for question, answer in zip(asked, got["paths"], strict=True):
        logits = without if question.get("without") else wanted[asked.index(question), -1]
        centred = float(logits[question["target"]] - logits.mean())
        for kind in ("paths", "components"):
            terms = [term["value"] for term in answer[kind]["terms"]]
            assert sum(terms) == pytest.approx(centred, abs=1e-4)
            assert answer[kind]["sum"] == pytest.approx(answer[kind]["logit"], abs=1e-4)


def test_each_path_is_the_path_of_the_expansion(tmp_path):
    model = toy("layer norm, standard")
    ids, target = rows_of(model, 1, 7)[0], 11
    got = ask(
        tmp_path, payload=live_payload(model), paths=[{"ids": ids.tolist(), "target": target}]
    )
    page = {term["name"]: term["value"] for term in got["paths"][0]["paths"]["terms"]}
    found = {}
    for term in ll.AttentionOnly(model).paths(ids[None], dtype=torch.float64).terms:
        logits = term.logits[0, -1]
        found[term.name] = float(logits[target] - logits.mean())
    shared = [name for name in page if not name.startswith(("biases", "output bias"))]
    assert len(shared) == 2 * 5**3 and set(shared) <= set(found)
    for name in shared:
        assert page[name] == pytest.approx(found[name], abs=1e-5), name
    assert sum(found.values()) == pytest.approx(sum(page.values()), abs=1e-4)


@pytest.mark.parametrize("name", ["layer norm, standard", "RMS, rotary"])
def test_qk_and_ov_rows_are_the_circuits_divided_by_typical_scales(tmp_path, name):
    model = toy(name)
    asked = [{"layer": 1, "head": 2, "token": 9, "distance": d} for d in (0, 3)]
    got = ask(tmp_path, payload=live_payload(model), circuits=asked)["circuits"]
    head = ll.AttentionOnly(model).head(1, 2)
    scales = token_scales(head.weights)
    for question, answer in zip(asked, got, strict=True):
        qk = head.qk_at(question["distance"])
        wanted = (qk.A[9] @ qk.B) / (scales[9] * scales)
        np.testing.assert_allclose(answer["qk"], wanted.numpy(), atol=1e-5)
        np.testing.assert_allclose(
            answer["ov"], (head.ov.A[9] @ head.ov.B / scales[9]).numpy(), atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("attn-0l", "float32"),
        ("attn-1l", "float32"),
        ("attn-2l", "float32"),
        ("attn-2l", "float16"),
    ],
)
def test_fifty_texts_give_pythons_logits_in_the_browser(tmp_path, name, precision):
    model = ll.load(name)
    rows = ll.evaluation_tokens(model, n_sequences=50, length=24)
    payload = live_payload(model, precision)
    got = ask(tmp_path, browser=True, payload=payload, rows=rows.tolist())
    logits = np.array(got["logits"])
    with torch.no_grad():
        wanted = model(rows).numpy()
    assert np.abs(logits - wanted).max() < BOUND[precision]
    assert (logits.argmax(-1) == wanted.argmax(-1)).all()


def test_both_lenses_in_the_page_are_pythons(tmp_path):
    model, text = ll.load("attn-2l"), "The king met Quillfeather and the king met Quill"
    explorer = ll.explore(model, [text], precision="float32")
    got = ask(tmp_path, payload=explorer.payload, text=text, target=5)["run"]
    read = explorer._subject.lens.read(text).to_dataframe()
    cells = [cell for row in got["linear"] for cell in row]
    words = explorer.payload["vocabulary"]
    assert [words[cell["id"]] for cell in cells] == read["top"].tolist()
    np.testing.assert_allclose([c["p"] for c in cells], read["probability"], atol=1e-5)
    ids = torch.tensor(got["ids"])[None]
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids)
    final = logits[0].double().log_softmax(-1)
    streams = [
        cache["blocks.0.hook_resid_pre"],
        *(cache[f"blocks.{i}.hook_resid_post"] for i in (0, 1)),
    ]
    for layer, stream in enumerate(streams):
        x = stream[0] - stream[0].mean(-1, keepdim=True)  # the model's norm has no weights
        x = x / (x.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
        own = (x @ model.W_U + model.b_U).double().log_softmax(-1).detach()
        np.testing.assert_array_equal([c["id"] for c in got["logit"][layer]], own.argmax(-1))
        gaps = (final.exp() * (final - own)).sum(-1)
        np.testing.assert_allclose(
            [c["kl"] for c in got["logit"][layer]], gaps, atol=1e-3, rtol=1e-3
        )
    assert gaps.abs().max() < 1e-4 < (read["probability"] < 0.5).mean()


def padded(**shape):
    """A model whose last 76 rows stand for no token, and whose last outputs are the likeliest."""
    model = ll.toy_model(n_layers=2, d_vocab=1100, norm="LN", **shape)
    model.tokenizer = ll.load("attn-2l").tokenizer
    with torch.no_grad():
        model.b_U[1024:] += 3.0
    return model


def test_padding_rows_are_never_shown_and_no_mean_counts_them(tmp_path):
    model, text, target = padded(), "The king and the queen", 300
    explorer = ll.explore(model, [text], precision="float32")
    assert explorer.payload["kind"] == "live"
    got = ask(tmp_path, payload=explorer.payload, text=text, target=target)["run"]
    with torch.no_grad():
        logits = model(torch.tensor(got["ids"])[None])[0, -1]
    assert logits.argmax() >= 1024
    order = logits[:1024].topk(10).indices.tolist()
    assert [one["id"] for one in got["next"]] == order
    chances = logits.softmax(-1)[order]
    np.testing.assert_allclose([one["p"] for one in got["next"]], chances.numpy(), rtol=1e-3)
    cells = [cell["id"] for kind in ("linear", "logit") for row in got[kind] for cell in row]
    assert max(cells) < 1024
    wanted = float(logits[target] - logits[:1024].mean())
    assert got["taken"]["logit"] == pytest.approx(wanted, abs=1e-4)
    for kind in ("components", "paths"):
        assert sum(one["value"] for one in got["taken"][kind]) == pytest.approx(wanted, abs=1e-4)

    stored = ll.explore(padded(attn_only=False), [text]).payload
    (run,) = stored["runs"]
    tables = stored["head_tables"]
    shown = [
        run["top_ids"],
        run["shares"]["targets"],
        *(run["lens"][k]["ids"] for k in run["lens"]),
    ]
    shown += [tables[name] for name in ("qk_ids", "raised_ids", "lowered_ids")]
    assert max(max(unpack_ints(one)) for one in shown) < 1024
    assert run["shares"]["max_error"] < 1e-4


def strings(n=3000):
    chooser = random.Random(0)
    pieces = [
        "the", " The", "king", "'s", "'LL", "n't", "42", " 7", "¼", "²", "٣", "é", "e\u0301", "ß", "Ω",
        "日本", "語", "한국", "עברית", "العربية", "👩\u200d👩\u200d👧", "🙂", "\u200d",
        "\u200b", "\ufeff", "\u0085",
        "\u00a0", "\u2028", "\u3000", "\u180e", "\u2060", " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n",
        "\x00",
        "\x1f", "\x7f", "<", "</s>", "<s>", "<|endoftext|>", "<|im_start|>", "</script>", "<b>", "&amp;", "…",
        "—", "“", "a" * 30, "_", "__", "\\n", "{}", "\U0001f9d9", "\u0301", "ﬁ", "Ⅷ", "ǆ", "\u1680", "\u202e",
        "Ġ", "▁", "Ċ", "İ", "ſ", "0x1F", "1,000.5",
    ]  # fmt: skip
    made = ["".join(chooser.choices(pieces, k=chooser.randint(0, 9))) for _ in range(n - 600)]
    planes = [range(0x20, 0x3000), range(0x3000, 0xD800), range(0xE000, 0x20000)]
    for _ in range(600):
        points = [chooser.choice(chooser.choice(planes)) for _ in range(chooser.randint(1, 8))]
        made.append("".join(map(chr, points)))
    return made


def same_tokens(tmp_path, tokenizer, backend):
    texts = strings()
    asked = {"tokenizer": json.loads(backend.to_str()), "strings": texts}
    got = ask(tmp_path, browser=True, **asked)["tokens"]
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    differ = [(t, a, b) for t, a, b in zip(texts, got, wanted, strict=True) if a != b]
    assert not differ, f"{len(differ)} of {len(texts)} differ, first {differ[0]!r}"


def test_three_thousand_strings_of_the_bundled_tokenizer(tmp_path):
    tokenizer = ll.load("attn-2l").tokenizer
    same_tokens(tmp_path, tokenizer, tokenizer.backend_tokenizer)


def test_three_thousand_strings_of_stories260k(tmp_path):
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        absent("stories260K is not there")
    tokenizer = ll.load(str(folder)).tokenizer
    same_tokens(tmp_path, tokenizer, tokenizer.backend_tokenizer)


def test_three_thousand_strings_of_smollm2(tmp_path, smollm2):
    same_tokens(tmp_path, smollm2.tokenizer, smollm2.tokenizer.backend_tokenizer)


def test_appending_a_token_is_fast_because_the_prefix_is_kept(tmp_path):
    model = ll.load("attn-2l")
    ids = ll.evaluation_tokens(model, n_sequences=1)[0].tolist()
    got = ask(tmp_path, payload=live_payload(model, "float16"), timed=ids)
    assert got["append_ms"] < 10  # measured .5 on a quiet machine; the whole text takes 18


def test_labels_are_those_of_the_figures(tmp_path):
    """Every character that Python's Unicode knows, alone and after a letter, has the same sign in both."""
    known = [
        chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")
    ]
    asked = [text for c in known if c not in "ĠĊ" for text in (c, f"a{c}")]
    found = ask(tmp_path, labels=asked)["labels"]
    assert [(t, f) for t, f in zip(asked, found, strict=True) if f != token_label(t)] == []
