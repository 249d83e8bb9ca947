"""Tasks: pure samplers `(key, n, split, hparams) -> Batch`, and scores of a model's answers per named solution."""

from lab.tasks.addition import Addition
from lab.tasks.anchor import Anchor
from lab.tasks.cogs import Cogs
from lab.tasks.composition import Composition
from lab.tasks.copy_strings import CopyStrings
from lab.tasks.fields import Fields
from lab.tasks.finetune import Finetune
from lab.tasks.graph_path import GraphPath
from lab.tasks.increasing_subsequence import IncreasingSubsequence
from lab.tasks.induction import Induction
from lab.tasks.inverse_matching import InverseMatching
from lab.tasks.kinship import Kinship
from lab.tasks.linear_regression import LinearRegression
from lab.tasks.markov import Markov
from lab.tasks.ontology import Ontology
from lab.tasks.question_files import QuestionFiles
from lab.tasks.rules import Rules
from lab.tasks.scan import Scan
from lab.tasks.shapes import Shapes
from lab.tasks.strings import Strings
from lab.tasks.symmetric_composition import SymmetricComposition
from lab.tasks.task import Batch, Task
from lab.tasks.text import Text
from lab.tasks.two_hop import TwoHop

__all__ = [
    "FAMILIES",
    "Addition",
    "Anchor",
    "Batch",
    "Cogs",
    "Composition",
    "CopyStrings",
    "Fields",
    "Finetune",
    "GraphPath",
    "IncreasingSubsequence",
    "Induction",
    "InverseMatching",
    "Kinship",
    "LinearRegression",
    "Markov",
    "Ontology",
    "QuestionFiles",
    "Rules",
    "Scan",
    "Shapes",
    "Strings",
    "SymmetricComposition",
    "Task",
    "Text",
    "TwoHop",
]

FAMILIES: dict[str, type[Task]] = {
    "composition": Composition,
    "addition": Addition,
    "anchor": Anchor,
    "markov": Markov,
    "text": Text,
    "scan": Scan,
    "cogs": Cogs,
    "ontology": Ontology,
    "graph_path": GraphPath,
    "rules": Rules,
    "kinship": Kinship,
    "question_files": QuestionFiles,
    "sequel": Finetune,
    "shapes": Shapes,
    "strings": Strings,
    "two_hop": TwoHop,
    "symmetric_composition": SymmetricComposition,
    "inverse_matching": InverseMatching,
    "linear_regression": LinearRegression,
    "induction": Induction,
    "fields": Fields,
    "copy_strings": CopyStrings,
    "increasing_subsequence": IncreasingSubsequence,
}
