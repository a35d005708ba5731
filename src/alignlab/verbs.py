"""What each verb of `alignlab` does with its options. Heavy imports wait until a verb needs them."""

import argparse
import sys

from alignlab.errors import UserError


def _device(name: str | None) -> str:
    """The device to compute on, the GPU where there is one. Raises UserError for one that is not here."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device is {name}, which torch cannot use here; expected cpu, cuda or mps") from error
    return name


def explain(options: argparse.Namespace) -> None:
    """Writes the page, and says where and what the loss is."""
    from alignlab.explaining import explain as write

    text = sys.stdin.read() if options.text == "-" else options.text
    done = write(
        options.model, text=text, row=options.row, out=options.out, numbers=options.json, target=options.target,
        top_k=options.top_k, max_tokens=options.max_tokens, device=options.device,
    )  # fmt: skip
    print("\n".join(done))


def chat(options: argparse.Namespace) -> None:
    """Holds a conversation in the terminal."""
    from alignlab.chatting import chat as hold
    from alignlab.generate import Sampling

    names = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed")
    sampling = Sampling(**{name: getattr(options, name) for name in names})
    device = _device(options.device)
    hold(options.model, device=device, sampling=sampling, system=options.system)


def plan(options: argparse.Namespace) -> None:
    """Prints what a run would take."""
    import json

    from alignlab.plan.arguments import composed

    composed(options.overrides)  # a mistake is told before torch is imported
    from rich.console import Console

    from alignlab.plan.page import show, values
    from alignlab.plan.planning import plan as planned

    found = planned(
        options.overrides, gpu_name=options.gpu, count=options.count, utilization=options.mfu, tries=not options.quick
    )
    if options.json:
        print(json.dumps(values(found), indent=1))
    else:
        show(found, Console())


def report(options: argparse.Namespace) -> None:
    """Prints the tables, and which files were written."""
    from pathlib import Path

    from alignlab.commandline.checking import existing
    from alignlab.sweep.report import report as write

    folders = [existing("DIR", folder) for folder in options.folders]
    written = write(folders, Path(options.output) if options.output else None)
    print("\n" + ", ".join(map(str, written)))


def predict(options: argparse.Namespace) -> None:
    """Writes an answer for each row of a file, in its order."""
    import json
    from pathlib import Path

    from alignlab.callbacks.predictions import write
    from alignlab.commandline.checking import existing
    from alignlab.model import load
    from alignlab.rows.given import raw_rows

    source = existing("--input", options.input)
    device = _device(options.device)
    model = load(options.model, device=device)
    answers = model.predict(raw_rows(source, model.columns), batch_size=options.batch_size)
    if not answers:
        print(f"{source} holds no row", file=sys.stderr)
    if answers and all("error" in line for line in answers):
        raise UserError(f"no row of {source} can be answered; row 0: {answers[0]['error']}")
    if options.output == "-":
        for line in answers:
            print(json.dumps(line, ensure_ascii=False))
        return
    write(Path(options.output), answers)
    wrong = sum("error" in line for line in answers)
    print(f"{options.output}: {len(answers)} rows" + (f", {wrong} of them with an error" if wrong else ""))


def test(options: argparse.Namespace) -> None:
    """Prints the metrics of a test split."""
    from pathlib import Path

    from alignlab.answers import measure
    from alignlab.logs import hush

    hush()
    output = Path(options.output) if options.output else None
    for name, value in sorted(measure(options.model, options.overrides, output=output).items()):
        print(f"{name} {value:z.4f}")


def compare(options: argparse.Namespace) -> None:
    """Prints how often each of two models is preferred."""
    from pathlib import Path

    from alignlab.callbacks.predictions import write
    from alignlab.commandline.checking import existing
    from alignlab.compare import compare as judge

    device = _device(options.device)
    done = judge(
        options.run_a, options.run_b, data=existing("--data", options.data), judge=options.judge,
        samples=options.samples, max_new_tokens=options.max_new_tokens, temperature=options.temperature,
        seed=options.seed, limit=options.rows, device=device,
    )  # fmt: skip
    if options.output is not None:
        write(Path(options.output), done.rows)
    print(f"A  {options.run_a}  mean reward {done.reward_a:.4f}")
    print(f"B  {options.run_b}  mean reward {done.reward_b:.4f}")
    print(f"{len(done.rows)} prompts: A wins {done.wins_a}, ties {done.ties}, B wins {done.wins_b}")
    print(f"win-rate of B, ties as halves: {done.rate:.3f} (95 % interval {done.low:.3f} to {done.high:.3f})")


def export(options: argparse.Namespace) -> None:
    """Writes the folder and says how exactly it reads back."""
    from alignlab.export import export as write

    as_adapter = False if options.merge else True if options.adapter else None
    done = write(options.model, options.folder, as_adapter=as_adapter, dtype=options.dtype)
    kind = "peft adapter" if done.is_adapter else "Hugging Face folder"
    print(f"{done.folder}: a {kind} of {done.bytes / 2**20:,.1f} MB; read back, logits differ by {done.difference:.1g}")
    if done.is_adapter:
        print(f"its base is {done.base}; --merge writes a whole model instead")


def generate(options: argparse.Namespace) -> None:
    """Prints each continuation after its prompt; a single one as it is written."""
    from alignlab.generate import Sampling
    from alignlab.model import load

    prompts = [line.rstrip("\n") for line in sys.stdin] if options.prompts == ["-"] else options.prompts
    if not prompts:
        raise UserError("standard input holds no prompt; expected one on each line")
    device = _device(options.device)
    model = load(options.model, device=device)
    names = (
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "samples",
        "beams",
        "seed",
    )
    sampling = {name: getattr(options, name) for name in names}
    if options.beams > 1:
        sampling["temperature"] = 0.0
    Sampling(**sampling)  # what is wrong is told before anything is printed
    room = model.gpt.config.context - 1 - max(len(model.tokenizer.encode(prompt)) for prompt in prompts)
    if room < options.max_new_tokens:
        context = model.gpt.config.context
        print(f"prompt and continuation share a context of {context} tokens: shorter than asked", file=sys.stderr)
    is_single = len(prompts) * options.samples == 1 and options.beams == 1 and not options.stop
    if is_single:
        print(prompts[0], end="", flush=True)
        model.generate(prompts, on_text=lambda _, piece: print(piece, end="", flush=True), **sampling)
        print()
        return
    texts = model.generate(prompts, stop=tuple(options.stop), **sampling)
    for number, text in enumerate(texts):
        print(f"{prompts[number // options.samples]}{text}\n{'-' * 40}")
