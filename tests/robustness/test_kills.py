"""``kill -9`` at random moments: nothing half-written, nothing lost, and the same answer in the end.

``LENS_LINEAR_KILLS=50`` kills as many processes in each test; otherwise a few. Children are forked, so that
they need not import anything.
"""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from robust_calls import GPT, NATURAL, ids
from robust_counts import count

import lens_linear as ll
from lens_linear.files import write_text
from lens_linear.linearity import fit_linearization, load_linearized, save_linearized
from lens_linear.models.native import ModelSpec
from lens_linear.text import TokenStream
from lens_linear.training.loop import train
from lens_linear.training.recipes import Phase, Recipe

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill"),
]
KILLS = int(os.environ.get("LENS_LINEAR_KILLS", "3"))
SPEC = ModelSpec(1, d_model=16, n_heads=2, d_vocab=20, n_ctx=16, attn_only=True)
RECIPE = Recipe(
    "tiny",
    SPEC,
    (Phase(steps=60, rows=4, length=16, periods=(2, 5), warmup=5),),
    precision="float32",
    checkpoints=(7, 30),
)
STREAM = ids(400)
TOKENS = ids(24, 12)


def kill_after(seconds: float, job) -> bool:
    """Run ``job`` in a child and kill it after so long; False when it was done before."""

    def alone():
        torch.set_num_threads(1)
        job()

    child = multiprocessing.get_context("fork").Process(target=alone)
    child.start()
    time.sleep(seconds)
    alive = child.is_alive()
    if alive:
        os.kill(child.pid, signal.SIGKILL)
        count("processes killed")
    child.join()
    if not alive:
        assert child.exitcode == 0
    return alive


def duration(job) -> float:
    started = time.monotonic()
    job()
    return time.monotonic() - started


def leftovers(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_training_goes_on_and_ends_where_an_unbroken_run_does(tmp_path):
    path = tmp_path / "run.safetensors"
    draw = random.Random(0)
    whole = train(RECIPE, STREAM, progress=False)

    def job():
        train(RECIPE, STREAM, checkpoint=path, save_every=1, progress=False)

    def unbroken():
        train(RECIPE, STREAM, checkpoint=tmp_path / "x", save_every=1, progress=False)

    long = duration(unbroken)
    (tmp_path / "x").unlink()
    for _ in range(KILLS):
        if not kill_after(draw.uniform(0, long / 2), job):
            break
    again = train(RECIPE, STREAM, checkpoint=path, save_every=1, progress=False)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value), name
    assert [row[:2] for row in again.history] == [row[:2] for row in whole.history]
    assert sorted(again.checkpoints) == [7, 30]
    assert leftovers(tmp_path) == ["run.safetensors"]


def test_profiling_goes_on_and_gives_the_same_numbers(tmp_path):
    path = tmp_path / "pass.safetensors"
    draw = random.Random(1)
    want = ll.linearity_profile(GPT(), TOKENS, batch_size=1).to_dataframe()

    def job():
        ll.linearity_profile(GPT(), TOKENS, batch_size=1, checkpoint=path, save_every=1)

    long = duration(job)
    for _ in range(KILLS):
        if not kill_after(draw.uniform(0, long / 2), job):
            break
    got = ll.linearity_profile(GPT(), TOKENS, batch_size=1, checkpoint=path, save_every=1)
    assert float((got.to_dataframe() - want).abs().max().max()) < 1e-10
    assert leftovers(tmp_path) == []


def test_pages_are_whole_or_not_there(tmp_path):
    path = tmp_path / "page.html"
    draw = random.Random(2)
    pages = {letter: "<html>" + letter * 3_000_000 + "</html>" for letter in "ab"}

    def job():
        while True:
            for page in pages.values():
                write_text(path, page)

    for _ in range(2 * KILLS):
        assert kill_after(draw.uniform(0, 0.08), job)
        assert not path.exists() or path.read_text() in pages.values()
        assert len(leftovers(tmp_path)) <= 2, "at most the page and what the last writer left"
    write_text(path, pages["a"])
    assert leftovers(tmp_path) == ["page.html"]


def test_a_report_is_whole_or_not_there(tmp_path):
    path = tmp_path / "page.html"
    model, draw = NATURAL(), random.Random(3)

    def job():
        ll.report(model, path, n_sequences=10)

    long = duration(job)
    for _ in range(max(1, KILLS // 2)):
        path.unlink(missing_ok=True)
        kill_after(draw.uniform(0, long), job)
        assert not path.exists() or path.read_text().endswith("</html>\n")
    job()
    assert sorted(leftovers(tmp_path)) == ["page-explorer.html", "page.html"]


def test_linearised_models_and_token_streams_are_whole_or_refused(tmp_path):
    maps = [fit_linearization(GPT(), TOKENS, [layer]) for layer in (0, 1)]
    folder, corpus = tmp_path / "maps", tmp_path / "ids"
    save_linearized(folder, GPT(), maps[0])
    TokenStream.write(corpus, [[1] * 12], length=12, n_vocab=20)
    draw = random.Random(4)

    def job():
        while True:
            for number, linearization in enumerate(maps):
                save_linearized(folder, GPT(), linearization)
                TokenStream.write(corpus, [[number] * 60_000] * 8, length=12, n_vocab=20)

    for _ in range(KILLS):
        assert kill_after(draw.uniform(0, 0.15), job)
        rows = TokenStream(corpus, length=12)
        assert len(rows) in (1, 40_000) and int(rows[0][0]) == int(rows[-1][-1])
        try:
            found = load_linearized(folder, model=GPT())
        except ll.errors.CorruptedFileError:
            count("linearised folders killed between maps and card, refused")
            continue
        assert found.linearization.layers in ((0,), (1,))
