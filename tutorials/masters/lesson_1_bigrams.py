# ---
# lesson: 1
# title: Bigrams: the zero-layer transformer
# minutes: 80
# ---

# %% [markdown]
# The smallest transformer has no layers. It embeds a token, and unembeds it again. That is all.
# It cannot look back, so the best it can do is to know which token tends to follow which.
# This lesson takes such a model apart completely. Every later lesson builds on the pieces.
#
# **You will learn to**
#
# - write a zero-layer transformer as one table, and read that table;
# - say exactly how low its loss can go, and why no training goes below;
# - split a loss into a part nobody can avoid and a part that training can remove;
# - train such a model in seconds and watch it reach its floor;
# - say how wide the residual stream has to be, and why.
#
# **You need** Python, PyTorch tensors, matrix products, and what a probability and a logarithm are.
# Nothing about transformers.
#
# **Conventions.** Vectors are rows and multiply from the left: `x @ W`. A table indexed `[a, b]`
# has the *current* token in its rows and the *next* token in its columns. Losses and entropies are
# in *nats* (natural logarithm).

# %%
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

import lens_linear as ll
from lens_linear.models import vocabulary as read_vocabulary
from lens_linear.plots import GREY, colour, matrix, styled
from lens_linear.stats import bigram_counts, bigram_entropy

_ = torch.set_grad_enabled(False)

# %% [markdown]
# ## One table is the whole model
#
# A transformer keeps one vector for each position, the **residual stream**. Without layers there are
# only two steps. The embedding $W_E$ (shape `[vocab, d_model]`) gives each token a vector:
# $x = W_E[a]$ for token $a$. The unembedding $W_U$ (shape `[d_model, vocab]`) turns it into one number
# for each possible next token, the **logits**: $x W_U + b_U$.
#
# The logits after token $a$ depend on nothing but $a$. So there are only as many different outputs as
# there are tokens, and we can write all of them down in one table $T = W_E W_U + b_U$.
#
# (Most models also add a vector for the position. The model of this lesson was trained without, so
# that the table is exact.)

# %% [exercise 1.1 difficulty=1 importance=5 minutes=5] The table of logits
# Write the table. Row `a` holds the logits of every next token when the current token is `a`.


# %% [solution 1.1]
def bigram_logits(
    W_E: Float[Tensor, "vocab d_model"],
    W_U: Float[Tensor, "d_model vocab"],
    b_U: Float[Tensor, "vocab"],
) -> Float[Tensor, "vocab vocab"]:
    """Logits of a zero-layer transformer: row = current token, column = next token."""
    # BEGIN SOLUTION
    return W_E @ W_U + b_U
    # END SOLUTION


# %% [check 1.1]
ll.check("1.1", "bigram_logits")

# %% [instructor]
# Common wrong answers: forgetting `b_U`; adding it as a column (`b_U[:, None]`), which changes every
# row by a constant and so leaves all probabilities as they were (a good question to ask); transposing.

# %% [markdown]
# The package comes with such a model, trained on children's books. Does your table really say
# everything that the model says? Run the model on some text and compare.

# %%
model = ll.load("attn-0l")
text_tokens = ll.evaluation_tokens(model)  # our own short stories, cut into rows
table = bigram_logits(model.W_E, model.W_U, model.b_U)

output = model(text_tokens[:8])
difference = (output - table[text_tokens[:8]]).abs().max().item()
print(model.W_E.shape, "embedding,", model.W_U.shape, "unembedding,", table.shape, "table")
print(f"largest difference between the model's logits and your table: {difference:.1e}")

# %% [markdown]
# Now read it. The function below shows what the model expects after a token. Try your own: tokens are
# pieces of words, and most of them begin with a space.

# %%
vocabulary = read_vocabulary(model)
log_probs = table.log_softmax(dim=-1)


def after(token: str, k: int = 6) -> list[str]:
    """The k most likely next tokens after a token, with their probabilities."""
    best = log_probs[vocabulary.index(token)].exp().topk(k)
    return [f"{vocabulary[i]!r} {p:.2f}" for p, i in zip(best.values, best.indices.tolist())]


pd.DataFrame({f"after {token!r}": after(token) for token in (" of", " had", " said", "?")})

# %% [markdown]
# **What you should see.** Grammar: after *of* comes *the*; after *had* comes *been*; after a question mark
# comes the start of a new sentence. The model knows word order of length two, and no more.
#
# The next figure shows a window of the table: common tokens only, as probabilities. Hover over a cell
# to read the pair.

# %%
common = torch.bincount(text_tokens.flatten(), minlength=len(vocabulary)).argsort(descending=True)
common = common[common != 0][:24].tolist()  # token 0 marks the start of a text
names = [vocabulary[i] for i in common]
figure = matrix(
    log_probs[common][:, common].exp(),
    rows=names,
    columns=names,
    value_name="probability",
    row_name="current",
    column_name="next",
    diverging=False,
)
styled(figure, title="What attn-0l expects next", x="next token", y="current token", height=560)

# %% [markdown]
# **What you should see.** A table that is nearly empty, with a few bright cells: a comma is often
# followed by *and*, a full stop by a new line, *of* and *in* by *the*. (A dot before a label stands for
# a space.) Some rows are dark, because what comes after those tokens is not in this small window.
#
# ## The best possible table
#
# Suppose somebody gives you a text and asks for the best table. You would count. Let $n(a, b)$ be the
# number of times that $b$ stands directly after $a$. Then
#
# $$p(b \mid a) = \frac{n(a, b)}{\sum_c n(a, c)}$$
#
# is the best guess there is for a model that sees only the current token.

# %% [exercise 1.2 difficulty=2 importance=4 minutes=12] Count a text
# `tokens` has shape `[sequence, position]`. Each row is a text of its own, so a pair never crosses the
# end of a row. Return the table $p(b \mid a)$. A token that is never followed by anything gets a
# uniform row. Try to do without a Python loop.


# %% [solution 1.2]
def bigram_table(
    tokens: Int[Tensor, "sequence position"], n_vocab: int
) -> Float[Tensor, "vocab vocab"]:
    """p(next | current), counted inside rows; every row sums to one."""
    # BEGIN SOLUTION
    pairs = tokens[:, :-1] * n_vocab + tokens[:, 1:]
    counts = torch.bincount(pairs.flatten(), minlength=n_vocab**2).view(n_vocab, n_vocab).double()
    counts[counts.sum(dim=1) == 0] = 1.0
    return counts / counts.sum(dim=1, keepdim=True)
    # END SOLUTION


# %% [check 1.2]
ll.check("1.2", "bigram_table")

# %% [instructor]
# The commonest mistake is to flatten the rows first, which counts the seam between two texts. Some
# students return joint probabilities. Both get their own message.

# %% [markdown]
# To know whether a number is right, it helps to have a text whose statistics are known exactly. The
# package can write one: a made-up language in which each word follows the last by a fixed table $P$.
# (It can do more. Here the rest is switched off.)

# %%
language = ll.SyntheticLanguage(48, n_skip_trigrams=0, n_names=0, n_mood_words=0, seed=0)
truth = language.bigram_table  # P[a, b], exact
print(language)
print("a sentence:", language.decode(language.tokens(1, 12, seed=1))[0])

counted = bigram_table(language.tokens(200, 64, seed=2), language.n_vocab)
print(f"largest error of a table counted on {200 * 64} tokens: {(counted - truth).abs().max():.3f}")

# %% [markdown]
# ## How low can the loss go?
#
# A language model is scored by its **loss**: the average of $-\ln q(\text{next})$, where $q$ is the
# probability that it gave to the token that came. What is the lowest loss for a model that sees only the
# current token? Give it the true probabilities, and the loss is
#
# $$H(\text{next} \mid \text{current}) = -\sum_{a, b} p(a, b) \ln p(b \mid a),$$
#
# the **conditional entropy**. Here $p(a, b)$ is the probability that a randomly chosen pair of
# neighbours is $(a, b)$. The conditional entropy is the **floor**: no table, however trained, goes below.

# %% [exercise 1.3 difficulty=2 importance=5 minutes=10] The floor
# Compute the conditional entropy of a table of pair probabilities. The table sums to one. Pairs that
# never occur add nothing, and must not produce `nan`.


# %% [solution 1.3]
def conditional_entropy(joint: Float[Tensor, "vocab vocab"]) -> float:
    """H(next | current) in nats, from p(current, next)."""
    # BEGIN SOLUTION
    current = joint.sum(dim=1)
    pairs = -torch.xlogy(joint, joint).sum()
    return float(pairs + torch.xlogy(current, current).sum())
    # END SOLUTION


# %% [check 1.3]
ll.check("1.3", "conditional_entropy")

# %%
joint = language.stationary[:, None] * truth  # p(a, b) = p(a) p(b | a)
floor = float(conditional_entropy(joint))
print(f"your floor {floor:.4f} nats; the package's exact value {language.entropy_rate:.4f}")
print(f"not knowing the current token at all would cost {language.floors().unigram:.4f} nats")
print(
    f"guessing all {language.n_vocab} words evenly would cost {torch.tensor(48.0).log():.4f} nats"
)

# %% [markdown]
# A warning that matters for every corpus: we know the floor here because we know the language. On real
# text we only have counts, and **a floor computed from counts is too low**. The table fits the accidents
# of the text that it was counted on. How much too low?

# %%
sizes = [500, 1000, 2000, 4000, 8000, 16000, 32000, 64000]
plug_in, corrected = [], []
for size in sizes:
    counts = bigram_counts(language.tokens(size // 50, 50, seed=3), language.n_vocab)
    plug_in.append(bigram_entropy(counts))
    corrected.append(bigram_entropy(counts, correction="miller-madow"))

figure = go.Figure()
figure.add_scatter(x=sizes, y=plug_in, name="from counts", line_color=colour(1))
figure.add_scatter(x=sizes, y=corrected, name="with Miller's correction", line_color=colour(0))
figure.add_hline(y=floor, line_dash="dash", line_color=GREY, annotation_text="truth")
figure.update_xaxes(type="log")
styled(
    figure,
    title="A floor counted on a small text is too low",
    x="tokens counted",
    y="entropy (nats a token)",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** The naive estimate starts far below the truth and climbs to it as the text
# grows. Miller's correction adds a term for the number of different pairs seen; it comes close with much
# less text.
#
# ## What training can and cannot remove
#
# A model with logits $T$ predicts $q(b \mid a) = \mathrm{softmax}(T[a])_b$. Its expected loss is the
# cross-entropy, and it splits into two parts:
#
# $$\underbrace{-\sum_{a,b} p(a,b) \ln q(b \mid a)}_{\text{loss}} \;=\;
# \underbrace{H(\text{next} \mid \text{current})}_{\text{floor}} \;+\;
# \underbrace{\sum_{a} p(a)\, \mathrm{KL}\big(p(\cdot \mid a) \,\|\, q(\cdot \mid a)\big)}_{\text{excess}}$$
#
# The floor belongs to the language. The excess belongs to the model. It is never negative, and it is
# zero only when the model's table is the true one.

# %% [exercise 1.4 difficulty=3 importance=5 minutes=15] The excess loss
# Compute the excess of a table of **logits**, given the pair probabilities. Remember that adding a
# constant to a row of logits changes nothing. Pairs and tokens that never occur add nothing.


# %% [solution 1.4]
def excess_loss(joint: Float[Tensor, "vocab vocab"], logits: Float[Tensor, "vocab vocab"]) -> float:
    """Loss above the floor, in nats: the KL divergence from p to the model, averaged over p(a)."""
    # BEGIN SOLUTION
    cross_entropy = -(joint * logits.log_softmax(dim=-1)).sum()
    return float(cross_entropy) - conditional_entropy(joint)
    # END SOLUTION


# %% [check 1.4]
ll.check("1.4", "excess_loss")

# %% [instructor]
# Students often forget `log_softmax`, take the divergence the wrong way round, or average the rows
# evenly. A student who uses `conditional_entropy` from the exercise before needs it to be right; one who
# writes the sum directly does not. Both pass.

# %% [markdown]
# ## Train one
#
# Now let gradient descent find the table. First the loss. A row of $n$ tokens holds $n - 1$ predictions:
# the logits at position $t$ are a prediction of the token at position $t + 1$.

# %% [exercise 1.5 difficulty=2 importance=4 minutes=8] The training loss
# Write the mean loss over all predictions. You may use `torch.nn.functional.cross_entropy`.


# %% [solution 1.5]
def next_token_loss(
    logits: Float[Tensor, "sequence position vocab"], tokens: Int[Tensor, "sequence position"]
) -> Float[Tensor, ""]:
    """Mean of -ln q(next token), in nats, over every position that has a next token."""
    # BEGIN SOLUTION
    predictions, targets = logits[:, :-1], tokens[:, 1:]
    return torch.nn.functional.cross_entropy(predictions.flatten(0, 1), targets.flatten())
    # END SOLUTION


# %% [check 1.5]
ll.check("1.5", "next_token_loss")

# %% [markdown]
# The loop below is a whole training run. The model is nothing but two matrices. Each step draws fresh
# text, so it can never learn a text by heart.


# %% [training]
@torch.enable_grad()
def train(width: int, steps: int = 250, seed: int = 0) -> tuple[Tensor, list[float]]:
    """Train a zero-layer model of the given width; returns its table of logits and its losses."""
    generator = torch.Generator().manual_seed(seed)
    n = language.n_vocab
    W_E = (0.3 * torch.randn(n, width, generator=generator)).requires_grad_()
    W_U = (0.3 * torch.randn(width, n, generator=generator)).requires_grad_()
    b_U = torch.zeros(n).requires_grad_()
    optimizer = torch.optim.Adam([W_E, W_U, b_U], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    losses = []
    for step in range(steps):
        tokens = language.tokens(64, 32, seed=step)
        loss = next_token_loss(W_E[tokens] @ W_U + b_U, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return bigram_logits(W_E, W_U, b_U).detach(), losses


learned, losses = train(width=16)
print(
    f"average loss of the last 20 steps {sum(losses[-20:]) / 20:.3f} nats, floor {floor:.3f} nats"
)
print(f"excess of the learned table, computed exactly: {excess_loss(joint, learned):.4f} nats")

# %%
figure = go.Figure(go.Scatter(y=losses, line_color=colour(0), name="training loss"))
figure.add_hline(y=floor, line_dash="dash", line_color=GREY, annotation_text="floor")
styled(figure, title="A zero-layer model reaches its floor", x="step", y="loss (nats a token)")

# %% [markdown]
# **What you should see.** The loss falls from about $\ln 48$ to the floor within a hundred steps, and
# then jitters around it. It dips below the floor now and then: each step measures the loss on a small
# sample of text, and a sample can be easier than average. The exact excess has no such noise, and it is
# never negative.
#
# Compare the learned table with the truth, pair by pair. Compare log-probabilities, not logits: a constant
# added to a row of logits means nothing, and `log_softmax` takes it away.

# %%
chosen = list(range(16))
labels = [language.labels[i] for i in chosen]
pair = {"learned": learned.log_softmax(-1), "true": truth.log()}
figure = go.Figure(
    go.Scatter(
        x=pair["true"].flatten(),
        y=pair["learned"].flatten(),
        mode="markers",
        marker={
            "size": 4,
            "color": joint.flatten().sqrt(),
            "colorscale": "Viridis",
            "showscale": True,
            "colorbar": {"title": "√p(a, b)"},
        },
    )
)
lowest = float(pair["true"].min())
figure.add_scatter(x=[lowest, 0], y=[lowest, 0], mode="lines", line={"color": GREY, "dash": "dash"})
styled(
    figure,
    title="Each dot is a pair of words",
    x="true ln p(b | a)",
    y="learned ln q(b | a)",
    legend="none",
)

# %% [markdown]
# **What you should see.** The dots lie along the diagonal. Pairs that occur often (bright) lie on it; pairs
# that hardly ever occur (dark) may lie off it, because the loss hardly notices them.
#
# ## How wide must the residual stream be?
#
# $T = W_E W_U$ squeezes everything through `d_model` numbers. A product of a `[vocab, d]` and a
# `[d, vocab]` matrix has rank at most $d$. So a narrow model cannot hold every table. What does that cost?
#
# (The bias $b_U$ comes on top; it adds the same row everywhere and needs no width.)
#
# One way to make a narrow table is to take the true one and cut it down to the best table of rank $d$ in
# the sense of least squares. That is what the singular value decomposition gives.

# %% [exercise 1.6 difficulty=3 importance=3 minutes=12] The best table of a given rank
# Return the matrix of rank at most `rank` that is closest to `table` (smallest sum of squared
# differences).


# %% [solution 1.6]
def low_rank(table: Float[Tensor, "rows columns"], rank: int) -> Float[Tensor, "rows columns"]:
    """The closest matrix of rank at most `rank`."""
    # BEGIN SOLUTION
    U, S, Vh = torch.linalg.svd(table, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]
    # END SOLUTION


# %% [check 1.6]
ll.check("1.6", "low_rank")

# %% [markdown]
# Now cut the true table, and also train models of several widths. Training does not minimise squared
# differences between logits: it minimises the loss. Which one wastes less? (To be quick, this training
# takes the exact expected loss instead of samples of text: floor plus excess, which you wrote above.)


# %% [training]
@torch.enable_grad()
def train_exactly(width: int, steps: int = 400, seed: int = 0) -> Tensor:
    """Minimise the expected loss itself; returns the table of logits."""
    generator = torch.Generator().manual_seed(seed)
    n = language.n_vocab
    W_E = (0.3 * torch.randn(n, width, generator=generator)).double().requires_grad_()
    W_U = (0.3 * torch.randn(width, n, generator=generator)).double().requires_grad_()
    b_U = torch.zeros(n).double().requires_grad_()
    optimizer = torch.optim.Adam([W_E, W_U, b_U], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    for _ in range(steps):
        loss = -(joint * (W_E @ W_U + b_U).log_softmax(dim=-1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return bigram_logits(W_E, W_U, b_U).detach()


widths = [1, 2, 3, 4, 6, 8, 12]
target = truth.log() - truth.log().mean(dim=1, keepdim=True)
bias = target.mean(dim=0)  # a bias is free for both: it needs no width
cut = [float(excess_loss(joint, low_rank(target - bias, width) + bias)) for width in widths]
trained = [float(excess_loss(joint, train_exactly(width))) for width in widths]
pd.DataFrame({"width": widths, "cut": cut, "trained": trained}).round(4)

# %%
figure = go.Figure()
figure.add_scatter(x=widths, y=cut, name="true table, cut by SVD", line_color=colour(1))
figure.add_scatter(x=widths, y=trained, name="trained at that width", line_color=colour(0))
styled(
    figure,
    title="A narrow residual stream cannot hold the table",
    x="width of the residual stream (d_model)",
    y="excess loss (nats a token)",
    legend="bottom",
)

# %%
values = torch.linalg.svdvals(target - bias)
print("largest singular values of the true table:", [round(v, 2) for v in values[:12].tolist()])

# %% [markdown]
# **What you should see.** The excess falls as the model gets wider, and reaches nearly zero at a width far
# below the number of words. The singular values say why: this language's table has a small rank, and a
# model of that width can hold it exactly. At small widths the trained model beats the cut table: it
# spends its few dimensions on the pairs that occur often.
#
# ## Back to English
#
# How close is `attn-0l` to the floor of real text? Its card holds two numbers, both measured on two whole
# books that were not used for training: the model's loss, and the loss of a bigram table counted on the
# training text.

# %%
card = ll.available_models().set_index("name").loc["attn-0l"]
counts = bigram_counts(text_tokens, len(vocabulary))
own_loss = next_token_loss(table[text_tokens], text_tokens)
print(f"two unseen books: model {card.loss:.3f} nats, counted table {card.floor:.3f} nats")
print(f"our short stories: model {own_loss:.3f} nats")
print(
    f"a table counted on those {text_tokens.numel()} tokens themselves would claim "
    f"{bigram_entropy(counts):.3f} nats"
)

# %% [markdown]
# **What you should see.** On unseen books the model and the counted table are almost equal: the model has
# learnt its bigrams. The last number looks much better, and it is the trap from above: it was counted on
# the very text that it is scored on.
#
# The package does this comparison for any attention-only model. `bigrams()` is your `bigram_logits`.

# %%
view = ll.AttentionOnly(model)
print(view.bigrams())
view.bigrams().top(vocabulary.index(" once"), k=5).to_dataframe().round(3)

# %% [markdown]
# ## What a zero-layer model cannot do
#
# It sees one token. Two texts that end with the same token get the same prediction, whatever was said
# before.

# %%
texts = ["The cat sat on the", "She poured the tea and drank the"]
rows = ll.tokenize_prompts(model, texts)
ends = [model(row[None])[0, -1] for row in rows]
print(f"largest difference between the two predictions: {(ends[0] - ends[1]).abs().max():.1e}")

rich = ll.SyntheticLanguage(48, seed=0).floors()
print(
    f"a language with context: floor of bigrams {rich.bigram:.3f} nats, of all {rich.full:.3f} nats"
)

# %% [markdown]
# The second line is the full made-up language, with names that return, words that depend on an earlier
# word, and a mood. The gap between the two floors is what a model gains by looking back. Looking back
# needs attention. That is lesson 2.
#
# ## Recap
#
# - A zero-layer transformer is one table, $W_E W_U + b_U$.
# - Its loss is the conditional entropy of the language plus the divergence of its table from the truth.
# - A floor from counts is too low on the text that was counted. Score on text that was not.
# - The width of the residual stream bounds the rank of the table.
#
# **Think about it.** (1) Why does adding a constant to a row of logits change nothing? (2) How many
# parameters does the table have, and how many do $W_E$ and $W_U$ have? When is the model a compression?
# (3) In a model with layers, $W_E W_U$ is still there: what should it learn when heads do part of the work?
#
# **Further reading**
#
# - Elhage et al. 2021, [A Mathematical Framework for Transformer Circuits](https://transformer-circuits.pub/2021/framework/index.html),
#   section "Zero-Layer Transformers".
# - Shannon 1951, *Prediction and Entropy of Printed English*, Bell System Technical Journal 30.
# - Miller 1955, *Note on the bias of information estimates*, in Information Theory in Psychology.
# - Cover and Thomas, *Elements of Information Theory*, chapter 2, for entropy and divergence.

# %% [instructor]
# **Timing.** 10 minutes for the table and 1.1; 20 for counting and the floor; 15 for the excess; 20 for
# training; 15 for the width and the end. Exercise 1.6 can be left as homework.
#
# **Numbers that vary.** Training is seeded, but sums in float32 depend on the processor: expect the excess
# after training at width 16 between 0.001 and 0.03 nats. The floors and the cut tables are exact.
#
# **If time is short**, skip the figure of entropy against corpus size, but keep the sentence.
