"""Prompts from templates: text with fields in braces, rendered in parts, so that the long part alone can be cut.

A line whose field a row does not have is left out. Knows nothing about tokens and tasks. Imports no torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_FIELD = re.compile(r"\{(\w+)\}")
LONG = ("context", "document", "source")  # the field that is cut where a prompt is too long: the first that is there


class Prompt(NamedTuple):
    """A rendered prompt: `long` is what may be cut, the rest stays."""

    before: str
    long: str
    after: str


@dataclass(frozen=True)
class Template:
    """A text such as "{context}\\n\\nQuestion: {question}\\nAnswer:"."""

    text: str

    def __post_init__(self) -> None:
        if not _FIELD.search(self.text):
            raise ValueError(f"datamodule.template is {self.text!r}; expected a text with a field, such as {{source}}")

    def render(self, values: Mapping[str, str]) -> Prompt:
        """The prompt of a row. Raises ValueError where the row has none of the fields."""
        lines = [line for line in self.text.split("\n") if set(_FIELD.findall(line)) <= values.keys()]
        text = "\n".join(lines).lstrip("\n")
        fields = _FIELD.findall(text)
        if not fields:
            wanted = ", ".join(dict.fromkeys(_FIELD.findall(self.text)))
            raise ValueError(f"has {', '.join(values)}; this task's template needs {wanted}: set datamodule.template")
        long = next((name for name in LONG if name in fields), fields[0])
        before, _, after = text.partition(f"{{{long}}}")
        return Prompt(_filled(before, values), values[long], _filled(after, values))


def _filled(text: str, values: Mapping[str, str]) -> str:
    # one pass: what a user wrote in one field is never read as another
    return _FIELD.sub(lambda match: values[match[1]], text)
