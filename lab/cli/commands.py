"""The commands, by name. What a command does not need it does not import: `lab --help` and mistakes are instant."""

import contextlib
import functools
import json
import sys
import time
from pathlib import Path

from lab.cli import arguments, config, devices, unchanged

WATCH_SECONDS = 3.0
CLEAR = "\033[H\033[2J"  # of a terminal: to its first line, and nothing below


def _list(args, config_args) -> None:
    from lab import studies
    from lab.cli import texts

    if args.study is None:
        width = max(map(len, studies.names()))
        for name in studies.names():
            print(f"{name:<{width}}  {studies.sentence(name)}")
        print("\n`python -m lab list STUDY` shows a study's presets, claims and measurements.")
        return
    study = texts.study(args.study)
    print(f"{args.study}: {study['title']} ({', '.join(study['papers'])})")
    width = max(6, *map(len, study["presets"]))
    for preset, cost in study["presets"].items():
        print(f"  --preset={preset:<{width}} {cost}")
        if study["decides"][preset]:
            print(f"  {'':<{width}}          decides {study['decides'][preset]}")
    for claim in study["claims"]:
        print(f"  {claim['id']:<4} {claim['statement']}{' (headline)' * claim['headline']}")
    for kind, title in (("own", "measurements of its own:"), ("catalogue", "measurements of any training:")):
        print(title)
        for name, text in study["measures"][kind].items():
            print(f"  --measure={name:<20} {text}")


def _train(args, config_args) -> None:
    from lab.engine import train

    speaks = devices.join_processes(args)
    train.train_variants(_config(config_args, args), args.workdir)
    if speaks:
        print(f"trained: {args.workdir}")


def _plan(args, config_args) -> None:
    from lab import config as configs
    from lab.engine import plan
    from lab.engine.progress import busy

    for name, variant in configs.variants(_config(config_args, args)).items():
        with busy(f"planning {name}"):
            lines = plan.explain(variant, args.simulate is not None, args.fresh)
        for line in lines:
            print(f"{name}: {line}", flush=True)


def _extend(args, config_args) -> None:
    from lab.engine import train

    axes = config.more_values(config_args, args.known)
    train.extend(args.workdir, axes, args.variants and args.variants.split(","))
    print(f"trained: {args.workdir}; analyze measures what was added")


def _launch(args, config_args) -> None:
    from lab.cluster import launch, status

    made, file = _config(config_args, args), config.file(config_args)
    resources = {name: getattr(args, name) for name in launch.RESOURCES if getattr(args, name) is not None}
    launched = launch.launch(
        made, args.workdir, args.cluster, resources, file, functools.partial(_become_job, sys.argv[1:])
    )
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
    devices.use_cores()


def _status(args, config_args) -> None:
    from lab.cluster import status

    while True:
        text = status.text(status.study(args.workdir))
        print(f"{CLEAR}{text}" if args.watch else text, flush=True)
        if not args.watch:
            return
        try:
            time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return


def _watch(args, config_args) -> None:
    from lab.cli import watch

    with watch.server(args.workdir, args.port) as server, contextlib.suppress(KeyboardInterrupt):
        devices.use_cores(1)  # all others, and the memory of a GPU, are the training's
        address = f"http://{watch.ADDRESS}:{server.server_port}/"
        print(f"watching {args.workdir}: {address} (Ctrl-C ends this; what trains goes on)", flush=True)
        server.serve_forever()


def _analyze(args, config_args) -> None:
    names, variants = (words if words is None else words.split(",") for words in (args.measure, args.variants))
    rows = args.rows and _rows(args)
    _measure(args.workdir, names, variants, snapshots=args.snapshots, rows=rows, n=args.n, precision=args.precision)


def _report(args, config_args) -> None:
    _write_report(args.workdir, args.partial)


def _reproduce(args, config_args) -> None:
    given = {name: value for name, value in vars(args).items() if name not in ("study", "workdir", "known")}
    program = unchanged.program([args.study, *config_args, *(f"{n}={value}" for n, value in sorted(given.items()))])
    workdir = args.workdir or Path("runs") / f"{Path(args.study.partition(':')[0]).stem}-{args.preset}"
    if unchanged.is_done(workdir, program):
        print(f"nothing to do: no file in {workdir} has changed since this command ended (`lab verify` reads them all)")
        return
    devices.use_cores()
    from lab import studies
    from lab.disk.workdir import variants_in
    from lab.engine import train

    for arg in config_args:
        if config.names_one(arg):
            raise ValueError(f"{arg}: reproduce takes the study's own config; --config.NAME=VALUE changes its options")
    ours = args.study in studies.names()  # whose claims and pictures need not be looked at before there is anything
    name = args.study if ours else studies.get(args.study).name
    config_of_study = _config([f"--config={name}:{args.preset}", *config_args], args)
    train.train_variants(config_of_study, workdir, then="the analysis")

    from lab import stages

    measured = _measure(workdir)
    if measured or not stages.reported(workdir):
        _write_report(workdir)
    else:
        print(f"nothing to do: {workdir / stages.PAGE} is up to date")
    elsewhere = any(work.classes or work.data_hashes for work in variants_in(workdir).values())
    if ours and not elsewhere:  # else code or data of the user's decide, too
        with contextlib.suppress(OSError):  # it is done, whether or not that can be remembered
            unchanged.remember(workdir, program)


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


def _export(args, config_args) -> None:
    from lab import sinks

    metrics, variants = (words if words is None else words.split(",") for words in (args.metrics, args.variants))
    rows = args.rows if args.rows in (None, "all") else _rows(args)
    place = sinks.export(args.workdir, args.to, args.out, rows, metrics, variants, say=print)
    print(f"written: {place}; look at it with {sinks.SINKS[args.to].then.format(place=str(place))}")


def _diff(args, config_args) -> None:
    from lab import difference

    found = difference.diff(args.a, args.b)
    print(json.dumps(found.to_json(), indent=1) if args.json else found)


def _prune(args, config_args) -> None:
    from lab.disk.prune import prune
    from lab.disk.workdir import variants_in
    from lab.engine.estimate import size

    if args.keep_checkpoints is None and args.keep_snapshots == "all":
        raise ValueError("what may go? --keep-checkpoints=N, --keep-snapshots=log or --keep-snapshots=last, or both")
    would, freed = "would drop" if args.dry_run else "dropped", 0
    for work in variants_in(args.workdir).values():
        for place, n_bytes in prune(work, args.keep_checkpoints, args.keep_snapshots, args.dry_run):
            print(f"{would} {place} ({size(n_bytes)})")
            freed += n_bytes
    print(f"{args.workdir}: {size(freed)} {'would be free' if args.dry_run else 'freed'}")


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
    from lab import studies
    from lab.cli import texts
    from lab.disk import claims_file
    from lab.report import claims_table

    if args.markdown and (args.json or args.workdir is None):
        raise ValueError("--markdown: the table of a --workdir, and not together with --json")
    if args.workdir is None:
        rows = [{"study": name} | claim for name in studies.names() for claim in texts.study(name)["claims"]]
        text = "\n".join(
            f"{row['study']} {row['id']:<4} {row['statement']}\n     needs: {row['quantity']} {row['threshold']}"
            for row in rows
        )
    else:
        rows = claims_file.read(args.workdir)
        text = claims_table.markdown(rows) if args.markdown else claims_table.text(rows)
    print(json.dumps(rows, indent=1) if args.json else text)


def _rows(args) -> tuple[int, ...]:
    """The rows asked for, of all trainings in the workdir."""
    from lab.disk.workdir import variants_in

    return arguments.expand(args.rows, max(len(work.grid) for work in variants_in(args.workdir).values()))


def _measure(workdir: Path, *chosen, **scope) -> list[str]:
    from lab import stages

    taken = stages.analyze(workdir, *chosen, **scope)
    print(f"analyzed: {', '.join(taken) if taken else 'nothing new'}")
    return taken


def _write_report(workdir: Path, partial: bool = False) -> None:
    from lab import stages
    from lab.report import claims_table

    page, rows = stages.report(workdir, partial)
    print(claims_table.text(rows))
    for variant, names in stages.stale(workdir).items():
        print(f"left out of {variant}: {', '.join(names)} ({stages.LEFT_OUT})")
    print(f"report: {page}")


def _config(config_args: list[str], args):
    """The config asked for, with the variants asked for."""
    made = config.chosen_variants(config.read(config_args, args.known), args.variants)
    if getattr(args, "deterministic", False):
        made.deterministic = True
    return made


COMMANDS = {
    "list": _list,
    "train": _train,
    "plan": _plan,
    "extend": _extend,
    "launch": _launch,
    "status": _status,
    "watch": _watch,
    "analyze": _analyze,
    "report": _report,
    "verify": _verify,
    "export": _export,
    "diff": _diff,
    "prune": _prune,
    "verify-row": _verify_row,
    "reproduce": _reproduce,
    "claims": _claims,
}
