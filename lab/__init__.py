"""gammalab: how do initialization scale and weight decay decide what a network learns?

`lab.load(workdir)` opens what a training left; everything else is a module of its own (see the README's map).
"""

__version__ = "0.2.0"


def load(workdir, variant=None):
    """See `lab.disk.load.load`; imported on demand, so that `import lab` stays instant."""
    from lab.disk.load import load

    return load(workdir, variant)


def export(workdir, to, out=None, rows=None, metrics=None, variants=None):
    """See `lab.sinks.export`."""
    from lab.sinks import export

    return export(workdir, to, out, rows, metrics, variants)


def diff(a, b):
    """See `lab.difference.diff`."""
    from lab.difference import diff

    return diff(a, b)
