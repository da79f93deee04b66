"""A network small enough to build in every test."""

import pytest

from lib.config import Config


@pytest.fixture(scope="session")
def tiny() -> Config:
    return Config(backbone="test_resnet", input_size=32, weights="none")
