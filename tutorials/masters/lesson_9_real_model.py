# ---
# lesson: 9
# title: A real language model: which toy findings survive?
# minutes: 90
# needs: smollm2-135m
# ---

# %% [markdown]
# The models of lessons 1 to 8 are small, and most were trained for these lessons. So what was found in them might be true of
# them alone. In this lesson you take a real language model, SmolLM2-135M, with 30 layers of 9 heads, a vocabulary of 49,152
# tokens, MLPs, rotary positions and norms, and ask of each finding: is it still there?
#
# **You will learn to**
#
# - write a hook that takes heads out of a model that is not yours;
# - compare an ablation with what chance gives, as a number;
# - find the places in ordinary text where copying could help, and measure there;
# - see how one position can make a score look perfect;
# - keep a table of what was shown, what was not, and what was not asked.
#
# **You need** lessons 3 and 4, and the model. It does not come with the package: `lens-linear models --get smollm2-135m` fetches
# it once (93 MB over the network, 273 MB on disk after; it is the instruction-tuned model, dequantised from four bits). Without
# it the next cell says so; the exercises and their checks work all the same.
#
# **Conventions.** `L18H6` is head 6 of layer 18. Losses are in nats a token.

# %%
import math
from functools import partial

import pandas as pd
import plotly.graph_objects as go
import torch
import transformers
from IPython.display import Image
from jaxtyping import Bool, Float, Int
from torch import Tensor

import lens_linear as ll
from lens_linear.plots import GREY, colour, styled
from lens_linear.text import repeated_tokens

_ = torch.set_grad_enabled(False)
transformers.utils.logging.disable_progress_bar()

model = ll.load("smollm2-135m")
small = ll.load("attn-2l")
for each in (small, model):
    shape = each.cfg
    print(
        f"{shape.model_name}: {shape.n_layers} layers, {shape.n_heads} heads, width {shape.d_model}, "
        f"{shape.d_vocab:,} tokens, {ll.models.n_parameters(each) / 1e6:.1f} million parameters"
    )

# %% [markdown]
# ## Are there induction heads?
#
# The same function, the same control as in lesson 3. It takes about half a minute: random tokens, several periods, 270 heads.

# %% [training]
scores = ll.induction_scores(model, rows_per_period=4)
print(scores)
columns = ["head", "prefix_matching", "positional_control", "copying", "target_logit", "verdict"]
frame = scores.to_dataframe()
frame.sort_values("prefix_matching", ascending=False)[columns].head(12).round(2).replace(-0.0, 0.0)

# %%
ll.plots.head_scores(scores, subtract_control=True)

# %% [markdown]
# **What you should see.** Yes. Among 270 heads a handful attend to the token after the previous occurrence, and their control
# is near zero: they follow the period. They stand in the upper half of the model, not in its second layer. Some heads of one
# layer attend there as clearly and have no verdict, because an induction head must also raise the logit of the token that it
# finds (`target_logit`), and what those write raises it hardly at all, or lowers it. They may still help heads further up.
#
# ## Does the model use them?
#
# Attention suggests, intervening shows. TransformerLens runs a function of yours at a *hook point*: it gets the tensor that
# passes, and what it returns goes on in its place. At `hook_z` each head of a layer hands over what it has gathered, the values
# weighted by its attention, before $W_O$ writes it into the stream. A head whose `z` is zero writes nothing.

# %% [exercise 9.1 difficulty=3 importance=5 minutes=12] A hook that takes heads out
# Return `z`, of shape `[row, position, head, d_head]`, with the named heads set to zero. Leave the tensor that came in as it was:
# other readers may hold it. (TransformerLens calls a hook with `z` and the hook point; `heads` is filled in beforehand
# by `functools.partial`.)


# %% [solution 9.1]
def remove_heads(z: Float[Tensor, "row position head d_head"], hook, heads: list[int]):
    """A hook that sets some heads' z to zero."""
    # BEGIN SOLUTION
    changed = z.clone()
    changed[:, :, heads] = 0.0
    return changed
    # END SOLUTION


# %% [check 9.1]
ll.check("9.1", "remove_heads")

# %%
PERIOD = 24
rows = repeated_tokens(6, PERIOD, 1 + 2 * PERIOD, range(1000, 40_000), seed=0, bos=1).tokens


def losses_without(heads: list[tuple[int, int]], tokens: Tensor) -> Float[Tensor, "row position"]:
    """The loss of every prediction, with some heads (layer, head) taken out by your hook."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    hooks = [
        (f"blocks.{layer}.attn.hook_z", partial(remove_heads, heads=own))
        for layer, own in by_layer.items()
    ]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, :-1]
    return -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def second_copy(heads: list[tuple[int, int]]) -> float:
    """Loss in the second copy, without its first token."""
    return float(losses_without(heads, rows)[:, PERIOD + 1 :].mean())


found = scores.heads("induction")
plain = losses_without([], rows)
first, whole = float(plain[:, 1:PERIOD].mean()), float(plain[:, PERIOD + 1 :].mean())
without = second_copy(found)
print(f"first copy {first:.2f} nats; second copy {whole:.2f}")
print(f"second copy without the {len(found)} induction heads: {without:.2f}")
print(f"share of the difference that is lost: {(without - whole) / (first - whole):.0%}")
print(f"a uniform guess would lose {math.log(model.cfg.d_vocab):.2f}")

# %% [markdown]
# In the first copy the model does worse than a uniform guess: it expects English, and random tokens are none. The second copy it
# knows, from the first. What the copying is worth is the difference of the two, and the heads carry a good part of it.
#
# A large number, but several heads are much to lose. What do as many *other* heads of the same layers cost? Draw them at
# random, several times. To say how unusual the effect is (here: the loss of the second copy without the heads), use its
# rank: with $n$ draws, $m$ of them at least as large,
#
# $$p = \frac{1 + m}{1 + n}.$$
#
# The ones count the observed effect itself, so $p$ is never zero: with few draws you cannot claim much.

# %% [exercise 9.2 difficulty=1 importance=4 minutes=6] How unusual is it?
# Compute $p$ for an effect among draws; larger is more extreme.


# %% [solution 9.2]
def rank_p(effect: float, draws: Float[Tensor, "draw"]) -> float:
    """Share of draws at least as large as the effect, the effect itself counted."""
    # BEGIN SOLUTION
    return (1 + int((draws >= effect).sum())) / (1 + len(draws))
    # END SOLUTION


# %% [check 9.2]
ll.check("9.2", "rank_p")

# %% [training]
generator = torch.Generator().manual_seed(0)
layers = [layer for layer, _ in found]
draws = []
for _ in range(12):
    others = []
    for layer in layers:
        free = [h for h in range(9) if (layer, h) not in found and (layer, h) not in others]
        others.append((layer, free[int(torch.randint(len(free), (), generator=generator))]))
    draws.append(second_copy(others))
draws = torch.tensor(draws)
print(f"other heads of the same layers: {draws.mean():.2f} on average, {draws.max():.2f} at most")
print(f"p = {rank_p(without, draws):.3f} with {len(draws)} draws")

# %%
figure = go.Figure()
figure.add_bar(
    x=[
        "whole model",
        "without induction heads",
        *[f"others, draw {i + 1}" for i in range(len(draws))],
    ],
    y=[whole, without, *draws.tolist()],
    marker_color=[colour(0), colour(1), *[GREY] * len(draws)],
)
figure.add_hline(y=first, line_dash="dash", line_color=GREY, annotation_text="first copy")
styled(
    figure,
    title="What the induction heads are worth",
    x="heads taken out",
    y="loss in the second copy (nats)",
)

# %% [markdown]
# **What you should see.** Without its induction heads the model loses about half of what the first copy had told it. Other
# heads of the same layers cost little, and $p$ is the smallest that so few draws allow. So the finding survives: a
# *few* heads carry about half of the copying, in a model hundreds of times as large. Not all of it: heads without the verdict
# look at the right place too.
#
# ## On ordinary text
#
# Random tokens are text that nobody writes. Do the heads matter on real text? Only where copying could help: where the current
# token has occurred before, *and* what followed it then is what comes now.

# %% [exercise 9.3 difficulty=3 importance=4 minutes=12] Where could copying help?
# Entry `[row, t]` is about the prediction made at position `t`, of the token at `t + 1`. It is True when some earlier position
# $s < t$ of the row holds the same token as `t`, and position $s + 1$ the same token as $t + 1$.


# %% [solution 9.3]
def copyable(tokens: Int[Tensor, "row position"]) -> Bool[Tensor, "row prediction"]:
    """Which predictions an induction head could make from this row."""
    # BEGIN SOLUTION
    now, after = tokens[:, :-1], tokens[:, 1:]
    same = (now[:, :, None] == now[:, None]) & (after[:, :, None] == after[:, None])
    earlier = torch.ones(same.shape[1:], dtype=torch.bool).tril(-1)
    return (same & earlier).any(dim=2)
    # END SOLUTION


# %% [check 9.3]
ll.check("9.3", "copyable")

# %% [training]
text = ll.evaluation_tokens(model)[:10]
can = copyable(text)
results = {}
for name, heads in {
    "whole model": [],
    "without induction heads": found,
    "without other heads": others,
}.items():
    losses = losses_without(heads, text)
    results[name] = {
        "copyable": float(losses[can].mean()),
        "all other predictions": float(losses[~can].mean()),
    }
print(f"{int(can.sum())} of {can.numel():,} predictions could be copied")
pd.DataFrame(results).T.round(2)

# %% [markdown]
# **What you should see.** Where copying could help, the loss without the induction heads is clearly higher. Elsewhere it hardly
# moves, and other heads (those of the last draw) do not have this pattern. The heads of random repeats are heads of ordinary
# repeats too.
#
# ## Is it linear?
#
# In lesson 4 the blocks of small models were nearly linear. The published scores are from models of this size. But watch the
# first position: real models park attention on it, and its vector grows far larger than all others.

# %% [exercise 9.4 difficulty=2 importance=4 minutes=10] The share of the first position
# Of the variance of a stream (squared distances from the mean over all rows and positions), which share sits in the first
# position?


# %% [solution 9.4]
def first_position_share(x: Float[Tensor, "row position d_model"]) -> float:
    """Share of the sum of squared distances from the mean that position 0 holds."""
    # BEGIN SOLUTION
    squares = (x - x.mean(dim=(0, 1))).square().sum(dim=-1)
    return float(squares[:, 0].sum() / squares.sum())
    # END SOLUTION


# %% [check 9.4]
ll.check("9.4", "first_position_share")

# %% [training]
some = ll.evaluation_tokens(model)[:40]
found_profile = ll.linearity_profile(model, some, sites=("block",))
spots = [(layer, "resid_post") for layer in range(30)]
seen = ll.models.run(model, some[:8], record=spots, logits=False)
share = [first_position_share(seen[spot]) for spot in spots]
profile = pd.DataFrame(
    {
        "with it": found_profile["block_r2"],
        "without it": found_profile["block_r2_without_first"],
        "without it, no residual": found_profile["block_r2_no_residual_without_first"],
        "share of the first position": share,
    }
)
print(f"lowest without the first position: block {profile['without it'].idxmin()}")
profile.describe().loc[["min", "50%", "max"]].round(3)

# %%
figure = go.Figure()
for index, name in enumerate(profile.columns):
    dash = "dot" if name.startswith("share") else "solid"
    figure.add_scatter(
        x=profile.index, y=profile[name], name=name, line={"color": colour(index), "dash": dash}
    )
figure.update_yaxes(range=[-0.2, 1.05])
styled(
    figure,
    title="Block linearity of a real model",
    x="layer",
    y="held-out R²; share of variance",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** With all positions most blocks look almost perfectly linear. But one block of the first half makes the
# first position so large that from there on nearly all of the variance is that position's, the same in every row: the score
# is about *it*. Without that position most blocks are still quite linear; the block that makes it large falls far behind, and
# without the residual most blocks are not linear. The finding survives, in a weaker form than the usual number suggests.
# (The fit has few rows for a width of 576; the null of lesson 4 says what that does to a score.)
#
# ## What survived?

# %% [training]
ov = {head: ll.head(model, *head).ov for head in found}
sample = torch.randint(model.cfg.d_vocab, (200,), generator=generator)
A, B = torch.cat([ov[h].A[sample] for h in found], 1), torch.cat([ov[h].B for h in found])
top1 = float(((A @ B).argmax(1) == sample).double().mean())
single = max(
    float(((ov[h].A[sample] @ ov[h].B).argmax(1) == sample).double().mean()) for h in found
)
toy = ll.induction_scores(small)
toy_ov = ll.circuits.diagonal_accuracy(
    ll.circuits.sum_of([ll.head(small, *head).ov for head in toy.heads("induction")])
)
summary = [
    (
        "heads with the verdict induction",
        f"{len(toy.heads('induction'))} of 8",
        f"{len(found)} of 270",
    ),
    (
        "strongest prefix matching",
        f"{toy['prefix_matching'].max():.2f}",
        f"{frame.prefix_matching.max():.2f}",
    ),
    (
        "OV of all of them together: the token itself first, of 200",
        f"{toy_ov.top1:.0%}",
        f"{top1:.0%}",
    ),
    ("OV of the best single one of them", "", f"{single:.0%}"),
    (
        "second copy, with and without them",
        "lesson 3",
        f"{whole:.2f} and {without:.2f} nats",
    ),
    (
        "median block R², without the first position",
        "lesson 4",
        f"{profile['without it'].median():.2f}",
    ),
]
pd.DataFrame(summary, columns=["finding", "attn-2l", "smollm2-135m"])

# %% [markdown]
# **What you should see.** Induction heads: there. Necessary, as a set: for about half of the copying. Copying as a property of
# their weights alone: gone. In the toy their OV put every token itself first; here a token has passed many layers and MLPs
# before these heads read it, so a table made from embeddings is not what they see. Linearity of blocks: there, and smaller
# than the usual score says. **Not asked** here: whether one previous-token head feeds them (there are several, and rotary
# positions), and whether these heads do nothing else.
#
# ## Poke at it
#
# The explorer shows a run of this model on a text that you choose: attention of any head, what the layers would predict, the shares
# of a logit. It gets the scores that you have already; linearity, the fitted lens and tables of circuits would take two minutes
# more and are left out (leave out `parts=()` to get them).

# %% [training]
prompt = "Mr. Tumbleby went out. When it rained, Mr. Tumbleby"
explorer = ll.explore(model, prompts=[prompt], induction=scores, parts=())
Image(explorer.picture())

# %% [markdown]
# **What you should see.** Each cell of the map is a head, layers from top to bottom: prefix matching, the same numbers as above.
# Write `explorer` alone in a cell to open it, or `explorer.save("smollm2.html")` for a page, and then
#
# - choose the first induction head in the map and point at the last " T" in the text: where does it look, and is the
#   token after that the one which comes next?
# - look in the lens for the layer at which the right continuation first comes out on top. Is it before or after the
#   induction heads?
# - take the first induction head away: what becomes of the prediction?
#
# The last one in numbers, with the hook that you wrote (the page puts a head's mean in its place, your hook puts zero):

# %%
row = model.to_tokens(prompt)
*_, name, rest, _ = model.to_str_tokens(prompt)
for heads in ([], found[:1], found):
    loss = float(losses_without(heads, row)[0, -2])
    print(f"heads taken out: {len(heads)}; loss of {rest!r} after {name!r}: {loss:.2f} nats")

# %% [markdown]
# **What you should see.** One head of 270 is felt, and without all that have the verdict the model doubts a name which it
# has just read. (Would as many others do the same? You know how to ask.)

# %% [markdown]
# ## Recap
#
# - A finding in a toy is a hypothesis about real models, and cheap to test there.
# - Hooks are functions; with them you can intervene in any model that TransformerLens opens.
# - Say what chance gives, also for an ablation: other heads of the same layers.
# - Measure on text where the mechanism could act.
# - One position can hold nearly all of the variance. Score with and without it.
#
# **Think about it.** (1) Taking the heads out with zeros puts the model where it never was. What would a mean do, and would you
# expect more or less damage? (2) Twelve draws give a smallest possible $p$. How many draws would you need to speak of
# one in a thousand? (3) Which other finding of lessons 1 to 7 would you test next, and what would be its control?
#
# **Further reading**
#
# - Ben Allal et al. 2025, *SmolLM2: When Smol Goes Big*, arXiv 2502.02737: the model.
# - Olsson et al. 2022, [In-context Learning and Induction Heads](https://transformer-circuits.pub/2022/in-context-learning-and-induction-heads/index.html).
# - Xiao et al. 2023, *Efficient Streaming Language Models with Attention Sinks*, arXiv 2309.17453: the first position.
# - Razzhigaev et al. 2024, arXiv 2405.12250: linearity of blocks.

# %% [instructor]
# **Timing.** 20 minutes to the heads and the hook, 25 for the ablation with its draws, 20 for text, 20 for linearity. The cells
# take less than two minutes of processor time together; a slow laptop needs five.
#
# **Numbers that vary.** Verdicts of weak heads turn with the random rows; the strong ones do not. Losses vary in the first decimal
# with other rows.
#
# **Common wrong answers.** 9.1: changing `z` in place, or returning nothing. 9.2: leaving out the ones. 9.3: `s + 1` may
# equal `t`, and such repeats (the same token three times) count. 9.4: a mean for each position.
