"""The command line: `python -m lab COMMAND`, also installed as `lab`."""

import argparse
import contextlib
import difflib
import json
import os
import sys
import traceback
from pathlib import Path


def main(argv: list[str] | None = None) -> None:
    """Runs one command; a user's mistake ends with one line and exit code 2."""
    parser = _parser()
    args, config_args = parser.parse_known_args(argv)
    try:
        _use_all_cores()
        args.command(args, config_args)
    except KeyboardInterrupt:
        print("\nlab: stopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from lab.engine.train import Interrupted
        from lab.engine.workdir import WorkdirError

        if isinstance(error, Interrupted):
            print(error)
        elif isinstance(error, (ValueError, WorkdirError, OSError)) and "LAB_DEBUG" not in os.environ:
            print(f"lab: {error}", file=sys.stderr)
            sys.exit(2)
        else:
            traceback.print_exc()
            sys.exit(1)


class _Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lab", description="Which solution does initialization pick?", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, function, text, workdir=True, **options):
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if workdir:
            sub.add_argument("--workdir", required=workdir == "required", type=Path, help="folder of the results")
        for option, settings in options.items():
            sub.add_argument(option.replace("_", "--", 1) if option.startswith("_") else option, **settings)
        sub.set_defaults(command=function)

    overrides = "; any option of the config can be set: --config.grid.gamma='(0.3,0.5)'"
    command("list", _list, "studies, presets with their cost, and claims", workdir=False)
    only = {"help": "train only these variants, comma-separated (default: all of the config)"}
    command("train", _train, f"train the grid of --config=FILE[:PRESET]{overrides}", workdir="required", _variants=only)
    command("analyze", _analyze, "take the study's measurements in a workdir", workdir="required")
    command("report", _report, "evaluate the claims of a workdir and write its report", workdir="required")
    command("verify", _verify, "check every file of a workdir and say what is damaged", workdir="required")
    command(
        "reproduce",
        _reproduce,
        f"train, analyze and report a study, skipping what is done{overrides}",
        study={"help": "see `list`"},
        _preset={"default": "cpu", "help": "size of the study, see `list` (default: cpu)"},
        _variants=only,
    )
    command(
        "claims",
        _claims,
        "the claims table: of a workdir, or what the studies claim",
        _json={"action": "store_true", "help": "as JSON"},
    )
    return parser


def _list(args, config_args) -> None:
    from lab import studies

    _refuse(config_args)
    for study in map(studies.get, studies.NAMES):
        print(f"{study.name}: {study.title} ({', '.join(study.papers)})")
        for preset, cost in study.presets.items():
            print(f"  --preset={preset:<6} {cost}")
        for claim in study.claims:
            print(f"  {claim.id:<4} {claim.statement}")


def _train(args, config_args) -> None:
    from lab.engine import train

    train.train_variants(_chosen(_read_config(config_args), args.variants), args.workdir)
    print(f"trained: {args.workdir}")


def _analyze(args, config_args) -> None:
    _refuse(config_args)
    _measure(args.workdir)


def _report(args, config_args) -> None:
    _refuse(config_args)
    _write_report(args.workdir)


def _reproduce(args, config_args) -> None:
    from lab import studies
    from lab.engine import train
    from lab.studies import outcome

    study = studies.get(args.study)
    if args.preset not in study.presets:
        raise ValueError(f"unknown preset {args.preset!r} of {study.name}; one of {', '.join(study.presets)}")
    workdir = args.workdir or Path("runs") / f"{study.name}-{args.preset}"
    config = _chosen(_read_config([f"--config={study.config_path}:{args.preset}", *config_args]), args.variants)
    train.train_variants(config, workdir)
    measured = _measure(workdir)
    if measured or not outcome.reported(workdir):
        _write_report(workdir)
    else:
        print(f"nothing to do: {workdir / outcome.PAGE} is up to date")


def _verify(args, config_args) -> None:
    from lab.engine.verify import damages
    from lab.engine.workdir import variants_in

    _refuse(config_args)
    found = [line for work in variants_in(args.workdir).values() for line in damages(work)]
    print("\n".join(found) or f"{args.workdir}: everything is as it was written")
    sys.exit(1 if found else 0)


def _claims(args, config_args) -> None:
    from lab import studies
    from lab.studies import outcome

    _refuse(config_args)
    if args.workdir is None:
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
        rows = outcome.read_claims(args.workdir)
        text = outcome.table_text(rows)
    print(json.dumps(rows, indent=1) if args.json else text)


def _measure(workdir: Path) -> list[str]:
    from lab.studies import outcome

    taken = outcome.analyze(workdir)
    print(f"analyzed: {', '.join(taken) if taken else 'nothing new'}")
    return taken


def _write_report(workdir: Path) -> None:
    from lab.studies import outcome

    page, rows = outcome.report(workdir)
    print(outcome.table_text(rows))
    print(f"report: {page}")


def _read_config(config_args: list[str]):
    """The config named by `--config=FILE[:PRESET]` with its `--config.name=value` overrides.

    What is overridden for the whole config is taken out of the variants, so that the user's word counts everywhere.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    _refuse([arg for arg in config_args if not arg.startswith("--config")])
    for path in (arg.removeprefix("--config=") for arg in config_args if arg.startswith("--config=")):
        if not Path(path.partition(":")[0]).is_file():
            raise ValueError(f"--config={path}: no such file; e.g. --config=configs/composition.py:cpu")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["lab", *config_args])
    try:
        values(["lab", *config_args])
        # A copy, not locked: variants are taken out of it. It fails where the file could not be read.
        config = None if values.config is None else ConfigDict(values.config.to_dict())
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError, OSError) as error:
        raise ValueError(_one_line(error)) from error
    if config is None:
        raise ValueError("--config=FILE[:PRESET] is missing, e.g. --config=configs/composition.py:cpu")
    for name in config_flags.get_override_values(values["config"]):
        for variant in () if name.startswith("variants.") else config.variants.values():
            _forget(variant, name.split("."))
    return config


def _chosen(config, names: str | None):
    """The config with only the named variants."""
    chosen = names.split(",") if names else list(config.variants)
    for name in chosen:
        if name not in config.variants:
            raise ValueError(f"--variants={names}: {name!r} is not a variant; one of {', '.join(config.variants)}")
    for name in set(config.variants) - set(chosen):
        del config.variants[name]
    return config


def _forget(variant, path: list[str]) -> None:
    *sections, last = path
    for section in sections:
        if section not in variant:
            return
        variant = variant[section]
    if last in variant:
        del variant[last]


def _refuse(unknown: list[str]) -> None:
    if unknown:
        known = ["--workdir", "--preset", "--variants", "--json", "--config"]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unexpected argument {unknown[0]!r}{hint} (see --help)")


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else str(error)
    text = text.replace("\\n", "\n").replace("\\'", "'").strip()
    text = text[1:-1] if text[:1] == text[-1:] == "'" else text  # a KeyError quotes its message
    if "Traceback" in text:  # ml_collections quotes a whole traceback of the config file; its last line is the reason
        text = text.splitlines()[-1].partition(": ")[2]
    bare = text.strip("'\" ")
    if bare.isidentifier():
        text = f"{bare!r} is not an option of this part of the config (a variant has only the options it changes)"
    return " ".join(text.split())


def _use_all_cores() -> None:
    """One XLA host device per core: rows side by side beat one row over all cores. No effect on a GPU's programs."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # JAX is running already, in a notebook say, with the devices it has
        jax.config.update("jax_num_cpu_devices", cores)
