"""Each size preset has the published number of parameters; built on the meta device, so nothing is allocated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.models.huggingface_family import family

PRESETS = Path(__file__).parents[2] / "conf" / "model"
PUBLISHED = {  # vocabulary, parameters; ours are counted with a vocabulary of 4,096
    "gpt2": (50_257, 124_439_808),
    "gpt2_medium": (50_257, 354_823_168),
    "gpt2_large": (50_257, 774_030_080),
    "gpt2_xl": (50_257, 1_557_611_200),
    "smollm2_135m": (49_152, 134_515_008),
    "qwen3_0_6b": (151_936, 596_049_920),
    "llama_1b": (128_256, 1_235_814_400),
    "llama_8b": (128_256, 8_030_261_248),
    "nano": (4_096, 1_312_384),
    "tiny": (4_096, 5_869_568),
    "small": (4_096, 27_796_992),
}


def preset(name: str) -> dict[str, Any]:
    fields = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{name}.yaml"))
    assert isinstance(fields, dict)
    assert fields.pop("_target_") == "alignlab.models.config.GPTConfig"
    return fields


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    vocabulary, parameters = PUBLISHED[name]
    with torch.device("meta"):
        model = GPT(GPTConfig(**preset(name), vocabulary=vocabulary))
    assert model.parameter_count() == parameters
    assert f"{parameters:,}" in (PRESETS / f"{name}.yaml").read_text().splitlines()[0]


def test_every_preset_is_counted() -> None:
    assert {path.stem for path in PRESETS.glob("*.yaml")} == set(PUBLISHED)


def test_a_preset_repeats_no_default_and_has_no_dropout() -> None:
    smallest = GPTConfig(layers=1, width=2, heads=1)
    for name in PUBLISHED:
        for key, value in preset(name).items():
            assert value != getattr(smallest, key) or key in ("layers", "width", "heads"), (name, key)
        assert "dropout" not in preset(name)


def test_every_preset_can_be_exported() -> None:
    exported = {name: family(GPTConfig(**preset(name))) for name in PUBLISHED}
    ours = {"nano": "qwen3", "tiny": "qwen3", "small": "qwen3", "qwen3_0_6b": "qwen3"}
    llama = dict.fromkeys(("smollm2_135m", "llama_1b", "llama_8b"), "llama")
    assert exported == ours | llama | {name: "gpt2" for name in PUBLISHED if name.startswith("gpt2")}


@pytest.mark.parametrize(
    ("scaling", "told"),
    [
        ({"factor": 2.0}, "rotary scaling None is not supported; accepted: default, linear"),
        ({"rope_type": "llama3", "factor": 2.0}, "'llama3' has no low_freq_factor, high_freq_factor, original_max"),
        ({"rope_type": "linear"}, "'linear' has no factor"),
    ],
)
def test_a_scaling_that_would_do_nothing_is_refused(scaling: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        GPTConfig(layers=1, width=16, heads=2, rope_scaling=scaling)
