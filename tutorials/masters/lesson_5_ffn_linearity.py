# ---
# lesson: 5
# title: How linear is an FFN?
# minutes: 80
# ---

# %% [markdown]
# About two thirds of the weights in a transformer's blocks stand in its FFNs (feed-forward networks, also called MLPs):
# two matrices with a
# nonlinear function between them. How much of the work needs the nonlinear function? If little, an FFN could be
# replaced by one matrix, with an eighth of the weights.
#
# A paper measured this for GPT-2 and two models of its size: from one layer to the next the answer can jump from
# nearly everything to less than a third. It also found a trap: a linear layer that is *trained* to imitate an FFN can stop
# far short of the best linear layer. You will measure both here.
#
# **You will learn to**
#
# - say why "nonlinear" depends on the input and not on the function alone;
# - fit the best affine layer to an FFN in closed form, full or of low rank;
# - weigh saved parameters against lost nats;
# - test whether what is missed is a few products of two readings;
# - predict how slowly gradient descent finds the best linear layer.
#
# **You need** lesson 4: the held-out score and why it is held out, hooks, and `x @ A + b`. Singular values help.
#
# **Conventions.** As before: one token in each row. $X$ is what enters the FFN (after its norm), $Y$ what the FFN adds to
# the stream. There is no residual in this pair, so the first trap of lesson 4 does not arise.

# %%
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

import lens_linear as ll
from lens_linear.linalg import r_squared, spectrum
from lens_linear.linearity import (
    adam_baseline,
    adam_on_rows,
    bilinear_on_rows,
    ffn_compression,
)
from lens_linear.plots import GREY, colour, styled
from lens_linear.studies import published_beside_measured

_ = torch.set_grad_enabled(False)

model = ll.load("gpt-micro")
tokens = ll.evaluation_tokens(model)
n_layers, d_model, d_mlp = model.cfg.n_layers, model.cfg.d_model, model.cfg.d_mlp
print(f"{n_layers} layers, d_model = {d_model}, d_mlp = {d_mlp}, {tokens.numel():,} tokens")

# %% [markdown]
# ## How linear is a nonlinear function?
#
# The question seems silly until one asks *where*. A ReLU is bent at zero. To an input that is always positive it is the
# identity; to an input that is always negative it is a constant. Only an input that crosses the kink sees something
# nonlinear.
#
# For one number in and one number out, the share of variance that the best affine map explains is the squared
# correlation.

# %% [exercise 5.1 difficulty=2 importance=3 minutes=8] The linearity of a function on an input
# Write the score of a function `f` on samples `x`. Use the samples as they are; nothing is held out here.


# %% [solution 5.1]
def activation_score(f, x: Float[Tensor, "n"]) -> float:
    """R² of the best affine map from x to f(x)."""
    # BEGIN SOLUTION
    y = f(x)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() ** 2 / (x.square().sum() * y.square().sum()))
    # END SOLUTION


# %% [check 5.1]
ll.check("5.1", "activation_score")

# %%
normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).double()
gelu = torch.nn.functional.gelu
means = torch.linspace(-3, 3, 25)
figure = go.Figure()
for index, (name, f) in enumerate({"GELU": gelu, "ReLU": torch.relu}.items()):
    for spread, dash in ((1.0, "solid"), (0.3, "dash")):
        values = [float(activation_score(f, spread * normal + mean)) for mean in means.double()]
        label = f"{name}, input spread {spread:g}"
        line = {"color": colour(index), "dash": dash}
        figure.add_scatter(x=means, y=values, name=label, line=line)
styled(
    figure,
    title="One function, many linearities",
    x="mean of the input",
    y="R² of the best affine map",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** To the right both functions are linear. To the left the ReLU becomes a function that is almost
# always zero with rare exceptions, which no line follows. (The dashed ReLU line begins only
# where some input is positive. Further left the output is constant: there is no variance to explain, and $R^2$ is not
# defined.) The GELU has a second, smooth bend, and a narrow input sees
# only a short piece of it. So whether an FFN is nonlinear is decided by the inputs of its units, and those are learned.
#
# ## The best affine layer
#
# Take what enters and what leaves every FFN.

# %%
captured = {}
for layer in range(n_layers):
    names = {
        "x": f"blocks.{layer}.mlp.hook_in",
        "pre": f"blocks.{layer}.mlp.hook_pre",
        "y": f"blocks.{layer}.hook_mlp_out",
    }
    _, cache = model.run_with_cache(tokens[:100], names_filter=list(names.values()))
    captured[layer] = {key: cache[name].double() for key, name in names.items()}
print({key: tuple(value.shape) for key, value in captured[0].items()})

# %% [exercise 5.2 difficulty=2 importance=5 minutes=12] Fit it in closed form
# Return weight and bias of the affine map with the smallest sum of squared errors. Inputs may have columns that are
# copies of each other, and columns a thousand times as large as others. So take a solver that copes with that.


# %% [solution 5.2]
def fit_affine(
    x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]
) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, "d_out"]]:
    """Weight and bias of the least-squares map y ≈ x @ weight + bias."""
    # BEGIN SOLUTION
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    weight = torch.linalg.pinv(x - mean_x) @ (y - mean_y)
    return weight, mean_y - mean_x @ weight
    # END SOLUTION


# %% [check 5.2]
ll.check("5.2", "fit_affine")

# %% [instructor]
# `torch.linalg.lstsq` with its default driver on CPU needs full rank: with equal columns it answers now right, now wrong,
# from one call to the next, so the check asks several times. `driver="gelsd"` passes. Inverting XᵀX fails it too. Adding
# a column of ones and using `pinv` passes.

# %% [markdown]
# Fit on the first half of the sequences, score on the second. The function `r_squared` of the package is the held-out
# score of lesson 4; `mean` is the training mean. Beside it: how linear a single hidden unit is, on average, by your
# first function.

# %%
half = 50
own, units, whole_units = [], [], []
for parts in captured.values():
    x, y = parts["x"], parts["y"]
    x_fit, y_fit = x[:half].flatten(0, 1), y[:half].flatten(0, 1)
    weight, bias = fit_affine(x_fit, y_fit)
    guess = x[half:].flatten(0, 1) @ weight + bias
    own.append(r_squared(y[half:].flatten(0, 1), guess, mean=y_fit.mean(0)))
    pre = parts["pre"].flatten(0, 1)[:, ::8]  # every eighth hidden unit
    units.append(float(sum(activation_score(gelu, unit) for unit in pre.T)) / pre.shape[1])
    # The same units once more, from everything that enters the FFN, held out as the FFN is.
    hidden = gelu(parts["pre"][..., ::8])
    h_fit, h_test = hidden[:half].flatten(0, 1), hidden[half:].flatten(0, 1)
    weight, bias = fit_affine(x_fit, h_fit)
    guess = x[half:].flatten(0, 1) @ weight + bias
    each = 1 - (h_test - guess).square().sum(0) / (h_test - h_fit.mean(0)).square().sum(0)
    whole_units.append(float(each.mean()))

profile = ll.linearity_profile(model, tokens, sites=("block", "ffn"))
table = pd.DataFrame({"R² (yours)": own, "R² (package, more text)": profile["ffn_r2"]})
table["one unit, its own input"] = units
table[f"one unit, all {d_model} inputs"] = whole_units
table.rename_axis("layer").round(3)

# %%
figure = go.Figure()
score, (low, high) = profile.scores["ffn"], profile.intervals["ffn"].T
figure.add_bar(
    x=list(range(n_layers)),
    y=score.tolist(),
    marker_color=colour(2),
    error_y={"array": (high - score).tolist(), "arrayminus": (score - low).tolist()},
    name="FFN",
)
figure.add_scatter(
    x=list(range(n_layers)), y=units, name="one unit, its own input", line_color=GREY
)
figure.add_scatter(
    x=list(range(n_layers)), y=whole_units, name="one unit, all inputs", line_color=colour(0)
)
styled(
    figure,
    title="How linear each FFN of gpt-micro is",
    subtitle=f"held-out R², n = {profile.n_tokens:,} tokens, 95 % intervals",
    x="layer",
    y="R²",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** Layer 0 is by far the most linear, its neighbour is the least linear of all, and from there it
# rises to
# the last layer. So neighbours can be far apart and the profile is not monotone: that was published for models about
# a hundred times as large, and it is shown here. (The very highest published scores are not.)
#
# Compare like with like. The FFN's score may use all of its inputs; the score of a unit on *its own* input, one number,
# is far lower, but it may use one number only. Given all inputs (the last column), a unit's output can be
# predicted better than from its own, because inputs go together. What is still missing to the FFN's score
# is what the sum does: bends of many units partly cancel. All curves have the same shape: units in layer 0 rarely cross
# their bend.
#
# ## Fewer parameters
#
# What would a replacement save? An FFN has two matrices, `[d_model, d_mlp]` and `[d_mlp, d_model]`, and two biases. An
# affine layer has one matrix and one bias. A layer of **rank** $r$ is the product of a `[d_model, r]` and an
# `[r, d_model]` matrix, and a bias. (So rank `d_model / 2` saves nothing over the full matrix: two thin factors of that rank
# hold as many numbers.)

# %% [exercise 5.3 difficulty=1 importance=3 minutes=5] How many times fewer?
# Parameters of the FFN over parameters of the map. `rank=None` is the full affine layer.


# %% [solution 5.3]
def times_fewer(d_model: int, d_mlp: int, rank: int | None) -> float:
    """How many times fewer parameters the affine map has than the FFN, biases counted."""
    # BEGIN SOLUTION
    before = 2 * d_model * d_mlp + d_mlp + d_model
    weights = d_model**2 if rank is None else 2 * d_model * rank
    return before / (weights + d_model)
    # END SOLUTION


# %% [check 5.3]
ll.check("5.3", "times_fewer")

# %% [markdown]
# Which map of rank $r$ is best? Cutting the weight's own singular values is a common mistake. It protects directions of
# the input in which hardly anything ever happens. What counts is the **output**: among all maps of rank $r$, the best
# one keeps the $r$ directions in which the fitted output $(X - \bar x)\,W$ varies most. With $V$ those directions as
# columns, it is $W V V^\top$. (This is called reduced-rank regression.)

# %% [exercise 5.4 difficulty=4 importance=3 minutes=15] The best map of low rank
# Given the inputs and the full least-squares weight, return the best weight of rank at most `rank`.


# %% [solution 5.4]
def low_rank_map(
    x: Float[Tensor, "n d_in"], weight: Float[Tensor, "d_in d_out"], rank: int
) -> Float[Tensor, "d_in d_out"]:
    """The weight of at most that rank whose outputs on x are closest to those of the full weight."""
    # BEGIN SOLUTION
    output = (x - x.mean(dim=0)) @ weight
    V = torch.linalg.svd(output, full_matrices=False).Vh[:rank].T
    return weight @ V @ V.T
    # END SOLUTION


# %% [check 5.4]
ll.check("5.4", "low_rank_map")

# %%
rows = []
x, y = captured[0]["x"].flatten(0, 1), captured[0]["y"].flatten(0, 1)
weight, bias = fit_affine(x, y)
U, S, Vh = torch.linalg.svd(weight)
for rank in (1, 4, 16, 64):
    best, cut = low_rank_map(x, weight, rank), (U[:, :rank] * S[:rank]) @ Vh[:rank]
    scores = [r_squared(y, y.mean(0) + (x - x.mean(0)) @ w, mean=y.mean(0)) for w in (best, cut)]
    fewer = times_fewer(d_model, d_mlp, rank)
    rows.append({"rank": rank, "times fewer": fewer, "best": scores[0], "weight cut": scores[1]})
print(
    f"full affine layer: {times_fewer(d_model, d_mlp, None):.3f} times fewer; layer 0, R² in sample:"
)
pd.DataFrame(rows).round(3)

# %% [markdown]
# **What you should see.** At every rank your map is at least as good as the weight cut by its own singular values, and at
# small ranks clearly better. The last row, half the width, is as large as the full affine layer: a rank pays only below it.
#
# ## What does it cost in nats?
#
# `ll.linearize(..., site="ffn")` puts the maps into the running model. It fits on the tokens that you give it, so judge
# on others.

# %%
fit_on, judge_on = tokens[:100], tokens[100:132]
whole = float(model(judge_on, return_type="loss"))
for layers in ([0], [1], [0, 1], list(range(n_layers))):
    with ll.linearize(model, fit_on, layers=layers, site="ffn") as fitted:
        loss = float(model(judge_on, return_type="loss"))
    share = fitted.parameters_replaced / fitted.parameters_before
    print(
        f"FFN {layers}: loss {loss:.3f} (+{loss - whole:.3f} nats), {share:.0%} of weights replaced"
    )

# %%
compressed = ffn_compression(model, tokens[:96], ranks=(None, 32, 8))
print(compressed)
columns = ["layer", "rank", "ffn_r2", "times_fewer", "loss_increase", "perplexity_increase"]
compressed.to_dataframe()[columns].round(3)

# %%
ll.plots.ffn_compression(compressed)

# %% [markdown]
# **What you should see.** Look at layer 0 first. It has by far the highest R² and is by far the *dearest* FFN to replace;
# at low rank it is ruinous. Layers 1 and 2, where the affine fit catches only a quarter of the variance, cost little, at
# full rank and at rank 8. R² is about the size of vectors. The loss asks what the rest of the model does with them: the
# FFN of layer 0 writes a large part of what all later layers read, so its small relative error is a large one for them.
#
# The paper found that an early FFN of GPT-2 can be replaced cheaply. In our model the first FFN cannot: **not shown**
# here for layer 0; for the FFNs after it a cheap replacement is shown.
#
# ## What does the affine fit miss?
#
# The simplest thing beyond linear is a **product of two readings**: $(a \cdot x)(b \cdot x)$, a number that is large when
# two features are present *together*, written in a direction $c$. Gated FFNs are made of such products. Perhaps what is
# missed, $r$, is a few of them:
#
# $$r \approx \sum_{k} (a_k \cdot x)(b_k \cdot x)\; c_k$$

# %% [exercise 5.5 difficulty=2 importance=3 minutes=8] A sum of products
# Compute the right-hand side for all rows of $x$.


# %% [solution 5.5]
def bilinear(
    x: Float[Tensor, "n d_in"],
    a: Float[Tensor, "k d_in"],
    b: Float[Tensor, "k d_in"],
    c: Float[Tensor, "k d_out"],
) -> Float[Tensor, "n d_out"]:
    """Sum over k of (a_k · x) (b_k · x) c_k, for every row."""
    # BEGIN SOLUTION
    return ((x @ a.T) * (x @ b.T)) @ c
    # END SOLUTION


# %% [check 5.5]
ll.check("5.5", "bilinear")

# %% [markdown]
# First a planted truth. The package searches $a$, $b$ and $c$ on one half of the rows and scores on the other. Does it
# find three products that we hid in a linear map?

# %%
generator = torch.Generator().manual_seed(1)
x = torch.randn(4000, 12, generator=generator).double()
a, b, c = torch.randn(3, 3, 12, generator=generator).double()
y = x @ torch.randn(12, 12, generator=generator).double() + 0.5 * bilinear(x, a, b, c)
hidden = bilinear_on_rows(
    x[:2000], y[:2000], x[2000:], y[2000:], rank=(1, 2, 3, 4), where="planted"
)
hidden.to_dataframe()[["rank", "r2", "gain", "share_of_residual"]].round(3)

# %% [markdown]
# **What you should see.** Each product that it adds explains a part of what was missed; with three, everything is
# explained; the fourth finds nothing.
#
# Now the real FFNs: the most linear one and the least linear one.

# %%
order = profile.ranking("ffn")
probes = {}
for layer in (order[0], order[-1]):
    probes[f"layer {layer}"] = ll.bilinear_probe(
        model, tokens[:100], layer, rank=(1, 2, 4), iterations=25, max_rows=4000
    )
for probe in probes.values():
    print(probe)

# %%
ll.plots.bilinear_gain(probes)

# %% [markdown]
# **What you should see.** In training (dotted) every product gains a little. Held out (solid) four products gain next to
# nothing at layer 0, and at the least linear layer a small part of what the affine map missed. So what is missed is not
# a few products; it is spread over many directions. Where the dotted line rises and the solid one does not, the probe
# has learnt accidents.
#
# ## The trap: a linear layer that was trained
#
# Many papers measure linearity by *training* a linear layer to imitate the block, and reporting how well it does. The
# answer then depends on how far the training got. How far does it get?
#
# Gradient descent on a least-squares problem can be solved by hand. The error along an eigenvector of the inputs'
# covariance with eigenvalue $\lambda$ shrinks by $1 - \eta \lambda$ in each step of size $\eta$. A step of
# $\eta = 1 / \lambda_{\max}$ settles the direction of the largest eigenvalue at once. (Beyond twice that step, it diverges.)

# %% [exercise 5.6 difficulty=3 importance=4 minutes=10] What is left after so many steps?
# For each eigenvalue give the share of the error that is left after `steps` steps of size $1/\lambda_{\max}$.


# %% [solution 5.6]
def error_left(eigenvalues: Float[Tensor, "d"], steps: int) -> Float[Tensor, "d"]:
    """Share of the error along each eigenvector that gradient descent has not yet removed."""
    # BEGIN SOLUTION
    return (1 - eigenvalues / eigenvalues.max()) ** steps
    # END SOLUTION


# %% [check 5.6]
ll.check("5.6", "error_left")

# %%
x = captured[0]["x"].flatten(0, 1)
lifted = x.clone()
lifted[:, :2] *= 100  # two outlier dimensions, as large models have them
turn, _ = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator).double())
lifted = lifted @ turn  # and they do not lie along the axes
figure = go.Figure()
for index, (name, rows_) in enumerate({"gpt-micro": x, "with two outliers": lifted}.items()):
    values = spectrum(rows_).values ** 2
    values = values[values > 1e-9 * values[0]]  # the norm takes one direction away altogether
    print(f"{name}: largest eigenvalue {values[0] / values[-1]:,.0f} times the smallest")
    for steps, dash in ((100, "solid"), (10_000, "dash")):
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=error_left(values, steps),
            name=f"{name}, {steps:,} steps",
            line={"color": colour(index), "dash": dash},
        )
styled(
    figure,
    title="What gradient descent has not yet learnt of layer 0",
    x="direction of the input, by falling variance",
    y="share of the error left",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** The inputs of our own model are well conditioned: the norm in front of the FFN takes care of
# that, and a hundred steps learn nearly every direction. Outliers as in large models are **not shown** here. But two
# of them, put in by hand, make *every other* direction slow: all others are small beside them.
#
# Adam, which everybody uses, rescales the step of every weight and so does better than this. Does it arrive? Below it
# trains an affine layer on the FFN of layer 0: on the inputs as they are, and on inputs whose columns were all scaled to
# the same size. The dashed line is the closed form on the same rows.

# %%
baseline = adam_baseline(model, tokens[:100], 0, steps=512, max_rows=6000)
print(baseline)
ll.plots.adam_convergence(baseline)

# %%
y = captured[0]["y"].flatten(0, 1)
middle = len(lifted) // 2
outliers = adam_on_rows(
    lifted[:middle],
    y[:middle],
    lifted[middle:],
    y[middle:],
    steps=512,
    where="layer 0 with two outlier directions",
)
print(outliers)
ll.plots.adam_convergence(outliers)

# %% [markdown]
# **What you should see.** On the model's own inputs, as they are, Adam comes near the closed form and still ends below it;
# on standardised columns it is slower. With the two outlier directions it ends far below, and on standardised columns even
# further: scaling columns helps only when the
# outliers lie along them. Someone who stopped here would report a much less linear FFN. The FFN is the same, and the
# closed form says so in both figures. More steps would close the gap in the end; without the dashed line nobody
# knows when.
#
# ## Published beside measured

# %%
measured = {"gpt-micro": profile}
published = published_beside_measured(measured).to_dataframe()
ours = published_beside_measured({"gpt-micro": compressed}).to_dataframe()
both = pd.concat([published[published.quantity.str.startswith("FFN")], ours.tail(1)])
both.drop(columns="conditions").reset_index(drop=True)

# %% [markdown]
# **What you should see.** The published models were not run here, and the table says so. Our own rows have no published
# partner: they are about another, far smaller model and another text.
#
# ## Recap
#
# - Nonlinear is a function *on an input*. A unit that never crosses its bend is linear.
# - The best affine layer comes in closed form: no steps, no learning rate. Score it held out.
# - The best layer of low rank keeps directions of the *output*.
# - R² and nats are two questions. A high R² can go with a high cost, and the other way round.
# - On the rows it was fitted to, a trained linear layer can at best reach the closed form. On ill-conditioned inputs it can
#   stop far below.
#
# **Think about it.** (1) The FFN of layer 0 mostly sees embeddings of single tokens. How would you replace it by a table,
# and how large would that be? (2) Why does scaling all columns to the same size not cure ill-conditioning in general?
# (3) A probe with many products found no gain on held-out rows but a large one in training. What would you try?
#
# **Further reading**
#
# - Whipp 2026, [arXiv 2606.19379](https://arxiv.org/abs/2606.19379): R² of FFN blocks, the residual probe, the trained baseline.
# - Elhage et al. 2022, [Softmax Linear Units](https://transformer-circuits.pub/2022/solu/index.html): what FFN units do.
# - Izenman 1975, *Reduced-rank regression for the multivariate linear model*, Journal of Multivariate Analysis 5.
# - Dettmers et al. 2022, [LLM.int8()](https://arxiv.org/abs/2208.07339): outlier dimensions in large models.

# %% [instructor]
# **Timing.** 15 minutes for the first figure; 20 for the fit; 20 for compression; 10 for the probe; 15 for Adam.
#
# **Numbers that vary.** The closed forms agree to three decimals between machines. The probe is a search: its gains may
# differ in the second decimal. Adam is seeded; expect agreement to two decimals.
#
# **If time is short**, leave out 5.4 and the probe.
