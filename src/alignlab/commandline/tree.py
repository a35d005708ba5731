"""What the conf folder offers: groups, their choices, root options, and the comments that explain them.

Read as lines of text, not as YAML: the comments are the documentation, and a YAML loader drops them. Knows nothing
about what the values mean.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

_ENTRY = re.compile(r"^(?P<indent> *)(?P<key>[\w.-]+):(?: +(?P<value>[^#]*?))?(?:\s+#\s*(?P<meaning>.*))?\s*$")
_DEFAULT = re.compile(
    r"^\s*-\s+(?:optional\s+|override\s+)*/?(?P<group>[\w/-]+)(?:@(?P<package>[\w.]+))?:\s*(?P<choice>[^#]*?)"
    r"(?:\s+#\s*(?P<meaning>.*))?\s*$"
)


@dataclass(frozen=True)
class Option:
    """A key of a YAML file, its value as written, and its trailing comment."""

    name: str
    value: str = ""
    meaning: str = ""


@dataclass
class Group:
    """A folder of choices; `default` is the one that config.yaml takes."""

    name: str
    choices: list[str] = field(default_factory=list)
    default: str = ""
    meaning: str = ""


def conf_folder() -> Path:
    """`conf/` beside `src/` in a checkout, `alignlab/conf` in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


class Tree:
    """The conf folder, and further ones that the command line adds (`--config-dir`)."""

    def __init__(self, conf: Path, *more: Path, root: str = "config.yaml") -> None:
        self.folders = [folder for folder in (*more, conf) if folder.is_dir()]
        self.root = conf / root

    @cached_property
    def groups(self) -> dict[str, Group]:
        """By name, in the order of the defaults list, then those that nothing chooses by default."""
        found: dict[str, Group] = {}
        for line in self._lines(self.root):
            if entry := _DEFAULT.match(line):
                default = entry["choice"].strip().strip("'\"")
                found[entry["group"]] = Group(entry["group"], [], default, entry["meaning"] or "")
        for folder in self.folders:
            for file in sorted(folder.rglob("*.yaml")):
                *path, choice = file.relative_to(folder).with_suffix("").parts
                # conf/a/b/c.yaml is the choice c of the group a/b, and the choice b/c of the group a.
                for size in range(1, len(path) + 1):
                    group = found.setdefault("/".join(path[:size]), Group("/".join(path[:size])))
                    group.choices.append("/".join([*path[size:], choice]))
        return {name: group for name, group in found.items() if group.choices}

    @cached_property
    def options(self) -> list[Option]:
        """The keys that stand in config.yaml itself."""
        return [option for option in self.read(self.root) if option.name not in ("defaults", "hydra")]

    @cached_property
    def names(self) -> list[str]:
        """All that may stand before the first dot of an override."""
        names = [name.partition("/")[0] for name in self.groups] + [option.name for option in self.options]
        for folder in self.folders:
            for file in sorted(folder.rglob("*.yaml")):
                lines = self._lines(file)
                names += [entry["package"].partition(".")[0] for line in lines if (entry := _DEFAULT.match(line))
                          and entry["package"] and not entry["package"].startswith("_")]  # fmt: skip
                if any(line.startswith("# @package _global_") for line in lines):
                    names += [option.name for option in self.read(file) if option.name != "defaults"]
        return list(dict.fromkeys([*names, "hydra"]))

    def file(self, group: str, choice: str) -> Path | None:
        """The file of a choice, or None where there is none."""
        files = [folder / group / f"{choice.removesuffix('.yaml')}.yaml" for folder in self.folders]
        return next((file for file in files if file.is_file()), None)

    def read(self, file: Path) -> list[Option]:
        """The top-level keys of a file, with the trailing comment of each."""
        entries = [entry for line in self._lines(file) if (entry := _ENTRY.match(line)) and not entry["indent"]]
        return [Option(entry["key"], (entry["value"] or "").strip(), entry["meaning"] or "") for entry in entries]

    @staticmethod
    def _lines(file: Path) -> list[str]:
        return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
