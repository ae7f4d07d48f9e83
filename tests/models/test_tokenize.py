"""Tokens as text: each its own, also those that hold only part of a character."""

import warnings

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers import PreTrainedTokenizerFast

import lens_linear as ll
from lens_linear.cli import main
from lens_linear.errors import InvalidArgumentError, LensLinearWarning
from lens_linear.models.checked import checked
from lens_linear.models.tokenizer import _BYTE_OF, token_strings, vocabulary


def test_every_token_of_a_byte_level_vocabulary_has_a_text_of_its_own():
    strings = vocabulary(ll.load("attn-1l"))
    assert len(set(strings)) == len(strings)


def test_bytes_are_those_of_the_tokenizers_library():
    texts = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 97), 0x1F642, 0x10FFFF]))
    rule = ByteLevel(add_prefix_space=False, use_regex=False)
    for text in texts:
        ((piece, _),) = rule.pre_tokenize_str(text)
        assert bytes(_BYTE_OF[character] for character in piece) == text.encode()


@pytest.mark.filterwarnings("ignore:.*% of the text is token")
def test_a_text_may_fill_the_context_and_no_more():
    model = ll.load("attn-1l")
    room = int(model.cfg.n_ctx) - 1  # one place is the beginning's
    (row,) = ll.tokenize_prompts(model, [" a" * room])
    assert len(row) == room + 1
    with pytest.raises(InvalidArgumentError, match=f"has {room + 1} tokens .* room for {room};"):
        ll.tokenize_prompts(model, [" a" * (room + 1)])
    (cut,) = ll.tokenize_prompts(model, [" the" + " a" * room], truncate=True)
    assert cut.tolist() == row.tolist()


def test_parts_of_a_character_are_shown_as_their_bytes():
    model = ll.load("attn-1l")
    for text in ("ß", "日本", "a€b", "🙂"):
        ids = model.tokenizer.encode(text, add_special_tokens=False)
        shown = "".join(token_strings(model, torch.tensor(ids)))
        written = shown.encode().decode("unicode_escape").encode("latin-1")
        assert written == text.encode() and "�" not in shown


def test_bytes_that_sentencepiece_falls_back_to(stories_model):
    strings = token_strings(stories_model, range(3 + 0xE2, 3 + 0xE4))
    assert strings == [r"\xe2", r"\xe3"]


def test_rows_are_256_tokens_or_the_context_unless_asked():
    text = "a b c d " * 400
    for n_ctx, expected in [(64, 64), (300, 256), (5000, 256)]:
        model = ll.toy_model(n_layers=1, d_vocab=1024, n_ctx=n_ctx)
        model.tokenizer = ll.load("attn-2l").tokenizer
        assert ll.tokenize(model, text).shape[1] == expected
    assert ll.tokenize(model, text, length=700).shape[1] == 700


def test_a_text_that_begins_with_the_first_token_gets_no_second_one():
    model = ll.load("attn-2l")
    for text in ("The cat sat on the mat. " * 30, "short"):
        marked = "<|endoftext|>" + text
        assert torch.equal(
            ll.tokenize(model, marked, length=20), ll.tokenize(model, text, length=20)
        )
        rows = ll.tokenize_prompts(model, [marked[:60], text[:47]])
        assert torch.equal(rows[0], rows[1])


def test_rows_beyond_the_tokenizer_are_ids():
    padded = ll.toy_model(n_layers=1, d_vocab=1100)
    padded.tokenizer = ll.load("attn-2l").tokenizer
    strings = vocabulary(padded)
    assert strings[1024:] == [f"#{i}" for i in range(1024, 1100)] and "#1023" not in strings
    assert len(set(strings)) == 1100


def test_tokens_that_are_added_later_are_known_from_then_on(words_model):
    roomy = ll.toy_model(n_layers=1, d_vocab=20)
    roomy.tokenizer = words_model.tokenizer
    for known in (6, 6, 7, 7):
        if known != len(roomy.tokenizer):
            roomy.tokenizer.add_tokens("dog")
        assert checked(roomy).n_tokens == known


@pytest.mark.parametrize("text", ["\ud83d", "a fine text and \udc00 then"])
def test_half_a_character_is_refused_in_a_sentence(text):
    model = ll.load("attn-2l")
    for call in (lambda: ll.tokenize(model, text), lambda: ll.tokenize_prompts(model, ["a", text])):
        with pytest.raises(InvalidArgumentError, match="half a character"):
            call()


@pytest.fixture
def words_model():
    """A model whose tokenizer knows five words."""
    vocabulary = {
        "<unk>": 0,
        **{word: i + 1 for i, word in enumerate("the cat sat on mat".split())},
    }
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    model = ll.toy_model(n_layers=2, d_vocab=6, n_ctx=16)
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    return model


def test_text_that_is_mostly_unknown_or_one_token_is_said(words_model, tmp_path, capsys):
    known = "the cat sat on the mat " * 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.tokenize(words_model, known)
        ll.tokenize_prompts(words_model, ["the cat", "the the the"])
    for text in ("zebras quack", "the old zebra quacks"):  # two of two, three of four
        with pytest.warns(
            LensLinearWarning, match="token 0, .*what the tokenizer does not know.*token ids"
        ):
            ll.tokenize_prompts(words_model, [text])
    with pytest.warns(LensLinearWarning, match="95% of the text is token 2"):
        ll.tokenize(words_model, "cat " * 19 + "mat")
    with pytest.warns(LensLinearWarning, match="token 0"):
        ll.evaluation_tokens(words_model)
    with pytest.raises(InvalidArgumentError, match=r"task is no text for this model: \d+% of"):
        ll.report(words_model, tmp_path / "page.html", "zebras quack loudly " * 50)
    folder = ll.save_model(words_model, tmp_path / "words", tokenizer=words_model.tokenizer)
    assert main(["dynamics", str(folder)]) == 0
    said = capsys.readouterr().err
    assert said.count("note: ") == 1 and "of the text is token 0" in said


def test_a_saved_model_keeps_what_its_tokenizer_calls_special(words_model, tmp_path):
    held = words_model.tokenizer
    held.pad_token, held.bos_token, held.eos_token = "mat", "on", "sat"
    model = ll.load(ll.save_model(words_model, tmp_path / "words"))
    names = ("unk_token", "pad_token", "bos_token", "eos_token")
    assert [getattr(model.tokenizer, name) for name in names] == ["<unk>", "mat", "on", "sat"]
    again = ll.load(ll.save_model(model, tmp_path / "again"))
    assert [getattr(again.tokenizer, name) for name in names] == ["<unk>", "mat", "on", "sat"]
    inner = held.backend_tokenizer
    bare = ll.load(ll.save_model(words_model, tmp_path / "bare", tokenizer=inner))
    assert bare.tokenizer.unk_token == "<unk>"
    with pytest.warns(LensLinearWarning, match="100% .*does not know"):
        assert ll.tokenize(bare, "zebras").tolist() == [[0]]  # begins with no unknown word
    with pytest.raises(InvalidArgumentError, match="bos must be a token of the tokenizer, got"):
        ll.save_model(words_model, tmp_path / "none", tokenizer=inner, bos="<s>")


def test_a_model_saved_without_a_tokenizer_takes_none_that_lies_about(words_model, tmp_path):
    plain = ll.toy_model(n_layers=1, d_vocab=6, n_ctx=16)
    folder = ll.save_model(words_model, tmp_path / "words")
    assert (
        ll.load(ll.save_model(plain, folder / "inner")).tokenizer is None
    )  # not of the folder above
    assert ll.load(ll.save_model(plain, folder)).tokenizer is None  # nor of what was replaced


def test_a_report_takes_text_and_tokens_by_name_and_says_what_they_are(words_model, tmp_path):
    page = tmp_path / "page.html"
    with pytest.raises(InvalidArgumentError, match=r"task is no text for this model: 100% of"):
        ll.report(words_model, page, text="zebras quack loudly " * 50)
    with pytest.raises(InvalidArgumentError, match="text and tokens each say"):
        ll.report(words_model, page, text="the cat", tokens=torch.zeros(4, 8))
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 6, (40, 16), generator=draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LensLinearWarning)  # of the prompts of depth dynamics
        assert "Beware" not in ll.report(words_model, page, tokens=rows).read_text("utf-8")
    rows[:, :13] = 0
    with pytest.warns(LensLinearWarning, match="81% of the text is token 0"):
        text = ll.report(words_model, page, tokens=rows).read_text("utf-8")
    assert "Beware: 81% of the text is token 0, which stands for what" in text
