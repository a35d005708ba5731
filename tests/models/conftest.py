"""A decoder of each architecture, and token ids for it."""

import pytest
import torch

from alignlab.models.gpt import GPT
from tests.models.architectures import ARCHITECTURES, noisy


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
    torch.set_num_threads(1)  # matrices of 32 x 32 gain nothing from threads and lose much where cores are shared


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> GPT:
    return noisy(ARCHITECTURES[request.param])


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids (3, 12)."""
    return torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(1))
