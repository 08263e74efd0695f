"""The package as users install it: wheel and source archive, installed outside the repository, with all data inside."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytest.importorskip("setuptools", reason="setuptools is not installed: pip install setuptools")
ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "setup.py",
    "settings.ini",
    "MANIFEST.in",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "requirements.lock",
    "r2genkg",
)
SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
CONFIG = SETTINGS["DEFAULT"]
#: Files that are no modules, by their place in the package.
DATA = sorted(
    str(p.relative_to(ROOT))
    for p in (ROOT / "r2genkg").rglob("*")
    if p.is_file() and p.suffix not in (".py", ".pyc")
)


def python(*args, cwd: Path, path: Path | None = None) -> str:
    """Run this interpreter in another folder, with `path` as the only extra place of modules."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        | ({"PYTHONPATH": str(path)} if path else {})
        | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{args}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """A wheel and an sdist of a copy of the sources; nothing is fetched."""
    home, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, home / name)
    python(
        "-c",
        f"from setuptools import build_meta as b; b.build_sdist({str(out)!r}); b.build_wheel({str(out)!r})",
        cwd=home,
    )
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


def test_archives_hold_the_data(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
    assert set(DATA) <= names and len(DATA) > 20, sorted(set(DATA) - names)
    assert not [n for n in names if n.startswith(("tests", "nbs", "benchmarks"))]
    with tarfile.open(built["sdist"]) as sdist:
        inside = {n.partition("/")[2] for n in sdist.getnames()}
    assert {*DATA, "settings.ini", "setup.py", "LICENSE"} <= inside, sorted(set(DATA) - inside)


def test_data_files_say_their_licence_and_source():
    """A line of its own, or a row of SOURCES.md where a file cannot hold a comment."""
    listed = (ROOT / "r2genkg" / "resources" / "SOURCES.md").read_text(encoding="utf-8")
    for name in DATA:
        path = ROOT / name
        if path.name in ("py.typed", "SOURCES.md") or f"`{path.name}`" in listed:
            continue
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert "Licence: " in first and "Source: " in first, name


CHECK = """
import json, r2genkg
from importlib.resources import files
from r2genkg import label_reports, load_config
from r2genkg.core.config import preset_names
from r2genkg.training.grid import grid_names, load_grid
from r2genkg.text.lexicon import load_lexicon
from r2genkg.data.catalog import data_sets
from r2genkg.use.pages import page
from r2genkg.training.tables import load_reported, load_tables
for name in preset_names(): load_config(name)
for name in grid_names(): load_grid(name)
for name in ("report", "demo", "token_audit"): page(f"{name}.html.j2")
assert load_lexicon() and data_sets() and load_tables() and load_reported()
assert label_reports(["Small left pleural effusion."])["Pleural Effusion"][0] == 1
accelerate = sorted(p.name for p in (files("r2genkg") / "presets" / "accelerate").iterdir())
print(json.dumps([r2genkg.__file__, r2genkg.__version__, preset_names(), grid_names(), accelerate]))
"""


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_package_works_elsewhere(built, tmp_path, kind):
    place, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        place,
        built[kind],
        cwd=tmp_path,
    )
    where, version, presets, grids, accelerate = json.loads(
        python("-c", CHECK, cwd=elsewhere, path=place)
    )
    assert Path(where).is_relative_to(place) and version == CONFIG["version"]
    assert (
        {"demo", "iu-xray", "chexpert-plus", "mimic-cxr"} <= set(presets)
        and {"demo", "paper"} <= set(grids)
        and accelerate
    )
    program = place / "bin" / "r2genkg"
    assert python(program, "presets", cwd=elsewhere, path=place).split() == presets
    assert "Usage" in python(program, "--help", cwd=elsewhere, path=place)


def requirements(key: str) -> list[Requirement]:
    return [Requirement(text) for text in CONFIG[key].split()]


def test_every_version_is_bounded():
    keys = [key for key in CONFIG if key == "requirements" or key.endswith("_requirements")]
    assert len(keys) >= 5
    open_ended = [
        str(r)
        for key in keys
        for r in requirements(key)
        if not re.search(r"<|==", str(r.specifier)) and not _calendar(r.name)
    ]
    unbounded = [str(r) for key in keys for r in requirements(key) if not r.specifier]
    assert not unbounded and not open_ended, (unbounded, open_ended)


def _calendar(name: str) -> bool:
    """A lower bound is enough for libraries that keep old interfaces for years, or whose major number says nothing."""
    return name in ("pillow", "pyarrow", "PyYAML", "nbclient", "setuptools")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock() -> dict[str, Requirement]:
    lines = [
        Requirement(line)
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return {_normal(r.name): r for r in lines}


#: What the Makefile installs and the lock pins; gradio has many versions a month.
LOCKED = (
    *("requirements", "train_requirements", "llm_requirements"),
    *("smollm2_requirements", "dev_requirements"),
    *("app_requirements", "docs_requirements", "ray_requirements"),
)


def test_lock_holds_every_direct_requirement_within_its_bounds():
    locked = lock()
    missing = [
        r.name
        for key in LOCKED
        for r in requirements(key)
        if _normal(r.name) not in locked and _normal(r.name) not in UNLOCKED
    ]
    assert not missing, missing
    for key in LOCKED:
        for r in requirements(key):
            if _normal(r.name) in UNLOCKED:
                continue
            (version,) = [s.version for s in locked[_normal(r.name)].specifier]
            assert r.specifier.contains(version, prereleases=True), f"{r}: the lock has {version}"


#: What `pip freeze` leaves out: the tools that install.
UNLOCKED = {"setuptools"}


def test_lock_acts_from_python_311_on():
    """The lock was tested with 3.11. Older interpreters lack some of its versions and resolve within the bounds."""
    for r in lock().values():
        assert [
            r.marker.evaluate({"python_version": v, "python_full_version": f"{v}.0"})
            for v in ("3.10", "3.11", "3.12")
        ] == [False, True, True], r


def test_dependencies_are_listed_in_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.partition("## Dependencies")[2].partition("\n## ")[0].lower()
    unlisted = [
        r.name
        for key in CONFIG
        if key == "requirements" or key.endswith("_requirements")
        for r in requirements(key)
        if not re.search(rf"(?<![\w-]){re.escape(r.name.lower())}(?![\w-])", table)
    ]
    assert not unlisted, unlisted


def test_changelog_has_this_version():
    assert re.search(
        rf"^## {re.escape(CONFIG['version'])}\b", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_extras_are_those_of_the_settings():
    from r2genkg.core.extras import EXTRAS, explain_missing

    keys = {key.removesuffix("_requirements") for key in CONFIG if key.endswith("_requirements")}
    assert keys - {"dev"} == set(EXTRAS)
    assert not {"torch", "transformers"} & {_normal(r.name) for r in requirements("requirements")}
    for extra, modules in EXTRAS.items():
        assert all(f"r2genkg[{extra}]" in explain_missing(name) for name in modules)


TEXT_SIDE = """
import sys
from r2genkg.core.extras import EXTRAS

class Absent:
    "Modules of extras cannot be imported, as in an installation without them."
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {m for modules in EXTRAS.values() for m in modules}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from r2genkg.use.commands import main
for line in sys.argv[1:]:
    try: main(line.split())
    except SystemExit as e:
        if e.code: sys.exit(f"{line}: exit {e.code}" if line != sys.argv[-1] else e.code)
"""


def text_side(*commands: str, cwd: Path) -> subprocess.CompletedProcess:
    """Commands one after the other where no extra is installed; the first that fails ends them."""
    return subprocess.run(
        [sys.executable, "-c", TEXT_SIDE, *commands],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def test_the_text_side_needs_no_extra(tmp_path):
    (tmp_path / "t.csv").write_text("id,findings\na,Small left effusion.\nb,Small effusion.\n")
    (tmp_path / "r.json").write_text('{"a": ["no effusion ."], "b": ["large heart ."]}')
    done = text_side(
        "label t.csv --out l.csv",
        "annotate t.csv --out a.jsonl",
        "kg build --studies t.csv --min-count 1 --out g",
        "kg stats g",
        "kg view g --node effusion --out e.html",
        "kg trace g effusion --studies t.csv",
        "kg export g --out g.graphml",
        "score --refs r.json --hypos r.json",
        "doctor --offline",
        cwd=tmp_path,
    )
    assert not done.returncode, done.stderr[-2000:]
    fault = text_side("train --preset own-small --set studies.path=t.csv --out r", cwd=tmp_path)
    assert fault.returncode == 1 and "pip install 'r2genkg[train]'" in fault.stderr
    assert len(fault.stderr.strip().splitlines()) == 1
