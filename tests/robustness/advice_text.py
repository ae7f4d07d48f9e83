"""Advice of token rows, tasks, texts, files of text, concepts and the synthetic language."""

import json
from pathlib import Path

import pandas as pd
import torch
from advice_parts import IDS, known, toy

import lens_linear as ll
from lens_linear import text
from lens_linear.text import TokenStream

MASK = torch.ones_like(IDS)
GAP = MASK.clone()
GAP[0, 4] = 0
LANGUAGE = text.SyntheticLanguage()


def loss(*arguments, **options):
    return ll.stats.score_model(toy(), *arguments, **options)


def file(name, content):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def lines(*rows):
    return file("rows.jsonl", "\n".join(json.dumps(row) for row in rows))


def labelled(positive=1, negative=0):
    return lines(
        *({"text": f"word {i}", "label": positive if i % 2 else negative} for i in range(40))
    )


def stream(ids=None, length=4, n_vocab=24):
    return TokenStream.write(
        "ids", [IDS.flatten() if ids is None else ids], length=length, n_vocab=n_vocab
    )


QUANTIZED = torch.quantize_per_tensor(IDS.float(), 1.0, 0, torch.quint8)

ROWS = [
    # rows of ids
    (
        lambda: loss(IDS.double() + 0.5),
        r"call .long\(\)",
        lambda: loss((IDS.double() + 0.5).long()),
    ),
    (
        lambda: loss(IDS.to_sparse()),
        r"call .to_dense\(\)",
        lambda: loss(IDS.to_sparse().to_dense()),
    ),
    (
        lambda: loss(QUANTIZED),
        r"call .dequantize\(\).long\(\) on ids",
        lambda: loss(QUANTIZED.dequantize().long()),
    ),
    (lambda: loss(IDS[None]), "reshape it", lambda: loss(IDS[None].reshape(12, 16))),
    (lambda: loss(IDS[:0]), "pass at least one row|more or longer text", lambda: loss(IDS[:1])),
    (lambda: loss([]), "pass at least one row of token ids", lambda: loss([IDS[0].tolist()])),
    (lambda: loss(3), "token ids", lambda: loss(IDS)),
    (
        lambda: loss(pd.DataFrame({"words": [1, 2]})),
        "hold them in a column 'input_ids'",
        lambda: loss(pd.DataFrame({"input_ids": IDS.tolist()})),
    ),
    (
        lambda: loss({"input_ids": IDS, "labels": IDS}),
        r"pass lens_linear.Task\(\.*.*labels=..., mask=...\)|ids alone",
        lambda: (loss(ll.Task(IDS, labels=IDS, mask=MASK)), loss({"input_ids": IDS})),
    ),
    (
        lambda: loss([IDS[:2], IDS[0]]),
        "join them with torch.cat, or flatten each",
        lambda: (loss([torch.cat([*IDS[:2]])[:32], IDS[0]]), loss([IDS[:2].flatten(), IDS[0]])),
    ),
    (
        lambda: loss([["a", "b"]]),
        r"lens_linear.tokenize\(model, text\)",
        lambda: ll.stats.score_model(known(), ll.tokenize(known(), "a b and c")),
    ),
    (
        lambda: ll.Task(IDS, mask=torch.cat([0 * MASK[:1], MASK[1:]])),
        "leave empty rows out",
        lambda: ll.Task(IDS[1:], mask=MASK[1:]),
    ),
    (
        lambda: ll.Task(IDS, mask=GAP),
        "pad on one side",
        lambda: ll.Task(IDS, mask=torch.cat([MASK[:, 1:], 0 * MASK[:, :1]], dim=1)),
    ),
    (
        lambda: ll.Task({"input_ids": IDS, "attention_mask": MASK}, mask=MASK),
        "pass only one of them",
        lambda: (ll.Task({"input_ids": IDS, "attention_mask": MASK}), ll.Task(IDS, mask=MASK)),
    ),
    (
        lambda: ll.Task(IDS, mask=MASK[:, :3]),
        "pass one 0 or 1 for each token",
        lambda: ll.Task(IDS, mask=MASK),
    ),
    (
        lambda: ll.Task(IDS, mask=3 * MASK),
        r"\(tokens != pad_id\).long\(\)",
        lambda: ll.Task(IDS.sort(1, descending=True)[0] + 1, mask=(IDS + 1 != 0).long()),
    ),
    (
        lambda: ll.circuits.attention_pattern(toy(), [[1, 2, 3], [4, 5]], 0),
        "rows of one length at a time, or cut all to 2|pass tokens",
        lambda: ll.circuits.attention_pattern(toy(), IDS[0, :2], 0),
    ),
    (
        lambda: ll.qk_attribution(toy(), [[1, 2, 3], [4, 5]], "L1H0"),
        "pass rows of one length at a time, or cut all to 2",
        lambda: (
            ll.qk_attribution(toy(), [[1, 2, 3]], "L1H0"),
            ll.qk_attribution(toy(), [[1, 2], [4, 5]], "L1H0"),
        ),
    ),
    (
        lambda: loss(IDS.repeat(1, 4)),
        r"cut the sequences, e.g. tokens\[:, :32\]",
        lambda: loss(IDS.repeat(1, 4)[:, :32]),
    ),
    (lambda: loss(IDS + 10), "was another model's tokenizer used", lambda: loss(IDS)),
    (
        lambda: ll.linearity_profile(toy(), IDS[:1]),
        "pass at least 3 sequences",
        lambda: ll.linearity_profile(toy(), IDS[:3]),
    ),
    # tasks
    (
        lambda: ll.Task(IDS, metric="accuracies"),
        "must be one of",
        lambda: (
            ll.Task(IDS, metric="accuracy"),
            ll.Task(IDS, metric=lambda logits, labels: logits.mean()),
        ),
    ),
    (
        lambda: loss(ll.Task(IDS, metric=lambda logits, labels: logits.absent)),
        "mend it",
        lambda: loss(ll.Task(IDS, metric=lambda logits, labels: logits.mean())),
    ),
    (
        lambda: loss(ll.Task(IDS, metric=lambda logits, labels: logits)),
        r"one finite number, or one for each of \d+ answers",
        lambda: loss(ll.Task(IDS, metric=lambda logits, labels: logits.mean(-1))),
    ),
    (
        lambda: ll.Task(IDS, labels=["a"] * 12, positions=-1, names=["a", "a"]),
        "name each output once",
        lambda: ll.Task(IDS, labels=["a"] * 12, positions=-1, names=["a", "b"]),
    ),
    (
        lambda: ll.Task(IDS, labels=["c"] * 12, positions=-1, names=["a", "b"]),
        "words among names",
        lambda: ll.Task(IDS, labels=["b"] * 12, positions=-1, names=["a", "b"]),
    ),
    (
        lambda: loss(ll.Task(IDS, labels=["b"] * 12, positions=-1, names=["a", "b"])),
        "pass one word an output",
        lambda: loss(
            ll.Task(IDS, labels=["b"] * 12, positions=-1, names=list("abcdefghijklmnopqrstuvwx"))
        ),
    ),
    (
        lambda: ll.Task(IDS, labels=[[1], [1, 2]], positions=-1),
        r"e.g. labels=torch.tensor\(\[1, 0\]\)|pad them",
        lambda: ll.Task(IDS[:2], labels=torch.tensor([1, 0]), positions=-1),
    ),
    (
        lambda: ll.Task(IDS, positions=IDS),
        "e.g. positions=-1|positions",
        lambda: ll.Task(IDS, labels=IDS[:, 0], positions=-1),
    ),
    (
        lambda: ll.Task(IDS, positions=torch.zeros(2, 2, 2).long()),
        "e.g. positions=-1",
        lambda: ll.Task(IDS, labels=IDS[:, 0], positions=-1),
    ),
    (
        lambda: ll.Task(IDS, positions=99),
        "must lie on real tokens",
        lambda: ll.Task(IDS, positions=9),
    ),
    (
        lambda: ll.Task(IDS, positions=[3, -13]),
        "name each once",
        lambda: ll.Task(IDS, positions=[3, -12]),
    ),
    (
        lambda: ll.Task(IDS, labels=IDS[:5, :3]),
        "pass one of these",
        lambda: (ll.Task(IDS, labels=IDS), ll.Task(IDS, labels=IDS[:, 0], positions=-1)),
    ),
    (
        lambda: ll.Task(IDS, labels=IDS - 30),
        "where nothing is asked",
        lambda: ll.Task(IDS, labels=torch.where(IDS < 5, -100, IDS)),
    ),
    (
        lambda: ll.Task([[1, 2, 3], [4, 5]], labels=[[1, 2], [3, 4, 5]]),
        "pad them with -100",
        lambda: ll.Task([[1, 2, 3], [4, 5]], labels=[[1, 2, -100], [3, 4, -100]]),
    ),
    (
        lambda: ll.Task(IDS, labels=0 * IDS - 100),
        "pass the right answers",
        lambda: ll.Task(IDS, labels=IDS),
    ),
    # texts and their tokens
    (
        lambda: ll.tokenize(known(), "a \ud800 b"),
        "decode the file with errors='replace'",
        lambda: ll.tokenize(known(), b"a \xff b".decode(errors="replace")),
    ),
    (
        lambda: ll.tokenize(known(), ""),
        "pass text that is not empty",
        lambda: ll.tokenize(known(), "a b"),
    ),
    (
        lambda: ll.tokenize_prompts(known(), []),
        "pass at least one text",
        lambda: ll.tokenize_prompts(known(), ["a"]),
    ),
    (
        lambda: text.token_label(3),
        "decode the id first",
        lambda: text.token_label(known().tokenizer.decode([3])),
    ),
    (lambda: text.unique_labels("aa"), r"wrap it in \[\]", lambda: text.unique_labels(["aa"])),
    (
        lambda: text.pack(IDS[0], 5, drop_last=False),
        "pass pad=<id> or drop_last=True",
        lambda: (
            text.pack(IDS[0], 5, drop_last=False, pad=0),
            text.pack(IDS[0], 5, drop_last=True),
        ),
    ),
    (
        lambda: text.pack(IDS[0], 50),
        "pass more text or a shorter length",
        lambda: (text.pack(IDS.flatten(), 50), text.pack(IDS[0], 5)),
    ),
    (lambda: text.pack([[1], [2, 3]], 2), "join nested lists", lambda: text.pack([1, 2, 3], 2)),
    (lambda: text.pack(IDS, 5), "flatten it", lambda: text.pack(IDS.flatten(), 5)),
    (lambda: text.pack(IDS[0] - 30, 5), "was padding left in", lambda: text.pack(IDS[0], 5)),
    # random rows
    (
        lambda: text.repeated_tokens(2, [], 10, 24),
        r"pass \[8, 12\]",
        lambda: text.repeated_tokens(2, [8, 12], 20, 24),
    ),
    (
        lambda: text.random_tokens(2, 5, [3, 3]),
        "pass the vocabulary size or a list of allowed ids",
        lambda: (text.random_tokens(2, 5, 24), text.random_tokens(2, 5, [3, 4])),
    ),
    # synthetic language
    (
        lambda: text.SyntheticLanguage(9, n_skip_trigrams=6),
        "lower it or raise n_words",
        lambda: (
            text.SyntheticLanguage(9, n_skip_trigrams=3),
            text.SyntheticLanguage(18, n_skip_trigrams=6),
        ),
    ),
    (
        lambda: text.SyntheticLanguage(name_pool=3),
        "raise name_pool",
        lambda: text.SyntheticLanguage(name_pool=6),
    ),
    (
        lambda: text.SyntheticLanguage(n_mood_words=1),
        "pass 2 or more",
        lambda: text.SyntheticLanguage(n_mood_words=2),
    ),
    (
        lambda: text.SyntheticLanguage(n_mood_words=0).mood_sentences(4),
        r"build SyntheticLanguage\(n_mood_words=8\)",
        lambda: text.SyntheticLanguage(n_mood_words=8).mood_sentences(4),
    ),
    (
        lambda: LANGUAGE.encode("no such words"),
        "see language.labels",
        lambda: LANGUAGE.encode(LANGUAGE.labels[3]),
    ),
    # concepts
    (
        lambda: text.Concept("c", ("a", "b"), (0,), "here"),
        "one entry for each text",
        lambda: text.Concept("c", ("a", "b"), (0, 1), "here"),
    ),
    (
        lambda: text.Concept("c", ("a", " "), (0, 1), "here"),
        "drop it",
        lambda: text.Concept("c", ("a",), (0,), "here"),
    ),
    (
        lambda: text.Concept("c", ("a", "b"), (1, 2), "here"),
        "map the classes first",
        lambda: text.Concept("c", ("a", "b"), (0, 1), "here"),
    ),
    (
        lambda: ll.load_concept("no/such/file.csv"),
        "check the path",
        lambda: ll.load_concept(labelled()),
    ),
    (
        lambda: ll.load_concept(labelled(1, 1)),
        "check the label column and the classes",
        lambda: ll.load_concept(labelled(1, 0)),
    ),
    (
        lambda: ll.load_concept(labelled("glad", "sad")),
        r"pass classes=\{",
        lambda: ll.load_concept(labelled("glad", "sad"), classes={"glad": 1, "sad": 0}),
    ),
    (
        lambda: ll.load_concept(labelled(), text="label"),
        "name another column",
        lambda: ll.load_concept(labelled(), text="text"),
    ),
    (
        lambda: ll.load_concept(labelled(), text="words"),
        "it has 'text', 'label'; name one of these",
        lambda: ll.load_concept(labelled(), text="text"),
    ),
    # files of text
    (
        lambda: text.read_text(file("a.txt", "")),
        "pass another",
        lambda: text.read_text(file("a.txt", "words")),
    ),
    (
        lambda: text.read_text(file("a.txt", b"a\0b")),
        "pass UTF-8 text",
        lambda: text.read_text(file("a.txt", b"ab")),
    ),
    (
        lambda: text.read_text(file("a.txt", "\xe9".encode("latin-1"))),
        "save it as UTF-8 first",
        lambda: text.read_text(file("a.txt", "\xe9".encode())),
    ),
    (
        lambda: text.read_text("absent.txt"),
        "check the path",
        lambda: text.read_text(file("a.txt", "words")),
    ),
    (
        lambda: ll.load_concept(file("a.xlsx", "text,label\na,1\nb,0\n")),
        "rename or convert it",
        lambda: ll.load_concept(file("a.csv", "text,label\na,1\nb,0\n")),
    ),
    (
        lambda: text.read_documents(file("a.jsonl", "{}")),
        "has no column|name one of these",
        lambda: text.read_documents(lines({"text": "a"})),
    ),
    (
        lambda: text.read_documents(file("a.jsonl", "")),
        "pass another",
        lambda: text.read_documents(lines({"text": "a"})),
    ),
    (
        lambda: text.read_documents(file("a.jsonl", "{")),
        "fix or remove that line",
        lambda: text.read_documents(lines({"text": "a"})),
    ),
    (
        lambda: text.read_documents(file("a.jsonl", "[1]")),
        r'write \{"text": ...\} on each line',
        lambda: text.read_documents(file("a.jsonl", '{"text": "a"}')),
    ),
    (
        lambda: text.read_documents(file("a.json", '{"text": "a"}\n{"text": "b"}')),
        "name it .jsonl",
        lambda: text.read_documents(file("a.jsonl", '{"text": "a"}\n{"text": "b"}')),
    ),
    (
        lambda: text.read_documents(file("a.json", '{"text": "a"}')),
        r"write \[\{...\}, ...\]",
        lambda: text.read_documents(file("a.json", '[{"text": "a"}]')),
    ),
    (
        lambda: text.read_documents(file("a.csv", 'text\n"' + "a" * 200_000)),
        "check its quotes",
        lambda: text.read_documents(file("a.csv", 'text\n"a"\n')),
    ),
    (
        lambda: text.read_documents(lines({"text": 3})),
        "name another column",
        lambda: text.read_documents(lines({"text": 3, "words": "a"}), column="words"),
    ),
    (
        lambda: text.read_documents(lines({"text": ""})),
        "name another column",
        lambda: text.read_documents(lines({"text": "", "words": "a"}), column="words"),
    ),
    # Hugging Face data sets
    (
        lambda: text.huggingface_text(file("a.xlsx", "x")),
        "convert it",
        lambda: text.huggingface_text(lines({"text": "a"})),
    ),
    (
        lambda: text.huggingface_text("no/such-set"),
        "pass the path of the folder or of its",
        lambda: text.huggingface_text(lines({"text": "a"})),
    ),
    (
        lambda: text.huggingface_text(lines({"text": "a"}), column="words"),
        "name one of these",
        lambda: text.huggingface_text(lines({"words": "a"}), column="words"),
    ),
    # streams of ids on disk
    (lambda: stream(length=500), "pass more text or a shorter length", lambda: stream(length=50)),
    (
        lambda: stream(n_vocab=9),
        "pass the vocabulary size of the tokenizer",
        lambda: stream(n_vocab=24),
    ),
    (
        lambda: TokenStream(stream().path, length=500),
        "pass a shorter length",
        lambda: TokenStream(stream().path, length=8),
    ),
    (lambda: stream()[500], "out of range for 48 rows", lambda: stream()[47]),
    (lambda: stream()[[1, 500]], "rows of 48", lambda: stream()[[1, 47]]),
    (
        lambda: stream()["a"],
        "pass a row, a slice, or a list of rows",
        lambda: (stream()[0], stream()[:2], stream()[[0, 1]]),
    ),
    (lambda: stream()[None], r"pass e.g. 0 or \[0, 1\]", lambda: (stream()[0], stream()[[0, 1]])),
    (
        lambda: TokenStream(file("x", "abc"), length=4),
        "write it again",
        lambda: TokenStream(stream().path, length=4),
    ),
    (
        lambda: TokenStream(file("y", Path(stream().path).read_bytes()[:-7]), length=4),
        "write it again",
        lambda: TokenStream(stream().path, length=4),
    ),
]
