"""The command line as a user drives it: separate processes in a temporary folder."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browser import open_page
from tiny_demo import TINY

COMMAND = str(Path(sys.executable).with_name("r2genkg"))


def program(*args, cwd: Path) -> subprocess.CompletedProcess:
    "The installed program, as a user starts it; all other tests run commands in forked processes."
    return subprocess.run(
        [COMMAND, *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def interrupted(run, tmp_path_factory) -> dict:
    "One tiny demo of the installed program, stopped by Ctrl-C after its second stage, and then finished."
    home = tmp_path_factory.mktemp("demo")
    child = subprocess.Popen(
        [COMMAND, "demo", "--out", "d", *TINY],
        cwd=home,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a suite in the background ignores it
    for line in child.stderr:
        if line.startswith("m3kg"):
            break
    child.send_signal(signal.SIGINT)
    code, run_made = child.wait(60), (home / "d" / "run").exists()
    second = run("demo", "--out", "d", *TINY, cwd=home)
    return {"code": code, "run made": run_made, "second": second.stderr, "out": home / "d"}


@pytest.fixture(scope="module")
def demo(interrupted) -> Path:
    "The finished demo, for the tests of this file."
    return interrupted["out"]


def test_help_of_every_command():
    import typer
    from typer.testing import CliRunner

    from r2genkg.use.commands import app

    def commands(command, path=()):
        yield path, command
        for name, part in getattr(command, "commands", {}).items():
            yield from commands(part, (*path, name))

    for path, command in commands(typer.main.get_command(app)):
        shown = "".join(
            CliRunner().invoke(app, [*path, "--help"], catch_exceptions=False).stdout.split()
        )
        assert "Usage" in shown
        for text in [
            command.help,
            *(getattr(p, "help", "") for p in command.params),
        ]:  # every word, [brackets] too
            assert "".join((text or "").split()) in shown, (path, text)


def test_demo_makes_everything(demo):
    for part in (
        "studies/studies.parquet",
        "m3kg/triples.parquet",
        "scales",
        "classifier",
        "vision_tokens",
        "run/metrics.json",
        "run/predictions.jsonl",
        "run/config.yaml",
        "run/knowledge.safetensors",
        "index.html",
        "figures/fig5_attention.png",
    ):
        assert (demo / part).exists(), part
    page = (demo / "index.html").read_text()
    assert (
        page.count("data:image/png;base64,") >= 12
        and "http://" not in page
        and "https://" not in page
    )
    assert not list(demo.rglob("*.partial-*"))


def test_demo_page_answers_in_order(demo):
    """What was made and four numbers, six studies with marked sentences, then the rest; resumed or not."""
    page = (demo / "index.html").read_text()
    order = ["numbers", "studies", "scores", "mechanism", "graph", "tokens", "maps", "made", "next"]
    places = [page.index(f'<h2 id="{anchor}"') for anchor in order]
    assert places == sorted(places) and all(f'href="#{anchor}"' in page for anchor in order)
    assert page.count('class="card"') == 4 and page.count('class="board"') == 6
    assert "95 % interval" in page and "Grad-CAM, element-wise" in page
    for svg in re.findall(r'href="(figures/[^"]+\.svg)"', page):
        assert (demo / svg).is_file()
    assert "made before" not in page and set(json.loads((demo / "stages.json").read_text())) >= {
        "studies",
        "m3kg",
        "run: full",
        "run: zero-KG",
    }


def test_demo_page_in_a_browser(demo):
    with open_page(420, 900) as page:
        page.goto((demo / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
        page.set_viewport_size({"width": 1200, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200
        sentence = page.locator("label.say").first
        evidence = page.locator(".sentence").first
        assert not evidence.is_visible()
        sentence.click()
        assert evidence.is_visible() and page.locator(".film img.at-1").first.is_visible()
        page.keyboard.press("ArrowUp")  # back to the image alone
        assert not evidence.is_visible() and not page.foreign


def test_second_demo_changes_nothing(run, demo):
    before = (demo / "run" / "metrics.json").stat().st_mtime_ns
    done = run("demo", "--out", demo.name, *TINY, cwd=demo.parent)
    assert done.stderr.count("up to date") >= 6
    assert (demo / "run" / "metrics.json").stat().st_mtime_ns == before


def test_scores_name_the_section(run, demo, tmp_path):
    scores = json.loads(run("evaluate", demo, "--json", cwd=tmp_path).stdout)
    assert (
        scores["settings/section"] == "findings"
        and scores["settings/report_cleaning"] == "iu"
        and "BLEU-4" in scores
    )
    predictions = demo / "run" / "predictions.jsonl"
    assert (
        "settings/section"
        in run(
            "score", "--refs", predictions, "--hypos", predictions, "--ce", "organ", cwd=tmp_path
        ).stdout
    )


def test_report_of_a_drawn_image(run, demo, tmp_path):
    image = next((demo / "studies" / "images").glob("*.png"))
    run("report", image, "--run", demo, "--out", tmp_path / "r.html", cwd=tmp_path)
    assert "data:image/png" in (tmp_path / "r.html").read_text()
    run("report", image, "--run", demo, "--out", tmp_path / "r.json", cwd=tmp_path)
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored[0]["image"] == image.name and stored[0]["patches"] and stored[0]["nodes"]


def test_report_of_real_images(run, demo, tmp_path, shared_data):
    files = sorted(shared_data("cxr").iterdir())
    done = run("report", *files, "--run", demo, "--json", cwd=tmp_path)
    assert len(json.loads(done.stdout)) == len(files) == 3


def test_interrupted_demo_goes_on(interrupted):
    assert interrupted["code"] == 130 and not interrupted["run made"]
    assert (
        interrupted["second"].count("up to date") == 2
        and (interrupted["out"] / "index.html").exists()
    )


def test_two_demos_on_one_folder(run, tmp_path):
    from filelock import FileLock

    (tmp_path / "d").mkdir()
    with FileLock(tmp_path / "d" / ".lock"):
        assert "another run" in run("demo", "--out", "d", *TINY, cwd=tmp_path, expect=1).stderr


def test_graph_from_a_table(run, tmp_path):
    pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "image": ["a.png"] * 3,
            "findings": [
                "Small left pleural effusion.",
                "Small right pleural effusion.",
                "No pleural effusion.",
            ],
        }
    ).to_csv(tmp_path / "t.csv", index=False)
    run("kg", "build", "--studies", "t.csv", "--out", "g", "--min-count", "1", cwd=tmp_path)
    stats = json.loads(run("kg", "stats", "g", "--json", cwd=tmp_path).stdout)
    assert stats["nodes"] >= 4
    assert json.loads(
        run(
            "kg", "export", "g", "--format", "graphml", "--out", "g.graphml", "--json", cwd=tmp_path
        ).stdout
    ) == {"file": "g.graphml"}
    assert json.loads(
        run(
            "kg", "view", "g", "--node", "effusion", "--out", "v.html", "--json", cwd=tmp_path
        ).stdout
    ) == {"page": "v.html"}
    assert "demo" in json.loads(run("presets", "--json", cwd=tmp_path).stdout)
    assert json.loads(run("kg", "compare", "g", "g", "--json", cwd=tmp_path).stdout)


def test_options_without_effect_are_refused_before_the_slow_imports(tmp_path):
    script = (
        "import json, sys\nfrom r2genkg.use.commands import main\n"
        "for args in json.loads(sys.argv[1]):\n"
        "    try: main(args)\n"
        "    except SystemExit as e:\n"
        "        if e.code != 1 or 'torch' in sys.modules: sys.exit(2)\n"
        "    else: sys.exit(3)"
    )
    build = ["kg", "build", "--annotations", "a.jsonl", "--out", "g"]
    options = (
        ["--annotator", "magic"],
        ["--section", "findings"],
        ["--embedder", "minilm"],
        ["--split", "train"],
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps([[*build, *more] for more in options])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    faults = done.stderr.splitlines()
    assert not done.returncode and len(faults) == len(options), done.stderr
    for (name, _), fault in zip(options, faults):
        assert fault.startswith(f"r2genkg: {name} "), fault


def test_linker_table_from_umls(run, tmp_path):
    rows = "C0013687|ENG|P|L1|PF|S1|Y|A1||||SRC|PT|1|Effusion|0|N||\n"
    (tmp_path / "MRCONSO.RRF").write_text(rows)
    (tmp_path / "MRSTY.RRF").write_text("C0013687|T046|B2.2.1.2|Pathologic Function|AT1|256|\n")
    made = run(
        "kg", "linker-table", "MRCONSO.RRF", "--out", "names.parquet", "--json", cwd=tmp_path
    )
    assert json.loads(made.stdout) == {"names": 1, "file": "names.parquet"}
    table = pd.read_parquet(tmp_path / "names.parquet")
    assert table.cui.tolist() == ["C0013687"]
    typed = ("--mrsty", "MRSTY.RRF", "--out", "typed.parquet")
    run("kg", "linker-table", "MRCONSO.RRF", *typed, cwd=tmp_path)
    assert pd.read_parquet(tmp_path / "typed.parquet").tui.tolist() == ["T046"]
    _table(tmp_path, findings=["Small pleural effusion."])
    build = ("kg", "build", "--studies", "t.csv", "--min-count", "1", "--out", "g")
    run(*build, "--linker", "typed.parquet", cwd=tmp_path)
    (tmp_path / "empty.RRF").write_text("")
    fault = run("kg", "linker-table", "empty.RRF", "--out", "e.parquet", cwd=tmp_path, expect=1)
    assert "is it MRCONSO.RRF?" in fault.stderr and not (tmp_path / "e.parquet").exists()
    fault = run("kg", "linker-table", "t.csv", "--out", "t.csv", cwd=tmp_path, expect=1)
    assert "is the source itself" in fault.stderr


def test_verdicts_of_two_readers(run, tmp_path):
    head = "study,query,row,label,source,weight,verdict,reader\n"
    given = {
        "a.csv": "s1,1,4,Edema,s9,0.5,on the disease,A\ns1,1,5,Edema,s8,0.3,,A\n",
        "b.csv": "s1,1,4,Edema,s9,0.5,not on it,B\ns2,2,6,Fracture,s9,0.5,cannot say,B\n",
    }
    for name, lines in given.items():
        (tmp_path / name).write_text(head + lines)
    rows = json.loads(run("audit-verdicts", "a.csv", "b.csv", "--json", cwd=tmp_path).stdout)
    counts = {row["label"]: (row["on the disease"], row["not on it"], row["share"]) for row in rows}
    assert counts == {"Edema": (1, 1, 0.5), "Fracture": (0, 0, None), "all": (1, 1, 0.5)}
    assert "cannot say" in run("audit-verdicts", "a.csv", cwd=tmp_path).stdout
    (tmp_path / "c.csv").write_text(head + "s1,1,4,Edema,s9,0.5,maybe,A\n")
    fault = run("audit-verdicts", "c.csv", cwd=tmp_path, expect=1)
    assert "c.csv: verdict 'maybe' is none of" in fault.stderr


def test_graph_from_iu_xray(run, tmp_path, shared_data):
    run(
        "kg",
        "build",
        "--studies",
        shared_data("iu_xray", "annotation.json"),
        "--out",
        "kg_iu",
        cwd=tmp_path,
    )
    assert json.loads(run("kg", "stats", "kg_iu", "--json", cwd=tmp_path).stdout)["nodes"] > 300


def test_label_and_score(run, tmp_path):
    pd.DataFrame({"findings": ["No pleural effusion.", "Moderate cardiomegaly."]}).to_csv(
        tmp_path / "t.csv", index=False
    )
    run("label", "t.csv", "--out", "l.csv", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "l.csv")
    assert table.loc[0, "Pleural Effusion"] == 0 and table.loc[1, "Cardiomegaly"] == 1
    (tmp_path / "r.json").write_text(
        json.dumps({"a": ["the heart is enlarged ."], "b": ["no pleural effusion ."]})
    )
    scores = json.loads(
        run("score", "--refs", "r.json", "--hypos", "r.json", "--json", cwd=tmp_path).stdout
    )
    assert scores["BLEU-1"] == pytest.approx(1, abs=1e-6)
    scores = json.loads(
        run(
            "score",
            "--refs",
            "r.json",
            "--hypos",
            "r.json",
            "--ce",
            "organ",
            "--confusion",
            "--json",
            cwd=tmp_path,
        ).stdout
    )
    assert {key for key in scores if key.startswith("ce_")} == {
        f"ce_{v}/macro-14/u1" for v in ("precision", "recall", "f1")
    }
    assert scores["confusion"]["positive"] == {
        "blank": 0,
        "positive": 2,
        "negative": 0,
        "uncertain": 0,
    }  # Cardiomegaly, No Finding
    assert (
        "none of r2genkg"
        in run(
            "score",
            "--refs",
            "r.json",
            "--hypos",
            "r.json",
            "--ce",
            "R2Gen",
            cwd=tmp_path,
            expect=1,
        ).stderr
    )


# Bad input: one clear line that names the place, exit code 1, nothing left behind.


def _table(folder: Path, **columns) -> Path:
    path = folder / "t.csv"
    pd.DataFrame(
        {"id": ["a"], "image": ["a.png"], "findings": ["Small effusion."]} | columns
    ).to_csv(path, index=False)
    return path


def test_missing_image_is_named(run, demo, tmp_path):
    assert "none.png" in run("report", "none.png", "--run", demo, cwd=tmp_path, expect=1).stderr


def test_truncated_png_is_named(run, demo, tmp_path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:60])
    assert (
        "x.png"
        in run("report", "x.png", "--run", demo, "--out", "r.html", cwd=tmp_path, expect=1).stderr
    )
    assert not (tmp_path / "r.html").exists()


def test_training_names_the_missing_image(run, tmp_path):
    _table(tmp_path, image=["nowhere.png"], split=["train"])
    done = run(
        "train",
        "--preset",
        "demo",
        "--out",
        "r",
        *TINY,
        "--set",
        "studies.source=files",
        "--set",
        "studies.path=t.csv",
        cwd=tmp_path,
        expect=1,
    )
    assert "nowhere.png" in done.stderr and not (tmp_path / "r" / "run").exists()


def test_wrong_column(run, tmp_path):
    pd.DataFrame({"id": ["a"], "image": ["a.png"], "finding": ["x"]}).to_csv(
        tmp_path / "t.csv", index=False
    )
    assert (
        "findings"
        in run("kg", "build", "--studies", "t.csv", "--out", "g", cwd=tmp_path, expect=1).stderr
    )
    assert "finding" in run("label", "t.csv", "--out", "l.csv", cwd=tmp_path, expect=1).stderr
    assert {p.name for p in tmp_path.iterdir()} == {"t.csv"}


def test_empty_reports_and_empty_graph(run, tmp_path):
    _table(tmp_path, findings=[""])
    run("kg", "build", "--studies", "t.csv", "--out", "g", cwd=tmp_path, expect=1)
    _table(tmp_path, findings=["Xyzzy."])
    assert (
        "graph"
        in run("kg", "build", "--studies", "t.csv", "--out", "g", cwd=tmp_path, expect=1).stderr
    )
    assert not (tmp_path / "g").exists()


def test_unknown_key_and_preset(run, tmp_path):
    assert (
        "train.epochs"
        in run("train", "--out", "r", "--set", "train.epoch=1", cwd=tmp_path, expect=1).stderr
    )
    assert (
        "demo-openi"
        in run("train", "--out", "r", "--preset", "demoo", cwd=tmp_path, expect=1).stderr
    )


def test_a_fault_is_one_line_that_steers_no_terminal(run, tmp_path):
    done = run("kg", "stats", "none\x1b[31m\nthere", cwd=tmp_path, expect=1)
    assert (
        "\x1b" not in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
        and "none\ufffd[31m there" in done.stderr
    )


def test_dry_run_makes_nothing(run, tmp_path):
    plan = json.loads(
        run("train", "--dry-run", "--preset", "iu-xray", "--json", cwd=tmp_path).stdout
    )
    assert (
        plan["fits"] is True
        and "does not fit" in plan["asked for"]
        and plan["optimiser steps"] > 0
        and "not measured" in plan["note"]
    )
    assert {"card", "memory GiB", "hours", "trained parameters, knowledge prefix"} <= set(plan)
    pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "image": "a.png",
            "findings": "Small effusion.",
            "split": ["train", "train", "test"],
        }
    ).to_csv(tmp_path / "t.csv", index=False)
    from r2genkg.data.readers import read_studies
    from r2genkg.data.study import save_studies

    save_studies(read_studies(tmp_path / "t.csv"), tmp_path / "t.parquet")
    own = [
        "train",
        "--dry-run",
        "--preset",
        "iu-xray",
        "--set",
        "studies.path=t.parquet",
        "--set",
        "train.epochs=3",
        "--set",
        "train.batch_size=1",
        "--set",
        "train.accumulate=1",
    ]
    assert (
        json.loads(run(*own, "--card", "80", "--json", cwd=tmp_path).stdout)["optimiser steps"]
        == 3 * 2
    )
    assert {p.name for p in tmp_path.iterdir()} == {"t.csv", "t.parquet"}
    assert "--dry-run" in run("train", "--preset", "demo", cwd=tmp_path, expect=2).stderr


def test_the_program_ends_as_its_commands_do(tmp_path):
    done = program("kg", "stats", "none", cwd=tmp_path)
    assert (
        done.returncode == 1
        and done.stderr.startswith("r2genkg: none")
        and len(done.stderr.splitlines()) == 1
    )
    assert (
        program("--help", cwd=tmp_path).stdout.count("kg")
        and program("nothing", cwd=tmp_path).returncode == 2
    )


def test_missing_folders(run, tmp_path):
    for command in (
        ["kg", "stats", "none"],
        ["evaluate", "none"],
        ["score", "--refs", "no.json", "--hypos", "no.json"],
        ["label", "no.csv", "--out", "l.csv"],
    ):
        assert "no" in run(*command, cwd=tmp_path, expect=1).stderr


def test_commands_do_not_write_over_what_they_read(run, tmp_path):
    _table(tmp_path)
    before = (tmp_path / "t.csv").read_text()
    for command in (
        ["label", "t.csv", "--out", "t.csv"],
        ["annotate", "t.csv", "--out", "t.csv"],
        ["extract", "run", "--studies", "t.csv", "--model", "m", "--out", "t.csv"],
    ):
        assert "is the source itself" in run(*command, cwd=tmp_path, expect=1).stderr
    assert (tmp_path / "t.csv").read_text() == before


# Own data: what a newcomer has, and what stops him or her.


def test_version_and_short_help(run, tmp_path):
    from r2genkg import __version__

    assert run("--version", cwd=tmp_path).stdout == f"r2genkg {__version__}\n"
    for command in ((), ("kg",), ("train",)):
        assert "Usage" in run(*command, "-h", cwd=tmp_path).stdout
    listed = " ".join(run("-h", cwd=tmp_path).stdout.split())
    assert "..." not in listed.partition("Commands:")[2]


def test_a_path_with_drawn_images_is_refused(run, tmp_path):
    _table(tmp_path)
    given = ("train", "--preset", "demo-small", "--set", "studies.path=t.csv", "--out", "r")
    fault = run(*given, cwd=tmp_path, expect=1).stderr
    assert "source is phantom" in fault and "own-small" in fault
    assert not (tmp_path / "r").exists()


def test_reports_without_films_feed_the_graph(run, tmp_path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a.png")
    _table(
        tmp_path,
        id=["a", "b", "c"],
        image=["a.png", "", "a.png"],
        findings=["Small effusion.", "Large pneumothorax.", "Clear lungs."],
        split=["train", "train", "test"],
    )
    own = ("train", "--preset", "own-small", "--set", "studies.path=t.csv")
    done = run(*own, "--upto", "m3kg", "--out", "r", cwd=tmp_path)
    assert "1 train, 0 val, 1 test" in done.stderr and "2 reports" in done.stderr
    assert not (tmp_path / "r" / ".lock").exists()


def test_offline_names_every_missing_model_at_once(run, tmp_path):
    Image.fromarray(np.zeros((224, 224), np.uint8)).save(tmp_path / "a.png")
    _table(tmp_path, id=["a", "b"], image=["a.png"] * 2, findings=["Clear."] * 2)
    named = ("llm.name=nobody/llama", "classifier.backbone=nobody/swin", "llm.adapter=lora")
    own = ["train", "--offline", "--preset", "own-small", "--set", "studies.path=t.csv"]
    own += ["--set", "train.evals_per_epoch=0", "--out", "r"]
    for change in named:
        own += ["--set", change]
    fault = run(*own, cwd=tmp_path, expect=1).stderr
    assert "no study with findings in the split" in fault  # this machine comes first
    _table(
        tmp_path,
        id=["a", "b"],
        image=["a.png"] * 2,
        findings=["Clear."] * 2,
        split=["train", "test"],
    )
    fault = run(*own, cwd=tmp_path, expect=1).stderr.splitlines()[-1]
    assert "nobody/llama" in fault and "nobody/swin" in fault and "offline" in fault


def test_cost_of_annotation_needs_no_output(run, tmp_path):
    _table(tmp_path)
    given = ("annotate", "t.csv", "--annotator", "llm:gpt-4o", "--dry-run", "--json")
    given += ("--price-input", "1", "--price-output", "1")
    assert json.loads(run(*given, cwd=tmp_path).stdout)["calls"] >= 1
    assert {p.name for p in tmp_path.iterdir()} == {"t.csv"}
    run("annotate", "t.csv", cwd=tmp_path, expect=2)


def test_trace_says_what_it_left_out_and_what_is_near(run, tmp_path):
    _table(
        tmp_path,
        id=list("abcdefgh"),
        image=[""] * 8,
        findings=["Small left pleural effusion."] * 8,
    )
    run("kg", "build", "--studies", "t.csv", "--out", "g", "--min-count", "1", cwd=tmp_path)
    trace = ("kg", "trace", "g", "effusion", "pleural", "--studies", "t.csv")
    assert "of 8 sentences that the graph counted; --every" in run(*trace, cwd=tmp_path).stderr
    assert "sentences that" not in run(*trace, "--every", cwd=tmp_path).stderr
    fault = run("kg", "trace", "g", "small", "left", "--studies", "t.csv", cwd=tmp_path, expect=1)
    assert "no edge between 'small' and 'left'; near: " in fault.stderr


def test_a_headline_begins_the_scores(run, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"a": ["no effusion ."], "b": ["large heart ."]}))
    shown = run("score", "--refs", "r.json", "--hypos", "r.json", cwd=tmp_path).stdout.splitlines()
    assert shown[0].startswith("BLEU-1") and any(not line.strip() for line in shown[:12])
    assert "ce_f1/micro-14/u0" in "\n".join(shown[: shown.index("")])
