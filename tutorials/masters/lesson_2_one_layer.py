# ---
# lesson: 2
# title: One layer: QK, OV, skip-trigrams, copying
# minutes: 90
# ---

# %% [markdown]
# One layer of attention lets a model look back. Lesson 1 ended with a gap that only looking back can close.
# In this lesson you take a trained one-layer model apart, head by head, into two tables each: one says
# *where* the head looks, the other says *what it does* with what it finds. Together they are facts of the form
# "when `source` occurred earlier, then after `destination` comes `out`": **skip-trigrams**.
#
# **You will learn to**
#
# - write attention as three steps, and check yourself against a real model;
# - read a head as a QK circuit and an OV circuit, in the language of tokens;
# - split the logits into a direct path and one term for each head, exactly;
# - find the skip-trigrams of a head, and test them by changing the text;
# - plant a fact in a head by hand, and find planted facts in a trained model.
#
# **You need** lesson 1, and softmax.
#
# **Conventions.** Rows are what receives: a pattern is indexed `[query, key]`. `x @ W` as before.

# %%
import pandas as pd
import plotly.graph_objects as go
import torch
from IPython.display import Image
from jaxtyping import Float, Int
from torch import Tensor

import lens_linear as ll
from lens_linear.models import ModelSpec, bridge_from_module, native_module, token_strings
from lens_linear.plots import colour, escape, matrix, styled

_ = torch.set_grad_enabled(False)

# %% [markdown]
# ## One head in three steps
#
# A head has four matrices. From the residual stream $x$ (one row for each position) it makes queries
# $q = x W_Q$, keys $k = x W_K$ and values $v = x W_V$, each of width `d_head`.
#
# 1. **Scores**: $q_i \cdot k_j / \sqrt{d_{\text{head}}}$ for each query $i$ and key $j$. A key that comes after
#    the query is forbidden: its score is minus infinity.
# 2. **Pattern**: softmax of the scores over the keys. Each row sums to one.
# 3. **Output**: the values mixed by the pattern, then $W_O$ back to the width of the stream. It is *added* to $x$.

# %% [exercise 2.1 difficulty=2 importance=5 minutes=10] The attention pattern
# Steps 1 and 2: from queries and keys to the pattern.


# %% [solution 2.1]
def attention_pattern(
    q: Float[Tensor, "position d_head"], k: Float[Tensor, "position d_head"]
) -> Float[Tensor, "query key"]:
    """Causal attention pattern: rows sum to one, no query sees a later key."""
    # BEGIN SOLUTION
    n, d_head = q.shape
    scores = q @ k.T / d_head**0.5
    later = torch.ones(n, n).triu(1).bool()
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)
    # END SOLUTION


# %% [check 2.1]
ll.check("2.1", "attention_pattern")

# %% [instructor]
# Wrong answers with their own messages: no mask, no scale, masking after the softmax, zeros instead of minus infinity
# before it, rows and columns swapped.

# %% [markdown]
# Now a trained model. `attn-1l` has one layer of four heads, no MLP and no norm, and was trained on children's
# books. Does your function give the pattern that the model really uses?

# %%
model = ll.load("attn-1l")
text = "Once upon a time the old king said to the little girl: the door of the house is open."
tokens = ll.tokenize_prompts(model, [text])[0]
words = token_strings(model, tokens)
_, cache = model.run_with_cache(tokens[None])

head = 1
q, k = cache["q", 0][0, :, head], cache["k", 0][0, :, head]
pattern = cache["pattern", 0][0]  # [head, query, key]
print(
    f"largest difference to the model's pattern: {(attention_pattern(q, k) - pattern[head]).abs().max():.1e}"
)

# %%
figure = matrix(
    pattern[head],
    rows=words,
    columns=words,
    value_name="attention",
    row_name="from",
    column_name="to",
    diverging=False,
)
styled(
    figure, title=f"Where head {head} looks", x="key (looked at)", y="query (looking)", height=640
)

# %% [markdown]
# **What you should see.** A triangle: nothing above the diagonal. Some rows are spread out, others have one bright
# cell. The diagonal is often bright: the head looks at the current token itself. In a one-layer model that is not
# useless: together with the head's OV circuit it corrects the bigram table.
#
# The next cell shows all heads with CircuitsVis. Hover over a small square to see that head large. (Run it; the stored
# notebook leaves it out to stay small.)

# %%
ll.plots.attention_heads(ll.circuits.attention_pattern(model, tokens, layer=0), height=600)

# %% [markdown]
# ## The two circuits
#
# The stream that enters the layer is an embedding plus a position vector. Leave positions aside for the moment.
# Then the score between a query token $a$ and a key token $b$ is an entry of one table,
#
# $$\mathrm{QK} = \frac{W_E W_Q\, W_K^\top W_E^\top}{\sqrt{d_{\text{head}}}} \qquad [\text{query token, key token}],$$
#
# and what attending to token $b$ adds to the logits is a row of another,
#
# $$\mathrm{OV} = W_E W_V W_O W_U \qquad [\text{source token, output token}].$$
#
# That is the central trick of this lesson: **the head's four matrices never act alone, only in these two products.**
# A single entry of $W_Q$ means nothing; an entry of QK means something that you can say in words.

# %% [exercise 2.2 difficulty=2 importance=5 minutes=8] The QK circuit
# Write it, with its scale.


# %% [solution 2.2]
def qk_circuit(
    W_E: Float[Tensor, "vocab d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
) -> Float[Tensor, "vocab vocab"]:
    """Score of each query token with each key token."""
    # BEGIN SOLUTION
    return (W_E @ W_Q) @ (W_E @ W_K).T / W_Q.shape[1] ** 0.5
    # END SOLUTION


# %% [check 2.2]
ll.check("2.2", "qk_circuit")

# %% [exercise 2.3 difficulty=1 importance=5 minutes=6] The OV circuit
# Write it.


# %% [solution 2.3]
def ov_circuit(
    W_E: Float[Tensor, "vocab d_model"],
    W_V: Float[Tensor, "d_model d_head"],
    W_O: Float[Tensor, "d_head d_model"],
    W_U: Float[Tensor, "d_model vocab"],
) -> Float[Tensor, "vocab vocab"]:
    """What attending to each token adds to each logit."""
    # BEGIN SOLUTION
    return W_E @ W_V @ W_O @ W_U
    # END SOLUTION


# %% [check 2.3]
ll.check("2.3", "ov_circuit")

# %%
W_E, W_pos, W_U = model.W_E, model.W_pos, model.W_U
W_Q, W_K, W_V, W_O = (
    w[0] for w in (model.W_Q, model.W_K, model.W_V, model.W_O)
)  # of layer 0, [head, ...]
qk = torch.stack([qk_circuit(W_E, W_Q[h], W_K[h]) for h in range(4)])
ov = torch.stack([ov_circuit(W_E, W_V[h], W_O[h], W_U) for h in range(4)])
view = ll.AttentionOnly(model)
print("one head as the package sees it:", view.head(0, head))
print(f"your QK against the package's: {(qk[head] - view.head(0, head).qk.AB).abs().max():.1e}")
# The softmax sees differences of logits only, so the package takes each row's mean out of OV (it centres W_U).
seen = ov[head] - ov[head].mean(1, keepdim=True)
print(f"your OV against the package's: {(seen - view.head(0, head).ov.AB).abs().max():.1e}")
print(f"each circuit is a {tuple(qk[head].shape)} table of rank at most {W_Q.shape[-1]}")

# %% [markdown]
# ## The logits are a sum
#
# Everything in this model is added to the stream, and unembedding is linear. So the logits are a sum, with no
# approximation: the direct path of lesson 1, plus one term for each head.

# %% [exercise 2.4 difficulty=2 importance=5 minutes=10] What a head adds
# Given a head's pattern and the stream $x$ that it reads, return what it adds to the logits at each position.


# %% [solution 2.4]
def head_logits(
    pattern: Float[Tensor, "query key"],
    x: Float[Tensor, "position d_model"],
    W_V: Float[Tensor, "d_model d_head"],
    W_O: Float[Tensor, "d_head d_model"],
    W_U: Float[Tensor, "d_model vocab"],
) -> Float[Tensor, "position vocab"]:
    """The head's term of the logits (biases left out)."""
    # BEGIN SOLUTION
    return pattern @ (x @ W_V) @ W_O @ W_U
    # END SOLUTION


# %% [check 2.4]
ll.check("2.4", "head_logits")

# %%
x = W_E[tokens] + W_pos[: len(tokens)]
direct = x @ W_U
heads = torch.stack([head_logits(pattern[h], x, W_V[h], W_O[h], W_U) for h in range(4)])
# Biases of values and outputs pass through every pattern unchanged, because its rows sum to one.
weights = view.weights.attention
constant = (
    torch.einsum("hd,hdm->m", weights.b_V[0], weights.W_O[0]) + weights.b_O[0]
) @ view.weights.W_U
rebuilt = direct + heads.sum(0) + constant + view.weights.b_U
print(f"largest error of the sum: {(rebuilt - model(tokens[None])[0]).abs().max():.1e}")

right = tokens[
    1:
]  # credit each term with the logit of the right next token, above the average logit
terms = {"direct": direct, **{f"head {h}": heads[h] for h in range(4)}}
credit = {
    name: (t[:-1].gather(1, right[:, None])[:, 0] - t[:-1].mean(1)) for name, t in terms.items()
}
figure = matrix(
    torch.stack(list(credit.values())),
    rows=list(credit),
    columns=words[1:],
    value_name="logit of the right token",
    row_name="term",
    column_name="next token",
)
styled(
    figure,
    title="Who predicted what",
    x="token to be predicted",
    y="term of the logits",
    height=380,
)

# %% [markdown]
# **What you should see.** The sum is exact up to rounding. Every term helps somewhere. Some tokens owe most of their
# logit to a single head (dark blue), and now and then a head argues against the right token (red).
#
# ## Skip-trigrams
#
# Put the two circuits together. At the end of a text the head looks back from the last token, the **destination**.
# It chooses by QK among the tokens that it can see, and adds the OV rows of what it chose.

# %% [exercise 2.5 difficulty=2 importance=4 minutes=10] One head reads a text
# Leave positions out. Return what the head adds to the logits after the last token of `tokens`. The last token is
# the query; all tokens, itself included, are keys.


# %% [solution 2.5]
def head_on_text(
    qk: Float[Tensor, "vocab vocab"], ov: Float[Tensor, "vocab out"], tokens: Int[Tensor, "n"]
) -> Float[Tensor, "out"]:
    """Attention from the last token by QK scores, applied to OV rows."""
    # BEGIN SOLUTION
    attention = qk[tokens[-1], tokens].softmax(dim=0)
    return attention @ ov[tokens]
    # END SOLUTION


# %% [check 2.5]
ll.check("2.5", "head_on_text")

# %% [markdown]
# A skip-trigram is strong when two entries are large: `QK[destination, source]` and `OV[source, out]`. The package
# ranks all triples of the vocabulary by their estimated effect: the attention that the source would get among
# other tokens, times what it adds. We leave out triples where source and destination are the same token (there the
# head may just look at the current token: a bigram in disguise), and keep the best `out` of each pair.


# %%
def table_of(triples) -> pd.DataFrame:
    """The strongest triple of each (source, destination), without the pairs of equal tokens."""
    frame = triples.to_dataframe()
    frame = frame[frame.source != frame.destination]
    return frame.groupby(["source", "destination"], sort=False).head(1).reset_index(drop=True)


strongest = table_of(view.all_skip_trigrams(k=200))
columns = ["source_label", "destination_label", "out_label", "attention", "effect", "head"]
shown = strongest[columns].round(2)
shown[columns[:3]] = shown[columns[:3]].map(repr)  # with quotes a leading space can be seen
print("kitchen is cut into", token_strings(model, ll.tokenize_prompts(model, ["a kitchen"])[0][2:]))
shown.head(12)

# %% [markdown]
# **What you should see.** Read a row as "`source` … `destination` → `out`". Most rows are about
# pieces of words: this tokenizer cuts words up (*kitchen* is the example printed above the table), and a head remembers
# how the word began when something stands between. Other rows are about speech: after the end of a quotation a line may
# end.
#
# A table of weights is a claim. Test it on texts: let a text end with the destination, put the source a few tokens
# before it, and measure by how much the logit of `out` rises, compared with the same text without the source. Do it
# for several distances. We also test one triple of head 0 that has to do with quotation marks.

# %%
quotes = view.skip_trigrams(0, 0, k=300, per_pair=1).to_dataframe()
quotes = quotes[quotes.source_label == '"'].head(1)
chosen = pd.concat([strongest.iloc[[0, 2, 6, 10]], quotes])
base = ll.evaluation_tokens(model)[:24, :32]
distances = [1, 2, 4, 8, 16]

figure = go.Figure()
for number, row in enumerate(chosen.itertuples()):
    rises = []
    for distance in distances:
        without = base.clone()
        without[:, -1] = row.destination
        with_source = without.clone()
        with_source[:, -1 - distance] = row.source
        logits = model(torch.cat([without, with_source]))[:, -1]
        logit = logits[:, row.out] - logits.mean(dim=-1)
        rises.append((logit[24:].mean() - logit[:24].mean()).item())
    name = f"{row.source_label!r} … {row.destination_label!r} → {row.out_label!r}"
    figure.add_scatter(x=distances, y=rises, name=escape(name), line_color=colour(number))
figure.update_xaxes(type="log", tickvals=distances, ticktext=[str(d) for d in distances])
styled(
    figure,
    title="Skip-trigrams, tested on text",
    x="distance from source to destination (tokens)",
    y="rise of the logit of out (nats)",
    legend="bottom",
)

# %% [markdown]
# **What you should see.** Close to the destination every source raises its `out`: the weights told the truth. But most
# effects fade within a few tokens. The circuits that we read are about tokens only, and this model has learnt to
# prefer near positions. One line does not fade: after an *opened quotation mark*, a comma with a closing one stays
# likely for a long time. That is a fact about the far past, and no bigram model can have it.
#
# Which head can see far? Take real text, and average the attention by distance.

# %%
_, cache = model.run_with_cache(ll.evaluation_tokens(model)[:24])
patterns = cache["pattern", 0]
figure = go.Figure()
for h in range(4):
    reach = [patterns[:, h].diagonal(-d, dim1=-2, dim2=-1).mean().item() for d in range(33)]
    figure.add_scatter(x=list(range(33)), y=reach, name=f"head {h}", line_color=colour(h))
figure.update_yaxes(type="log", exponentformat="power")
styled(
    figure, title="How far the heads look", x="distance (0 is the token itself)", y="mean attention"
)

# %% [markdown]
# **What you should see.** (The axis is logarithmic.) All heads prefer near tokens, but head 0 keeps far more of its
# attention for tokens long past than the others do. It is the one that remembers the open quotation mark.
#
# ## Copying
#
# Does a head repeat what it sees? Then attending to a token should raise the logit of that same token: the diagonal
# of OV should be large. A single number for this looks at the eigenvalues. If $\mathrm{OV}$ maps a mixture of tokens to
# itself times a positive number, it copies that mixture; times a negative number, it forbids it. The **copying score**
# is
#
# $$\frac{\sum_i \mathrm{Re}\,\lambda_i}{\sum_i |\lambda_i|},$$
#
# between minus one and one. OV has as many rows as there are tokens, but its rank is at most `d_head`. So is there a
# small matrix with the same non-zero eigenvalues?

# %% [exercise 2.6 difficulty=4 importance=4 minutes=15] The copying score
# OV is given in two thin factors, $\mathrm{OV} = A B$. Compute the score without building the big matrix.


# %% [solution 2.6]
def copying_score(A: Float[Tensor, "vocab r"], B: Float[Tensor, "r vocab"]) -> float:
    """Sum of the real parts over the sum of the absolute values of the eigenvalues of A B."""
    # BEGIN SOLUTION
    values = torch.linalg.eigvals(B @ A)
    return float(values.real.sum() / values.abs().sum())
    # END SOLUTION


# %% [check 2.6]
ll.check("2.6", "copying_score")

# %%
rows = []
for name in ("attn-1l", "attn-2l"):
    for circuit in ll.AttentionOnly(ll.load(name)).heads():
        rows.append(
            (name, circuit.layer, circuit.head, float(copying_score(circuit.ov.A, circuit.ov.B)))
        )
scores = pd.DataFrame(rows, columns=["model", "layer", "head", "copying score"])
figure = go.Figure(
    go.Bar(
        x=[f"{r.model} L{r.layer}H{r.head}" for r in scores.itertuples()],
        y=scores["copying score"],
        marker_color=[colour(0 if r.model == "attn-1l" else 1) for r in scores.itertuples()],
    )
)
styled(figure, title="Which heads copy?", x="head", y="copying score")

# %% [markdown]
# **What you should see.** In the one-layer model the far-looking head 0 copies, weakly; the near-looking heads have
# negative scores: they make a token *less* likely right after it was seen, which is right for most text. In the
# two-layer model the heads of the second layer score high, some of them nearly one. What those are for is lesson 3.
#
# ## Plant a fact
#
# You have read facts out of weights. Now write one in, directly as circuits.

# %% [exercise 2.7 difficulty=3 importance=4 minutes=12] One skip-trigram by hand
# Return `qk` and `ov` of a head that raises `out` (by at least four above the average logit) after `destination` when
# `source` occurred before, and does not raise it otherwise.


# %% [solution 2.7]
def plant(
    n_vocab: int, source: int, destination: int, out: int
) -> tuple[Float[Tensor, "vocab vocab"], Float[Tensor, "vocab vocab"]]:
    """QK and OV circuits of one skip-trigram: source … destination → out."""
    # BEGIN SOLUTION
    qk, ov = torch.zeros(n_vocab, n_vocab), torch.zeros(n_vocab, n_vocab)
    qk[destination, source] = 10.0
    ov[source, out] = 10.0
    return qk, ov
    # END SOLUTION


# %% [check 2.7]
ll.check("2.7", "plant")

# %% [markdown]
# Now plant two facts with the same source in one head: "keep … in → mind" and "keep … at → bay". Ask both questions.

# %%
words = ["keep", "in", "mind", "at", "bay", "it", "the", "sea"]
number = {word: i for i, word in enumerate(words)}
facts = [
    plant(8, *(number[w] for w in fact)) for fact in (("keep", "in", "mind"), ("keep", "at", "bay"))
]
both_qk, both_ov = facts[0][0] + facts[1][0], facts[0][1] + facts[1][1]
answers = {}
for question in ("keep it in", "keep it at", "the sea in"):
    logits = head_on_text(both_qk, both_ov, torch.tensor([number[w] for w in question.split()]))
    answers[question] = {word: logits[number[word]].item() for word in ("mind", "bay")}
pd.DataFrame(answers).T.round(2)

# %% [markdown]
# **What you should see.** The head answers, but it cannot tell the two apart: after *keep … in* it raises *bay* as much as
# *mind*. One head looks by QK and speaks by OV, and neither knows what the other needs. The paper calls these the
# **bugs** of skip-trigrams. A second head, or the bigram table, has to correct them.
#
# ## Find planted facts in a trained model
#
# The made-up language of lesson 1 can plant skip-trigrams in its text. Train a one-layer model on it for a few
# seconds, and see whether the facts can be read from its weights. The floors are known: how much can attention gain?

# %%
language = ll.SyntheticLanguage(24, n_skip_trigrams=4, n_names=0, n_mood_words=0, sharpness=1.0)
floors = language.floors(32)
print(f"floor of bigrams {floors.bigram:.3f} nats, floor with skip-trigrams {floors.full:.3f} nats")
language.skip_trigrams.round(3)


# %% [training]
@torch.enable_grad()
def train(steps: int = 500):
    """Train a one-layer attention-only model without positions; returns it and its losses."""
    spec = ModelSpec(
        1,
        d_model=32,
        n_heads=2,
        d_vocab=language.n_vocab,
        n_ctx=32,
        attn_only=True,
        norm="none",
        positions="none",
    )
    module = native_module(spec, seed=0)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    losses = []
    for step in range(steps):
        rows = language.tokens(64, 32, seed=step)
        logits = module(rows)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return bridge_from_module(module.eval(), spec, name="planted"), losses


planted, losses = train()

# %%
figure = go.Figure(go.Scatter(y=losses, line_color=colour(0), name="training loss"))
figure.add_hline(y=floors.bigram, line_dash="dash", line_color=colour(1), annotation_text="bigrams")
figure.add_hline(
    y=floors.full,
    line_dash="dot",
    line_color=colour(2),
    annotation_text="everything",
    annotation_position="bottom right",
)
figure.update_yaxes(range=[floors.full - 0.15, floors.unigram + 0.1])
styled(
    figure,
    title="A one-layer model gets below the bigram floor",
    x="step",
    y="loss (nats a token)",
    legend="none",
)

# %%
held_out = language.tokens(2000, 32, seed=10**6)
log_probs = planted(held_out).log_softmax(dim=-1)
loss = -log_probs[:, :-1].gather(2, held_out[:, 1:, None]).mean()
print(f"held-out loss {loss:.3f} nats: bigrams {floors.bigram:.3f}, everything {floors.full:.3f}")

found = table_of(
    ll.AttentionOnly(planted, labels=language.labels).all_skip_trigrams(k=60, context=16)
)
truth = {tuple(triple) for triple in language.skip_trigram_ids.tolist()}
found["planted"] = [t in truth for t in zip(found.source, found.destination, found.out)]
found[[*columns, "planted"]].head(8).round(2)

# %% [markdown]
# **What you should see.** The held-out loss is below the bigram floor, so the model must look back. At the top of its table
# stand planted skip-trigrams, word for word, with a clear step down to whatever comes next. (A fact about rare words can
# be missing after so short a training.) You have read a model's knowledge from its weights, and it was true.
#
# ## Poke at it
#
# Everything of this lesson for any head, token and text, in one place: the QK and OV rows, the skip-trigrams, the sum of the
# logits, and heads taken away by a click.
# The cell shows the picture of the map. Write `explorer` alone in a cell to open it here, or
# `explorer.save("attn-1l.html")` for a page that works offline.

# %%
explorer = ll.explore(ll.load("attn-1l"))
Image(explorer.picture())

# %% [markdown]
# ## Recap
#
# - A head is two tables: QK says where it looks, OV says what it adds.
# - The logits of a one-layer model are the direct path plus one term for each head, exactly.
# - QK and OV together are skip-trigrams. Reading weights gives hypotheses; changing the text tests them.
# - Token circuits leave positions out, and positions can matter a lot.
# - The sign of OV's eigenvalues says whether a head copies or forbids.
#
# **Think about it.** (1) `W_Q` can be multiplied by any invertible matrix, if `W_K` is changed to match. What does that
# say about interpreting `W_Q` alone? (2) Why can one layer not learn "the token after the previous occurrence of the
# current token"? That is lesson 3. (3) Find a skip-trigram in the table that you do not understand, and test it.
#
# **Further reading**
#
# - Elhage et al. 2021, [A Mathematical Framework for Transformer Circuits](https://transformer-circuits.pub/2021/framework/index.html),
#   section "One-Layer Attention-Only Transformers", with the bugs and the copying score.
# - Vaswani et al. 2017, *Attention Is All You Need*, arXiv 1706.03762.
# - Jain and Wallace 2019, *Attention is not Explanation*, arXiv 1902.10186, for why a pattern alone proves little.

# %% [instructor]
# **Timing.** 25 minutes to the two circuits (2.1 to 2.3), 15 for the sum (2.4), 20 for skip-trigrams (2.5), 15 for copying
# (2.6), 15 for planting and training (2.7). 2.6 can be homework.
#
# **Numbers that vary.** Sums in float32 agree with the model to about 1e-5. The measured rises are averages over 24 texts;
# other texts change them by about 0.5 nats at distance 1. In training, three or four of the planted four come out on top.
#
# **Common wrong answers.** Masking after the softmax (2.1); leaving out or misplacing the scale (2.1, 2.2); transposing the
# pattern (2.4); singular values instead of eigenvalues, or building the vocabulary-sized matrix (2.6).
#
# **A good question for the class.** Why do measured effects fade with distance although QK and OV know nothing of positions?
