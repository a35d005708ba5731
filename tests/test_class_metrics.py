"""Metrics of labels equal scikit-learn's and scipy's on random inputs, whatever the batches."""

import numpy as np
import pytest
import torch

from alignlab.metrics.classes import ClassScores, NumberScores, SetScores

sklearn = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("classes", [2, 5])
def test_class_scores_equal_scikit_learn(classes: int) -> None:
    random = torch.Generator().manual_seed(classes)
    logits, labels = torch.randn(101, classes, generator=random), torch.randint(classes, (101,), generator=random)
    metric = ClassScores(classes)
    for start in range(0, 101, 16):
        metric.update(logits[start : start + 16], labels[start : start + 16])
    results, predicted = metric.compute(), logits.argmax(1)
    assert results["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert results["f1_macro"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    assert results["each_f1"].tolist() == pytest.approx(sklearn.f1_score(labels, predicted, average=None).tolist())
    assert results["confusion"].tolist() == sklearn.confusion_matrix(labels, predicted).tolist()


def test_macro_f1_leaves_out_classes_that_never_occur() -> None:
    metric = ClassScores(4)
    metric.update(torch.eye(4)[[0, 1, 1]], torch.tensor([0, 1, 0]))
    # class 0: TP 1, FN 1: 2/3; class 1: TP 1, FP 1: 2/3
    assert metric.compute()["f1_macro"] == pytest.approx(2 / 3)


def test_calibration_error_by_hand() -> None:
    metric = ClassScores(2)
    logits = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]))
    metric.update(logits, torch.tensor([0, 1, 1]))
    # two at 0.9 of which one is right, one at 0.6 that is: (|1.8 - 1| + |0.6 - 1|) / 3
    assert metric.compute()["calibration_error"] == pytest.approx((0.8 + 0.4) / 3)


def test_set_scores_equal_scikit_learn() -> None:
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(97, 4, generator=random), torch.rand(97, 4, generator=random) < 0.3
    metric = SetScores(4)
    for start in range(0, 97, 20):
        metric.update(logits[start : start + 20], labels[start : start + 20].float())
    results, predicted = metric.compute(), logits > 0
    assert results["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert results["f1_macro"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    assert results["f1_micro"] == pytest.approx(sklearn.f1_score(labels, predicted, average="micro"))
    assert results["map"] == pytest.approx(sklearn.average_precision_score(labels, logits, average="macro"))


def test_number_scores_equal_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    present = random.integers(0, 6, 60).astype(float)  # with ties
    predicted = present + random.normal(0, 2, 60)
    metric = NumberScores()
    metric.update(torch.tensor(predicted[:40]), torch.tensor(present[:40]))
    metric.update(torch.tensor(predicted[40:]), torch.tensor(present[40:]))
    results = metric.compute()
    assert results["pearson"] == pytest.approx(stats.pearsonr(predicted, present).statistic)
    assert results["spearman"] == pytest.approx(stats.spearmanr(predicted, present).statistic, abs=1e-6)
    assert results["rmse"] == pytest.approx(float(np.sqrt(np.mean((predicted - present) ** 2))))
