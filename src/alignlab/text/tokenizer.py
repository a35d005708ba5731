"""Text to ids and back: one final class over a `tokenizers.Tokenizer`, and the three settings that make one.

Unusual: special tokens are never found in text. `<|endoftext|>` typed by a user is thirteen literal characters, so
a prompt cannot end a document or open a turn; who wants the special asks `token_id` for it. Our own vocabularies always
hold the four specials of `SPECIALS`, so that a pretrained model is tuned to chat later without resizing. Byte counts
belong to the tokenizer, because bits per byte is what compares runs across tokenizers.
Knows nothing about models, rows or files of data. Imports no torch.
"""

# V vocabulary

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from alignlab.paths import cache_folder
from alignlab.text.spelling import BYTE_ALPHABET, TextStream, is_byte_level, token_bytes
from alignlab.text.tokenizer_files import FOREIGN_ENDS, first_known, read_core, read_folder, write_folder
from alignlab.types import PositiveInt
from alignlab.whole import whole

log = logging.getLogger(__name__)

END, PAD, TURN_START, TURN_END = SPECIALS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
SMALLEST_VOCABULARY = 256 + len(SPECIALS)
# GPT-4's split, with combining marks kept on their letters (as o200k does) and every digit alone.
_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Ids of a text and the text of ids; final. Immutable, picklable, equal when `fingerprint` is equal."""

    def __init__(
        self,
        *,
        core: tokenizers.Tokenizer,
        eos: str,
        pad: str | None = None,
        bos: str | None = None,
        stops: Sequence[str] = (),
        chat_template: str | None = None,
    ) -> None:
        """`stops` are further specials that end a generated text; `pad` defaults to `eos`, for masks go by length."""
        self._json = core.to_str()
        self._core = tokenizers.Tokenizer.from_str(self._json)
        self._core.encode_special_tokens = True
        self._core.no_padding()
        self._core.no_truncation()
        self.vocab_size: int = self._core.get_vocab_size(with_added_tokens=True)
        added = self._core.get_added_tokens_decoder()
        self.specials: dict[str, int] = {token.content: number for number, token in added.items() if token.special}
        if added:  # ids may have holes: the table of ids must reach the largest
            self.vocab_size = max(self.vocab_size, max(added) + 1)
        self.eos, self.bos, self.pad = eos, bos, pad or eos
        self.eos_id: int = self.token_id(eos)
        self.pad_id: int = self.token_id(self.pad)
        self.bos_id: int | None = None if bos is None else self.token_id(bos)
        self.stops: tuple[str, ...] = tuple(dict.fromkeys((eos, *stops)))
        self.stop_ids: tuple[int, ...] = tuple(self.token_id(stop) for stop in self.stops)
        self.chat_template = chat_template
        self.dtype: np.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._byte_level = is_byte_level(self._core)
        self._bytes = token_bytes(self._core, self.vocab_size, self._byte_level)
        # Raw bytes as ids need no tokenizer at all, and are many times as fast without.
        self.is_bytes: bool = (
            self._byte_level
            and self._bytes[:256] == [bytes([value]) for value in range(256)]
            and set(range(256, self.vocab_size)) <= set(added)
        )
        self.byte_counts: np.ndarray = np.array([len(spelled) for spelled in self._bytes], dtype=np.int32)

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits over all that changes ids or their meaning."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()[:32]

    @functools.cached_property
    def _with_specials(self) -> tokenizers.Tokenizer:
        # A second object, because the switch is a mutable property of the first and threads share that.
        core = tokenizers.Tokenizer.from_str(self._json)
        core.no_padding()
        core.no_truncation()
        return core

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of `text`, no BOS or EOS added.

        `specials=True` lets special tokens in `text` be themselves: for templates that a model's author wrote, never
        for text that a user can write. Raises ValueError (UnicodeEncodeError) where a lone surrogate makes it no text.
        """
        if specials:
            return self._with_specials.encode(text, add_special_tokens=False).ids
        if self.is_bytes:
            return list(text.encode())
        return self._core.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, arrays of `dtype`; in parallel threads where TOKENIZERS_PARALLELISM allows."""
        if self.is_bytes:
            return [np.frombuffer(text.encode(), dtype=np.uint8).astype(self.dtype) for text in texts]
        encodings = self._core.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def offsets(self, text: str, ids: np.ndarray) -> np.ndarray:
        """(T, 2) characters at which each of `ids`, the ids of `text`, begins and ends in it.

        A token that holds a part of a character, as bytes of Chinese do, stands for the whole of it.
        """
        sizes, raw = self.byte_counts[ids], text.encode()
        is_spelled = self._byte_level and b"".join(self._bytes[number] for number in ids) == raw
        if not (is_spelled and sizes.all()):  # a normalizer changed the text: only the tokenizer knows from where
            encoding = self._core.encode(text, add_special_tokens=False)
            return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        is_first = (np.frombuffer(raw, dtype=np.uint8) & 0xC0) != 0x80
        character = is_first.cumsum() - 1  # of each byte
        ends = sizes.cumsum()
        return np.stack([character[ends - sizes], character[ends - 1] + 1], axis=1)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        return self._core.decode([int(number) for number in ids], skip_special_tokens=skip_special)

    def stream(self) -> TextStream:
        """A decoder that takes one id at a time and gives out whole characters."""
        return TextStream(decode=self.decode, spelled=self._bytes, byte_level=self._byte_level)

    def spelling(self, number: int) -> bytes:
        """The bytes that id `number` stands for; none for specials and for ids outside the vocabulary."""
        return self._bytes[number] if 0 <= number < len(self._bytes) else b""

    def token_id(self, name: str) -> int:
        """The id of the token called `name`; ValueError when the vocabulary has none."""
        number = self._core.token_to_id(name)
        if number is None:
            raise ValueError(f"tokenizer has no token {name!r}; its special tokens are {list(self.specials)}")
        return number

    def with_chat_template(self, template: str | None) -> "Tokenizer":
        """The same tokenizer with another chat template (Jinja source)."""
        return Tokenizer.from_state(self.state() | {"chat_template": template})

    def state(self) -> dict:
        """All of it as plain types, for a checkpoint that loads with `weights_only=True`."""
        return {
            "json": self._json,
            "eos": self.eos,
            "pad": self.pad,
            "bos": self.bos,
            "stops": list(self.stops),
            "chat_template": self.chat_template,
        }

    @classmethod
    def from_state(cls, state: dict) -> "Tokenizer":
        """The tokenizer that `state` was taken from."""
        fields = {name: state[name] for name in ("eos", "pad", "bos", "stops", "chat_template")}
        return cls(core=tokenizers.Tokenizer.from_str(state["json"]), **fields)

    def __reduce__(self) -> tuple:
        return Tokenizer.from_state, (self.state(),)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja as transformers reads them."""
        write_folder(Path(folder), self.state())

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "Tokenizer":
        """A Hugging Face folder's tokenizer: tokenizer.json and what its neighbours say of special tokens.

        Raises ValueError when tokenizer.json is missing or broken, or when nothing names the end of a text.
        """
        return cls(**read_folder(Path(folder)))


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Each UTF-8 byte is an id (0 to 255), the specials follow: nothing to train, 260 ids."""

    def build(self, texts: Callable[[], Iterable[str]], key: str) -> Tokenizer:
        """The tokenizer; `texts` and `key` are not needed."""
        core = tokenizers.Tokenizer(models.BPE(vocab=dict(BYTE_ALPHABET), merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
        core.add_special_tokens(list(SPECIALS))
        return _own(core)


@dataclass(frozen=True, kw_only=True)
class BPE:
    """Byte-level byte-pair encoding, trained on the train split and cached by its content.

    `vocab_size` counts bytes and specials too; a small text may yield fewer. `train_megabytes` bounds the text that is
    looked at, from the start of the split. With `lowercase` no text has capital letters, which is for models that tell
    something about a text rather than write one: words are then the same tokens in titles and at the start of a line.
    """

    vocab_size: PositiveInt = 4096
    train_megabytes: PositiveInt = 256
    lowercase: bool = False

    def __post_init__(self) -> None:
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"tokenizer.vocab_size is {self.vocab_size}; a byte-level vocabulary has at least "
                f"{SMALLEST_VOCABULARY} (256 bytes and {len(SPECIALS)} specials): raise it, or take tokenizer=bytes"
            )

    def build(self, texts: Callable[[], Iterable[str]], key: str) -> Tokenizer:
        """The cached tokenizer of (`key`, settings), or one trained on `texts()`. `key`: content hash of the texts."""
        identity = f"bpe 1 {self.vocab_size} {self.train_megabytes} {_SPLIT} {key}{' lowercase' * self.lowercase}"
        path = cache_folder() / "tokenizers" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
        if path.is_file():
            try:
                return _own(read_core(path))
            except ValueError as error:
                log.warning("%s; training it again", error)
        core = self._train(texts())
        with whole(path) as beside:
            beside.write_text(core.to_str(), encoding="utf-8")
        return _own(core)

    def _train(self, texts: Iterable[str]) -> tokenizers.Tokenizer:
        core = tokenizers.Tokenizer(models.BPE())
        if self.lowercase:
            core.normalizer = normalizers.Lowercase()
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        log.info("training a byte-pair vocabulary of %d", self.vocab_size)
        core.train_from_iterator(_up_to(texts, self.train_megabytes << 20), trainer)
        return core


@dataclass(frozen=True, kw_only=True)
class File:
    """Any `tokenizer.json`, or a Hugging Face folder that holds one."""

    path: str

    def build(self, texts: Callable[[], Iterable[str]], key: str) -> Tokenizer:
        """The tokenizer of the file; one that names no end of text gets `<|endoftext|>` as its last id."""
        path = Path(self.path).expanduser()
        if path.is_dir():
            return Tokenizer.from_folder(path)
        core = read_core(path)
        if path.name == "tokenizer.json" and (path.parent / "tokenizer_config.json").is_file():
            return Tokenizer.from_folder(path.parent)
        eos = first_known(core, FOREIGN_ENDS)
        if eos is None:
            core.add_special_tokens([END])
        pad = PAD if core.token_to_id(PAD) is not None else None
        stops = [TURN_END] if core.token_to_id(TURN_END) is not None else []
        return Tokenizer(core=core, eos=eos or END, pad=pad, stops=stops)


def _own(core: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(core=core, eos=END, pad=PAD, stops=[TURN_END])


def _up_to(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Texts until `limit` characters are out."""
    for text in texts:
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return
