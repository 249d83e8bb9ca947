"""Real text, prepared once: files or a Hugging Face data set -> token arrays on disk, memory-mapped.

Documents are tokenized in batches, so memory does not grow with the text. What was prepared lies in the cache folder
(see `lab.cache`):

text/<key>/train.bin valid.bin   token ids, little-endian uint16, or uint32 for more than 65,536 of them
text/<key>/tokenizer.json        how text became ids
text/<key>/provenance.json       of what text, by which versions, and the sha256 of the other files
hub/<key>.txt                    the text of a data set, as it was downloaded

<key> hashes the text and all options. A folder takes its name when it is complete, and one that is found damaged is
made anew: nothing in the cache has to be kept.
"""

import collections
import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import cache
from lab.text import decoding, notes, sources
from lab.text import documents as reading
from lab.text import tokenizer as tokenizers
from lab.text.recipe import Recipe, files_of
from lab.text.tokenizer import Tokenizer
from lab.text.tokenizer_files import adopt, from_bytes

SPLITS = ("train", "valid")
BATCH = 2**22  # characters tokenized at once
FORMAT = 1  # of the prepared files
RULES = 2  # by which text is read: a cache of older ones is made anew, and its tokens are what they were, or mended


class Corpus(NamedTuple):
    """Tokens on disk.

    Attributes:
      tokens: split -> token ids, memory-mapped; every document is followed by the tokenizer's end token, if it has one.
      provenance: what provenance.json says, without its own hash.
    """

    tokens: dict[str, np.ndarray]
    tokenizer: Tokenizer
    provenance: dict


def prepare(recipe: Recipe) -> Corpus:
    """The tokens of a recipe, from the cache or made now. Any number of processes may ask at once.

    Raises:
      ValueError: text that is missing, empty, not UTF-8, truncated or a single document, a tokenizer that does not
        fit, a data set that cannot be had, or a cache that cannot be written to; as `lab.cache.folder`.
    """
    paths, said = files_of(recipe)
    given, off = (None, ()) if recipe.tokenizer in tokenizers.KINDS else _given(recipe)
    if off:
        said.append(f"{recipe.tokenizer}: switched off, as it would change the tokens of the text: {', '.join(off)}")
    identity = {
        "format": FORMAT,
        "sources": {split: [_source(path) for path in of_split] for split, of_split in paths.items()},
        "separator": recipe.separator,
        "tokenizer": recipe.tokenizer if given is None else _sha256(given.to_bytes()),
        "vocab_size": recipe.vocab_size,
        "valid_share": recipe.valid_share,
    }
    if any(sources.suffix(path) in sources.ROWS for of_split in paths.values() for path in of_split):
        identity["column"] = recipe.column
    folder = cache.folder("text") / _sha256(_canonical(identity | {"rules": RULES}))
    found = _load(folder)
    if found is None:
        with _new_folder(folder) as temporary:
            _make(recipe, identity | ({"switched_off": off} if off else {}), paths, given, temporary)
        found = _load(folder)
    if found is None:
        raise ValueError(f"{folder}: does not hold what was just written there; set GAMMALAB_CACHE to a sound disk")
    for split in paths:
        marks = collections.Counter(found.provenance.get("byte_order_marks", {}).get(split))
        said += decoding.note(recipe.hf_id or _place(paths[split]), marks)
    for line in said:
        notes.say(line)
    return found


def _given(recipe: Recipe) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer of a file, and what of it is switched off."""
    path = sources.expand(recipe.tokenizer)
    if not path.is_file():
        kinds = ", ".join(tokenizers.KINDS)
        raise ValueError(f"task.tokenizer={recipe.tokenizer!r}: one of {kinds}, or the path of a tokenizer.json")
    try:
        tokenizer, off = adopt(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if tokenizer.vocab_size > recipe.vocab_size:
        n = tokenizer.n_tokens
        gaps = "" if n == tokenizer.vocab_size else f", counting {tokenizer.vocab_size - n} ids that nothing has"
        raise ValueError(f"task.vocab_size={recipe.vocab_size}: {path} has {tokenizer.vocab_size} tokens{gaps}")
    return tokenizer, off


def _make(recipe: Recipe, identity: dict, paths: dict, given: Tokenizer | None, folder: Path) -> None:
    """Everything a folder of the cache holds, written into an empty one."""

    def read(split: str, marks: collections.Counter | None = None) -> Iterator[str]:
        return reading.documents(paths[split], recipe.separator, recipe.column, marks)

    marks = {split: collections.Counter() for split in paths}
    counted = {split: sum(1 for _ in read(split, marks[split])) for split in paths}
    for split, files in paths.items():
        if not counted[split]:
            raise ValueError(f"{_place(files)}: empty, no text in it")
    spans = {split: (split, 0, n) for split, n in counted.items()}
    if recipe.valid_share:
        n = counted["train"]
        first_held = n - max(1, round(recipe.valid_share * n))
        if first_held < 1:
            raise ValueError(
                f"{paths['train'][0]}: nothing is left to train on, as a {recipe.separator} of it is a document and it "
                f"has {n}; use another task.separator or task.valid_share, or give a task.valid_path"
            )
        spans = {"train": ("train", 0, first_held), "valid": ("train", first_held, n)}

    def documents(split: str) -> Iterator[str]:
        source, first, last = spans[split]
        return itertools.islice(read(source), first, last)

    tokenizer = given
    if given is None:
        tokenizer = tokenizers.train(recipe.tokenizer, documents("train"), recipe.vocab_size)
    (folder / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    said = {
        **identity,
        "read_from": {split: recipe.hf_id or [str(path) for path in files] for split, files in paths.items()},
        "vocabulary": tokenizer.vocab_size,
        "tokenizer_sha256": _sha256(tokenizer.to_bytes()),
        "splits": _write_splits(recipe, folder, tokenizer, documents),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "tokenizers")},
    }
    marked = {split: dict(+count) for split, count in marks.items() if +count}
    said |= {"byte_order_marks": marked} if marked else {}
    (folder / "provenance.json").write_text(json.dumps(said | {"sha256": _sha256(_canonical(said))}, indent=1))


def _write_splits(recipe: Recipe, folder: Path, tokenizer: Tokenizer, documents: Callable) -> dict:
    try:
        return {split: _write_tokens(folder / f"{split}.bin", tokenizer, documents(split)) for split in SPLITS}
    except tokenizers.UnknownError as error:
        raise ValueError(f"task.tokenizer={recipe.tokenizer!r}: {error}") from error


def _write_tokens(path: Path, tokenizer: Tokenizer, documents: Iterable[str]) -> dict:
    """Writes the ids of documents one after the other; returns what provenance says of them."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    end = np.array([] if tokenizer.end is None else [tokenizer.end], dtype)
    n_tokens, n_documents, n_unknown, digest = 0, 0, 0, hashlib.sha256()
    with path.open("wb") as file:
        for batch in _batches(documents):
            ids = [part for one in tokenizer.encode_all(batch) for part in (one.astype(dtype), end)]
            token_N = np.concatenate(ids)
            file.write(token_N.tobytes())
            digest.update(token_N.tobytes())
            n_tokens += token_N.size
            n_documents += len(batch)
            n_unknown += 0 if tokenizer.unknown is None else int(np.sum(token_N == tokenizer.unknown))
    return {
        "tokens": n_tokens,
        "documents": n_documents,
        "unknown_share": n_unknown / max(n_tokens, 1),
        "dtype": dtype.str,
        "sha256": digest.hexdigest(),
    }


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size > BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _load(folder: Path) -> Corpus | None:
    """What a folder of the cache holds; None if it is not there, or not what was written."""
    try:
        said = json.loads((folder / "provenance.json").read_bytes())
        content = (folder / "tokenizer.json").read_bytes()
        sound = said.pop("sha256") == _sha256(_canonical(said)) and said["tokenizer_sha256"] == _sha256(content)
        for split in SPLITS:
            sound = sound and _file_sha256(folder / f"{split}.bin") == said["splits"][split]["sha256"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    if not sound:
        return None
    tokens = {split: _mapped(folder / f"{split}.bin", said["splits"][split]) for split in SPLITS}
    return Corpus(tokens, from_bytes(content), said)


def _mapped(path: Path, said: dict) -> np.ndarray:
    empty = np.zeros(0, said["dtype"])  # an empty file cannot be mapped
    return np.memmap(path, said["dtype"], "r") if said["tokens"] else empty


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes its name when the block is done, unless another process was first: both hold the same.

    Raises:
      ValueError: it cannot be written to.
    """
    temporary = folder.with_name(f".new-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _install(temporary, folder)
    except OSError as error:
        raise ValueError(
            f"{folder.parent}: cannot be written to ({error.strerror}); set GAMMALAB_CACHE to a folder that can"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _install(temporary: Path, folder: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that is not empty has the name
        temporary.rename(folder)
    if temporary.exists() and _load(folder) is None:
        damaged = folder.with_name(f".damaged-{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):  # another process may be doing the same: whoever is first
            folder.rename(damaged)
            temporary.rename(folder)
        shutil.rmtree(damaged, ignore_errors=True)


def _place(files: Sequence[Path]) -> Path:
    return files[0] if len(files) == 1 else files[0].parent


def _source(path: Path) -> dict:
    try:
        return {"bytes": path.stat().st_size, "sha256": _file_sha256(path)}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _canonical(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
