"""The files of a Hugging Face folder that tell of a tokenizer. Imports no torch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

# What models call the end of a text, for a tokenizer.json that comes without tokenizer_config.json.
FOREIGN_ENDS = (
    "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]",
)  # fmt: skip


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


def read_folder(folder: Path) -> dict[str, Any]:
    """The arguments of a `Tokenizer` that a folder tells: tokenizer.json, special tokens, chat template.

    Raises ValueError when tokenizer.json is missing or broken, or when nothing names the end of a text.
    """
    core = read_core(folder / "tokenizer.json")
    config = read_json(folder / "tokenizer_config.json")
    config |= {k: v for k, v in read_json(folder / "special_tokens_map.json").items() if k not in config}
    model, generation = read_json(folder / "config.json"), read_json(folder / "generation_config.json")
    ends = [*id_list(generation.get("eos_token_id")), *id_list(model.get("eos_token_id"))]
    stops = [name for name in (core.id_to_token(number) for number in ends) if name]
    stops += config.get("stop_tokens", [])
    eos = content(config.get("eos_token")) or next(iter(stops), None) or first_known(core, FOREIGN_ENDS)
    if eos is None:
        raise ValueError(f"{folder} names no end-of-text token; expected eos_token in its tokenizer_config.json")
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
    if isinstance(chat, list):  # several named templates; the one called default is the chat
        chat = next((entry["template"] for entry in chat if entry.get("name") == "default"), None)
    bos, pad = content(config.get("bos_token")), content(config.get("pad_token"))
    return {"core": core, "eos": eos, "bos": bos, "pad": pad, "stops": stops, "chat_template": chat}


def write_folder(folder: Path, state: dict[str, Any]) -> None:
    """Writes what `Tokenizer.state` holds as tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": state["eos"],
        "pad_token": state["pad"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
    }
    if state["bos"] is not None:
        config["bos_token"] = state["bos"]
    if len(state["stops"]) > 1:
        config["stop_tokens"] = state["stops"]  # ours; transformers keeps these in generation_config.json
    (folder / "tokenizer.json").write_text(state["json"], encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)
    if state["chat_template"] is not None:
        (folder / "chat_template.jinja").write_text(state["chat_template"], encoding="utf-8")
