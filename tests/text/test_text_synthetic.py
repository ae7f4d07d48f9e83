"""The synthetic language against a slow reading of its definition: enumeration, loops, closed forms."""

import math
import time
from collections import Counter, defaultdict
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy import stats

from lens_linear.errors import InvalidArgumentError
from lens_linear.text import SyntheticLanguage

TINY = {"n_words": 3, "n_skip_trigrams": 1, "strength": 0.7, "name_rate": 0.2, "mood_rate": 0.15}
CASES = {
    "bigrams": {"n_skip_trigrams": 0, "n_names": 0, "n_mood_words": 0},
    "skip": {"n_names": 0, "n_mood_words": 0},
    "one name": {"n_names": 1, "name_length": 2, "name_pool": 3, "n_mood_words": 0},
    "two names": {"n_names": 2, "name_length": 2, "name_pool": 4, "n_mood_words": 0},
    "long name": {"n_names": 1, "name_length": 3, "name_pool": 3, "n_mood_words": 0},
    "mood": {"n_names": 0, "n_mood_words": 2},
    "all": {"n_names": 1, "name_length": 2, "name_pool": 3, "n_mood_words": 2},
}
AGAIN = {"n_words": 2, "n_skip_trigrams": 0, "n_names": 2, "name_length": 2, "name_pool": 4}
CASES["a name comes again, and words after it"] = {**AGAIN, "n_mood_words": 0}


def tiny(case):
    return SyntheticLanguage(**{**TINY, **CASES[case]})


class Reader:
    """p(next | everything before), read off the language's definition one history at a time."""

    def __init__(self, language):
        self.n_words = language.n_words
        self.pool = language.name_pool if language.n_names else 0
        self.n_names, self.length = language.n_names, language.name_length
        self.q = language.name_rate if language.n_names else 0.0
        self.r = language.mood_rate if language.n_mood_words else 0.0
        self.moods = language.n_mood_words
        self.table = language.bigram_table[: self.n_words, : self.n_words].tolist()
        self.start = language.stationary[: self.n_words].tolist()
        self.planted = {d: (s, o) for s, d, o in language.skip_trigram_ids.tolist()}
        self.strength = language.strength

    def kind(self, token):
        if token < self.n_words:
            return "word"
        return "name" if token < self.n_words + self.pool else "mood"

    def parse(self, history):
        known, partial, mood = [], [], None
        for token in history:
            if self.kind(token) == "name":
                partial = [] if len(partial) == self.length else partial
                partial = [*partial, token]
                if len(partial) == self.length and tuple(partial) not in known:
                    known.append(tuple(partial))
            else:
                partial = []
                if self.kind(token) == "mood":
                    mood = int(token >= self.n_words + self.pool + self.moods)
        return known, partial, mood

    def words(self, history):
        current = history[-1]
        row = list(self.table[current])
        if current in self.planted:
            source, out = self.planted[current]
            if source in history[:-1]:
                row = [(1 - self.strength) * p for p in row]
                row[out] += self.strength
        return row

    def next(self, history):
        result = defaultdict(float)
        if not history:
            return dict(enumerate(self.start))
        kind = self.kind(history[-1])
        known, partial, mood = self.parse(history)
        used = {token for name in known for token in name}
        syllables = range(self.n_words, self.n_words + self.pool)
        if kind == "mood" or (kind == "name" and len(partial) == self.length):
            return dict(enumerate(self.start))
        if kind == "name":
            for name in known:
                if name[0] == partial[0]:
                    return {name[len(partial)]: 1.0}
            left = [s for s in syllables if s not in used and s not in partial]
            return dict.fromkeys(left, 1 / len(left))
        for token, p in enumerate(self.words(history)):
            result[token] += (1 - self.q - self.r) * p
        if self.q:
            for name in known:
                result[name[0]] += self.q / self.n_names
            left = [s for s in syllables if s not in used]
            for token in left:
                result[token] += self.q * (1 - len(known) / self.n_names) / len(left)
        if self.r:
            first = self.n_words + self.pool
            classes = (0, 1) if mood is None else (mood,)
            for c in classes:
                for i in range(self.moods):
                    result[first + c * self.moods + i] += self.r / self.moods / len(classes)
        return {token: p for token, p in result.items() if p > 0}

    def enumerate(self, length):
        """{sequence: probability} of every sequence that can occur."""
        level = {(): 1.0}
        for _ in range(length):
            level = {
                (*history, token): p * q
                for history, p in level.items()
                for token, q in self.next(history).items()
            }
        return level


def slow_floors(language, length):
    """Unigram, bigram and full floors and the pair distribution, by brute force."""
    reader = Reader(language)
    joint = np.zeros((language.n_vocab, language.n_vocab))
    full = 0.0
    for history, p in reader.enumerate(length).items():
        for a, b in pairwise(history):
            joint[a, b] += p
    joint /= length - 1
    level = reader.enumerate(1)
    for _ in range(length - 1):
        after = {}
        for history, p in level.items():
            for token, q in reader.next(history).items():
                full -= p * q * math.log(q)
                after[(*history, token)] = p * q
        level = after
    current, following = joint.sum(1), joint.sum(0)
    bigram = stats.entropy(joint.ravel()) - stats.entropy(current)
    return stats.entropy(following), bigram, full / (length - 1), joint


@pytest.mark.parametrize(
    "case, length",
    [*product(list(CASES)[:-1], [2, 3, 5]), (list(CASES)[-1], 8)],
)
def test_floors_equal_brute_force_enumeration(case, length):
    language = tiny(case)
    unigram, bigram, full, joint = slow_floors(language, length)
    floors = language.floors(length)
    assert joint.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(floors.joint.numpy(), joint, atol=1e-13)
    assert floors.unigram == pytest.approx(unigram, abs=1e-12)
    assert floors.bigram == pytest.approx(bigram, abs=1e-12)
    assert floors.full == pytest.approx(full, abs=1e-12)
    mass, following = joint.sum(1, keepdims=True), joint.sum(0)
    table = np.where(mass > 0, joint / np.where(mass > 0, mass, 1), following)
    np.testing.assert_allclose(language.marginal_bigrams(length).numpy(), table, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_sampled_sequences_follow_the_definition(case):
    # Sequences are independent, so this is an honest chi-square over whole sequences.
    language, length, n = tiny(case), 4, 60_000
    exact = Reader(language).enumerate(length)
    seen = Counter(map(tuple, language.tokens(n, length, seed=5).tolist()))
    assert set(seen) <= set(exact)
    common = [s for s, p in exact.items() if n * p >= 5]
    observed = np.array([seen[s] for s in common] + [n - sum(seen[s] for s in common)])
    expected = n * np.array([exact[s] for s in common] + [1 - sum(exact[s] for s in common)])
    if expected[-1] < 1e-6:
        observed, expected = observed[:-1], expected[:-1]
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(chi2, len(expected) - 1) > 1e-4


def test_two_state_chain_has_the_closed_form_entropy():
    language = SyntheticLanguage(2, n_skip_trigrams=0, n_names=0, n_mood_words=0, seed=3)
    (_, p), (q, _) = language.bigram_table.tolist()

    def h(x):
        return -x * math.log(x) - (1 - x) * math.log(1 - x)

    assert 0.01 < p < 0.99 and abs(p - q) > 0.01
    assert language.stationary.tolist() == pytest.approx([q / (p + q), p / (p + q)])
    rate = (q * h(p) + p * h(q)) / (p + q)
    assert language.entropy_rate == pytest.approx(rate, abs=1e-12)
    assert language.floors(2).bigram == pytest.approx(language.floors(300).full, abs=1e-12)


def test_pure_bigram_tables_are_consistent():
    language = SyntheticLanguage(n_skip_trigrams=0, n_names=0, n_mood_words=0, seed=1)
    table, start = language.bigram_table, language.stationary
    assert language.is_pure_bigram and table.shape == (64, 64)
    assert torch.allclose(table.sum(1), torch.ones(64).double(), atol=1e-14)
    assert torch.allclose(start @ table, start, atol=1e-14)
    assert torch.allclose(language.marginal_bigrams(), table, atol=1e-12)
    rate = -(start[:, None] * table * table.log()).sum()
    assert language.entropy_rate == pytest.approx(float(rate), abs=1e-12)
    assert 1.0 < language.entropy_rate < math.log(64) - 0.5


def test_zero_sharpness_is_uniform():
    language = SyntheticLanguage(16, n_skip_trigrams=0, n_names=0, n_mood_words=0, sharpness=0.0)
    assert language.entropy_rate == pytest.approx(math.log(16), abs=1e-12)


def test_default_language_sample_agrees_with_its_exact_pairs():
    language = SyntheticLanguage()
    tokens = language.tokens(20_000, 32, seed=1)
    table = language.marginal_bigrams(32)
    losses = -table[tokens[:, :-1], tokens[:, 1:]].log().mean(1)
    error = float(losses.std()) / len(losses) ** 0.5
    assert abs(float(losses.mean()) - language.floors(32).bigram) < 4 * error
    assert error < 0.003


def test_full_floor_is_reached_by_reading_the_definition():
    language = SyntheticLanguage(24, n_skip_trigrams=4, n_names=2, n_mood_words=3)
    reader, losses = Reader(language), []
    for row in language.tokens(250, 24, seed=2).tolist():
        loss = [-math.log(reader.next(tuple(row[:t]))[row[t]]) for t in range(1, len(row))]
        losses.append(sum(loss) / len(loss))
    floors = language.floors(24)
    error = np.std(losses) / len(losses) ** 0.5
    assert abs(np.mean(losses) - floors.full) < 4 * error
    assert error < 0.05 < floors.bigram - floors.full  # so the bigram floor would have failed


def test_planted_skip_trigrams_occur_as_often_as_stated():
    language = SyntheticLanguage(n_skip_trigrams=5, seed=4)
    rows = language.tokens(3000, 64, seed=9).tolist()
    for (source, destination, out), planted in zip(
        language.skip_trigram_ids.tolist(), language.skip_trigrams.to_dict("records")
    ):
        assert language.labels[source] == planted["source"]
        hits = {True: [], False: []}
        for row in rows:
            for t in range(1, len(row) - 1):
                if row[t] == destination:
                    hits[source in row[:t]].append(row[t + 1] == out)
        for armed, column in ((True, "probability"), (False, "base_probability")):
            p, n = planted[column], len(hits[armed])
            assert n > 100
            assert abs(np.mean(hits[armed]) - p) < 4 * math.sqrt(p * (1 - p) / n) + 1e-3
        assert planted["probability"] > planted["base_probability"] + 0.3


def test_names_are_drawn_anew_and_come_back():
    language = SyntheticLanguage(n_names=2, name_length=3, name_rate=0.2)
    reader = Reader(language)
    names_of = []
    for row in language.tokens(200, 64, seed=0).tolist():
        known, _, _ = reader.parse(row)
        assert len(known) <= 2 and len({t for name in known for t in name}) == 3 * len(known)
        names_of.append(tuple(known))
    assert np.mean([len(known) == 2 for known in names_of]) > 0.9
    assert len(set(names_of)) > 190


def test_text_is_fixed_by_the_seed_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = SyntheticLanguage(seed=1), SyntheticLanguage(seed=1)
    assert torch.equal(one.tokens(5, 20, seed=2), two.tokens(5, 20, seed=2))
    assert torch.equal(one.bigram_table, two.bigram_table) and one.labels == two.labels
    assert not torch.equal(one.tokens(5, 20, seed=2), one.tokens(5, 20, seed=3))
    assert not torch.equal(one.bigram_table, SyntheticLanguage(seed=2).bigram_table)
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_are_readable_distinct_and_round_trip():
    language = SyntheticLanguage(200)
    assert len(set(language.labels)) == language.n_vocab == 200 + 24 + 16
    assert all(label.isalpha() and label.isascii() for label in language.labels)
    tokens = language.tokens(2, 10, seed=0)
    assert torch.equal(language.encode(language.decode(tokens)[0]), tokens[0])
    with pytest.raises(InvalidArgumentError, match="Hund"):
        language.encode("Hund")


def test_a_million_tokens_are_quick():
    language = SyntheticLanguage()
    start = time.process_time()
    assert language.tokens(16_000, 64).numel() == 1_024_000
    assert time.process_time() - start < 8  # about 0.7 s alone on one core


def test_a_low_rank_bigram_model_reaches_the_floor_and_not_less():
    language = SyntheticLanguage()
    floors = language.floors()
    joint, generator = floors.joint.float(), torch.Generator().manual_seed(0)
    shape = (language.n_vocab, 48)
    weights = [(0.1 * torch.randn(shape, generator=generator)).requires_grad_() for _ in range(2)]
    optimizer = torch.optim.Adam(weights, lr=0.05)
    for _ in range(400):
        loss = -(joint * (weights[0] @ weights[1].T).log_softmax(1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.item() > floors.bigram - 1e-4
    assert loss.item() < floors.bigram + 0.02


class TestMoodSentences:
    language = SyntheticLanguage(n_mood_words=6)

    @pytest.mark.parametrize("n, n_mood", [(1, 3), (7, 6), (40, 3)])
    def test_label_is_the_class_of_every_mood_word(self, n, n_mood):
        sentences = self.language.mood_sentences(n, length=13, n_mood=n_mood, seed=1)
        labels = self.language.labels
        positive, negative = set(sentences.positive_words), set(sentences.negative_words)
        assert sentences.tokens.shape == (n, 13)
        assert int(sentences.labels.sum()) == n // 2
        for row, label in zip(sentences.tokens.tolist(), sentences.labels.tolist()):
            words = [labels[i] for i in row]
            assert sum(w in (positive if label else negative) for w in words) == n_mood
            assert not any(w in (negative if label else positive) for w in words)
            assert {words[0], words[-1]}.isdisjoint(positive | negative)

    def test_training_and_evaluation_words_are_disjoint(self):
        train = self.language.mood_sentences(200, words="train", seed=0)
        evaluation = self.language.mood_sentences(200, words="evaluation", seed=0)
        for side in ("positive_words", "negative_words"):
            one, other = set(getattr(train, side)), set(getattr(evaluation, side))
            assert one and other and one.isdisjoint(other)
        first = self.language.n_vocab - 12
        moods = [set(s.tokens[s.tokens >= first].tolist()) for s in (train, evaluation)]
        assert moods[0].isdisjoint(moods[1]) and len(moods[0] | moods[1]) == 12

    def test_refuses_what_has_no_room(self):
        with pytest.raises(InvalidArgumentError, match="n_mood"):
            self.language.mood_sentences(4, length=5, n_mood=3)
        with pytest.raises(InvalidArgumentError, match="n_mood_words"):
            SyntheticLanguage(n_mood_words=0).mood_sentences(4)
        with pytest.raises(InvalidArgumentError, match="'evaluation'"):
            self.language.mood_sentences(4, words="test")


@pytest.mark.parametrize(
    "knobs, words",
    [
        ({"n_words": 1}, "n_words"),
        ({"n_words": 9, "n_skip_trigrams": 4}, "n_words / 3"),
        ({"n_skip_trigrams": 13}, "at most 12"),
        ({"n_names": 9}, "name_pool must be at least n_names"),
        ({"name_length": 4}, "name_length"),
        ({"n_mood_words": 1}, "at least 2"),
        ({"strength": 1.5}, "strength"),
        ({"name_rate": 0.9}, "name_rate"),
        ({"length": 1}, "length"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_bad_knobs_are_named(knobs, words):
    with pytest.raises(InvalidArgumentError, match=words):
        SyntheticLanguage(**knobs)


def test_reprs_are_sentences():
    language = SyntheticLanguage()
    assert "64 words" in repr(language) and "6 skip-trigrams" in repr(language)
    assert "nats a token" in repr(language.floors(8))
    assert "3 positive" in repr(language.mood_sentences(6))
    frame = language.floors(8).to_dataframe()
    assert list(frame.columns) == ["model", "floor", "length"] and len(frame) == 3
