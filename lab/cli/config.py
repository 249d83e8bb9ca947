"""Configs on the command line: how they are named, and how their options are overridden."""

import ast
import re
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from lab import limits, user_code
from lab.cli import arguments
from lab.configs import base

AXIS = re.compile(r"--config\.grid\.(\w+)=(.*)", re.DOTALL)
MORE = re.compile(r"--grid\.(\w+)=(.*)", re.DOTALL)
EXAMPLES = "e.g. --config=composition:cpu or --config=my_study.py:smoke"


def read(config_args: list[str], options: list[str]) -> ConfigDict:
    """The config of `--config=NAME[:PRESET]` or `--config=FILE[:PRESET]`, with its `--config.name=value` overrides.

    What is overridden for the whole config is taken out of the variants, so that the user's word counts everywhere. An
    axis of the grid may be one that the config does not vary: `lab.grid` knows the names.

    Raises:
      ValueError: no such config, preset or option, or a value of another type; in one line.
    """
    arguments.refuse([arg for arg in config_args if not arg.startswith("--config")], options)
    axes = {found[1]: found[2] for arg in config_args if (found := AXIS.fullmatch(arg))}
    overrides = [arg for arg in config_args if arg.startswith("--config") and not names_one(arg)]
    overrides = [arg for arg in overrides if not AXIS.fullmatch(arg)]
    values = flags.FlagValues()
    try:
        loaded = _load(config_args)
        for name in base.OPTIONS:
            if name not in loaded:
                raise ValueError(f"config.{name} is missing")
        config_flags.DEFINE_config_dict("config", loaded, flag_values=values, sys_argv=["lab", *overrides])
        values(["lab", *overrides])
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError, OSError) as error:
        raise ValueError(_one_line(error)) from error
    config = ConfigDict(values.config.to_dict())  # a copy, not locked: variants are taken out of it
    for name, text in axes.items():
        config.grid[name] = _numbers(f"--config.grid.{name}", text)
    for name in (*config_flags.get_override_values(values["config"]), *(f"grid.{axis}" for axis in axes)):
        for variant in () if name.startswith("variants.") else config.variants.values():
            _forget(variant, name.split("."))
    return config


def more_values(words: list[str], options: list[str]) -> dict[str, tuple]:
    """Axis -> the values to add, of `--grid.NAME=VALUES`.

    Raises:
      ValueError: another word, none, or no tuple.
    """
    for word in words:
        if re.fullmatch(r"--grid\.\w+", word):
            raise ValueError(f"{word}: its values come behind an equals sign, {word}='(5,6,7)'")
    arguments.refuse([word for word in words if not MORE.fullmatch(word)], [*options, "--grid.seed"])
    if not words:
        raise ValueError("which axes get more values? e.g. --grid.seed='(5,6,7)'")
    given = [MORE.fullmatch(word) for word in words]
    return {found[1]: _numbers(f"--grid.{found[1]}", found[2]) for found in given}


def file(config_args: list[str]) -> str | None:
    """The user's config file, absolute; None if the config is one of ours."""
    name, _ = _source(config_args)
    return None if name in base.names() else str(Path(name).absolute())


def chosen_variants(config: ConfigDict, names: str | None) -> ConfigDict:
    """The config with only the named variants."""
    if names and not config.variants:
        raise ValueError(f"--variants={names}: this config has no variants, leave the option out")
    chosen = names.split(",") if names else list(config.variants)
    for name in chosen:
        if name not in config.variants:
            raise ValueError(f"--variants={names}: {name!r} is not a variant; one of {', '.join(config.variants)}")
    for name in set(config.variants) - set(chosen):
        del config.variants[name]
    return config


def names_one(arg: str) -> bool:
    """Whether a word names a config, where others override an option of one."""
    return arg == "--config" or arg.startswith("--config=")


def _source(config_args: list[str]) -> tuple[str, str | None]:
    """Name or file of the config, and the preset if there is one; of several `--config` the last one counts."""
    sources = [arg.partition("=")[2] for arg in config_args if names_one(arg)]
    if not sources or not sources[-1]:
        raise ValueError(f"--config=NAME[:PRESET] or --config=FILE[:PRESET] is missing, {EXAMPLES}")
    name, colon, preset = sources[-1].partition(":")
    return name, preset if colon else None


def _load(config_args: list[str]) -> ConfigDict:
    name, preset = _source(config_args)
    if name in base.names():
        return base.load(name, preset)
    if not Path(name).is_file():
        near = limits.nearest(name, base.names())
        hint = f"{near} There are" if near else "; there are"
        raise ValueError(f"--config={name}: no such file, and no config of that name{hint} {', '.join(base.names())}")
    module = user_code.import_file(name)
    if not hasattr(module, "get_config"):
        return base.load(module, preset)
    config = module.get_config() if preset is None else module.get_config(preset)
    if not isinstance(config, ConfigDict):
        raise ValueError(f"--config={name}: get_config returns {type(config).__name__}, expected a ConfigDict")
    with config.unlocked():
        config.study = config.get("study") or Path(name).stem
    return config


def _numbers(option: str, text: str) -> tuple:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, tuple | list):
        raise ValueError(f"{option}={text}: expected a tuple of numbers, e.g. '(0.5,)'")
    return tuple(value)


def _forget(variant, path: list[str]) -> None:
    *sections, last = path
    for section in sections:
        if section not in variant:
            return
        variant = variant[section]
    if last in variant:
        del variant[last]


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else str(error)
    text = text.replace("\\n", "\n").replace("\\'", "'").strip()
    text = text[1:-1] if text[:1] == text[-1:] == "'" else text  # a KeyError quotes its message
    bare = text.strip("'\" ")
    if bare.isidentifier():
        text = f"{bare!r} is not an option of this part of the config (a variant has only the options it changes)"
    return " ".join(text.split())
