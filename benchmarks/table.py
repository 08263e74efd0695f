"""benchmarks/README.md from the result files in benchmarks/results: what was measured, against what, by which command.

python benchmarks/prefix.py --out benchmarks/results/prefix.json     # each benchmark writes its own file
python benchmarks/table.py                                           # then the table; what has no file is "not run"
"""

from collections.abc import Callable
from pathlib import Path

from r2genkg.core.files import atomic_path, read_json

HOME = Path(__file__).parent
HEAD = """# Benchmarks

"Against" another procedure means a straight re-creation of it, with the same weights, input and output, in one run; the
file says how. The table is made by `python benchmarks/table.py` from the files in `results/`, which the commands wrote on a
machine with two CPU cores, by one thread where nothing else is said. *Computed* figures were not measured.

| what | result | command |
|---|---|---|
"""


def prefix(r: dict) -> str:
    return (
        f"{r['evaluation_speedup']:.2f} times faster in evaluation ({r['evaluation_s']['reference']:.2f} s, {r['evaluation_s']['ours']:.2f} s), greatest "
        f"difference {r['greatest_difference']:.0e}; a training step of batch {r['batch']} {r['training_speedup']:.2f} times, peak memory "
        f"{r['training_peak_ratio']:.2f} of the reference's"
    )


def beams(r: dict) -> str:
    each = [(row["studies"], row["speedup"], *row["seconds"].values()) for row in r["rows"]]
    return (
        "; ".join(
            f"{n} at once {speedup:.2f} times ({apart:.1f} s, {once:.1f} s)"
            for n, speedup, apart, once in each
        )
        + "; identical tokens"
    )


def parity(r: dict) -> str:
    return f"{max(r['greatest absolute difference'].values()):.1e} over {r['values compared']:,} values"


def plan(r: dict) -> str:
    return "; ".join(
        f"{name}: {p['memory GiB']} GiB ({p['settings'].split(', ', 1)[1]}), {p['hours']} h"
        for name, p in r["plans"].items()
    )


def pruning(r: dict) -> str:
    def row(k: str, v: dict) -> str:
        score = (
            v["scores"]
            if isinstance(v["scores"], str)
            else "CE F1 {:.3f} [{:.3f}, {:.3f}]".format(*v["scores"]["ce_f1/micro-14/u0"])
        )
        return f"{k} nodes: {v['prefix tokens']} tokens, {v['llama-2-7b: share of all nodes']:.2f} of the operations (computed), {score}"

    return "; ".join(row(k, v) for k, v in r["k"].items())


def annotation(r: dict) -> str:
    speed, exact = r["speed"], r["phantoms, style A"]
    return (
        f"{speed['annotated sentences/s, all distinct']:,.0f} distinct sentences/s; typed token F1 {r['GPT-4o answers']['typed token F1']:.3f} on 500 answers of GPT-4o; "
        f"phantoms {exact['entity F1']:.3f} (entities), {exact['relation F1']:.3f} (relations); labels against MeSH macro F1 {r['MeSH']['macro F1']:.3f}"
    )


def loops(rows: list) -> str:
    return "; ".join(
        f"{row['size']}: {row['whole_ratio']:,.0f} times"
        + (f" ({row['note']})" if row["note"] else "")
        for row in rows
    )


def growth(rows: list) -> str:
    return "; ".join(
        f"{row['reports']:,}: {row['reports_per_cpu_s']:,} reports/s, {row['peak_MiB']:,} MiB, time per report {row['time_per_report_to_first']:.2f} of the first"
        for row in rows
    )


def qlora(r: dict) -> str:
    loss, beat = list(r["loss by step"].values()), r["CE F1 micro of what it has to beat"]
    score = "{:.2f} [{:.2f}, {:.2f}]".format(*r["intervals"]["ce_f1/micro-14/u0"])
    return (
        f"loss {loss[0]:.2f} to {loss[-1]:.2f} in {r['training seconds'] / 60:.0f} minutes; CE F1 micro {score} on {r['test studies']} studies; "
        + ", ".join(f"{name} {value:.2f}" for name, value in beat.items())
    )


def questions(rows: dict) -> str:
    def row(name: str, v: dict) -> str:
        more = (
            ""
            if "difference" not in v
            else ", difference {difference:+.3f} [{low:+.3f}, {high:+.3f}], p {p_holm:.2f}".format(
                **v["difference"]
            )
        )
        seeds = f" ({len(v['seeds'])} seeds)" if len(v["seeds"]) > 1 else ""
        return "{}{}: CE F1 {:.3f} [{:.3f}, {:.3f}]{}".format(
            name, seeds, *v["ce_f1/micro-14/u0"], more
        )

    return "; ".join(row(*item) for item in rows.items())


def entities(r: dict) -> str:
    e = r["entities"]
    return (
        f"token F1 {e['test, model']['token F1']:.4f}, span F1 {e['test, model']['span F1']:.4f} on {e['sentences']['test']} sentences of reports that were not trained on; "
        f"the rules {e['test, rules']['token F1']:.4f}, the annotator on copies of a sentence {e['annotator with itself']['token F1']:.3f}"
    )


ROWS: tuple[tuple[str, str, Callable, str], ...] = (
    (
        "Knowledge prefix of one study, the paper's sizes, against the reference's procedure",
        "prefix",
        prefix,
        "prefix.py",
    ),
    (
        "Beam search, SmolLM2-135M, 3 beams, 445 prefix tokens, 100 new ones, against computing the input for every beam",
        "beam_search",
        beams,
        "beam_search.py",
    ),
    (
        "Outputs of the reference's modules against ours, same weights",
        "parity",
        parity,
        "parity.py --shared FOLDER",
    ),
    (
        "Llama-2-7B with the paper's settings on CheXpert Plus, ten epochs, on one card (computed)",
        "plan",
        plan,
        "plan.py",
    ),
    (
        "Nodes that the language model sees (`prune_kg`)",
        "pruning",
        pruning,
        "pruning.py --runs ...",
    ),
    (
        "Graphs of 300 and of 500 nodes, one scale alone; 500 also with denoising",
        "questions",
        lambda r: questions(r["table_denoising"]),
        "questions.py ROOT ...",
    ),
    (
        "Disease queries tied to labels, or to the graph nodes of their labels",
        "questions",
        lambda r: questions(r["table_alignment"]),
        "questions.py ROOT ...",
    ),
    (
        "QLoRA on pretrained weights, SmolLM2-135M in NF4, 600 drawn studies, two passes, two threads",
        "qlora",
        qlora,
        "qlora.py RUN",
    ),
    ("Rules annotator and labeler", "annotate", annotation, "annotate.py"),
    (
        "Entity model on MiniLM, trained on four fifths of 500 answers of GPT-4o",
        "extract",
        entities,
        "extract.py --parts entities --recurring --dev 0 --epochs 5",
    ),
    (
        "The same, two models on the first 20 layers of SmolLM2-135M, read in both directions, two threads",
        "extract_smollm2",
        entities,
        "extract.py --parts entities --recurring --dev 0 --encoder smollm2 --encoder-layers 20 --lr-encoder 1e-4 --epochs 4 --members 2",
    ),
    (
        "Nodes and edges of a graph at multiples of ReXKG's size, against its loops",
        "graph",
        loops,
        "graph.py --rexkg FOLDER",
    ),
    (
        "Graph from reports, with a memory of sentences",
        "growth",
        growth,
        "graph.py --growth 10000 50000 250000",
    ),
    (
        "Graph from reports, every sentence annotated anew",
        "growth_uncached",
        growth,
        "graph.py --growth 10000 50000 250000 --cache 0",
    ),
)


def main() -> None:
    lines = []
    for what, name, text, command in ROWS:
        file = HOME / "results" / f"{name}.json"
        lines.append(
            f"| {what} | {text(read_json(file)) if file.exists() else 'not run'} | `{command}` |"
        )
    with atomic_path(HOME / "README.md") as tmp:
        tmp.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
