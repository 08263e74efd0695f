"""A language model of one's own as annotator: its token F1 against GPT-4o's answers, beside the rules'.

    python benchmarks/local_llm.py table reports.csv --count 20     # of the shared answers
    python -m llama_cpp.server --model qwen2.5-coder-1.5b-instruct-q4_k_m.gguf --n_ctx 4096 --port 8733
    r2genkg annotate reports.csv --out llm.jsonl --annotator llm:qwen.yaml --partial
    python benchmarks/local_llm.py score llm.jsonl --out benchmarks/results/local_llm.json

The answers are those of ReXKG, $R2GENKG_SHARED/data/rexkg. Only sentences that both sides have are scored.
"""

import argparse
import csv
import json
import os
from collections import Counter
from pathlib import Path

from r2genkg.core.files import read_json, write_json
from r2genkg.data.annotation import SentenceAnnotation
from r2genkg.extraction.annotation_files import load_annotations
from r2genkg.extraction.annotation_scores import score_annotations
from r2genkg.extraction.llm_cost import answer_paths
from r2genkg.extraction.replay import Replay, letters_key
from r2genkg.text.rules import RulesAnnotator


def answers_file(shared: str) -> Path:
    """ReXKG's answers of GPT-4o."""
    return Path(shared) / "data" / "rexkg" / "gpt4o_entities_500.json"


def make_table(out: Path, shared: str, count: int) -> None:
    """The first reports of the answers as a table of studies."""
    reports = list(Replay(answers_file(shared)).reports.values())[:count]
    with open(out, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "findings"])
        for n, sentences in enumerate(reports):
            rows.writerow([f"report{n:02d}", " ".join(s.text for s in sentences)])


def pairs(found: Path, shared: str) -> list[tuple[SentenceAnnotation, SentenceAnnotation]]:
    """(GPT-4o's, the model's) of all sentences that both have with the same words."""
    answers = Replay(answers_file(shared))
    wanted = {letters_key(s.text): s for report in answers.reports.values() for s in report}
    mine = [s for _, report in load_annotations(found, partial=True) for s in report]
    both = [(wanted.get(letters_key(s.text)), s) for s in mine]
    return [(w, s) for w, s in both if w is not None and w.tokens == s.tokens]


def untyped(wanted: list[SentenceAnnotation], found: list[SentenceAnnotation]) -> float:
    """F1 of the words that are in any term."""
    counts: Counter[str] = Counter()
    for w, f in zip(wanted, found, strict=True):
        words = [{i for e in s.entities for i in range(e.start, e.end + 1)} for s in (w, f)]
        counts.update(hits=len(words[0] & words[1]), all=len(words[0]) + len(words[1]))
    return round(2 * counts["hits"] / max(counts["all"], 1), 4)


def score(found: Path, shared: str) -> dict:
    """Scores of the model and of the rules on the same sentences."""
    wanted, model = (list(side) for side in zip(*pairs(found, shared), strict=True))
    rules = [RulesAnnotator().annotate_sentence(s.text) for s in model]
    kept = [i for i, r in enumerate(rules) if r.tokens == wanted[i].tokens]
    result = {"sentences": len(kept)}
    for name, side in (("model", model), ("rules", rules)):
        mine, theirs = ([s[i] for i in kept] for s in (side, wanted))
        scores = score_annotations(theirs, mine)
        result[name] = {
            "typed token F1": scores["token F1"],
            "untyped token F1": untyped(theirs, mine),
            "span F1": scores["span F1"],
        }
    return result


def run_facts(found: Path) -> dict:
    """What the run says about itself."""
    summary = read_json(answer_paths(found)[2], dict)
    names = ("reports", "finished", "rejected", "failed", "left", "calls", "repairs")
    return {name: summary[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("table", "score"))
    parser.add_argument("file", type=Path, help="the table to write, or the annotations to score")
    parser.add_argument("--count", type=int, default=20, help="reports of the table")
    parser.add_argument("--model", default="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M")
    parser.add_argument("--shared", default=os.environ.get("R2GENKG_SHARED", "../shared"))
    parser.add_argument("--out", help="write the scores to this file")
    args = parser.parse_args()
    if args.what == "table":
        return make_table(args.file, args.shared, args.count)
    result = {"model": args.model, "run": run_facts(args.file)} | {
        "scores": score(args.file, args.shared)
    }
    print(json.dumps(result, indent=2))
    if args.out:
        write_json(Path(args.out), result)


if __name__ == "__main__":
    main()
