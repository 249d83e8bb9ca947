"""Analysis: pure functions of models, parameters and sequences. Its modules are imported when they are first named."""


def __getattr__(name):
    import importlib
    import importlib.util

    if name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
