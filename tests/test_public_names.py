"""`import r2genkg` gives the public names: quickly, typed, and each with an example that runs."""

import doctest
import importlib
import inspect
import subprocess
import sys

import pytest

import r2genkg

NAMES = [name for name in r2genkg.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_name_is_there(name):
    found = getattr(r2genkg, name)
    home = importlib.import_module(f"r2genkg.{r2genkg._HOMES[name]}")
    assert getattr(home, name) is found and name in dir(r2genkg)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("LABELS", "R2GenKGError")])
def test_example_runs(name):
    found = getattr(r2genkg, name)
    home = importlib.import_module(f"r2genkg.{r2genkg._HOMES[name]}")
    globs = {**vars(home), "r2genkg": r2genkg}
    examples = doctest.DocTestFinder(recurse=False).find(found, name, globs=globs)
    assert examples and examples[0].examples, f"{name} has no example in its docstring"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(examples[0]).failed == 0


def test_package_example_runs():
    assert doctest.testmod(r2genkg).failed == 0


def test_typed_names_are_the_public_ones():
    source = inspect.getsource(r2genkg)
    typed = source[source.index("if TYPE_CHECKING") : source.index("#: Public name")]
    for name, home in r2genkg._HOMES.items():
        assert f"{name} as {name}" in typed and f"from .{home} import" in typed, name


def test_import_loads_nothing_heavy():
    code = (
        "import r2genkg, sys; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        r2genkg.nothing  # noqa: B018
