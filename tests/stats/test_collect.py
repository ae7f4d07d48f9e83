"""Streaming statistics: splits by sequence, kill and resume, two processes, progress."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import lens_linear as ll
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, NotEnoughDataError
from lens_linear.models.capture import residual_stream
from lens_linear.models.open.toy import toy_model
from lens_linear.stats.collect import (
    SequenceSums,
    collect_moments,
    common_sites,
    gather_rows,
    require_rows_for_fit,
)
from lens_linear.stats.resume import fingerprint, tokens_sha256
from lens_linear.stats.split import RowView, as_rows, halves


def ids(n=48, length=16, seed=0):
    return torch.randint(64, (n, length), generator=torch.Generator().manual_seed(seed))


def model(n_layers=2):
    return toy_model(n_layers=n_layers, d_model=16, attn_only=False, norm="LN").double()


def test_halves_are_whole_sequences_disjoint_and_seeded():
    rows = RowView(ids(9))
    train, test = halves(rows, seed=0)
    assert (len(train), len(test)) == (5, 4)
    assert sorted([*train.index.tolist(), *test.index.tolist()]) == list(range(9))
    again, other = halves(rows, seed=0)[0], halves(rows, seed=1)[0]
    assert train.index.tolist() == again.index.tolist() != other.index.tolist()
    assert torch.equal(train[0:5], ids(9)[train.index])


def test_views_slice_share_and_go_on_like_indexing():
    base = ids(20)
    view = RowView(base, torch.tensor([17, 3, 5, 11, 2]))
    assert view.index.tolist() == [2, 3, 5, 11, 17]
    assert torch.equal(view[1:4], base[[3, 5, 11]]) and len(view[9:12]) == 0
    assert view.take(slice(3, None)).index.tolist() == [11, 17] and view.length == 16
    shares = [view.share(rank, 3).index.tolist() for rank in range(3)]
    assert shares == [[2, 11], [3, 17], [5]]


def test_tokens_on_disk_give_the_same_profile(tmp_path):
    from lens_linear.text import TokenStream

    base, bridge = ids(), model()
    stream = TokenStream.write(tmp_path / "t.bin", [base.flatten()], length=16, n_vocab=64)
    want = ll.linearity_profile(bridge, base).to_dataframe()
    got = ll.linearity_profile(bridge, stream).to_dataframe()
    assert float((want - got).abs().max().max()) < 1e-12


def test_moments_equal_those_of_all_activations_at_once():
    bridge, base = model(), ids()
    stream = residual_stream(bridge, base)[:, :, 2:].flatten(1, 2)
    moments = collect_moments(bridge, RowView(base), sites=("block",), skip=2, batch_size=5)
    for layer in range(2):
        x, y = stream[layer], stream[layer + 1]
        found = moments[layer, "block"]
        assert found.n == 48 * 14
        assert torch.allclose(found.mean_y, y.mean(0), atol=1e-12)
        assert torch.allclose(found.sxy, (x - x.mean(0)).T @ (y - y.mean(0)), atol=1e-9)


class Killed(BaseException):
    """As an interrupt from the keyboard, no error of the model."""


def kill_after(monkeypatch, batches):
    """Make the model's forward pass fail after a number of calls, as a kill would end it."""
    import lens_linear.models.capture as capture

    real, calls = capture.forward_logits, []

    def forward(*arguments, **named):
        calls.append(1)
        if batches is not None and len(calls) > batches:
            raise Killed
        return real(*arguments, **named)

    monkeypatch.setattr(capture, "forward_logits", forward)
    return calls


@pytest.mark.parametrize("killed_at", [1, 2, 4, 5])
def test_a_killed_profile_goes_on_where_it_was(tmp_path, monkeypatch, killed_at):
    bridge, base, path = model(), ids(), tmp_path / "pass.safetensors"
    want = ll.linearity_profile(bridge, base).to_dataframe()
    knobs = {"checkpoint": path, "save_every": 8, "batch_size": 8}
    kill_after(monkeypatch, killed_at)
    with pytest.raises(Killed):
        ll.linearity_profile(bridge, base, **knobs)
    assert path.is_file()
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing half-written is left"
    monkeypatch.undo()
    calls = kill_after(monkeypatch, None)
    got = ll.linearity_profile(bridge, base, **knobs).to_dataframe()
    assert len(calls) == 6 - killed_at, "batches that were done are not run again"
    assert float((want - got).abs().max().max()) < 1e-10
    assert not path.exists(), "a finished pass removes its checkpoint"


def test_a_checkpoint_of_another_question_is_refused(tmp_path, monkeypatch):
    bridge, base, path = model(), ids(), tmp_path / "pass.safetensors"
    kill_after(monkeypatch, 1)
    with pytest.raises(Killed):
        ll.linearity_profile(bridge, base, checkpoint=path, save_every=8, batch_size=8)
    monkeypatch.undo()
    for other in ({"seed": 1}, {"skip": 1}, {"ridge": 1.0}, {"sites": ["ffn"]}):
        with pytest.raises(CorruptedFileError, match="another model, text or setting"):
            ll.linearity_profile(bridge, base, checkpoint=path, **other)
    with pytest.raises(CorruptedFileError, match="another model"):
        ll.linearity_profile(bridge, ids(seed=1), checkpoint=path)
    changed = model()
    with torch.no_grad():
        changed.blocks[0].mlp.out.weight[0, 0] += 1e-3
    with pytest.raises(CorruptedFileError, match="another model"):
        ll.linearity_profile(changed, base, checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptedFileError, match="cannot be read"):
        ll.linearity_profile(bridge, base, checkpoint=path)


@pytest.mark.parametrize("pad", [0, 5])
def test_a_pad_is_no_token_to_a_checkpoint(tmp_path, monkeypatch, pad):
    bridge, path, rows = model(), tmp_path / "pass.safetensors", ids()
    rows[::3, 12:] = pad
    real = torch.ones_like(rows)
    real[::3, 12:] = 0
    kill_after(monkeypatch, 1)
    with pytest.raises(Killed):
        ll.linearity_profile(bridge, rows, checkpoint=path, save_every=8, batch_size=8)
    monkeypatch.undo()
    with pytest.raises(CorruptedFileError, match="another model, text or setting"):
        ll.linearity_profile(bridge, ll.Task(rows, mask=real), checkpoint=path)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        bridge = model()
        for name, count in (("even", 48), ("odd", 35)):
            profile = ll.linearity_profile(bridge, ids(count), batch_size=4)
            layers = ll.layer_map(bridge, ids(count), batch_size=4)
            lens = ll.fit_lens(bridge, ids(count), batch_size=4)
            kept = (profile.to_dataframe().to_numpy(), layers.values, lens.weight, lens.raw_weight)
            torch.save(kept, f"{folder}/{name}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.whole
def test_two_processes_equal_one(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    for name, count in (("even", 48), ("odd", 35)):
        frame = ll.linearity_profile(model(), ids(count)).to_dataframe()
        layers = ll.layer_map(model(), ids(count))
        lens = ll.fit_lens(model(), ids(count))
        for rank in range(2):
            table, values, weight, raw = torch.load(
                tmp_path / f"{name}-{rank}.pt", weights_only=False
            )
            apart = torch.from_numpy(table) - torch.from_numpy(frame.to_numpy())
            assert float(apart.abs().max()) < 1e-9
            assert float((values - layers.values).abs().nan_to_num().max()) < 1e-9
            assert float((weight - lens.weight).abs().max()) < 1e-9
            assert float((raw - lens.raw_weight).abs().max()) < 1e-9 * float(raw.abs().max())


def test_sums_show_the_share_that_is_explained():
    residual, total = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([4.0, 6.0, 10.0])
    shown = repr(SequenceSums(residual, total, total))
    assert shown == "SequenceSums: R² 0.825 over 3 sequences"


@pytest.mark.parametrize("n_ctx, length", [(40, 40), (300, 128)])
def test_rows_to_evaluate_on_fill_the_context_up_to_128(n_ctx, length, monkeypatch):
    nano = ll.load("gpt-nano")
    monkeypatch.setattr(nano.cfg, "n_ctx", n_ctx)
    assert ll.evaluation_tokens(nano, n_sequences=3).shape == (3, length)


def test_progress_shows_the_time_left(monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "0")
    ll.linearity_profile(model(), ids(), progress=True, batch_size=8)
    shown = capsys.readouterr().err
    assert "fitting" in shown and "scoring" in shown and "left" in shown
    ll.linearity_profile(model(), ids())
    assert capsys.readouterr().err == ""


def test_gathered_rows_are_the_rows_that_were_drawn():
    bridge, base = model(), ids(10)
    stream = residual_stream(bridge, base)
    found = gather_rows(bridge, RowView(base), layer=1, site="block", skip=3, batch_size=4)
    assert torch.equal(found.x, stream[1][:, 3:].flatten(0, 1))
    assert torch.equal(found.y, stream[2][:, 3:].flatten(0, 1))
    assert found.sequence.tolist() == [n for n in range(10) for _ in range(13)]
    few = gather_rows(bridge, RowView(base), layer=1, site="block", max_rows=20, seed=1)
    assert len(few.x) == 20
    assert bool((few.x[:, None] == stream[1].flatten(0, 1)[None]).all(-1).any(1).all())
    with pytest.raises(InvalidArgumentError, match="must be one of 'block', 'attn'"):
        gather_rows(toy_model(n_layers=1), RowView(ids(4)), layer=0, site="ffn")


def test_sites_common_to_all_layers():
    assert common_sites(model()) == ("block", "ffn", "attn")
    assert common_sites(toy_model(n_layers=1)) == ("block", "attn")


def test_rows_are_checked():
    with pytest.raises(NotEnoughDataError, match="0 sequences but at least 1"):
        as_rows(model(), RowView(ids(2)).take(slice(0, 0)))
    with pytest.raises(InvalidArgumentError, match="must be token ids"):
        as_rows(model(), "text")


def test_every_token_is_in_the_hash_of_rows():
    rows = torch.zeros(1030, 2, dtype=torch.int64)
    found = {tokens_sha256(as_rows(model(), rows))}
    for row, column in ((0, 0), (0, 1), (1, 0), (1023, 1), (1024, 0), (1029, 1)):
        changed = rows.clone()
        changed[row, column] = 1
        found.add(tokens_sha256(as_rows(model(), changed)))
    assert len(found) == 7


@pytest.mark.parametrize("sequences, length, width, halved", [(2, 5, 8, False), (3, 5, 8, True)])
def test_one_row_more_than_columns_and_mean_is_enough(sequences, length, width, halved):
    rows = RowView(torch.zeros(sequences, length, dtype=torch.int64))
    require_rows_for_fit(rows, width, halved=halved)
    with pytest.raises(
        NotEnoughDataError, match=f"so {sequences * length if not halved else 10} rows"
    ):
        require_rows_for_fit(rows, width + 1, halved=halved)
    longer = RowView(torch.zeros(sequences, length + 3, dtype=torch.int64))
    with pytest.raises(NotEnoughDataError, match=f"of {length} counted positions"):
        require_rows_for_fit(longer, width + 1, skip=3, halved=halved)


def test_passes_take_rows_of_every_kind():
    bridge = model()
    rows = [ids(1, n, seed=n)[0] for n in (9, 14, 11)]
    found = gather_rows(bridge, [r.tolist() for r in rows], layer=1, site="block", skip=2)
    streams = [residual_stream(bridge, row[None])[:, 0] for row in sorted(rows, key=len)]
    torch.testing.assert_close(found.x, torch.cat([stream[1, 2:] for stream in streams]))
    moments = collect_moments(bridge, ll.Task(rows), sites=("block",))
    y = torch.cat([stream[2] for stream in streams])
    torch.testing.assert_close(moments[1, "block"].mean_y, y.mean(0))
    assert fingerprint(bridge, rows) == fingerprint(bridge, as_rows(bridge, rows))
    for wrong in (ids(), [[1, 2]], None):
        with pytest.raises(InvalidArgumentError, match="as_rows"):
            halves(wrong, seed=0)
