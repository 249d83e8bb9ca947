"""gammalab: how do initialization scale and weight decay decide what a network learns?

`lab.load(workdir)` opens what a training left; everything else is a module of its own (see the README's map).
"""

__version__ = "0.2.0"


def load(workdir, variant=None):
    """See `lab.disk.load.load`; imported on demand, so that `import lab` stays instant."""
    from lab.disk.load import load

    return load(workdir, variant)
