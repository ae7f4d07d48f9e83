"""Sections of a report that speak of circuits. They only call, and put numbers into sentences."""

from __future__ import annotations

import pandas as pd
import torch

from lens_linear import plots as figures
from lens_linear.checks import counted
from lens_linear.circuits.paths.attention_only import AttentionOnly
from lens_linear.models.capture import run
from lens_linear.models.checked import CheckedModel
from lens_linear.models.tokenizer import token_strings, tokenize_prompts, vocabulary
from lens_linear.reports.measured import Measured
from lens_linear.reports.page import Attention, Block, Figure, Section, Table
from lens_linear.text.random_rows import repeated_tokens
from lens_linear.token_labels import token_label

_WORDS = (" said", " little", " the", " once", " and", " was")
_ROWS = 33  # drawn for the picture of a pattern; the one with the median stripe is shown
_HEAD_COLUMNS = [
    "head",
    "prefix_matching",
    "positional_control",
    "copying",
    "prev_token",
    "duplicate",
    "excess",
    "verdict",
]


def bigram_section(
    measured: Measured, *, loss: float | None = None, floor: float | None = None
) -> Section:
    """What a model without layers has learnt: a table of bigrams (loss and floor from its card)."""
    model, name = measured.model, measured.name
    table = AttentionOnly(model).bigrams()
    rows = []
    words = [(word, tokenize_prompts(model, [word], bos=False)[0]) for word in _WORDS]
    for word, ids in words:
        if len(ids) != 1:
            continue
        following = table.top(int(ids[0]), 6).to_dataframe()
        texts = token_strings(model, following["next"].tolist())
        row: dict[str, object] = {"token": token_label(word)}
        for rank, (text, probability) in enumerate(
            zip(texts, following["probability"], strict=True), start=1
        ):
            row[f"next {rank}"] = f"{token_label(text)} {100 * probability:.0f}%"
        rows.append(row)
    prose = (
        f"{name} has no layers. Its logits are W_E W_U: one row of bigram scores for every token."
    )
    if loss is not None and floor is not None:
        prose += (
            f" On two whole unseen books its loss is {loss:.3f} nats per token. A table of bigram counts "
            f"from the same training text reaches {floor:.3f} there: {abs(loss - floor):.3f} nats "
            f"{'less' if loss > floor else 'more'}. (These two numbers are from the model's card.)"
        )
    prose += (
        "\n\nThe table lists the likeliest next tokens after a few words, with their probabilities; "
        f"{token_label(' ')} is a space."
    )
    return Section(
        "Zero layers: bigrams", prose, [Table(pd.DataFrame(rows), f"Direct path of {name}.")]
    )


def skip_trigram_section(measured: Measured) -> Section:
    """The strongest skip-trigrams of the head of a one-layer model that copies most."""
    model, view = measured.model, AttentionOnly(measured.model)
    heads = view.heads()
    head = max(heads, key=lambda one: one.copying_score)
    table = view.skip_trigrams(head.layer, head.head, k=12)
    frame = table.to_dataframe().sort_values("effect", ascending=False)
    for column in ("source", "destination", "out"):
        frame[column] = [token_label(t) for t in token_strings(model, frame[column].tolist())]
    copied = int((frame["source"] == frame["out"]).sum())
    itself = int((frame["source"] == frame["destination"]).sum())
    prose = (
        f"A head of one layer moves information from a source token to the destination and raises the "
        f"logits of some out tokens: a skip-trigram, source … destination → out. The table lists the "
        f"{len(frame)} strongest of head {head.name} of {measured.name} by attention and output together, "
        f"largest effect first. "
        f"Copies, where the source token itself is raised: {_number(copied)} of these rows. Source and "
        f"destination are one token in {_number(itself)}: there the head reads the current token, or an "
        "earlier occurrence of it.\n\nThe eigenvalues of the OV circuit say how much a head copies "
        "over all tokens, not only in its strongest rows: 1 copies, -1 suppresses what it reads, near 0 "
        f"neither. The heads score {', '.join(f'{one.name} {one.copying_score:+.2f}' for one in heads)}; "
        f"the table shows the highest."
    )
    columns = ["source", "destination", "out", "qk_score", "ov_score", "attention", "effect"]
    return Section(
        "One layer: skip-trigrams",
        prose,
        [
            Table(
                frame[columns],
                f"Skip-trigrams of {head.name}: QK and OV scores are entries of its circuits, "
                f"attention assumes {table.context} keys to choose among, effect is in logits.",
            )
        ],
    )


def composition_section(measured: Measured, *, title: str = "Composition") -> Section:
    """Which heads read what which heads wrote, beside random matrices of the same shape."""
    scores, name = measured.composition, measured.name
    folded = ", norms folded in," if scores.folded else ""
    frame = scores.to_dataframe()  # largest ratio first
    best, above = frame.iloc[0], scores.above_random()
    passing = ", ".join(f"{n:,} by {kind}" for kind, n in above.items())
    prose = (
        f"A head of a later layer can read what an earlier head wrote, through its queries (Q), keys (K) "
        f"or values (V). The score compares the product of the two heads' matrices{folded} with "
        f"their sizes. Beside it stands what random rotations of the same matrices give. In {name} the "
        f"strongest is {best['kind']}-composition of {best['writer']} into {best['reader']}: "
        f"{best['score']:.3f} against {best['baseline_mean']:.3f}, {best['ratio']:.1f} times as much. Of "
        f"{len(frame):,} pairs {sum(above.values()):,} ({passing}) have a larger ratio than the best "
        "of as many random pairs."
    )
    columns = ["kind", "writer", "reader", "score", "baseline_mean", "ratio", "above_random", "z"]
    return Section(
        title,
        prose,
        [
            Figure(
                figures.composition_map(scores, value="excess"),
                "Rows: heads that write. Columns: heads that read. Blue: the pair composes more than "
                "random matrices do, red: less; the colour is score minus random mean.",
            ),
            Table(frame[columns].head(8), "The pairs that stand out most from random ones."),
        ],
        finding=(
            f"The strongest composition in {name} is {best['kind']} of {best['writer']} into "
            f"{best['reader']}: {best['score']:.3f} against {best['baseline_mean']:.3f} by chance."
        ),
    )


def induction_section(measured: Measured) -> Section:
    """Head scores on repeated random tokens, and the pattern of the best induction head."""
    scores, name = measured.induction, measured.name
    frame = scores.ranked()
    found, previous = scores.heads("induction"), scores.heads("previous-token")
    passed = frame[frame["verdict"] == "induction"]
    best = None if passed.empty else passed.iloc[int(passed["prefix_matching"].argmax())]
    blocks: list[Block] = [
        Figure(
            figures.head_scores(scores),
            "What each head does on the repeated tokens; the stronger the colour, the higher the score "
            "that its verdict rests on.",
        ),
        Table(
            frame[_HEAD_COLUMNS],
            "Heads with a verdict first, by the score of the verdict above its control. Same distance, other "
            "period: attention at that offset in rows with another period. Copying: eigenvalues of the OV "
            "circuit.",
        ),
    ]
    if best is not None:
        named = ", ".join(f"L{layer}H{head}" for layer, head in found)
        prose = (
            f"On random tokens that repeat with mixed periods {name} has {_count(len(found), 'head')} "
            f"that find the previous occurrence of the current token and attend to what followed: {named}. "
            f"The clearest is {best['head']}: {best['prefix_matching']:.2f} of its attention is there, and "
            f"only {best['positional_control']:.2f} at the same distance in rows with another period, so it "
            "follows the repeat and not the distance."
        )
        finding = (
            f"{name} has {_count(len(found), 'induction head')}; the clearest, {best['head']}, puts "
            f"{best['prefix_matching']:.2f} of its attention after the previous occurrence."
        )
    else:
        near = frame.iloc[int(frame["prefix_matching"].argmax())]
        prose = (
            f"On random tokens that repeat with mixed periods no head of {name} passes the test for an "
            f"induction head. The highest prefix-matching score is {near['prefix_matching']:.2f} "
            f"({near['head']}), with {near['positional_control']:.2f} at the same distance in rows with "
            "another period. No pattern is drawn, since no head passed."
        )
        finding = f"No head of {name} passes the test for an induction head."
    if previous:
        prose += (
            "\n\nPrevious-token heads, which tell each position what came before it: "
            + ", ".join(f"L{layer}H{head}" for layer, head in previous)
            + "."
        )
        if any(layer < later for layer, _ in previous for later, _ in found):
            prose += (
                " An induction head needs one in an earlier layer: it looks, through its keys, for "
                "positions that were told that the current token came before them."
            )
    if best is not None:
        blocks.append(_pattern(measured.model, best, measured.seed))
    return Section("Induction heads", prose, blocks, finding=finding)


def _pattern(model: CheckedModel, best: pd.Series, seed: int) -> Attention:
    """Pattern of the best head's layer on words said twice, that head first."""
    period = min(10, (model.n_ctx - 2) // 2)
    bos = model.bos
    ids = _words(model)
    rows = repeated_tokens(
        _ROWS,
        period,
        2 * period + (bos is not None),
        ids,
        seed,
        bos=bos,
        distinct=len(ids) > period,
    ).tokens
    layer, index = int(best["layer"]), int(best["index"])
    patterns = run(model, rows, record=[(layer, "pattern")], logits=False)[(layer, "pattern")]
    again = torch.arange(period + (bos is not None), rows.shape[1])
    stripes = patterns[:, index, again, again - period + 1].float().mean(-1)
    typical = int(stripes.argsort()[_ROWS // 2])
    pattern, row, stripe = patterns[typical], rows[typical], float(stripes[typical])
    order = sorted(range(len(pattern)), key=lambda head: head != index)
    return Attention(
        pattern[order].float().numpy(),
        [token_label(text) for text in token_strings(model, row)],
        [f"L{layer}H{head}" for head in order],
        f"Layer {layer} on {period} random tokens said twice, rows attend to columns. {best['head']} "
        f"is an induction head: "
        f"in the second half {stripe:.2f} of its attention lies on the stripe below the diagonal, that is on "
        f"the token after the previous occurrence (shown: the middle one of {_ROWS} such rows). Hover over a "
        "head, click to keep it.",
    )


def _words(model: CheckedModel) -> list[int]:
    """Ids of tokens that begin a word, or read as letters, or all ids where there are too few."""
    texts = vocabulary(model)
    letters = [
        i for i, text in enumerate(texts) if len(text.strip()) >= 3 and text.strip().isalpha()
    ]
    begins = [i for i in letters if texts[i].startswith(" ")]
    return next((ids for ids in (begins, letters) if len(ids) >= 20), list(range(len(texts))))


def _count(number: int, noun: str) -> str:
    return f"{_number(number)} {noun}" + ("" if number == 1 else "s")


def _number(number: int) -> str:
    words = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if number < len(words) else str(number)


def path_section(measured: Measured) -> Section:
    """How much every order of paths is worth to a task, or to next tokens, with the exact sum checked."""
    name = measured.name
    expansion = AttentionOnly(measured.model).paths(measured.asked.take(slice(0, 4)))
    importance = expansion.importance()
    frame = importance.to_dataframe()
    gains = ", ".join(
        f"order {int(row['order'])} by {row['effect']:.3f}" for _, row in frame.iterrows()
    )
    loss = importance.metric == "loss"
    moves, unit = ("lowers", " nats") if loss else ("raises", "")
    prose = (
        f"With attention patterns and norm scales held as they are, {name} is an exact sum of "
        f"{len(expansion.terms)} end-to-end paths. Their sum differs from the model's logits by at most "
        f"{expansion.max_error:.1e}. A uniform guess has a {importance.metric} of "
        f"{importance.uniform:.2f}{unit}. "
        f"Adding the paths order by order (0 is the direct path, 1 goes through one head, and so on) "
        f"{moves} it: {gains}. What is left is "
        f"{importance.losses[-1]:.2f}, the model's own {importance.metric} on these "
        f"{counted(importance.n_tokens, 'answer')}."
    )
    return Section(
        "Paths, exactly",
        prose,
        [
            Figure(
                figures.path_importance(importance),
                f"What each order of paths is worth{', in nats' if loss else ''}.",
            )
        ],
        finding=(
            f"{name} is an exact sum of {counted(len(expansion.terms), 'path')}; by order they "
            f"{moves[:-1]} the "
            f"{importance.metric}: {gains}."
        ),
    )
