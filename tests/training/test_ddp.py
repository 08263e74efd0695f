"""Several processes: two on a CPU learn what one does, with the launcher configuration that the package ships."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from toy_run import run, toy_data

from r2genkg.training.dataset import LengthGroupedSampler
from r2genkg.training.trainer import DataOrder

HERE = Path(__file__).resolve().parents[1]
SHIPPED = HERE.parent / "r2genkg" / "presets" / "accelerate"


def launch(data: Path, out: Path, changes: list[str]) -> None:
    """Two gloo processes, as a user starts them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        Path(sys.executable).with_name("accelerate"),
        "launch",
        "--config_file",
        SHIPPED / "ddp.yaml",
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
        "--main_process_port",
        str(port),
        HERE / "toy_run.py",
        data,
        out,
        *changes,
    ]
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_learn_what_one_does(tmp_path):
    """Five studies on each of two processes against ten on one: loss of every step, validation scores, final weights.

    The last batch of each epoch has four of the 24 studies: one process gets them and a filler, the other only fillers.
    """
    toy_data(tmp_path / "data", 24, 5)
    changes = [
        "train.epochs=2",
        "model.dropout=0",
        "train.evals_per_epoch=1",
        "train.lr=0.003",
        "model.freeze_vision=false",
    ]
    launch(tmp_path / "data", tmp_path / "two", [*changes, "train.batch_size=5"])
    threads = torch.get_num_threads()
    run(tmp_path / "data", tmp_path / "one", [*changes, "train.batch_size=10"])
    torch.set_num_threads(threads)
    logs = [json.loads((tmp_path / out / "history.json").read_text()) for out in ("one", "two")]
    for key, count in (
        ("loss", 6),
        ("grad_norm", 6),
        ("learning_rate", 6),
        ("eval_score", 2),
        ("kg2v_entropy", 2),
    ):
        one, two = ([e[key] for e in log if key in e] for log in logs)
        assert len(one) == count and two == pytest.approx(one, abs=1e-4), key
    for name in ("knowledge.safetensors", "llm/model.safetensors"):
        one, two = (load_file(tmp_path / out / name) for out in ("one", "two"))
        assert one.keys() == two.keys() and all(
            torch.allclose(one[k], two[k], atol=1e-3) for k in one
        )
    assert (tmp_path / "two-starts").read_text() == "0\n0\n"  # both processes took part


def test_a_resumed_process_sees_the_order_of_its_epoch():
    """accelerate sets the epoch of a fresh loader's sampler, but not of a resumed, sharded one."""
    lengths = list(range(10, 34))

    def loader(sampler):
        return prepare_data_loader(
            DataLoader(range(24), batch_size=3, sampler=sampler),
            num_processes=2,
            process_index=1,
            put_on_device=False,
        )

    fresh, sampler = (
        LengthGroupedSampler(lengths, 6, seed=1),
        LengthGroupedSampler(lengths, 6, seed=1),
    )
    whole = loader(fresh)
    whole.set_epoch(1)
    expected = [b.tolist() for b in whole]
    resumed = skip_first_batches(loader(sampler), 2)
    resumed.set_epoch(1)
    DataOrder(SimpleNamespace(sampler=sampler, train_dataset=[])).on_epoch_begin(
        None, SimpleNamespace(epoch=1.5), None
    )
    assert [b.tolist() for b in resumed] == expected[2:] and len(expected) == 4
    assert [
        b.tolist() for b in loader(LengthGroupedSampler(lengths, 6, seed=1))
    ] != expected  # epoch 0


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_shipped_launcher_configurations(name):
    """accelerate's own class refuses keys that it does not know."""
    config = load_config_from_file(str(SHIPPED / f"{name}.yaml"))
    assert (
        isinstance(config, ClusterConfig)
        and config.num_processes == 4
        and config.mixed_precision == "bf16"
    )
    fields = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()).get("fsdp_config", {})
    assert bool(fields) == (name == "fsdp")
    if not fields:
        return
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin

    known = {a.dest for a in launch_command_parser()._actions}
    assert set(fields) <= known, set(fields) - known
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy=fields["fsdp_auto_wrap_policy"].lower(),
        state_dict_type=fields["fsdp_state_dict_type"],
        reshard_after_forward=fields["fsdp_reshard_after_forward"],
        cpu_offload=fields["fsdp_offload_params"],
    )
    assert plugin.fsdp_version == 2


@pytest.mark.parametrize("script", ["train_ddp.sbatch", "train_nodes.sbatch"])
def test_slurm_scripts_start_one_process_then_all(tmp_path, script):
    """The scripts run with stand-ins for Slurm, r2genkg and accelerate, which write down how they were called."""
    calls = tmp_path / "calls"
    for name in ("r2genkg", "accelerate"):
        (tmp_path / name).write_text(
            f'#!/bin/bash\nprintf "%s|" {name} "$@" >> {calls}; echo >> {calls}\n'
        )
    (tmp_path / "srun").write_text(
        '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
    )
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho node1; echo node2\n")
    (tmp_path / "python").symlink_to(sys.executable)
    for name in ("r2genkg", "accelerate", "srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "OUT": "runs/a b",
        "PYTHONPATH": str(HERE.parent),
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_NNODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    done = subprocess.run(
        ["bash", HERE.parent / "scripts" / script, "--set", "studies.path=x y"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    first, second = (line.split("|")[:-1] for line in calls.read_text().splitlines())
    assert (
        first[:2] == ["r2genkg", "train"]
        and first[-4:] == ["--upto", "vision_tokens", "--set", "studies.path=x y"]
        and "runs/a b" in first
    )
    assert (
        second[:2] == ["accelerate", "launch"]
        and second[-2:] == ["--set", "studies.path=x y"]
        and "runs/a b" in second
    )
    options = dict(zip(second[2:], second[3:]))
    assert Path(options["--config_file"]).exists() and options["--num_processes"] == (
        "4" if script == "train_ddp.sbatch" else "8"
    )
    if script == "train_nodes.sbatch":
        assert (
            options["--machine_rank"],
            options["--main_process_ip"],
            options["--num_machines"],
        ) == ("1", "node1", "2")
