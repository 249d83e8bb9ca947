"""Python files of a user as modules."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_file(path: str | Path) -> ModuleType:
    """A Python file as a module, read anew at each call; its name in `sys.modules` is another for every file.

    Raises:
      ValueError: there is no such file, or it is not Python.
    """
    path = Path(path).absolute()
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{path}: no such Python file")
    name = f"lab_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]  # half a module would be taken for the whole one
        if isinstance(error, SyntaxError):
            raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
        raise
    return module
