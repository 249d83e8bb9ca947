"""Prints the release notes of the version that setup.cfg names: its section of the changelog.

python .github/notes.py v0.3.0 > notes.md
"""

import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sections(changelog: str) -> dict[str, str]:
    """Heading -> text, newest first."""
    parts = re.split(r"^## (.+)$", changelog, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (text.strip() for text in parts[1::2]), strict=True))


def version(setup: str) -> str:
    config = configparser.ConfigParser()
    config.read_string(setup)
    return config["metadata"]["version"]


def notes(tag: str, setup: str, changelog: str) -> str:
    """
    Raises:
      ValueError: the tag is not that of the version, or the newest section is not the version's.
    """
    number, (newest, text) = version(setup), next(iter(sections(changelog).items()))
    if tag != f"v{number}":
        raise ValueError(f"tag {tag!r}: setup.cfg names version {number}; accepted: v{number}")
    if newest != number:
        raise ValueError(f"CHANGELOG.md begins with {newest!r}: a release of {number} begins with '## {number}'")
    return text


if __name__ == "__main__":
    try:
        print(notes(sys.argv[1], (ROOT / "setup.cfg").read_text(), (ROOT / "CHANGELOG.md").read_text()))
    except ValueError as error:
        sys.exit(str(error))
