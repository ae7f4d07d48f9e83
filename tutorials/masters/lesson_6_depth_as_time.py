# ---
# lesson: 6
# title: Depth as time: sensitivity and steering
# minutes: 90
# ---

# %% [markdown]
# A transformer applies block after block to the residual stream. Read the layers as moments in time, and the stream as
# the state of a system that moves: push it a little at one moment, and ask what comes out at the end. That is the
# language of control theory, and it answers practical questions. Where does a push count most? How small a model of the
# model predicts that? What is the cheapest way to steer?
#
# **You will learn to**
#
# - find the direction of a concept at every layer, and say honestly how well it separates texts;
# - measure how far a push at each layer moves the output, in two ways;
# - get all layers' answers from one backward sweep;
# - replace a hundred dimensions by a handful, and say what limits that;
# - spread a push over the layers with the least energy, and check the promise on the real model;
# - see what steering does to the text, and what it costs.
#
# **You need** lesson 4 (residual stream, hooks), matrix products, and what a derivative is.
#
# **Conventions.** In this lesson the state is a *column*, as in the paper: $x_{l+1} = f_l(x_l)$, with $f_l$ the block $l$,
# and $A_l$ the matrix of its derivatives (the Jacobian), so that a small push $\delta$ becomes $A_l\,\delta$. $x_l$ is the
# stream of the **last token** of a prompt at the input of block $l$; $x_L$ is what the last block leaves. Everything before
# the last token stays as it is; in a causal model it cannot do otherwise.

# %%
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

import lens_linear as ll
from lens_linear.dynamics import (
    block_jacobians,
    last_states,
    steer_concepts,
    steer_text,
    steering_cost,
    step_size_table,
)
from lens_linear.models import vocabulary as read_vocabulary
from lens_linear.plots import GREY, colour, styled

_ = torch.set_grad_enabled(False)

model = ll.load("gpt-mini")
n_layers, d_model = model.cfg.n_layers, model.cfg.d_model
print(f"gpt-mini: {n_layers} blocks of width {d_model}")

# %% [markdown]
# ## A concept and its direction
#
# A concept is a set of texts of two classes. We make one that a small model must know in order to write English: is the
# person a *he* or a *she*? All texts end with the same word, so that the last token itself gives nothing away. Class 1
# is *she*.

# %%
boys = "Peter Jack Tom John Dick Harry George Robert Charles William".split()
girls = "Alice Mary Jane Anne Polly Dorothy Betty Susan Helen Margaret".split()
clauses = [
    "{} was very tired, because",
    "{} ran down to the river, because",
    "{} looked up at the sky, because",
    "{} came home late in the evening, because",
    "{} sat by the fire, because",
    "{} went back to the old house, because",
    "{} did not go to the sea, because",
    "{} hid in the garden, because",
    "{} opened the little door, because",
    "{} laughed, because",
    "{} said nothing about the letter, because",
    "{} cried all night, because",
]
texts = [clause.format(name) for clause in clauses for name in boys + girls]
labels = [int(name in girls) for clause in clauses for name in boys + girls]
she = ll.Concept("she", texts, labels, source="made in this lesson")
parts = she.split(120, 60, 60, seed=0)
for name, part in zip(("direction", "operating", "evaluation"), parts, strict=True):
    print(f"{name:10} {len(part)} texts, for example {part.texts[0]!r}")

# %% [markdown]
# Three parts that share no text: one to find the direction, one to build the surrogate on, one to score on.
#
# The simplest direction points from the mean state of class 0 to the mean state of class 1, at each layer boundary:
# $v_l \propto \mu_l^{(1)} - \mu_l^{(0)}$, scaled to length 1.

# %% [exercise 6.1 difficulty=1 importance=4 minutes=6] Directions
# Write it for all boundaries at once.


# %% [solution 6.1]
def mean_difference(
    states: Float[Tensor, "boundary text d_model"], labels: Int[Tensor, "text"]
) -> Float[Tensor, "boundary d_model"]:
    """Unit rows that point from the mean of class 0 to the mean of class 1."""
    # BEGIN SOLUTION
    rows = states[:, labels == 1].mean(dim=1) - states[:, labels == 0].mean(dim=1)
    return rows / rows.norm(dim=1, keepdim=True)
    # END SOLUTION


# %% [check 6.1]
ll.check("6.1", "mean_difference")

# %%
states = last_states(model, parts.concept.texts)
directions = mean_difference(states, torch.tensor(parts.concept.labels))
package = ll.concept_directions(model, parts.concept)
print(tuple(directions.shape), "[boundary, d_model]")
print(f"largest difference from the package: {(directions - package.directions).abs().max():.1e}")

# %% [markdown]
# Is it any good? Two class means differ in *every* data set, also when the classes mean nothing. So project **new** texts
# on the direction and ask: if I draw one text of each class, how often does the one of class 1 score higher? That is the
# AUC: one half is chance, one is perfect.

# %% [exercise 6.2 difficulty=2 importance=4 minutes=8] AUC
# Share of the pairs (one text of class 1, one of class 0) in which the text of class 1 scores higher. A pair with equal
# scores counts one half.


# %% [solution 6.2]
def auc(scores: Float[Tensor, "text"], labels: Int[Tensor, "text"]) -> float:
    """Chance that a text of class 1 scores higher than one of class 0."""
    # BEGIN SOLUTION
    ones, zeros = scores[labels == 1][:, None], scores[labels == 0][None, :]
    return float((ones > zeros).double().mean() + (ones == zeros).double().mean() / 2)
    # END SOLUTION


# %% [check 6.2]
ll.check("6.2", "auc")

# %% [markdown]
# Beside it we put a second concept that comes with the package: the **mood** of a sentence, happy or sad. And as a
# control, *she* with its labels shuffled, twenty times: one shuffle could be high or low by luck.


# %%
def separation(states, labels, new, truth) -> list[float]:
    """AUC at each boundary of directions from one set of states on another set."""
    rows = mean_difference(states, labels)
    return [float(auc(new[l] @ rows[l], truth)) for l in range(n_layers + 1)]


def read(concept: ll.Concept) -> tuple[Tensor, Tensor]:
    """States of the last tokens of a concept's texts, and its labels."""
    return last_states(model, concept.texts), torch.tensor(concept.labels)


mood = ll.load_concept("mood").split(400, 100, 300, seed=0)
print("mood, for example:", mood.concept.texts[0], "|", mood.concept.labels[0])

figure = go.Figure()
boundaries = list(range(n_layers + 1))
she = (*read(parts.concept), *read(parts.evaluation))
pairs = {"she": she, "mood": (*read(mood.concept), *read(mood.evaluation))}
for index, (name, both) in enumerate(pairs.items()):
    figure.add_scatter(x=boundaries, y=separation(*both), name=name, line_color=colour(index))
states, labels, new, truth = she
generator = torch.Generator().manual_seed(1)
shuffles = torch.tensor(
    [
        separation(states, labels[torch.randperm(len(labels), generator=generator)], new, truth)
        for _ in range(20)
    ]
)
for values, name in ((shuffles.amax(0), "highest"), (shuffles.amin(0), "lowest")):
    figure.add_scatter(
        x=boundaries,
        y=values.tolist(),
        name=f"she, {name} of 20 shuffles of the labels",
        line={"color": colour(2), "dash": "dash"},
    )
figure.add_hline(y=0.5, line={"color": GREY, "dash": "dot"}, annotation_text="chance")
styled(
    figure,
    title="How well the directions separate new texts",
    x="layer boundary (0 = embedding)",
    y="AUC",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** *She* is faint at first and becomes clear only in the last third of the model: before that, the
# last token mostly knows which word it is. The mood is told apart a little better
# than by chance and no more: at the full stop of a sentence a model of this size keeps little of it. A mood direction
# that separates well is **not shown** here. Shuffled labels wander around one half, and by more than one would like:
# with only sixty texts to score, an AUC between the two dashed lines means nothing.
#
# ## Gains: where does a push count?
#
# Add $\varepsilon v_k$ to the state at the input of block $k$ and let the model run on. Read the result off along the last
# direction, $y = v_L \cdot x_L$. The **gain** of layer $k$ is the change of $y$ for each unit pushed:
#
# $$g_k \approx \frac{y(+\varepsilon v_k) - y(-\varepsilon v_k)}{2 \varepsilon}$$

# %% [exercise 6.3 difficulty=2 importance=4 minutes=6] A central difference
# Write it for any function `f` that turns a state into a number.


# %% [solution 6.3]
def central_difference(f, x: Float[Tensor, "d"], v: Float[Tensor, "d"], eps: float) -> float:
    """Change of f for each unit of v, from one step forward and one back."""
    # BEGIN SOLUTION
    return float((f(x + eps * v) - f(x - eps * v)) / (2 * eps))
    # END SOLUTION


# %% [check 6.3]
ll.check("6.3", "central_difference")

# %% [markdown]
# For our $f$, the rest of the model from block $k$ on, we use a hook at `hook_resid_pre`:

# %%
prompt = ll.tokenize_prompts(model, [parts.evaluation.texts[0]])[0][None]
readout = directions[-1].float()
final = f"blocks.{n_layers - 1}.hook_resid_post"


def readout_from(layer: int):
    """The function: last token's state at the input of a block -> y."""

    def f(state):
        def put(value, hook):
            value = value.clone()
            value[:, -1] = state
            return value

        seen = {}

        def keep(value, hook):
            seen["x"] = value[0, -1]

        hooks = [(f"blocks.{layer}.hook_resid_pre", put), (final, keep)]
        model.run_with_hooks(prompt, fwd_hooks=hooks)
        return seen["x"] @ readout

    return f


here = last_states(model, parts.evaluation.texts[:1])[:, 0].float()
yours = [
    float(central_difference(readout_from(k), here[k], directions[k].float(), 0.1))
    for k in range(n_layers)
]
exact = ll.gain_profile(model, parts.evaluation.texts, directions)
print(exact)
table = {"yours, eps = 0.1": yours, "package, derivatives": exact.gains[0].tolist()}
pd.DataFrame(table).rename_axis("layer").round(3)

# %% [markdown]
# **What you should see.** Your differences and the package's derivatives agree at every layer. Your way takes two runs of
# the model for each layer and prompt. The package's way took one run forward and one backward for all layers.
#
# A finite step also sees the curvature. How small must it be?

# %%
steps = step_size_table(model, parts.evaluation.texts[:20], directions, steps=(3.0, 1.0, 0.1))
steps.to_dataframe().round(4)

# %%
frame = exact.to_dataframe()
figure = go.Figure()
figure.add_scatter(
    x=frame.index,
    y=frame["mean"],
    error_y={"type": "data", "array": frame["sd"]},
    name="derivatives, mean and spread over prompts",
    line_color=colour(0),
)
for index, profile in enumerate(steps.profiles[:2], start=1):
    figure.add_scatter(
        x=frame.index,
        y=profile.mean,
        name=f"differences, eps = {profile.eps:g} (20 prompts)",
        line={"color": colour(index), "dash": "dash"},
    )
figure.add_hline(y=1, line={"color": GREY, "dash": "dot"})
styled(
    figure,
    title="Gain of each layer for 'she'",
    x="layer at whose input the push is added",
    y="gain (units of y for each unit)",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** From layer 1 on the gains hardly differ between prompts, and even a large step gives the same:
# along these directions the rest of the model is nearly straight. The gain is small from layer 1 to layer 5 and about one from
# layer 6 on, where the AUC jumped: pushes along the early, faint directions mostly come to nothing.
#
# Layer 0 is another matter. Its spread over prompts is larger than its mean, and the steps disagree. The state there is
# short, so that a step of one is a large one. And as all texts end with the same word, the embeddings of the last
# tokens differ by their position alone: this direction knows how long the text is, and nothing else.
#
# ## One sweep backward
#
# Why is one backward run enough? To first order a push at layer $k$ arrives as
# $A_{L-1} \cdots A_{k+1} A_k\, v_k$, and we read off its product with $C = v_L$:
#
# $$g_k = \underbrace{C\, A_{L-1} \cdots A_k}_{\text{a row}}\; v_k$$
#
# The row for layer $k$ is the row for layer $k+1$ times $A_k$. So carry the **row** from the end to the start, and pick
# up every gain on the way.

# %% [exercise 6.4 difficulty=3 importance=5 minutes=12] All gains from one sweep
# Return $g_0, \dots, g_{L-1}$. (`v` has one row more than there are layers: $v_L$ is never pushed.)


# %% [solution 6.4]
def adjoint_gains(
    A: Float[Tensor, "layer d d"], v: Float[Tensor, "boundary d"], C: Float[Tensor, "d"]
) -> Float[Tensor, "layer"]:
    """Gains C A_{L-1} ... A_k v_k of all layers, by one sweep from the last layer to the first."""
    # BEGIN SOLUTION
    row, gains = C, []
    for k in reversed(range(len(A))):
        row = row @ A[k]
        gains.append(row @ v[k])
    return torch.stack(gains[::-1])
    # END SOLUTION


# %% [check 6.4]
ll.check("6.4", "adjoint_gains")

# %% [markdown]
# `block_jacobians` gives products with the Jacobians of a real model. Pushing all unit vectors through gives the matrices
# themselves: for one prompt, and averaged over twenty operating prompts.

# %%
units = torch.eye(d_model, dtype=torch.float64).expand(n_layers, d_model, d_model)
A_one = block_jacobians(model, parts.evaluation.texts[:1]).mean_push(units).mT
A_mean = block_jacobians(model, parts.operating.texts[:20]).mean_push(units).mT
one = adjoint_gains(A_one, directions, directions[-1])
print("one prompt, your sweep:", [round(g, 3) for g in one.tolist()])
print("the package:           ", [round(g, 3) for g in exact.gains[0].tolist()])
difference = (A_one - A_mean).flatten(1).norm(dim=1) / A_one.flatten(1).norm(dim=1)
print("relative distance of one prompt's Jacobian from the mean, by layer:")
print([round(value, 2) for value in difference.tolist()])

# %% [markdown]
# **What you should see.** The sweep gives the package's numbers. The last list will matter soon: the Jacobian of one
# prompt is not the mean over prompts, least of all at layer 0.
#
# ## A small model of the model
#
# Do we need all dimensions of the state to predict the gains? Choose at each boundary $l$ a few orthonormal columns
# $P_l$, keep only the coordinates $r_l = P_l^\top x_l$, and write the dynamics in them:
#
# $$r_{l+1} = \bar A_l\, r_l + \bar B_l\, u_l, \qquad \bar A_l = P_{l+1}^\top A_l P_l, \qquad \bar B_l = P_{l+1}^\top A_l v_l$$
#
# with $u_l$ the size of the push at layer $l$. This is a **surrogate** of order $r$, the number of columns. Which columns?
# The paper's choice: keep what earlier pushes have become. If $P_l$ holds what was pushed so far, then after block $l$ it
# is $A_l P_l$, and the next push may come along $v_{l+1}$.

# %% [exercise 6.5 difficulty=3 importance=3 minutes=10] The next basis
# Return orthonormal columns that span $v_{l+1}$ and $A_l P_l$, with $v_{l+1}$ (scaled to length 1, either sign) first.


# %% [solution 6.5]
def next_basis(
    A: Float[Tensor, "d d"], P: Float[Tensor, "d k"], v: Float[Tensor, "d"]
) -> Float[Tensor, "d k+1"]:
    """Orthonormal basis of the next direction and of what the block makes of the old basis."""
    # BEGIN SOLUTION
    return torch.linalg.qr(torch.cat([v[:, None], A @ P], dim=1)).Q
    # END SOLUTION


# %% [check 6.5]
ll.check("6.5", "next_basis")

# %% [exercise 6.6 difficulty=4 importance=4 minutes=15] Gains of the surrogate
# The predicted gain of layer $k$ is $\bar C \bar A_{L-1} \cdots \bar A_{k+1} \bar B_k$, with $\bar C = C P_L$. Note that
# $v_k$ enters block $k$ in full; what is reduced is what comes out. `P` is a list of $L + 1$ matrices, because the bases may
# have different numbers of columns.


# %% [solution 6.6]
def reduced_gains(
    A: Float[Tensor, "layer d d"],
    v: Float[Tensor, "boundary d"],
    C: Float[Tensor, "d"],
    P: list[Float[Tensor, "d r"]],
) -> Float[Tensor, "layer"]:
    """Gains that the system in the coordinates P_l predicts, one for each layer."""
    # BEGIN SOLUTION
    row, gains = C @ P[len(A)], []
    for k in reversed(range(len(A))):
        seen = row @ P[k + 1].T @ A[k]
        gains.append(seen @ v[k])
        row = seen @ P[k]
    return torch.stack(gains[::-1])
    # END SOLUTION


# %% [check 6.6]
ll.check("6.6", "reduced_gains")


# %%
def carried_bases(A: Tensor, v: Tensor, order: int) -> list[Tensor]:
    """Bases of at most `order` columns, carried from layer to layer."""
    bases = [v[:1].T / v[0].norm()]
    for layer in range(len(A)):
        bases.append(next_basis(A[layer], bases[-1][:, : order - 1], v[layer + 1]))
    return bases


C = directions[-1]
target_gains = adjoint_gains(A_mean, directions, C)
print(f"error of the surrogate of the *mean* system, {d_model} dimensions in full:")
for order in (1, 2, 4, 6, 7, 8):
    found = reduced_gains(A_mean, directions, C, carried_bases(A_mean, directions, order))
    print(f"  order {order}: {(found - target_gains).norm() / target_gains.norm():.1e}")

# %% [markdown]
# **What you should see.** The error falls, and at order $L$ it is zero up to rounding: there are only $L$ pushes to keep
# track of. So for the *mean* system a handful of coordinates is exact. But no prompt is the mean prompt.
#
# The package compares predictions with the exact gains of *new* prompts. It offers two readings: one mean Jacobian for
# all prompts (`jacobian="mean"`, the paper's), or each prompt's own Jacobian in shared coordinates (`"prompt"`). And
# several bases: the paper's (`krylov`), `balanced` (which also asks what the readout can *see*), and `random`.

# %%
orders, bases = (1, 3, 9, 27), ("krylov", "balanced", "random")
evaluation = parts.evaluation.texts[:30]
gains_30 = ll.gain_profile(model, evaluation, directions)


def agreement(basis: str, jacobian: str, order: int):
    """Agreement of a surrogate from the operating prompts with the gains of the evaluation prompts."""
    surrogate = ll.fit_surrogate(
        model,
        parts.operating.texts[:30],
        directions,
        order=order,
        basis=basis,
        jacobian=jacobian,
    )
    return surrogate.predict(model, evaluation).agreement(gains_30)


by_mean = {(basis, order): agreement(basis, "mean", order) for basis in bases for order in orders}
print(by_mean["krylov", 27])

# %%
by_prompt = {
    (basis, order): agreement(basis, "prompt", order) for basis in bases for order in orders
}
print(by_prompt["balanced", 27])

# %%
figure = go.Figure()
for jacobian, found, dash in (("mean", by_mean, "dash"), ("prompt", by_prompt, "solid")):
    for index, basis in enumerate(bases):
        figure.add_scatter(
            x=orders,
            y=[found[basis, order].relative_error for order in orders],
            name=f"{basis}, {jacobian} Jacobian",
            line={"color": colour(index), "dash": dash},
        )
figure.update_xaxes(type="log", tickvals=orders)
figure.update_yaxes(rangemode="tozero")
styled(
    figure,
    title="How well a surrogate predicts the gains of new prompts",
    x="order (number of coordinates)",
    y="relative error of the gains",
)

# %%
last = {
    **{("mean", b): by_mean[b, 27] for b in bases},
    **{("prompt", b): by_prompt[b, 27] for b in bases},
}
rows = [
    {
        "Jacobian": jacobian,
        "basis": basis,
        "Spearman": found.spearman,
        "relative error": found.relative_error,
        "ceiling of one profile": found.ceiling,
        "layer number alone": found.layer_order,
    }
    for (jacobian, basis), found in last.items()
]
pd.DataFrame(rows).round(3)

# %% [markdown]
# **What you should see.** With the mean Jacobian (dashed) no basis gets below a floor, whatever the order. One profile for
# all prompts cannot follow gains that differ from prompt to prompt, and at layer 0 they differ a lot. The column
# *ceiling* is the best mean Spearman of any single profile, and the surrogate reaches it: order is not the limit.
#
# With each prompt's own Jacobian (solid) the error falls with the order. The balanced basis needs *one* coordinate to
# beat what the paper's basis reaches with many: it asks not only where pushes lead but also what the readout sees.
#
# And *layer number alone*: gains tend to grow with depth, so simply counting layers is already worth something. Read
# every rank correlation beside that number.
#
# ## The cheapest push
#
# A *schedule* adds $u_l v_l$ at every layer $l$. To first order it moves the readout by $h \cdot u$, with $h$ the gains.
# Many schedules reach the same shift $\Delta y$. Which one needs the least **energy** $\sum_l u_l^2$?

# %% [exercise 6.7 difficulty=2 importance=5 minutes=10] Minimum energy
# Return the schedule of least energy with $h \cdot u = \Delta y$. Think of $h$ as an arrow: which $u$ of a given length
# has the largest product with it?


# %% [solution 6.7]
def min_energy(h: Float[Tensor, "layer"], target: float) -> Float[Tensor, "layer"]:
    """The schedule of least sum of squares that moves a linear readout by target."""
    # BEGIN SOLUTION
    return target * h / h.square().sum()
    # END SOLUTION


# %% [check 6.7]
ll.check("6.7", "min_energy")

# %% [markdown]
# The promise is linear, the model is not. So find, for each schedule, the amplitude that *really* reaches the target on the
# full model, and compare energies. The heuristics: everything into the last layer, an equal share to each layer, the
# middle third, the first third, one layer at random.

# %%
surrogate = ll.fit_surrogate(
    model, parts.operating.texts[:30], directions, order=16, jacobian="mean"
)
contest = ll.evaluate_schedules(model, evaluation, directions, surrogate)
print(contest)
columns = ["schedule", "energy_median", "ratio_median", "ratio_q25", "ratio_q75", "min_energy_wins"]
result = contest.to_dataframe()
result[[*columns, "reached"]].round(2)

# %%
figure = go.Figure()
figure.add_bar(
    x=result["schedule"],
    y=result["ratio_median"],
    marker_color=[GREY if "energy" in name else colour(0) for name in result["schedule"]],
)
figure.add_hline(y=1, line={"color": "#000000", "dash": "dash"})
figure.update_yaxes(type="log", tickvals=[1, 3, 10, 30, 100])
figure.update_xaxes(tickangle=-35)
styled(
    figure,
    title="Energy to reach the same shift on the full model",
    subtitle=f"shift of {contest.target:.2f} in y, {len(evaluation)} prompts",
    x="schedule",
    y="energy / minimum energy (median)",
    legend="none",
)

# %% [markdown]
# **What you should see.** Minimum energy beats every heuristic at every prompt that reaches the shift (last columns),
# and a random layer or the
# early layers cost tens of times as much. That was published, and it is shown here. The published *size* of two of the
# gaps is **not shown**: on our model a uniform schedule is only a little dearer, and the last layer a few times.
# Where all gains have one sign, an equal share to each layer is not a bad guess.
#
# *Exact minimum energy* knows each prompt's own gains and is no better: the target is large, and the model bends on the
# way. *Refined* follows the bend on the model itself, and saves a little more.
#
# ## What does it do to the text?
#
# The readout is a number inside the model. Does the *text* follow? After "because", the model must choose between
# *he* and *she*.

# %%
words = read_vocabulary(model)
u = min_energy(surrogate.mean, contest.target)
names = ("Peter", "Alice", "The old captain")
prompts = [f"{name} was very tired, because" for name in names]
written = steer_text(model, prompts, directions, u, n_tokens=10, scales=(-2, 0, 2), where="prompt")
table = written.to_dataframe()
table["prompt"] = table["prompt"].str.replace("<|endoftext|>", "")
table.drop(columns="readout").round(2)

# %%
scales = torch.linspace(-3, 3, 13)
figure = go.Figure()
for index, text in enumerate(prompts):
    row = ll.tokenize_prompts(model, [text])[0][None]
    odds = []
    for scale in scales:

        def push(value, hook, scale=scale):
            layer = int(hook.name.split(".")[1])
            value = value.clone()
            value[:, -1] += (scale * u[layer] * directions[layer]).float()
            return value

        hooks = [(f"blocks.{layer}.hook_resid_pre", push) for layer in range(n_layers)]
        log_probs = model.run_with_hooks(row, fwd_hooks=hooks)[0, -1].log_softmax(-1)
        odds.append(float(log_probs[words.index(" she")] - log_probs[words.index(" he")]))
    figure.add_scatter(x=scales, y=odds, name=names[index], line_color=colour(index))
figure.add_hline(y=0, line={"color": GREY, "dash": "dot"})
styled(
    figure,
    title="Steering the next word",
    x="multiple of the schedule",
    y="ln p(she) - ln p(he)",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** A push at one single token turns *he* into *she* and back, and the sentence that follows keeps to
# it. The curves rise steadily, and nearly in parallel; the prompts differ mostly in where they start. Nothing in the schedule
# knows the two words: it was made from gains that were measured with tiny pushes. (The sentences themselves are those of a
# very small model. *Perplexity* is that of the written words for the model left alone: it says how odd they are to it.)
#
# And the price: add the schedule at *every* token of ordinary stories, which have nothing to do with it.

# %%
stories = ll.evaluation_tokens(model, n_sequences=12)
cost = steering_cost(model, stories, directions, u, scales=(-2, -1, 0, 1, 2))
cost.to_dataframe().round(3)

# %% [markdown]
# **What you should see.** Every push costs loss, in both directions, and a double push costs more than twice as much.
#
# ## Two concepts at once
#
# Push towards *she* and hold the mood still. The gains now form a table: each readout answers to each concept's push.
# The least-norm solution meets both targets to first order, and a few corrections meet them on the model.

# %%
mood_directions = ll.concept_directions(model, mood.concept)
joint = steer_concepts(
    model, parts.operating.texts[:30], [directions, mood_directions], [contest.target, 0.0]
)
print(joint)
alone = ll.min_energy(joint.gains[0, 0], contest.target)
side_effect = float(joint.gains[1, 0] @ alone.plain())
print(f"'she' alone would shift the mood readout by {side_effect:.2f} (to first order)")
joint.to_dataframe().round(3)

# %% [markdown]
# **What you should see.** The joint schedule reaches its first target and leaves the second readout where it was. The
# first-order
# solution (column *linear*) misses both by a little; the corrections on the model repair that.
#
# ## Published beside measured

# %%
mean_27 = by_mean["krylov", 27]
ratios = result.set_index("schedule")["ratio_median"]
pd.DataFrame(
    [
        ("Spearman, GPT-2 to GPT-2 large, order 32", "0.77 to 0.995", "not run"),
        ("Spearman of mean profiles, gpt-mini, order 27", "none", f"{mean_27.mean_spearman:.3f}"),
        ("energy, uniform", "2 to 5 times", f"{ratios['uniform']:.1f} times (gpt-mini)"),
        ("energy, last layer", "10 to 100 times", f"{ratios['last layer']:.1f} times (gpt-mini)"),
        (
            "energy, random layer",
            "10 to 1000 times",
            f"{ratios['random layer']:.1f} times (gpt-mini)",
        ),
    ],
    columns=["quantity", "published (arXiv 2603.12541)", "measured here"],
)

# %% [markdown]
# **What you should see.** The published models were not run here. On ours the order of the schedules agrees, and the random
# layer lies in the published range; the other two ratios are smaller. The agreement of the *mean* profiles, which the
# paper reports, is perfect here and says little: your table above shows how far single prompts are from it.
#
# ## Recap
#
# - Two class means always differ. Score a direction on new texts, and beside shuffled labels.
# - The gain of a layer is a derivative; all gains come from one backward sweep.
# - A mean system is followed exactly by $L$ coordinates. What limits a surrogate is how much prompts differ.
# - The cheapest schedule is proportional to the gains. Check it on the model: the promise is only linear.
# - Steering moves words, and it costs loss.
#
# **Think about it.** (1) All texts end with the same word. What can the embedding know about the class, and why is the gain of
# layer 0 so uncertain? (2) Train and evaluation texts share the names. What would change if they did not? (3) The mood readout
# hardly separates new sentences. What does "holding the mood still" then mean?
#
# **Further reading**
#
# - Nettasinghe and Joseph 2026, [arXiv 2603.12541](https://arxiv.org/abs/2603.12541): depth dynamics, surrogates, minimum energy.
# - Antoulas 2005, *Approximation of Large-Scale Dynamical Systems*: Krylov and balanced reduction.
# - Rowley 2005, *Model reduction for fluids, using balanced proper orthogonal decomposition*, International Journal of
#   Bifurcation and Chaos 15.
# - Turner et al. 2023, [Activation Addition](https://arxiv.org/abs/2308.10248), arXiv 2308.10248: steering by adding vectors.
# - Pang and Lee 2005, [Seeing Stars](https://arxiv.org/abs/cs/0506075): labelled sentences for a concept of your own.

# %% [instructor]
# **Timing.** 20 minutes for directions and AUC; 20 for gains and the sweep; 25 for the surrogate; 15 for schedules; 10
# for text.
# 6.5 and 6.6 can be homework.
#
# **Common wrong answers.** Rows for columns in 6.4 (`A @ row`); projecting $v_k$ before block $k$ in 6.6; dividing by the norm
# instead of its square in 6.7.
#
# **Numbers that vary.** Texts and splits are seeded. Gains agree to two decimals between machines; energies to one.
