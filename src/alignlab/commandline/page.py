"""`python train.py --help`: groups, choices, options and examples on one page.

What an option means is said once, in the trailing comment of its line under conf/; this page repeats it from there.
"""

import importlib.metadata
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from alignlab.commandline.signatures import locate, signature
from alignlab.commandline.tree import Group, Option, Tree

_EXAMPLES = (
    ("python train.py", "pretrain on the embedded corpus"),
    ("python train.py task=classification init_from=RUN data=files data.train=my.csv", "fine-tune a run on your rows"),
    ("python train.py optim=muon optim.lr=0.01 trainer.max_steps=500", "change any argument, listed or not"),
    ("python train.py -m optim=adamw,muon optim.lr=1e-3,3e-4", "sweep: one run for each combination"),
    ("python train.py resume=RUN", "go on exactly where a run stopped"),
)
_FLAGS = (
    ("-m, --multirun", "sweep over values separated by commas"),
    ("--cfg job", "print the composed configuration"),
    ("--info defaults", "print which files it is composed of"),
    ("--version", "print the version"),
    ("--hydra-help", "print Hydra's own flags, shell completion among them"),
)


def version() -> str:
    """`alignlab 0.1.0`."""
    return f"alignlab {importlib.metadata.version('alignlab')}"


def page(tree: Tree, overrides: Sequence[str] = ()) -> str:
    """The help page; a group that `overrides` chooses shows the arguments of that choice."""
    chosen = dict(override.split("=", 1) for override in overrides if "=" in override)
    columns = min(shutil.get_terminal_size((110, 24)).columns, 120)
    groups = [group for group in tree.groups.values() if "${" not in group.default]  # those follow another choice
    lines = ["AlignLab: pretrain a GPT, or import one, and align it to a task.", ""]
    lines += ["  python train.py [GROUP=CHOICE ...] [GROUP.ARGUMENT=VALUE ...] [OPTION=VALUE ...]", ""]
    lines += ["Groups (* is the default)", *_rows([_group_row(group) for group in groups], columns), ""]
    lines += ["Options", *_rows([_option_row(option) for option in tree.options], columns), ""]
    arguments = [row for group in groups for row in _argument_rows(tree, group, chosen.get(group.name, group.default))]
    if arguments:
        lines += ["Arguments of these choices", *_rows(arguments, columns), ""]
    lines += ["Examples", *(f"  {command}\n      {meaning}" for command, meaning in _EXAMPLES), ""]
    lines += ["Flags", *_rows(_FLAGS, columns), ""]
    lines += ["A group's arguments with its choice: python train.py optim=muon --help", "RUN is a folder under runs/."]
    return "\n".join(lines)


def _group_row(group: Group) -> tuple[str, str]:
    marked = " ".join(f"{choice}*" if choice == group.default else choice for choice in group.choices)
    return f"{group.name}=", f"{group.meaning}: {marked}" if group.meaning else marked


def _option_row(option: Option) -> tuple[str, str]:
    return f"{option.name}={option.value}", option.meaning


def _argument_rows(tree: Tree, group: Group, choice: str) -> Iterator[tuple[str, str]]:
    """Those that the file of the choice sets, with their comments, then the names of all others."""
    file = tree.file(group.name, choice)
    if file is None:
        return
    listed = tree.read(file)
    target = next((option.value for option in listed if option.name == "_target_"), "")
    shown = [option for option in listed if option.meaning and not option.name.startswith("_")]
    for option in shown:
        yield f"{group.name}.{option.name}={option.value}", option.meaning
    definition = locate(target) if target else None
    arguments = signature(definition) if definition else None
    if arguments is not None:
        others = [name for name in arguments.arguments if name not in {option.name for option in shown}]
        if others:
            yield f"{group.name}.NAME=", ", ".join(others)


def _rows(rows: Sequence[tuple[str, str]], columns: int) -> list[str]:
    width = min(28, max((len(name) for name, _ in rows), default=0))
    lines: list[str] = []
    for name, meaning in rows:
        wrapped = textwrap.wrap(meaning, columns - width - 4, break_on_hyphens=False) or [""]
        if len(name) > width:  # a long name stands on a line of its own
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:<{width}}  {wrapped[0]}")
        lines += [" " * (width + 4) + line for line in wrapped[1:]]
    return [line.rstrip() for line in lines]
