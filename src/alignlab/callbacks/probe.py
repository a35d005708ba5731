"""One fixed text, watched while a model learns: the loss of each token and every head's attention, as figures.

Unusual: labels use whichever installed font knows a character; what none knows is spelled as its code point.
"""

# T tokens, L layers, H heads

import functools
import logging
from typing import TYPE_CHECKING

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from alignlab.explain.measures import token_losses
from alignlab.explain.reading import Reading, text_reading
from alignlab.explain.tokens import Piece, pieces
from alignlab.explain.trace import traced
from alignlab.tasks.task import TaskModule
from alignlab.tuning.lora import merged
from alignlab.types import PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
# fonts with Chinese on Linux, macOS and Windows, asked for in this order after matplotlib's own
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "WenQuanYi Zen Hei")
LETTERS = 16  # of a token's name


class Probe(Callback):
    """Draws what the model makes of `text` at each validation; of a long one its first `max_tokens` tokens."""

    def __init__(self, *, text: str, max_tokens: PositiveInt = 48) -> None:
        if not text.strip():
            raise ValueError("callbacks.probe.text is empty; expected a text to watch")
        if max_tokens < 2:
            raise ValueError(f"callbacks.probe.max_tokens is {max_tokens}; expected at least 2")
        self.text = text
        self.max_tokens = max_tokens

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes probe/loss and probe/attention."""
        assert isinstance(pl_module, TaskModule)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not trainer.is_global_zero:
            return
        if pl_module.is_sharded:  # every rank would have to take part
            log.warning("the probe is not drawn: the weights are spread over ranks")
            return
        model, tokenizer = pl_module.model, pl_module.tokenizer
        limit = min(self.max_tokens, model.config.context)
        reading = text_reading(tokenizer, self.text, limit=limit, device=model.embed.weight.device)
        with merged(pl_module):
            trace = traced(model, reading.ids)
            losses = token_losses(model, trace.hidden[0], reading.following[0]).float().cpu()
        names = pieces(tokenizer, reading.ids[0].tolist())
        attention = torch.stack([heads.weights[0].float().cpu() for heads in trace.heads])
        for logger in loggers:
            logger.experiment.add_figure("probe/loss", loss_figure(reading, losses, names), trainer.global_step)
            logger.experiment.add_figure("probe/attention", attention_figure(attention), trainer.global_step)


def loss_figure(reading: Reading, losses: Tensor, names: list[Piece]) -> "Figure":
    """Nats of each token after the first, (T,) as `token_losses` gives them, and their mean as a line."""
    from matplotlib.figure import Figure  # 0.3 s, when something is drawn

    nats = losses[:-1].tolist()  # what follows position t is token t + 1
    mean = float(losses[reading.counted[0].cpu()].mean())
    figure = Figure(figsize=(min(3 + 0.22 * len(nats), 16), 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(nats)), nats, color="#e4572e", width=0.85)
    axes.axhline(mean, color="#1c2330", linewidth=1)
    axes.set_title(f"mean {mean:.3f} nats", loc="left", fontsize=9)
    axes.set_ylabel("nats")
    axes.set_ylim(bottom=0)
    fonts = list(_fonts())
    labels = [drawable(piece.label[:LETTERS]) for piece in names[1:]]
    axes.set_xticks(range(len(nats)), labels, rotation=90, fontsize=8, fontfamily=fonts)
    return figure


def attention_figure(attention: Tensor) -> "Figure":
    """Maps (L, H, T, T), a row for each layer: queries downwards, keys to the right, shades by the square root."""
    from matplotlib.figure import Figure

    layers, heads = attention.shape[:2]
    side = min(1.3, 24 / max(layers, heads))  # inches
    figure = Figure(figsize=(max(2.0, heads * side) + 0.5, max(1.0, layers * side) + 0.5), layout="constrained")
    grid = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            axes = grid[layer][head]
            axes.imshow(attention[layer, head].sqrt(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if head == 0:
                axes.set_ylabel(f"layer {layer + 1}", fontsize=8)
            if layer == 0:
                axes.set_title(f"head {head + 1}", fontsize=8)
    return figure


@functools.cache
def _fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FONTS if name in known)


@functools.cache
def _known_characters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = (get_font(findfont(FontProperties(family=name))) for name in _fonts())
    return frozenset(code for font in fonts for code in font.get_charmap())


def drawable(text: str) -> str:
    """`text` with code points in the place of characters that no font at hand knows; dollar signs stay such."""
    known = _known_characters()
    shown = "".join(char if ord(char) in known else f"U+{ord(char):X}" for char in text)
    return shown.replace("$", r"\$")
