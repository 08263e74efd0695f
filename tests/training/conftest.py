"""Fixtures that the tests of training share: a grid of finished runs, and a faster garbage collector."""

import gc
from pathlib import Path

import pytest
from toy_grid import TINY, VARIANTS

from r2genkg.core.config import load_config
from r2genkg.training.grid_runs import run_grid


@pytest.fixture(scope="session", autouse=True)
def frozen_libraries():
    """Each Trainer collects garbage several times; without the libraries' objects that takes no second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="session")
def outcomes(root):
    "Three variants, the second of which fails; without METEOR, whose Java process takes seconds for each."
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="METEOR is None"):
        patch.setattr("r2genkg.scores.meteor.java_available", lambda: False)
        return run_grid(load_config("demo", TINY), VARIANTS, root, [1])
