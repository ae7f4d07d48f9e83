# ---
# lesson: 8
# title: Your own model and your own analysis
# minutes: 110
# ---

# %% [markdown]
# The lessons so far used the package's models and the package's measures. This one is about yours. You open a
# model from a folder, check that you read it correctly, and add three things that the package does not have:
# a probe, a figure and a head statistic. The last part is for people who come from older induction-heads
# material, which was written for `HookedTransformer` and no longer runs.
#
# **You will learn to**
#
# - open a model from the Hub or from a local folder, and test your understanding of it before you trust it;
# - build a new linearity probe on `ll.Moments`, with a held-out score and a control;
# - turn its result into a figure in the package's style;
# - invent a statistic of a head's circuit and say what it would be by chance;
# - measure your own model on your own text, beside a model that has learnt nothing;
# - move older code from `HookedTransformer` to `TransformerBridge`.
#
# **You need** lesson 2 for the circuits and lesson 4 or 5 for linearity. The parts do not depend on each
# other.
#
# **Conventions.** Vectors are rows: `x @ W`. A *spot* is a pair such as `(0, "q")`: layer 0, queries.

# %%
import importlib
from importlib.metadata import version
from types import SimpleNamespace

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

import lens_linear as ll
from lens_linear.circuits import head_circuit
from lens_linear.linalg import LinearFit
from lens_linear.models import attention_scores, run, visit_sites
from lens_linear.models import vocabulary as read_vocabulary
from lens_linear.plots import colour, escape, styled

_ = torch.set_grad_enabled(False)

# %% [markdown]
# ## Open a model
#
# `ll.load` takes three kinds of names:
#
# | you write | you get |
# |---|---|
# | `ll.load("attn-2l")` | a model that comes with the package, no network |
# | `ll.load("my-folder")` | a folder that `save_pretrained` of `transformers` wrote |
# | `ll.load("gpt2")` | a model from the Hugging Face Hub, downloaded once |
#
# Put a model of your own into `MY_MODEL`, and a text file into `MY_TEXT` if you have one. As they stand they name a trained
# model of the package and its own stories. The next cell also makes a folder with a small GPT-2 of *random* weights: what a
# measure says about a model that has learnt nothing belongs beside what it says about yours.

# %%
import huggingface_hub
import transformers

huggingface_hub.utils.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

torch.manual_seed(0)
config = transformers.GPT2Config(
    vocab_size=300, n_positions=64, n_embd=48, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
)
transformers.GPT2LMHeadModel(config).save_pretrained("my-folder")

MY_MODEL = "gpt-mini"  # a name, a folder or a file
MY_TEXT = None  # a path to a text file

mine, untrained = ll.load(MY_MODEL), ll.load("my-folder")
for name, model in ((MY_MODEL, mine), ("my-folder", untrained)):
    has = "no tokenizer" if model.tokenizer is None else "a tokenizer"
    print(f"{name}: {model.cfg.n_layers} layers of {model.cfg.n_heads} heads, {has}")

# %% [markdown]
# There is no tokenizer in the folder, and none is needed: every function of the package takes token ids.
# With a tokenizer, `ll.tokenize(mine, text)` makes them.
#
# ## Check before you trust
#
# A model from elsewhere may differ from what you think: other scales, other positions, a cap on the scores.
# So rebuild one quantity from its parts, and compare. The pattern of a head is
#
# $$\text{pattern} = \mathrm{softmax}\!\left(\frac{q\,k^\top}{\sqrt{d_\text{head}}}\right),$$
#
# where a query sees its own position and earlier ones only.

# %% [exercise 8.1 difficulty=2 importance=4 minutes=10] Attention from queries and keys
# Write it for all rows and heads at once. Note the order of the axes. A key that comes after its query gets
# attention zero.


# %% [solution 8.1]
def pattern_from_qk(
    q: Float[Tensor, "row position head d_head"], k: Float[Tensor, "row position head d_head"]
) -> Float[Tensor, "row head query key"]:
    """Causal softmax attention; every query's row sums to one."""
    # BEGIN SOLUTION
    scores = torch.einsum("rqhd,rkhd->rhqk", q, k) / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(dim=-1)
    # END SOLUTION


# %% [check 8.1]
ll.check("8.1", "pattern_from_qk")

# %%
bundled = ll.load("attn-2l")


def rebuilt_error(model, layer: int) -> float:
    """Largest difference between the model's own pattern and the one rebuilt from q and k."""
    tokens = torch.arange(1, 41)[None] % model.cfg.d_vocab
    seen = run(model, tokens, record=[(layer, "q"), (layer, "k"), (layer, "pattern")], logits=False)
    by_head = (1, tokens.shape[1], -1, model.cfg.d_head)
    q, k = (seen[(layer, what)].reshape(by_head) for what in "qk")
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)  # some models share keys between heads
    return float((pattern_from_qk(q, k) - seen[(layer, "pattern")]).abs().max())


for name, model in (("attn-2l", bundled), (MY_MODEL, mine), ("my-folder", untrained)):
    errors = [rebuilt_error(model, layer) for layer in range(model.cfg.n_layers)]
    print(f"{name}: largest error by layer", [f"{error:.0e}" for error in errors])

# %% [markdown]
# Errors of the size of rounding mean that you read these models correctly. A model with rotary positions
# would fail here, because its queries and keys are rotated before they meet; `attention_scores` of the
# package handles those.
#
# ## A new probe: is linearity a matter of token class?
#
# Lesson 5 fitted one affine map to each FFN. Perhaps the FFN does one simple thing to pieces inside a word,
# another simple thing to punctuation, and one map for all is a poor compromise. That is a question the
# package has no function for. It needs one map *for each class* of tokens.
#
# `ll.Moments` is the tool. It takes in rows of `x` and `y` batch by batch and keeps only sums, so that
# memory does not grow:
#
# - `ll.Moments()` starts empty; `.update(x, y)` takes in rows (no rows is allowed);
# - `a + b` is what one object would hold that had seen both;
# - `.fit()` gives the best affine map: `.weight`, `.bias` and `.mean_y`;
# - `.n`, `.mean_x`, `.mean_y`, `.sxx`, `.sxy` and `.scatter_y` are the sums themselves, centred.

# %% [exercise 8.2 difficulty=2 importance=4 minutes=8] Moments for each class
# Give every row to the `Moments` of its class. `held` maps a class to its statistics so far. Change it in
# place; start a new `ll.Moments()` for a class that is not there yet. Return `held`.


# %% [solution 8.2]
def update_classes(
    held: dict[int, ll.Moments],
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    classes: Int[Tensor, "row"],
) -> dict[int, ll.Moments]:
    """Add the rows of each class to its own statistics."""
    # BEGIN SOLUTION
    for kind in classes.unique().tolist():
        rows = classes == kind
        held.setdefault(kind, ll.Moments()).update(x[rows], y[rows])
    return held
    # END SOLUTION


# %% [check 8.2]
ll.check("8.2", "update_classes")

# %% [markdown]
# Next, compare a map of one class with the map of all, on rows that neither has seen. Compare the sums of
# squared residuals. (Not the two $R^2$: each subtracts its own mean in the denominator.) The rows are gone,
# but the sums know enough:
#
# $$\sum_i \|y_i - x_i W - b\|^2 \;=\; \underbrace{\mathrm{tr}\,S_{yy} - 2\,\mathrm{tr}(W^\top S_{xy}) +
# \mathrm{tr}(W^\top S_{xx} W)}_{\text{about the means}} \;+\; n\,\|\bar y - \bar x W - b\|^2 .$$
#
# $S_{xx}$ is `moments.sxx`, $S_{xy}$ is `moments.sxy`, and $\mathrm{tr}\,S_{yy}$ is the sum of
# `moments.scatter_y`.

# %% [exercise 8.3 difficulty=3 importance=4 minutes=15] Residuals without rows
# Compute the sum of squared residuals of a map on the rows that some `Moments` has seen.


# %% [solution 8.3]
def residual(moments: ll.Moments, fit: "LinearFit") -> float:
    """Sum over rows of ‖y - x W - b‖², from the sums alone."""
    # BEGIN SOLUTION
    W, b = fit.weight, fit.bias
    about = moments.scatter_y.sum() - 2 * (W * moments.sxy).sum() + (W * (moments.sxx @ W)).sum()
    offset = moments.mean_y - moments.mean_x @ W - b
    return float(about + moments.n * offset.square().sum())
    # END SOLUTION


# %% [check 8.3]
ll.check("8.3", "residual")

# %% [instructor]
# The commonest slip is to leave out the second term. In sample it is zero; for other rows it is not, and
# the check uses other rows. A student may also undo `moments.score(fit)`; that passes.

# %% [markdown]
# Now the experiment, on `gpt-nano`. Three classes of tokens: those that begin a word, those inside a word,
# and everything else (punctuation, line ends). The maps are fitted on one half of the sequences and scored
# on the other.
#
# Two controls are needed. A map for each class has more freedom and less data. So do the same with
# classes that mean nothing: the same class sizes, dealt out at random. And perhaps the classes differ in their *averages*
# only. So fit a third kind of map: one slope for all, with an intercept for each class. What a slope of its own adds
# to that is what "does something different" can mean.
#
# The maps are fitted on the first half of the text and scored on the second. (Rows that alternate would stand next to each
# other in one story, and the score would be of text that is half known.)

# %%
nano = ll.load("gpt-nano")
text_tokens = ll.evaluation_tokens(nano)
NAMES = ["begins a word", "inside a word", "other"]


def class_of(text: str) -> int:
    """0 for a piece with a letter after a space, 1 for a piece of letters, 2 for the rest."""
    if not any(c.isalpha() for c in text):
        return 2
    return 0 if text.startswith(" ") else 1


token_class = torch.tensor([class_of(text) for text in read_vocabulary(nano)])
token_class[0] = 3  # the start token is unlike all others: left out
real = token_class[text_tokens]
counted = real < 3
shuffle = torch.randperm(int(counted.sum()), generator=torch.Generator().manual_seed(0))
shuffled = real.clone()
shuffled[counted] = real[counted][shuffle]
print({name: int((real == i).sum()) for i, name in enumerate(NAMES)}, "tokens")


def collect(rows: Tensor, classes: Tensor) -> list[dict[int, ll.Moments]]:
    """Statistics of every FFN, by class."""
    held: list[dict[int, ll.Moments]] = [{} for _ in range(nano.cfg.n_layers)]
    for start in range(0, len(rows), 16):
        part, kinds = rows[start : start + 16], classes[start : start + 16].flatten()

        def visit(layer, site, x, y, kinds=kinds):
            update_classes(held[layer], x.flatten(0, 1), y.flatten(0, 1), kinds)

        visit_sites(nano, part, visit, sites=("ffn",))
    return held


def one_slope(seen: dict[int, ll.Moments]) -> dict[int, SimpleNamespace]:
    """One weight for all classes, fitted to rows centred by class, with an intercept for each class."""
    sxx, sxy = (sum(getattr(seen[k], name) for k in range(len(NAMES))) for name in ("sxx", "sxy"))
    weight = torch.linalg.pinv(sxx, hermitian=True) @ sxy
    return {
        k: SimpleNamespace(weight=weight, bias=seen[k].mean_y - seen[k].mean_x @ weight)
        for k in range(len(NAMES))
    }


def gain_by_class(classes: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the held-out residual of the shared map that other maps take away, [layer, class].

    First a map for each class, then one slope with an intercept for each class.
    """
    middle = len(text_tokens) // 2
    train = collect(text_tokens[:middle], classes[:middle])
    test = collect(text_tokens[middle:], classes[middle:])
    gains = torch.zeros(2, nano.cfg.n_layers, len(NAMES))
    for layer, (seen, unseen) in enumerate(zip(train, test, strict=True)):
        shared, intercepts = (seen[0] + seen[1] + seen[2]).fit(), one_slope(seen)
        for kind in range(len(NAMES)):
            before = float(residual(unseen[kind], shared))
            for index, fit in enumerate((seen[kind].fit(), intercepts[kind])):
                gains[index, layer, kind] = 1 - float(residual(unseen[kind], fit)) / before
    return gains[0], gains[1]


gains, only_intercepts = gain_by_class(real)
control, _ = gain_by_class(shuffled)
kinds = {"own map": gains, "one slope": only_intercepts, "shuffled": control}
table = {
    (kind, name): values[:, i] for kind, values in kinds.items() for i, name in enumerate(NAMES)
}
pd.DataFrame(table).rename_axis("layer").round(3).replace(-0.0, 0.0)

# %% [markdown]
# **What you should see.** With classes dealt at random, a map for each class is *worse* than one for all: the
# numbers are negative, which is the price of fitting on fewer rows. With the real classes a map of their own gains
# for every class. One slope with an intercept for each class gains next to nothing. So it is not the averages: the *slopes*
# differ, and an FFN does do something different to each class, and something simpler than it does to all. The
# class *other* gains most: the shared map serves punctuation and line ends badly.
#
# ## A new figure
#
# Figures of the package are functions: a result goes in, a plotly figure comes out. They compute nothing,
# and they never call `show`. Three helpers of `lens_linear.plots` give the look: `colour(i)` is the
# i-th of eight colours that colour-blind readers can tell apart, `escape(text)` makes a label safe, and
# `styled(figure, title=..., x=..., y=...)` sets title, axes and fonts, and returns the figure.

# %% [exercise 8.4 difficulty=2 importance=3 minutes=10] Draw the result
# Draw one line for each class over the layers, named after the class, in colours of the palette. Give the
# figure a title and both axes a title. Class names may hold anything, even `<b>`: escape them.


# %% [solution 8.4]
def class_figure(gains: Float[Tensor, "layer class"], names: list[str]) -> "go.Figure":
    """One line a class: the gain of its own map over the shared one, by layer."""
    import plotly.graph_objects as go

    from lens_linear.plots import colour, escape, styled

    # BEGIN SOLUTION
    figure = go.Figure()
    for index, name in enumerate(names):
        figure.add_scatter(
            x=list(range(len(gains))),
            y=gains[:, index].tolist(),
            name=escape(name),
            line_color=colour(index),
        )
    return styled(
        figure,
        title="What a map for each class takes away",
        x="layer",
        y="share of the residual",
        legend="bottom",
    )
    # END SOLUTION


# %% [check 8.4]
ll.check("8.4", "class_figure")

# %%
figure = class_figure(gains, NAMES)
for index, name in enumerate(NAMES):
    figure.add_scatter(
        y=control[:, index].tolist(),
        name=f"{name}, shuffled",
        line={"color": figure.data[index].line.color, "dash": "dot"},
    )
    figure.add_scatter(
        y=only_intercepts[:, index].tolist(),
        name=f"{name}, one slope",
        line={"color": figure.data[index].line.color, "dash": "dash"},
    )
figure.update_xaxes(dtick=1)

# %% [markdown]
# **What you should see.** Solid lines are maps of their own, dashed lines one slope with intercepts, dotted lines the shuffled
# classes. The distance from a solid line to its dotted one is what knowing the class is worth to a linear map; from the solid
# to the dashed one, what a slope of its own is worth.
#
# ## A new measure of a head
#
# A circuit over tokens is a table with vocabulary × vocabulary entries, held as two thin factors: $M = A B$
# with `A` of shape `[vocab, d_head]` and `B` of shape `[d_head, vocab]`. The package has a copying score
# from eigenvalues. Suppose you want something plainer: **is the diagonal special?** Take the mean of the
# diagonal, $\frac1v \sum_a M_{aa}$. It needs a scale, so compare it with what it would be if tokens were
# renamed at random: permute the columns of `B`, which puts other entries on the diagonal. Then
#
# $$z = \frac{\text{mean diagonal} - \text{average over permutations}}{\text{standard deviation over
# permutations}}.$$
#
# The table itself is never needed: $M_{aa}$ is the dot product of row $a$ of $A$ with column $a$ of $B$.

# %% [exercise 8.5 difficulty=3 importance=3 minutes=15] A statistic with its chance level
# `permutations[i]` is one renaming of the tokens, as indices of the columns of `B`. Use the standard
# deviation with $n - 1$, which is what `torch.std` does.


# %% [solution 8.5]
def diagonal_z(
    A: Float[Tensor, "vocab d_head"],
    B: Float[Tensor, "d_head vocab"],
    permutations: Int[Tensor, "draw vocab"],
) -> float:
    """Mean diagonal of A @ B, in standard deviations above randomly renamed tokens."""
    # BEGIN SOLUTION
    own = (A * B.T).sum(dim=1).mean()
    chance = torch.stack([(A * B[:, order].T).sum(dim=1).mean() for order in permutations])
    return float((own - chance.mean()) / chance.std())
    # END SOLUTION


# %% [check 8.5]
ll.check("8.5", "diagonal_z")

# %%
generator = torch.Generator().manual_seed(1)
vocab = bundled.cfg.d_vocab
orders = torch.stack([torch.randperm(vocab, generator=generator) for _ in range(60)])
scores = ll.induction_scores(bundled)
table = []
for layer in range(2):
    for head in range(4):
        circuit = head_circuit(bundled, layer, head)
        table.append(
            {
                "head": circuit.name,
                "OV diagonal z": float(diagonal_z(circuit.ov.A, circuit.ov.B, orders)),
                "QK diagonal z": float(diagonal_z(circuit.qk.A, circuit.qk.B, orders)),
                "copying score": circuit.copying_score,
                "verdict": scores.verdicts[layer][head],
            }
        )
table = pd.DataFrame(table)
table.round(2)

# %% [markdown]
# **What you should see.** In the column for OV, the induction heads of layer 1 stand far above chance: what they
# read is what they write. The copying score of the package puts the heads in nearly the same order. The column for QK is
# something else: most heads of layer 0 avoid their own token as a key (large and negative), and the weaker
# induction heads like it. For the strong ones the token itself matters less, because what they look for is what
# *another head* wrote.
#
# Does your measure mean anything on a model that has learnt nothing? Always look.


# %%
def all_diagonal_z(model) -> list[float]:
    """OV diagonal z of every head of a model."""
    size = model.cfg.d_vocab
    orders = torch.stack([torch.randperm(size, generator=generator) for _ in range(60)])
    circuits = [
        head_circuit(model, layer, head).ov
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    ]
    return [float(diagonal_z(ov.A, ov.B, orders)) for ov in circuits]


torch.manual_seed(0)
config.tie_word_embeddings = False
transformers.GPT2LMHeadModel(config).save_pretrained("my-untied-folder")
for name in ("my-folder", "my-untied-folder"):
    blank = torch.tensor(all_diagonal_z(ll.load(name)))
    print(f"OV diagonal z of {name}:", [round(z, 1) for z in blank.tolist()])
    tied = torch.equal(ll.load(name).W_E, ll.load(name).W_U.T)
    print(f"    spread {blank.std():.1f}; embedding and unembedding are one matrix: {tied}")

# %% [markdown]
# **What you should see.** Small numbers of both signs, beside those above. But look at the spread. If renaming tokens were
# a perfect null, it would be about one, as it is for the second model. The first one, like GPT-2 itself, embeds and
# unembeds with *one* matrix. That ties each token to itself before anything is learnt, and renaming breaks the tie. So on
# such a model a $z$ of three or four may mean nothing. A chance level answers one question only: what would chance be *if
# tokens could be exchanged*?
#
# ## Your model on your text
#
# Now the question of lesson 4 for a model and a text of your choice: how linear is each block? A profile takes rows of
# tokens. Models are trained on rows that begin with a start token, so cut the text in that way.

# %% [exercise 8.6 difficulty=2 importance=4 minutes=8] Rows of your own text
# Cut one long stream of tokens into rows of `length`. Every row begins with `start`, followed by the next `length - 1` tokens of
# the stream. No token is used twice; what does not fill the last row is left out.


# %% [solution 8.6]
def text_rows(stream: Int[Tensor, "n"], length: int, start: int) -> Int[Tensor, "row length"]:
    """Rows of tokens, each behind a start token."""
    # BEGIN SOLUTION
    body = length - 1
    rows = stream[: len(stream) // body * body].reshape(-1, body)
    return torch.cat([torch.full((len(rows), 1), start), rows], dim=1)
    # END SOLUTION


# %% [check 8.6]
ll.check("8.6", "text_rows")

# %%
my_text = ll.text.default_text() if MY_TEXT is None else ll.text.read_text(MY_TEXT)
if mine.tokenizer is None:  # put the ids of your own text here; random ones stand in their place
    stream = torch.randint(mine.cfg.d_vocab, (20_000,), generator=generator)
else:
    stream = torch.tensor(mine.tokenizer(my_text)["input_ids"])
start = ll.models.bos_token(mine)
my_rows = text_rows(stream, min(64, mine.cfg.n_ctx), 0 if start is None else start)
print(f"{len(stream):,} tokens of your text make {len(my_rows)} rows of {my_rows.shape[1]}")

twin = transformers.GPT2Config(
    vocab_size=mine.cfg.d_vocab, n_positions=64, n_embd=48, n_layer=3, n_head=4
)
torch.manual_seed(0)
transformers.GPT2LMHeadModel(twin).save_pretrained("my-twin")
profiles = {
    MY_MODEL: ll.linearity_profile(mine, my_rows),
    "random": ll.linearity_profile(ll.load("my-twin"), my_rows),
}
for name, found in profiles.items():
    print(f"{name}: {found}")

figure = go.Figure()
for index, (name, found) in enumerate(profiles.items()):
    for column, dash in (("block_r2", "solid"), ("block_r2_no_residual", "dash")):
        scores_of = found[column]
        depth = torch.linspace(0, 1, len(scores_of)).tolist()
        line = {"color": colour(index), "dash": dash}
        label = "with the residual" if dash == "solid" else "without"
        figure.add_scatter(x=depth, y=scores_of, name=f"{escape(name)}, {label}", line=line)
styled(
    figure,
    title="Block linearity of two models on your text",
    x="depth (0 first block, 1 last)",
    y="held-out R²",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** A profile of your model, and of one with random weights, on the same text. If the random model is
# *more* linear than yours, then high linearity alone says little about what was learnt: random blocks write little beside
# what they receive. Read the scores without the residual, and the intervals. Then write down one sentence about your
# model that you would have been surprised by before, and what could be its control.
#
# ## The induction-heads lesson on TransformerLens 4
#
# Most material on induction heads was written for `HookedTransformer`. TransformerLens 4.0 removed it. Its
# successor, `TransformerBridge`, wraps models of `transformers` as they are. Every statement below is
# followed by a cell that shows it.


# %%
def attempt(function) -> str:
    """What a call gives, or the first sentence of its error."""
    try:
        return f"works: {function()}"
    except (Exception, AssertionError) as error:
        text = str(error).strip().splitlines()[0]
        return f"{type(error).__name__}: {text[:150]}"


def import_old():
    from transformer_lens import HookedTransformer

    return HookedTransformer


print("transformer-lens", version("transformer-lens"))
print("from transformer_lens import HookedTransformer →", attempt(import_old))
print(
    "transformer_lens.utils →", attempt(lambda: importlib.import_module("transformer_lens.utils"))
)

# %% [markdown]
# **What stays.** Most of what a lesson does day to day: running with a cache, hooks by name, stacked weights,
# factored matrices. Older material asks for one piece of code again and again: a hook that takes a head out.

# %% [exercise 8.7 difficulty=2 importance=4 minutes=8] A hook of your own
# Write the hook itself: it gets `z` of shape `[row, position, head, d_head]` and the hook point, and returns `z` with
# the *last* head's values replaced by their average over rows and positions. What came in must not change.


# %% [solution 8.7]
def average_last_head(z: Float[Tensor, "row position head d_head"], hook):
    """z with the last head at its mean."""
    # BEGIN SOLUTION
    changed = z.clone()
    changed[:, :, -1] = z[:, :, -1].mean(dim=(0, 1))
    return changed
    # END SOLUTION


# %% [check 8.7]
ll.check("8.7", "average_last_head")

# %%
tokens = torch.arange(1, 25)[None]
tokens = torch.cat(
    [torch.zeros_like(tokens[:, :1]), tokens, tokens], dim=1
)  # a repeat of period 24
logits, cache = bundled.run_with_cache(tokens)


def loss_of_the_repeat(logits: Tensor) -> str:
    """Mean loss in the second copy."""
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    return f"{losses[:, 25:].mean():.2f} nats in the second copy"


stripe = cache["pattern", 1][0].diagonal(-23, dim1=-2, dim2=-1)[:, 2:].mean(-1)
pairs = [
    (
        "HookedTransformer.from_pretrained(name)",
        "ll.load(name)",
        lambda: f"{ll.load('attn-2l').cfg.n_layers} layers, {bundled.cfg.d_vocab} tokens",
    ),
    ("cache['pattern', 1]", "the same", lambda: tuple(cache["pattern", 1].shape)),
    ("the induction stripe of layer 1", "the same", lambda: [round(float(s), 2) for s in stripe]),
    ("no hook", "the same", lambda: loss_of_the_repeat(logits)),
    (
        "run_with_hooks(... hook_z), your hook on layer 1",
        "the same",
        lambda: loss_of_the_repeat(
            bundled.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", average_last_head)])
        ),
    ),
    ("model.W_Q", "the same", lambda: tuple(bundled.W_Q.shape)),
    (
        "model.QK, model.OV",
        "the same, [layer, head] of factored matrices",
        lambda: f"largest singular value of L1H3's OV {float(bundled.OV[1, 3].S.max()):.1f}",
    ),
    (
        "all_composition_scores('K')",
        "the same, or ll.composition_scores",
        lambda: tuple(bundled.all_composition_scores("K").shape),
    ),
    (
        "cache['result', 0]",
        "cache.stack_head_results()",
        lambda: tuple(cache.stack_head_results(layer=-1).shape),
    ),
    (
        "logit_attribution (direct path and heads)",
        "ll.AttentionOnly(model).paths(tokens)",
        lambda: repr(ll.AttentionOnly(bundled).paths(tokens)),
    ),
    (
        "transformer_lens.utils",
        "transformer_lens.utilities",
        lambda: importlib.import_module("transformer_lens.utilities").__name__,
    ),
]
rows = [(old, new, attempt(function)) for old, new, function in pairs]
pd.DataFrame(rows, columns=["older material", "TransformerLens 4", "here"])

# %% [markdown]
# **What you should see.** Every row works. Your hook takes out a head (the last one of layer 1, a strong induction head) and
# raises the loss of the second copy, as it did in the older lessons.
#
# **What is gone.**

# %%
from transformer_lens.head_detector import detect_head
from transformer_lens.model_bridge import TransformerBridge

toy = ll.toy_model(n_layers=2, seed=0)  # random weights, no tokenizer
old_shape = {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_head": 16, "d_vocab": 50, "n_ctx": 32}
old_shape |= {"attn_only": True, "act_fn": "gelu", "positional_embedding_type": "shortformer"}
gone = {
    "shortformer positions (the usual two-layer toy model)": lambda: TransformerBridge.boot_native(
        old_shape
    ),
    "detect_head on token ids, without a tokenizer": lambda: detect_head(
        toy, tokens[:, :20], "induction_head"
    ),
    "to_str_tokens without a tokenizer": lambda: toy.to_str_tokens(tokens[:, :20]),
    "set_use_attn_result(True) on a native model": lambda: toy.set_use_attn_result(True),
    "cache['result', 0]": lambda: toy.run_with_cache(tokens[:, :20])[1]["result", 0].shape,
}
for what, function in gone.items():
    print(f"{what}\n    {attempt(function)}")

# %% [markdown]
# Instead: `attn-2l` is a trained two-layer toy with learnt positions. `ll.induction_scores(model)` takes
# any model, with or without a tokenizer, and adds a control (lesson 3).

# %%
print(attempt(lambda: ll.induction_scores(toy)))
print(attempt(lambda: ll.induction_scores(untrained)))

# %% [markdown]
# **A silent trap: `hook_attn_scores`.** Attention scores come *before* the softmax; the pattern comes
# after. On native bridges (models built by `boot_native`, as all bundled ones are) the hook with that name
# gives the pattern. Nothing raises. The test is one line: rows of a pattern sum to one.

# %%
for name, model in (("attn-2l (native)", bundled), ("my-folder (GPT-2)", untrained)):
    seen = model.run_with_cache(tokens[:, :24])[1]["attn_scores", 0][0, 0]
    visible = torch.ones_like(seen, dtype=torch.bool).tril()
    sums = seen.masked_fill(~visible, 0).sum(-1)
    is_pattern = bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4))
    print(f"{name}: hook_attn_scores rows sum to one: {is_pattern}")

true = attention_scores(bundled, tokens[:, :24], layer=0)
visible = torch.ones(24, 24, dtype=torch.bool).tril()
again = true.masked_fill(~visible, float("-inf")).softmax(-1)
own = run(bundled, tokens[:, :24], record=[(0, "pattern")], logits=False)[(0, "pattern")]
print(f"attention_scores of this package, after softmax: off by {(again - own).abs().max():.0e}")

# %% [markdown]
# Use `lens_linear.models.attention_scores`, or rebuild scores from queries and keys as you did in
# exercise 8.1. Your function would have found the trap.
#
# **Compatibility mode is a one-way street.** `enable_compatibility_mode()` folds norms and centres weights,
# as `HookedTransformer` did. Predictions stay, weights change, and no call brings them back.

# %%
fresh = ll.load("my-folder")
example = tokens[:, :24]
before, weight = fresh(example).log_softmax(-1), fresh.W_E.clone()
fresh.enable_compatibility_mode()
print(f"log-probabilities differ by {(fresh(example).log_softmax(-1) - before).abs().max():.0e}")
print(f"embedding differs by {(fresh.W_E - weight).abs().max():.0e}")
print("disable_compatibility_mode →", attempt(lambda: fresh.disable_compatibility_mode()))
fresh.compatibility_mode = False
print(f"after setting the flag back by hand: still {(fresh.W_E - weight).abs().max():.0e}")
fresh = ll.load("my-folder")
print(f"after loading it again: {(fresh.W_E - weight).abs().max():.0e}")

# %% [markdown]
# So load the model a second time if you need both. Functions of this package never call it: they fold a
# *copy* of the weights, and leave your model as it was.
#
# ## Recap
#
# - `ll.load` opens bundled models, folders and Hub names. Rebuild a quantity before you trust your reading of a model.
# - A new probe is a few lines on `ll.Moments`: collect, fit on one half, score on the other, and a control.
# - A new figure is a function from a result to a figure, with `styled` at the end.
# - A new statistic is worth as much as the chance level beside it.
# - In TransformerLens 4 hooks, caches and weights carry over. `HookedTransformer` and shortformer do not, and
#   `hook_attn_scores` needs care.
#
# **Think about it.** (1) What other classes of rows might have maps of their own: positions, frequent
# tokens, tokens inside a repeat? (2) The shuffled classes show what *fewer rows* cost. What would show what
# *more freedom* buys? The class *other* holds few different tokens: could its map be little more than a table
# of them? (3) Why permute tokens, rather than draw random matrices, to find the chance level of
# a diagonal?
#
# **Further reading**
#
# - Whipp 2026, arXiv 2606.19379, for the linearity of FFN blocks.
# - Elhage et al. 2021, [A Mathematical Framework for Transformer Circuits](https://transformer-circuits.pub/2021/framework/index.html),
#   for copying and its eigenvalues.
# - Chan, Golub and LeVeque 1983, *Algorithms for computing the sample variance*, for merging moments.
# - The migration page of TransformerLens: `docs/source/content/migrating_to_v4.md` in its repository.

# %% [instructor]
# **Timing.** 15 minutes for the first part, 30 for the probe and the figure, 20 for the statistic, 20 for a model and a
# text of their own, 25 for migration. Students who never saw older material can leave the last part out.
#
# **Common wrong answers.** 8.1: scale forgotten, mask on the wrong side. 8.2: a fresh `Moments` at each
# call, which forgets earlier batches. 8.3: the offset term left out. 8.5: the standard deviation of the
# entries instead of that over permutations. 8.6: rows that overlap, or a start token in the first row only. 8.7: changing `z`
# in place; a mean for each position.
#
# **Numbers that vary.** Everything is seeded. The gains by class agree to the third decimal across
# machines; random GPT-2 values of z may change with the version of `transformers`.
#
# **Grading.** `ll.check.save("results.json")` at the end of a notebook writes what a grader collects.
