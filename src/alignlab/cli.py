"""`alignlab VERB ...`: what is done around training."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from alignlab import __version__
from alignlab.errors import UserError, guard, mistaken

PREDICT = "Answer each row of a file with a trained model."
EXPLAIN = "Show what a model makes of one text: one page, offline, with loss, next tokens, layers and attention."
REPORT = "Rank runs, with means over seeds and the best of each task; writes report.csv, report.png and curves.png."
PLAN = "Say what a run would take of memory and time, without training; options as for train.py."
TEST = "Measure a trained model, or one that never was, on a test split; options as for train.py."
COMPARE = "Let two models answer the same prompts; a reward model's run or a reward function says which is better."
EXPORT = "Write a trained model for others; a run with tuning=lora as an adapter unless --merge."


class Parser(argparse.ArgumentParser):
    """Tells a mistake as train.py does: what was got, what is accepted."""

    def error(self, message: str) -> NoReturn:
        """Ends with at most three lines."""
        wrong = re.fullmatch(r"argument VERB: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong is not None:
            raise mistaken(f"{wrong[1]} is no verb", wrong[1], wrong[2].replace("'", "").split(", "))
        raise UserError(f"{message}\nall options: {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 and a short message for a mistake."""
    with guard():
        parsed = read(arguments)
        try:
            parsed.act(parsed)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read, such as `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None


def read(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The verb's options; train.py's may stand before and after its own (argparse alone takes them before only)."""
    whole = parser()
    parsed, rest = whole.parse_known_args(arguments)
    if rest and ("overrides" not in vars(parsed) or not all(_is_override(word) for word in rest)):
        whole.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def parser() -> argparse.ArgumentParser:
    """Every verb and its options."""
    top = Parser(prog="alignlab", description="What is done around training; train.py trains.")
    top.add_argument("--version", action="version", version=f"alignlab {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("generate", help="continue a prompt", description="Continue prompts with a trained model.")
    verb.add_argument("model", metavar="RUN", help="a run folder, a checkpoint, a Hugging Face folder or hub:org/name")
    verb.add_argument("prompts", metavar="PROMPT", nargs="+", help="texts to continue; - reads one a line from stdin")
    verb.add_argument("--max-new-tokens", type=int, default=200, help="tokens at most (default: %(default)s)")
    verb.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: %(default)s)")
    verb.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest; 0: off")
    verb.add_argument("--top-p", type=float, default=0.95, help="draw among the likeliest that sum to p; 1: off")
    verb.add_argument("--min-p", type=float, default=0.0, help="share of the likeliest one's probability; 0: off")
    verb.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat less; 1: off")
    verb.add_argument("--samples", type=int, default=1, help="continuations of each prompt")
    verb.add_argument("--stop", action="append", default=[], help="a text that ends a continuation; may be repeated")
    verb.add_argument("--beams", type=int, default=1, help="beam search with so many beams, at temperature 0")
    verb.add_argument("--seed", type=int, default=None, help="draw the same again")
    verb.add_argument("--device", default=None, help="cpu, cuda ... (default: cuda where there is one)")
    verb.set_defaults(act=generate)
    verb = verbs.add_parser("chat", help="talk with a model", description="Talk with a model; replies stream.")
    verb.add_argument("model", metavar="RUN", help="a run folder, a checkpoint, a Hugging Face folder or hub:org/name")
    verb.add_argument("--system", default=None, help="what the system says first")
    verb.add_argument("--max-new-tokens", type=int, default=256, help="of a reply at most (default: %(default)s)")
    verb.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: %(default)s)")
    verb.add_argument("--top-p", type=float, default=0.95, help="draw among the likeliest that sum to p; 1: off")
    verb.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat less; 1: off")
    verb.add_argument("--seed", type=int, default=None, help="draw the same again")
    verb.add_argument("--device", default=None, help="cpu, cuda ... (default: cuda where there is one)")
    verb.set_defaults(act=chat)
    verb = verbs.add_parser("export", help="write a Hugging Face folder or a peft adapter", description=EXPORT)
    verb.add_argument("model", metavar="RUN", help="a run folder, a checkpoint, a Hugging Face folder or hub:org/name")
    verb.add_argument("folder", metavar="DIR", help="the folder to write; new or empty")
    how = verb.add_mutually_exclusive_group()
    how.add_argument("--merge", action="store_true", help="low-rank updates become part of a whole model")
    how.add_argument("--adapter", action="store_true", help="only what was learned, as a folder that peft loads")
    verb.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], help="of a whole model's weights (default: fp32)")
    verb.set_defaults(act=export)
    verb = verbs.add_parser("predict", help="answer the rows of a file", description=PREDICT)
    verb.add_argument("model", metavar="RUN", help="a run folder or a checkpoint")
    verb.add_argument("--input", required=True, metavar="FILE", help="any format of data=files")
    verb.add_argument("--output", default="-", metavar="FILE", help="one JSON object a line (default: standard output)")
    verb.add_argument("--batch-size", type=int, default=None, help="rows at a time (default: that of training)")
    verb.add_argument("--device", default=None, help="cpu, cuda ... (default: cuda where there is one)")
    verb.set_defaults(act=predict)
    verb = verbs.add_parser("test", help="measure on a test split", description=TEST)
    verb.add_argument("model", metavar="RUN", help="a run folder, a checkpoint, or a Hugging Face folder with task=")
    verb.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="such as data=files data.test=FILE")
    verb.add_argument("--output", default=None, metavar="FILE", help="write every row's answer here")
    verb.set_defaults(act=test)
    verb = verbs.add_parser("compare", help="whose answers are better", description=COMPARE)
    verb.add_argument(
        "run_a", metavar="RUN_A", help="a run folder, a checkpoint, a Hugging Face folder or hub:org/name"
    )
    verb.add_argument("run_b", metavar="RUN_B", help="the other one")
    verb.add_argument("--data", required=True, metavar="FILE", help="rows with a prompt and, if judged by, a reference")
    verb.add_argument("--judge", required=True, help="a run of task=reward, or a dotted name: alignlab.rewards.Exact")
    verb.add_argument("--samples", type=int, nargs="+", default=[1], help="best of so many draws; two: of A and of B")
    verb.add_argument("--max-new-tokens", type=int, default=128, help="of an answer at most (default: %(default)s)")
    verb.add_argument("--temperature", type=float, default=None, help="default: 0 for a single draw, 1 for several")
    verb.add_argument("--seed", type=int, default=0, help="of the draws")
    verb.add_argument("--rows", type=int, default=None, help="prompts at most")
    verb.add_argument("--output", default=None, metavar="FILE", help="write every answer and its reward here")
    verb.add_argument("--device", default=None, help="cpu, cuda ... (default: cuda where there is one)")
    verb.set_defaults(act=compare)
    verb = verbs.add_parser("explain", help="what a model makes of one text, as a page", description=EXPLAIN)
    verb.add_argument("model", metavar="RUN", help="a run folder, a checkpoint, a Hugging Face folder or hub:org/name")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", help="what is read; - reads standard input")
    what.add_argument("--row", metavar="JSON", help='a row in the columns of the run\'s task: {"question": ...}')
    verb.add_argument("--out", default="explain.html", metavar="FILE", help="the page (default: %(default)s)")
    verb.add_argument("--json", action="store_true", help="the numbers too, in FILE with the ending .json")
    verb.add_argument("--target", default=None, help="what is attributed to the tokens: a class, a token, none ...")
    verb.add_argument("--top-k", type=int, default=5, help="next tokens shown (default: %(default)s)")
    verb.add_argument("--max-tokens", type=int, default=256, help="tokens read at most (default: %(default)s)")
    verb.add_argument("--device", default=None, help="cpu, cuda ... (default: cuda where there is one)")
    verb.set_defaults(act=explain)
    verb = verbs.add_parser("report", help="runs side by side", description=REPORT)
    verb.add_argument("folders", metavar="DIR", nargs="+", help="a sweep, runs/TASK, runs: whatever holds runs")
    verb.add_argument("--output", default=None, metavar="DIR", help="where the files go (default: the first DIR)")
    verb.set_defaults(act=report)
    verb = verbs.add_parser("plan", help="what a run would take", description=PLAN)
    verb.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="such as model=llama_8b trainer=fsdp")
    verb.add_argument("--gpu", default=None, metavar="NAME", help="such as h100 (default: what the run would use here)")
    verb.add_argument("--count", type=int, default=None, help="of GPUs (default: what trainer.devices says)")
    verb.add_argument(
        "--mfu", type=float, default=0.4, help="share of a GPU's peak that is used (default: %(default)s)"
    )
    verb.add_argument("--quick", action="store_true", help="model the CPU's allocator: no real steps show its gaps")
    verb.add_argument("--json", action="store_true", help="plain values in place of tables")
    verb.set_defaults(act=plan)
    return top


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


if __name__ == "__main__":
    main()
