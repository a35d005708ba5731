"""Small decoders with the architecture of each family, and with what our own presets use."""

import torch

from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT

SIZE = {"layers": 2, "width": 32, "heads": 4, "context": 64, "vocabulary": 50}
ARCHITECTURES = {
    "gpt2": GPTConfig(**SIZE, norm="layer", positions="learned", activation="gelu_tanh", bias="all"),
    "llama": GPTConfig(**SIZE, kv_heads=2, feedforward=48, tied=False),
    "mistral": GPTConfig(**SIZE, kv_heads=2, window=4, tied=False),
    "qwen2": GPTConfig(**SIZE, kv_heads=1, bias="qkv", rope_base=1e6),
    "qwen3": GPTConfig(**SIZE, kv_heads=2, head_width=16, qk_norm=True),
    "nano": GPTConfig(**SIZE, qk_norm=True, activation="relu2"),
    "biased": GPTConfig(**SIZE, bias="all", rope_scaling={"rope_type": "linear", "factor": 2.0}, activation="gelu"),
}


def noisy(config: GPTConfig) -> GPT:
    """A decoder with noise on every parameter: fresh biases are 0 and norms 1, which would hide their loss."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
