"""Tables as people and programs save them, and files of predictions: dialects, encodings, long cells.

Each is read, or refused in one line that names the file, and nothing steers the terminal.
"""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

HEAD = "id,image,findings\n"
TABLES = {
    # dialects
    "semicolons": ("id;image;findings\na;a.png;Edema.\n", "separated by semicolons"),
    "tabs": ("id\timage\tfindings\na\ta.png\tEdema.\n", "separated by tabs"),
    "bars": ("id|image|findings\na|a.png|Edema.\n", "no column id"),
    "only carriage returns": ("id,image,findings\ra,a.png,Edema.\r", ""),
    "both line ends": ("id,image,findings\r\na,a.png,Edema.\r\n", ""),
    "line ends swapped": ("id,image,findings\n\ra,a.png,Edema.\n\r", ""),
    "a line for Excel": ("sep=,\n" + HEAD + "a,a.png,Edema.\n", "line 2"),
    "a comment": ("# made by x\n" + HEAD + "a,a.png,Edema.\n", "line 2"),
    "no header": ("a,a.png,Edema.\n", "no column id"),
    "single quotes": (HEAD + "'a','a.png','Edema, mild.'\n", "line 2: 4 fields"),
    "a comma at the end": ("id,image,findings,\na,a.png,Edema.,\n", ""),
    "columns without names": ("id,image,findings,,\na,a.png,Edema.,,\n", ""),
    "capitals": ("ID,Image,Findings\na,a.png,Edema.\n", ""),
    "a quote in a cell": (HEAD + 'a,a.png,Edema "mild" now.\n', ""),
    "a quote left open": (HEAD + 'a,a.png,"Edema.\nb,b.png,Clear.\n', "line 3"),
    "a short row": (HEAD + "a,a.png\n", "line 2: 2 fields"),
    "a long row": (HEAD + "a,a.png,Edema.,x\n", "line 2: 4 fields"),
    "a column twice": ("id,image,findings,findings\na,a.png,x,y\n", "'findings' is there twice"),
    "two columns of ids": ("id,ID,image,findings\na,b,a.png,x\n", "could all be id"),
    "twenty thousand columns": (
        HEAD[:-1] + ",".join(f",c{i}" for i in range(20_000)) + "\n",
        "r.csv",
    ),
    "a header and no row": (HEAD, "no report with findings"),
    "empty reports": (HEAD + "a,a.png,\nb,b.png,\n", "no report with findings"),
    # signs
    "nul in a cell": (HEAD + "a,a.png,Ede\0ma.\n", ""),
    "nul in a name": ("id,image,fin\0dings\na,a.png,Edema.\n", ""),
    "a wide blank in a name": ("id,image,findings\u00a0\na,a.png,Edema.\n", ""),
    "nothing wide in a name": ("id,image,\u200bfindings\na,a.png,Edema.\n", ""),
    "direction in a name": ("id,image,\u202efindings\na,a.png,Edema.\n", ""),
    "steering names": ("id,image,\x1b[2J\u202e\x9b\na,a.png,Edema.\n", "no column findings"),
    "direction in an id": (HEAD + "a\u202eb,a.png,Edema.\n", ""),
    "direction in a report": (HEAD + "a,a.png,No \u202eedema\u202c.\n", ""),
    "pictures": (HEAD + "a,a.png,\U0001f600 effusion \U0001f600.\n", ""),
    "marks without end": (HEAD + "a,a.png,e" + "\u0301" * 50_000 + "ffusion.\n", ""),
    "a long report": (
        HEAD + "a,a.png," + "x " * 500_000 + "\n",
        "line 2: not a well-formed csv table",
    ),
    "brackets": (HEAD + "a,a.png," + "(" * 100_000 + "\n", "no report with findings"),
    "negations": (HEAD + "a,a.png," + "no " * 20_000 + "effusion.\n", ""),
    # ids, labels, splits, films
    "ids of dots": (HEAD + "..,a.png,Edema.\n", "line 2: id '..'"),
    "ids of markup": (HEAD + "<b>x</b>,a.png,Edema.\n", "cannot be a file name"),
    "ids like numbers": (HEAD + "1.0,a.png,Edema.\n1.00,b.png,Clear.\n", ""),
    "labels in words": (
        HEAD[:-1] + ",Edema\na,a.png,Edema.,TRUE\n",
        "line 2: a label is no number",
    ),
    "labels of a half": (HEAD[:-1] + ",Edema\na,a.png,Edema.,0.5\n", "line 2: Edema is 0.5"),
    "labels without end": (HEAD[:-1] + ",Edema\na,a.png,Edema.,inf\n", "line 2: Edema is inf"),
    "labels for Python": (HEAD[:-1] + ",Edema\na,a.png,Edema.,1_0\n", "line 2: Edema is 10"),
    "a split with a blank": (HEAD[:-1] + ",split\na,a.png,Edema.,Train \n", ""),
    "a split of numbers": (HEAD[:-1] + ",split\na,a.png,Edema.,1\n", "line 2: split '1'"),
    "a film elsewhere": (HEAD + "a,\\\\evil\\share\\a.png,Edema.\n", "outside the image folder"),
}


@pytest.mark.parametrize("name", TABLES)
def test_table(tmp_path, command, name):
    text, says = TABLES[name]
    (tmp_path / "r.csv").write_text(text, "utf-8", newline="")
    ended = command("annotate", "r.csv", "--out", "a.jsonl", cwd=tmp_path)
    if says:
        ended.in_one_line("r.csv", says)
        assert not (tmp_path / "a.jsonl").exists()
        return
    assert ended.code == 0, ended
    ids = [json.loads(line)["id"] for line in (tmp_path / "a.jsonl").open()]
    assert ids and not [id for id in ids if "\u202e" in id]


ENCODINGS = ["latin-1", "cp1252", "utf-16-le", "shift_jis", "gb18030", "cp037", "mac-roman"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encoding(tmp_path, command, encoding):
    text = "id,image,findings\na,a.png,\u00d6dem, na\u00efve \u65e5\u672c.\n"
    (tmp_path / "r.csv").write_bytes(text.encode(encoding, "replace"))
    ended = command("label", "r.csv", "--out", "l.csv", cwd=tmp_path)
    ended.in_one_line("r.csv")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed(tmp_path, command, pack):
    (tmp_path / "r.csv").write_bytes(pack((HEAD + "a,a.png,Edema.\n").encode()))
    ended = command("label", "r.csv", "--out", "l.csv", cwd=tmp_path)
    if pack is not gzip.compress:
        ended.in_one_line("r.csv")
    assert (ended.code == 0) == (pack is gzip.compress)


GOOD = '{"id": "a", "reference": "Edema.", "hypothesis": "Edema."}'
PREDICTIONS = {
    "ids are numbers": (GOOD.replace('"a"', "7"), ""),
    "a mark at the start": ("\ufeff" + GOOD, ""),
    "both line ends": (GOOD + "\r\n", ""),
    "no id": (GOOD.replace('"a"', "null"), "p.jsonl:1: id None"),
    "an object as id": (GOOD.replace('"a"', '{"a": 1}'), "p.jsonl:1: id"),
    "a half as id": (GOOD.replace('"a"', "0.5"), "p.jsonl:1: id 0.5"),
    "an id twice": (f"{GOOD}\n{GOOD}", "p.jsonl:2: id 'a' is there twice"),
    "a number as text": (GOOD.replace('"Edema."', "1", 1), "id 'a': expected a list of one text"),
    "no text": (GOOD.replace('"Edema."', "null", 1), "id 'a': expected a list of one text"),
    "a steering id": (GOOD.replace('"a"', '"\\u001b[2J\\u202e"').replace('"Edema."', "1", 1), "id"),
    "half a character": (GOOD.replace("Edema", "\\ud800 edema"), ""),
    "nul": (GOOD.replace("Edema", "\\u0000 edema"), ""),
    "a number beyond limits": (GOOD.replace('"a"', "9" * 5000), "not JSON lines"),
    "no words": (GOOD.replace("Edema.", ""), "no reference has any words"),
    "a list": ("[1]", "p.jsonl:1"),
    "nothing": ("", "p.jsonl"),
    "deep": ("[" * 100_000, "not JSON lines"),
}


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.filterwarnings("ignore")
def test_predictions(tmp_path, command, monkeypatch, name):
    import r2genkg.scores.meteor

    monkeypatch.setattr(r2genkg.scores.meteor, "java_available", lambda: False)
    text, says = PREDICTIONS[name]
    (tmp_path / "p.jsonl").write_text(text, "utf-8", newline="")
    ended = command("score", "--refs", "p.jsonl", "--hypos", "p.jsonl", cwd=tmp_path)
    if says:
        ended.in_one_line(says)
    assert (ended.code == 0) == (not says), ended


_SENTENCE = '{"text":"Edema.","tokens":["Edema","."],"entities":[[0,0,"disorder","present"]],"relations":[]}'
ANNOTATED = f'{{"id":"a","sentences":[{_SENTENCE}]}}\n'
ANNOTATIONS = {
    "a mark at the start": ("\ufeff" + ANNOTATED, ""),
    "a steering id": (ANNOTATED.replace('"a"', '"a\\u001b[2J\\u009b\\u202e"'), ""),
    "an entity beyond the end": (ANNOTATED.replace("[[0,0,", "[[0,9,"), "a.jsonl:1"),
    "an entity before the start": (ANNOTATED.replace("[[0,0,", "[[-3,0,"), "a.jsonl:1"),
    "a word as place": (ANNOTATED.replace("[[0,0,", '[["x",0,'), "a.jsonl:1"),
    "a half as place": (ANNOTATED.replace("[[0,0,", "[[0.5,0,"), "a.jsonl:1"),
    "an unknown polarity": (ANNOTATED.replace("present", "maybe"), "a.jsonl:1"),
    "an unknown kind": (ANNOTATED.replace("disorder", "spaceship"), "a.jsonl:1"),
    "tokens as text": (ANNOTATED.replace('["Edema","."]', '"Edema"'), "a.jsonl:1"),
    "tokens as numbers": (ANNOTATED.replace('["Edema","."]', "[1,2]"), "a.jsonl:1"),
    "no tokens": (ANNOTATED.replace('["Edema","."]', "[]"), "a.jsonl:1"),
    "a number as text": (ANNOTATED.replace('"text":"Edema."', '"text":7'), "a.jsonl:1"),
    "a number as id": (ANNOTATED.replace('"id":"a"', '"id":7'), ""),
    "a list as id": (ANNOTATED.replace('"id":"a"', '"id":[1]'), "a.jsonl:1"),
    "no id": (ANNOTATED.replace('"id":"a"', '"id":null'), "a.jsonl:1"),
    "a relation of nobody": (
        ANNOTATED.replace('"relations":[]', '"relations":[[0,5,"modify","present"]]'),
        "a.jsonl:1",
    ),
}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations(tmp_path, command, name):
    text, says = ANNOTATIONS[name]
    (tmp_path / "a.jsonl").write_text(text, "utf-8")
    args = ("kg", "build", "--annotations", "a.jsonl", "--min-count", 1, "--out", "g")
    ended = command(*args, cwd=tmp_path)
    if says:
        ended.in_one_line(says)
    assert (ended.code == 0) == (not says), ended
    if not says:
        assert command("kg", "stats", "g", cwd=tmp_path).code == 0


VERDICTS = "study,query,row,label,source,weight,verdict,reader\n"
SAID = {
    "an unknown label": ("a,Edema,0,Curse,b,0.1,partly,me", "label 'Curse' is none of the 14"),
    "a steering label": ("a,Edema,0,\x1b[2J\u202e,b,0.1,partly,me", "is none of the 14"),
    "a steering verdict": ("a,Edema,0,Edema,b,0.1,\x1b[2J\u202e,me", "is none of"),
    "no verdict": ("a,Edema,0,Edema,b,0.1,,me", ""),
    "a formula": ('a,Edema,0,Edema,b,0.1,"=1+1",me', "is none of"),
    "a short line": ("a,Edema,0,Edema", "line 2"),
}


@pytest.mark.parametrize("name", SAID)
def test_verdicts(tmp_path: Path, command, name):
    line, says = SAID[name]
    (tmp_path / "v.csv").write_text(VERDICTS + line + "\n", "utf-8")
    ended = command("audit-verdicts", "v.csv", cwd=tmp_path)
    if says:
        ended.in_one_line("v.csv", says)
    assert (ended.code == 0) == (not says), ended
