"""A composed configuration, checked before anything of it is built: targets, names, types, ranges and paths.

Unusual: the classes are not imported (see `signatures`). A `_target_` outside the packages below is refused, and so is
one that only reaches through ours (`alignlab.paths.os.system`), for a configuration may come from someone else.
"""

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignlab.commandline import options, values
from alignlab.commandline.quoting import parsed
from alignlab.commandline.signatures import Argument, Definition, Scope, Signature, locate, signature
from alignlab.commandline.tree import Tree, conf_folder
from alignlab.errors import UserError, closest, mistaken

ALLOWED = (
    "alignlab.",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.profilers.",
)
OF_TASKS = ("task", "datamodule")  # what a task brings along
_OF_HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_"}
# Arguments that name files to read, told before torch is imported when they do not exist.
_READS = {"alignlab.rows.files.Files": ("train", "val", "test"), "alignlab.text.tokenizer.File": ("path",)}


def check(cfg: DictConfig, trust: Sequence[str] = ()) -> None:
    """Raise UserError for the first thing in `cfg` that no class of ours would accept.

    `trust`: dotted names, or packages of them, that may be targets besides ours. They come from the command line alone
    (`trusted`), for a configuration must not be able to vouch for itself.
    """
    plain = _plain(cfg, "")
    _check_start(plain)
    root = signature(_found(options.Options))
    assert root is not None
    for name, value in plain.items():
        if name in root.arguments:
            _check_value(name, value, root.arguments[name], "")
    for name, value in plain.items():
        if name not in root.arguments:
            _check_holder(str(name), value)
    stages = [str(stage.get("task", "pretrain")) for stage in plain.get("stages") or [] if isinstance(stage, dict)]
    for path, node in _targets(plain, ""):
        # what a recipe is told of its tasks and their data is for the stages that take it, and the first may not
        elsewhere = {name for task in stages for name in arguments_of(path, task) or ()} if path in OF_TASKS else set()
        _check_node(path, node, trust, elsewhere)
    _check_average(plain)


def arguments_of(part: str, task: str) -> set[str] | None:
    """The arguments of the `part` in `OF_TASKS` that conf/task/TASK.yaml sets; None where the source does not tell."""
    file = Tree(conf_folder()).file("task", task)
    written = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file))) if file is not None else {}
    target = written.get(part, {}).get("_target_")
    definition = locate(target) if target else None
    arguments = signature(definition) if definition is not None else None
    return None if arguments is None or arguments.is_open else set(arguments.arguments)


def check_targets(settings: dict[str, Any], place: str) -> None:
    """Raise UserError for a target that the configuration of the checkpoint at `place` must not make.

    What was trained with trust=[NAME] is opened with the environment variable ALIGNLAB_TRUST=NAME: whoever sends a
    checkpoint cannot vouch for it.
    """
    vouched = [name for name in os.environ.get("ALIGNLAB_TRUST", "").split(",") if name]
    for path, node in _targets(settings, ""):
        try:
            _allowed(path, node["_target_"], vouched)
        except UserError as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"{place}: {first}\nif you know that code: ALIGNLAB_TRUST={node['_target_']} alignlab ..."
            ) from error


def trusted(overrides: Sequence[str]) -> tuple[str, ...]:
    """The dotted names of `trust=[...]` among the overrides of the command line."""
    names: list[str] = []
    if isinstance(overrides, ListConfig):  # iterating over Hydra's record of them would resolve their `${...}`
        overrides = cast(list[str], OmegaConf.to_container(overrides, resolve=False))
    for override in overrides:
        reading = parsed(override)
        if reading is not None and reading.key_or_group == "trust":
            value = reading.value()
            names += [str(name) for name in (value if isinstance(value, list) else [value]) if name is not None]
    return tuple(name.strip("'\"") for name in names)


def existing(name: str, path: str) -> Path:
    """`path` as a Path that exists; else UserError naming the option and the closest name beside it."""
    wanted = Path(path).expanduser()
    if wanted.exists():
        return wanted
    # The first part that is missing is the mistake, whatever comes after it.
    missing = next((part for part in [*reversed(wanted.parents), wanted] if not part.exists()), wanted)
    beside = sorted(missing.parent.iterdir()) if missing.parent.is_dir() else []
    guess = closest(missing.name, [file.name for file in beside if missing == wanted or file.is_dir()])
    hint = f"; did you mean {missing.parent / guess}?" if guess else ""
    raise UserError(f"{name}={path}: there is no {missing}{hint}")


def _plain(node: Any, path: str) -> Any:
    """Containers as dict and list with interpolations resolved; `???` stays, what Hydra alone knows is UNTOLD."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    keys: list[Any] = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
    values_of = {key: _value(node, key, f"{path}.{key}" if path else str(key)) for key in keys}
    return values_of if isinstance(node, DictConfig) else list(values_of.values())


def _value(node: Any, key: Any, path: str) -> Any:
    if OmegaConf.is_missing(node, key):
        return "???"
    try:
        return _plain(node[key], path)
    except OmegaConfBaseException as error:
        raw: Any = node._get_node(key)
        written = str(raw._value() if raw is not None else "")
        if "${hydra:" in written:
            return values.UNTOLD
        raise UserError(f"{path}={written}: {(error.msg or str(error)).splitlines()[0]}") from error


def _check_start(plain: dict[str, Any]) -> None:
    resume, init_from = plain.get("resume"), plain.get("init_from")
    if resume and init_from:
        raise UserError(
            f"both resume={resume} and init_from={init_from} are given\n"
            "resume= goes on with a run, init_from= starts a new one from its weights: give one of them"
        )
    if isinstance(resume, str):
        existing("resume", resume)
    if isinstance(init_from, str) and not init_from.startswith("hub:"):
        existing("init_from", init_from)


def _check_average(plain: dict[str, Any]) -> None:
    trainer = plain.get("trainer") or {}
    if plain.get("ema") is not None and trainer.get("strategy") == "fsdp" and trainer.get("devices", 1) not in (1, "1"):
        raise UserError(
            f"ema is {plain['ema']}, but trainer=fsdp shards the weights, of which no average is kept\n"
            "expected ema=null, or trainer=ddp"
        )


def _targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_`, outer ones first, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _targets(value, f"{path}.{number}")


def _check_holder(path: str, node: Any) -> None:
    """Outside a target there are only names of targets: a value there was mistyped, and nothing would read it."""
    if not isinstance(node, dict) or "_target_" in node:
        return
    for name, value in node.items():
        beside = [str(other) for other, sibling in node.items() if isinstance(sibling, dict) and "_target_" in sibling]
        if value is not None and not (isinstance(value, dict) and any(_targets(value, ""))):
            leaf = f"{path}.{name}" + (f".{next(iter(value))}" if isinstance(value, dict) and value else "")
            raise mistaken(f"{leaf} is not an argument of anything", str(name), beside)
        _check_holder(f"{path}.{name}", value)


def _check_node(path: str, node: dict[str, Any], trust: Sequence[str], elsewhere: Collection[str]) -> None:
    target = node["_target_"]
    definition = _allowed(path, target, trust)
    arguments = signature(definition) if definition is not None else None
    if "_args_" in node:
        raise UserError(f"{path}._args_ is not accepted\nname the arguments of {target}")
    for name, value in node.items():
        where = f"{path}.{name}" if path else str(name)
        if elsewhere and arguments is not None and name not in {*_OF_HYDRA, *arguments.arguments}:
            if name not in elsewhere:
                raise mistaken(f"{where} is not an argument of any stage", str(name), elsewhere)
            continue
        if name in _OF_HYDRA or arguments is None:
            if value == "???":
                raise UserError(f"{where} is missing\nadd {where}=...")
            continue
        _check_argument(where, str(name), value, arguments, str(target))


def _allowed(path: str, target: object, trust: Sequence[str]) -> Definition | None:
    """The class or function of a target; refused where it is neither ours nor trusted."""
    if not isinstance(target, str):
        raise UserError(f"{path}._target_ is {target!r}; expected a dotted name such as alignlab.optim.AdamW")
    is_trusted = any(target == name or target.startswith(f"{name}.") for name in trust)
    ours = any(target == name or (name.endswith(".") and target.startswith(name)) for name in ALLOWED)
    if not ours and not is_trusted:
        raise UserError(
            f"{path}._target_ is {target}, which is neither AlignLab's nor trusted\n"
            f"accepted: {', '.join(ALLOWED)}\nif you know that code: trust=[{target}]"
        )
    definition = locate(target)
    if is_trusted:
        return definition
    outside = definition is None or definition.source.module.split(".")[0] != target.split(".")[0]
    if outside or definition is None or not isinstance(definition.node, Scope):
        raise UserError(f"{path}._target_ is {target}: there is no such class or function")
    return definition


def _check_argument(where: str, name: str, value: object, arguments: Signature, target: str) -> None:
    argument = arguments.arguments.get(name)
    if argument is not None:
        _check_value(where, value, argument, target)
    elif not arguments.is_open:
        error = mistaken(f"{where} is not an argument of {arguments.name}", name, arguments.arguments)
        choice = None if closest(name, arguments.arguments) else _choice_with(where.rpartition(".")[0], name)
        raise UserError(f"{error}\n{choice}") if choice else error


def _choice_with(group: str, name: str) -> str | None:
    """`data=files has train`, where another choice of the group takes such an argument."""
    tree = Tree(conf_folder())
    choices = tree.groups[group].choices if group in tree.groups else ()
    read = {choice: list(tree.read(file)) for choice in choices if (file := tree.file(group, choice)) is not None}
    for choice in sorted(read, key=lambda choice: len(read[choice])):  # those that set least are for anything
        target = next((option.value for option in read[choice] if option.name == "_target_"), "")
        definition = locate(target) if target else None
        arguments = signature(definition) if definition else None
        if arguments is not None and (found := closest(name, arguments.arguments)):
            return f"{group}={choice} has {found}"
    return None


def _check_value(where: str, value: object, argument: Argument, target: str) -> None:
    if value == "???":
        raise UserError(f"{where} is missing\nadd {where}=...")
    annotation, source = argument.annotation, argument.source
    if not values.fits(value, annotation, source):
        guess = closest(value, map(str, values.literals(annotation, source))) if isinstance(value, str) else None
        hint = f"; did you mean {guess}?" if guess else ""
        remedy = ""
        if where.startswith("data.") and isinstance(value, str) and Path(value).exists():
            remedy = f"\nfor a file: data=files {where}={value}"
        elif isinstance(value, float) and value.is_integer() and values.fits(int(value), annotation, source):
            remedy = f"\nwrite {where}={int(value)}"
        elif not isinstance(value, str | dict | list) and value is not None and values.fits("text", annotation, source):
            remedy = f"\nfor text, quote it twice: \"{where}='{value}'\""
        raise UserError(f"{where} is {value!r}; expected {values.expected(annotation, source)}{hint}{remedy}")
    if argument.name in _READS.get(target, ()):
        for file in value if isinstance(value, list) else [value]:
            if isinstance(file, str) and not os.path.exists(file) and not glob.has_magic(file):
                existing(where, file)


def _found(sort: type) -> Definition:
    definition = locate(f"{sort.__module__}.{sort.__qualname__}")
    assert definition is not None, f"{sort} has no source"
    return definition
