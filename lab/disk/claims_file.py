"""`claims.json` of a study's folder: the claims table of its report."""

import shlex
from pathlib import Path

from lab import verdicts
from lab.disk.files import DamagedError, WorkdirError, read_json

NAME = "claims.json"


def read(root: Path) -> list[dict]:
    """The rows of the table.

    Raises:
      WorkdirError: there is no claims table, or another version of the package wrote it.
    """
    again = f"`python -m lab report --workdir={shlex.quote(str(root))}` makes it"
    try:
        table = read_json(root / NAME)
    except DamagedError as error:
        raise WorkdirError(f"{root}: no claims table ({error}); {again}") from error
    if table.get("version") != verdicts.VERSION:
        raise WorkdirError(f"{root / NAME}: not of version {verdicts.VERSION}, which this package reads; {again}")
    return table["claims"]
