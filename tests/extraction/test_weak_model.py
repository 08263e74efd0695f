"""What a small language model of one's own does to an answer: each kind is used as far as it goes, and counted."""

import asyncio
import json
from collections import Counter

import pytest

from r2genkg.extraction.journal import Journal
from r2genkg.extraction.llm_answers import UnusableAnswer, read_entities
from r2genkg.extraction.llm_client import Reply
from r2genkg.extraction.llm_questions import DocumentAnnotator
from r2genkg.extraction.llm_settings import LLMSettings

SENTENCES = ["Small left effusion.", "No pneumothorax.", "Heart is normal."]
ROWS = [
    {
        "number": 1,
        "entities": [("Small", "concept"), ("left", "concept"), ("effusion", "disorder_present")],
    },
    {"number": 2, "entities": [("pneumothorax", "disorder_notpresent")]},
    {"number": 3, "entities": [("Heart", "anatomy"), ("normal", "concept")]},
]
for row in ROWS:
    row["entities"] = [{"text": text, "type": kind} for text, kind in row["entities"]]
WHOLE = {"sentences": ROWS}


def spoken(text: str) -> str:
    """An answer as pretty-printed JSON between words."""
    return (
        f"Sure! Here is the graph [as asked]:\n\n```json\n{text}\n```\nI hope that this {{helps}}."
    )


KINDS = {
    "as asked": (json.dumps(WHOLE), {}),
    "words around it": (spoken(json.dumps(WHOLE, indent=2)), {}),
    "an object a line": ("\n".join(map(json.dumps, ROWS)), {"answers not as the schema asks": 1}),
    "two answers": (
        " and ".join(json.dumps({"sentences": part}) for part in (ROWS[:1], ROWS[1:])),
        {},
    ),
    "numbers as texts": (
        json.dumps({"sentences": [row | {"number": f"{row['number']}."} for row in ROWS]}),
        {"answers not as the schema asks": 1},
    ),
    "types of its own": (
        json.dumps(WHOLE)
        .replace("disorder_present", "Disorder Present")
        .replace("concept", "Concept"),
        {"answers not as the schema asks": 1},
    ),
    "invented terms": (
        json.dumps(
            {
                "sentences": [
                    ROWS[0],
                    ROWS[1],
                    {
                        "number": 3,
                        "entities": [
                            *ROWS[2]["entities"],
                            {"text": "cardiomegaly", "type": "disorder_present"},
                        ],
                    },
                ]
            }
        ),
        {"terms not in the sentence": 1},
    ),
    "a term again and again": (
        json.dumps(
            {"sentences": [ROWS[0], {"number": 2, "entities": ROWS[1]["entities"] * 30}, ROWS[2]]}
        ),
        {"terms listed more often than they stand in the sentence": 29},
    ),
    "a denial within a term": (
        json.dumps(WHOLE).replace(
            '"pneumothorax", "type": "disorder_notpresent"',
            '"No pneumothorax", "type": "disorder_present"',
        ),
        {"negations cut from terms": 1},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_entities_of_careless_answers(kind):
    answer, wanted = KINDS[kind]
    counts: Counter = Counter()
    found = read_entities(answer, SENTENCES, counts)
    spans = [[(a.span(e), e.rexkg_type) for e in a.entities] for a in found]
    assert spans == [[(e["text"], e["type"]) for e in row["entities"]] for row in ROWS]
    for what, number in wanted.items():
        assert counts[what] == number, counts
    assert wanted or not +counts


def test_wrong_types_are_lost_and_counted():
    answer = (
        json.dumps(WHOLE).replace('"anatomy"', '"organ system"').replace("disorder_present", "7")
    )
    counts: Counter = Counter()
    found = read_entities(answer, SENTENCES, counts)
    assert [len(a.entities) for a in found] == [2, 1, 1] and counts["terms of unknown type"] == 2


@pytest.mark.parametrize(
    "answer", ["[]", "{}", '{"sentences": []}', "```json\n```", '"sentences"', "1. Small: concept"]
)
def test_empty_answers_are_refused(answer):
    with pytest.raises(UnusableAnswer):
        read_entities(answer, SENTENCES, Counter())


class Recorded:
    """A client that gives recorded answers; the last one again and again."""

    def __init__(self, *replies: Reply):
        self.replies, self.asked = list(replies), 0

    async def ask(self, system, user, response_format):
        self.asked += 1
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def ask(client: Recorded, **settings):
    """Annotations of the sentences, and the annotator."""
    annotator = DocumentAnnotator(
        LLMSettings(model="m", reasks=1, **settings), Journal(), Journal()
    )
    return asyncio.run(annotator.annotate(SENTENCES, client)), annotator


def test_repetition_until_the_limit_keeps_the_whole_entries():
    stutter = (
        json.dumps({"sentences": ROWS[:2]})[:-2]
        + ', {"number": 2, "entities": []}' * 40
        + ', {"num'
    )
    client = Recorded(Reply(stutter, 100, 2048, cut=True))
    found, annotator = ask(client, relations="rules")
    assert client.asked == 2  # asked again before anything is cut away
    assert [len(a.entities) for a in found] == [3, 1, 0]
    assert annotator.counts["answers cut short; their whole entries are used"] == 1
    assert annotator.counts["sentences without an answer"] == 1


def test_a_better_second_answer_is_taken():
    client = Recorded(
        Reply('{"sentences": [', 100, 2048, cut=True), Reply(json.dumps(WHOLE), 100, 90, False)
    )
    found, annotator = ask(client, relations="rules")
    assert [len(a.entities) for a in found] == [3, 1, 2] and not +annotator.counts


def test_empty_relations_are_an_answer_and_rules_can_replace_them():
    nothing = json.dumps({"sentences": [{"number": n, "relations": []} for n in (1, 3)]})
    client = Recorded(Reply(json.dumps(WHOLE), 100, 90, False), Reply(nothing, 100, 20, False))
    found, annotator = ask(client)
    assert client.asked == 2 and not any(a.relations for a in found)
    client = Recorded(Reply(json.dumps(WHOLE), 100, 90, False))
    found, annotator = ask(client, relations="rules")
    assert client.asked == 1 and len(found[0].relations) == 2  # small and left modify effusion
