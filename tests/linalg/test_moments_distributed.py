"""Two gloo processes give the numbers of one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from linalg_data import ill_conditioned, planted

from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg import Moments, all_reduce_sum


def cases():
    x, y = planted(0.6, n=600)
    hard_x, hard_y = ill_conditioned(n=600, d=12, kind="smallest")
    return {
        "even": (x + 1000, y + 3, 300, {}),
        "uneven": (x, y + 3, 590, {"keep_yy": True}),
        "one has none": (x, y - 3, 600, {}),
        "rounded": (x.bfloat16(), y.bfloat16(), 290, {}),
        "hard": (hard_x, hard_y + 3, 250, {}),
    }


def share(name, rank):
    x, y, cut, options = cases()[name]
    mine = slice(0, cut) if rank == 0 else slice(cut, None)
    return Moments(**options).update(x[mine], y[mine]) if len(x[mine]) else Moments(**options)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for name in cases():
            share(name, rank).all_reduce_().save(f"{folder}/{name}-{rank}.safetensors")
        assert Moments().all_reduce_().n == 0
        wrong = Moments().update(torch.randn(9, 2 + rank), torch.randn(9, 2))
        with pytest.raises(InvalidArgumentError, match="same sizes"):
            wrong.all_reduce_()
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    for name, (x, y, _, options) in cases().items():
        one = Moments(**options).update(x, y)
        for rank in range(2):
            both = Moments.load(tmp_path / f"{name}-{rank}.safetensors")
            assert both.n == 600
            for field in ("mean_x", "mean_y", "sxx", "sxy", "scatter_y"):
                left, right = getattr(both, field), getattr(one, field)
                assert float((left - right).abs().max() / right.abs().max()) < 1e-12, (name, field)
            assert both.fit().tolerance == one.fit().tolerance
            assert both.fit().r_squared == pytest.approx(one.fit().r_squared, abs=1e-9)
            scale = float(y.std())
            assert float((both.fit().predict(x) - one.fit().predict(x)).abs().max()) < 1e-6 * scale


def test_without_a_process_group_nothing_happens():
    x, y = planted(0.6)
    moments = Moments().update(x, y)
    before = moments.sxx
    assert moments.all_reduce_() is moments and moments.sxx is before
    assert all_reduce_sum(before).equal(before)
