"""Statistics of one model from several processes; every process ends with the same numbers.

    torchrun --nproc-per-node 2 benchmarks/torchrun_profile.py gpt-micro --out profile.csv

Every process is given the same model and the same rows (a token tensor, or a ``TokenStream`` on disk that is
larger than memory); each takes every n-th row, and the sums are added at the end. On several machines add
torchrun's own ``--nnodes`` and ``--rdzv-endpoint``. With GPUs the group is nccl and each process takes the
device of its local rank.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist

import lens_linear as ll


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, help="UTF-8 text (default: the package's own stories)")
    parser.add_argument("--sequences", type=int, help="use only the first rows")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if gpu else "cpu"
    if gpu:
        torch.cuda.set_device(device)
    try:
        model = ll.load(options.model, device=device)
        text = None if options.text is None else options.text.read_text(encoding="utf-8")
        tokens = ll.evaluation_tokens(model, text, n_sequences=options.sequences)
        first = dist.get_rank() == 0
        profile = ll.linearity_profile(model, tokens, progress=first)
        if first:
            profile.to_dataframe().to_csv(options.out)
            print(profile)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
