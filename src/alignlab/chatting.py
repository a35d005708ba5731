"""`alignlab chat RUN`: a conversation in the terminal, each reply as it is written.

Unusual: the conversation itself (`Talk`) reads and prints nothing, so that it can be held from Python too.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

from alignlab.generate import Sampling
from alignlab.model import Model, load
from alignlab.text.chat import JinjaChat, with_turns

HELP = "/reset forgets the conversation, /system TEXT sets the system's words, /exit (or Ctrl-D) ends"


class Talk:
    """Messages so far, and a model that replies; the oldest turns are left out where the context is full."""

    def __init__(self, *, model: Model, sampling: Sampling, system: str | None = None) -> None:
        self.model = model
        self.sampling = sampling
        self.turns = JinjaChat(with_turns(model.tokenizer))
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.forgotten = 0

    def reset(self) -> None:
        """Forgets all but the system's words."""
        self.messages.clear()
        self.forgotten = 0

    def reply(self, text: str, on_text: Callable[[str], None] | None = None) -> str:
        """The reply to `text`, which becomes part of the conversation; `on_text` hears it in pieces."""
        self.messages.append({"role": "user", "content": text})
        ids = self._prompt()
        room = self.model.gpt.config.context - len(ids)
        sampling = replace(self.sampling, max_new_tokens=max(1, min(self.sampling.max_new_tokens, room)))
        (answer,) = self.model.continue_ids(
            [ids], sampling, on_text=None if on_text is None else lambda _, p: on_text(p)
        )
        self.messages.append({"role": "assistant", "content": (answer.text or "").strip()})
        return self.messages[-1]["content"]

    def _prompt(self) -> list[int]:
        """The conversation up to the reply, without its oldest turns where they leave no room for one."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        context = self.model.gpt.config.context
        room = context - min(self.sampling.max_new_tokens, max(1, context // 4))
        while True:
            ids = self.turns.conversation([*head, *self.messages], opens=True).ids.tolist()
            if len(ids) <= room or len(self.messages) == 1:
                return ids
            del self.messages[:2]
            self.forgotten += 2


def chat(place: str, *, device: str, sampling: Sampling, system: str | None) -> None:
    """Holds a conversation on standard input and output."""
    talk = Talk(model=load(place, device=device), sampling=sampling, system=system)
    is_person = sys.stdin.isatty()
    if is_person:
        print(f"{place}: {HELP}")
    for text in _lines(is_person):
        command, _, rest = text.partition(" ")
        if command == "/exit":
            break
        if command == "/reset":
            talk.reset()
            print("(a new conversation)")
        elif command == "/system":
            talk.system = rest.strip() or None
            print("(set)" if talk.system else "(none)")
        elif command.startswith("/") and is_person:
            print(f"{command} is no command: {HELP}")
        elif text.strip():
            before = talk.forgotten
            talk.reply(text, lambda piece: print(piece, end="", flush=True))
            print()
            if talk.forgotten > before:
                print(f"(the context is full: the {talk.forgotten} oldest messages are forgotten)")


def _lines(is_person: bool) -> Iterator[str]:
    while True:
        try:
            yield input("> " if is_person else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            return
