"""What a user typed, made ready for Hydra: values quoted, dotted names freed of Hydra's plus sign, names checked.

Hydra refuses `trainer.limit_val_batches=1` because the YAML does not list it. Such overrides get `++` here, and whether
the name is an argument of the class is told by `checking.check`, from the class itself.
"""

import itertools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.types import ChoiceSweep, Override

from alignlab.commandline import quoting
from alignlab.commandline.page import page, version
from alignlab.commandline.tree import Tree, conf_folder
from alignlab.errors import UserError, closest, mistaken

_SWITCHES = {"-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "-h", "--help", "--version"}
_VALUED = {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"}
_VALUED |= {"--experimental-rerun"}
_PRINTED = ("job", "hydra", "all")
_OPTIONALLY_VALUED = {"-i", "--info"}
_COMPLETION = {"-sc", "--shell-completion"}
_OVERRIDE = re.compile(r"(?P<sign>~|\+\+|\+)?(?P<key>[^=]*)=(?P<value>.*)", re.DOTALL)


def prepare(argv: Sequence[str], conf: Path | None = None) -> list[str]:
    """The arguments that Hydra's main shall read in place of `argv` (without the program's name).

    Raises UserError for a name that nothing has and for a sweep without -m. `--help` and `--version` are answered
    here, and end the process.
    """
    if _COMPLETION & set(argv):
        return list(argv)
    flags, overrides = separate(argv)
    if "--version" in flags:
        _answer(version())
    folders = [Path(value) for flag, value in itertools.pairwise(flags) if flag in ("-cd", "--config-dir")]
    tree = Tree(conf or conf_folder(), *folders)
    if {"-h", "--help"} & set(flags):
        _answer(page(tree, overrides))
    multirun = bool({"-m", "--multirun"} & set(flags)) or "hydra.mode=MULTIRUN" in overrides
    # Another root or another search path: its groups and names are not those of our conf folder.
    foreign = bool({"-cp", "--config-path", "-cn", "--config-name"} & set(flags)) or any(
        override.lstrip("+").startswith("hydra.searchpath=") for override in overrides
    )
    known = None if foreign else tree
    prepared = [_prepared(override, known, multirun) for override in _without_nulls(overrides, known)]
    if not multirun and (sweeps := [override for override in overrides if override.startswith("sweep=")]):
        raise UserError(f"{sweeps[0]} says how a sweep runs\nadd -m to start one")
    return flags + prepared


def _without_nulls(overrides: Sequence[str], tree: Tree | None) -> list[str]:
    """Without choices of groups that are null by default, such as `experiment=`, up to the last that is null again.

    Hydra takes no null for a group on the command line.
    """
    kept = list(overrides)
    for group in tree.groups.values() if tree is not None else ():
        nulls = [place for place, override in enumerate(kept) if override.replace(" ", "") in _nulls_of(group.name)]
        if group.default == "null" and nulls:
            after = [one for one in kept[nulls[-1] :] if one not in _nulls_of(group.name)]
            kept = [one for one in kept[: nulls[-1]] if one.partition("=")[0].lstrip("~") != group.name] + after
    return kept


def _nulls_of(group: str) -> tuple[str, ...]:
    return f"{group}=null", f"{group}=Null", f"{group}=NULL", f"~{group}"


def _answer(text: str) -> NoReturn:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `--help | head` has read enough; Python would complain once more at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def separate(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and the overrides; an unknown flag raises UserError."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            overrides.append(argument)
        elif name in _VALUED and (equals or rest):
            flags += [name, value if equals else rest.pop(0)]
            if name in ("-c", "--cfg") and flags[-1] not in _PRINTED:
                raise mistaken(f"--cfg {flags[-1]} is not a part of the configuration", flags[-1], _PRINTED)
        elif name in _OPTIONALLY_VALUED:
            flags.append(argument)
            if rest and rest[0].replace("-tree", "").isalpha():
                flags.append(rest.pop(0))
        elif argument in _SWITCHES:
            flags.append(argument)
        elif equals:
            raise UserError(f"unknown flag {name}\noptions are written without dashes: {argument.lstrip('-')}")
        else:
            raise mistaken(f"unknown flag {argument}", argument, sorted(_SWITCHES | _VALUED | _OPTIONALLY_VALUED))
    return flags, overrides


def _prepared(override: str, tree: Tree | None, multirun: bool) -> str:
    match = _OVERRIDE.fullmatch(override)
    if override.startswith("~"):
        _check_removal(override, tree)
        return override
    if match is None:
        return _refuse_bare(override, tree)
    sign, key, value = match["sign"] or "", match["key"], match["value"]
    value = quoting.legal(value)
    is_group = "/" in key or "@" in key or "." not in key
    if not sign and not is_group and not key.startswith("hydra."):
        sign = "++"
    reading = quoting.parsed(f"{sign}{key}={value}")
    if reading is None:
        raise UserError(f"cannot read the name {key!r} in {override!r}\nwrite NAME=VALUE, such as model.layers=4")
    if tree is not None and match["sign"] != "+":
        _check_name(key, tree, override)
        _check_choices(key, reading, tree)
        _check_left_out(key, reading, tree)
    if reading.is_sweep_override() and not multirun:
        raise UserError(
            f"{key}={match['value']} is several values\nadd -m to run once for each of them;"
            f" for one value with a comma, quote it: \"{key}='{match['value']}'\""
        )
    return f"{sign}{key}={value}"


def _refuse_bare(argument: str, tree: Tree | None) -> str:
    group = next((name for name, group in (tree.groups if tree else {}).items() if argument in group.choices), None)
    remedy = f"did you mean {group}={argument}?" if group else "write NAME=VALUE, such as model=nano or optim.lr=1e-3"
    raise UserError(f"{argument!r} is no option\n{remedy}")


def _check_name(key: str, tree: Tree, override: str) -> None:
    name = key.partition("@")[0]
    first = re.split(r"[./]", name)[0]
    if first in tree.names or name in tree.groups or not tree.names:
        return
    guess = closest(first, tree.names)
    hint = f"; did you mean {override.lstrip('+').replace(first, guess, 1)}?" if guess else ""
    raise UserError(f"{first} is not an option{hint}\naccepted: {', '.join(tree.names)}")


def _check_removal(override: str, tree: Tree | None) -> None:
    """What every run has cannot go."""
    name = override.removeprefix("~").partition("=")[0].partition("@")[0]
    if tree is None:
        return
    if name in {option.name for option in tree.options}:
        raise UserError(f"{override}: every run has {name}\ngive {name}=VALUE")
    group = tree.groups.get(name)
    if group is None or group.default in ("", "null") or "${" in group.default:
        return
    got = f"{override}: every run has a choice of {name}"
    accepted = f"accepted: {', '.join(group.choices)}"
    raise UserError(f"{got}\n" + (f"to leave it out: {name}=none" if "none" in group.choices else accepted))


def _check_choices(key: str, reading: Override, tree: Tree) -> None:
    group = tree.groups.get(key.partition("@")[0])
    if group is None:
        return
    for choice in _choices(reading):
        if isinstance(choice, list):  # several choices of one group at once
            wrong = [name for name in choice if isinstance(name, str) and tree.file(group.name, name) is None]
        else:
            text = "null" if choice is None else str(choice)
            wrong = [] if "${" in text or tree.file(group.name, text) else [text]
        for name in wrong:
            got = f"{group.name}={name}: there is no such choice"
            if name == "null" and "none" in group.choices:
                raise UserError(f"{got}\nto leave it out: {group.name}=none")
            if name == "null" and group.default == "null":
                raise UserError(f"{got} in a sweep\nto leave it out, start a run of its own without {group.name}=")
            if "files" in group.choices and (os.path.exists(name) or Path(name).suffix):
                raise UserError(f"{got}\nfor a file: {group.name}=files {group.name}.train={name}")
            raise mistaken(got, name, group.choices)


def _check_left_out(key: str, reading: Override, tree: Tree) -> None:
    """`callbacks.samples=null` leaves out one that is there; a null under another name would change nothing."""
    group, _, name = key.partition(".")
    if group != "callbacks" or "." in name or not name or reading.is_sweep_override() or reading.value() is not None:
        return
    files = [tree.file(group, choice) for choice in tree.groups[group].choices]
    names = {option.name for file in files if file is not None for option in tree.read(file)} - {"defaults"}
    if name not in names:
        raise mistaken(f"{key} is not one of the callbacks", name, sorted(names))


def _choices(reading: Override) -> list[object]:
    """Each value that the override gives to its group, without quotes; none where only Hydra can tell."""
    value = reading._value
    values = value.list if isinstance(value, ChoiceSweep) else [] if reading.is_sweep_override() else [value]
    return [_unquoted(element) for element in values]


def _unquoted(value: object) -> object:
    if isinstance(value, list):
        return [_unquoted(element) for element in value]
    return getattr(value, "text", value)
