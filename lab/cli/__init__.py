"""The command line: `python -m lab COMMAND`, also installed as `lab`."""

import os
import signal
import sys
import traceback

from lab.cli import arguments, commands, devices, output

TRAINING = ("train", "extend", "launch", "reproduce")  # commands


def main(argv: list[str] | None = None) -> None:
    """Runs one command; a user's mistake ends with one line and exit code 2."""
    with output.reader_may_leave():
        _run(argv)


def _run(argv: list[str] | None) -> None:
    args, config_args = arguments.parser().parse_known_args(argv)
    command = arguments.COMMANDS[args.command]
    try:
        if not (command.takes_config or command.takes_axes):
            arguments.refuse(config_args, args.known)
        if command.takes_folder:
            args.workdir = arguments.one_folder(args.folder, args.workdir)
        if command.computes:
            devices.use_cores(getattr(args, "simulate", None))
        commands.COMMANDS[args.command](args, config_args)
    except KeyboardInterrupt:
        goes_on = "; the same command continues from the last checkpoint" * (args.command in TRAINING)
        print(f"\nlab: stopped{goes_on}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from lab.disk.files import WorkdirError

        if isinstance(error, (RuntimeError, AssertionError)):
            error = devices.missing() or error
        training = sys.modules.get("lab.engine.train")  # a mistake needs no JAX
        if training is not None and isinstance(error, training.Interrupted):
            print(error)
            if error.number == signal.SIGINT:
                sys.exit(130)
        elif isinstance(error, (ValueError, WorkdirError, OSError)) and "LAB_DEBUG" not in os.environ:
            print(f"lab: {error}", file=sys.stderr)
            sys.exit(2)
        else:
            traceback.print_exc()
            sys.exit(1)
