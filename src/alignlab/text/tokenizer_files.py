"""The files of a Hugging Face folder that tell of a tokenizer. Imports no torch."""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers


def first_known(core: tokenizers.Tokenizer, names: Iterable[str]) -> str | None:
    """The first of `names` that is a token."""
    return next((name for name in names if core.token_to_id(name) is not None), None)


def content(token: str | dict | None) -> str | None:
    """A special token's text: old folders hold a string, others {"content": ...}."""
    return token["content"] if isinstance(token, dict) else token


def id_list(value: int | list[int] | None) -> list[int]:
    """A field that is a number, several or absent."""
    return [] if value is None else value if isinstance(value, list) else [value]


def read_core(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json. Raises ValueError where it is missing or broken."""
    if not path.is_file():
        raise ValueError(
            f"tokenizer file {str(path)!r} does not exist; expected a tokenizer.json of the tokenizers library"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise ValueError(f"{str(path)!r} is not a readable tokenizer.json: {error}") from error


def frame_of(path: Path) -> list[list[int]]:
    """Ids that the template of a tokenizer.json puts before a text and after it."""
    core = read_core(path)
    core.no_padding()
    core.no_truncation()
    bare, whole = core.encode("a", add_special_tokens=False).ids, core.encode("a").ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return [whole[:start], whole[start + len(bare) :]]
    raise ValueError(f"the template of {path} changes the text itself; expected one that adds special tokens around it")


def read_json(path: Path) -> dict:
    """What a file holds; nothing where it is absent."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, value: dict) -> None:
    """Writes a file that people read too."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
