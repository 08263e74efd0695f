"""Commands ended from outside, run with little memory or on an old terminal: one line, and nothing left behind."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r2genkg.core.files import R2GenKGError, read_yaml
from r2genkg.core.weights import load_tensors, trusted
from r2genkg.kg.graph import M3KG
from r2genkg.model.model import R2GenKG
from r2genkg.vision.vision_tokens import VisionTokens

PROGRAM = [sys.executable, "-c", "from r2genkg.use.commands import main; main()"]


def reports(file: Path, count: int) -> Path:
    """A table of reports, all different."""
    rows = [
        f"r{n},a.png,Small left pleural effusion of {n} mm. The heart is {n} cm wide. No edema {n}."
        for n in range(count)
    ]
    file.write_text("id,image,findings\n" + "\n".join(rows) + "\n")
    return file


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Enough reports for two workers, and for a signal while they are read."""
    return reports(tmp_path_factory.mktemp("reports") / "r.csv", 8_000)


@pytest.fixture(scope="module")
def short_table(tmp_path_factory) -> Path:
    """Few reports: a command that has enough memory is soon through them."""
    return reports(tmp_path_factory.mktemp("reports") / "r.csv", 200)


def started(args: list, folder: Path, **options) -> subprocess.Popen:
    """A command in a session of its own."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, args)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def alive(session: int) -> list[int]:
    """Processes of a session that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(pattern: str, folder: Path, process: subprocess.Popen) -> None:
    until = time.time() + 120
    while not list(folder.rglob(pattern)) and process.poll() is None and time.time() < until:
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("end, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("workers", [1, 2])
def test_end_of_annotate(table, tmp_path, end, code, workers):
    args = ["annotate", table, "--out", tmp_path / "a.jsonl", "--workers", workers]
    process = started(args, tmp_path)
    wait_for(".a.jsonl.partial-*", tmp_path, process)
    process.send_signal(end)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == code, errors[-2000:]
    last = errors.strip().splitlines()[-1]
    assert last == "r2genkg: interrupted; the same command goes on where it stopped"
    assert "Traceback" not in errors and not list(tmp_path.iterdir())
    until = time.time() + 30
    while alive(process.pid) and time.time() < until:
        time.sleep(0.2)
    assert not alive(process.pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_killed_parent(table, tmp_path):
    args = ["annotate", table, "--out", tmp_path / "a.jsonl", "--workers", 2]
    process = started(args, tmp_path)
    wait_for(".a.jsonl.partial-*", tmp_path, process)
    until = time.time() + 60
    while len(alive(process.pid)) < 3 and time.time() < until:
        time.sleep(0.1)
    process.kill()
    process.wait(30)
    until = time.time() + 60
    while alive(process.pid) and time.time() < until:
        time.sleep(0.2)
    assert not alive(process.pid)


@pytest.mark.parametrize("mebibytes", [300, 700, 1500])
@pytest.mark.parametrize("name", ["annotate", "label", "kg build"])
def test_little_memory(short_table, tmp_path, name, mebibytes):
    """The command ends as usual or with one line."""
    args = {
        "annotate": ["annotate", short_table, "--sample", 20, "--out", tmp_path / "a.jsonl"],
        "label": ["label", short_table, "--out", tmp_path / "l.csv", "--workers", 1],
        "kg build": [
            "kg",
            "build",
            "--studies",
            short_table,
            "--out",
            tmp_path / "g",
            "--workers",
            1,
        ],
    }[name]
    most = mebibytes * 2**20
    process = started(
        args,
        tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    try:
        errors = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:  # it has enough and works
        process.kill()
        process.communicate()
        return
    if process.returncode == 0 or process.returncode < 0:  # a library may abort
        return
    assert "Traceback" not in errors, errors[-1500:]
    assert errors.strip().splitlines()[-1].startswith("r2genkg: ")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-16-le"])
def test_old_terminal(tmp_path, encoding):
    name = "no \u2265 such \u65e5\u672c graph"
    done = subprocess.run(
        [*PROGRAM, "kg", "stats", name],
        cwd=tmp_path,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 1 and "Traceback".encode(encoding) not in done.stderr


def bomb(depth: int, width: int, merge: bool) -> str:
    """YAML whose aliases stand for `width ** depth` values."""
    text = "l0: &l0 {a: 1}\n" if merge else "l0: &l0 [x, x]\n"
    for n in range(1, depth):
        parts = ", ".join([f"*l{n - 1}"] * width)
        text += f"l{n}: &l{n} {{<<: [{parts}]}}\n" if merge else f"l{n}: &l{n} [{parts}]\n"
    return text


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("depth, width", [(8, 9), (20, 5), (30, 2), (200, 3), (6, 100)])
def test_yaml_bomb(tmp_path, depth, width, merge):
    file = tmp_path / "bomb.yaml"
    file.write_text(bomb(depth, width, merge))
    start = time.perf_counter()
    with pytest.raises(R2GenKGError, match="bomb.yaml: not valid YAML: its aliases|cannot be read"):
        read_yaml(file, "bomb.yaml")
    assert time.perf_counter() - start < 20


def test_yaml_alias_of_itself(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a [*a]\n")
    assert read_yaml(tmp_path / "a.yaml", "a.yaml") is not None or True


@pytest.mark.parametrize(
    "text",
    [
        "root:x:0:0:secret\n\tdaemon",
        "{secret",
        "- secret\n  b: [",
        "\x00secret",
        "!!python/object:secret",
    ],
)
def test_linked_file_is_not_shown(tmp_path, text):
    (tmp_path / "other").write_text(text)
    (tmp_path / "c.yaml").symlink_to(tmp_path / "other")
    with pytest.raises(R2GenKGError) as refused:
        read_yaml(tmp_path / "c.yaml", "c.yaml")
    assert "secret" not in str(refused.value), refused.value


SPARSE = [2**27, 2**30, 2**36]


@pytest.mark.parametrize("size", SPARSE)
def test_sparse_weights(tmp_path, size):
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    for name in ("w.safetensors", "model.safetensors"):
        with open(tmp_path / name, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
    (tmp_path / "config.json").write_text("{}")
    for read in (lambda: load_tensors(tmp_path / "w.safetensors"), lambda: trusted(tmp_path)):
        with pytest.raises(R2GenKGError, match="on the disk"):
            read()


KERNELS = ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"]


@pytest.mark.parametrize("key", KERNELS)
def test_kernel_of_the_hub(tmp_path, key):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", key: "evil/kernel"}))
    with pytest.raises(R2GenKGError, match="never fetched here"):
        trusted(tmp_path)


def worded(value):
    """JSON with a word in place of each number."""
    if isinstance(value, dict):
        return {k: worded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [worded(v) for v in value]
    return "many" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


JSONS = ["vision_tokens/meta.json", "scales/nodes.json", "vision/config.json", "llm/config.json"]


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.filterwarnings("ignore")
def test_words_for_numbers_in_a_run(toy, tmp_path, name):
    shutil.copytree(toy, tmp_path / "run")
    file = tmp_path / "run" / name
    file.write_text(json.dumps(worded(json.loads(file.read_text()))))
    try:
        R2GenKG.load(tmp_path / "run")
        VisionTokens.load(tmp_path / "run" / "vision_tokens")
    except R2GenKGError as e:
        assert "\n" not in str(e) and str(tmp_path) in str(e)


def test_words_for_numbers_in_a_graph(short_table, tmp_path, run):
    run("kg", "build", "--studies", short_table, "--out", "g", "--workers", 1, cwd=tmp_path)
    file = tmp_path / "g" / "meta.json"
    file.write_text(json.dumps(worded(json.loads(file.read_text()))))
    try:
        M3KG.load(tmp_path / "g").stats()
    except R2GenKGError as e:
        assert "meta.json" in str(e)
