"""Files tokenizer.json, our own and other people's, whose other settings would change the ids of a text unasked."""

import codecs
import json
from collections.abc import Iterator

from lab.text.tokenizer import Tokenizer, hugging_face


def from_bytes(content: bytes) -> Tokenizer:
    """What `to_bytes` gave, or any tokenizer.json as `adopt` reads it.

    Raises:
      ValueError: as `adopt`.
    """
    return adopt(content)[0]


def adopt(content: bytes) -> tuple[Tokenizer, tuple[str, ...]]:
    """Any tokenizer.json, for the ids of a text, whole; its normalizer, words and vocabulary stay as they are.

    Returns:
      The tokenizer, and what of the file is switched off, for people: truncation and padding, post-processing (which
      adds or repeats tokens), dropout, and white space that added tokens swallow.

    Raises:
      ValueError: not a tokenizer.json, or one without any token.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        found = hugging_face().Tokenizer.from_buffer(content)
        file = json.loads(content)
        off = tuple(_switch_off(file))
        found = hugging_face().Tokenizer.from_str(json.dumps(file))
    except ValueError as error:
        raise ValueError(f"not a tokenizer.json ({str(error).splitlines()[0]})") from error
    if not found.get_vocab_size():
        raise ValueError("a tokenizer.json with an empty vocabulary")
    ids = sorted(found.get_vocab(with_added_tokens=False).values())
    # what the library writes of ids with gaps lacks some, and takes time with the greatest of them
    return Tokenizer(found.to_str() if ids == [*range(len(ids))] else json.dumps(file)), off


def _switch_off(file: dict) -> Iterator[str]:
    """Changes the settings of a tokenizer.json in place; says which."""
    truncation, padding, processor = (file.pop(name, None) for name in ("truncation", "padding", "post_processor"))
    if truncation:
        yield f"truncation to {truncation['max_length']} tokens"
    if padding:
        yield "padding"
    if processor and processor["type"] != "ByteLevel":  # which moves offsets only
        yield f"post-processing ({processor['type']})"
        processor = None
    file |= {"truncation": None, "padding": None, "post_processor": processor}
    if file["model"].get("dropout"):
        yield f"dropout {file['model']['dropout']}"
        file["model"]["dropout"] = None
    swallowing = [token for token in file.get("added_tokens") or () if token["lstrip"] or token["rstrip"]]
    if swallowing:
        yield f"white space swallowed by {', '.join(repr(token['content']) for token in swallowing)}"
    for token in swallowing:
        token["lstrip"] = token["rstrip"] = False
