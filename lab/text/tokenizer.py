"""Tokenizers: words, characters, byte-level BPE, or any tokenizer.json, by Hugging Face `tokenizers` (extra `text`).

A vocabulary that is trained here begins with `<unk>` (words and characters only) and `<eos>`; then the most frequent
pieces come first (of bytes: all 256, then merges in the order they were found). Equal JSON files are equal tokenizers.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

KINDS = ("word", "char", "bpe")
UNKNOWN = "<unk>"
END = "<eos>"
ENDS = (END, "<|endoftext|>", "</s>")  # what ends a document in other people's tokenizers
N_BYTES = 256
UNKNOWN_WORD = "Missing [UNK] token"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text <-> token ids; a value: its JSON text decides all it does."""

    json: str

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id."""
        return 1 + max(self._vocabulary.values(), default=-1)

    @property
    def unknown(self) -> int | None:
        """What stands for words or characters that are not in the vocabulary; None where nothing does."""
        return self.id_of(UNKNOWN)

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
          ValueError: a word that is not in a fixed list of words.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each, on all cores."""
        try:
            encoded = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            if UNKNOWN_WORD not in str(error):
                raise
            words = itertools.chain.from_iterable(text.split() for text in texts)
            strange = next(word for word in words if self.id_of(word) is None)
            raise ValueError(f"{strange!r} is none of the {self.vocab_size} words of this tokenizer") from error
        return [np.array(one.ids, np.int64) for one in encoded]

    def decode(self, token_N) -> str:
        """The text of some ids; `encode` undoes it for byte-level BPE, and for words up to the spaces between them."""
        return self._encoder.decode([int(token) for token in token_N], skip_special_tokens=False)

    def to_bytes(self) -> bytes:
        """The tokenizer.json, which `from_bytes` and Hugging Face read."""
        return self.json.encode()

    @functools.cached_property
    def _encoder(self):
        return _library().Tokenizer.from_str(self.json)

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self._encoder.get_vocab(with_added_tokens=True)


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
        pieces.update(document.split() if kind == "word" else document)
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
        if count > 1 or word.split() != [word]:
            raise ValueError(f"words: {word!r}; words must be distinct and hold no space")
    return _word_level(vocabulary)


def from_bytes(content: bytes) -> Tokenizer:
    """What `to_bytes` gave, or any tokenizer.json.

    Raises:
      ValueError: not a tokenizer.json.
    """
    try:
        return Tokenizer(_library().Tokenizer.from_buffer(content).to_str())
    except ValueError as error:
        raise ValueError(f"not a tokenizer.json ({str(error).splitlines()[0]})") from error


def _word_level(vocabulary: Sequence[str]) -> Tokenizer:
    tokenizer = _of_list(vocabulary)
    tokenizer.pre_tokenizer = _library().pre_tokenizers.WhitespaceSplit()
    return Tokenizer(tokenizer.to_str())


def _char_level(vocabulary: Sequence[str]) -> Tokenizer:
    library = _library()
    tokenizer = _of_list(vocabulary)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = library.decoders.Fuse()
    return Tokenizer(tokenizer.to_str())


def _of_list(vocabulary: Sequence[str]):
    # <unk> and <eos> are words as others are, not "special": those would be found inside of words, too
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    return _library().Tokenizer(_library().models.WordLevel(ids, unk_token=UNKNOWN))


def _bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    library = _library()
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


def _library():
    """
    Raises:
      ValueError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("text needs the package tokenizers: pip install 'gammalab[text]'") from error
    return tokenizers
