"""Where caches lie: what can be made again, such as prepared text and measured plans."""

import os
from pathlib import Path


def folder(name: str) -> Path:
    """`$GAMMALAB_CACHE/name`, else `$XDG_CACHE_HOME/gammalab/name`, else `~/.cache/gammalab/name`; it need not exist.

    Raises:
      ValueError: the user has no home folder, and no variable says where else.
    """
    try:
        if chosen := os.environ.get("GAMMALAB_CACHE"):
            root = Path(chosen).expanduser()
        elif shared := os.environ.get("XDG_CACHE_HOME"):
            root = Path(shared).expanduser() / "gammalab"
        else:
            root = Path.home() / ".cache" / "gammalab"
    except RuntimeError as error:
        raise ValueError(f"no folder for caches ({error}): set GAMMALAB_CACHE to one that can be written to") from error
    return root / name
