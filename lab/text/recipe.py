"""What text becomes which tokens, and the files that it lies in."""

import dataclasses
from pathlib import Path

from lab import cache, limits
from lab.text import documents, hub, sources

NO_VALID = (
    "what to evaluate on? A share of the documents, a task.valid_path, or a folder with files of both splits, such as "
    "train.txt and valid.txt"
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What text becomes which tokens.

    Attributes:
      path: a file, plain, .xz or .gz, of text or of rows (.jsonl, .parquet), or a folder of such, read in the order of
        their names; or empty.
      hf_id: a Hugging Face data set, `name` or `name:config`, its split `train`; or empty.
      column: where the text is in a data set and in files of rows.
      separator: what a document is, see `lab.text.documents.documents`.
      tokenizer: `word`, `char` or `bpe`, trained on split `train`, or the path of a tokenizer.json.
      vocab_size: most token ids there may be.
      valid_share: this share of the documents, the last ones, is held out as split `valid`; 0: see `valid_path`.
      valid_path: text of that split, as `path`; empty for a data set's own split `validation`, or for the files of a
        folder whose names begin or end with train and valid.

    Raises:
      ValueError: an impossible choice. Nothing is read yet.
    """

    path: str
    hf_id: str
    separator: str
    tokenizer: str
    vocab_size: int
    valid_share: float
    valid_path: str
    column: str

    def __post_init__(self):
        if bool(self.path) == bool(self.hf_id):
            raise ValueError(
                f"task.path={self.path!r}, task.hf_id={self.hf_id!r}: give one of them, --config.task.path=FILE (or a "
                "folder) or --config.task.hf_id=NAME:CONFIG, such as Salesforce/wikitext:wikitext-2-v1"
            )
        limits.check("task", self, choices={"separator": documents.SEPARATORS}, bounds={"vocab_size": (1, None)})
        if not 0 <= self.valid_share < 1:
            raise ValueError(f"task.valid_share={self.valid_share}: a share of the documents, must lie in [0, 1)")
        if self.valid_share and self.valid_path:
            raise ValueError(f"task.valid_path={self.valid_path!r}: with it, task.valid_share must be 0")
        if not self.column:
            raise ValueError("task.column='': the name of the column that holds the text")
        if not (self.valid_share or self.valid_path or self.hf_id) and sources.is_named_as_file(self.path):
            raise ValueError(f"task.valid_share=0: {NO_VALID}")


def files_of(recipe: Recipe) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each split, without `valid` where that is a share of `train`, and what to say of files not read.

    Raises:
      ValueError: as `lab.text.sources`, or `lab.text.hub.download`.
    """
    if recipe.hf_id:
        wanted = {"train": "train"} | ({} if recipe.valid_share or recipe.valid_path else {"valid": "validation"})
        folder = cache.folder("hub")
        paths = {
            split: [hub.download(folder, recipe.hf_id, recipe.separator, name, recipe.column)]
            for split, name in wanted.items()
        }
        said = []
    elif recipe.valid_share or recipe.valid_path:
        paths, said = sources.as_one("task.path", recipe.path)
        paths = {"train": paths}
    else:
        return sources.as_splits("task.path", recipe.path, NO_VALID)
    if recipe.valid_path:
        paths["valid"], more = sources.as_one("task.valid_path", recipe.valid_path)
        said += more
    return paths, said
