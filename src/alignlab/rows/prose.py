"""Paragraphs of English out of documentation strings; rules stated one by one, nothing learned.

Unusual: markup is undone (roles, backticks, links), what only a renderer could read is dropped (doctests, tables,
literal blocks, headings, formulas), and a description of a parameter is kept when it is a sentence without its name.
Knows nothing about packages, files or splits. Imports no torch.
"""

import inspect
import re
from collections.abc import Iterator

_KEPT_DIRECTIVES = ("note", "warning", "important", "tip", "caution", "attention", "hint", "seealso")
_UNDERLINE = re.compile(r"[=\-~^\"'#*+._]{3,}$")
_TABLE = re.compile(r"[+|].*[+|]$|={2,}( +={2,})+$|-{2,}( +-{2,})+$")
_DIRECTIVE = re.compile(r"\.\. +([\w:-]+?)::\s*(.*)$")
_BULLET = re.compile(r"(?:[-*+•]|\(?[0-9a-z]{1,2}[.)])\s+")
# "name (type): text", "name: text", ":param name: text", "name : type" of the three docstring styles
_FIELD = re.compile(r":[\w ,.*]+:\s+(?=\S)")
_GOOGLE = re.compile(r"[*`'\"]*[A-Za-z_][\w.*,`'\" ]{0,40}(?:\s*\([^()]*(?:\([^()]*\)[^()]*)*\))?\s*:\s+(?=\S)")
# each with a sign without which it finds nothing: most paragraphs have none of them
_MARKUP: tuple[tuple[str, re.Pattern, str], ...] = (
    ("`", re.compile(r":[\w:+.-]+:`~?([^`<]*?)\s*<[^`>]*>`"), r"\1"),  # :ref:`text <target>`
    ("`", re.compile(r":[\w:+.-]+:`~(?:[\w]+\.)*(\w+)`"), r"\1"),  # :class:`~a.b.Name`
    ("`", re.compile(r":[\w:+.-]+:`!?([^`]*)`"), r"\1"),
    ("`", re.compile(r"``([^`]+)``"), r"\1"),
    ("`", re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}"), r"\1"),  # `text <address>`_
    ("[", re.compile(r"\[([^\]]+)\]\((?:[^()]|\([^()]*\))*\)"), r"\1"),  # [text](address)
    ("[", re.compile(r"\s*\[#?\w{0,8}\]_"), ""),  # a footnote's mark
    ("[", re.compile(r"\[`?([A-Za-z_][\w.]*)`?\](?!\w)"), r"\1"),  # [Name] of Markdown references
    ("`", re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    ("*", re.compile(r"\*\*([^*\n]+)\*\*"), r"\1"),
    ("*", re.compile(r"(?<![\w*])\*([^*\s][^*\n]*?)\*(?!\w)"), r"\1"),
    ("|", re.compile(r"\|(\w[^|\n]*)\|"), r"\1"),
)
_CODE = re.compile(r"https?:|www\.|==|->|=>|::|\\|[{}<>|^@$~#]|\w=\w|\]\[|\)\.|\(\)\(|__|%[sdr(]|\.\.\. ?,|\w\[\w|;$")
_LEGAL = re.compile(r"copyright|licensed|license|all rights reserved|warranty|permission is hereby|spdx", re.I)
_COMMON = frozenset(
    re.findall(r"\w+", "the a an is are of to in and or for that this be with as it by if not from on can when will")
)
_SECTION = re.compile(r"(?:Returns?|Yields?|Raises|Args|Arguments|Parameters|Example|Examples|Usage)\s*: +(?=[A-Z])")
_SHORTEST = 40  # characters of a paragraph
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")


def paragraphs(docstring: str) -> Iterator[str]:
    """The paragraphs of English in a documentation string, each on one line."""
    for block in _blocks(docstring):
        raw = " ".join(block)
        if len(raw) >= _SHORTEST and _reads_well(text := plain(raw)):
            yield text


def normalized(paragraph: str) -> list[str]:
    """Words in lower case, without digits and signs: what makes two paragraphs the same."""
    return _WORD.findall(paragraph.lower())


def _blocks(docstring: str) -> Iterator[list[str]]:
    """Runs of lines that make one paragraph."""
    block: list[str] = []
    first_indent = 0
    skipped_deeper_than: int | None = None  # within a literal block, or a directive that is not prose
    in_doctest = in_fence = False
    for line in [*inspect.cleandoc(docstring).expandtabs().split("\n"), ""]:
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text.startswith("```"):
            in_fence = not in_fence
            text = ""
        if not text:
            if block:
                yield block
            block, in_doctest = [], False
            continue
        if skipped_deeper_than is not None and indent <= skipped_deeper_than:
            skipped_deeper_than = None
        in_doctest = in_doctest or text.startswith((">>>", "In [", "$ "))
        if in_fence or in_doctest or skipped_deeper_than is not None:
            continue
        directive = _DIRECTIVE.match(text)
        if directive or text.startswith(".. "):
            if block:
                yield block
            kept = directive is not None and directive[1] in _KEPT_DIRECTIVES
            block = [directive[2]] if directive and kept and directive[2] else []
            skipped_deeper_than = None if kept else indent
            continue
        if text.endswith("::"):
            text, skipped_deeper_than = text[:-1], indent
        if _UNDERLINE.match(text):
            block = block[:-1]  # the heading it underlines
        elif _TABLE.match(text):
            block = []
        elif starts := _item_start(text):
            if block:
                yield block
            block = [text[starts:]] if starts < len(text) else []
        elif len(block) == 1 and _is_declaration(block[0], text, indent > first_indent):
            block = [text]  # "x : array_like" gives way to what it describes
        else:
            first_indent = first_indent if block else indent
            block.append(text)


def _item_start(text: str) -> int:
    """Where the words of a list item or of a parameter's description begin; 0 for running text."""
    for pattern in (_BULLET, _FIELD):
        if match := pattern.match(text):
            return match.end()
    match = _GOOGLE.match(text)
    # "Note: the words" and "In short: the words" are running text; a name in code or with a type is not
    if match and (match[0].rstrip(": ").endswith(")") or "_" in match[0] or match[0][0].islower()):
        return match.end()
    return 0


def _is_declaration(text: str, following: str, is_deeper: bool) -> bool:
    """Such as "x : array_like, optional", "**kwargs", "int or None", "Series of int" above what it stands for."""
    is_short = len(text) < 50 and not text.endswith((".", ",", ":"))
    return " : " in text or (
        is_short and (" " not in text or not text[0].isupper() or (is_deeper and following[0].isupper()))
    )


def plain(text: str) -> str:
    """The text without markup, on one line."""
    for sign, pattern, replacement in _MARKUP:
        if sign in text:
            text = pattern.sub(replacement, text)
    return _SECTION.sub("", " ".join(text.split()))


def _reads_well(text: str) -> bool:
    """At least a sentence of eight words of English, without code, formulas, addresses or licences."""
    if len(text) < _SHORTEST or not text[0].isupper() or text[-1] not in ".!?":
        return False
    if _CODE.search(text) or _LEGAL.search(text):
        return False
    if text.startswith("If ") and "," not in text and " then " not in text:  # half a sentence, of a section on errors
        return False
    words = text.split()
    plain = sum(bool(_WORD.fullmatch(word.strip("\"'().,:;!?"))) for word in words)
    common = sum(word.lower() in _COMMON for word in words)
    return len(words) >= 8 and plain >= 0.85 * len(words) and common >= 0.15 * len(words) and text.isascii()
