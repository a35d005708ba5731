"""Law 3 against transformers: a random model -> ours -> export -> transformers, equal both ways within 1e-4 in fp32."""

# B batch, T tokens, V vocabulary

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignlab.models import huggingface_config
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.models.huggingface import from_folder, load_weights, places, stored_shape, unloaded
from alignlab.models.huggingface_config import read_config, read_json, read_labels
from alignlab.models.huggingface_export import ClassificationHead, SpanHead, verify, write_folder
from alignlab.models.huggingface_family import families, to_fields
from alignlab.models.rotary import attention_factor, rotary_frequencies
from tests.models.architectures import ARCHITECTURES, noisy

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 3,
    "pad_token_id": 4,
}
GPT2_SIZE = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2_SIZE |= {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": 4}
IDS = {"eos_token_id": 3, "pad_token_id": 4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2_SIZE),
    "gpt2 inner": ("GPT2", GPT2_SIZE | {"n_inner": 24, "activation_function": "gelu", "tie_word_embeddings": False}),
    "llama": ("Llama", SIZE),
    "llama biased": ("Llama", SIZE | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama linear": ("Llama", SIZE | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
    "llama dynamic": (
        "Llama",
        SIZE
        | {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0},
        },
    ),
    "llama 3": (
        "Llama",
        SIZE | {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16, "rope_theta": 500.0}},
    ),
    "llama old rope": ("Llama", SIZE | {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "mistral": ("Mistral", SIZE | {"sliding_window": 5, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", SIZE | {"tie_word_embeddings": True}),
    "qwen2 window": ("Qwen2", SIZE | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen2 yarn": (
        "Qwen2",
        SIZE
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 500.0,
            }
        },
    ),
    "qwen3": ("Qwen3", SIZE | {"head_dim": 16, "rms_norm_eps": 1e-5}),
    "arcee": ("Arcee", SIZE),
}
CHANGING = {  # what a folder may say otherwise without computing otherwise
    "architectures",
    "transformers_version",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "max_window_layers",
    "_name_or_path",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def ids() -> Tensor:
    """Token ids (3, 40) without the pad token; longer than some contexts, so that scaling that waits for it shows."""
    return torch.randint(5, 50, (3, 40))


def reference(name: str, auto: str, **more: Any) -> Any:
    """A model of transformers with noise on every parameter."""
    family, fields = VARIANTS[name]
    config = getattr(transformers, family + "Config")(**fields, **more)
    model = getattr(transformers, auto).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def reread(folder: Path, auto: str) -> Any:
    model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def same_fields(left: Any, right: Any) -> None:
    left, right = left.to_dict(), right.to_dict()
    for fields in (left, right):
        fields.get("rope_parameters", {}).pop("type", None)  # the old name of rope_type
    names = (set(left) | set(right)) - CHANGING
    assert {name: left.get(name) for name in names} == {name: right.get(name) for name in names}


def differ(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_a_language_model_goes_through_us_unchanged(name: str, ids: Tensor, tmp_path: Path) -> None:
    original = reference(name, "AutoModelForCausalLM")
    original.save_pretrained(tmp_path / "in")
    ours = from_folder(tmp_path / "in").eval()
    assert differ(ours.unembed(ours(ids)), original(ids).logits) < 1e-4

    write_folder(ours, tmp_path / "out", token_ids=IDS)
    again = reread(tmp_path / "out", "AutoModelForCausalLM")
    assert type(again) is type(original)
    assert differ(again(ids).logits, original(ids).logits) < 1e-4
    same_fields(again.config, original.config)
    assert read_config(tmp_path / "out") == ours.config
    assert verify(ours, tmp_path / "out") == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2", "qwen3", "arcee"])
def test_a_classifier_goes_through_us_unchanged(name: str, ids: Tensor, tmp_path: Path) -> None:
    labels = {0: "negativ", 1: "neutral", 2: "positiv"}
    original = reference(name, "AutoModelForSequenceClassification", id2label=labels)
    original.save_pretrained(tmp_path / "in")
    ours = unloaded(read_config(tmp_path / "in")).eval()
    loaded = load_weights(ours, tmp_path / "in")
    assert read_labels(tmp_path / "in") == ["negativ", "neutral", "positiv"]
    assert loaded.fresh == (() if ours.config.tied else ("unembedding.weight",))
    padded = ids.clone()
    padded[1, 30:] = 4
    last = torch.tensor([39, 29, 39])
    scores = ours(padded)[torch.arange(3), last] @ loaded.heads["score.weight"].T
    assert differ(scores, original(padded).logits) < 1e-4

    head = ClassificationHead(
        weight=loaded.heads["score.weight"], labels=tuple(labels.values()), problem="single_label_classification"
    )
    write_folder(ours, tmp_path / "out", head=head, token_ids=IDS)
    again = reread(tmp_path / "out", "AutoModelForSequenceClassification")
    assert again.config.id2label == labels
    assert differ(again(padded).logits, original(padded).logits) < 1e-4
    same_fields(again.config, original.config)
    assert verify(ours, tmp_path / "out", head=head) == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2", "qwen3", "arcee"])
def test_a_span_head_goes_through_us_unchanged(name: str, ids: Tensor, tmp_path: Path) -> None:
    original = reference(name, "AutoModelForQuestionAnswering")
    original.save_pretrained(tmp_path / "in")
    ours = unloaded(read_config(tmp_path / "in")).eval()
    heads = load_weights(ours, tmp_path / "in").heads
    weight, bias = heads["qa_outputs.weight"], heads["qa_outputs.bias"]
    starts, ends = (ours(ids) @ weight.T + bias).unbind(dim=-1)
    assert differ(starts, original(ids).start_logits) < 1e-4
    assert differ(ends, original(ids).end_logits) < 1e-4

    head = SpanHead(weight=weight, bias=bias)
    write_folder(ours, tmp_path / "out", head=head, token_ids=IDS)
    again = reread(tmp_path / "out", "AutoModelForQuestionAnswering")
    assert differ(again(ids).start_logits, original(ids).start_logits) < 1e-4
    same_fields(again.config, original.config)
    assert verify(ours, tmp_path / "out", head=head) == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_own_architectures_open_in_transformers(name: str, ids: Tensor, tmp_path: Path) -> None:
    ours = noisy(ARCHITECTURES[name])
    write_folder(ours, tmp_path / "out", token_ids=IDS)
    theirs = reread(tmp_path / "out", "AutoModelForCausalLM")
    assert differ(theirs(ids).logits, ours.unembed(ours(ids))) < 1e-4
    same = {"feedforward": ours.config.hidden_units, "kv_heads": ours.config.groups}
    assert replace(read_config(tmp_path / "out"), **same) == replace(ours.config, **same)
    assert verify(ours, tmp_path / "out") == 0


@torch.no_grad()
def test_a_sharded_bf16_folder_equals_the_rounded_model(ids: Tensor, tmp_path: Path) -> None:
    original = reference("qwen2", "AutoModelForCausalLM").bfloat16()
    original.save_pretrained(tmp_path / "in", max_shard_size="10KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    ours = from_folder(tmp_path / "in").eval()
    original = reread(tmp_path / "in", "AutoModelForCausalLM")  # .bfloat16() also rounded its rotary frequencies
    assert differ(ours.unembed(ours(ids)), original(ids).logits) < 1e-4

    write_folder(ours, tmp_path / "out", dtype=torch.bfloat16, shard_bytes=10_000, token_ids=IDS)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    again = reread(tmp_path / "out", "AutoModelForCausalLM")
    assert differ(again(ids).logits, original(ids).logits) < 1e-4
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
    assert verify(ours, tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        (1e6, {"factor": 4.0, "original_max_position_embeddings": 32_768}),  # as Qwen2.5 and Qwen3 advise
        (1e4, {"factor": 2.0, "original_max_position_embeddings": 4_096, "beta_fast": 16.0, "beta_slow": 2.0}),
        (1e4, {"factor": 2.0, "original_max_position_embeddings": 4_096, "truncate": False}),
        (1e4, {"factor": 8.0, "original_max_position_embeddings": 4_096, "mscale": 0.7, "mscale_all_dim": 1.2}),
        (1e2, {"factor": 8.0, "original_max_position_embeddings": 1_000_000, "beta_fast": 1e5}),  # a bound is cut
    ],
)
def test_yarn_turns_as_in_transformers(base: float, settings: dict[str, Any]) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "yarn", "rope_theta": base, **settings}
    theirs = transformers.LlamaConfig(
        **SIZE | {"head_dim": 64, "max_position_embeddings": 8_000_000}, rope_parameters=rope
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    scaling = {"rope_type": "yarn", **settings}
    ours = GPTConfig(layers=1, width=64, heads=1, rope_base=base, rope_scaling=scaling)
    torch.testing.assert_close(rotary_frequencies(ours), frequencies, rtol=1e-6, atol=0)
    assert attention_factor(scaling) == pytest.approx(factor)


@pytest.mark.parametrize("name", ["llama_8b", "gpt2_xl", "qwen3_0_6b"])
def test_the_layout_of_a_large_model_equals_that_of_transformers(name: str) -> None:
    from tests.models.test_presets import PUBLISHED, preset

    config = GPTConfig(**preset(name), vocabulary=PUBLISHED[name][0])
    family = families(config)[0]
    with torch.device("meta"):
        ours = dict(GPT(config).named_parameters())
        fields = to_fields(config, family)
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    layout = {place.name: stored_shape(place, ours) for place in places(config, family, list(ours))}
    expected = {
        key.removeprefix("transformer.").removeprefix("model."): tuple(value.shape)
        for key, value in theirs.state_dict().items()
    }
    assert layout == expected


@pytest.mark.parametrize("family", sorted(huggingface_config._DEFAULTS))
def test_a_field_that_is_left_out_is_what_transformers_takes(family: str) -> None:
    import transformers

    theirs = getattr(transformers, f"{huggingface_config.CLASS_PREFIX[family]}Config")().to_dict()
    heads = theirs.get("num_attention_heads")
    ours = {
        "hidden_act": "silu", "tie_word_embeddings": False, "sliding_window": None, "num_key_value_heads": heads,
        "head_dim": theirs.get("hidden_size", 0) // (heads or 1),
        "max_window_layers": theirs.get("max_window_layers"),
    }  # fmt: skip
    ours |= huggingface_config._DEFAULTS[family]
    told = {"rms_norm_eps", "layer_norm_epsilon", "max_position_embeddings", "n_positions", *ours} & theirs.keys()
    if not theirs.get("use_sliding_window", True):
        told.discard("sliding_window")
    if theirs.get("head_dim") is None:
        told.discard("head_dim")
    assert {name: ours.get(name) for name in told} == {name: theirs[name] for name in told}
