"""Shared helpers of the cross-cutting tests."""
import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("R2GENKG_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


@pytest.fixture
def shared_data():
    """Path of a file of the shared development data; skips the test where it is missing."""
    def find(*parts: str) -> Path:
        path = SHARED.joinpath(*parts)
        if not path.exists(): pytest.skip(f"shared development data not here: {'/'.join(parts)}")
        return path
    return find
