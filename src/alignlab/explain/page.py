"""The page: one file of HTML with its own style, script and images, which asks nothing of any other place.

Whatever comes from a text, a vocabulary or a label passes through `escape`; a policy in the page's head forbids the
browser to load anything, so that nothing could leave even if a text got through.
"""

# T tokens, L layers, H heads

import html
import json
import math
from importlib.resources import files
from typing import Any

from alignlab.batch import IGNORED
from alignlab.explain.explanation import Explanation
from alignlab.explain.images import embedded
from alignlab.explain.tokens import Piece, visible

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(found: Explanation) -> str:
    """The whole document."""
    parts = [_head(found), _answer(found), _attribution(found), _losses(found), _next(found), _lens(found)]
    parts.append(_attention(found))
    style, script = (files("alignlab.explain").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(found.model)} explained</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body>{''.join(parts)}{_script_values(found)}<script>{script}</script></body></html>\n"
    )


def escape(text: object) -> str:
    """Text as HTML, in an attribute too."""
    return html.escape(str(text), quote=True)


def _head(found: Explanation) -> str:
    facts, reading = found.facts, found.reading
    cut = ""
    if reading.cut != 0:
        count = "some" if reading.cut is None else f"{reading.cut:,}"
        cut = f'<p class="note">The text is too long: {count} of its tokens are left out of all that follows.</p>'
    numbers = [
        ("tokens read", f"{len(found.tokens)}"),
        ("mean loss", f"{found.mean_loss:.4f} nats"),
        ("perplexity", f"{math.exp(min(found.mean_loss, 700)):,.2f}"),
        ("parameters", f"{facts['parameters']:,}"),
        ("layers × heads", f"{facts['layers']} × {facts['heads']}"),
    ]
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in numbers)
    return f'<header><h1>{escape(found.model)}</h1><div class="facts">{boxes}</div>{cut}</header>'


def _section(name: str, title: str, told: str, body: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2><p class="told">{told}</p>{body}</section>'


def _answer(found: Explanation) -> str:
    if found.answer is None:
        return ""
    bars = "".join(_bar(escape(visible(name)), share) for name, share in found.answer.shares[:20])
    body = f'<p class="answer">{escape(found.answer.text)}</p><div class="bars">{bars}</div>'
    return _section("answer", "Answer", "What the task's head says to this text.", body)


def _bar(name: str, share: float) -> str:
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<div><span>{name}</span><i style="width:{width:.1f}%"></i><em>{share:.4f}</em></div>'


def _attribution(found: Explanation) -> str:
    if found.explained is None:
        return ""
    one = found.explained.attribution
    shares = one.tokens.tolist()
    largest = max((abs(share) for share in shares), default=0.0) or 1.0
    spans = "".join(
        _token(piece, place, f"{share:+.4f}", _diverging(share / largest))
        for place, (piece, share) in enumerate(zip(found.tokens, shares, strict=True))
    )
    warning = "" if one.error <= 0.01 else '<p class="note">More than 1 % is missing: read this with care.</p>'
    told = (
        f"Integrated gradients: what each token adds to <b>{escape(found.explained.name)}</b> "
        f"({escape(found.explained.unit)}). Without the words it is {one.baseline:.4f}, with them {one.value:.4f}; the "
        f"tokens add up to the difference within {100 * one.error:.2g} % ({one.gradients} gradients)."
    )
    legend = _legend("takes away", "adds", "linear-gradient(90deg,#3b76c4,#fff,#d9542b)", f"± {largest:.3g}")
    return _section("attribution", "What each token adds", told, f'{warning}{legend}<div class="text">{spans}</div>')


def _losses(found: Explanation) -> str:
    nothing = math.log(max(2, found.facts["vocabulary"]))
    spans = [_token(found.tokens[0], 0, "read, not predicted", None)]
    for place, piece in enumerate(found.tokens[1:]):  # a token's loss stands at the position before it
        nats, rank = float(found.losses[place]), int(found.ranks[place])
        if math.isnan(nats):
            spans.append(_token(piece, place + 1, "not predicted", None))
            continue
        counts = "" if found.reading.counted[0, place] else "; not counted in the mean"
        told = f"{nats:.3f} nats, probability {math.exp(-nats):.4f}, rank {rank}{counts}"
        spans.append(_token(piece, place + 1, told, _sequential(nats / nothing), is_faint=bool(counts)))
    last = int(found.reading.following[0, -1])
    if last != IGNORED:
        nats = float(found.losses[-1])
        told = f"{nats:.3f} nats, probability {math.exp(-nats):.4f}, rank {int(found.ranks[-1])}"
        spans.append(_token(found.spelled[last], len(found.tokens) - 1, told, _sequential(nats / nothing)))
    legend = _legend("0", f"ln V = {nothing:.1f} nats: knows nothing", "linear-gradient(90deg,#fff,#e4572e)", "")
    told = (
        f"How surprising each token is after what stands before it; the mean of those that count is "
        f"{found.mean_loss:.4f} nats. Point at a token for its numbers, click to follow it through the page."
    )
    return _section("loss", "Loss of each token", told, f'{legend}<div class="text">{"".join(spans)}</div>')


def _next(found: Explanation) -> str:
    rows = []
    for place, (ids, shares) in enumerate(zip(found.next.ids.tolist(), found.next.probabilities.tolist(), strict=True)):
        following = int(found.reading.following[0, place])
        actual = "<td></td><td></td><td></td>"
        if following != IGNORED:
            nats = float(found.losses[place])
            actual = (
                f"<td><code>{_label(found.spelled[following])}</code></td><td>{_share(math.exp(-nats))}</td>"
                f"<td>{int(found.ranks[place])}</td>"
            )
        cells = "".join(
            f'<td class="guess{" right" if number == following else ""}" style="--p:{100 * share:.1f}%">'
            f"<code>{_label(found.spelled[number])}</code><small>{_share(share)}</small></td>"
            for number, share in zip(ids, shares, strict=True)
        )
        rows.append(f'<tr data-at="{place}"><td><code>{_label(found.tokens[place])}</code></td>{actual}{cells}</tr>')
    guesses = "".join(f"<th>guess {number + 1}</th>" for number in range(found.next.ids.shape[1]))
    head = f"<tr><th>after</th><th>comes</th><th>probability</th><th>rank</th>{guesses}</tr>"
    body = f'<div class="scroll"><table class="next"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _section("next", "Likeliest next tokens", "At each position; what really follows is framed.", body)


def _lens(found: Explanation) -> str:
    ids, shares = found.lens.ids.tolist(), found.lens.probabilities.tolist()
    final = ids[-1]
    columns = "".join(f'<th data-at="{place}">{_label(piece)}</th>' for place, piece in enumerate(found.tokens))
    rows = []
    for layer in reversed(range(len(ids))):
        cells = "".join(
            f'<td data-at="{place}" class="{"final" if number == final[place] else ""}" '
            f'style="background:{_blue(share)}" title="{share:.3f}">{_label(found.spelled[number])}</td>'
            for place, (number, share) in enumerate(zip(ids[layer], shares[layer], strict=True))
        )
        name = "input" if layer == 0 else "output" if layer == len(ids) - 1 else str(layer)
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    table = f'<table class="lens"><thead><tr><th>after</th>{columns}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    told = (
        "The likeliest next token if the model ended after that layer; the last is the model itself. Darker is more "
        "probable; bold is what the last layer says too."
    )
    return _section("lens", "Logit lens", told, f'<div class="scroll">{table}</div>')


def _attention(found: Explanation) -> str:
    rows = []
    for layer, heads in enumerate(found.attention):
        images = "".join(
            f'<button data-layer="{layer}" data-head="{head}" title="layer {layer + 1}, head {head + 1}">'
            f'<img alt="attention of layer {layer + 1}, head {head + 1}" src="{embedded(weights)}"></button>'
            for head, weights in enumerate(heads)
        )
        rows.append(f'<div class="layer"><span>{layer + 1}</span>{images}</div>')
    told = (
        "A map for each layer (row) and head: queries downwards, keys to the right; shades are the square root of the "
        "weight. Click a map to read it; click a token below it to see what it attends to."
    )
    body = (
        f'<div class="maps"><div class="grid">{"".join(rows)}</div><div class="large"><p id="which"></p>'
        '<canvas id="map"></canvas><p id="weight">&nbsp;</p><div class="text" id="row"></div></div></div>'
        '<noscript><p class="note">The large map needs JavaScript; the small ones do not.</p></noscript>'
    )
    return _section("attention", "Attention", told, body)


def _token(piece: Piece, place: int, told: str, colour: str | None, *, is_faint: bool = False) -> str:
    shown = escape(visible(piece.text.replace(" ", "\u2423"))).replace("\u2423", " ")
    kind = " special" if piece.is_special else ""
    kind += " faint" if is_faint else ""
    part = f"<sub>{escape(piece.part)}</sub>" if piece.part else ""
    style = f' style="background:{colour}"' if colour else ""
    broken = "<br>" if piece.text.endswith("\n") else ""
    title = escape(f"{piece.label}\n{told}")
    return f'<span class="token{kind}" data-at="{place}" title="{title}"{style}><bdi>{shown}</bdi>{part}</span>{broken}'


def _label(piece: Piece) -> str:
    part = f"<sub>{escape(piece.part)}</sub>" if piece.part else ""
    return f"<bdi>{escape(visible(piece.text))}</bdi>{part}"


def _share(share: float) -> str:
    return "&lt;0.001" if 0 < share < 0.0005 else f"{share:.3f}"


def _legend(left: str, right: str, gradient: str, scale: str) -> str:
    scaled = f" ({escape(scale)})" if scale else ""
    return f'<p class="legend">{escape(left)}<i style="background:{gradient}"></i>{escape(right)}{scaled}</p>'


def _sequential(share: float) -> str:
    """White to orange red."""
    return _mixed((228, 87, 46), share)


def _diverging(share: float) -> str:
    """Blue below 0, white, orange red above."""
    return _mixed((217, 84, 43) if share > 0 else (59, 118, 196), abs(share))


def _blue(share: float) -> str:
    return _mixed((66, 133, 214), share)


def _mixed(colour: tuple[int, int, int], share: float) -> str:
    share = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(255 + (one - 255) * share):02x}" for one in colour)


def _script_values(found: Explanation) -> str:
    """What the script draws with; `<` is spelled so that no token can end the element."""
    values: dict[str, Any] = {"tokens": [piece.label for piece in found.tokens]}
    text = json.dumps(values, ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="values">{text}</script>'
