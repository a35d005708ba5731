"""Conversations as ids: our own ChatML, or the Jinja template that an imported model brings, in a sandbox.

Unusual: what the template wrote and what people said are told apart while it is rendered, so that only the template's
special tokens are special, whatever a message spells, and the words of the assistant are known by their place, never
found again. Knows nothing about rows and batches. Imports no torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignlab.text.tokenizer import TURN_END, TURN_START, Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: around the number of a message
_PLACE = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
Message = Mapping[str, str]


@dataclass(frozen=True)
class Conversation:
    """Ids of a conversation; `learned[t]`: ids[t] is the assistant's, or ends a turn of it.

    `reply` is where the last reply begins; the number of ids where it is still to come.
    """

    ids: np.ndarray
    learned: np.ndarray
    reply: int


@dataclass
class _Written:
    """A conversation while it is put together: plain text that waits to be tokenized, and by whom each part is."""

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    text: str = ""
    owners: list[tuple[int, bool]] = field(default_factory=list)  # where a part begins, and whether it is learned


class JinjaChat:
    """The chat template of a tokenizer; final.

    Raises ValueError for a template that cannot be rendered, or that changes what messages say.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from jinja2.exceptions import TemplateSyntaxError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        assert tokenizer.chat_template is not None, "a tokenizer without a template"
        self.tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
        try:
            self.template = environment.from_string(tokenizer.chat_template)
        except TemplateSyntaxError as error:
            raise ValueError(f"the chat template of the tokenizer is no Jinja: {error}") from error
        names = sorted(tokenizer.specials, key=len, reverse=True)
        self.specials = re.compile("|".join(map(re.escape, names))) if names else None

    def conversation(self, messages: Sequence[Message], *, opens: bool) -> Conversation:
        """The ids of `messages`; with `opens` the head of a reply to come follows."""
        pieces = self._pieces(messages, opens)
        written, awaits_end, reply = _Written(), False, 0
        last = max((n for n, one in enumerate(messages) if one["role"] == "assistant"), default=-1)
        for text, number in pieces:
            if number is not None:
                is_own = messages[number]["role"] == "assistant"
                if number == last and not opens:
                    self._flush(written)
                    reply = len(written.ids)
                _append(written, text, is_own)
                awaits_end = is_own
                continue
            awaits_end = self._template_text(written, text, awaits_end)
        self._flush(written)
        ids = np.array(written.ids, dtype=np.int64)
        return Conversation(ids, np.array(written.learned, dtype=bool), len(ids) if opens else reply)

    def _pieces(self, messages: Sequence[Message], opens: bool) -> list[tuple[str, int | None]]:
        """(text, number of the message that says it, None for the template's own), in order."""
        for said in (list(messages), [{**one, "content": one["content"].strip()} for one in messages]):
            marked = [{**one, "content": f"{_OPEN}{number}{_CLOSE}"} for number, one in enumerate(said)]
            parts = _PLACE.split(self._rendered(marked, opens))
            pieces: list[tuple[str, int | None]] = []
            for place, part in enumerate(parts):
                number = int(part) if place % 2 else None
                pieces.append((part if number is None else said[number]["content"], number))
            if "".join(text for text, _ in pieces) == self._rendered(messages, opens):
                return pieces
        raise ValueError(
            "the chat template changes what messages say, so that the assistant's words have no place in it; "
            "expected one that writes message.content as it is"
        )

    def _rendered(self, messages: Sequence[Message], opens: bool) -> str:
        from jinja2.exceptions import TemplateError

        tokenizer = self.tokenizer
        try:
            return self.template.render(
                messages=messages, add_generation_prompt=opens, bos_token=tokenizer.bos or "", eos_token=tokenizer.eos
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error

    def _template_text(self, written: _Written, text: str, awaits_end: bool) -> bool:
        """Adds text of the template; its first special token after a reply ends the reply, and is learned."""
        start = 0
        for found in self.specials.finditer(text) if self.specials is not None else ():
            _append(written, text[start : found.start()], False)
            self._flush(written)
            written.ids.append(self.tokenizer.specials[found[0]])
            written.learned.append(awaits_end)
            awaits_end = False
            start = found.end()
        _append(written, text[start:], False)
        return awaits_end

    def _flush(self, written: _Written) -> None:
        """Tokenizes the text that waits, across the borders of its parts, as the model's own tokenizer would."""
        if not written.text:
            return
        ids = self.tokenizer.encode_batch([written.text])[0]
        starts = self.tokenizer.offsets(written.text, ids)[:, 0]
        borders = np.array([start for start, _ in written.owners])
        owner = np.searchsorted(borders, starts, side="right") - 1
        written.ids += ids.tolist()
        written.learned += [written.owners[number][1] for number in owner]
        written.text, written.owners = "", []


def _append(written: _Written, text: str, is_learned: bool) -> None:
    if text:
        written.owners.append((len(written.text), is_learned))
        written.text += text


def has_own_turns(tokenizer: Tokenizer) -> bool:
    """Whether conversations stand in our ChatML, which needs no rendering."""
    return tokenizer.chat_template in (None, CHATML)


def with_turns(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a chat template: its own, or ChatML where its vocabulary has the marks of turns.

    Raises ValueError where it has neither.
    """
    if tokenizer.chat_template is not None:
        return tokenizer
    if missing := [name for name in (TURN_START, TURN_END) if name not in tokenizer.specials]:
        raise ValueError(
            f"the tokenizer has no chat template and no {' and '.join(missing)}; expected a model made for "
            "conversations, or one of ours: leave init_from out, or take an instruct model's folder"
        )
    return tokenizer.with_chat_template(CHATML)


def chat_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids after which the assistant's reply to `messages` begins."""
    return JinjaChat(with_turns(tokenizer)).conversation(messages, opens=True).ids.tolist()


def _refuse(message: Any) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(str(message))


def _now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)
