"""Tokenizers: words, characters, byte-level BPE, or any tokenizer.json, by Hugging Face `tokenizers` (extra `text`).

A vocabulary that is trained here begins with `<unk>` (words and characters only) and `<eos>`; then the most frequent
pieces come first (of bytes: all 256, then merges in the order they were found). Equal JSON files are equal tokenizers.

Ids are those of a text, whole: what other people's files do beside (see `lab.text.tokenizer_files`) is switched off.
"""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np

from lab.text.words import split

KINDS = ("word", "char", "bpe")
UNKNOWN = "<unk>"
END = "<eos>"
ENDS = (END, "<|endoftext|>", "</s>")  # what ends a document in other people's tokenizers
N_BYTES = 256
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, which is no character
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a token of BPE's that stands for a byte


class UnknownError(ValueError):
    """Text that has no ids: something in it is not in the vocabulary, and nothing stands for what is unknown."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text <-> token ids; a value: its JSON text decides all it does."""

    json: str

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id."""
        return 1 + max(self._vocabulary.values(), default=-1)

    @property
    def n_tokens(self) -> int:
        """How many ids have a token; fewer than `vocab_size` where ids have gaps."""
        return len(set(self._vocabulary.values()))

    @property
    def unknown(self) -> int | None:
        """What stands for words or characters that are not in the vocabulary; None where nothing does."""
        if self._model.get("unk_id") is not None:  # Unigram
            return self._model["unk_id"]
        name = self._model.get("unk_token")
        return None if name is None else self.id_of(name)

    @property
    def end(self) -> int | None:
        """What ends a document; None if the vocabulary has no such token."""
        return next((self.id_of(name) for name in ENDS if self.id_of(name) is not None), None)

    @property
    def names(self) -> tuple[str, ...]:
        """The token of every id, as the vocabulary spells it; BPE writes a leading space as `Ġ`. Empty for unused."""
        names = [""] * self.vocab_size
        for name, token in self._vocabulary.items():
            names[token] = name
        return tuple(names)

    def id_of(self, name: str) -> int | None:
        return self._vocabulary.get(name)

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int64; without an end token.

        Raises:
          UnknownError: a word or character that is not in the vocabulary, where nothing stands for unknown ones.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each, on all cores."""
        self._check_characters(texts)
        try:
            encoded = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise self._refusal(texts, error) from error
        return [np.array(one.ids, np.int64) for one in encoded]

    def decode(self, token_N) -> str:
        """The text of some ids; `encode` undoes it for byte-level BPE, and for words up to the spaces between them."""
        return self._encoder.decode([int(token) for token in token_N], skip_special_tokens=False)

    def to_bytes(self) -> bytes:
        """The tokenizer.json, which `from_bytes` and Hugging Face read."""
        return self.json.encode()

    @functools.cached_property
    def _encoder(self):
        return hugging_face().Tokenizer.from_str(self.json)

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self._encoder.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def _model(self) -> dict:
        return json.loads(self.json)["model"]

    @functools.cached_property
    def _sound_characters(self) -> set[str]:
        """Those that are known to have ids; grows as texts are encoded."""
        return set()

    def _pieces(self, text: str) -> list[str]:
        """What the model looks up: the normalized text, cut where it never joins. All of it where it is no Unicode."""
        if SURROGATE.search(text):
            return [text]
        if self._encoder.normalizer is not None:
            text = self._encoder.normalizer.normalize_str(text)
        if self._encoder.pre_tokenizer is None:
            return [text]
        return [piece for piece, _ in self._encoder.pre_tokenizer.pre_tokenize_str(text)]

    def _check_characters(self, texts: Sequence[str]) -> None:
        """Refuses what BPE would leave out without a word: characters it has no token for, where none is for them."""
        if self._model["type"] != "BPE" or self._model["unk_token"] is not None:
            return
        for character in sorted(set().union(*texts) - self._sound_characters):
            if self.id_of(character) is None and self._leaves_out(character):
                raise self._unknown(character)
            self._sound_characters.add(character)

    def _leaves_out(self, character: str) -> bool:
        if SURROGATE.match(character):
            return True
        probe = 3 * character  # at the beginning, inside and at the end of a word
        tokens = self._encoder.encode(probe, add_special_tokens=False).tokens
        expected = "".join(self._pieces(probe))
        if self._model["continuing_subword_prefix"] or self._model["end_of_word_suffix"]:
            return bool(expected) and not tokens
        found = [_byte(token) if self._model["byte_fallback"] else token.encode() for token in tokens]
        return b"".join(found) != expected.encode()

    def _refusal(self, texts: Sequence[str], error: Exception) -> UnknownError:
        """What to say of an error of the library's: the first piece of the texts that the model refuses, alone, too."""
        for text in texts:
            try:
                self._encoder.encode(text, add_special_tokens=False)
            except Exception:
                refused = (piece for piece in self._pieces(text) if self._refuses(piece))
                return self._unknown(next(refused, text))
        return UnknownError(str(error).splitlines()[0])

    def _refuses(self, piece: str) -> bool:
        try:
            self._encoder.model.tokenize(piece)
        except Exception:
            return True
        return False

    def _unknown(self, piece: str) -> UnknownError:
        words = "words" if self._model["type"] == "WordLevel" else "tokens"
        return UnknownError(
            f"{piece[:60]!r} is none of the {self.n_tokens} {words} of this tokenizer, which has none for unknown ones"
        )


def train(kind: str, documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids, the most frequent pieces of the documents.

    Args:
      kind: `word` (what stands between spaces), `char`, or `bpe` (byte-level: nothing is ever unknown).

    Raises:
      ValueError: an unknown kind, or a vocabulary that is too small for it.
    """
    if kind not in KINDS:
        raise ValueError(f"tokenizer {kind!r}: one of {', '.join(KINDS)}, or the path of a tokenizer.json")
    least = N_BYTES + 1 if kind == "bpe" else 3
    if vocab_size < least:
        raise ValueError(f"vocab_size={vocab_size}: a tokenizer of kind {kind!r} needs at least {least}")
    if kind == "bpe":
        return _bpe(documents, vocab_size)
    pieces = collections.Counter()
    for document in documents:
        pieces.update(split(document) if kind == "word" else document)
    for name in (UNKNOWN, END):  # WikiText has its rare words replaced by <unk> already: that one is ours
        del pieces[name]
    by_count = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    vocabulary = [UNKNOWN, END, *by_count[: vocab_size - 2]]
    return _word_level(vocabulary) if kind == "word" else _char_level(vocabulary)


def words(vocabulary: Sequence[str]) -> Tokenizer:
    """A tokenizer of a fixed list of words, whose ids are their places; any other word is an error in `encode`.

    Raises:
      ValueError: a word twice, or one with a space in it.
    """
    for word, count in collections.Counter(vocabulary).items():
        if count > 1 or split(word) != [word]:
            raise ValueError(f"words: {word!r}; words must be distinct and hold no space")
    return _word_level(vocabulary)


def _byte(token: str) -> bytes:
    byte = BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.encode()


def _word_level(vocabulary: Sequence[str]) -> Tokenizer:
    tokenizer = _of_list(vocabulary)
    tokenizer.pre_tokenizer = hugging_face().pre_tokenizers.WhitespaceSplit()
    return Tokenizer(tokenizer.to_str())


def _char_level(vocabulary: Sequence[str]) -> Tokenizer:
    library = hugging_face()
    tokenizer = _of_list(vocabulary)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = library.decoders.Fuse()
    return Tokenizer(tokenizer.to_str())


def _of_list(vocabulary: Sequence[str]):
    # <unk> and <eos> are words as others are, not "special": those would be found inside of words, too
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    return hugging_face().Tokenizer(hugging_face().models.WordLevel(ids, unk_token=UNKNOWN))


def _bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    library = hugging_face()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(documents), trainer)
    return Tokenizer(tokenizer.to_str())


def hugging_face():
    """
    Raises:
      ValueError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("text needs the package tokenizers: pip install 'gammalab[text]'") from error
    return tokenizers
