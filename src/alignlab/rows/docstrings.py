"""Documentation strings as what they say: a summary, parameters with types and defaults, results, errors.

The three styles are read by stated rules (headings that are underlined, headings with a colon, fields between colons);
what fits none is left out, never guessed. Each definition comes once, with its signature, out of source files that are
parsed and not imported. Knows nothing about questions, splits or tokens. Imports no torch.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alignlab.rows.installed import PACKAGES, kept, kept_rows, modules_of, parsed, read_all, versions_of
from alignlab.rows.prose import plain

Section = Literal["parameters", "returns", "raises"]
_RULES = 1  # raise when the rules of this file change, so that caches are made again
_HEADINGS: dict[str, Section] = {
    **dict.fromkeys(("parameters", "other parameters", "args", "arguments", "params", "keyword args"), "parameters"),
    **dict.fromkeys(("returns", "return", "yields"), "returns"),
    **dict.fromkeys(("raises", "raise"), "raises"),
}
_COLON_HEADING = re.compile(r"([A-Z][\w ]{2,30}):$")
_UNDERLINE = re.compile(r"(-{3,}|={3,})$")
_NAME = r"\*{0,2}[A-Za-z_]\w*(?:, \*{0,2}[A-Za-z_]\w*){0,3}"
# "name : type" above a description; "name (type): text"; ":param type name: text"
_DECLARED = re.compile(rf"({_NAME}) ?: ?(.+)$")
_GOOGLE = re.compile(r"[`*]{0,2}(\*{0,2}[A-Za-z_][\w.]*)[`*]{0,2} ?(?:\((.*?)\))?: ?(.*)$")
_FIELD = re.compile(r":(param|parameter|arg|returns?|raises?|exception)\b ?([^:]*):\s*(.*)$")
_FIELD_TYPE = re.compile(r":(type ([^:]*)|rtype):\s*(.*)$")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])")
_ROLE = re.compile(r":[\w:+.-]+:`[~!]?([^`]*)`")
_UNFIT = re.compile(r"%\(|\{\w*\}\{|>>>|\.\. |^\W*$")
_LONGEST_SIGNATURE = 120  # characters


@dataclass(kw_only=True)
class Entry:
    """A parameter, a result or an error: `name` is empty for a result without one, `type` where none is told."""

    section: Section
    name: str
    type: str = ""
    text: str = ""


@dataclass(kw_only=True)
class Definition:
    """A documented function or class of a module; `signature` is empty where it would be too long."""

    module: str
    name: str
    signature: str
    summary: str
    body: str = ""  # the running text after the summary
    entries: list[Entry] = field(default_factory=list)

    def of(self, section: Section) -> list[Entry]:
        """The entries of one section."""
        return [entry for entry in self.entries if entry.section == section]


def definitions() -> Iterator[Definition]:
    """Every documented public definition of the embedded packages, in order of module; mined once."""
    versions = versions_of(PACKAGES)

    def mined() -> tuple[dict[str, list[dict]], dict]:
        files = [entry for name in versions for entry in modules_of(name)]
        found = ({"module": module, **one} for module, own in read_all(files, _of_file, None) for one in own)
        return {"all": list(found)}, {"versions": versions}

    for row in kept_rows(kept("pydocs_definitions", [_RULES, versions], mined), "all"):
        yield Definition(**row | {"entries": [Entry(**entry) for entry in row["entries"]]})


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return _SENTENCE.split(text) if text else []


def _of_file(path: Path) -> list[dict]:
    source = parsed(path)
    return [] if source is None else [row for node, name in _public(source[0], "") if (row := _row(node, name))]


def _public(node: ast.AST, prefix: str) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_"):
                yield child, prefix + child.name
                if isinstance(child, ast.ClassDef):
                    yield from _public(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _public(child, prefix)


def _row(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> dict | None:
    """A definition as plain types; None where its documentation does not begin with a sentence."""
    text = ast.get_docstring(node) or ""
    head, _, rest = text.partition("\n\n")
    summary = plain(" ".join(head.split()))
    if len(summary) < 15 or not summary[0].isupper() or _UNFIT.search(summary) or not summary.isascii():
        return None
    summary = sentences(summary)[0]
    body, entries = read_entries(rest)
    return {
        "name": name,
        "signature": _signature(node),
        "summary": summary,
        "body": body,
        "entries": [vars(entry) for entry in entries],
    }


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        makers = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        if not makers:
            return ""
        node = makers[0]
    arguments = node.args
    for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if one is not None:
            one.annotation = None
    for own in (arguments.posonlyargs, arguments.args):
        if own and own[0].arg in ("self", "cls"):
            del own[0]
    text = ast.unparse(arguments)
    return text if len(text) <= _LONGEST_SIGNATURE else ""


def read_entries(text: str) -> tuple[str, list[Entry]]:
    """The running text of a documentation string after its summary, and its entries, in their order."""
    lines = inspect.cleandoc(text).expandtabs().split("\n")
    running: list[str] = []
    entries: list[Entry] = []
    section: Section | None = None
    is_other, at = False, 0
    while at < len(lines):
        line = lines[at].strip()
        following = lines[at + 1].strip() if at + 1 < len(lines) else ""
        is_underlined = bool(_UNDERLINE.match(following))
        colon = _COLON_HEADING.match(line)
        heading = line.lower() if is_underlined else colon[1].lower() if colon else ""
        if heading:
            section = _HEADINGS.get(heading)
            is_other = section is None
            at += 1 + is_underlined
            block, at = _until_heading(lines, at)
            if section is not None:
                entries += _underlined(block, section) if is_underlined else _indented(block, section)
            continue
        if _FIELD.match(line) or _FIELD_TYPE.match(line):
            block, at = lines[at:], len(lines)
            entries += _fields(block)
            continue
        if not is_other:
            running.append(lines[at])
        at += 1
    body = "\n".join(running).split("\n\n")
    kept_body = " ".join(plain(" ".join(part.split())) for part in body if _is_prose(part))
    return kept_body, [entry for entry in entries if _is_fit(entry)]


def _is_prose(part: str) -> bool:
    text = part.strip()
    return bool(text) and text[0].isupper() and text[-1] in ".!?" and not _UNFIT.search(text) and "::" not in text


def _is_fit(entry: Entry) -> bool:
    whole = f"{entry.type} {entry.text}"
    return whole.isascii() and not _UNFIT.search(whole) and bool(entry.text or entry.type) and len(entry.type) <= 60


def _until_heading(lines: list[str], at: int) -> tuple[list[str], int]:
    """The lines of a section, and where the next begins."""
    start = at
    while at < len(lines):
        text, following = lines[at].strip(), lines[at + 1].strip() if at + 1 < len(lines) else ""
        is_outer = not lines[at].startswith(" ")
        if text and is_outer and (_UNDERLINE.match(following) or _COLON_HEADING.match(text) or text.startswith("..")):
            break
        at += 1
    return lines[start:at], at


def _underlined(block: list[str], section: Section) -> list[Entry]:
    """ "name : type" with its description indented below."""
    entries: list[Entry] = []
    is_open = False  # the paragraph that describes the last entry goes on
    for line in block:
        text = line.strip()
        if not text:
            is_open = False
        elif not line.startswith(" "):
            match = _DECLARED.match(text)
            name, kind = (match[1], match[2]) if match else ("", text)
            if section == "parameters" and not match:
                name, kind = (text, "") if re.fullmatch(_NAME, text) else ("", "")
            if section == "raises":
                name, kind = text, ""
            entries.append(Entry(section=section, name=name, type=kind))
            is_open = True
        elif is_open and entries:
            entries[-1].text = f"{entries[-1].text} {text}".strip()
    return _finished(entries)


def _indented(block: list[str], section: Section) -> list[Entry]:
    """ "name (type): description", what goes on being indented deeper."""
    entries: list[Entry] = []
    first = next((len(line) - len(line.lstrip()) for line in block if line.strip()), 0)
    is_open = False
    for line in block:
        text, indent = line.strip(), len(line) - len(line.lstrip())
        match = _GOOGLE.match(text)
        if not text:
            is_open = False
        elif indent < first or (first == 0 and entries and not match):
            break  # running text again
        elif indent == first and match and (section != "returns" or match[2] or " " not in match[1]):
            name, kind = match[1], match[2] or ""
            if section == "returns":
                name, kind = "", kind or name
            entries.append(Entry(section=section, name=name, type=kind, text=match[3]))
            is_open = True
        elif indent == first and section == "returns" and not entries:
            entries.append(Entry(section=section, name="", text=text))
            is_open = True
        elif is_open and entries:
            entries[-1].text = f"{entries[-1].text} {text}".strip()
    return _finished(entries)


def _fields(block: list[str]) -> list[Entry]:
    """ ":param name: description" and ":type name: type"."""
    entries: list[Entry] = []
    types: dict[str, str] = {}
    is_open = False
    for line in block:
        text = line.strip()
        if match := _FIELD_TYPE.match(text):
            types[match[2] or ""], is_open = match[3], False
        elif match := _FIELD.match(text):
            section: Section = (
                "returns" if match[1].startswith("return") else "raises" if match[1][0] in "re" else "parameters"
            )
            *kind, name = match[2].split() or [""]
            entries.append(Entry(section=section, name=name, type=" ".join(kind), text=match[3]))
            is_open = True
        elif not text or not line.startswith(" "):
            is_open = False
        elif is_open:
            entries[-1].text = f"{entries[-1].text} {text}".strip()
    for entry in entries:
        if entry.section != "raises":
            entry.type = entry.type or types.get(entry.name, "")
    return _finished(entries)


def _bare(text: str) -> str:
    """A name or type without roles and quotation; brackets are a part of it, and no markup."""
    return " ".join(_ROLE.sub(r"\1", text).replace("`", "").replace("*optional*", "optional").split()).strip("~ ")


def _finished(entries: list[Entry]) -> list[Entry]:
    for entry in entries:
        entry.name, entry.text = _bare(entry.name).lstrip("*"), plain(entry.text)
        entry.type = _bare(entry.type).rstrip(". ")
    return [entry for entry in entries if entry.name or entry.section == "returns"]
