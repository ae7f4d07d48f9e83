# ---
# lesson: 3
# title: Two layers: composition and induction heads
# minutes: 135
# ---

# %% [markdown]
# A head of a one-layer model can only ask about tokens: *I am this token; are you that one?* With two
# layers, a head can ask about what another head has written. The first thing that small models build with
# this is the **induction head**: it finds the previous occurrence of the current token and predicts
# what came after it. In this lesson you train one, learn how not to be fooled by heads that only look
# like one, find the real ones in `attn-2l`, and prove by intervention how they work.
#
# **You will learn to**
#
# - measure what a model gains from its context, on text that holds nothing else to gain;
# - score a head for induction with a control, and say why the usual score is not enough;
# - train a two-layer model that grows an induction head, in front of your eyes;
# - find the head that it reads from: composition scores, with what chance gives beside them;
# - prove the mechanism by taking single heads and single paths away.
#
# **You need** lesson 2: queries, keys, values, the QK and OV circuits of a head.
#
# **Conventions.** Vectors are rows: `x @ W`. `pattern[row, head, query, key]` is attention after the
# softmax; each query's row sums to one. `L1H3` is head 3 of layer 1; layers and heads count from zero.
# Losses are in nats.

# %%
import pandas as pd
import plotly.graph_objects as go
import torch
from IPython.display import Image
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix

import lens_linear as ll
from lens_linear.circuits import (
    ablation_scores,
    attention_pattern,
    in_context_loss,
    map_of,
    verify_induction,
)
from lens_linear.models import (
    ModelSpec,
    bridge_from_module,
    native_module,
    norm_scale,
    read_weights,
    run,
)
from lens_linear.models import vocabulary as read_vocabulary
from lens_linear.plots import GREY, colour, style, styled
from lens_linear.text import random_tokens, repeated_tokens
from lens_linear.training import Phase, Recipe

# %% [markdown]
# ## Text that only the context predicts
#
# Take random tokens and repeat them:
#
# | position | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 |
# |---|---|---|---|---|---|---|---|---|---|
# | token | start | a | b | c | d | a | b | c | d |
#
# Position 0 always holds the start token. The **period** $p$ is the number of tokens before the repeat,
# here 4. So the **first copy** fills positions $1, \dots, p$ and the **second copy** positions
# $p + 1, \dots, 2p$.
#
# Nothing in the first copy can be predicted: the tokens are random. In the second copy all tokens but the
# first can be predicted, by a model that finds the previous occurrence of the current token. (The first
# cannot: nothing says that a repeat begins there.) So the difference between the two losses measures
# one ability, and no knowledge of language helps. It is called the **in-context gain**.

# %% [exercise 3.1 difficulty=2 importance=4 minutes=10] The in-context gain
# `losses[row, t]` is the loss of the prediction made at position `t`, which is about the token at position
# `t + 1`. Return the mean loss of the first copy minus the mean loss of the second copy. In both copies
# leave out the prediction of the copy's first token. Look out: `losses` may go on after the second copy.


# %% [solution 3.1]
def copy_gain(losses: Float[Tensor, "row position"], period: int) -> float:
    """Mean loss in the first copy minus mean loss in the second copy, in nats a token."""
    # BEGIN SOLUTION
    first = losses[:, 1:period]
    second = losses[:, period + 1 : 2 * period]
    return float(first.mean() - second.mean())
    # END SOLUTION


# %% [check 3.1]
ll.check("3.1", "copy_gain")

# %% [instructor]
# Nearly every wrong answer is off by one. Let students write the positions and tokens of a period of 4 on
# paper, and mark which `t` predicts which token. `t = 1` is the first prediction that counts.

# %% [markdown]
# Measure two bundled models: `attn-1l` has one layer, `attn-2l` two. Both were trained on children's
# books; `attn-2l` also saw rows of repeated random tokens, so that its induction heads are clear.


# %%
@torch.no_grad()
def token_losses(model, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position"]:
    """The loss of every prediction that has a next token."""
    log_probs = model(tokens)[:, :-1].log_softmax(dim=-1)
    return -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]


one, two = ll.load("attn-1l"), ll.load("attn-2l")
for period in (8, 15, 27):
    rows = repeated_tokens(16, period, 1 + 2 * period, range(1, 1024), seed=0, bos=0).tokens
    gains = [float(copy_gain(token_losses(model, rows), period)) for model in (one, two)]
    print(f"period {period:2d}: gain of attn-1l {gains[0]:+.2f} nats, of attn-2l {gains[1]:+.2f}")

# %%
figure = go.Figure()
for index, (name, model) in enumerate((("attn-1l", one), ("attn-2l", two))):
    curve = in_context_loss(model).to_dataframe()
    figure.add_scatter(x=curve["index"], y=curve["loss"], name=name, line_color=colour(index))
figure.add_vline(x=0, line_dash="dash", line_color=GREY, annotation_text="the repeat begins")
styled(
    figure,
    title="Random tokens, then the same again",
    x="token, counted from the start of the second copy",
    y="loss (nats)",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** Before the repeat `attn-1l` loses far more than an even guess over the
# vocabulary would (about seven nats): it expects English. `attn-2l` has seen random tokens and guesses nearly
# evenly. At the repeat the loss of `attn-2l` falls off a cliff. The
# loss of `attn-1l` does not fall at all.
#
# ## How two layers do it
#
# Let the current token be A, and let AB have occurred before. The model has to find B. But nothing about
# the token B says that A stood before it. Two heads solve this together:
#
# 1. A **previous-token head** in the first layer looks one position back and writes what it finds. After
#    it, the position of B holds a note: *before me stood A*.
# 2. An **induction head** in the second layer asks with the query: *I am A; before whom did A stand?* The
#    keys hold the notes. The note at B answers. The head attends to B and copies it to the output.
#
# In step 2 the *keys* of the second head are made from the output of the first: that is
# **K-composition**.
#
# This predicts where an induction head looks. From a query in the second copy it looks not at the previous
# occurrence of the same token, $p$ positions back, but at the token after it, $p - 1$ positions back.
# Attention to that place is the **prefix-matching score**.
#
# ## A score that can be fooled, and one that cannot
#
# Suppose all rows have the same period. Then "look $p - 1$ back" needs no matching at all: a head that
# always looks the same distance back scores perfectly. So mix periods, and compare with rows that do
# *not* repeat: there, looking $p - 1$ back means nothing, and an induction head does not do it.

# %% [exercise 3.2 difficulty=3 importance=5 minutes=15] Prefix matching above its control
# `pattern` holds rows with different periods; `periods[row]` is 0 for a row that does not repeat.
#
# For each period $p > 0$ that occurs, take the mean attention from the queries $p + 1, \dots, 2p$ (the
# second copy) to the key $p - 1$ positions before each query. Do so once in the rows of period $p$, and
# once, for the same queries and the same distance, in the rows of period 0: that is the control. Return
# the difference, averaged over the periods, for each head.


# %% [solution 3.2]
def induction_excess(
    pattern: Float[Tensor, "row head query key"], periods: Int[Tensor, "row"]
) -> Float[Tensor, "head"]:
    """Attention to the token after the previous occurrence, minus the same places without a repeat."""
    # BEGIN SOLUTION
    found = []
    for period in sorted({p for p in periods.tolist() if p > 0}):
        # Entry i of this diagonal is query (period - 1) + i, so the second copy is i = 2 ... period + 1.
        band = pattern.diagonal(-(period - 1), dim1=-2, dim2=-1)[..., 2 : period + 2].mean(-1)
        found.append(band[periods == period].mean(0) - band[periods == 0].mean(0))
    return torch.stack(found).mean(0)
    # END SOLUTION


# %% [check 3.2]
ll.check("3.2", "induction_excess")

# %% [instructor]
# A loop over rows and queries is as good as the diagonal and easier to get right. Typical slips: key
# `q - p` (that is the duplicate-token score), averaging over all queries, leaving out the control.
# Averaging over rows rather than over periods passes only when each period has as many rows: the check has
# unequal ones.

# %% [markdown]
# ## Train one live
#
# A small model with two layers of two heads each, without MLPs, on nothing but repeated random tokens. Every
# row draws its own period between 4 and 20. This takes well under a minute on a laptop.
#
# The second model is the trap. It has **one** layer with one head, and all its rows have period 16.


# %% [training]
def train_live(name: str, n_layers: int, n_heads: int, periods: tuple[int, int], steps: int):
    """Train an attention-only model on repeats with periods in a range; every 20 steps its weights are kept."""
    spec = ModelSpec(
        n_layers, d_model=64, n_heads=n_heads, d_vocab=64, n_ctx=48, attn_only=True, norm="LNPre"
    )
    phase = Phase(steps, rows=32, length=48, learning_rate=4e-3, repeats=1.0, periods=periods)
    recipe = Recipe(name, spec, (phase,), seed=1, checkpoints=tuple(range(0, steps, 20)))
    text = torch.arange(64)  # a recipe may mix in text; this one has repeats only
    return ll.train(recipe, text, progress=False)


live_run = train_live("live", n_layers=2, n_heads=2, periods=(4, 20), steps=600)
trap_run = train_live("trap", n_layers=1, n_heads=1, periods=(16, 16), steps=300)
live, trap = live_run.model, trap_run.model
live_losses, trap_losses = ([loss for _, loss, _ in each.history] for each in (live_run, trap_run))
print(f"average training loss over the last 20 steps: live {sum(live_losses[-20:]) / 20:.2f} nats,")
print(f"trap {sum(trap_losses[-20:]) / 20:.2f} nats; an even guess over 64 tokens costs 4.16")

# %%
figure = go.Figure()
figure.add_scatter(y=live_losses, name="two layers, mixed periods", line_color=colour(0))
figure.add_scatter(y=trap_losses, name="one layer, one period", line_color=colour(1))
styled(
    figure,
    title="Both models learn to predict repeats",
    x="training step",
    y="loss (nats a token)",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** Both losses fall far below an even guess, and stop at about the same height. (They
# cannot reach zero: the first copy of each row stays random.) The model with two layers takes longer. Its
# loss falls slowly for a while, and then drops steeply: that is when heads of both layers begin to work
# together. Neither curve tells you that one of the models has learnt a trick.
#
# Now score both. First as it is often done, at one period and without a control. Then with your function.

# %%
choices = [6, 9, 12, 16, 20]


def probe(n: int = 8, length: int = 41) -> tuple[Tensor, Tensor]:
    """Rows of every period, and as many that do not repeat (period 0)."""
    repeats = repeated_tokens(
        n * len(choices), choices, length, range(1, 64), seed=5, bos=0, distinct=True
    )
    plain = random_tokens(n, length, range(1, 64), seed=6, bos=0)
    rows = torch.cat([repeats.tokens, plain])
    return rows, torch.cat([repeats.periods, torch.zeros(n, dtype=torch.int64)])


tokens, periods = probe()
table = []
for name, model, layer in (("live", live, 1), ("trap", trap, 0)):
    pattern = run(model, tokens, record=[(layer, "pattern")], logits=False)[(layer, "pattern")]
    usual = pattern[periods == 16].diagonal(-15, dim1=-2, dim2=-1)[..., 2:18].mean((0, 2))
    excess = induction_excess(pattern, periods)
    table += [
        {
            "head": f"{name} L{layer}H{h}",
            "usual score, period 16": float(u),
            "your excess": float(e),
        }
        for h, (u, e) in enumerate(zip(usual, excess, strict=True))
    ]
pd.DataFrame(table).round(2).replace(-0.0, 0.0)

# %%
figure = go.Figure()
for index, (name, model) in enumerate((("live", live), ("trap", trap))):
    losses = token_losses(model, tokens)
    gains = [float(copy_gain(losses[periods == p], p)) for p in choices]
    figure.add_scatter(x=choices, y=gains, name=name, line_color=colour(index))
figure.add_hline(y=0, line_dash="dash", line_color=GREY)
styled(
    figure,
    title="The trap helps at one period only",
    x="period of the test rows",
    y="in-context gain (nats a token)",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** By the usual score the head of the trap looks *better* than the real induction
# heads. Its excess is zero: it looks 15 positions back whether there is a repeat or not. The figure shows
# what that costs. At period 16 the trap predicts the second copy. At other periods it is sure of the wrong
# token, and the gain is negative. (At the shortest period it is zero: both copies are over before there is
# anything 15 positions back.) The live model gains at every period.
#
# The loss of the live model fell in one drop. What formed there? Its weights were kept every 20 steps. Score them: your
# excess for the heads of layer 1, and the attention of the heads of layer 0 to the token before.

# %%
spec = live_run.recipe.spec
formed = []
for step, kept in live_run.checkpoints.items():
    module = native_module(spec, seed=0)
    module.load_state_dict(kept)
    then = bridge_from_module(module.eval(), spec, name=f"live at {step}")
    spots = [(0, "pattern"), (1, "pattern")]
    seen = run(then, tokens, record=spots, logits=False)
    one_back = seen[(0, "pattern")].diagonal(-1, dim1=-2, dim2=-1).mean((0, 2)).max()
    excess = induction_excess(seen[(1, "pattern")], periods).max()
    loss = sum(live_losses[step : step + 20]) / 20
    formed.append((step, loss, float(one_back), float(excess)))
formed = pd.DataFrame(formed, columns=["step", "loss", "previous token", "your excess"])
formed[formed.step.isin((0, 60, 100, 140, 180, 200, 240, 300, 580))].round(2).replace(-0.0, 0.0)

# %%
figure = go.Figure()
figure.add_scatter(x=formed.step, y=formed.loss, name="loss (left)", line_color=GREY)
for index, name in enumerate(("previous token", "your excess")):
    figure.add_scatter(
        x=formed.step,
        y=formed[name],
        name=f"{name}, best head",
        line_color=colour(index),
        yaxis="y2",
    )
right_axis = {"overlaying": "y", "side": "right", "range": [0, 1], "title": "attention"}
styled(
    figure,
    title="The loss drops when the heads form",
    x="training step",
    y="loss (nats)",
    legend="bottom",
).update_layout(yaxis2=right_axis)

# %% [markdown]
# **What you should see.** While the loss creeps, both scores lie on the floor. Then they rise *together*, and the loss falls
# while they do: a note that nobody reads gains nothing, and a reader without notes neither. Most of the loss has gone when
# the induction score is at its height, while the previous-token head goes on getting sharper. (The loss shown is the
# mean of the next twenty steps.)
#
# `ll.induction_scores` does what you did, and more: a control for each period, scores for previous-token
# and duplicate-token attention, and a verdict.

# %%
columns = ["head", "prefix_matching", "positional_control", "prev_token", "copying", "verdict"]
live_scores = ll.induction_scores(live, periods=choices, bos=0)
trap_scores = ll.induction_scores(trap, periods=choices, bos=0)
both = {"live": live_scores.to_dataframe(), "trap": trap_scores.to_dataframe()}
pd.concat(both, names=["model", "row"])[columns].round(2).replace(-0.0, 0.0)

# %% [markdown]
# **What you should see.** In the live model a head of layer 0 is a previous-token head and both heads of
# layer 1 are induction heads. The head of the trap is called positional.
#
# ## Find the heads of `attn-2l`

# %%
scores = ll.induction_scores(two)
print(scores)
scores.to_dataframe()[[*columns, "target_logit"]].round(2).replace(-0.0, 0.0)

# %%
ll.plots.head_scores(scores, subtract_control=True)

# %% [markdown]
# **What you should see.** One previous-token head in layer 0. All heads of layer 1 pass the threshold for
# induction, but they are not alike: two of them attend almost only there and copy strongly
# (`target_logit` is how far the head raises the right token), two do it half-heartedly. A verdict
# is a threshold on a number; keep the number in sight.
#
# Look at one of the strong ones at work on a text with a name that returns.

# %%
text = "Mr. Tumbleby went out. When it rained, Mr. Tumbleby"
row = ll.tokenize_prompts(two, [text])[0]
strong = scores.heads("induction")[0]  # (layer, head), the strongest
seen = attention_pattern(two, row, strong[0])
ll.plots.attention_pattern(seen, strong[1])

# %% [markdown]
# **What you should see.** Rows are queries, columns are keys. The first column is bright: where a head of
# this kind has nothing to do, it rests on the first token. In the last rows, from the full stop before the
# second *Tumbleby* on, some attention moves to a line parallel to the diagonal: each piece looks at the
# piece *after* its own previous occurrence. The last row looks at *went*, which followed the name. On text
# the line is fainter than on random tokens, where the scores were taken.
#
# The next cell shows all heads of a layer; hover over them, and click one to keep it. Change `layer=0` to
# `layer=1`.

# %%
ll.plots.attention_heads(attention_pattern(two, row, layer=0))

# %% [markdown]
# ## Composition from the weights
#
# If a head of layer 1 reads what a head of layer 0 wrote, that should show in the weights alone. Everything
# that the writer adds to the stream has passed through $W_V W_O$. Everything that the reader's keys see
# passes through $W_K$, and is compared with queries through $W_Q$. So K-composition is the matrix
#
# $$W_V W_O \; W_K W_Q^\top,$$
#
# and its size, compared with the sizes of its parts, says how much of the one is read by the other:
#
# $$\text{score} = \frac{\|W_V W_O W_K W_Q^\top\|}{\|W_V W_O\| \; \|W_K W_Q^\top\|}.$$
#
# $\|\cdot\|$ is the Frobenius norm: the root of the sum of squared entries. The score lies between zero
# and one.

# %% [exercise 3.3 difficulty=2 importance=3 minutes=8] The K-composition score
# The first two matrices belong to the writer (layer 0), the last two to the reader (layer 1).


# %% [solution 3.3]
def k_composition(
    W_V: Float[Tensor, "d_model d_head"],
    W_O: Float[Tensor, "d_head d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
) -> float:
    """How much of what the writer writes is read by the reader's keys, between 0 and 1."""
    # BEGIN SOLUTION
    writes, reads = W_V @ W_O, W_K @ W_Q.T
    return float((writes @ reads).norm() / (writes.norm() * reads.norm()))
    # END SOLUTION


# %% [check 3.3]
ll.check("3.3", "k_composition")

# %% [instructor]
# `torch.linalg.norm(M, 2)` and `matrix_norm(M, ord=2)` are the spectral norm and fail with a message of
# their own. `W_Q @ W_K.T` in place of `W_K @ W_Q.T` gives Q-composition, which has a
# message too.

# %% [markdown]
# How large is large? Two heads that have nothing to do with each other do not score zero. They score about
# $1 / \sqrt{d_\text{model}}$. So compute what chance gives, for this pair: rotate one head against the
# other at random, and score again. The distance from the average of those, in standard deviations, is $z$.

# %%
weights = read_weights(two)  # a copy; heads.W_Q[layer, head] is a matrix of one head
heads = weights.attention
reader = strong[1]
generator = torch.Generator().manual_seed(0)
turns = [
    torch.linalg.qr(torch.randn(128, 128, generator=generator, dtype=torch.float64)).Q
    for _ in range(30)
]
table = []
for writer in range(4):
    W_V, W_O = heads.W_V[0, writer], heads.W_O[0, writer]
    W_Q, W_K = heads.W_Q[1, reader], heads.W_K[1, reader]
    score = float(k_composition(W_V, W_O, W_Q, W_K))
    chance = torch.tensor([k_composition(W_V, W_O @ turn, W_Q, W_K) for turn in turns])
    table.append((f"L0H{writer} → L1H{reader}", score, float(chance.mean()), float(chance.std())))
frame = pd.DataFrame(table, columns=["pair", "score", "chance", "sd"])
frame["z"] = (frame["score"] - frame["chance"]) / frame["sd"]
frame.round(3)

# %% [markdown]
# All raw scores are small, also the one that matters. Only beside chance is it plain which pair talks, and
# how plain. (A score well *below* chance is possible too: then the writer avoids the directions that the
# reader reads.) `ll.composition_scores` does it for all pairs and for all three kinds; Q- and V-composition
# are the same idea for queries and values.

# %%
composition = ll.composition_scores(two)
ll.plots.composition_map(composition)

# %%
ll.plots.circuit_graph(composition, scores, min_z=5)

# %% [markdown]
# **What you should see.** In the map, the panel of K-composition has one row that stands out: the
# previous-token head writes, the induction heads read it as keys. Red cells are
# below chance: there the reader avoids what the writer writes. In the graph, heads are nodes
# (layer 0 below) and compositions far above chance are edges. The thickest edges run from the
# previous-token head to the strong induction heads. There are some thinner edges too. A composition score
# says that a head *can* read another, not that it does so when it matters.
#
# The weights can tell more. What does the reader look *for*? Follow one token $a$ as a query, and one token
# $b$ that stood before the key. The query is $W_E[a]\,W_Q$. The note that the previous-token head left at
# the key is $W_E[b]\,W_V W_O$, and the key made from it is $W_E[b]\,W_V W_O W_K$. So
#
# $$M[a, b] = \frac{(W_E[a]\,W_Q) \cdot (W_E[b]\,W_V W_O W_K)}{\sqrt{d_\text{head}}}.$$

# %% [exercise 3.4 difficulty=3 importance=4 minutes=12] The composed QK circuit
# Write the whole table. The row is the query's token, the column the token that stood before the key.


# %% [solution 3.4]
def composed_qk(
    W_E: Float[Tensor, "vocab d_model"],
    W_V: Float[Tensor, "d_model d_head"],
    W_O: Float[Tensor, "d_head d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
) -> Float[Tensor, "vocab vocab"]:
    """Attention score of a query token for a key whose previous token is the column's."""
    # BEGIN SOLUTION
    queries = W_E @ W_Q
    keys = W_E @ W_V @ W_O @ W_K
    return queries @ keys.T / W_Q.shape[1] ** 0.5
    # END SOLUTION


# %% [check 3.4]
ll.check("3.4", "composed_qk")

# %% [markdown]
# If the story is right, then token $a$ looks for keys that stood after $a$. In each row of $M$, the largest
# entry should be the one on the diagonal. By chance that happens once in a thousand.

# %%
table = []
for reader in range(4):
    for writer in range(4):
        M = composed_qk(
            weights.W_E,
            heads.W_V[0, writer],
            heads.W_O[0, writer],
            heads.W_Q[1, reader],
            heads.W_K[1, reader],
        )
        own = float((M.argmax(dim=1) == torch.arange(len(M))).double().mean())
        table.append({"reader": f"L1H{reader}", "writer": f"L0H{writer}", "own token first": own})
pd.DataFrame(table).pivot(index="reader", columns="writer", values="own token first").round(3)

# %%
previous = scores.heads("previous-token")[0]
labels = read_vocabulary(two)
M = composed_qk(
    weights.W_E, heads.W_V[previous], heads.W_O[previous], heads.W_Q[strong], heads.W_K[strong]
)
window = map_of(
    FactoredMatrix(M, torch.eye(len(M), dtype=M.dtype)),
    name="composed QK",
    axes=("query", "preceding"),
    labels=(labels, labels),
    k=24,
)
ll.plots.circuit_window(window).update_traces(colorbar_title_text="score")

# %% [markdown]
# **What you should see.** In the table, the column of the previous-token head is high, and nearly one for
# the strong readers. All other columns are near zero. The figure is a window of $M$ with the tokens of its
# largest entries, for a strong reader. In each row the bluest cell is the token itself: *I look for what
# stood after a token like me.*
#
# ## Prove it
#
# So far we have looked. Weights and attention patterns suggest a mechanism; they do not show that the model
# uses it. For that, break it and see.
#
# First the simplest cut. A head gathers a mixture of values, `z`, and writes $z W_O$. Put the head's
# *average* `z` in its place: what the head always says stays, what it says about this context is gone. This
# is **mean ablation**.

# %% [exercise 3.5 difficulty=2 importance=5 minutes=8] Mean ablation
# Replace the `z` of some heads by their means, at every position. Leave the other heads alone, and do not
# change `z` itself: return a new tensor.


# %% [solution 3.5]
def without_heads(
    z: Float[Tensor, "row position head d_head"],
    heads: list[int],
    mean: Float[Tensor, "head d_head"],
) -> Float[Tensor, "row position head d_head"]:
    """z with the named heads replaced by their means."""
    # BEGIN SOLUTION
    changed = z.clone()
    changed[:, :, heads] = mean[heads]
    return changed
    # END SOLUTION


# %% [check 3.5]
ll.check("3.5", "without_heads")

# %% [markdown]
# `run` runs a model, records tensors at *spots* such as `(0, "z")` (layer 0, gathered values), and can edit
# them on the way.

# %%
PERIOD = 20
rows = repeated_tokens(24, PERIOD, 1 + 2 * PERIOD, range(1, 1024), seed=7, bos=0).tokens
spots = [(0, "z"), (1, "z"), (1, "resid_pre")]
clean = run(two, rows, record=spots)


def per_head(tensor: Tensor) -> Tensor:
    """[row, position, head, d_head], whatever way the model stores it."""
    return tensor.reshape(*tensor.shape[:2], 4, 32)


means = {layer: per_head(clean[(layer, "z")]).mean((0, 1)) for layer in (0, 1)}


def gain_with(edits=()) -> float:
    """In-context gain of attn-2l on these rows with some edits."""
    logits = run(two, rows, edits=list(edits)).logits
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
    return float(copy_gain(losses, PERIOD))


def ablated(layer: int, heads: list[int]) -> float:
    """In-context gain without some heads of a layer."""

    def edit(z: Tensor) -> Tensor:
        return without_heads(per_head(z), heads, means[layer]).reshape(z.shape)

    return gain_with([((layer, "z"), edit)])


whole = gain_with()
print(f"whole model: gain {whole:.2f} nats a token")
for layer in (0, 1):
    left = [ablated(layer, [head]) for head in range(4)]
    print(f"without one head of layer {layer}: " + ", ".join(f"{g:.2f}" for g in left))
print(f"without all of layer 1's heads: {ablated(1, [0, 1, 2, 3]):.2f}")

# %%
theirs = ablation_scores(two)
mine = [whole - ablated(layer, [head]) for layer in (0, 1) for head in range(4)]
beside = theirs.to_dataframe()[["head", "lost"]].rename(columns={"lost": "package: lost gain"})
beside.insert(1, "yours: lost gain", mine)
for how in ("zero", "resample"):
    beside[f"package, {how}"] = ablation_scores(two, how=how)["lost"]
print(theirs)
beside.round(2).replace(-0.0, 0.0)

# %%
ll.plots.ablation_map(theirs)

# %% [markdown]
# **What you should see.** Without the previous-token head nearly all of the gain is lost, more than without
# any single induction head. That is no contradiction. There are several induction heads, and where one is
# missing the others still do the work; the previous-token head has no understudy. *Necessary* is a question
# about a set of heads.
#
# The table also shows that *one* ablation has several sizes. Your mean is one vector for all positions, taken from these
# rows; the package takes a mean for each position, from many other rows, so that what a head says about *positions*
# stays. That is why L0H1 looks important to you and not to the package. Zeros are a third answer and another row's
# values (`resample`) a fourth. Look at L1H3: with zeros in its place nothing is lost, so the others can do its
# work; with a mean much is lost, so it is the *mean* that does harm, by speaking for tokens that are not there. Say
# with every ablation what was put in the head's place, and on which rows.
#
# Ablating the previous-token head shows that it is needed, but not *for what*. It might also feed the
# values of the induction heads, or the output directly. So make a finer cut: take what it wrote out of the
# **keys** of the layer above, and leave it everywhere else. Keys are linear in what they read:
#
# $$k = \frac{x}{s} W_K + b_K,$$
#
# where $x$ is the residual stream and $s$ the scale of the norm, one number a position. (`attn-2l` has a norm
# without weights. The centring is folded into $W_K$.) If the head wrote $w$, which is a part of $x$, then
# taking $w$ out changes $k$ in a simple way. Keep $s$ as it was: only the one path is to be cut.

# %% [exercise 3.6 difficulty=3 importance=5 minutes=12] Cut one path
# Return the keys as they would be had `written` not been part of the stream that they read, with the scale
# frozen. You are given the keys, not the stream. The same function will serve for queries and values.


# %% [solution 3.6]
def cut_path(
    keys: Float[Tensor, "row position d_head"],
    written: Float[Tensor, "row position d_model"],
    W_K: Float[Tensor, "d_model d_head"],
    scale: Float[Tensor, "row position 1"],
) -> Float[Tensor, "row position d_head"]:
    """The keys without what one head wrote into the stream."""
    # BEGIN SOLUTION
    return keys - written / scale @ W_K
    # END SOLUTION


# %% [check 3.6]
ll.check("3.6", "cut_path")

# %% [instructor]
# This is path patching, written out. Students who subtract `written @ W_K` forget the norm; those who
# compute a new scale change every other path into the head as well. The cell below takes out `written`
# minus its mean over rows and positions, for the same reason that ablation uses means.

# %% [markdown]
# Now cut the path from the previous-token head into the keys of all heads of layer 1. Then, for comparison,
# into their queries, and into their values. (Cut only what depends on the context: what the head wrote,
# minus its mean.)

# %%
stream = clean[(1, "resid_pre")].double()
scale = norm_scale(stream, weights.norm, weights.eps)
readers = {"q": heads.W_Q[1], "k": heads.W_K[1], "v": heads.W_V[1]}


def without_path(writer: int, side: str) -> float:
    """Gain when a head of layer 0 is invisible to one side of all heads of layer 1."""
    written = per_head(clean[(0, "z")])[:, :, writer].double() @ heads.W_O[0, writer]
    written = written - written.mean((0, 1))

    def edit(tensor: Tensor) -> Tensor:
        split = per_head(tensor).double()
        cut = [cut_path(split[:, :, h], written, readers[side][h], scale) for h in range(4)]
        return torch.stack(cut, dim=2).reshape(tensor.shape).to(tensor.dtype)

    return gain_with([((1, side), edit)])


table = pd.DataFrame(
    [[without_path(writer, side) for side in "qkv"] for writer in range(4)],
    index=[f"L0H{writer}" for writer in range(4)],
    columns=["cut from queries", "cut from keys", "cut from values"],
)
print(f"whole model: {whole:.2f}")
table.round(2)

# %% [markdown]
# **What you should see.** One number is far below the others: the previous-token head, cut from the keys.
# The same head can be cut from the queries or from the values, and hardly anything is lost. The other heads
# of layer 0 matter little on any path. That is K-composition, shown by intervention.
#
# The package runs the whole argument, each step with controls (the same cut for other heads):

# %%
mechanism = verify_induction(two)
print(mechanism)
ll.plots.mechanism_table(mechanism)

# %% [markdown]
# **What you should see.** Orange bars are cuts that should take the gain away, blue bars cuts that should
# not, grey bars the same cuts for other heads. The orange bars are long, the blue and grey ones near zero.
# (A bar beyond the whole gain means that the second copy is now predicted *worse* than the first.) Together
# the steps say: the induction heads matter; they need the previous-token head; they need it in their keys
# and nowhere else; what they read is the token after the previous occurrence; and they write it straight to
# the output.
#
# Does the head that you trained work in the same way? Nothing forces it to.

# %%
live_mechanism = verify_induction(live, periods=choices, bos=0)
print(live_mechanism)
live_mechanism.to_dataframe()[["step", "expected", "removed", "control_removed"]].round(2).replace(
    -0.0, 0.0
)

# %% [markdown]
# ## Five closer looks
#
# Each of the next exercises is a few lines and a question of its own. They use the same two heads. Do them now, as
# homework, or one a week.
#
# **Why does the previous-token head look back?** Its score for a query and a key is made of content and of position.
# Leave the content out: put only the position vectors in. The norm divides what it reads by a scale, and a bare
# position vector would get a scale of its own; so divide by the scale that real text has at each position.

# %% [exercise 3.7 difficulty=2 importance=4 minutes=8] Attention from positions alone
# Return the causal pattern of a head that reads nothing but `W_pos[i] / scale[i]` at each position $i$.


# %% [solution 3.7]
def positional_pattern(
    W_pos: Float[Tensor, "position d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
    scale: Float[Tensor, "position"],
) -> Float[Tensor, "query key"]:
    """Softmax over earlier keys of the scores that positions alone give."""
    # BEGIN SOLUTION
    reads = W_pos / scale[:, None]
    scores = (reads @ W_Q) @ (reads @ W_K).T / W_Q.shape[1] ** 0.5
    later = torch.ones_like(scores).triu(1).bool()
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)
    # END SOLUTION


# %% [check 3.7]
ll.check("3.7", "positional_pattern")

# %%
entering = run(two, ll.evaluation_tokens(two)[:16, :64], record=[(0, "resid_pre")], logits=False)
typical = norm_scale(entering[(0, "resid_pre")].double(), weights.norm, weights.eps).mean(0)[:, 0]
table = []
for head in range(4):
    pattern = positional_pattern(
        weights.W_pos[:64], heads.W_Q[0, head], heads.W_K[0, head], typical
    )
    one_back = [float(pattern.diagonal(-d).mean()) for d in (0, 1, 2)]
    table.append((f"L0H{head}", *one_back, float(scores["prev_token"][head])))
names = ["head", "itself", "one back", "two back", "one back, measured on tokens"]
pd.DataFrame(table, columns=names).round(2)

# %% [markdown]
# **What you should see.** The previous-token head looks one back *because of positions*: with no token at all it puts most of
# its attention there, nearly as much as it does on real rows. The other heads of the layer spread theirs.
#
# **Do the induction heads copy?** The copying score of lesson 2 is about eigenvalues. A plainer question: of all
# tokens that a head could promote, is the one it attends to *first*? And what do two heads do together? Their terms are
# added, so their OV circuits are added too.

# %% [exercise 3.8 difficulty=2 importance=3 minutes=8] Top-1 accuracy of OV
# Each head $h$ has $\mathrm{OV}_h = A_h B_h$. For what share of the tokens is the token's own entry the largest of its row, in
# the *sum* of the circuits of all heads given?


# %% [solution 3.8]
def ov_top1(A: list[Float[Tensor, "vocab r"]], B: list[Float[Tensor, "r vocab"]]) -> float:
    """Share of tokens whose own output is the largest in the summed OV circuit."""
    # BEGIN SOLUTION
    table = torch.cat(A, dim=1) @ torch.cat(B, dim=0)
    return float((table.argmax(dim=1) == torch.arange(len(table))).double().mean())
    # END SOLUTION


# %% [check 3.8]
ll.check("3.8", "ov_top1")

# %%
ov = {head: ll.head(two, 1, head).ov for head in range(4)}
choices_of_heads = [[0], [1], [2], [3], [1, 3], [0, 2], [0, 1, 2, 3]]
rows_of = [
    (" + ".join(f"L1H{h}" for h in some), ov_top1([ov[h].A for h in some], [ov[h].B for h in some]))
    for some in choices_of_heads
]
pd.DataFrame(rows_of, columns=["heads", "own token first"]).round(3)

# %% [markdown]
# **What you should see.** The two strong heads put nearly every token first, and together *every* token: where the one fails,
# the other does not. The weak ones hardly ever do. A verdict "induction" from the attention alone hid that difference.
#
# **Who wrote what the head looks for?** One attention score is a dot product of a query with a key, and the key is a sum over
# everything that wrote into the stream at its position. So a score splits by writer.

# %% [exercise 3.9 difficulty=2 importance=4 minutes=8] One score, split by writer
# `parts[w]` is what writer $w$ put into the stream at the key's position, already divided by the norm's scale there.
# Return each writer's share of the score, so that the shares sum to the score. (Biases of the key are left out.)


# %% [solution 3.9]
def score_by_writer(
    query: Float[Tensor, "d_head"],
    parts: Float[Tensor, "writer d_model"],
    W_K: Float[Tensor, "d_model d_head"],
) -> Float[Tensor, "writer"]:
    """What each writer into the key's stream adds to one attention score."""
    # BEGIN SOLUTION
    return parts @ W_K @ query / len(query) ** 0.5
    # END SOLUTION


# %% [check 3.9]
ll.check("3.9", "score_by_writer")

# %% [markdown]
# Take a row of random tokens that comes twice, the strong induction head, and a query in the second copy. Its key is the token
# after the previous occurrence. The writers below it are the embedding, the position and the heads of layer 0.

# %%
example = repeated_tokens(1, 12, 25, range(1, 1024), seed=3, bos=0).tokens
spots = [(0, "z"), (1, "z"), (1, "q"), (1, "resid_pre"), (1, "resid_post")]
seen = run(two, example, record=spots)


def writers(layers: int) -> dict[str, Tensor]:
    """What each writer below a layer put into the stream, [position, d_model]."""
    found = {"token": weights.W_E[example[0]], "position": weights.W_pos[: example.shape[1]]}
    for layer in range(layers):
        z = per_head(seen[(layer, "z")])[0].double()
        found |= {f"L{layer}H{h}": z[:, h] @ heads.W_O[layer, h] for h in range(4)}
        found[f"L{layer} b_O"] = heads.b_O[layer].expand(len(z), -1)
    return found


at_query, at_key = 20, 9  # the same token stood at 8; the key is the one after it
below = writers(1)
key_scale = norm_scale(seen[(1, "resid_pre")].double(), weights.norm, weights.eps)[0, at_key]
query = per_head(seen[(1, "q")])[0, at_query, strong[1]].double()
stacked = torch.stack([part[at_key] for part in below.values()]) / key_scale
shares = score_by_writer(query, stacked, heads.W_K[strong])
split = ll.qk_attribution(two, example, *strong).by_writer("key", query=at_query, key=at_key)
split["yours"] = split["component"].map(dict(zip(below, shares.tolist(), strict=True)))
print(
    f"your shares sum to {float(shares.sum()):.2f}, the package's to {split['score'].sum():.2f} (with the key's bias)"
)
split.round(2).replace(-0.0, 0.0)

# %% [markdown]
# **What you should see.** By far the largest share comes from one writer, the previous-token head: the composition of the
# sections above, in a single number of a single row. The key's own token speaks *against* the score. Position and
# bias add parts that have nothing to do with tokens. `by_writer` of the package agrees with you line by line; the bias of
# the key itself is its last line.
#
# **Who wrote the right answer?** The same split, at the other end of the model. The logits are the final stream, divided by
# the norm's scale, times $W_U$. So every writer of both layers has a part of each logit.

# %% [exercise 3.10 difficulty=2 importance=4 minutes=10] Logit attribution over both layers
# `parts[w, t]` is what writer $w$ put into the final stream at position $t$, already divided by the scale. Return what it
# adds to the logit of `targets[t]`, *above the average logit* that it adds at that position. (A writer that raises all
# logits alike changes no probability.)


# %% [solution 3.10]
def logit_attribution(
    parts: Float[Tensor, "writer position d_model"],
    W_U: Float[Tensor, "d_model vocab"],
    targets: Int[Tensor, "position"],
) -> Float[Tensor, "writer position"]:
    """Each writer's share of the right token's logit, above the mean over the vocabulary."""
    # BEGIN SOLUTION
    logits = parts @ W_U
    index = targets.expand(len(parts), -1)[..., None]
    return logits.gather(-1, index)[..., 0] - logits.mean(dim=-1)
    # END SOLUTION


# %% [check 3.10]
ll.check("3.10", "logit_attribution")

# %%
everything = writers(2)
final_scale = norm_scale(seen[(1, "resid_post")].double(), weights.final_norm, weights.eps)[0]
stacked = torch.stack(list(everything.values())) / final_scale
credit = logit_attribution(stacked[:, :-1], weights.W_U, example[0, 1:])
logits = seen.logits[0, :-1].double()
right = logits.gather(1, example[0, 1:, None])[:, 0] - logits.mean(1)
bias = weights.b_U[example[0, 1:]] - weights.b_U.mean()
gap = float((credit.sum(0) + bias - right).abs().max())
print(f"largest gap between the sum of all writers and the model's own logits: {gap:.0e}")
figure = style.matrix(
    credit,
    rows=list(everything),
    columns=[str(t) for t in range(1, example.shape[1])],
    value_name="logit of the right token",
    row_name="writer",
    column_name="position",
)
styled(
    figure, title="Who wrote the right answer", x="position of the token", y="writer", height=420
)

# %% [markdown]
# **What you should see.** In the first copy nobody knows anything. In the second copy the strong heads of layer 1 write nearly
# everything. The previous-token head, without which nothing works, writes *none* of it: attribution to the logits does
# not see a head whose work is read by other heads.
#
# **Virtual heads.** If a head of layer 1 attends to a place where a head of layer 0 had written, it moves on what that head
# had moved. Two heads in a row act like one, with a pattern and an OV circuit of their own: a **virtual head**.

# %% [exercise 3.11 difficulty=3 importance=3 minutes=10] Two heads as one
# Return what the chain alone adds to the logits: read $x$ by the first head, move it by its pattern, read the result by the
# second head, move it by the second pattern, unembed. (Norms and biases left out.)


# %% [solution 3.11]
def virtual_logits(
    first: Float[Tensor, "query key"],
    second: Float[Tensor, "query key"],
    x: Float[Tensor, "position d_model"],
    first_OV: Float[Tensor, "d_model d_model"],
    second_OV: Float[Tensor, "d_model d_model"],
    W_U: Float[Tensor, "d_model vocab"],
) -> Float[Tensor, "position vocab"]:
    """The term of the logits that passes through both heads."""
    # BEGIN SOLUTION
    return (second @ first) @ x @ (first_OV @ second_OV) @ W_U
    # END SOLUTION


# %% [check 3.11]
ll.check("3.11", "virtual_logits")

# %%
table = []
for writer in range(4):
    for reader in (1, 3):
        chain = ll.circuits.virtual_head(ll.head(two, 0, writer), ll.head(two, 1, reader))
        moved = chain.pattern(example)[0]
        back = float(torch.stack([moved[t, t - 12] for t in range(14, 25)]).mean())
        table.append((chain.name, back, chain.copying_score))
columns_of = ["virtual head", "attention to the same token before", "copying score"]
pd.DataFrame(table, columns=columns_of).round(2).replace(-0.0, 0.0)

# %% [markdown]
# **What you should see.** The virtual heads that begin with the previous-token head look at the *current token's* previous
# occurrence: one back from the token after it. What they carry is that token, and their copying score is about zero or
# below: the model does not use this path to say it again. Chains of other heads copy more and look elsewhere. Both
# numbers belong together: where a path looks, and what it does with what it finds.
#
# ## Poke at it
#
# The map says which head is an induction head and from which earlier head it reads most, through its keys. Go
# there by a click, point at a token to see where a head looks, and take heads away to see the loss move.
# The cell shows the picture of the map. Write `explorer` alone in a cell to open it here, or
# `explorer.save("attn-2l.html")` for a page that works offline.

# %%
explorer = ll.explore(ll.load("attn-2l"))
Image(explorer.picture())

# %% [markdown]
# ## What we did not show
#
# - That these heads do *only* this. They were tested on random tokens; on text they may do more.
# - That larger models do it like this. The steps are the same to run: `verify_induction` takes any model that has
#   induction heads.
# - That the thresholds behind the verdicts are the right ones. They are conventions, and arguments.
#
# ## Recap
#
# - Repeated random tokens isolate one ability; the in-context gain measures it.
# - A score at one period can be earned by looking a fixed distance back. Mix periods and subtract a control.
# - An induction head reads, through its keys, what a previous-token head wrote.
# - Composition scores mean something only beside what chance gives.
# - Looking suggests, intervening shows. Cut single paths, and cut others for comparison.
#
# **Think about it.** (1) Why can one layer not do this with mixed periods? (2) The two kinds of heads
# of the live model formed together. What would each be good for alone, and what could make one come first in a model that
# reads text? (3) What would a head look like that finds the previous occurrence of the last *two* tokens?
#
# **Further reading**
#
# - Elhage et al. 2021, [A Mathematical Framework for Transformer Circuits](https://transformer-circuits.pub/2021/framework/index.html),
#   sections "Two-Layer Attention-Only Transformers" and "Induction heads".
# - Olsson et al. 2022, [In-context Learning and Induction Heads](https://transformer-circuits.pub/2022/in-context-learning-and-induction-heads/index.html).
# - Wang et al. 2022, *Interpretability in the Wild*, [arXiv 2211.00593](https://arxiv.org/abs/2211.00593), for
#   path patching in a larger model.
# - Mixed periods and the positional control are this package's own; see the docstring of
#   `lens_linear.circuits.induction.scores`.

# %% [instructor]
# **Timing.** 15 minutes to exercise 3.1; 25 for 3.2, the training and the trap; 25 for the composition
# part; 25 for the interventions. In a short session leave out exercise 3.3 and give its score.
#
# **Numbers that vary.** Training is seeded, but bfloat16 sums depend on the processor. Expect an average
# training loss near 1.25 (within 0.1) for the live model and 1.41 (within 0.02) for the trap; prefix
# matching of both induction heads 0.75 (within 0.08); the trap's usual score 0.93 (within 0.05). With other
# seeds the previous-token job is often shared by both heads of layer 0, and then no single head has the
# verdict. Numbers for `attn-2l` are stable to the second decimal.
#
# **If training is too slow in the room**, set `steps=400`: the drop is over before step 300.
