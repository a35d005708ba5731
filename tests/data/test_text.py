"""Windows of text: what they see of each other."""

import numpy as np
import pytest
import torch

from alignlab.batch import IGNORED
from alignlab.data.text import Text
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.optim import SGD
from alignlab.tasks.pretrain import Pretraining
from alignlab.text.tokenizer import Bytes
from tests.fakes import FakeRows


def test_law_5_separate_documents_of_a_window_do_not_see_each_other() -> None:
    tokenizer = Bytes().build(list, "")
    rows = [{"text": text, "continues": False} for text in ("abcde", "fghi", "jklmnop")]
    data = Text(rows=FakeRows(train=rows, val=rows), tokenizer=tokenizer, max_length=18, separate_documents=True)
    torch.manual_seed(0)
    model = GPT(GPTConfig(layers=2, width=32, heads=2, context=18, vocabulary=tokenizer.vocab_size)).eval()
    task = Pretraining(model=model, tokenizer=tokenizer, optim=SGD())
    for split in ("train", "val"):
        batch = data.examples(split).batch(np.array([0]), {"tokens": 18.0}, 1)
        assert batch.documents.tolist() == [[1] * 6 + [2] * 5 + [3] * 7]  # each begins with the end of the one before
        targets = batch.targets.clone()
        targets[:, :11] = IGNORED
        changed = batch.ids.clone()
        changed[:, 1:6] += 1
        changed[:, 7:11] += 1
        found = []
        for ids in (batch.ids, changed):
            one = batch._replace(ids=ids, targets=targets, tokens=7)
            found.append(float(task.losses(one)["loss"].sum.detach()))
            with torch.no_grad():
                task.evaluate(one, "val")
            found.append(task.results("val")["loss"] * 7)
        assert found == pytest.approx([found[0]] * 4, rel=1e-6)
