"""One and two processes write the same to the last byte; numbers of workers that make no sense are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from r2genkg.core.files import R2GenKGError
from r2genkg.core.pool import CHUNK, worker_count
from r2genkg.kg.build import count_texts
from r2genkg.text.labels import label_reports

#: Enough for two workers: each takes four chunks.
COUNT = 8 * CHUNK


def text(n: int) -> str:
    sides, sizes = ("left", "right"), ("Small", "Large", "Moderate")
    end = ("No edema.", "Mild edema.", "", "Das Herz ist nicht vergrößert und die Lunge ist frei.")
    return f"{sizes[n % 3]} {sides[n % 2]} effusion of {n % 997} mm. {end[n % 4]}" * (n % 50 != 7)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    rows = [f"r{n},a.png,{text(n)}" for n in range(COUNT)]
    (folder / "r.csv").write_text("id,image,findings\n" + "\n".join(rows) + "\n", "utf-8")
    for name, shift in (("refs", 0), ("hypos", 3)):
        reports = {str(n): [text(n + shift) or "Clear."] for n in range(COUNT)}
        (folder / f"{name}.json").write_text(json.dumps(reports))
    return folder


def arguments(name: str, inputs: Path, out: Path) -> list:
    table = inputs / "r.csv"
    return {
        "annotate": ["annotate", table, "--out", out / "a.jsonl"],
        "label": ["label", table, "--key", "id", "--out", out / "l.csv"],
        "kg build": ["kg", "build", "--studies", table, "--out", out / "g"],
        "score": [
            *("score", "--refs", inputs / "refs.json", "--hypos", inputs / "hypos.json", "--json")
        ],
    }[name]


@pytest.mark.parametrize("name", ["annotate", "label", "kg build", "score"])
def test_two_workers_write_what_one_writes(inputs, tmp_path, run, name):
    written = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        done = run(*arguments(name, inputs, out), "--workers", workers, cwd=tmp_path)
        files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        written.append(json.loads(done.stdout) if name == "score" else files)
    assert written[0] and written[0] == written[1]


@pytest.mark.parametrize("kind", ["views apart", "views side by side", "the same again"])
def test_repeated_reports_in_two_workers(kind):
    def row(n: int) -> tuple[str, str]:
        study = {"views apart": n % 3_000, "views side by side": n // 2}.get(kind, n % 4_000)
        view = {"views apart": n // 3_000, "views side by side": n % 2}.get(kind, 0)
        return f"s{study}_view{view}", f"Small left effusion. Nodule {study % 50}. No edema."

    texts = [row(n) for n in range(COUNT)]
    one, two = count_texts(texts, workers=1), count_texts(texts, workers=2)
    for field in ("mentions", "spellings", "triples", "repeats", "reports_of"):
        assert list(getattr(one, field).items()) == list(getattr(two, field).items())
    assert (one.reports, one.sentences) == (two.reports, two.sentences) and one.repeats


@pytest.mark.parametrize("name", ["annotate", "label", "kg build", "score"])
@pytest.mark.parametrize("workers", ["-1", "100000", "2.5", "two", "1e3", ""])
def test_workers_that_make_no_sense(inputs, tmp_path, run, name, workers):
    expect = 1 if workers == "100000" else 2
    done = run(
        *arguments(name, inputs, tmp_path), "--workers", workers, cwd=tmp_path, expect=expect
    )
    assert "workers" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", [-1, -100, 10_000, 10**12])
def test_numbers_of_workers_in_python(wanted):
    with pytest.raises(R2GenKGError, match=f"workers={wanted}: this machine has .* or 0 for"):
        worker_count(wanted, 10**6)
    with pytest.raises(R2GenKGError, match="workers="):
        label_reports(["Clear."], workers=wanted)


def test_label_of_nothing_and_of_little():
    assert label_reports([]).shape == (0, 14) and label_reports([], workers=0).shape == (0, 14)
    few, many = (label_reports(["Edema.", "", "x"] * n, workers=2) for n in (1, COUNT // 3 + 1))
    assert np.array_equal(few.values, many.values[:3], equal_nan=True)
