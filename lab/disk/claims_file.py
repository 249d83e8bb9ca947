"""`claims.json` of a study's folder: the claims table of its report."""

import json
import shlex
from pathlib import Path

from lab import verdicts
from lab.disk.files import WorkdirError

NAME = "claims.json"


def read(root: Path) -> list[dict]:
    """The rows of the table.

    Raises:
      WorkdirError: there is no claims table, or another version of the package wrote it.
    """
    again = f"`python -m lab report --workdir={shlex.quote(str(root))}` makes it"
    try:
        table = json.loads((root / NAME).read_text())
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{root}: no claims table ({error}); {again}") from error
    if not isinstance(table, dict) or table.get("version") != verdicts.VERSION:
        raise WorkdirError(f"{root / NAME}: not of version {verdicts.VERSION}, which this package reads; {again}")
    return table["claims"]
