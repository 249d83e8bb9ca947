"""COGS: English sentences to logical forms, with 21 types of generalization, 18 lexical and 3 structural.

Kim & Linzen, "COGS: A Compositional Generalization Challenge Based on Semantic Interpretation" (2020). Splits `dev` and
`test` are distributed as the training items; `gen` holds 1,000 items of every type, so that its mean weighs all alike.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lab import limits
from lab.tasks import answers, seq2seq
from lab.tasks.answers import exact_match
from lab.tasks.task import Batch, Task
from lab.text import seq2seq_files, words
from lab.text.seq2seq_files import Pair, download, find_file, provenance, read_lines, sha256

FORMS = ("original", "variable_free")
EVALUATED = ("dev", "test", "gen")
TRAINING_TYPES = re.compile(r"in_distribution|primitive|exposure_example_\w+")
GEN_TYPES = (
    "active_to_passive",
    "cp_recursion",
    "do_dative_to_pp_dative",
    "obj_omitted_transitive_to_transitive",
    "obj_pp_to_subj_pp",
    "obj_to_subj_common",
    "obj_to_subj_proper",
    "only_seen_as_transitive_subj_as_unacc_subj",
    "only_seen_as_unacc_subj_as_obj_omitted_transitive_subj",
    "only_seen_as_unacc_subj_as_unerg_subj",
    "passive_to_active",
    "pp_dative_to_do_dative",
    "pp_recursion",
    "prim_to_inf_arg",
    "prim_to_obj_common",
    "prim_to_obj_proper",
    "prim_to_subj_common",
    "prim_to_subj_proper",
    "subj_to_obj_common",
    "subj_to_obj_proper",
    "unacc_to_transitive",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cogs(Task):
    """The task as a value.

    Files are `<split>.tsv`, lines of sentence, logical form and type; on Hugging Face columns `input`, `output` and
    `domain` (`Punchwe/COGS`).

    Attributes:
      path, hf_id, length, vocab_size, train_items: see `lab.tasks.seq2seq`.
      target_form: `original`, logical forms with numbered variables, or `variable_free` ones, which are a third as
        long: `<split>_varfree.tsv` where there is such a file, else the original ones by `variable_free`.
      evaluated: the splits beside `train`, of `EVALUATED`.
    """

    path: str
    hf_id: str
    length: int
    vocab_size: int
    train_items: int = 0
    target_form: str
    evaluated: tuple[str, ...] = ("test", "gen")

    coords = {"gen_type": GEN_TYPES}
    dims = {"type_accuracy": ("gen_type",)}
    kinds = GEN_TYPES
    kinds_of = ("gen",)
    has_answer, hparams, end = True, ("train_items",), seq2seq_files.END
    answer_alphabet, context_alphabet, longest_answer = map(
        property, (seq2seq.answer_alphabet, seq2seq.context_alphabet, seq2seq.longest_answer)
    )
    sample, files = seq2seq.sample, seq2seq.files

    def __post_init__(self):
        seq2seq.check(self)
        limits.check("task", self, choices={"target_form": FORMS})
        if not isinstance(self.evaluated, tuple) or not set(self.evaluated) <= set(EVALUATED):
            raise ValueError(f"task.evaluated={self.evaluated!r}: a tuple of {', '.join(EVALUATED)}")

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", *self.evaluated)

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """As `answers.score`, and for `gen` also `type_accuracy` (21), NaN for types that the batch has none of.

        Raises:
          ValueError: as `answers.score`.
        """
        scores = answers.score(logits_BxQxV, batch)
        if "kind_B" in batch.info:
            scores["type_accuracy"] = by_type(exact_match(logits_BxQxV, batch), batch)
        return scores

    def read(self, split: str) -> tuple[list[Pair], dict]:
        """The pairs of a split, in the order of the file, and what to tell of it."""
        if self.hf_id:
            rows = download(self.hf_id, None, split, ("input", "output", "domain"))
            pairs = [
                Pair(tuple(words.split(sentence)), tuple(words.split(form)), kind) for sentence, form, kind in rows
            ]
            source = {"data set": self.hf_id, "sha256": sha256(pairs)}
            where, converted = f"task.hf_id={self.hf_id!r}: {split} item", self.target_form == "variable_free"
        else:
            names = [f"{split}.tsv"]
            if self.target_form == "variable_free":
                names = [f"{split}_varfree.tsv", *names]
            path = find_file(self.path, names)
            pairs = [_pair(f"{path}: line {i}", line) for i, line in enumerate(read_lines(path, _is_whole), 1)]
            source = provenance(path)
            where, converted = f"{path}: line", self.target_form == "variable_free" and "_varfree" not in path.name
        if converted:
            pairs = [_converted(f"{where} {i}", pair) for i, pair in enumerate(pairs, 1)]
        if split == "gen":
            _check_types(pairs, where)
        return pairs, source


def by_type(correct_B, batch: Batch):
    """Mean (21) of what each sequence of split `gen` earned, by its type; NaN for types that the batch has none of."""
    of_type_TxB = batch.info["kind_B"][None] == jnp.arange(len(GEN_TYPES), dtype=jnp.int32)[:, None]
    of_type_TxB = of_type_TxB.astype(correct_B.dtype)
    return of_type_TxB @ correct_B / of_type_TxB.sum(axis=1)


def variable_free(form: Sequence[str]) -> tuple[str, ...]:
    """An original logical form without its variables: every argument stands in the place where it is used.

    "* cake ( x _ 3 ) ; eat . agent ( x _ 1 , Emma ) AND eat . theme ( x _ 1 , x _ 3 )" becomes
    "eat ( agent = Emma , theme = * cake )" (Qiu et al., "Improving Compositional Generalization with Latent Structure
    and Data Augmentation", 2022, whose files it reproduces).

    Raises:
      ValueError: no logical form of COGS.
    """
    if form[0] == "LAMBDA":  # a primitive: "LAMBDA a . LAMBDA e . sleep . agent ( e , a )"
        return (" ".join(form).split(" . ", form.count("LAMBDA"))[-1].split()[0],)
    if len(form) == 1:
        return tuple(form)
    name, arguments, used = {}, defaultdict(list), set()
    for term in " ".join(form).replace(" ; ", " AND ").split(" AND "):
        predicate, values = _term(term)
        noun, *role = predicate.split(" . ", 1)
        name.setdefault(values[0], noun)  # definite nouns, "* cake", come before what is said of them
        if role and len(values) == 2:
            arguments[values[0]].append((role[0], values[1]))
            used.add(values[1])
        elif role or len(values) != 1:
            raise ValueError(f"{term!r} is no term of a logical form")
    roots = [variable for variable in name if variable not in used]
    if len(roots) != 1:
        raise ValueError(f"{len(roots)} terms that no other uses, where there must be one")

    def written(variable: str, above: tuple[str, ...]) -> str:
        if variable in above:
            raise ValueError(f"{variable!r} is an argument of itself")
        within = " , ".join(f"{role} = {written(value, (*above, variable))}" for role, value in arguments[variable])
        return f"{name.get(variable, variable)} ( {within} )" if within else name.get(variable, variable)

    return tuple(words.split(written(roots[0], ())))


def _term(term: str) -> tuple[str, list[str]]:
    predicate, opens, values = term.partition(" ( ")
    if not opens or not values.endswith(" )"):
        raise ValueError(f"{term!r} is no term of a logical form")
    return predicate, values.removesuffix(" )").split(" , ")


def _pair(where: str, line: str) -> Pair:
    columns = line.split("\t")
    if len(columns) != 3 or not all(map(words.strip, columns)):
        raise ValueError(f"{where} has {len(columns)} columns, where sentence, logical form and type are needed")
    return Pair(tuple(words.split(columns[0])), tuple(words.split(columns[1])), words.strip(columns[2]))


def _is_whole(line: str, before: Sequence[str]) -> bool:
    """Its type, the last of its columns, is one of the paper or of the lines before."""
    columns = line.split("\t")
    kind = words.strip(columns[-1])
    known = {*GEN_TYPES} | {words.strip(other.split("\t")[-1]) for other in before}
    return len(columns) == 3 and (kind in known or TRAINING_TYPES.fullmatch(kind) is not None)


def _converted(where: str, pair: Pair) -> Pair:
    try:
        return pair._replace(target=variable_free(pair.target))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_types(pairs: Sequence[Pair], where: str) -> None:
    strange = sorted({pair.kind for pair in pairs} - set(GEN_TYPES))
    if strange:
        raise ValueError(f"{where}s of unknown type {strange[0]!r}; the {len(GEN_TYPES)} types are those of the paper")
