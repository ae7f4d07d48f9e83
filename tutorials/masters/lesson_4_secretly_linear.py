# ---
# lesson: 4
# title: Is your transformer secretly linear?
# minutes: 90
# ---

# %% [markdown]
# A paper with this title reports that the blocks of large language models are almost perfectly linear: the
# best linear map from what enters a block to what leaves it explains about $0.99$ of the variance. Is that
# so? What does the number mean, how can it mislead, and what can one do with it?
#
# In this lesson you build the score yourself, find three ways in which it deceives, repair it, and then put
# it to the test: you take blocks out of a model and put their best linear maps in their place.
#
# **You will learn to**
#
# - write the score, with and without the residual stream;
# - say what the score of pure noise is, and why a score must be held out;
# - see when a single position carries the score;
# - replace blocks of a running model by affine maps, and read what that costs;
# - tell a claim that was shown on our models from one that was not.
#
# **You need** lesson 1 (residual stream, loss in nats), matrices, and least squares: the map that makes the sum
# of squared errors smallest. Hooks are explained where they are needed.
#
# **Conventions.** Activations are tables with one token in each row: $X$ of shape `[n, d]`, and maps multiply
# from the right, `x @ A`. A map with an intercept, `x @ A + b`, is called *affine*. The papers say "linear" for
# both.

# %%
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import lens_linear as ll
from lens_linear.linearity import compare_profiles
from lens_linear.plots import GREY, colour, styled
from lens_linear.studies import published_beside_measured

_ = torch.set_grad_enabled(False)

model = ll.load("gpt-micro")
tokens = ll.evaluation_tokens(model)  # our own short stories, one piece of text in each row
n_layers, d_model = model.cfg.n_layers, model.cfg.d_model
print(f"{n_layers} blocks of width {d_model}; {len(tokens)} sequences of {tokens.shape[1]} tokens")

# %% [markdown]
# ## The score
#
# The residual stream enters block $l$ as $X$ and leaves it as $Y$. Take the column means away from both, and let
# $A$ be the matrix that makes $\|Y - XA\|^2$ smallest. The score is the share of the variance that it explains:
#
# $$R^2 = 1 - \frac{\|Y - XA\|^2}{\|Y\|^2}$$
#
# where $\|\cdot\|^2$ is the sum of squares of *all* entries: all tokens, all columns. It is 1 when the block is an
# affine map, and 0 when the best map is no better than the mean. (The paper calls it *generalised Procrustes
# similarity*. It is plain least squares.)

# %% [exercise 4.1 difficulty=2 importance=5 minutes=12] The score
# Write it. `torch.linalg.lstsq(a, b).solution` is the least-squares solution of `a @ A = b`.


# %% [solution 4.1]
def linearity_score(x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> float:
    """Share of the variance of y that the best affine map of x explains."""
    # BEGIN SOLUTION
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    A = torch.linalg.lstsq(x, y).solution
    return float(1 - (y - x @ A).square().sum() / y.square().sum())
    # END SOLUTION


# %% [check 4.1]
ll.check("4.1", "linearity_score")

# %% [instructor]
# Common wrong answers: no centring (the score is then far too high, because the mean explains most of a residual
# stream); averaging the scores of columns; taking a square root. `torch.linalg.pinv`,
# normal equations and an explicit column of ones all pass.

# %% [markdown]
# Now take the activations from the model. `run_with_cache` runs it and keeps what passes the hooks that you name:
# `hook_resid_pre` is the stream before a block, `hook_resid_post` the stream after it. We stack them to one tensor:
# boundary 0 is the embedding, boundary $l$ the stream after $l$ blocks.

# %%
names = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)]
names.append(f"blocks.{n_layers - 1}.hook_resid_post")
_, cache = model.run_with_cache(tokens, names_filter=names)
states = torch.stack([cache[name] for name in names]).double()
print(tuple(states.shape), "[boundary, sequence, position, d_model]")

rows = states.flatten(1, 2)  # [boundary, token, d_model]
in_sample = [float(linearity_score(rows[layer], rows[layer + 1])) for layer in range(n_layers)]
pd.DataFrame({"block": range(n_layers), "R² in sample": in_sample}).round(3)

# %% [markdown]
# **What you should see.** Most blocks score high, and the first one least. None of them reaches the
# published number. It was measured on models that are about a hundred times as large or more; on ours it is **not
# shown**. (Everything here is scored on the same tokens that the map was fitted on. We come to that.)
#
# ## First trap: the residual stream
#
# A block does not compute $Y$ from nothing. It computes $Y = X + F(X)$: it *adds* to the stream. If what it adds is
# small, $Y$ is nearly $X$, and the best linear map is nearly the identity, whatever $F$ may be. The question about the
# block itself is how much of $F(X) = Y - X$ is linear in $X$.

# %% [exercise 4.2 difficulty=1 importance=5 minutes=5] The score without the residual
# Score what the block adds.


# %% [solution 4.2]
def update_score(x: Float[Tensor, "n d_model"], y: Float[Tensor, "n d_model"]) -> float:
    """Share of the variance of the update y - x that the best affine map of x explains."""
    # BEGIN SOLUTION
    return linearity_score(x, y - x)
    # END SOLUTION


# %% [check 4.2]
ll.check("4.2", "update_score")

# %%
updates = [float(update_score(rows[layer], rows[layer + 1])) for layer in range(n_layers)]
before, after = rows[:-1], rows[1:]
size = ((after - before).norm(dim=-1) / before.norm(dim=-1)).mean(dim=1)
table = {"R²": in_sample, "R² without residual": updates, "‖update‖ / ‖stream‖": size.tolist()}
pd.DataFrame(table).rename_axis("block").round(3)

# %% [markdown]
# **What you should see.** Without the residual the scores of the middle blocks fall to a fraction. There the update is
# small beside the stream (last column), so the identity alone explains most of $Y$. Block 0 is the exception: it adds
# ten times what comes in, and so its two scores are nearly equal. That the score falls without the residual was
# published too, and it is shown here.
#
# The best map from $X$ to $Y$ is the best map from $X$ to $Y - X$ plus the identity, so both miss the same thing. Only
# the variance below the fraction bar differs.
#
# ## Second trap: noise is linear
#
# Give the score something that has nothing to explain: $X$ and $Y$ independent, $n$ rows of $d$ columns.

# The best map is found *on the rows that it is scored on*, so it bends itself to their accidents. With as many
# columns as rows it can bend all the way, and noise is a linear function of noise. With more rows, how far?

# %% [exercise 4.3 difficulty=2 importance=4 minutes=6] The score of noise
# Give the expected score. It is never more than 1. You need no data: count in how many directions a random $Y$ can point
# once its columns are centred, and how many of them the columns of $X$ can follow.


# %% [solution 4.3]
def noise_score(n: int, d: int) -> float:
    """Expected in-sample score of y independent of x: n rows, d columns of x."""
    # BEGIN SOLUTION
    return min(1.0, d / (n - 1))
    # END SOLUTION


# %% [check 4.3]
ll.check("4.3", "noise_score")

# %%
generator = torch.Generator().manual_seed(0)
d = 64
for n in (64, 80, 128, 256, 1024):
    x, y = torch.randn(2, n, d, generator=generator).double()
    print(f"n = {n:5d}: measured {linearity_score(x, y):.3f}, expected {noise_score(n, d):.3f}")

# %% [markdown]
# **What you should see.** With few rows, noise is a linear function of noise: at $n = d$ perfectly so. Centred columns
# live in a space of $n - 1$ dimensions, a random $Y$ points in all of them alike, and the best map catches exactly the
# part of $Y$ that lies in the space spanned by the $d$ columns of $X$.
#
# This is the *null* of the score: what it reads when there is nothing. A score without its null says little. But
# taking the null off is not enough, because a real map overfits too. The remedy is to score on rows that the map
# has not seen.

# %% [exercise 4.4 difficulty=3 importance=5 minutes=12] The held-out score
# Fit on the first pair, score on the second. Below the fraction bar stands the distance of `y_test` from the mean of
# **`y_fit`**: the mean is part of the fitted map, and knowing the mean of the test would be cheating. (In lesson 1, too, a
# score on the text that was counted came out too good.)


# %% [solution 4.4]
def held_out_score(
    x_fit: Float[Tensor, "n d_in"],
    y_fit: Float[Tensor, "n d_out"],
    x_test: Float[Tensor, "m d_in"],
    y_test: Float[Tensor, "m d_out"],
) -> float:
    """R² on the test rows of the affine map fitted on the others."""
    # BEGIN SOLUTION
    mean_x, mean_y = x_fit.mean(dim=0), y_fit.mean(dim=0)
    A = torch.linalg.lstsq(x_fit - mean_x, y_fit - mean_y).solution
    missed = y_test - mean_y - (x_test - mean_x) @ A
    return float(1 - missed.square().sum() / (y_test - mean_y).square().sum())
    # END SOLUTION


# %% [check 4.4]
ll.check("4.4", "held_out_score")

# %%
sizes = [70, 80, 100, 128, 180, 256, 512, 1024]
curves = {"in sample": [], "held out": []}
for n in sizes:
    x, y, x_new, y_new = torch.randn(4, n, d, generator=generator).double()
    curves["in sample"].append(float(linearity_score(x, y)))
    curves["held out"].append(float(held_out_score(x, y, x_new, y_new)))

figure = go.Figure()
for index, (name, values) in enumerate(curves.items()):
    figure.add_scatter(x=sizes, y=values, name=name, line_color=colour(index))
theory = [float(noise_score(n, d)) for n in sizes]
figure.add_scatter(x=sizes, y=theory, name="d / (n - 1)", line={"color": GREY, "dash": "dot"})
figure.update_xaxes(type="log", tickvals=sizes)
figure.update_yaxes(range=[-2.5, 1.1])
styled(
    figure,
    title="Scores of independent noise, d = 64",
    x="rows fitted on",
    y="R²",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** In sample, noise scores high and follows the theory. Held out, it scores *below* zero: a map
# that learnt accidents does worse than the mean. Both go to zero when there are many more rows than columns.
#
# One more care. Tokens of one text are not independent: they share topic and names. If the rows of one sequence fall
# on both sides of the split, the map is tested on texts that it has partly seen. So we split **by sequences**. Does it
# matter? With few texts, compare:


# %%
def split_scores(layer: int, n_sequences: int, by_sequence: bool, seed: int) -> float:
    """Held-out score of one block on the first sequences, with two ways to halve the rows."""
    pick = torch.Generator().manual_seed(seed)
    x, y = states[layer, :n_sequences], states[layer + 1, :n_sequences]
    if by_sequence:
        order = torch.randperm(n_sequences, generator=pick)
    else:
        x, y = x.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None]  # every token its own sequence
        order = torch.randperm(len(x), generator=pick)
    fit, test = order.chunk(2)
    pieces = (x[fit], y[fit], x[test], y[test])
    return float(held_out_score(*(piece.flatten(0, 1) for piece in pieces)))


found = []
for layer in (0, 3):
    for by_sequence in (False, True):
        scores = [split_scores(layer, 8, by_sequence, seed) for seed in range(5)]
        how = "sequences" if by_sequence else "single tokens"
        found.append({"block": layer, "split by": how, "mean of 5 splits": sum(scores) / 5})
pd.DataFrame(found).round(3)

# %% [markdown]
# **What you should see.** Splitting single tokens gives the higher score: a part of it is memory of the texts. Splitting
# by sequences is what `ll.linearity_profile` does, and its error bars come from resampling whole
# sequences.
#
# ## Third trap: one position
#
# Large models often keep a huge activation at the first position. Then the variance over tokens is mostly "first
# position or not", and a map that gets this one distinction right has explained nearly everything.

# %% [exercise 4.5 difficulty=2 importance=4 minutes=8] Who carries the variance?
# For each position, give its share of the total variance: squared distances from the mean over *all* tokens.


# %% [solution 4.5]
def position_share(x: Float[Tensor, "sequence position d_model"]) -> Float[Tensor, "position"]:
    """Share of the squared distances from the mean token, by position; sums to 1."""
    # BEGIN SOLUTION
    squares = (x - x.mean(dim=(0, 1))).square().sum(dim=(0, 2))
    return squares / squares.sum()
    # END SOLUTION


# %% [check 4.5]
ll.check("4.5", "position_share")

# %%
share = torch.stack([position_share(state) for state in states])
length = tokens.shape[1]
print(f"an equal share would be {1 / length:.4f}")
for boundary in (0, 1, n_layers):
    print(f"boundary {boundary}: the first position has {share[boundary, 0]:.4f} of the variance")

# A copy of block 3 in which the first position is lifted by 40, as it is in many large models.
lifted_x, lifted_y = states[3].clone(), states[4].clone()
lifted_x[:, 0] += 40
lifted_y[:, 0] += 40
print(f"\nwith a lifted first position it has {position_share(lifted_x)[0]:.2f} of it, and")
for name, first in (("all positions", 0), ("without the first", 1)):
    parts = lifted_x[:, first:].flatten(0, 1), lifted_y[:, first:].flatten(0, 1)
    print(f"  R² {linearity_score(*parts):.4f}  {name}")

# %% [markdown]
# **What you should see.** In our model the first position carries little more than its fair share: the outlier of large
# models is **not shown** here. But when we put one in by hand, the very same block jumps to nearly 1, and back when
# the first position is left out. Whenever you read a score of $0.99$, ask for it without the first position. In this
# package that is `skip=1`.
#
# ## The profile
#
# Now everything together, as the package does it: held out by sequences, with and without the residual, with the null
# and with error bars. It streams over the tokens once and keeps no activations, so it also runs on models that are
# a thousand times larger.

# %%
profile = ll.linearity_profile(model, tokens)
print(profile)
columns = ["block_r2", "block_r2_no_residual", "null_r2", "n_tokens"]
comparison = profile.to_dataframe()[columns]
comparison["skip=1"] = ll.linearity_profile(model, tokens, skip=1)["block_r2"]
comparison["in sample (yours)"] = in_sample
comparison.round(3)

# %%
ll.plots.linearity_profile(profile)

# %% [markdown]
# **What you should see.** Blocks (solid) stand high; what they add (dashed) stands much lower; the null is just below
# zero. Held out is a little lower than in sample: there are many more tokens than columns here, so the second trap
# costs little. With the first position left out hardly anything changes.
#
# The other two lines are the parts of a block, the FFN and the attention. Lesson 5 is about them.
#
# ## How far does it carry?
#
# If each block is nearly linear, are several blocks in a row? The map below scores the best affine map from any layer
# boundary to any later one.

# %%
layers = ll.layer_map(model, tokens)
product = 1.0
for layer in range(1, n_layers):
    product *= float(layers[layer, layer + 1])
print(f"one map over blocks 1 to {n_layers - 1}: R² {float(layers[1, -1]):.3f}")
print(f"product of the single scores of these blocks: {product:.3f}")
ll.plots.layer_map(layers)

# %% [markdown]
# **What you should see.** Scores fall steadily away from the diagonal. Errors add up: the score over several blocks is
# close to the product of the single scores. "Each block is nearly linear" does not mean "the model is nearly linear".
#
# ## The test: replace blocks
#
# A score compares vectors. What we care about is the model's loss. So put the affine map in the block's place and let
# the model run. A **hook** is a function that TransformerLens calls with an activation as it passes; what it returns
# takes the activation's place:
#
# ```python
# def double(value, hook):
#     return 2 * value
#
# logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", double)])
# ```
#
# A hook that returns nothing changes nothing, but it may remember what it saw.

# %% [exercise 4.6 difficulty=4 importance=4 minutes=15] A block as an affine map
# Run the model with block `layer` replaced by `x @ weight + bias`, $x$ being what *enters* the block, and return its
# mean next-token loss (as in exercise 1.5: logits at a position predict the token after it). Use two hooks: one that
# remembers `blocks.{layer}.hook_resid_pre`, one that answers at
# `blocks.{layer}.hook_resid_post`.


# %% [solution 4.6]
def loss_with_map(
    model: TransformerBridge,
    tokens: Int[Tensor, "sequence position"],
    layer: int,
    weight: Float[Tensor, "d_model d_model"],
    bias: Float[Tensor, "d_model"],
) -> float:
    """Mean next-token loss, in nats, with one block running as an affine map."""
    # BEGIN SOLUTION
    seen = {}

    def remember(value, hook):
        seen["x"] = value

    def answer(value, hook):
        return seen["x"] @ weight + bias

    hooks = [
        (f"blocks.{layer}.hook_resid_pre", remember),
        (f"blocks.{layer}.hook_resid_post", answer),
    ]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    predictions = logits[:, :-1].flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(predictions, tokens[:, 1:].flatten()))
    # END SOLUTION


# %% [check 4.6]
ll.check("4.6", "loss_with_map")

# %% [instructor]
# The common mistake is to apply the map to the *output* of the block (one hook at `hook_resid_post`). It runs and
# gives a plausible loss. The check names it. Students who edit the weights instead will be told that the model
# changed.

# %% [markdown]
# Fit each block on the first half of the stories and take the loss on the second half. Beside it: the block simply
# removed (the identity map), and the R² of that block.

# %%
half = len(tokens) // 2
identity, nothing = torch.eye(d_model), torch.zeros(d_model)


def affine_fit(layer: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of the best map of one block on the first half of the texts."""
    x, y = states[layer, :half].flatten(0, 1), states[layer + 1, :half].flatten(0, 1)
    A = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution
    return A.float(), (y.mean(0) - x.mean(0) @ A).float()


test = tokens[half : half + 32]
whole = float(model(test, return_type="loss"))
print(f"whole model: {whole:.3f} nats")
found = []
for layer in range(n_layers):
    linear = float(loss_with_map(model, test, layer, *affine_fit(layer)))
    removed = float(loss_with_map(model, test, layer, identity, nothing))
    score = float(profile["block_r2"][layer])
    found.append({"R²": score, "loss, linear": linear - whole, "loss, removed": removed - whole})
print("increase of the loss with one block replaced (nats):")
pd.DataFrame(found).rename_axis("block").round(3)

# %% [markdown]
# **What you should see.** The affine map always costs less than removing the block, and for block 0 a great deal less.
# In the others the map wins back only a part. So the blocks with their high scores do something that no affine
# map does, and the loss notices. Compare the first two columns: among blocks 1 and later, the one with the highest
# R² is not the cheapest to replace.
#
# `ll.linearize` does this for many blocks and for FFNs, and `ll.replacement_curve` takes the blocks out one after the
# other. It uses three stand-ins: **remove**, **linear** (all maps fitted on the original model), and
# **linear+distill** (each map refitted on what reaches it when the earlier maps are in place).

# %%
some = tokens[:96]
strategies = {
    strategy: ll.replacement_curve(model, some, strategy) for strategy in ("remove", "linear")
}
print(strategies["linear"])

# %%
strategies["linear+distill"] = ll.replacement_curve(model, some, "linear+distill", max_replaced=4)
gain = strategies["linear"]["loss"][4] - strategies["linear+distill"]["loss"][4]
print(f"distilling lowers the loss of the linear curve at 4 blocks by {gain:.4f} nats")
ll.plots.replacement_curves(strategies)

# %% [markdown]
# **What you should see.** The most linear blocks went first. Linear maps beat removal at every step, and the last block
# to go, block 0, is the one that removal cannot do without. Refitting the maps one after the other hardly helps here:
# what the blocks lose is not a matter of a badly fitted map.
#
# Is R² a good guide for which block to take first? Compare with random orders. If R² orders the blocks by what
# they are worth, its curve lies below them.

# %%
orders = {"most linear first": strategies["linear"]}
for seed in (0, 1):
    orders[f"random order {seed}"] = ll.replacement_curve(
        model, some, "linear", order="random", seed=seed, max_replaced=5
    )
for name, curve in orders.items():
    print(f"{name:18} first {list(curve.steps[1])}: {curve['loss'][1] - curve['loss'][0]:.3f} nats")
ll.plots.replacement_curves(orders)

# %% [markdown]
# **What you should see.** The main lesson of the order is block 0: it has the lowest R² and is the dearest to replace,
# and an order that does not leave it to the end pays for it. Among the other blocks R² is a poor guide, as the table of single
# replacements said already: a random order may well start with a cheaper block. R² says how well a vector is
# approximated, not how much the rest of
# the model depends on what is missed. (Random orders use other halves of the texts, so compare shapes, not the last
# digit.)
#
# ## Linearity is learned
#
# Was the model born linear? The package keeps checkpoints of `gpt-micro` from its training.

# %%
stages = {"untrained": "@0", "100 steps": "@100", "1000 steps": "@1000", "final": ""}
texts = tokens[:120]
by_step = {}
for label, suffix in stages.items():
    stage = ll.load(f"gpt-micro{suffix}")
    by_step[label] = ll.linearity_profile(stage, texts, sites=("block", "ffn"), skip=1)
history = compare_profiles(by_step)
history.summary()[["block_r2_mean", "block_r2_no_residual_mean", "ffn_r2_mean"]].round(3)

# %%
ll.plots.profile_comparison(history, ordered=True)

# %% [markdown]
# **What you should see.** The untrained network is *more* linear than the trained one, and what its blocks add is by far
# more linear. The first hundred steps raise the score even further; from then on it falls, and it ends below where
# it began, far below for what the blocks add. That the score falls during pretraining was published, and apart from the
# first steps it is shown here.
# (That it rises again in fine-tuning was published too; we have not run it.)
#
# ## A model that was asked to be smooth
#
# The paper adds a term to the training loss that pulls the stream before and after each block together:
#
# $$\lambda \sum_{l} \big(1 - \cos(x_{l-1}, x_l)\big)$$
#
# averaged over tokens. One would expect more linear blocks. The paper reports the opposite: *less* linear, and better.

# %% [exercise 4.7 difficulty=2 importance=3 minutes=8] The cosine penalty
# Write the penalty for $\lambda = 1$. Sum over blocks, average over tokens.


# %% [solution 4.7]
def cosine_penalty(states: Float[Tensor, "boundary sequence position d_model"]) -> float:
    """Sum over blocks of 1 - cos(before, after), averaged over tokens."""
    # BEGIN SOLUTION
    cosine = torch.nn.functional.cosine_similarity(states[:-1], states[1:], dim=-1)
    return float((1 - cosine).sum(dim=0).mean())
    # END SOLUTION


# %% [check 4.7]
ll.check("4.7", "cosine_penalty")

# %% [markdown]
# `gpt-micro-cosine` is the twin of `gpt-micro`: the same text, the same steps, the same seed, and this term added to its
# loss.

# %%
twin = ll.load("gpt-micro-cosine")
_, twin_cache = twin.run_with_cache(tokens, names_filter=names)
twin_states = torch.stack([twin_cache[name] for name in names])
twin_profile = ll.linearity_profile(twin, tokens, sites=("block", "ffn"))
cards = ll.available_models().set_index("name")
found = []
for name, stack, one in (
    ("gpt-micro", states, profile),
    ("gpt-micro-cosine", twin_states, twin_profile),
):
    row = {"model": name, "loss, unseen books": cards.loss[name]}
    row["penalty"] = float(cosine_penalty(stack))
    row["‖update‖ / ‖stream‖, blocks 1 on"] = float(one.update_ratio[1:].mean())
    row["R², blocks 1 on"] = float(one.scores["block"][1:].mean())
    row["without residual"] = float(one.scores["block_no_residual"][1:].mean())
    found.append(row)
pd.DataFrame(found).set_index("model").round(3)

# %%
twins = compare_profiles({"gpt-micro": profile, "gpt-micro-cosine": twin_profile})
ll.plots.profile_comparison(twins)

# %% [markdown]
# **What you should see.** The twin turns the stream less, as it was asked to: its penalty is a fraction, and its updates
# are about half as large. So with the residual its blocks score *higher*: the first trap again. Without the residual its
# later blocks score *lower*: what they still add is less linear. The paper's "less linear" is shown here for what the
# later blocks add, and not for the blocks. Its "better" is **not shown**: the twin's loss is slightly higher. And this
# is one pair of models with one seed; a difference as small as this one could turn round with another.
#
# ## Published beside measured

# %%
measured = {"gpt-micro": profile, "gpt-micro-cosine": twins.profiles["gpt-micro-cosine"]}
published = published_beside_measured(measured).to_dataframe()
published[published.quantity.str.startswith(("block", "cosine"))].drop(columns="source")

# %% [markdown]
# **What you should see.** Rows that say *not run* were not run on this machine. Nothing is filled in from elsewhere. Load
# one of those models by its Hub name and give its profile to this function to fill a row yourself.
#
# ## Recap
#
# - $R^2$ of a block contains the identity. Without the residual it is lower, and it is the number about the block.
# - In sample, noise scores $d/(n-1)$. Fit on some sequences, score on others, and show the null.
# - One outlier position can carry the whole score.
# - A high score does not mean that a block may go: ask the loss.
# - Our untrained network is more linear than the trained one: a high score is no achievement.
#
# **Think about it.** (1) Could a block have a high score without the residual and yet be impossible to replace? (2) Block
# 0 adds ten times what comes in. What would its two scores be if the embedding were scaled up tenfold and everything
# else stayed the same? (3) Attention mixes positions, so $Y$ at one token depends on others. What does a map that sees
# only one token call that?
#
# **Further reading**
#
# - Razzhigaev et al. 2024, [Your Transformer is Secretly Linear](https://arxiv.org/abs/2405.12250), arXiv 2405.12250:
#   score, replacement, regulariser.
# - Razzhigaev et al. 2024, [The Shape of Learning](https://arxiv.org/abs/2311.05928), arXiv 2311.05928: anisotropy and intrinsic dimension.
# - Sun et al. 2024, [Massive Activations in Large Language Models](https://arxiv.org/abs/2402.17762), arXiv 2402.17762:
#   the first position.
# - Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning*, chapters 3 and 7: least squares and what
#   held-out error means.

# %% [instructor]
# **Timing.** 25 minutes to the end of 4.2; 25 for noise and held out; 10 for the outlier; 25 for replacement; the rest
# for checkpoints and the twin. 4.7 can be homework.
#
# **Numbers that vary.** Scores are computed in float64 from float32 activations: expect agreement to three decimals
# between machines. Losses agree to three decimals.
#
# **If time is short**, skip the split by sequences and the layer map.
