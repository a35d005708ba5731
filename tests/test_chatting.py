"""A conversation with a trained model: memory, forgetting, pieces that add up."""

import io
import json
from pathlib import Path

import pytest

from alignlab.chatting import Talk, chat
from alignlab.generate import Sampling
from alignlab.model import load
from alignlab.run import execute
from tests.conftest import TINY, composed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    rows = "".join(json.dumps({"instruction": f"hi {n}", "output": "ok"}) + "\n" for n in range(20))
    (folder / "chat.jsonl").write_text(rows, encoding="utf-8")
    options = ("task=chat", "data=files", f"data.train={folder / 'chat.jsonl'}", *TINY, "model.context=96")
    options = (*options, "trainer.max_steps=60", "optim.lr=1e-2")
    execute(composed(*options), folder / "run", command_line=list(options))
    return folder / "run"


def test_a_talk_remembers_until_the_context_is_full(run: Path) -> None:
    talk = Talk(model=load(run), sampling=Sampling(max_new_tokens=8, temperature=0), system="hi")
    pieces: list[str] = []
    assert talk.reply("hi 3", pieces.append) == "".join(pieces).strip() == "ok"
    assert [one["role"] for one in talk.messages] == ["user", "assistant"]
    for _ in range(4):
        talk.reply("hi 4")
    assert talk.forgotten > 0
    assert talk.messages[0]["role"] == "user"
    talk.reset()
    assert talk.messages == []
    assert talk.reply("x" * 500)  # longer than the context: its end is read


def test_model_chat_in_one_line(run: Path) -> None:
    assert load(run).chat([{"role": "user", "content": "hi 5"}], temperature=0, max_new_tokens=8) == "ok"


def test_chat_on_standard_input(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi 1\n\n/system terse\n/reset\nhi 2\n/exit\nhi 3\n"))
    chat(str(run), device="cpu", sampling=Sampling(max_new_tokens=8, temperature=0), system=None)
    assert capsys.readouterr().out.splitlines() == ["ok", "(set)", "(a new conversation)", "ok"]
