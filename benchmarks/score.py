"""`r2genkg score` against calling pycocoevalcap alone plus the labels: time, processor time and memory.

    python benchmarks/score.py                                        # 20,000 pairs
    python benchmarks/score.py --pairs 2000 --out benchmarks/results/score.json

The pairs are the packaged Open-i findings with changed words (`perturbed` of graph.py), changed otherwise on each side.
Both run one after the other, each in a process of its own as a user runs it, with METEOR's Java. `score` gives more:
graph scores, every variant of clinical efficacy, and the numbers per study. Seconds are those of the clock; processor
seconds depend less on what else the machine does. The memory is the largest sum of the resident memory of a process and
all below it, sampled four times a second. The scores of both are compared.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

from r2genkg.core.files import write_json
from scale import PROGRAM, timed, write_pairs

#: What pycocoevalcap and the labels take without this package's command around them.
ALONE = """
import json, sys
from r2genkg.text.labels import label_reports
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
refs, hypos = (json.load(open(path)) for path in sys.argv[1:])
found = {name: scorer.compute_score(refs, hypos)[0] for name, scorer in
         (("BLEU", Bleu(4)), ("METEOR", Meteor()), ("ROUGE-L", Rouge()), ("CIDEr", Cider()))}
label_reports([text for side in (refs, hypos) for (text,) in side.values()])
print("scores", json.dumps(found))
"""


def measured(args: list[str], pairs: int) -> tuple[dict, str]:
    "One row, and what was printed."
    before, load = resource.getrusage(resource.RUSAGE_CHILDREN), os.getloadavg()[0]
    seconds, memory, printed = timed(args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_MiB": memory}
    return row | {"pairs_per_s": round(pairs / seconds), "load_before": round(load, 1)}, printed


def difference(alone: str, ours: str) -> float:
    "The greatest difference between the scores of both."
    found, scores = json.loads(alone.split("scores ")[-1]), json.loads(ours)
    known = {f"BLEU-{n}": value for n, value in enumerate(found.pop("BLEU"), 1)} | found
    return max(abs(scores[name] - value) for name, value in known.items())


def compared(pairs: int, workers: int) -> dict:
    "Both, one after the other."
    with tempfile.TemporaryDirectory() as place:
        write_pairs(Path(place), pairs)
        refs, hypos = (f"{place}/{name}.json" for name in ("refs", "hypos"))
        alone, said = measured([sys.executable, "-W", "ignore", "-c", ALONE, refs, hypos], pairs)
        score = [*PROGRAM, "score", "--refs", refs, "--hypos", hypos, "--json"]
        ours, scores = measured([*score, "--workers", str(workers)], pairs)
    return {
        "pairs": pairs,
        "workers": workers,
        "pycocoevalcap alone plus the labels": alone,
        "r2genkg score": ours,
        "time ratio": round(ours["seconds"] / alone["seconds"], 2),
        "processor time ratio": round(ours["cpu_seconds"] / alone["cpu_seconds"], 2),
        "greatest difference of scores": difference(said, scores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1, help="of `score`")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = compared(args.pairs, args.workers)
    print(json.dumps(found, indent=1))
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
