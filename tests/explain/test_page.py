"""The page: complete, offline, and safe whatever stands in texts, vocabularies and labels."""

import base64
import json
import math
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from alignlab.explain.explanation import Explanation, as_json, explain
from alignlab.explain.images import embedded
from alignlab.explain.page import page
from alignlab.explain.reading import Answer, text_reading
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.text.tokenizer import Bytes

TEXT = "a <script>alert('&amp;')</script> \"你好\" 🙂\n\u202e end"


class Elements(HTMLParser):
    """Names, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def found() -> Explanation:
    tokenizer = Bytes().build(list, "")
    torch.manual_seed(0)
    model = GPT(GPTConfig(layers=2, width=32, heads=4, kv_heads=2, context=64, vocabulary=tokenizer.vocab_size)).eval()
    return explain(model, tokenizer, text_reading(tokenizer, TEXT, limit=64), place="runs/<b>x</b>", top_k=3)


def test_nothing_is_asked_of_another_place(found: Explanation) -> None:
    shown = page(found)
    assert "default-src 'none'" in shown
    assert not re.findall(r"https?://|url\(|@import|srcset", shown)
    for tag, attributes in Elements(shown).found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not {"href", "onclick", "onerror", "onload"} & attributes.keys()
        assert attributes.get("src") is None or attributes["src"].startswith("data:image/png;base64,")


def test_texts_are_only_texts(found: Explanation) -> None:
    spiced = replace(found, answer=Answer(text="<img src=x onerror=alert(1)>", shares=(('"><b>y', 0.5),)))
    elements = Elements(page(spiced))
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 2  # values, and ours
    assert "<script>alert" not in page(spiced)
    assert tags.count("img") == found.attention.shape[0] * found.attention.shape[1]
    assert "runs/<b>x</b>" in elements.text
    assert "<img src=x onerror=alert(1)>" in elements.text


def test_the_script_can_read_its_values(found: Explanation) -> None:
    values = re.search(r'id="values">(.*?)</script>', page(found), re.DOTALL)
    assert values is not None
    assert json.loads(values[1])["tokens"] == [piece.label for piece in found.tokens]


def test_every_token_is_shown(found: Explanation) -> None:
    shown = page(found)
    for section in ("attribution", "loss"):
        body = shown.split(f'<section id="{section}">')[1].split("</section>")[0]
        assert len(re.findall('class="token', body)) == len(found.tokens)
    assert "⟨U+202E⟩" in shown
    assert "\u202e" not in shown
    assert "你" in shown


def test_an_image_holds_the_weights() -> None:
    weights = torch.rand(5, 5).tril()
    png = base64.b64decode(embedded(weights).partition(",")[2])
    start = png.index(b"IDAT") + 4
    rows = zlib.decompress(png[start : png.index(b"IEND") - 8])
    grey = torch.tensor(list(rows)).view(5, 6)[:, 1:]
    assert (((255 - grey) / 255).square() - weights).abs().max() < 0.005
    assert png[:8] == b"\x89PNG\r\n\x1a\n"


def test_json_says_the_same(found: Explanation) -> None:
    plain = json.loads(json.dumps(as_json(found)))
    losses = [one["nats"] for one in plain["following"] if one is not None]
    assert sum(losses) / len(losses) == pytest.approx(plain["mean_loss"], rel=1e-6)
    assert plain["mean_loss"] == pytest.approx(math.log(260), rel=0.1)
    assert [row["text"] for row in plain["tokens"]][1:3] == ["a", " "]
    assert len(plain["lens"]) == 3
    assert plain["lens"][-1][4]["id"] == plain["next"][4][0]["id"]
    for layer in plain["attention"]:
        for head in layer:
            assert [len(row) <= place + 1 for place, row in enumerate(head)] == [True] * len(head)
            assert [sum(row) for row in head] == pytest.approx([1] * len(head), abs=1e-3)
    told = plain["attribution"]
    assert sum(told["tokens"]) == pytest.approx(
        told["value"] - told["baseline"], abs=0.01 * abs(told["value"] - told["baseline"])
    )
    assert told["error"] < 0.01
