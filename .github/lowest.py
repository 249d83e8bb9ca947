"""Prints the lowest version that setup.cfg allows of everything that the package and its tests need, as constraints.

python .github/lowest.py > constraints-lowest.txt
"""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
REQUIREMENT = re.compile(r"([\w.-]+)\s*>=\s*([\w.]+)")


def constraints(text: str) -> list[str]:
    """`name==lowest` of `install_requires` and of extra `test`, in alphabetical order.

    Raises:
      ValueError: a requirement that names no lowest version.
    """
    config = configparser.ConfigParser()
    config.read_string(text)
    needed = config["options"]["install_requires"] + config["options.extras_require"]["test"]
    lowest = {}
    for line in filter(None, (line.split("#")[0].strip() for line in needed.splitlines())):
        found = REQUIREMENT.match(line)
        if found is None:
            raise ValueError(f"setup.cfg: {line!r} names no lowest version; accepted: name >=lowest,<next")
        lowest[found[1]] = found[2]
    return [f"{name}=={version}" for name, version in sorted(lowest.items(), key=lambda pair: pair[0].lower())]


if __name__ == "__main__":
    print("\n".join(constraints(SETUP.read_text())))
