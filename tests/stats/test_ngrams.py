"""N-gram counts against slow loops, closed forms, and a language whose statistics are known."""

import doctest
import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lens_linear.errors import FigureTooLargeError, InvalidArgumentError, NotEnoughDataError
from lens_linear.stats import _skip_trigram_counts, _token_blocks, ngrams
from lens_linear.stats.ngrams import (
    bigram_counts,
    bigram_entropy,
    bigram_kl,
    skip_trigram_counts,
)
from lens_linear.text import SyntheticLanguage, TokenStream

TOKENS = st.integers(2, 9).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 4), min_size=length, max_size=length), min_size=1, max_size=8
    )
)


def slow_pairs(rows):
    return Counter((a, b) for row in rows for a, b in pairwise(row))


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.booleans())
def test_counts_equal_a_slow_loop(rows, sparse):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_token_blocks, "CHUNK_TOKENS", 8)  # several blocks
        if sparse:
            kwargs = (0, 3)  # no plain table, merge after 3 events
            patch.setattr(_token_blocks.SparseCounts.__init__, "__kwdefaults__",
                          dict(zip(("max_table", "flush"), kwargs)))  # fmt: skip
        counts = bigram_counts(torch.tensor(rows), 5)
    truth = slow_pairs(rows)
    found = zip(counts.current.tolist(), counts.following.tolist(), counts.count.tolist())
    assert {(a, b): n for a, b, n in found} == truth
    assert counts.n_pairs == sum(truth.values())
    assert counts.n_tokens == sum(map(len, rows))
    dense = counts.dense()
    assert all(int(dense[a, b]) == truth[a, b] for a in range(5) for b in range(5))
    assert torch.equal(counts.rows(torch.tensor([4, 0, 4])), dense[[4, 0, 4]])
    assert torch.equal(counts.n_current, dense.sum(1))


def test_rows_are_not_joined():
    counts = bigram_counts(torch.tensor([[0, 1], [2, 3]]), 4)
    assert counts.dense()[1, 2] == 0 and counts.n_pairs == 2
    assert bigram_counts(torch.tensor([0, 1, 2]), 4).n_pairs == 2  # one row is enough


@settings(max_examples=50, deadline=None)
@given(TOKENS)
def test_entropy_equals_a_slow_loop(rows):
    pairs = slow_pairs(rows)
    n = sum(pairs.values())
    seen = Counter()
    for (a, _), count in pairs.items():
        seen[a] += count
    loss = -sum(count * math.log(count / seen[a]) for (a, _), count in pairs.items()) / n
    tokens = torch.tensor(rows)
    assert bigram_entropy(tokens, 5) == pytest.approx(loss, abs=1e-12)
    bias = (len(pairs) - len(seen)) / (2 * n)
    corrected = bigram_entropy(bigram_counts(tokens, 5), correction="miller-madow")
    assert corrected == pytest.approx(loss + bias, abs=1e-12)


def test_entropy_of_a_two_state_chain_has_the_closed_form():
    # A corpus with exactly the pair frequencies of p = P(0 -> 1) = 0.2 and q = P(1 -> 0) = 0.4.
    rows = [[0, 0]] * 80 + [[0, 1]] * 20 + [[1, 0]] * 20 + [[1, 1]] * 30

    def h(x):
        return -x * math.log(x) - (1 - x) * math.log(1 - x)

    p, q = 0.2, 0.4
    rate = (q * h(p) + p * h(q)) / (p + q)
    assert bigram_entropy(torch.tensor(rows), 2) == pytest.approx(rate, abs=1e-12)


def test_miller_madow_removes_most_of_the_bias():
    language = SyntheticLanguage(n_skip_trigrams=0, n_names=0, n_mood_words=0)
    plain, corrected = [], []
    for seed in range(12):
        counts = bigram_counts(language.tokens(1000, 64, seed=seed), language.n_vocab)
        plain.append(bigram_entropy(counts) - language.entropy_rate)
        corrected.append(bigram_entropy(counts, correction="miller-madow") - language.entropy_rate)
    error = np.std(corrected) / 12**0.5
    assert np.mean(plain) < -0.01  # too low, clearly
    assert abs(np.mean(corrected)) < 0.2 * abs(np.mean(plain)) + 3 * error


class TestDivergence:
    language = SyntheticLanguage(12, n_skip_trigrams=0, n_names=0, n_mood_words=0)
    tokens = language.tokens(200, 32, seed=1)
    counts = bigram_counts(tokens, 12)

    def test_is_its_formula(self):
        q = SyntheticLanguage(12, n_skip_trigrams=0, n_names=0, n_mood_words=0, seed=5).bigram_table
        result = bigram_kl(q.log(), self.counts)
        p = self.counts.dense() / self.counts.n_current[:, None].double()
        per_token = torch.special.xlogy(p, p / q).sum(1)
        weights = self.counts.n_current.double() / self.counts.n_pairs
        assert torch.allclose(result.per_token, per_token, atol=1e-12)
        assert result.mean == pytest.approx(float(per_token @ weights), abs=1e-12)
        assert result.mean > 0.5
        frame = result.to_dataframe()
        share = frame["kl"] * frame["count"]
        assert len(frame) == 12 and (share.diff().dropna() <= 0).all()
        assert "nats a token" in repr(result)

    def test_is_zero_for_the_corpus_itself_and_near_its_bias_for_the_truth(self):
        p = self.counts.dense() / self.counts.n_current[:, None].double()
        assert bigram_kl(p.log(), self.counts).mean == pytest.approx(0.0, abs=1e-12)
        truth = bigram_kl(self.language.bigram_table.log(), self.counts).mean
        bias = (len(self.counts.count) - 12) / (2 * self.counts.n_pairs)
        assert 0.5 * bias < truth < 2 * bias

    def test_difference_to_the_entropy_is_the_loss(self):
        q = self.language.bigram_table
        loss = -q.log()[self.tokens[:, :-1], self.tokens[:, 1:]].mean()
        kl = bigram_kl(q.log(), self.counts).mean
        assert float(loss) == pytest.approx(bigram_entropy(self.counts) + kl, abs=1e-12)

    def test_function_and_table_agree_and_chunks_do_not_matter(self, monkeypatch):
        log_q = self.language.bigram_table.log().float()
        whole = bigram_kl(log_q, self.counts)
        monkeypatch.setattr(ngrams, "CHUNK_TOKENS", 25)  # two rows at a time
        asked = []

        def rows(ids):
            asked.append(len(ids))
            return log_q[ids]

        parts = bigram_kl(rows, self.counts)
        assert asked == [2] * 6
        assert torch.equal(parts.per_token, whole.per_token) and parts.mean == whole.mean

    def test_token_that_is_never_followed_has_no_divergence(self):
        counts = bigram_counts(torch.tensor([[0, 1]]), 3)
        result = bigram_kl(torch.full((3, 3), 1 / 3).log(), counts)
        assert result.per_token.isnan().tolist() == [False, True, True]
        assert result.mean == pytest.approx(math.log(3))
        assert result.to_dataframe()["token"].tolist() == [0]

    def test_a_pair_that_the_model_rules_out_costs_infinity(self):
        counts = bigram_counts(torch.tensor([[0, 1]]), 2)
        assert bigram_kl(torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log(), counts).mean == math.inf

    def test_refuses_logits_and_other_vocabularies(self):
        with pytest.raises(InvalidArgumentError, match="log_softmax"):
            bigram_kl(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)), self.counts)
        with pytest.raises(InvalidArgumentError, match="another vocabulary"):
            bigram_kl(torch.zeros(5, 5), self.counts)
        with pytest.raises(InvalidArgumentError, match="log_softmax"):
            bigram_kl(torch.full((12, 12), float("nan")), self.counts)


def slow_skip_trigrams(rows, window, min_count):
    """{(source, destination, out): (count, expected, lift)} by nested loops."""
    triples, armed, pairs, current = Counter(), Counter(), Counter(), Counter()
    for row in rows:
        for t in range(len(row) - 1):
            d, o = row[t], row[t + 1]
            pairs[d, o] += 1
            current[d] += 1
            for s in set(row[max(0, t - window) : t]):
                armed[s, d] += 1
                triples[s, d, o] += 1
    result = {}
    for (s, d, o), n in triples.items():
        expected = armed[s, d] * pairs[d, o] / current[d]
        if n >= min_count and n > expected:
            result[s, d, o] = (n, expected, n / expected)
    return result


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.integers(1, 9), st.integers(1, 3), st.booleans())
@example([[0, 1, 1, 1, 2]], 2, 2, False)  # one source, two events of the same triple
def test_skip_trigrams_equal_nested_loops(rows, window, min_count, sparse):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_token_blocks, "CHUNK_TOKENS", 16)
        if sparse:
            patch.setattr(_token_blocks.SparseCounts.__init__, "__kwdefaults__",
                          {"max_table": 0, "flush": 5})  # fmt: skip
        table = skip_trigram_counts(
            torch.tensor(rows), 5, window=window, min_count=min_count, k=10_000
        )
    truth = slow_skip_trigrams(rows, window, min_count)
    keys = [tuple(row) for row in table[["source", "destination", "out"]].to_numpy().tolist()]
    assert sorted(keys) == sorted(truth)
    for key, row in zip(keys, table.to_dict("records")):
        assert (row["count"], row["expected"], row["lift"]) == pytest.approx(truth[key])
        assert row["gain"] == pytest.approx(row["count"] * math.log(row["lift"]))
    assert (table["gain"].diff().dropna() <= 1e-9).all()


def test_planted_skip_trigrams_come_out_on_top():
    language = SyntheticLanguage(n_skip_trigrams=6, n_names=0, n_mood_words=0)
    tokens = language.tokens(3000, 64, seed=0)
    table = skip_trigram_counts(tokens, language.n_vocab, k=3000)
    ranks = []
    for (source, destination, out), planted in zip(
        language.skip_trigram_ids.tolist(), language.skip_trigrams.to_dict("records")
    ):
        rivals = table[(table["destination"] == destination) & (table["out"] == out)]
        assert rivals.iloc[0]["source"] == source
        ranks.append(rivals.index[0])
        best = rivals.iloc[0]
        events = tokens[:, :-1] == destination
        base = float((tokens[:, 1:][events] == out).double().mean())
        p = planted["probability"]
        n = best["count"] / p
        assert abs(best["lift"] * base - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert max(ranks) < 20  # of tens of thousands of triples that occur


@pytest.mark.parametrize(
    "most, shape, rows",
    [(40, (7, 16), [2, 2, 2, 1]), (10, (3, 16), [1] * 3), (4, (9, 1), [4, 4, 1])],
)
def test_a_block_holds_no_more_tokens_than_it_may(most, shape, rows, monkeypatch):
    monkeypatch.setattr(_token_blocks, "CHUNK_TOKENS", most)
    tokens = torch.arange(math.prod(shape)).reshape(shape)
    blocks = list(_token_blocks.token_blocks(tokens, tokens.numel(), min_length=1))
    assert [len(block) for block in blocks] == rows and torch.equal(torch.cat(blocks), tokens)


def test_a_token_stream_counts_as_its_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(_token_blocks, "CHUNK_TOKENS", 64)
    language = SyntheticLanguage(seed=2)
    tokens = language.tokens(30, 20, seed=0)
    stream = TokenStream.write(
        tmp_path / "a.bin", [tokens.flatten()], length=20, n_vocab=language.n_vocab
    )
    for function in (bigram_counts, skip_trigram_counts):
        ours, theirs = (function(t, language.n_vocab) for t in (stream, tokens))
        if function is skip_trigram_counts:
            assert ours.equals(theirs) and len(ours)
        else:
            assert ours.to_dataframe().equals(theirs.to_dataframe())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_a_vocabulary_of_50k_never_becomes_dense():
    code = """
import re, torch
from pathlib import Path
from lens_linear.stats.ngrams import *
V = 50_000
tokens = (torch.rand(400, 256, generator=torch.Generator().manual_seed(0)) * 1500).long() * 33
def peak():  # ru_maxrss would begin at the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
counts = bigram_counts(tokens, V)
bigram_entropy(counts)
counts.rows(torch.arange(5))
bigram_kl(lambda ids: torch.full((len(ids), V), 1 / V).log(), counts)
skip_trigram_counts(tokens, V, window=8)
print((peak() - before) / 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 600  # MB; one dense table is 20,000
    with pytest.raises(FigureTooLargeError, match=r"\.rows"):
        bigram_counts(torch.tensor([[0, 1]]), 50_000).dense()


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: bigram_counts(torch.tensor([[1]]), 4), NotEnoughDataError, "at least 2 tokens"),
        (lambda: bigram_counts(torch.zeros(0, 4).long(), 4), NotEnoughDataError, "tokens"),
        (lambda: bigram_counts(torch.tensor([[1, 4]]), 4), InvalidArgumentError, "ids 0 to 3"),
        (lambda: bigram_counts([[1, 2], [3]], 4), InvalidArgumentError, "rows of 1 to 2"),
        (lambda: bigram_counts("text", 4), InvalidArgumentError, "tensor of token ids"),
        (lambda: bigram_counts(torch.rand(2, 3), 4), InvalidArgumentError, "whole token ids"),
        (lambda: bigram_entropy(torch.tensor([[1, 2]])), InvalidArgumentError, "n_vocab"),
        (lambda: bigram_entropy(torch.tensor([[1, 2]]), 4, correction="mm"),
         InvalidArgumentError, "miller-madow"),
        (lambda: bigram_counts(torch.tensor([[1, 2]]), 4).rows(torch.tensor([4])),
         InvalidArgumentError, "ids 0 to 3"),
        (lambda: skip_trigram_counts(torch.tensor([[1, 2]]), 4, window=0),
         InvalidArgumentError, "window"),
        (lambda: skip_trigram_counts(torch.tensor([[1, 2]]), 3_000_000),
         InvalidArgumentError, "n_vocab"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("module", [ngrams, _skip_trigram_counts, _token_blocks])
def test_examples_are_true(module):
    assert doctest.testmod(module).failed == 0


def test_tables_and_sentences():
    counts = bigram_counts(torch.tensor([[0, 1, 0, 2]]), 3)
    frame = counts.to_dataframe()
    assert frame.values.tolist() == [[0, 1, 1, 0.5], [0, 2, 1, 0.5], [1, 0, 1, 1.0]]
    assert "3 different pairs among 3" in repr(counts)
    assert skip_trigram_counts(torch.tensor([[0, 1]]), 2).empty
