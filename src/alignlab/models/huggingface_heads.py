"""Heads of Hugging Face folders in the terms of our tasks: labels of texts, the span of an answer, a reward.

Unusual: one number for a text is a reward to one task and a number to learn to another, so such a folder tells of both.
It knows nothing of tasks beyond the names of their heads and of what their data would have found.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab.models.huggingface_config import read_fields

ALWAYS = -1e9  # log-odds that every answer exceeds: transformers' span heads have no threshold
LONGEST = 64  # tokens of an answer, where no training rows tell
OFFSET = "regression_offset"  # ours, in config.json: what is added to the number, since its class has no bias


def read_head(folder: Path | str, heads: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A folder's `heads` under our names, and what the data of its task would have found.

    Heads that no task of ours has keep their names, and nothing is found. Raises ValueError where the names of the
    labels are not as many as the rows of the head.
    """
    if set(heads) == {"qa_outputs.weight", "qa_outputs.bias"} and len(heads["qa_outputs.bias"]) == 2:
        ours = {name.replace("qa_outputs", "head"): value.float() for name, value in heads.items()}
        facts = {"language": "en", "longest": LONGEST, "unanswerable": False}
        return ours | {"threshold": torch.tensor(ALWAYS)}, {"answers": facts}
    if set(heads) != {"score.weight"}:
        return heads, {}
    weight, fields = heads["score.weight"], read_fields(folder)
    labels = {"names": [], "counts": [], "rows": 0, "mean": float(fields.get(OFFSET, 0.0)), "std": 1.0}
    if len(weight) == 1:
        name = (fields.get("id2label") or {}).get("0", "LABEL_0")
        found = {"labels": {**labels, "form": "regression"}, "paired": True, "one_label": name}
        return {"head.weight": weight.float()}, found
    if fields.get("problem_type") == "regression":  # several numbers for a text
        return heads, {}
    form = "multi_label" if fields.get("problem_type") == "multi_label_classification" else "classes"
    names = _names(folder, fields, len(weight))
    return {"head.weight": weight.float()}, {"labels": {**labels, "form": form, "names": names}}


def _names(folder: Path | str, fields: dict[str, Any], count: int) -> list[Any]:
    """Names of the rows of a head; their numbers where they have no names but LABEL_0, LABEL_1 ..."""
    known = fields.get("id2label") or {str(number): f"LABEL_{number}" for number in range(count)}
    names = [known[key] for key in sorted(known, key=int)]
    if len(names) != count:
        raise ValueError(f"{folder} has {count} rows in score.weight, but its config.json names {len(names)} labels")
    return list(range(count)) if names == [f"LABEL_{number}" for number in range(count)] else names
