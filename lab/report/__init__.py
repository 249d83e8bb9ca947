"""Figures from a study's dataset, and the self-contained page that shows them beside the claims.

The package is a function, too: `lab.report(workdir)` evaluates the claims and writes the page.
"""

import sys
import types

import lab


class _Callable(types.ModuleType):
    def __call__(self, workdir, partial=False):
        return lab.write_report(workdir, partial)


sys.modules[__name__].__class__ = _Callable
