# ---
# lesson: 7
# title: Least squares inside attention; slow and fast memory; capacity
# minutes: 90
# ---

# %% [markdown]
# Attention compares a query with keys and returns a mixture of values. Linear regression compares a new
# input with old inputs and returns a mixture of old answers. In this lesson they turn out to be the same
# computation. Once you have seen that, two questions have exact answers: what does a layer keep in its
# weights, what in its context, and how much can it hold?
#
# **You will learn to**
#
# - build one linear-attention layer whose forward pass *is* ordinary least squares;
# - tell slow memory (weights) from fast memory (context), and measure which one answers;
# - see what a layer pays when its data change, and build layers that do not pay;
# - recognise softmax attention as a memory, and measure how many patterns memories hold.
#
# **You need** matrix products, eigenvalues of a symmetric matrix, and lesson 2 or a rough idea of
# attention. If you have never seen least squares: it is the line (or plane) through points that makes the
# squared errors smallest.
#
# **Conventions.** Rows are data points or tokens. `x` has shape `[n, p]`, labels `y` have shape `[n, m]`.

# %%
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

import lens_linear as ll
from lens_linear.constructions import (
    attention_dial,
    covariance_shift,
    head_dial,
    hopfield_update,
    regression_data,
    swap_memories,
    trained_heads,
)
from lens_linear.plots import colour, styled

torch.set_default_dtype(torch.float64)


# %% [markdown]
# ## Attention without softmax
#
# Give each query $q_i$ a **score** with each key: $s_{ij} = q_i \cdot k_j$. Softmax attention turns the
# scores of a query into weights that are positive and sum to one. *Linear* attention leaves them as they
# are:
#
# $$\text{out}_i = \sum_j (q_i \cdot k_j)\, v_j, \qquad \text{out} = (Q K^\top) V.$$

# %% [exercise 7.1 difficulty=1 importance=4 minutes=5] Linear attention
# Write it. There is no mask: every query sees every key.


# %% [solution 7.1]
def linear_attention(
    q: Float[Tensor, "queries r"], k: Float[Tensor, "keys r"], v: Float[Tensor, "keys m"]
) -> Float[Tensor, "queries m"]:
    """Each query's sum of values, weighted by its dot products with the keys."""
    # BEGIN SOLUTION
    return (q @ k.T) @ v
    # END SOLUTION


# %% [check 7.1]
ll.check("7.1", "linear_attention")

# %% [instructor]
# `q @ (k.T @ v)` is the same and passes. Keep it in mind for exercise 7.5, where that order is the point.

# %% [markdown]
# ## Least squares is a mixture of labels
#
# We are given inputs $X$ and labels $Y$, and look for slopes $\beta$ that make $\|Y - X\beta\|^2$ smallest.
# The answer is $\beta = (X^\top X)^{-1} X^\top Y$. So the prediction for new inputs is
#
# $$\hat Y = \underbrace{X_{\text{new}}\, (X^\top X)^{-1}\, X^\top}_{\text{one number for each (new, old) pair}}\; Y.$$
#
# Read it as attention. The labels are the **values**. The matrix before them holds a **score** for each pair
# of a new and an old input. All that is missing is to write the score as a dot product of a query with a key.
# The inverse in the middle has to be shared between the two. Let $X^\top X = U \Lambda U^\top$ be its
# eigendecomposition: the columns of $U$ are eigenvectors, $\Lambda$ holds the eigenvalues. With
#
# $$L = U \Lambda^{-1/2} \quad\text{we have}\quad L L^\top = (X^\top X)^{-1}.$$

# %% [exercise 7.2 difficulty=3 importance=5 minutes=15] The root of an inverse
# Return a matrix $L$ with $L L^\top = (X^\top X)^{-1}$. You may assume that $X$ has full column rank.


# %% [solution 7.2]
def inverse_root(x: Float[Tensor, "n p"]) -> Float[Tensor, "p p"]:
    """L with L Lᵀ = (XᵀX)⁻¹."""
    # BEGIN SOLUTION
    values, vectors = torch.linalg.eigh(x.T @ x)
    return vectors * values**-0.5
    # END SOLUTION


# %% [check 7.2]
ll.check("7.2", "inverse_root")

# %% [instructor]
# A Cholesky factor of the inverse is another correct answer and passes: `L R` with any rotation `R` gives the
# same scores. That is a good moment to ask what a trained layer can be identified up to.

# %% [markdown]
# ## One layer that is the regression
#
# Use $L$ as the weight matrix of both queries and keys. You have everything you need.

# %% [exercise 7.3 difficulty=2 importance=5 minutes=10] Regression by attention
# Predict the labels of `x_new` with one call of `linear_attention`. Choose queries, keys and values.


# %% [solution 7.3]
def attention_regression(
    x: Float[Tensor, "n p"], y: Float[Tensor, "n m"], x_new: Float[Tensor, "q p"]
) -> Float[Tensor, "q m"]:
    """The least-squares prediction for x_new, as one linear-attention layer."""
    # BEGIN SOLUTION
    root = inverse_root(x)
    return linear_attention(x_new @ root, x @ root, y)
    # END SOLUTION


# %% [check 7.3]
ll.check("7.3", "attention_regression")

# %%
x, y = regression_data(n=60, d=4, outputs=1, noise=0.5, seed=0)
x_new, _ = regression_data(n=5, d=4, seed=1)
slopes = torch.linalg.lstsq(x, y).solution
by_hand = attention_regression(x, y, x_new)
layer = ll.OLSAttention.from_data(x, y)
print(f"attention against torch.linalg.lstsq: {(by_hand - x_new @ slopes).abs().max():.1e}")
print(f"the package's layer against yours:    {(layer.predict(x_new) - by_hand).abs().max():.1e}")
print(layer)

# %% [markdown]
# The package's layer is a real hooked model: you can cache what happens inside, as in any TransformerLens
# model. Below are its scores for a context of twelve points, each point asking about itself. This matrix has a
# name in statistics: the **hat matrix**, because it puts the hat on $y$.

# %%
small = ll.OLSAttention.from_data(x[:12], y[:12])
_, cache = small.run_with_cache(x[:12])
print({name: tuple(value.shape) for name, value in cache.items()})
ll.plots.hat_matrix(small.hat())

# %% [markdown]
# **What you should see.** A symmetric pattern with a strong diagonal. Each row says what the prediction at one
# point is made of. Negative weights are common: a softmax could not produce them. The diagonal is special. It
# says how far a point's prediction follows its *own* label. Statisticians call it the **leverage**.

# %% [markdown]
# A hook can also *change* what passes. Make one label count for nothing, by zeroing its column of the hat matrix
# on the way, and compare with the formula: each prediction must move by that row's weight times its label.

# %%
drop = [("hook_hat", lambda hat, hook: hat.index_fill(1, torch.tensor([3]), 0.0))]
with torch.no_grad():
    without = small.run_with_hooks(x[:12], fwd_hooks=drop)
moved = small(x[:12]).detach() - without
print(
    f"largest gap to weight × label: {(moved - cache['hook_hat'][:, 3:4] * y[3]).abs().max():.1e}"
)

# %% [exercise 7.4 difficulty=2 importance=3 minutes=10] Leverage
# Return the diagonal of the hat matrix $X L L^\top X^\top$, without building the whole matrix.


# %% [solution 7.4]
def leverage(x: Float[Tensor, "n p"]) -> Float[Tensor, "n"]:
    """How far the prediction at each row follows that row's own label; sums to p."""
    # BEGIN SOLUTION
    keys = x @ inverse_root(x)
    return keys.square().sum(dim=1)
    # END SOLUTION


# %% [check 7.4]
ll.check("7.4", "leverage")

# %%
far = torch.cat([x[:11], 6 * x[11:12]])  # move one point far out
pd.DataFrame(
    {
        "before": [leverage(x[:12]).max().item(), leverage(x[:12]).sum().item()],
        "one point far out": [leverage(far).max().item(), leverage(far).sum().item()],
    },
    index=["largest leverage", "sum"],
).round(3)

# %% [markdown]
# **What you should see.** The sum is the number of inputs, always. A point far from the others takes nearly all
# that one point can have: the layer attends to it and repeats its label.
#
# ## Does training find it?
#
# We wrote the weights down. Would gradient descent find them? Train $W_Q$ and $W_K$ from random numbers, on many
# regressions that share the same inputs.

# %% [training]
run = ll.train_ols_attention(form="in-context", d=3, epochs=300, seeds=6)
print(run)
ll.plots.ols_convergence(run, quantity="geometry_error")

# %% [markdown]
# **What you should see.** All random starts arrive. The figure shows the distance between $W_Q W_K^\top$ and
# $(X^\top X)^{-1}$, relative to its size. It falls until only rounding is left. The weights themselves differ
# from start to start: for any invertible $G$, $W_Q G$ and $W_K G^{-\top}$ give the same scores. Their product is what the
# loss can see.
#
# ## Slow memory and fast memory
#
# The layer remembers in two places.
#
# - **Slow memory**: $L$. It stands in the weights. It holds the *geometry* of the inputs, their covariance (not
#   their number: a context of any length is divided by its length). It changes only when somebody trains.
# - **Fast memory**: the context. It holds the labels. It changes with every prompt.
#
# The fast memory can be written as a matrix. Swap the brackets: $(QK^\top)V = Q(K^\top V)$. The matrix
# $M = K^\top V$ has one row for each key dimension, however long the context is. And it can be filled one token
# at a time.

# %% [exercise 7.5 difficulty=2 importance=4 minutes=10] A memory that fills up
# Return the memory after each token: entry $t$ is $\sum_{s \le t} k_s^\top v_s$. (Keys and values are rows, so each term
# is an outer product, of shape `[r, m]`.)


# %% [solution 7.5]
def running_memory(k: Float[Tensor, "n r"], v: Float[Tensor, "n m"]) -> Float[Tensor, "n r m"]:
    """Kᵀ V of the first t + 1 tokens, for every t."""
    # BEGIN SOLUTION
    return torch.einsum("nr,nm->nrm", k, v).cumsum(dim=0)
    # END SOLUTION


# %% [check 7.5]
ll.check("7.5", "running_memory")

# %% [markdown]
# Watch it learn within one context. The slow memory $L$ is fixed beforehand from other data with the same
# covariance. Then tokens arrive one by one; after each, we ask for the labels of new points. ($(X^\top X)^{-1}$ shrinks as
# rows are added. So the slow memory holds the geometry of one average token, and the fast memory is divided by the number
# of tokens so far.)

# %%
base, _ = regression_data(n=4000, d=6, seed=3)
context, labels = regression_data(n=200, d=6, outputs=1, noise=0.3, seed=4)
queries, _ = regression_data(n=50, d=6, seed=5)

n = torch.arange(1, len(context) + 1)
root = inverse_root(base) * len(base) ** 0.5  # geometry of one average token
memory = running_memory(context @ root, labels) / n[:, None, None]
answers = (queries @ root) @ memory
best = [queries @ torch.linalg.lstsq(context[:t], labels[:t]).solution for t in n[5:].tolist()]
target = queries @ torch.linalg.lstsq(context, labels).solution
error = (answers - target).norm(dim=(1, 2)) / target.norm()
best_error = [float((b - target).norm() / target.norm()) for b in best]

# %%
figure = go.Figure()
figure.add_scatter(
    x=n, y=error, name="fixed slow memory, filling fast memory", line_color=colour(0)
)
figure.add_scatter(
    x=n[5:], y=best_error, name="least squares refitted each time", line_color=colour(1)
)
figure.update_yaxes(type="log")
styled(
    figure,
    title="A context that teaches",
    x="tokens in the context",
    y="distance to the final regression (relative)",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** Both errors fall as tokens arrive. The layer with the fixed $L$ needs no inverse
# while it reads, but its error levels off: the covariance in its weights is not exactly the covariance of
# these few tokens. Refitting has no such limit. (Its curve drops out of the figure at the end because the last refit is
# the target.)
#
# Now exchange the memories of two data sets: the weights of one, the context of the other. Whose regression does
# the layer answer with? First with inputs of the same geometry, then with a context that is stretched in one
# direction.

# %%
first = regression_data(n=300, d=4, outputs=1, seed=6)
second_x, second_y = first[0], regression_data(n=300, d=4, outputs=1, seed=7)[1]
stretched = second_x * torch.tensor([4.0, 1.0, 1.0, 0.25])
same = swap_memories(first, (second_x, second_y))
shifted = swap_memories(first, (stretched, second_y))
print("same geometry:   ", same)
print("other geometry:  ", shifted)
ll.plots.memory_swap(shifted)

# %% [markdown]
# **What you should see.** With the same geometry the layer answers with the labels in its context, exactly. The
# weights did not hold any labels. With another geometry (the figure) the diagonal is still exact, but the swapped
# pairs are wrong, and wrong by a lot: the weights hold the geometry of yesterday.
#
# ## When the data change
#
# How fast does it get worse? Stretch the covariance of the context by more and more, measured by its condition
# number as the weights see it, and let several layers compete.
#
# The interesting competitor has *no* geometry in its weights. It computes the inverse while it reads, with layers
# of the form
#
# $$h \;\leftarrow\; \tfrac{3}{2} h - \tfrac{1}{2} (h K^\top) K \qquad\text{for every token } h.$$
#
# That is a residual connection and a linear attention. It is also Newton's method for the inverse root, known as
# the Newton–Schulz iteration. Each singular value $s$ of $K$ becomes $s(3 - s^2)/2$. Start anywhere between zero and one,
# and you end at one. (So the keys are scaled once, before the first layer, to bring all singular values below one.)

# %% [exercise 7.6 difficulty=3 importance=4 minutes=12] A layer that adapts
# Write one such layer. It changes queries and keys alike, both with the keys as they came in.


# %% [solution 7.6]
def newton_schulz_layer(
    q: Float[Tensor, "queries p"], k: Float[Tensor, "keys p"]
) -> tuple[Float[Tensor, "queries p"], Float[Tensor, "keys p"]]:
    """New queries and new keys after h ← 3/2 h - 1/2 (h Kᵀ) K."""
    # BEGIN SOLUTION
    memory = k.T @ k
    return 1.5 * q - 0.5 * q @ memory, 1.5 * k - 0.5 * k @ memory
    # END SOLUTION


# %% [check 7.6]
ll.check("7.6", "newton_schulz_layer")

# %%
q, k = queries, context * torch.tensor([3.0, 1.0, 1.0, 1.0, 0.3, 0.3])
q = q * torch.tensor([3.0, 1.0, 1.0, 1.0, 0.3, 0.3])
wanted = q @ torch.linalg.lstsq(k, labels).solution
size = (k.T @ k).norm().sqrt()  # brings every singular value below one
q, k = q / size, k / size
rows = []
for depth in range(13):
    got = linear_attention(q, k, labels)
    values = torch.linalg.svdvals(k)
    rows.append(
        (
            depth,
            values.min().item(),
            values.max().item(),
            ((got - wanted).norm() / wanted.norm()).item(),
        )
    )
    q, k = newton_schulz_layer(q, k)
pd.DataFrame(rows, columns=["layers", "smallest singular value", "largest", "error"]).round(5)

# %% [markdown]
# **What you should see.** Layer by layer, all singular values of the keys go to one. A small one first grows by
# half in each layer, then snaps to one. When all have arrived, the keys are orthonormal, and the readout is least
# squares, whatever the covariance was.
#
# The package compares the methods over many data sets.

# %%
curve = covariance_shift(conditions=(1, 4, 16, 64, 256), layers=12, seeds=5)
print(curve)
ll.plots.covariance_shift(curve)

# %% [markdown]
# **What you should see.** The layer with fixed weights gets worse and worse as the covariance moves away. One
# gradient step does so too. Newton–Schulz layers keep the error small at any shift, if there are enough of them.
# What do they cost?

# %%
ll.plots.shift_cost(curve)

# %%
cost = curve.cost(tolerance=0.01)
cost[cost.method.str.startswith("Newton")].pivot(
    index="condition", columns="method", values="layers"
)

# %% [markdown]
# **What you should see.** Layers needed to come within one hundredth of least squares. A larger shift costs more of
# them. Starting from the slow memory $L$ saves one layer at most: its guess is a better one, but each layer brings any
# small singular value forward by half, so a head start is soon made up.
#
# ## Memory: how much fits in?
#
# Forget regression. Use attention as a memory: store patterns $\xi_1, \dots, \xi_K$ as keys *and* values, show the
# layer a damaged pattern as the query, and hope that the output is the undamaged one. Our patterns are bits, plus or minus
# one, so we take the sign of each output.
#
# Linear attention is the oldest memory of this kind, the Hopfield network of 1982. It follows the slope of the energy
# $E(s) = -\tfrac12 \sum_\mu (\xi_\mu \cdot s)^2$. Sharper energies give sharper memories:
#
# | energy | attention weights | patterns it holds |
# |---|---|---|
# | quadratic, $o^2$ | the score $o$ | $d / (2 \ln d)$ with every bit right, about $0.14\, d$ if a few may be wrong |
# | polynomial, $o^n$ | $o^{n-1}$ | grows like $d^{\,n-1}$ |
# | exponential, $e^{\beta o}$ | softmax of $\beta o$ | exponential in $d$ |
#
# The last row is softmax attention.

# %% [exercise 7.7 difficulty=2 importance=4 minutes=8] Softmax attention as a memory
# Write one update of the exponential memory: attention of the state over the patterns, with scores multiplied
# by `beta`.


# %% [solution 7.7]
def softmax_memory(
    state: Float[Tensor, "queries d"], patterns: Float[Tensor, "stored d"], beta: float
) -> Float[Tensor, "queries d"]:
    """One update of the state: patterns weighted by softmax(beta · scores)."""
    # BEGIN SOLUTION
    return torch.softmax(beta * (state @ patterns.T), dim=-1) @ patterns
    # END SOLUTION


# %% [check 7.7]
ll.check("7.7", "softmax_memory")

# %%
generator = torch.Generator().manual_seed(0)
d = 64


def recall(count: int, update) -> tuple[float, float]:
    """Shares of patterns that come back bit for bit, and of bits, when a tenth of the bits is flipped."""
    patterns = torch.randint(2, (count, d), generator=generator).double() * 2 - 1
    flips = torch.rand(count, d, generator=generator) < 0.1
    damaged = torch.where(flips, -patterns, patterns)
    back = torch.where(update(damaged, patterns) < 0, -1.0, 1.0)
    right = back == patterns
    return float(right.all(dim=1).double().mean()), float(right.double().mean())


stored = [2, 4, 6, 8, 12, 16, 32, 128, 512]
print(
    f"d = {d}: every bit right up to about {d / 2 / torch.tensor(d).log():.1f}, few bits wrong up to {0.14 * d:.1f}"
)
updates = {
    "linear": lambda s, p: linear_attention(s, p, p),
    "cubic": lambda s, p: hopfield_update(s, p, energy="polynomial-3"),
    "softmax": lambda s, p: softmax_memory(s, p, beta=0.5),
}
found = {name: [recall(count, update) for count in stored] for name, update in updates.items()}
table = pd.DataFrame(
    {
        (what, name): [pair[index] for pair in pairs]
        for index, what in enumerate(("every bit right", "bits right"))
        for name, pairs in found.items()
    },
    index=stored,
)
table.index.name = "patterns stored"
table.round(2)

# %% [markdown]
# **What you should see.** There are two capacities. Bit for bit, the linear memory begins to fail near the first number printed
# above the table. Most of its *bits* are still right then, and stay so past the second number: a few wrong bits in
# each pattern are the price. (Both numbers are laws for large $d$; here they lie close together.) The cubic one lasts longer.
# The softmax memory still brings back nearly everything when many more patterns than dimensions are stored.
#
# How does capacity *grow* with the dimension? The package measures it, with error bars, against the known laws.

# %%
capacity = ll.memory_capacity(
    energies=("quadratic", "polynomial-3", "exponential"),
    dims={
        "quadratic": (64, 128, 256),
        "polynomial-3": (32, 48, 64),
        "exponential": (8, 10, 12, 14),
    },
    seeds=5,
    queries=128,
)
ll.plots.memory_capacity(capacity)

# %%
capacity.slopes().round(2)

# %% [markdown]
# **What you should see.** Left, on logarithmic axes, powers of $d$ are straight lines: slope one for the linear
# memory, two for the cubic one. Right, the exponential memory is a straight line when only capacity is
# logarithmic: each added dimension multiplies what it holds. The table compares the measured slopes with theory;
# at these small sizes expect a difference of a few standard errors.
#
# ## One dial, from regression to retrieval
#
# Linear attention and softmax are two ends of one dial. Take the least-squares scores of a query, $s_j$, and turn up
# $\beta$ in $\sum_j \mathrm{softmax}(\beta s)_j\, y_j$. For small $\beta$ the weights are
# $(1 + \beta(s_j - \bar s))/n$: their mean, plus $\beta$ times least squares. For large $\beta$ one row takes all.

# %%
dial = attention_dial(betas=[10 ** (i / 4) for i in range(-8, 7)], seeds=4)
print(dial)
ll.plots.attention_dial(dial)

# %% [markdown]
# **What you should see.** At the low end softmax *is* least squares, once it is multiplied by $1/\beta$; without that
# gain it looks almost wholly wrong, which is only its size. The sentence above the figure says up to which $\beta$
# that holds. Then fewer and fewer rows weigh in, until one row holds more than half: the readout is the label of the
# nearest row, and the memory that holds many patterns.
#
# ## A trained head
#
# Where do the heads of a *trained* transformer stand? Take `attn-2l` and rows in which 32 random tokens come twice.
# A head's queries, keys and values are hook points, so its memories can be exchanged with `run_with_hooks`. Give the
# induction head the *values of another row*: its fast memory is gone, its geometry stays.

# %%
torch.set_default_dtype(torch.float32)
model = ll.load("attn-2l")
once = torch.randint(model.cfg.d_vocab, (8, 32), generator=torch.Generator().manual_seed(0))
rows = torch.cat([once, once], dim=1)


def loss_with(hooks) -> float:
    """Nats a token on the second copies."""
    with torch.no_grad():
        logits = model.run_with_hooks(rows, fwd_hooks=hooks)
    return float(
        torch.nn.functional.cross_entropy(logits[:, 32:-1].flatten(0, 1), rows[:, 33:].flatten())
    )


def other_values(v, hook):
    """Head 3 reads the values of the row before."""
    v = v.clone()
    v[:, :, 3] = v[:, :, 3].roll(1, dims=0)
    return v


print(f"left alone: {loss_with([]):.2f} nats on the second copy")
print(f"L1H3 with another row's values: {loss_with([('blocks.1.attn.hook_v', other_values)]):.2f}")

# %% [markdown]
# Now all heads at once, against both ends of the dial. Each head's readout is compared with linear attention over
# its own scores (regression) and with the value of its best key alone (retrieval). Then each memory is exchanged:
# the *fast* one (keys and values of another row) and the *slow* one (queries turned by a random rotation).

# %%
heads = trained_heads(model, rows)
print(heads)
ll.plots.trained_heads(heads)

# %%
columns = [
    "head",
    "kind",
    "loss_other_values",
    "loss_turned_geometry",
    "loss_linear",
    "loss_retrieval",
]
heads.to_dataframe()[columns].round(2).replace(-0.0, 0.0)

# %% [markdown]
# **What you should see.** The previous-token head L0H0 and the induction heads L1H1 and L1H3 retrieve: the value of
# one key explains nearly all they read, and putting that value alone in place of the softmax costs almost nothing,
# while linear attention costs much more (column `loss_linear`). L0H1 is the nearest to regression: there it is the other
# way round. Explaining what a head reads is not the same as serving the loss: L0H3 counts as retrieval, yet its best key alone
# costs more than linear attention does. In the heads that matter both memories are needed: without its geometry a head finds nothing, without its context it
# has nothing to find.
#
# Last, turn the dial itself on a trained head: one factor $\beta$ on its own scores, 1 as trained. The dotted line puts
# the inverse covariance of the context's keys in place of the head's own geometry.

# %%
half = torch.randint(model.cfg.d_vocab, (4, 64), generator=torch.Generator().manual_seed(1))
dial = head_dial(model, torch.cat([half, half], dim=1), heads=["L0H1", "L1H3"], losses=True)
ll.plots.head_dial(dial)

# %% [markdown]
# **What you should see.** Dotted: with the geometry of least squares the head's own keys and values *are* regression at
# the left end, as your data were. Solid: with the geometry that the weights hold they never are, at any $\beta$. The
# induction head L1H3 was trained past the point where one key holds half of the weight: turn it up and little is lost,
# turn it down and the loss rises by more than a nat. L0H1 stands between, and loses both ways.
#
# ## Recap
#
# - Least squares is one linear-attention layer. Its scores are the hat matrix.
# - Weights hold geometry (slow); the context holds labels (fast), in a matrix of fixed size.
# - A fixed geometry is wrong when the data move. Newton–Schulz layers recompute it in context, at the price of
#   depth.
# - One dial leads from least squares to retrieval; trained heads stand along it, most at the far end.
# - Linear attention holds $d / (2 \ln d)$ patterns bit for bit, about a seventh of $d$ with a few wrong bits; softmax
#   attention holds exponentially many.
#
# **Think about it.** (1) Why can one layer of softmax attention not be least squares for all data? (2) The fast memory has
# a fixed size. What does that imply for very long contexts? (3) Would the heads stand where they do on other text?
# Try stories (`ll.evaluation_tokens(model)`) in place of the repeated rows.
#
# **Further reading**
#
# - Tan and Zhao 2026, arXiv 2604.13656: the construction of this lesson, slow and fast memory.
# - von Oswald et al. 2023, *Transformers learn in-context by gradient descent*, arXiv 2212.07677.
# - Schlag, Irie and Schmidhuber 2021, *Linear Transformers Are Secretly Fast Weight Programmers*, arXiv 2102.11174.
# - Hopfield 1982, *Neural networks and physical systems with emergent collective computational abilities*, PNAS 79.
# - Krotov and Hopfield 2016, *Dense Associative Memory for Pattern Recognition*, arXiv 1606.01164.
# - Demircigil et al. 2017, *On a model of associative memory with huge storage capacity*, arXiv 1702.01929.
# - Ramsauer et al. 2020, *Hopfield Networks is All You Need*, arXiv 2008.02217.

# %% [instructor]
# **Timing.** 30 minutes to the hat matrix (7.1 to 7.3 are the heart), 10 for leverage, 25 for slow and fast memory,
# 15 for Newton–Schulz, 15 for capacity. For one hour: stop after the swap of memories.
#
# **Numbers that vary.** Everything is seeded and in float64. Differences to `lstsq` lie between 1e-16 and 1e-13. The
# table of recall depends on the seed by about 0.05 at small counts; capacity slopes by about 0.1.
#
# **Common wrong answers.** Softmax or a scale in 7.1; `Λ^{1/2}` or `Λ^{-1}` in 7.2; updating the keys first and then
# using the new keys for the queries in 7.6; forgetting `beta` in 7.7.
