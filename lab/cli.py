"""The command line: `python -m lab COMMAND`, also installed as `lab`."""

import contextlib
import functools
import json
import os
import sys
import traceback
from pathlib import Path

from lab import arguments


def main(argv: list[str] | None = None) -> None:
    """Runs one command; a user's mistake ends with one line and exit code 2."""
    args, config_args = arguments.parser().parse_known_args(argv)
    try:
        if not args.takes_config:
            arguments.refuse(config_args, args.options)
        if args.needs_folder:
            args.workdir = arguments.one_folder(args.folder, args.workdir)
        _use_cores(getattr(args, "simulate", None))
        COMMANDS[args.command](args, config_args)
    except KeyboardInterrupt:
        print("\nlab: stopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from lab.disk.files import WorkdirError
        from lab.engine.train import Interrupted

        if isinstance(error, Interrupted):
            print(error)
        elif isinstance(error, (ValueError, WorkdirError, OSError)) and "LAB_DEBUG" not in os.environ:
            print(f"lab: {error}", file=sys.stderr)
            sys.exit(2)
        else:
            traceback.print_exc()
            sys.exit(1)


def _list(args, config_args) -> None:
    from lab import stages, studies

    general = {}
    for study in map(studies.get, studies.NAMES):
        print(f"{study.name}: {study.title} ({', '.join(study.papers)})")
        for preset, cost in study.presets.items():
            print(f"  --preset={preset:<6} {cost}")
        for claim in study.claims:
            print(f"  {claim.id:<4} {claim.statement}")
        own, others = stages.listed(study)
        general |= others
        for name, text in own.items():
            print(f"  --measure={name:<20} {text}")
    print("measurements of any training that has what they are of:")
    for name, text in general.items():
        print(f"  --measure={name:<20} {text}")


def _train(args, config_args) -> None:
    from lab.engine import train

    speaks = _join_processes(args)
    train.train_variants(_config(config_args, args), args.workdir)
    if speaks:
        print(f"trained: {args.workdir}")


def _plan(args, config_args) -> None:
    from lab import config as configs
    from lab.engine import plan

    for name, variant in configs.variants(_config(config_args, args)).items():
        for line in plan.explain(variant, args.simulate is not None, args.fresh):
            print(f"{name}: {line}", flush=True)


def _launch(args, config_args) -> None:
    from lab.cluster import launch, status

    config = _config(config_args, args)
    resources = {name: getattr(args, name) for name in launch.RESOURCES if getattr(args, name) is not None}
    set_up = functools.partial(_become_job, sys.argv[1:])
    launched = launch.launch(config, args.workdir, args.cluster, resources, arguments.config_file(config_args), set_up)
    lines = list(launched.lines.values())
    print(status.text(lines), flush=True)
    try:
        for lines in () if args.detach else launch.follow(launched):
            print(f"\n{status.text(lines)}", flush=True)
    except KeyboardInterrupt:
        if args.cluster == "local":  # the jobs heard it too
            raise
        print("\nlab: the jobs go on; the same command follows them again, scancel stops them", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if any(line.state == "failed" for line in lines) else 0)


def _become_job(argv: list[str]) -> None:
    """Makes a job's process what this one is: the words typed, which config.json notes, and a device per core."""
    sys.argv = ["lab", *argv]
    _use_cores()


def _status(args, config_args) -> None:
    from lab.cluster import status

    print(status.text(status.study(args.workdir)))


def _analyze(args, config_args) -> None:
    names, variants = (words if words is None else words.split(",") for words in (args.measure, args.variants))
    scope = {"snapshots": args.snapshots, "rows": args.rows, "precision": args.precision}
    _measure(args.workdir, names, variants, **scope)


def _report(args, config_args) -> None:
    _write_report(args.workdir)


def _reproduce(args, config_args) -> None:
    from lab import stages, studies
    from lab.engine import train

    study = studies.get(args.study)
    if args.preset not in study.presets:
        raise ValueError(f"unknown preset {args.preset!r} of {study.name}; one of {', '.join(study.presets)}")
    workdir = args.workdir or Path("runs") / f"{study.name}-{args.preset}"
    config = _config([f"--config={study.config_path}:{args.preset}", *config_args], args)
    train.train_variants(config, workdir)
    measured = _measure(workdir)
    if measured or not stages.reported(workdir):
        _write_report(workdir)
    else:
        print(f"nothing to do: {workdir / stages.PAGE} is up to date")


def _verify(args, config_args) -> None:
    from lab.disk.verify import damages, remarks
    from lab.disk.workdir import variants_in

    found = []
    for work in variants_in(args.workdir).values():
        found += damages(work)
        for line in remarks(work):
            print(line)
    print("\n".join(found) or f"{args.workdir}: everything is as it was written")
    sys.exit(1 if found else 0)


def _verify_row(args, config_args) -> None:
    from lab.disk.workdir import find
    from lab.engine import verify_row

    work = find(args.workdir, args.variant)
    found = verify_row.replay(work.path, args.row, args.steps)
    hparams = ", ".join(f"{name} {value:g}" for name, value in work.grid.row(args.row).items())
    print(f"row {args.row} ({hparams}) of {work.path}, trained alone for {found.steps} steps:")
    since = "bit for bit the same" if found.since is None else f"differs from step {found.since} on"
    print(f"  training loss: {since}; largest difference {found.loss:.2g} nats, at step {found.at}")
    for step, difference in found.params.items():
        print(f"  parameters at step {step}: largest difference {difference:.2g}")
    if found.diverged != (-1, -1):
        print(f"  went non-finite at step {found.diverged[0]} in the grid, {found.diverged[1]} alone (-1: not at all)")


def _claims(args, config_args) -> None:
    from lab import stages, studies
    from lab.report import claims_table

    if args.workdir is None:
        if args.markdown:
            raise ValueError("--markdown shows what was measured: it needs --workdir")
        rows = [
            {"study": name}
            | {field: getattr(claim, field) for field in ("id", "statement", "source", "published", "threshold")}
            for name in studies.NAMES
            for claim in studies.get(name).claims
        ]
        text = "\n".join(
            f"{row['study']} {row['id']:<4} {row['statement']}\n     needs: {row['threshold']}" for row in rows
        )
    else:
        rows = stages.read_claims(args.workdir)
        text = claims_table.markdown(rows) if args.markdown else claims_table.text(rows)
    print(json.dumps(rows, indent=1) if args.json else text)


def _measure(workdir: Path, *chosen, **scope) -> list[str]:
    from lab import stages

    taken = stages.analyze(workdir, *chosen, **scope)
    print(f"analyzed: {', '.join(taken) if taken else 'nothing new'}")
    return taken


def _write_report(workdir: Path) -> None:
    from lab import stages
    from lab.report import claims_table

    page, rows = stages.report(workdir)
    print(claims_table.text(rows))
    for variant, names in stages.stale(workdir).items():
        print(f"left out of {variant}: {', '.join(names)} ({stages.LEFT_OUT})")
    print(f"report: {page}")


def _config(config_args: list[str], args):
    """The config asked for, with the variants asked for."""
    config = arguments.chosen_variants(arguments.read_config(config_args, args.options), args.variants)
    if getattr(args, "deterministic", False):
        config.deterministic = True
    return config


def _use_cores(n_devices: int | None = None) -> None:
    """One XLA host device per core: rows side by side beat one row over all cores. No effect on a GPU's programs."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # JAX is running already, in a notebook say, with the devices it has
        jax.config.update("jax_num_cpu_devices", n_devices or cores)
        if n_devices:
            jax.config.update("jax_platforms", "cpu")


def _join_processes(args) -> bool:
    """Joins this process with the others that train, if it is said how; returns whether it is the one that speaks."""
    import jax

    by_hand = (args.coordinator, args.processes, args.process)
    if any(part is not None for part in by_hand):
        complete = None not in by_hand and 0 <= args.process < args.processes and not args.distributed
        if not complete or not args.coordinator.rpartition(":")[2].isdigit():
            raise ValueError("--coordinator=HOST:PORT, --processes=N and --process=0..N-1 go together, and alone")
        jax.distributed.initialize(*by_hand)
    elif args.distributed:
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            raise ValueError("--distributed finds no SLURM and no TPU pod; use --coordinator, see --help") from error
    return jax.process_index() == 0


COMMANDS = {
    "list": _list,
    "train": _train,
    "plan": _plan,
    "launch": _launch,
    "status": _status,
    "analyze": _analyze,
    "report": _report,
    "verify": _verify,
    "verify-row": _verify_row,
    "reproduce": _reproduce,
    "claims": _claims,
}
