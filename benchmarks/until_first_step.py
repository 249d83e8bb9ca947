"""The command line, ended after its first training step: `python benchmarks/until_first_step.py TIMES COMMAND ...`.

Writes to the file TIMES, as JSON, when training began and when its first step was done, as `time.time()` counts. It
asks of a laboratory only `lab.cli.main` and `lab.engine.rows.Rows` with `advance(first, end)` and `wait()`; nothing is
imported earlier than the command would import it.
"""

import importlib.abc
import importlib.util
import json
import sys
import time
from pathlib import Path

WATCHED = "lab.engine.rows"


class Hook(importlib.abc.MetaPathFinder):
    """Hands a module over as soon as it has been imported."""

    def __init__(self, name: str, change):
        self.name, self.change = name, change

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            self.change(module)

        spec.loader.exec_module = execute_and_change
        return spec


def end_after_one_step(times: Path):
    """What `Hook` does with the module: one step is trained in place of the first chunk, by the same program."""

    def change(module):
        advance = module.Rows.advance

        def one_step(rows, first, end):
            begun = time.time()
            advance(rows, first, min(end, first + 1))
            rows.wait()
            times.write_text(json.dumps({"begun": begun, "done": time.time()}))
            raise KeyboardInterrupt  # as a user ends it: what is kept for the next start is kept

        module.Rows.advance = one_step

    return change


def main() -> None:
    times = Path(sys.argv.pop(1))
    sys.meta_path.insert(0, Hook(WATCHED, end_after_one_step(times)))
    from lab.cli import main

    main()


if __name__ == "__main__":
    main()
