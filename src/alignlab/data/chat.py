"""Conversations: the words of the assistant, and the end of each of its turns, are learned; nothing else is.

Turns stand in ChatML, `<|im_start|>role`, a line's end, the content, `<|im_end|>`, a line's end, of which the two marks
are special tokens that no content can spell. A conversation that is too long loses its oldest turns, never the system's
words; if its last question and reply alone are too long, the left of that question; never the reply. An imported
model's own template takes the place of ChatML. It knows nothing of losses.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from alignlab.batch import ResponseBatch
from alignlab.data.encoded import Dropped, Encoder, Example, Padded
from alignlab.data.module import Asked, Rows
from alignlab.data.splits import EncodedData
from alignlab.text.chat import JinjaChat, has_own_turns
from alignlab.text.tokenizer import TURN_END, TURN_START, Tokenizer
from alignlab.types import NonNegativeInt, PositiveInt


class ChatEncoder(Encoder):
    """Encodes rows {"messages"}; final. With `keeps` the last question and reply stay beside the ids."""

    reads_last: ClassVar[bool] = False

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, keeps: bool) -> None:
        self.max_length = max_length
        self.keeps = keeps
        self.tokenizer = tokenizer
        self.jinja = None if has_own_turns(tokenizer) else JinjaChat(tokenizer)
        if self.jinja is not None:
            return
        self.start, self.end = tokenizer.token_id(TURN_START), tokenizer.token_id(TURN_END)
        self.newline = tokenizer.encode("\n")
        self.roles = {role: tokenizer.encode(f"{role}\n") for role in ("system", "user", "assistant", "tool")}

    def texts(self, row: dict) -> list[str]:
        """What each turn says."""
        return [message["content"] for message in row["messages"]]

    def example(self, row: dict, parts: list[np.ndarray]) -> Example | Dropped:
        """The turns up to the last of the assistant; to be predicted on, up to where its reply begins."""
        messages = row["messages"]
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        is_asked = messages[-1]["role"] != "assistant" and self.keeps  # the reply is still to come
        if last < 0 and not is_asked:
            return Dropped("no words of the assistant")
        stop = len(messages) if is_asked else last + 1
        if self.jinja is not None:
            return self._by_template(messages[:stop], parts[:stop], is_asked)
        roles, whole = [message["role"] for message in messages[:stop]], sum(map(len, parts[:stop]))
        opening = len(self.roles["assistant"]) + 1 if is_asked else 0  # of the reply to come
        kept = self._fitting(roles, parts[:stop], self.max_length - opening)
        if kept is None:
            return Dropped(f"its last question and reply exceed max_length={self.max_length}")
        ids: list[int] = []
        learned: list[bool] = []
        prompt = 0
        for place, content in kept:
            head = [self.start, *self.roles[roles[place]]]
            is_own = roles[place] == "assistant"
            prompt = len(ids) + len(head) if is_own else prompt
            turn = [*head, *content, self.end]
            ids += [*turn, *self.newline]
            learned += [False] * len(head) + [is_own] * (len(turn) - len(head)) + [False] * len(self.newline)
        if is_asked:
            ids += [self.start, *self.roles["assistant"], self.end]
            learned += [False] * (len(ids) - len(learned) - 1) + [True]
            prompt = len(ids) - 1
        else:
            ids, learned = ids[: -len(self.newline)], learned[: -len(self.newline)]
        beside = self._beside(messages[:stop], is_asked)
        cut = whole - sum(len(content) for _, content in kept)
        counts = {"tokens": float(sum(learned))}
        return Example(np.array(ids), np.array(learned), {"prompts": prompt}, counts, cut, beside)

    def _beside(self, messages: list[dict], is_asked: bool) -> tuple[str, list[str]] | None:
        """The last question and its reply, for rows that are to be measured."""
        if not self.keeps:
            return None
        before = messages if is_asked else messages[:-1]
        asked = next((message["content"] for message in reversed(before) if message["role"] == "user"), "")
        return asked, [] if is_asked else [messages[-1]["content"]]

    def _by_template(self, messages: list[dict], parts: list[np.ndarray], is_asked: bool) -> Example | Dropped:
        """As `example`, by the template of an imported model."""
        assert self.jinja is not None, "only where there is a template"
        kept, whole = list(messages), sum(map(len, parts))
        while True:
            told = self.jinja.conversation(kept, opens=is_asked)
            over = len(told.ids) + is_asked - self.max_length - 1
            droppable = [place for place, one in enumerate(kept[: -1 if is_asked else -2]) if one["role"] != "system"]
            if over <= 0 or not droppable:
                break
            end = droppable[0] + 1
            while end in droppable and kept[end]["role"] == "assistant":  # no reply without its question
                end += 1
            del kept[droppable[0] : end]
        question = len(kept) - (1 if is_asked else 2)
        if over > 0:
            ids = parts[len(messages) - (1 if is_asked else 2)]
            if question < 0 or kept[question]["role"] != "user" or len(ids) <= over:
                return Dropped(f"its last question and reply exceed max_length={self.max_length}")
            kept[question] = {**kept[question], "content": self.tokenizer.decode(ids[over:])}
            told = self.jinja.conversation(kept, opens=is_asked)
        ids, learned = told.ids, told.learned
        if is_asked:  # one more, which stands for the reply
            ids, learned = np.append(ids, self.tokenizer.stop_ids[-1]), np.append(learned, True)
        else:
            stop = int(np.flatnonzero(learned)[-1]) + 1
            ids, learned = ids[:stop], learned[:stop]
        counts = {"tokens": float(learned.sum())}
        beside = self._beside(messages, is_asked)
        cut = max(0, whole - sum(len(self.tokenizer.encode(one["content"])) for one in kept))
        return Example(ids, learned, {"prompts": told.reply}, counts, cut, beside)

    def batch(self, padded: Padded, counts: dict[str, float]) -> ResponseBatch:
        """See `alignlab.batch.ResponseBatch`; a prompt goes up to where the last reply begins."""
        return ResponseBatch(
            ids=padded.ids,
            targets=padded.targets,
            lengths=padded.lengths,
            prompts=padded.columns["prompts"],
            sources=[None if kept is None else kept[0] for kept in padded.kept],
            references=[None if kept is None else kept[1] for kept in padded.kept],
            rows=padded.rows,
            counts=counts,
            tokens=padded.tokens,
        )

    def _fitting(self, roles: list[str], parts: list[np.ndarray], room: int) -> list[tuple[int, np.ndarray]] | None:
        """(place, content) of the turns that stay; None where the last reply does not fit."""
        around = [3 + len(self.roles[role]) + len(self.newline) for role in roles]
        sizes = [len(part) + extra for part, extra in zip(parts, around, strict=True)]
        stay = list(range(len(roles)))
        droppable = [place for place in stay[:-2] if roles[place] != "system"]
        while sum(sizes[place] for place in stay) > room and droppable:
            stay.remove(droppable.pop(0))
            while droppable and roles[droppable[0]] == "assistant":  # no reply without its question
                stay.remove(droppable.pop(0))
        over = sum(sizes[place] for place in stay) - room
        kept = {place: parts[place] for place in stay}
        if over > 0:
            question = len(roles) - (2 if roles[-1] == "assistant" and len(roles) > 1 else 1)
            if roles[question] != "user" or len(parts[question]) <= over:
                return None
            kept[question] = parts[question][over:]
        return list(kept.items())


class Conversations(EncodedData):
    """The splits of `rows` as batches of conversations, of at most `max_length` tokens.

    Of the validation rows, `generate_rows` are answered at each validation; the loss is over all.
    """

    kind = "chat"

    def __init__(
        self,
        *,
        rows: Rows,
        tokenizer: Tokenizer,
        languages: list[str] | None = None,
        targets: bool = True,
        generate_rows: NonNegativeInt = 64,
        max_length: PositiveInt = 512,
        pad_to: PositiveInt = 1,
        batch_size: PositiveInt = 16,
        accumulate: PositiveInt = 1,
        workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        epoch_steps: PositiveInt | None = None,
    ) -> None:
        super().__init__(
            rows=rows, tokenizer=tokenizer, targets=targets, pad_to=pad_to, batch_size=batch_size,
            accumulate=accumulate, workers=workers, seed=seed, epoch_steps=epoch_steps,
        )  # fmt: skip
        self.languages, self.max_length = languages or ["any", "any"], max_length
        self.encode_splits()
        self.keep_only(generate_rows)

    @classmethod
    def texts(cls, rows: Rows) -> Iterator[str]:
        """What is said in the training rows."""
        return (message["content"] for row in rows.read("train", "chat") for message in row["messages"])

    def encoder(self, split: str) -> ChatEncoder:
        """Rows to be measured keep their last question and reply."""
        return ChatEncoder(tokenizer=self.tokenizer, max_length=self.max_length, keeps=split != "train")

    def asked(self, split: str) -> Iterator[Asked]:
        """The turns before the last reply, and that reply."""
        for row in self.rows_of(split):
            messages = row["messages"]
            is_answered = messages[-1]["role"] == "assistant"
            target = messages[-1]["content"] if is_answered else None
            yield Asked(row["row"], messages[:-1] if is_answered else messages, target)

    def found(self) -> dict[str, Any]:
        """{"languages": ...}, which no metric of a conversation asks for."""
        return {"languages": self.languages}
