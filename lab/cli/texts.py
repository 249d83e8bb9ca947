"""What a study says of itself: title, presets, claims and measurements, as text.

A study's module imports all that it computes with, which takes seconds. So its text is kept, by a hash of the source
that it comes from.
"""

import contextlib
import hashlib
from pathlib import Path

from lab import cache, studies
from lab.configs import base
from lab.disk import files

CLAIM = ("id", "statement", "quantity", "source", "published", "headline")


def study(name: str) -> dict:
    """`title`, `papers`, `presets` (with their cost), what each `decides`, `claims`, and `measures`, own and general.

    Raises:
      ValueError: no such study.
    """
    if name not in studies.names():  # a file of a user's, or a mistake
        return _read(name)
    try:
        place = cache.folder("studies") / f"{name}-{_source()}.json"
    except ValueError:  # no folder for caches
        return _read(name)
    with contextlib.suppress(files.DamagedError):
        return files.read_json(place)
    text = _read(name)
    with contextlib.suppress(files.SaveError):
        files.write_json(place, text)
    return text


def _read(name: str) -> dict:
    from lab import stages

    found = studies.get(name)
    own, general = stages.listed(found)
    return {
        "title": found.title,
        "papers": list(found.papers),
        "presets": base.presets(name),
        "decides": base.decides(name),
        "claims": [
            {field: getattr(claim, field) for field in CLAIM} | {"threshold": claim.threshold.text}
            for claim in found.claims
        ],
        "measures": {"own": own, "catalogue": general},
    }


def _source() -> str:
    """A hash of all modules: any of them may have a say in a text."""
    roots = (Path(studies.__file__).parents[1], Path(base.__file__).parent)
    paths = sorted(path for root in roots for path in root.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
