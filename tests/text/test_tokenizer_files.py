"""Tokenizer files of other people: their ids of a text, whole, whatever else they would do; or refused in one line."""

import json

import numpy as np
import pytest

from lab.text.corpus import prepare
from lab.text.recipe import Recipe
from lab.text.tokenizer import UnknownError, train
from lab.text.tokenizer_files import adopt, from_bytes

library = pytest.importorskip("tokenizers")
models, processors = library.models, library.processors
WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "[CLS]": 3, "[SEP]": 4, "a": 5, "b": 6, "c": 7}
TEXT, IDS = "a b c zz a b c c", [5, 6, 7, 0, 5, 6, 7, 7]
TEMPLATE = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
TWICE = processors.TemplateProcessing("$A $A")
ROBERTA = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))


def file_of(model, **changes):
    """A tokenizer.json, as a dict, with words between white space."""
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    return json.loads(tokenizer.to_str()) | changes


def words_file(**changes):
    return file_of(models.WordLevel(WORDS, unk_token="<unk>"), **changes)


def processed(processor):
    tokenizer = library.Tokenizer.from_str(json.dumps(words_file()))
    tokenizer.post_processor = processor
    return json.loads(tokenizer.to_str())


def content(file):
    return json.dumps(file).encode()


def truncation(length, stride=0):
    return dict(direction="Right", max_length=length, strategy="LongestFirst", stride=stride)


PADDING = dict(
    strategy={"Fixed": 32}, direction="Left", pad_to_multiple_of=None, pad_id=0, pad_type_id=0, pad_token="<unk>"
)
SWITCHED = {
    "truncation": (words_file(truncation=truncation(3)), "truncation to 3 tokens"),
    "truncation with too long a stride": (words_file(truncation=truncation(3, stride=9)), "truncation to 3 tokens"),
    "padding": (words_file(padding=PADDING), "padding"),
    "template": (processed(TEMPLATE), "post-processing (TemplateProcessing)"),
    "the text twice": (processed(TWICE), "post-processing (TemplateProcessing)"),
    "bert": (processed(processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))), "post-processing (BertProcessing)"),
    "roberta": (processed(ROBERTA), "post-processing (RobertaProcessing)"),
    "sequence": (
        processed(processors.Sequence([processors.ByteLevel(), TEMPLATE])), "post-processing (Sequence)",
    ),
    "nothing": (words_file(), None),
    "offsets only": (processed(processors.ByteLevel(trim_offsets=True)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHED)
def test_ids_are_those_of_the_text_whole_whatever_the_file_adds(name):
    file, off = SWITCHED[name]
    found, said = adopt(content(file))
    assert said == (() if off is None else (off,))
    assert found.encode(TEXT).tolist() == IDS
    assert [ids.tolist() for ids in found.encode_all([TEXT, "a"])] == [IDS, [5]]
    assert adopt(found.to_bytes()) == (found, ())
    if off is None:
        assert found.json == library.Tokenizer.from_str(json.dumps(file)).to_str()


def test_everything_that_is_switched_off_is_said():
    file = processed(TEMPLATE) | dict(truncation=truncation(2), padding=PADDING)
    assert adopt(content(file))[1] == (
        "truncation to 2 tokens", "padding", "post-processing (TemplateProcessing)",
    )  # fmt: skip


def test_merges_are_not_left_out_at_random():
    file = file_of(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")], dropout=0.9))
    found, off = adopt(content(file))
    assert off == ("dropout 0.9",)
    assert found.encode("ab " * 500).tolist() == [2] * 500


@pytest.mark.parametrize("side", ["lstrip", "rstrip", None])
def test_added_tokens_swallow_no_white_space(side):
    alphabet = {one: i for i, one in enumerate(["<unk>", "a", "b", " "])}
    tokenizer = library.Tokenizer(models.WordLevel(alphabet, unk_token="<unk>"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens([library.AddedToken("<mask>", **({side: True} if side else {}))])
    found, off = adopt(tokenizer.to_str().encode())
    assert [found.names[token] for token in found.encode("a <mask> b")] == ["a", " ", "<mask>", " ", "b"]
    assert off == (("white space swallowed by '<mask>'",) if side else ())


def test_normalizers_and_words_of_a_file_stay():
    tokenizer = library.Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, ",": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()  # punctuation apart
    tokenizer.normalizer = library.normalizers.Lowercase()
    assert adopt(tokenizer.to_str().encode())[0].encode("A,a").tolist() == [1, 2, 1]


MODELS = {
    # model, text, ids, and what is unknown
    "WordLevel": (models.WordLevel({"[UNK]": 7, "a": 0}, unk_token="[UNK]"), "a x a", [0, 7, 0], 7),
    "WordPiece": (
        models.WordPiece({"[UNK]": 3, "a": 0, "##b": 1, "c": 2}, unk_token="[UNK]"), "ab c x", [0, 1, 2, 3], 3,
    ),
    "Unigram": (models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)], 0), "▁ab x", [1, 2, 0], 0),
    "BPE": (models.BPE({"<u>": 0, "a": 1}, [], unk_token="<u>"), "a x", [1, 0], 0),
    "bytes": (
        models.BPE({"a": 0, "<0x78>": 1, "<0xC3>": 2, "<0xA9>": 3}, [], byte_fallback=True), "a xé", [0, 1, 2, 3], None,
    ),
    "words that go on": (models.BPE({"a": 0, "##b": 1}, [], continuing_subword_prefix="##"), "ab a", [0, 1, 0], None),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind_are_read(name):
    model, text, ids, unknown = MODELS[name]
    found, off = adopt(content(file_of(model)))
    assert off == () and found.unknown == unknown
    assert found.encode(text).tolist() == ids


WITHOUT_UNKNOWN = {
    "WordLevel": (models.WordLevel({"a": 0}, unk_token="[UNK]"), "a xy a", "'xy' is none of the 1 words"),
    "WordPiece": (models.WordPiece({"a": 0}, unk_token="[UNK]"), "a xy", "'xy' is none of the 1 tokens"),
    "Unigram": (models.Unigram([("a", 0.0)], None), "a xy", "'xy' is none of the 1 tokens"),
    "BPE, which would leave it out": (models.BPE({"a": 0, "b": 1}, []), "a axb", "'x' is none of the 2 tokens"),
    "bytes that are not there": (models.BPE({"a": 0}, [], byte_fallback=True), "a x", "'x' is none of the 1 tokens"),
    "token that is not there": (models.BPE({"a": 0}, [], unk_token="<u>"), "a x", "'x' is none of the 1 tokens"),
    "inside of words": (
        models.BPE({"a": 0, "b": 1}, [], continuing_subword_prefix="##"), "xa", "'x' is none of the 2 tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_UNKNOWN)
def test_what_has_no_id_is_refused_where_nothing_stands_for_it(name):
    model, text, message = WITHOUT_UNKNOWN[name]
    found, _ = adopt(content(file_of(model)))
    with pytest.raises(UnknownError, match=f"^{message} of this tokenizer, which has none for unknown ones$"):
        found.encode_all(["a", text])
    assert found.encode("a a").size == 2


@pytest.mark.parametrize("text", ["\ud800", "a \udfff b"])
def test_half_a_pair_has_no_ids(text):
    for found in (from_bytes(content(words_file())), train("bpe", ["a"], 300), train("char", ["a"], 30)):
        with pytest.raises(UnknownError):
            found.encode(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not json", r"^not a tokenizer\.json \(.*expected ident"),
        (b"", r"^not a tokenizer\.json"),
        (b"\n\x0b\n\x07<unk>\x15\x00", r"^not a tokenizer\.json"),  # of SentencePiece
        (b'{"a": 0}', r"^not a tokenizer\.json"),  # a vocab.json
        (content(file_of(models.BPE())), "^a tokenizer.json with an empty vocabulary$"),
        (content(file_of(models.WordLevel({}, unk_token="<unk>"))), "^a tokenizer.json with an empty vocabulary$"),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_one_line(data, message):
    with pytest.raises(ValueError, match=message) as error:
        adopt(data)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_before_a_tokenizer_says_nothing():
    assert adopt(b"\xef\xbb\xbf" + content(words_file())) == adopt(content(words_file()))


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("a b c a b c a b c a b c\n" * 10)
    return path


def recipe(path, file, vocab_size=10):
    where = path.with_name("tokenizer.json")
    where.write_bytes(content(file) if isinstance(file, dict) else file)
    return Recipe(
        path=str(path), hf_id="", separator="line", tokenizer=str(where), vocab_size=vocab_size, valid_share=0.1,
        valid_path="", column="text",
    )  # fmt: skip


def test_text_is_not_cut_by_a_file_and_it_is_said_once(text, capsys):
    asked = recipe(text, processed(TEMPLATE) | dict(truncation=truncation(8)))
    found = prepare(asked)
    np.testing.assert_array_equal(found.tokens["train"], ([5, 6, 7] * 4 + [2]) * 9)
    off = ["truncation to 8 tokens", "post-processing (TemplateProcessing)"]
    assert list(found.provenance["switched_off"]) == off
    prepare(asked)
    assert capsys.readouterr().err.splitlines() == [
        f"lab: {asked.tokenizer}: switched off, as it would change the tokens of the text: {', '.join(off)}"
    ]


def with_ids(vocab):
    file = words_file()
    file["model"]["vocab"] = vocab  # not by the library, which leaves some out where ids have gaps
    return file


@pytest.mark.parametrize(
    ("vocab", "vocab_size", "message"),
    [
        (
            {"<unk>": 0, "a": 5, "b": 2, "c": 9},
            9,
            "task.vocab_size=9: .* has 10 tokens, counting 6 ids that nothing has$",
        ),
        ({"<unk>": 0, "a": 2**32 - 1}, 100, f"task.vocab_size=100: .* has {2**32} tokens, counting"),
        ({"a": 0, "b": 1}, 9, "task.tokenizer=.*: 'c' is none of the 2 words of this tokenizer"),
    ],
)
def test_ids_that_do_not_fit_are_refused_in_one_line(text, vocab, vocab_size, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare(recipe(text, with_ids(vocab), vocab_size))
    assert "\n" not in str(error.value)


def test_ids_with_gaps_are_kept_as_they_are(text):
    vocab = {"<unk>": 0, "a": 5, "b": 2, "c": 9}
    found = prepare(recipe(text, with_ids(vocab)))
    np.testing.assert_array_equal(found.tokens["valid"], [5, 2, 9] * 4)
    assert found.tokenizer.names == ("<unk>", "", "b", "", "", "a", "", "", "", "c")
