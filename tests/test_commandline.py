"""Laws of the command line: what is typed arrives byte for byte, each mistake is told in three lines without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from alignlab.commandline import UserError, check, fail, guard, prepare, trusted
from alignlab.commandline.options import Options
from alignlab.commandline.tree import Tree, conf_folder

FILES = {
    "config.yaml": """
        defaults:
          - _self_
          - data: files  # where rows come from
          - model: nano
          - optim: adamw
          - task: pretrain
          - experiment: null
        seed: 0  # of weights and order
        eval_every: null  # optimizer steps
        init_from: null
        resume: null
        trust: []
        callbacks:
          samples:
            _target_: shapes.Files
            train: x
        trainer:
          _target_: lightning.pytorch.Trainer
          max_steps: 10
    """,
    "data/files.yaml": "_target_: shapes.Files\ntrain: ???\n",
    "data/pydocs.yaml": "_target_: shapes.Files\ntrain: pydocs\n",
    "data/multi30k.yaml": "_target_: shapes.Files\ntrain: multi30k\n",
    "model/nano.yaml": "_target_: alignlab.models.config.GPTConfig\nlayers: 2  # blocks\nwidth: 64\nheads: 2\n",
    "model/tiny.yaml": "_target_: alignlab.models.config.GPTConfig\nlayers: 4\nwidth: 64\nheads: 2\n",
    "optim/adamw.yaml": "_target_: shapes.AdamW\n",
    "optim/sgd.yaml": "_target_: shapes.nested.SGD\n",
    "task/pretrain.yaml": "# @package _global_\ntask: {}\n",
    "task/translation.yaml": "# @package _global_\ndefaults:\n  - override /data: multi30k\n  - _self_\ntask: {}\n",
    "experiment/docs.yaml": (
        "# @package _global_\ndefaults:\n  - override /task: translation\n  - override /data: pydocs\n  - _self_\n"
    ),
}
SHAPES = """
    from shapes.nested import SGD
    from shapes.nested import *
    import os
    from dataclasses import dataclass, field
    from pathlib import Path
    from typing import Literal, Optional, Union
    from alignlab.types import PositiveInt, BelowOne
    raise RuntimeError("a module of a _target_ was imported")

    Name = Union[str, "Path"]

    @dataclass(frozen=True, kw_only=True)
    class Files:
        train: str | list[str]
        val: Optional[Name] = None
        columns: dict[str, str | int] = field(default_factory=dict)
        workers: PositiveInt = 1
        betas: tuple[float, float] = (0.9, 0.99)
        seen: int = field(default=0, init=False)

    @dataclass(frozen=True, kw_only=True)
    class AdamW(Base):
        momentum: BelowOne = 0.9
        schedule: Literal["cosine", "linear"] = "cosine"
        fused: bool = False
"""
NESTED = """
    import torch
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Base:
        lr: float = 1e-3

    class SGD(Base):
        pass

    class Inherits(torch.optim.SGD):
        def __init__(self, model, *, nesterov: bool = False, **more): ...
"""
NASTY = [
    "数据/训练 集.txt", "a b.txt", "a  b.txt", "a=b.txt", "a:b=c.txt", "[1].txt", "x[1]y.txt", "(copy).txt", "a(1).txt",
    "{a}.txt", "{a:b}.txt", "it's.txt", 'say "hi".txt', "'\"both\"'.txt", "back\\slash é.txt", "end\\ é\\", "a\\'b.txt",
    "#1.txt", "a&b;c.txt", "~x y.txt", "!é.txt", "<a>.txt", "a^b`c.txt", "日本語", "tab\té.txt", "c:\\数据\\a.txt",
    "*/数据?.txt", "emoji😀.txt", "100% é.txt", "a=[1,2", "Ünïcode=(x].txt",
]  # fmt: skip
LEGAL = [
    "1e-3", "[1,2]", "{a: 1, b: [2, 3]}", "'a b'", '"a=b"', "${seed}", "null", "true", "a/b.txt", "a-b_c.txt", "''",
    "a b.txt", "c:/x.txt", "a\\=b", "[]", "int('3')", "data/*.txt",
]  # fmt: skip


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        lines = text.splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(line[indent:] for line in lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def conf(tmp_path_factory):
    """The small conf folder; `shapes`, the package its targets name, is found but cannot be imported."""
    folder = tmp_path_factory.mktemp("tree")
    _write(folder / "conf", FILES)
    _write(folder / "package" / "shapes", {"__init__.py": SHAPES, "nested.py": NESTED})
    sys.path.insert(0, str(folder / "package"))
    yield folder / "conf"
    sys.path.remove(str(folder / "package"))


@pytest.fixture
def composed(conf, tmp_path, monkeypatch):
    """Composes what a user types, as train.py does, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def compose_typed(*typed: str):
        with initialize_config_dir(str(conf), version_base="1.3"):
            return compose("config", prepare(list(typed), conf))

    return compose_typed


@pytest.fixture
def mistake(composed):
    """The error text of what a user types."""

    def told(*typed: str, trust=("shapes",)) -> str:
        with pytest.raises(UserError) as caught:
            check(composed(*typed), trust)
        return str(caught.value)

    return told


def test_nasty_names_arrive_byte_for_byte(composed):
    config = composed("data.train=x", *(f"data.columns.n{number}={name}" for number, name in enumerate(NASTY)))
    assert list(config.data.columns.values()) == NASTY


def test_nasty_names_arrive_byte_for_byte_in_a_list(composed):
    plain = [name for name in NASTY if not set("[](){},'\"") & set(name)]
    assert composed(f"data.train=[{','.join(plain)}]").data.train == plain
    assert composed("data.train=[x[1].txt,(copy) é.txt]").data.train == ["x[1].txt", "(copy) é.txt"]
    assert composed("data.train=['a,b.txt', 数.txt]").data.train == ["a,b.txt", "数.txt"]
    assert composed("data.columns={source: 'a,b', target: 译文}").data.columns == {"source": "a,b", "target": "译文"}


@pytest.mark.parametrize("value", LEGAL)
def test_what_hydra_reads_is_left_alone(conf, value):
    assert prepare([f"data.train={value}"], conf) == [f"++data.train={value}"]


def test_an_existing_file_is_one_value_whatever_it_contains(conf, tmp_path, monkeypatch):
    def read(override: str) -> object:
        return OverridesParser.create().parse_override(prepare([override], conf)[0]).value()

    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "[draft]", "1", " lead.txt", "a\\=b.txt", "x,数.txt"):
        (tmp_path / name).touch()
        assert read(f"data.train={name}") == (1 if name == "1" else name)  # a number stays one, for `seed=1`
    assert read("data.train=[c.txt,a,b.txt,数 据.txt]") == ["c.txt", "a,b.txt", "数 据.txt"]


def test_interpolations_live_inside_quotes(composed, monkeypatch):
    monkeypatch.setenv("HOME_OF_ROWS", "/数据")
    assert composed("data.train=${oc.env:HOME_OF_ROWS}/a (1).txt").data.train == "/数据/a (1).txt"


def test_sweeps_split_where_hydra_splits_them(conf):
    prepared = prepare(["-m", "model=nano,tiny", "data.train=数据.txt,b.txt", "optim.lr=1e-3,3e-4"], conf)
    overrides = OverridesParser.create().parse_overrides(prepared[1:])
    jobs = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
    assert len(jobs) == 8
    assert jobs[0][0] == "model=nano"
    assert {OverridesParser.create().parse_override(job[1]).value() for job in jobs} == {"数据.txt", "b.txt"}


def test_signs(conf):
    typed = ["trainer.limit_val_batches=1", "+x.y=1", "~a.b", "seed=1", "hydra.run.dir=x", "++a.b=1"]
    with pytest.raises(UserError, match="a is not an option"):
        prepare(typed, conf)
    typed.remove("++a.b=1")
    assert prepare(typed, conf) == ["++trainer.limit_val_batches=1", *typed[1:]]
    assert prepare(["--cfg", "job", "-p=optim", "model=tiny"], conf) == ["--cfg", "job", "-p", "optim", "model=tiny"]
    assert prepare(["-sc", "query=model="], conf) == ["-sc", "query=model="]


def test_what_is_left_out():
    assert prepare(["experiment=null", "callbacks.samples=null"]) == ["++callbacks.samples=null"]
    assert prepare(["experiment=sorting", "~experiment", "seed=1"]) == ["seed=1"]
    assert prepare(["experiment=null", "experiment=sorting"]) == ["experiment=sorting"]
    assert prepare(["task=chat", "~limits@trainer"]) == ["task=chat", "~limits@trainer"]
    with pytest.raises(UserError, match=r"callbacks.sample is not one of the callbacks; did you mean samples\?"):
        prepare(["callbacks.sample=null"])
    with pytest.raises(UserError, match="~seed: every run has seed"):
        prepare(["~seed"])
    with pytest.raises(UserError, match="in a sweep\nto leave it out, start a run of its own without experiment="):
        prepare(["-m", "experiment=null,sorting"])
    for typed in ("logger=null", "~logger"):
        with pytest.raises(UserError, match="to leave it out: logger=none"):
            prepare([typed])


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["modle=nano"], "modle is not an option; did you mean model=nano?"),
        (["optm.lr=1"], "optm is not an option; did you mean optim.lr=1?"),
        (["model=nanoo"], "model=nanoo: there is no such choice; did you mean nano?\naccepted: nano, tiny"),
        (["-m", "model=nano,tinny"], "model=tinny: there is no such choice; did you mean tiny?"),
        (["model=nano,tiny"], "model=nano,tiny is several values\nadd -m"),
        (["optim.lr=choice(1,2)"], "add -m"),
        (["data=rows.txt"], "for a file: data=files data.train=rows.txt"),
        (["tiny"], "did you mean model=tiny?"),
        (["--optim.lr=1"], "without dashes: optim.lr=1"),
        (["--multrun"], "did you mean --multirun?"),
        (["optim.lr=chioce(1,2)"], "did you mean choice(...)?"),
        (["task=null"], "task=null: there is no such choice\naccepted: "),
        (["~task"], "~task: every run has a choice of task\naccepted: "),
        (["--cfg", "jbo"], "did you mean job?"),
        (["data.名=x"], "cannot read the name 'data.名'"),
    ],
)
def test_mistyped_names(conf, typed, told):
    with pytest.raises(UserError) as caught:
        prepare(typed, conf)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("optim.momentun=0.9", "optim.momentun is not an argument of AdamW; did you mean momentum?\naccepted: lr, m"),
        ("optim.lr=abc", "optim.lr is 'abc'; expected a number"),
        ("optim.lr=nan", "optim.lr is nan; expected a number"),
        ("optim.lr=true", "optim.lr is True; expected a number"),
        ("optim.momentum=1", "optim.momentum is 1; expected a number from 0 to 1, exclusive"),
        ("optim.schedule=cosin", "expected one of cosine, linear; did you mean cosine?"),
        ("optim.fused=1", "optim.fused is 1; expected true or false"),
        ("data.workers=2.0", "expected a whole number >= 1\nwrite data.workers=2"),
        ("data.train=5", "data.train is 5; expected text or a list [...] of text\nfor text, quote it twice"),
        ("data.train=[a,1]", "data.train is ['a', 1]"),
        ("data.val=1", "data.val is 1; expected text or a path or null"),
        ("data.betas=[0.9]", "data.betas is [0.9]"),
        ("data.columns.source=1.5", "data.columns is {'source': 1.5}; expected a mapping"),
        ("data.seen=1", "data.seen is not an argument of Files"),
        ("model.layers=0", "model.layers is 0; expected a whole number >= 1"),
        ("model.norm=rmsnorm", "expected one of rms, layer"),
        ("trainer.max_stepz=5", "trainer.max_stepz is not an argument of Trainer; did you mean max_steps?"),
        ("trainer.max_steps=1e3", "expected a whole number\nwrite trainer.max_steps=1000"),
        ("trainer.precision=bf17-mixed", "did you mean bf16-mixed?"),
        ("trainer.strategy=5", "trainer.strategy is 5; expected text"),
        ("seed=abc", "seed is 'abc'; expected a whole number >= 0"),
        ("eval_every=0", "eval_every is 0; expected a whole number >= 1 or null"),
        ("optim.lr=${sed}", "optim.lr=${sed}: Interpolation key 'sed' not found"),
        ("optim._args_=[1]", "optim._args_ is not accepted"),
        ("callbacks.sampels.every=4", "callbacks.sampels.every is not an argument of anything; did you mean samples?"),
        ("callbacks.every=4", "callbacks.every is not an argument of anything"),
    ],
)
def test_mistyped_arguments(mistake, typed, told):
    assert told in mistake(*(["data.train=x"] if not typed.startswith("data.train") else []), typed)


def test_what_fits_passes(composed):
    check(
        composed(
            "data.train=[a.txt,b.txt]", "data.columns={source: 1, target: b}", "data.betas=[0,1]", "optim.lr=1",
            "optim.schedule=linear", "trainer.devices=[0,1]", "trainer.limit_val_batches=0.5", "trainer.precision=32",
            "trainer.max_time=00:01:00:00", "model.window=null", "model.rope_scaling={rope_type: linear, factor: 2.0}",
            "+extra={_target_: shapes.nested.Inherits, nesterov: true, anything: 1}", "data.val=${data.train[0]}",
        ),
        trust=["shapes"],
    )  # fmt: skip


def test_another_choice_that_takes_the_argument_is_named(tmp_path):
    config = OmegaConf.create({"data": {"_target_": "alignlab.rows.pydocs.PyDocs", "on_bad_row": "skip"}})
    with pytest.raises(UserError, match=r"not an argument of PyDocs\naccepted: .*\ndata=files has on_bad_row"):
        check(config)


def test_missing_values_are_named(mistake):
    assert mistake() == "data.train is missing\nadd data.train=..."


def test_inheritance_is_read_from_the_source_of_torch(mistake):
    node = "+x={_target_: torch.optim.SGD, lr: 0.1, momentun: 1}"
    assert "did you mean momentum?" in mistake("data.train=x", node, trust=["shapes", "torch.optim"])


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "alignlab.commandline.checking.os.system", "alignlab.nothing",
     "alignlab.models.config.dataclass", "alignlab.types.Range.x",
     "lightning.pytorch.callbacks.os", "lightning.pytorch.Trainer.fit.x", "alignlab", "shapes2.Files"],
)  # fmt: skip
def test_targets_outside_are_refused(mistake, target):
    assert f"x._target_ is {target}" in mistake("data.train=x", f"+x={{_target_: {target}}}")


def test_trust_is_read_from_the_command_line():
    assert trusted(["trust=[a.b, 'c']", "model=nano"]) == ("a.b", "c")
    assert trusted(["trust=a.b"]) == ("a.b",)
    assert trusted(OmegaConf.create(["x=${nowhere}", "trust=[a]"])) == ("a",)  # as Hydra records them


def test_paths(mistake, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pretrain").touch()
    assert "there is no runs/pretrian; did you mean runs/pretrain?" in mistake(
        "init_from=runs/pretrian", "data.train=x"
    )
    assert "both resume=runs and init_from=hub:a/b" in mistake("init_from=hub:a/b", "resume=runs", "data.train=x")
    assert "data.train is missing" in mistake("init_from=hub:a/b")  # the hub is not asked


@pytest.mark.parametrize(
    ("typed", "data"),
    [
        (["task=translation"], "multi30k"),
        (["experiment=docs"], "pydocs"),
        (["experiment=docs", "data=files", "data.train=mine"], "mine"),
        (["experiment=docs", "task=pretrain"], "pydocs"),
    ],
)
def test_the_command_line_wins_over_the_experiment_and_that_over_the_task(composed, typed, data):
    assert composed(*typed).data.train == data


def test_fail_prints_three_short_lines_and_ends(capsys):
    with pytest.raises(SystemExit) as ended:
        fail("one\n\ntwo " + "word " * 100 + "\nthree\nfour")
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert lines[0] == "error: one"
    assert len(lines) == 3
    assert max(map(len, lines)) <= 200


@pytest.mark.parametrize(
    "typed", [["model=nanoo"], ["sed=1"], ["optim.lr=[1"], ["~nothing"], ["optim/x=1"], ["task=null"]]
)
def test_guard_shortens_what_hydra_says(conf, capsys, monkeypatch, typed):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit), guard(), initialize_config_dir(str(conf), version_base="1.3"):
        compose("config", typed)  # unprepared, as if a stage or another verb composed it
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 3
    assert typed == ["task=null"] or typed[0].partition("=")[0].strip("~") in lines[0]


def test_guard_passes_on_what_a_constructor_said(capsys):
    with pytest.raises(SystemExit), guard():
        instantiate({"_target_": "alignlab.models.config.GPTConfig", "layers": 1, "width": 7, "heads": 2})
    assert capsys.readouterr().err.startswith("error: model.width 7 is not a multiple of model.heads 2")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx", "install g++"),
        ("CppCompileError: x.cpp:1: fatal error: Python.h: No such file or directory", "needs Python.h, which"),
        ("CppCompileError: x.cpp:1: fatal error: 'omp.h' file not found", "needs omp.h, which"),
        ("ImportError: /tmp/cache/ke/abc.main.so: file too short", "remove /tmp/cache, or set compile=false"),
    ],
)
def test_what_a_compiler_lacks(capsys, said, told):
    failed = type("InductorError", (RuntimeError,), {})  # torch's own takes a second to import
    with pytest.raises(SystemExit), guard():
        raise failed(f"backend='inductor' raised:\n{said}\n\nSet TORCHDYNAMO_VERBOSE=1")
    assert told in capsys.readouterr().err
    with pytest.raises(failed), guard():
        raise failed("LoweringException: AssertionError")


def test_guard_leaves_defects_alone(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="invalid literal"), guard():
        int("a defect of ours, not raised by our own words")
    monkeypatch.setenv("ALIGNLAB_TRACEBACK", "1")
    with pytest.raises(UserError), guard():
        raise UserError("shown with its traceback")


def test_help_repeats_the_comments_of_conf(conf, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare(["optim=sgd", "--help"], conf)
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for expected in (
        "where rows come from: files* multi30k pydocs",
        "of weights and order",
        "model.layers=2",
        "blocks",
    ):
        assert expected in text
    assert text.count("python train.py") >= 5
    assert "momentum" not in text  # sgd was chosen, and it has lr only


def test_the_root_options_of_conf_are_typed():
    names = {option.name for option in Tree(conf_folder()).options}
    assert names <= set(Options.__dataclass_fields__)


def test_neither_torch_nor_numpy_is_imported_and_it_is_fast():
    code = (
        "import sys, time; from alignlab.commandline import prepare\n"
        "prepare(['optim.lr=1e-3', 'model=nano', 'data.train=数 据.txt'])\n"
        "from alignlab.commandline.signatures import locate, signature\n"
        "assert 'max_steps' in signature(locate('lightning.pytorch.Trainer')).arguments\n"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert float(ended.stdout) < 1.5  # seconds of processor; 0.4 on a quiet machine


def test_composed_values_are_not_changed_by_the_check(composed):
    config = composed("data.train=x", "optim.lr=${oc.decode:'0.5'}")
    before = OmegaConf.to_yaml(config)
    check(config, trust=["shapes"])
    assert OmegaConf.to_yaml(config) == before
