"""The model card of an exported folder: what it was trained on, what it reached, and the command. Torch-free."""

import shlex
from typing import Any

import yaml

LEFT_OUT = ("best/", "stage/")


def model_card(
    *, name: str, config: dict[str, Any], metrics: dict[str, Any], command: list[str] | None, base: str | None
) -> str:
    """README.md: a header that the hub reads, how to load, data, metrics and command; unknown parts are left out."""
    header: dict[str, Any] = {"library_name": "peft" if base else "transformers", "tags": ["alignlab"]}
    start = base or config.get("init_from")
    if start:
        header["base_model"] = start
    parts = [f"---\n{yaml.safe_dump(header, sort_keys=True).strip()}\n---", f"# {name}", _loading(name, base)]
    if data := config.get("data"):
        parts.append("## Data\n\n```yaml\n" + _yaml(data) + "```")
    if rows := [(key, value) for key, value in sorted(metrics.items()) if not key.startswith(LEFT_OUT)]:
        table = "\n".join(f"| `{key}` | {_number(value)} |" for key, value in rows)
        parts.append(f"## Metrics\n\n| metric | value |\n|---|---:|\n{table}")
    if command is not None:
        parts.append(f"## Command\n\n```bash\n{shlex.join(['python', 'train.py', *command])}\n```")
    return "\n\n".join(parts) + "\n"


def _loading(name: str, base: str | None) -> str:
    if base is None:
        return f'```python\nfrom transformers import pipeline\n\npipeline(model="{name}")\n```'
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{name}")',
    ]
    return "An adapter upon the base below; where that is a run of AlignLab, export it first.\n\n```python\n" + (
        "\n".join(lines) + "\n```"
    )


def _yaml(data: Any) -> str:
    return yaml.safe_dump(data, allow_unicode=True, sort_keys=False)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
