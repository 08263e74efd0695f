"""No requirement admits a version with an advisory that `tests/advisories.json` lists, and the lock has none either."""

import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
ADVISORIES = json.loads((ROOT / "tests" / "advisories.json").read_text())


def requirements() -> dict[str, Requirement]:
    """Every requirement of the package and its extras, by name."""
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    lists = (v for k, v in parser["DEFAULT"].items() if k.endswith("requirements"))
    return {(r := Requirement(text)).name.lower(): r for line in lists for text in line.split()}


@pytest.mark.parametrize("advisory", ADVISORIES, ids=lambda a: f"{a['package']} {a['fixed']}")
def test_lower_bound(advisory):
    bound = requirements()[advisory["package"]]
    lowest = [Version(s.version) for s in bound.specifier if s.operator == ">="]
    assert lowest and max(lowest) >= Version(advisory["fixed"]), f"{bound} admits {advisory['ids']}"


@pytest.mark.parametrize("advisory", ADVISORIES, ids=lambda a: f"{a['package']} {a['fixed']}")
def test_locked_version(advisory):
    lock = (ROOT / "requirements.lock").read_text()
    (locked,) = re.findall(rf"(?mi)^{advisory['package']}==(\S+)", lock)
    assert Version(locked) >= Version(advisory["fixed"])


def test_readme_names_the_constraints():
    assert "--constraint requirements.lock" in (ROOT / "README.md").read_text()
