"""The lens beside a tuned lens of four epochs, as in Belrose et al.'s package: KL held out, and cost.

    python benchmarks/lens_against_tuned.py docs/results/lens-tuned.csv

The tuned lens: ``x + x A + b`` from zero, decoded through the last norm, KL from the output; SGD with Nesterov
momentum .9 at rate .1, or AMSGrad at 1e-3 after a warm-up of a fifth; weight decay 1e-3, gradients cut at
norm 1, rate falling linearly (their defaults). Their steps of 262,144 tokens are 1,024 here: the text is small.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import kl_div
from transformers import get_linear_schedule_with_warmup

import lens_linear as ll
from lens_linear.models.capture import residual_stream

EPOCHS, BATCH = 4, 1024


def tuned_lens(model, rows, readout, optimizer, seed=0):
    """Translators [layer, d, d] and [layer, d] after four epochs; all layers in the same passes."""
    n_layers, width = model.cfg.n_layers, model.cfg.d_model
    weight = torch.zeros(n_layers, width, width, requires_grad=True)
    bias = torch.zeros(n_layers, width, requires_grad=True)
    size = max(1, BATCH // rows.shape[1])
    steps = EPOCHS * -(-len(rows) // size)
    if optimizer == "sgd":
        found = torch.optim.SGD(
            [weight, bias], lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
    else:
        found = torch.optim.Adam([weight, bias], lr=1e-3, amsgrad=True, weight_decay=1e-3)
    warm = steps // 5 if optimizer == "adam" else 0
    schedule = get_linear_schedule_with_warmup(found, warm, steps - warm)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for piece in torch.randperm(len(rows), generator=generator).split(size):
            streams = residual_stream(model, rows[piece])
            with torch.no_grad():
                target = decode(readout, streams[-1]).log_softmax(-1).flatten(0, -2)
            for layer in range(n_layers):
                x = streams[layer].detach()
                read = decode(readout, x + x @ weight[layer] + bias[layer]).log_softmax(-1)
                loss = kl_div(read.flatten(0, -2), target, reduction="batchmean", log_target=True)
                loss.backward(inputs=[weight, bias])
            torch.nn.utils.clip_grad_norm_([weight, bias], 1.0)
            found.step()
            found.zero_grad()
            schedule.step()
    return weight.detach(), bias.detach()


def decode(readout, stream):
    return readout.decode(readout.normalise(stream))


def kl_of(model, rows, readout, weight, bias):
    """Mean KL a layer, positions after the first."""
    out = torch.zeros(model.cfg.n_layers, dtype=torch.float64)
    with torch.no_grad():
        streams = residual_stream(model, rows)
        target = decode(readout, streams[-1]).log_softmax(-1)
        for layer in range(model.cfg.n_layers):
            x = streams[layer]
            read = decode(readout, x + x @ weight[layer] + bias[layer]).log_softmax(-1)
            kl = kl_div(read, target, reduction="none", log_target=True).sum(-1)
            out[layer] = kl[:, 1:].double().mean()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="gpt-mini")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = ll.load(options.model)
    rows = ll.evaluation_tokens(model)
    fitted, held = rows[:120], rows[120:160]
    lines = []
    readout = ll.fit_lens(model, fitted).readout  # also the warm-up of the clock

    def note(name, seconds, kl):
        lines.extend(
            {"lens": name, "layer": layer, "kl": float(value), "processor_seconds": seconds}
            for layer, value in enumerate(kl)
        )
        print(name, [round(float(v), 3) for v in kl], f"{seconds:.1f} s", flush=True)

    for polish, raw in ((0, False), (1, False), (0, True), (1, True)):
        start = time.process_time()
        lens = ll.fit_lens(model, fitted, polish=polish, raw=raw)
        seconds = time.process_time() - start
        table = lens.score(held).to_dataframe()
        note(f"closed form, polish={polish}, raw={raw}", seconds, table["kl"][:-1])
    note("raw least squares", float("nan"), table["raw_kl"][:-1])
    note("logit lens", float("nan"), table["logit_kl"][:-1])
    for optimizer in ("sgd", "adam"):
        start = time.process_time()
        found = tuned_lens(model, fitted, readout, optimizer)
        seconds = time.process_time() - start
        note(f"tuned lens, 4 epochs, {optimizer}", seconds, kl_of(model, held, readout, *found))
    frame = pd.DataFrame(lines).assign(
        model=options.model, n_fit=fitted.numel(), n=held.numel() - len(held), seed=0
    )
    frame.round(5).to_csv(options.file, index=False)


if __name__ == "__main__":
    main()
