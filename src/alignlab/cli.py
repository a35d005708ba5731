"""`alignlab VERB ...`: what is done around training."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from alignlab import __version__, verbs
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
    added = top.add_subparsers(required=True, metavar="VERB")
    verb = added.add_parser("generate", help="continue a prompt", description="Continue prompts with a trained model.")
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
    verb.set_defaults(act=verbs.generate)
    verb = added.add_parser("chat", help="talk with a model", description="Talk with a model; replies stream.")
    verb.add_argument("model", metavar="RUN", help="a run folder, a checkpoint, a Hugging Face folder or hub:org/name")
    verb.add_argument("--system", default=None, help="what the system says first")
    verb.add_argument("--max-new-tokens", type=int, default=256, help="of a reply at most (default: %(default)s)")
    verb.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: %(default)s)")
    verb.add_argument("--top-p", type=float, default=0.95, help="draw among the likeliest that sum to p; 1: off")
    verb.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat less; 1: off")
    verb.add_argument("--seed", type=int, default=None, help="draw the same again")
    verb.add_argument("--device", default=None, help="cpu, cuda ... (default: cuda where there is one)")
    verb.set_defaults(act=verbs.chat)
    verb = added.add_parser("export", help="write a Hugging Face folder or a peft adapter", description=EXPORT)
    verb.add_argument("model", metavar="RUN", help="a run folder, a checkpoint, a Hugging Face folder or hub:org/name")
    verb.add_argument("folder", metavar="DIR", help="the folder to write; new or empty")
    how = verb.add_mutually_exclusive_group()
    how.add_argument("--merge", action="store_true", help="low-rank updates become part of a whole model")
    how.add_argument("--adapter", action="store_true", help="only what was learned, as a folder that peft loads")
    verb.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], help="of a whole model's weights (default: fp32)")
    verb.set_defaults(act=verbs.export)
    verb = added.add_parser("predict", help="answer the rows of a file", description=PREDICT)
    verb.add_argument("model", metavar="RUN", help="a run folder or a checkpoint")
    verb.add_argument("--input", required=True, metavar="FILE", help="any format of data=files")
    verb.add_argument("--output", default="-", metavar="FILE", help="one JSON object a line (default: standard output)")
    verb.add_argument("--batch-size", type=int, default=None, help="rows at a time (default: that of training)")
    verb.add_argument("--device", default=None, help="cpu, cuda ... (default: cuda where there is one)")
    verb.set_defaults(act=verbs.predict)
    verb = added.add_parser("test", help="measure on a test split", description=TEST)
    verb.add_argument("model", metavar="RUN", help="a run folder, a checkpoint, or a Hugging Face folder with task=")
    verb.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="such as data=files data.test=FILE")
    verb.add_argument("--output", default=None, metavar="FILE", help="write every row's answer here")
    verb.set_defaults(act=verbs.test)
    verb = added.add_parser("compare", help="whose answers are better", description=COMPARE)
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
    verb.set_defaults(act=verbs.compare)
    verb = added.add_parser("explain", help="what a model makes of one text, as a page", description=EXPLAIN)
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
    verb.set_defaults(act=verbs.explain)
    verb = added.add_parser("report", help="runs side by side", description=REPORT)
    verb.add_argument("folders", metavar="DIR", nargs="+", help="a sweep, runs/TASK, runs: whatever holds runs")
    verb.add_argument("--output", default=None, metavar="DIR", help="where the files go (default: the first DIR)")
    verb.set_defaults(act=verbs.report)
    verb = added.add_parser("plan", help="what a run would take", description=PLAN)
    verb.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="such as model=llama_8b trainer=fsdp")
    verb.add_argument("--gpu", default=None, metavar="NAME", help="such as h100 (default: what the run would use here)")
    verb.add_argument("--count", type=int, default=None, help="of GPUs (default: what trainer.devices says)")
    verb.add_argument(
        "--mfu", type=float, default=0.4, help="share of a GPU's peak that is used (default: %(default)s)"
    )
    verb.add_argument("--quick", action="store_true", help="model the CPU's allocator: no real steps show its gaps")
    verb.add_argument("--json", action="store_true", help="plain values in place of tables")
    verb.set_defaults(act=verbs.plan)
    return top


if __name__ == "__main__":
    main()
