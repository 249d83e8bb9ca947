import collections
import json

import numpy as np
import pytest

from lab.text import tokenizer
from lab.text.tokenizer import train, words
from lab.text.tokenizer_files import from_bytes

DOCUMENTS = ["the cat sat on the mat .", "the dog <unk> on\tthe\n cat", "Zoë said “hi” <eos> the cat"]


def plain_vocabulary(pieces, vocab_size):
    """The most frequent pieces, of equal ones the alphabetically first; sorted twice instead of by a pair."""
    counted = collections.Counter(piece for piece in pieces if piece not in ("<unk>", "<eos>"))
    ranked = sorted(sorted(counted), key=counted.__getitem__, reverse=True)
    return ("<unk>", "<eos>", *ranked[: vocab_size - 2])


@pytest.mark.parametrize("vocab_size", [3, 6, 100])
@pytest.mark.parametrize("kind", ["word", "char"])
def test_vocabulary_is_the_most_frequent_pieces_and_the_rest_is_unknown(kind, vocab_size):
    found = train(kind, iter(DOCUMENTS), vocab_size)
    pieces = [document.split() if kind == "word" else list(document) for document in DOCUMENTS]
    expected = plain_vocabulary([piece for document in pieces for piece in document], vocab_size)
    assert found.names == expected
    assert found.vocab_size == len(expected) <= vocab_size
    assert (found.unknown, found.end) == (0, 1)
    for document, of_document in zip(DOCUMENTS, pieces, strict=True):
        ids = [expected.index(piece) if piece in expected else 0 for piece in of_document]
        np.testing.assert_array_equal(found.encode(document), ids)


def test_words_are_not_found_inside_of_words():
    found = train("word", ["a b"], 10)
    np.testing.assert_array_equal(found.encode("a<unk> <unk>b <eos>b"), [0, 0, 0])


@pytest.mark.parametrize("text", ["the cat", " two  spaces \n\n\ttab ", "日本語 Zoë 🙂", "“quotes” – dash", "\x7f\x01"])
def test_bytes_are_never_unknown_and_come_back_as_they_were(text):
    found = train("bpe", DOCUMENTS * 3, 300)
    ids = found.encode(text)
    assert found.decode(ids) == text
    assert found.unknown is None and found.end == found.id_of("<eos>") not in ids


def test_bpe_merges_the_pair_seen_most_often_first():
    # "ab" 6 times, "abc" 4 times: the pair (a, b) first, then (ab, c); the 256 bytes and <eos> fill the rest.
    found = train("bpe", ["abc"] * 4 + ["ab"] * 2, 259)
    assert found.names[-2:] == ("ab", "abc")
    assert found.encode("abcab").size == 2


def test_text_comes_back_from_words_up_to_spaces_and_from_characters_exactly():
    text = DOCUMENTS[1]
    of_words, of_characters = train("word", [text], 50), train("char", [text], 50)
    assert of_words.decode(of_words.encode(text)) == " ".join(text.split())
    assert of_characters.decode(of_characters.encode(text)) == text


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_training_again_and_reading_back_give_the_same_bytes(kind):
    first, second = (train(kind, iter(DOCUMENTS), 280) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    read = from_bytes(first.to_bytes())
    assert read == first and hash(read) == hash(first)
    # the file is Hugging Face's: its vocabulary can be read without this package
    model = json.loads(first.to_bytes())["model"]
    assert {name: first.id_of(name) for name in model["vocab"]} == model["vocab"]


def test_many_texts_are_encoded_as_one_by_one():
    found = train("word", DOCUMENTS, 7)
    for text, ids in zip(DOCUMENTS, found.encode_all(DOCUMENTS), strict=True):
        np.testing.assert_array_equal(ids, [found.id_of(word) or 0 for word in text.split()])


def test_fixed_words_are_their_places_and_others_are_refused():
    found = words(["wumpus", "is", "Alex", "."])
    np.testing.assert_array_equal(found.encode("Alex is wumpus ."), [2, 1, 0, 3])
    assert found.decode([2, 1, 0, 3]) == "Alex is wumpus ."
    assert found.unknown is None and found.end is None
    with pytest.raises(ValueError, match="'tumpus' is none of the 4 words"):
        found.encode("Alex is tumpus .")


@pytest.mark.parametrize("bad", [["a", "b", "a"], ["a b"], [""]])
def test_fixed_words_that_cannot_be_told_apart_are_refused(bad):
    with pytest.raises(ValueError, match="distinct and hold no space"):
        words(bad)


@pytest.mark.parametrize(
    ("kind", "vocab_size", "message"),
    [
        ("words", 50, "tokenizer 'words': one of word, char, bpe, or the path of a tokenizer.json"),
        ("bpe", 256, "vocab_size=256: a tokenizer of kind 'bpe' needs at least 257"),
        ("word", 2, "vocab_size=2: a tokenizer of kind 'word' needs at least 3"),
    ],
)
def test_impossible_tokenizers_are_refused(kind, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        train(kind, DOCUMENTS, vocab_size)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1]", b'{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_refused(content):
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        from_bytes(content)


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'gammalab\[text\]'"):
        tokenizer.words(["a"])
