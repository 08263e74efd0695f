"""Commands of the program in processes forked from a server with the libraries (`processes` in conftest)."""

import gc
import os
import sys
import warnings

import r2genkg.use.commands
import r2genkg.use.demo
import r2genkg.scores.meteor
import r2genkg.training.pipeline
import r2genkg.use.image_reports
import r2genkg.training.tables
import r2genkg.use.run_audit
import torch
from r2genkg.extraction.annotate import annotate
from r2genkg.text.labels import get_labeler

annotate(["The lungs are clear."])  # vocabulary and tokenizer, too, are read once
get_labeler("rules")
gc.collect()
gc.freeze()  # a command does not look through the libraries for garbage again and again


def job(args: list[str], log: str, errors: str = "", cwd: str = ".") -> None:
    """Run one command as the program does, its errors in a file apart where one is named.

    METEOR is left out: its Java process takes seconds for each score.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    r2genkg.scores.meteor.java_available = lambda: False
    with open(log, "a", buffering=1) as out, open(errors or log, "a", buffering=1) as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os.chdir(cwd)
        sys.argv = ["r2genkg", *args]
        r2genkg.use.commands.main(args)


def limited_job(args: list[str], log: str, limit: int) -> None:
    """`job` where no file may grow beyond `limit` bytes.

    What the command prints goes through a pipe, which has no such limit.
    """
    import resource
    import subprocess

    keeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=open(log, "w"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        job(args, f"/proc/self/fd/{keeper.stdin.fileno()}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        keeper.stdin.close()
        os.close(1)
        os.close(2)
        keeper.wait(20)


def job_in(temporary: str, args: list[str], log: str, cwd: str) -> None:
    """`job` with a temporary folder of its own."""
    import tempfile

    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    job(args, log, cwd=cwd)
