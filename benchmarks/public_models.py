"""Task models that others trained: this package beside the formula in plain torch, head by head.

``python benchmarks/public_models.py FOLDER`` wants in FOLDER, for every model, its state dict of
HookedTransformer ``NAME.pt``, its config ``NAME.json``, and ``NAME.task.pt``: a dict with ``tokens`` and,
where the answer is not the next token, ``labels``, ``positions`` and ``mask`` (as of ``lens_linear.Task``).
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lens_linear as ll
from lens_linear import circuits
from lens_linear.models.capture import run


class Plain:
    """The old HookedTransformer's forward pass in float64, with one head replaced where asked."""

    def __init__(self, state: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.state = {k: v.double() for k, v in state.items()}
        self.config = config

    def norm(self, x: Tensor, name: str) -> Tensor:
        if self.config.get("normalization_type", "LN") is None:
            return x
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + self.config.get("eps", 1e-5)).sqrt()
        return x * self.state[name + ".w"] + self.state[name + ".b"]

    def __call__(
        self, tokens: Tensor, mask: Tensor, at: tuple[int, int] = (-1, -1), put: Any = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        s, n, seen = self.state, tokens.shape[1], {}
        shut = ~mask[:, None, None, :]
        if self.config.get("attention_dir", "causal") == "causal":
            shut = shut | torch.ones(n, n).triu(1).bool()
        x = s["embed.W_E"][tokens] + s["pos_embed.W_pos"][:n]
        for layer in range(self.config["n_layers"]):
            p = f"blocks.{layer}."
            reads = self.norm(x, p + "ln1")[:, None]
            q, k, v = (reads @ s[f"{p}attn.W_{c}"] + s[f"{p}attn.b_{c}"][:, None] for c in "QKV")
            scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(shut, -1e5)
            z = scores.softmax(-1) @ v  # [row, head, position, d_head]
            seen[layer] = z.clone()
            if at[0] == layer:
                z[:, at[1]] = put
            x = x + (z @ s[p + "attn.W_O"]).sum(1) + s[p + "attn.b_O"]
            if not self.config.get("attn_only", False):
                hidden = self.norm(x, p + "ln2") @ s[p + "mlp.W_in"] + s[p + "mlp.b_in"]
                x = x + hidden.relu() @ s[p + "mlp.W_out"] + s[p + "mlp.b_out"]
        return self.norm(x, "ln_final") @ s["unembed.W_U"] + s["unembed.b_U"], seen


def stand_in(z: Tensor, mask: Tensor, how: str) -> Tensor:
    """What a head's values [row, position, d_head] are replaced with."""
    if how == "mean":
        return (z * mask[..., None]).sum(0) / mask[..., None].sum(0).clamp_min(1)
    return z[mask].mean(0) if how == "pooled" else torch.zeros(z.shape[-1]).double()


def scores(logits: Tensor, task: ll.Task) -> dict[str, float]:
    """Means over answers; the logit difference is to the mean of the other outputs."""
    given, right = logits[task.asked].double(), task.targets[task.asked]
    own = given.gather(1, right[:, None])[:, 0]
    apart = own - (given.sum(1) - own) / (given.shape[1] - 1)
    loss = given.logsumexp(1) - own
    hits = (given.argmax(1) == right).double()
    found = {"loss": loss, "accuracy": hits, "logit_difference": apart}
    return {name: float(value.mean()) for name, value in found.items()}


def ablations(model: Any, plain: Plain, task: ll.Task, seen: dict[int, Tensor]) -> None:
    """Print each head's ablations and how far plain torch is."""
    for how in ("mean", "pooled", "zero"):
        outs = {}
        for layer, z in seen.items():
            for head in range(z.shape[1]):
                put = stand_in(z[:, head], task.mask, how)
                outs[layer, head] = scores(
                    plain(task.tokens, task.mask, (layer, head), put)[0], task
                )
        for metric in ("loss", "logit_difference"):
            found = circuits.ablation_scores(model, replace(task, metric=metric), how=how)
            gap = max(abs(float(found.without[at]) - out[metric]) for at, out in outs.items())
            values = " ".join(f"{value:.4f}" for value in found.without.flatten().tolist())
            print(f"  {metric} without each head, {how}: {values} ({gap:.0e} apart)")


def compare(path: Path) -> None:
    """Print one model's rows."""
    config = json.loads(path.with_suffix(".json").read_text())
    state = torch.load(path, map_location="cpu", weights_only=True)
    task = ll.Task(**torch.load(path.with_suffix(".task.pt"), weights_only=True))
    model, plain = ll.load(path), Plain(state, config)
    own, (logits, seen) = run(model, task).logits, plain(task.tokens, task.mask)
    gap = float((own - logits)[task.mask].abs().max())
    now = ", ".join(f"{name} {value:.4f}" for name, value in scores(own, task).items())
    print(f"{path.stem}: n = {len(task)}, {now}; logits {gap:.0e} apart")
    ablations(model, plain, task, seen)
    direct = ll.direct_logit_attribution(model, task)
    print(f"  direct logit attribution: sums to the logits within {direct.max_error:.0e}")
    if config.get("attn_only", False):
        few = task.take(slice(0, 200))
        paths = ll.AttentionOnly(model).paths(few, dtype=torch.float64)
        exact = scores(logits[:200], few)["loss"]
        print(
            f"  {len(paths.terms)} paths: loss {float(paths.loss):.4f} (formula {exact:.4f}), sum to the "
            f"logits within {paths.max_error:.0e}"
        )
    frame = ll.linearity_profile(model, task).to_dataframe()
    for name in ("block_r2", "block_r2_no_residual", "attn_r2", "ffn_r2"):
        print(f"  {name}: " + " ".join(f"{value:.4f}" for value in frame[name].tolist()))


def main() -> None:
    """Compare every model of the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for path in sorted(parser.parse_args().folder.glob("*.pt")):
        if not path.name.endswith(".task.pt"):
            compare(path)


if __name__ == "__main__":
    main()
