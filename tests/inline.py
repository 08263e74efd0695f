"""Commands run inside the test's own process: no seconds for a start, so that many odd inputs can be tried."""

import re
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

#: What a terminal obeys or hides: control characters, and marks that turn the direction of writing.
STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    errors: str

    @property
    def line(self) -> str:
        """The last line on standard error."""
        return (self.errors.strip().splitlines() or [""])[-1]

    def in_one_line(self, *says: str) -> str:
        """The one line of a refusal, in which all of `says` stand."""
        assert self.code == 1 and self.line.startswith("r2genkg: "), self
        assert all(word in self.line for word in says), self.line
        return self.line


class Commands:
    """Runs the program in a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
        import r2genkg.use.commands as commands

        self.monkeypatch, self.capfd, self.commands = monkeypatch, capfd, commands
        for name in ("keep_freed_memory", "end_gently"):  # they change the whole process
            monkeypatch.setattr(commands, name, lambda: None)

    def __call__(self, *args: object, cwd: Path) -> Ended:
        """Run one command; a traceback or a steering character is a failure whatever else is expected."""
        self.monkeypatch.chdir(cwd)
        self.monkeypatch.setattr(sys, "argv", ["r2genkg", *map(str, args)])
        self.capfd.readouterr()
        code = 0
        with warnings.catch_warnings():
            try:
                self.commands.main([*map(str, args)])
            except SystemExit as e:
                code = int(e.code or 0)
        out, errors = self.capfd.readouterr()
        found = STEERING.search(out) or STEERING.search(errors)
        assert not found, f"{found[0]!r} reaches the terminal: {(out, errors)}"
        return Ended(code, out, errors)


@pytest.fixture
def command(monkeypatch, capfd) -> Commands:
    """`command(*args, cwd=...)`: a command in this process."""
    return Commands(monkeypatch, capfd)
