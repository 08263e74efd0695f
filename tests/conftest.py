"""Shared helpers of the cross-cutting tests."""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = (
    Path(os.environ.get("R2GENKG_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
)


#: Files whose tests take longest, longest first.
LONGEST = (
    "test_kills",
    "test_cli",
    "test_train",
    "test_vision_tokens",
    "test_grid",
    "test_report",
    "test_app_faults",
    "test_packaging",
    "test_metrics",
    "test_graph",
    "test_llm_annotator",
    "test_extractor",
    "test_places",
    "test_ddp",
    "test_gpu_check",
    "test_ends",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first, so that no process is left alone with one at the end."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """What the libraries have made stays: no collection of garbage has to look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data():
    """Path of a file of the shared development data; skips the test where it is missing."""

    def find(*parts: str) -> Path:
        path = SHARED.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"shared development data not here: {'/'.join(parts)}")
        return path

    return find


@pytest.fixture(scope="session")
def processes():
    """Makes processes that have imported the libraries and read the vocabulary: a command starts in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join(
                [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        )
        multiprocessing.set_forkserver_preload(["jobs"])
        multiprocessing.forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


@pytest.fixture(scope="session")
def run(processes, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """`run(*args, cwd=..., expect=0)`: a command in a process of its own.

    A failure must end in one line without a traceback.
    """
    import jobs

    def run(*args, cwd: Path, expect: int = 0, timeout: int = 300) -> subprocess.CompletedProcess:
        written = tmp_path_factory.mktemp("written")
        process = processes.Process(
            target=jobs.job,
            args=([*map(str, args)], str(written / "out"), str(written / "errors"), str(cwd)),
        )
        process.start()
        process.join(timeout)
        process.kill()
        out, errors = (written / "out").read_text(), (written / "errors").read_text()
        assert process.exitcode == expect, (
            f"exit {process.exitcode}\n{out[-2000:]}\n{errors[-4000:]}"
        )
        if expect == 1:
            assert "Traceback" not in errors and errors.strip().splitlines()[-1].startswith(
                "r2genkg: "
            )
        return subprocess.CompletedProcess(args, expect, out, errors)

    return run


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """A folder for the shared toy runs and the data that they are trained on."""
    return tmp_path_factory.mktemp("toy")


def _train_toy(folder: Path, name: str, *changes: str) -> Path:
    from toy_run import run as train_toy

    train_toy(
        folder / "data", folder / name, ["train.epochs=1", "train.evals_per_epoch=0", *changes]
    )
    return folder / name


@pytest.fixture(scope="session")
def toy(toy_folder) -> Path:
    """A trained toy run (see `toy_run.py`); tests read it and do not change it."""
    return _train_toy(toy_folder, "with-graph")


@pytest.fixture(scope="session")
def zero_kg(toy_folder) -> Path:
    """A toy run without graph and without retrieval; tests read it and do not change it."""
    return _train_toy(toy_folder, "zero", "model.use_graph=false", "model.use_retrieval=false")
