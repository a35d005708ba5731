"""Law 11 for words: every command of README.md and docs/ composes, and those that train on files do so, shortened."""

import csv
import json
import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from alignlab.cli import main, read
from alignlab.commandline import check, prepare, trusted
from alignlab.folders import resumed
from alignlab.run import execute
from tests.conftest import ROOT, TINY, composed

MODEL = ("model.layers=2", "model.width=32", "model.heads=2", "model.context=256")
SMALL = ("trainer=debug", "callbacks=none", "logger=none", "datamodule.batch_size=2")
# of tasks that write texts at each validation
SHORT = ("chat", "generative_qa", "translation", "summarization", "grpo")
RUNS = {"RUN": "pretrain", "runs/my_gpt": "pretrain", "runs/my_sorter": "classification"}
# composed only: several ranks, which tests/test_parallel.py starts, some of them on machines that are not here
ELSEWHERE = ("trainer=ddp", "trainer=fsdp")
# what is downloaded or takes long to make, and what stands for it: the same options and columns on a few rows
STAND_INS = {
    "init_from=hub:HuggingFaceTB/SmolLM2-135M-Instruct": ["init_from=RUN"],
    "data=pydocs_chat": ["data=files", "data.train=talks.jsonl"],
    "data=pydocs_pairs": ["data=files", "data.train=preferences.jsonl"],
    "data=pydocs_qa": ["data=files", "data.train=questions.csv"],
    "data=pydocs_summaries": ["data=files", "data.train=summaries.jsonl"],
    "data=gsm8k": ["data=files", "data.train=prompts.csv"],
    "monitor=val/exact": ["monitor=val/exact", "trainer.limit_val_batches=1.0"],  # the first have no row to answer
    "model=small": [],  # as wide as all models here
    "compile=true": [],  # half a minute of compiling; tests/test_laws.py holds that it changes nothing
}


def lines_of(document: Path) -> list[str]:
    """The lines of code of a document that a terminal takes, without comments."""
    text = document.read_text(encoding="utf-8")
    blocks = [block for kind, block in re.findall(r"^```(.*?)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if not kind]
    lines = [re.split(r"\s+#", line)[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(python|pip|alignlab|tensorboard|torchrun|srun|eval) ", line)]


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = sorted({line for document in DOCUMENTS for line in lines_of(document)})
TRAIN = [line.split("train.py", 1)[1].strip() for line in LINES if "train.py" in line and "&&" not in line]
TRAIN = sorted({line for line in TRAIN if not line.startswith(("--", "-sc"))})
VERBS = [shlex.split(line)[1:] for line in LINES if line.startswith("alignlab")]


def write(path: Path, rows: list[dict]) -> None:
    """Rows as a file of the format that its ending says."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer = csv.DictWriter(file, [*rows[0]], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_all(folder: Path, corpus: Path) -> None:
    """What the documents call messages.csv, spans.jsonl and so on."""
    several = range(40)
    (folder / "my_rewards.py").write_text(
        "def short(prompts, completions, references):\n    return [float(len(text) < 40) for text in completions]\n"
    )
    for name in ("book.txt", "mine.txt"):
        (folder / name).write_bytes(corpus.read_bytes())
    (folder / "train.en").write_text("".join(f"number {n}\n" for n in several), encoding="utf-8")
    (folder / "train.zh").write_text("".join(f"数字 {n}\n" for n in several), encoding="utf-8")
    said = [(f"{'late' if n % 2 else 'thanks'} {n}", ("bill", "praise")[n % 2]) for n in several]
    asked = [{"question": f"How late is {n}?", "answer": f"{n} days."} for n in several]
    tables: dict[str, list[dict]] = {
        "messages.csv": [{"text": text, "label": label} for text, label in said],
        "tickets.csv": [{"body": text, "queue": label} for text, label in said],
        "new.csv": [{"text": text, "body": text} for text, _ in said],
        "questions.csv": asked,
        "answers.csv": asked,
        "faq.csv": asked,
        "pairs.tsv": [{"en": f"number {n}", "zh": f"数字 {n}"} for n in several],
        "prompts.csv": [{"prompt": f"{n}+1=", "reference": str(n + 1)} for n in several],
        "summaries.jsonl": [
            {"document": f"It rained {n} days. It was wet.", "summary": f"{n} wet days"} for n in several
        ],
        "preferences.jsonl": [{"prompt": f"Hello {n}", "chosen": "Good day!", "rejected": "What?"} for n in several],
        "spans.jsonl": [
            {
                "context": f"It takes {n} days.",
                "question": "How long?",
                "answers": [{"text": f"{n}", "answer_start": 9}],
            }
            for n in several
        ],
        "talks.jsonl": [
            {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Good day!"}]}
            for n in several
        ],
    }
    tables |= dict.fromkeys(("few.csv", "many.csv", "other.csv"), tables["messages.csv"])
    for name, rows in tables.items():
        write(folder / name, rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A folder with what the commands name: runs and files."""
    from alignlab.launch import freeze

    folder = tmp_path_factory.mktemp("readme")
    write_all(folder, corpus)
    for name, task in RUNS.items():
        rows = corpus if task == "pretrain" else folder / "messages.csv"
        config = composed(f"task={task}", "data=files", f"data.train={rows}", *TINY, *MODEL, "trainer=debug")
        execute(config, folder / name)
        freeze(config, folder / name, [])
    return folder


def test_there_are_commands() -> None:
    assert len(TRAIN) >= 30
    assert len(VERBS) >= 8


def shortened(overrides: tuple[str, ...]) -> list[str]:
    """The same run in two steps of a tiny model."""
    task = next((one.partition("=")[2] for one in overrides if one.startswith("task=")), "pretrain")
    given = [one for one in overrides if not one.startswith(("trainer", "hydra.", "datamodule.batch_size"))]
    given = [own for one in given for own in STAND_INS.get(one, [one])]
    overrides = (*(own for one in overrides for own in STAND_INS.get(one, [one])),)
    small = [*SMALL, *(() if any(one.startswith("init_from=") for one in overrides) else MODEL)]
    if "tokenizer=" not in " ".join(overrides) and len(small) > len(SMALL):
        small += ["tokenizer=bytes"]
    if task in SHORT:
        small += ["datamodule.generate_rows=2", "task.max_new_tokens=4"]
    if task == "pretrain" and not any(one.startswith("data=") for one in overrides):
        small += ["data=files", "data.train=book.txt"]  # the embedded corpus takes a while to read
    if task == "grpo" and not any(one.startswith("data=") for one in overrides):
        small += ["data=arithmetic"]
    typed = {one.partition("=")[0] for one in given}
    return [*(one for one in small if one.partition("=")[0] not in typed), *given]


@pytest.mark.parametrize("line", TRAIN)
def test_training_commands(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    arguments = shlex.split(line)
    if (run := resumed(prepare(arguments)) if "resume=RUN" in arguments else None) is not None:
        assert run[1] == Path("RUN")
        return
    prepared = prepare(arguments)
    if any(argument.startswith(("sweep=optuna", "resume=")) for argument in arguments):
        return  # tests/sweep/test_docs.py runs them, and every other sweep as such; here is what its jobs do
    arguments = [argument for argument in arguments if not argument.startswith("sweep")]
    prepared = [argument for argument in prepared if not argument.startswith("sweep")]
    swept = [argument.split("=", 1) for argument in arguments if argument != "-m"]
    is_sweep = "-m" in prepared
    choices = [[f"{name}={one}" for one in (value.split(",") if is_sweep else [value])] for name, value in swept]
    for number, overrides in enumerate(product(*choices)):
        plain = [one for one in overrides if not one.startswith("hydra.")]
        check(composed(*plain), trusted(plain))
        typed = " ".join(overrides)
        if number or any(name in typed for name in ELSEWHERE):
            continue
        folder = place / f"run-{abs(hash(tuple(overrides)))}"
        if folder.exists():
            continue  # the same job as of another line
        untimed = [one for one in plain if not one.startswith(("trainer.max_", "datamodule.batch_size"))]
        untimed = [own for one in untimed for own in STAND_INS.get(one, [one])]
        assert execute(composed(*shortened(overrides)), folder, command_line=untimed)["step"] == 2


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_verbs(arguments: list[str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(read(arguments).act)
    if arguments[0] in ("chat", "report"):
        return  # tests/test_chatting.py and tests/sweep/test_docs.py run them
    monkeypatch.chdir(place)
    if arguments[0] == "explain":
        arguments = [*arguments, *([] if "--out" in arguments else ["--out", "explained.html"])]
        arguments = [one if one != "RUN" or "--target" not in arguments else "runs/my_sorter" for one in arguments]
    if arguments[0] == "plan":
        monkeypatch.setattr("alignlab.plan.probe.SECONDS", 0.1)
        monkeypatch.setattr("alignlab.plan.planning.advice", lambda run: [])  # a dozen plans more; tests/plan has it
        rows = [] if any(one.startswith("data=") for one in arguments) else ["data=files", "data.train=book.txt"]
        given = [*rows, "tokenizer=bytes", *(["datamodule.max_length=64"] if rows else [])]
        arguments = [own for one in arguments for own in STAND_INS.get(one, [one])]
        arguments = ["plan", "--quick", *given, *arguments[1:]]
    if arguments[0] == "predict":
        arguments = [one if one != "RUN" else "runs/my_sorter" for one in arguments]
    if arguments[0] == "generate":
        arguments = [*arguments, "--max-new-tokens", "3"]
    arguments = [str(tmp_path / "model") if one in ("FOLDER", "my_model") else one for one in arguments]
    main(arguments)
    if arguments[0] == "predict":
        written = Path(arguments[arguments.index("--output") + 1]).read_text(encoding="utf-8").splitlines()
        assert len(written) == 40
        assert all(json.loads(line)["output"] in ("bill", "praise") for line in written)


def test_the_exported_sorter_opens_in_transformers(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (line,) = [line for line in lines_of(ROOT / "README.md") if line.startswith("python -c")]
    monkeypatch.chdir(place)
    main(["export", "runs/my_sorter", str(tmp_path / "my_model")])
    monkeypatch.chdir(tmp_path)
    exec(shlex.split(line)[2], {})
    assert re.search(r"'label': '(bill|praise)'", capsys.readouterr().out)


def test_both_languages_hold_the_same_commands() -> None:
    assert lines_of(ROOT / "README.zh.md") == lines_of(ROOT / "README.md")


def test_documents_show_files_as_they_are() -> None:
    shown = [
        (document.name, name, content)
        for document in DOCUMENTS
        for name, content in re.findall(r"^```\w+ file=(\S+)\n(.*?)^```", document.read_text("utf-8"), re.M | re.S)
    ]
    assert len(shown) >= 4
    for document, name, content in shown:
        assert (ROOT / name).read_text(encoding="utf-8").rstrip("\n") == content.rstrip("\n"), f"{name} in {document}"


def test_links_lead_somewhere() -> None:
    for document in [*DOCUMENTS, ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{target} in {document.name}"
