"""A plan against exact arithmetic, against torch's own counters, and against a measured process."""

import functools
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alignlab.cli import main
from alignlab.errors import UserError
from alignlab.plan.hardware import gpu
from alignlab.plan.heap import Heap, heap_size
from alignlab.plan.ledger import Book, Entry
from alignlab.plan.memory import GAPS, PROCESS, largest
from alignlab.plan.planning import Plan, plan
from alignlab.plan.running import Run
from alignlab.plan.trial import tried
from tests.conftest import TINY

ON_GPU = ("trainer=gpu", "trainer.precision=32-true")
SMALL = tuple(option for option in TINY if not option.startswith("trainer.precision"))


@pytest.fixture
def files(corpus: Path) -> list[str]:
    return ["data=files", f"data.train={corpus}", *SMALL]


@functools.cache
def on_h100(*files: str) -> Plan:
    """The plan of these files alone, which several tests compare with others."""
    return plan([*files, *ON_GPU], gpu_name="h100")


def tiny_parameters(vocabulary: int, width: int = 32, layers: int = 2) -> int:
    """nano's layout: tied embedding, q k v o, two feed-forward matrices of 4 width, two norms, norms of 16 for q, k."""
    block = 4 * width**2 + 8 * width**2 + 2 * width + 2 * 16
    return vocabulary * width + layers * block + width


def test_counts_and_bytes_are_exact(files: list[str]) -> None:
    found = plan([*files, *ON_GPU, "optim=adamw", "trainer.max_steps=5"], gpu_name="h100")
    vocabulary = (found.parameters - tiny_parameters(0)) // 32
    assert found.parameters == tiny_parameters(vocabulary) == found.learned
    assert vocabulary in range(257, 300)
    assert found.memory.parts["weights"] == 4 * found.parameters
    steps = 4 * (4 * 2 + 2 * 2 + 2 * 2 + 2 * 2 + 1 + 1)  # a count for each tensor, which the fused kernels keep
    assert abs(found.memory.parts["optimizer state"] - 8 * found.parameters) <= steps
    assert found.steps == 5
    assert found.tokens_per_step == 16 * 32


def test_a_gpu_holds_more_than_tensors(files: list[str]) -> None:
    newer, older = (plan([*files, *ON_GPU], gpu_name=name).memory.parts for name in ("h200", "a100"))
    tensors = sum(size for name, size in newer.items() if name not in (GAPS, "libraries"))
    assert newer["libraries"] == 128 * 2**20
    assert older["libraries"] == 24 * 2**20
    assert newer[GAPS] == older[GAPS] == round(0.06 * tensors)


def test_sharding_divides_what_it_divides(files: list[str]) -> None:
    whole = on_h100(*files).memory.parts
    shared = plan([*files, "trainer=fsdp", "trainer.devices=4", "trainer.precision=32-true"], gpu_name="h100")
    assert shared.ranks == 4
    assert shared.memory.parts["weights"] == pytest.approx(whole["weights"] / 4, rel=0.01)
    assert shared.memory.parts["optimizer state"] == pytest.approx(whole["optimizer state"] / 4, rel=0.01)
    assert shared.memory.parts["gathered weights"] > 0


def test_low_rank_learns_exactly_its_own(files: list[str]) -> None:
    found = plan([*files, *ON_GPU, "tuning=lora", "tuning.rank=2", "optim=adamw"], gpu_name="h100")
    assert found.learned == 2 * 4 * (2 * 32 + 32 * 2)
    assert found.memory.parts["optimizer state"] == pytest.approx(8 * found.learned, rel=0.01)


def test_flops_are_those_that_torch_counts(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.products.WORTH", 2**60)  # torch's counter knows no products of oneDNN
    from alignlab.models.config import GPTConfig
    from alignlab.models.gpt import GPT

    found = on_h100(*files)
    vocabulary = (found.parameters - tiny_parameters(0)) // 32
    model = GPT(
        GPTConfig(
            layers=2, width=32, heads=2, context=32, qk_norm=True, activation="relu2", vocabulary=vocabulary
        )
    )  # fmt: skip
    ids = torch.zeros(16, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.unembed(model(ids)).sum().backward()
    # per layer 4 T H Dh forward, backward twice that here and 2.5 times on a GPU, which computes the scores again
    attention = 2 * 0.5 * 4 * 32 * 32
    assert found.flops_per_token == pytest.approx(counter.get_total_flops() / ids.numel() + attention, rel=1e-6)
    assert found.flops_per_token == pytest.approx(found.formula_flops_per_token, rel=0.05)


def test_recomputing_trades_memory_for_time(files: list[str]) -> None:
    plain = on_h100(*files)
    again = plan([*files, *ON_GPU, "recompute_activations=true"], gpu_name="h100")
    assert again.memory.parts["activations"] < plain.memory.parts["activations"] / 2
    # per layer q, k, v, o and up (2 x 8 D^2) and attention (4 T D); down is not run again, its result is needed by none
    extra = 2 * (16 * 32**2 + 4 * 32 * 32)
    assert again.flops_per_token - plain.flops_per_token == pytest.approx(extra, rel=1e-6)
    assert again.largest_batch > plain.largest_batch


def test_gradients_lie_beside_the_next_activations_when_accumulating(files: list[str]) -> None:
    batch = ["datamodule.batch_size=2", "optim=sgd", "optim.momentum=0"]
    once = plan([*files, *ON_GPU, *batch], gpu_name="h100")
    twice = plan([*files, *ON_GPU, *batch, "trainer.accumulate_grad_batches=2"], gpu_name="h100")
    assert twice.tokens_per_step == 2 * once.tokens_per_step
    assert twice.memory.total >= once.memory.total


def test_the_largest_batch_fits_and_one_more_does_not(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Run] = []
    monkeypatch.setattr(
        "alignlab.plan.planning.advice",
        lambda run: seen.append(run) or [],  # type: ignore[func-returns-value]
    )
    found = plan([*files, *ON_GPU, "datamodule.batch_size=400000"], gpu_name="t4")
    assert not found.fits
    (run,) = seen
    assert run.measure(found.largest_batch).total <= found.device.memory < run.measure(found.largest_batch + 1).total


def test_an_eight_billion_model_on_64_gpus(corpus: Path) -> None:
    arguments = ["model=llama_8b", "trainer=fsdp", "trainer.devices=64", "data=files", f"data.train={corpus}"]
    found = plan([*arguments, "tokenizer=bytes", "datamodule.max_length=8192", "datamodule.batch_size=8"])
    assert found.ranks == 64
    vocabulary = (found.parameters - (8_030_261_248 - 2 * 4096 * 128_256)) // (2 * 4096)
    assert found.parameters == 8_030_261_248 - 2 * 4096 * (128_256 - vocabulary)
    assert found.memory.parts["weights"] == pytest.approx(4 * found.parameters / 64, rel=1e-3)
    assert found.device.name == "H100"
    assert not found.fits
    single = found.advice[0]
    assert single.options == ["recompute_activations=true"]
    assert single.total < found.memory.total
    assert any(change.fits for change in found.advice)


def test_the_page_and_the_values_say_the_same(
    files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["plan", *files, *ON_GPU, "--gpu", "rtx4090", "--count", "2"]
    main([*arguments, "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["ranks"] == 2
    assert values["memory"]["total"] == sum(size for name, size in values["memory"].items() if name != "total")
    monkeypatch.setenv("COLUMNS", "160")
    main(arguments)
    page = capsys.readouterr().out
    assert f"{values['parameters']:,}" in page
    assert "2 x RTX 4090" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optim.lrr=1"], "did you mean lr"),
        (["data=files", "data.train=nothing.txt"], "there is no nothing.txt"),
        (["--gpu", "h10"], "did you mean H100"),
        (["--count", "0"], "expected at least 1 GPU"),
        (["resume=src"], "resume= cannot be planned"),
    ],
)
def test_mistakes_are_those_of_training(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_plan_for_this_cpu_times_real_steps(files: list[str]) -> None:
    found: Plan = plan([*files, "trainer.precision=32-true", "trainer.max_steps=10"], tries=False)
    assert found.device.is_cpu
    assert found.step_seconds is not None
    assert 0 < found.step_seconds < 30
    assert found.seconds == pytest.approx(10 * found.step_seconds)
    assert "whole steps" in " ".join(found.notes)


def test_real_steps_say_what_lies_between_the_tensors(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.plan.probe.SECONDS", 0.1)
    modelled = plan(files, tries=False).memory.parts
    found = plan(files)
    assert any("real steps" in note for note in found.notes)
    beyond = {GAPS, "libraries"}
    assert {name: size for name, size in found.memory.parts.items() if name not in beyond} == {
        name: size for name, size in modelled.items() if name not in beyond
    }
    assert 0 < found.memory.parts["libraries"] <= PROCESS
    assert tried(files, step_seconds=0.1, patience=0.01) is None, "no time is not no memory"
    assert tried(files, step_seconds=16.0) is None, "three steps take too long"


def test_a_heap_grows_no_further_than_it_must() -> None:
    two = [(1, 1000), (2, 1000), (1, 0), (2, 0), (3, 1500)]
    # chunks of 1024 in rooms of 1120; a sliver behind the first keeps it from the end of the heap, 1200, so that the
    # third block, a chunk of 1520 with 96 to align it, is put there
    assert heap_size(two, 1) == 1200 + 1520 + 96
    unheld = Heap(held=0)  # the slivers go at once: the two rooms are one when the third comes
    for block, size in two:
        if size:
            unheld.take(block, size)
        else:
            unheld.give_back(block)
    assert unheld.furthest == 1072 + 1120
    heap = Heap(held=0)
    heap.take(1, 10_000)
    heap.give_back(1)
    heap.take(2, 10_000)
    assert heap.furthest < 10_300, "a freed block at the end is taken again"


def test_the_peak_of_a_book_is_its_worst_moment() -> None:
    book = Book(
        entries=[Entry(1, 10), Entry(2, 5), Entry(2, 0), Entry(3, 7)], parts={1: "weights", 2: "batch", 3: "gradients"}
    )
    assert {name: size for name, size in book.peak().items() if size} == {"weights": 10, "gradients": 7}
    assert {name: size for name, size in book.peak({"weights": 0.5, "gradients": 0.1}).items() if size} == {
        "weights": 5,
        "batch": 5,
    }


def test_the_largest_is_found_on_a_bent_line() -> None:
    assert largest(lambda rows: max(500, 100 + 30 * rows), 4, 1000) == 30
    assert largest(lambda rows: 100 * rows, 4, 50) == 0


def test_a_gpu_has_a_name() -> None:
    assert gpu("h100").name == "H100"
    assert gpu("rtx-4090").name == "RTX 4090"
    with pytest.raises(UserError, match="accepted: H200"):
        gpu("abacus")


def test_a_context_that_is_too_long_is_advised_down(files: list[str]) -> None:
    long = [*files, *ON_GPU, "model.context=2048", "datamodule.batch_size=4000"]
    found = plan(long, gpu_name="t4")
    assert not found.fits
    (shorter,) = [change for change in found.advice if change.options[0].startswith("datamodule.max_length=")]
    assert shorter.fits
    again = plan([*long, *shorter.options], gpu_name="t4")
    assert again.memory.total == shorter.total
    assert again.fits
