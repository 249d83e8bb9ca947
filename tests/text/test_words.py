"""One rule of what a word is, for counting, encoding and cutting documents."""

import sys

import pytest

from lab.text.tokenizer import train, words
from lab.text.words import WHITE_SPACE, split, strip

CHARACTERS = [chr(code) for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
ODD = (*"\x1c\x1d\x1e\x1f\x7f\x85\xa0", *"\u180e\u200b\u2028\u2029\u3000\ufeff")


def test_white_space_is_what_unicode_says():
    # Python counts the four separators of information U+001C to U+001F, too, which Unicode's White_Space does not hold
    assert set(WHITE_SPACE) == {one for one in CHARACTERS if one.isspace()} - set("\x1c\x1d\x1e\x1f")


def test_tokenizers_part_words_where_we_do():
    pieces = pytest.importorskip("tokenizers").pre_tokenizers.WhitespaceSplit()
    for first in range(0, len(CHARACTERS), 4096):
        text = "".join(f"a{one}b " for one in CHARACTERS[first : first + 4096])
        assert [piece for piece, _ in pieces.pre_tokenize_str(text)] == split(text)


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
@pytest.mark.parametrize("odd", [*ODD, "\r", "\v"], ids=lambda one: f"U+{ord(one):04X}")
def test_what_is_counted_is_what_is_encoded(kind, odd):
    text = f"alpha{odd}beta {odd} gamma{odd}"
    found = train(kind, [text], 400)
    ids = found.encode(text)
    assert found.unknown is None or found.unknown not in ids
    assert found.decode(ids) == (" ".join(split(text)) if kind == "word" else text)
    if kind == "word":
        assert [found.names[token] for token in ids] == split(text)


@pytest.mark.parametrize("odd", ODD)
def test_fixed_words_are_encoded_or_refused_by_the_same_rule(odd):
    found = words(["alpha", "beta"])
    text = f"alpha{odd}beta"
    if odd in WHITE_SPACE:
        assert found.encode(text).tolist() == [0, 1]
    else:
        with pytest.raises(ValueError, match="is none of the 2 words"):
            found.encode(text)
        assert words([text]).encode(f" {text} ").tolist() == [0]


def test_stripped_is_what_stands_between_the_words():
    assert strip("\u2028\xa0a \x1f\n") == "a \x1f"
