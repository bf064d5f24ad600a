"""Rows as they were written: kinds of files, patterns, slices, the cache, filters, columns, named formats, errors."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mot_core.columns import Reader, kept_by, mapping_of
from mot_core.errors import ProblemError
from mot_core.formats import COLUMNS, FORMATS, answered_turn, as_text, without_instruction
from mot_core.sources import open_rows

ROWS: list[dict[str, Any]] = [
    {"question": "one\u2028line", "answer": "042", "level": 1, "day": "2024-01-01"},
    {"question": "two", "answer": 3, "level": 2.5, "day": None},
    {"question": "three", "answer": True, "more": {"deep": [{"x": "y"}]}},
]


def cells(file: Path | str, split: str = "train") -> list[dict[str, Any]]:
    with open_rows({}, str(file), split) as rows:
        return [dict(row.cells) for row in rows]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_rows_are_as_written(tmp_path: Path) -> None:
    # No guessing: no time stamps, no 3.0 for 3, no columns that a row does not have.
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert cells(path) == ROWS
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\n  \n")
    assert cells(path) == ROWS
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(path.read_bytes())
    assert cells(tmp_path / "b.jsonl.gz") == ROWS


def test_csv_cells_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], ["a, b\nc", "042"], ["NA", "1.0"], ["x", ""]])
    expected = [
        {"question": "a, b\nc", "answer": "042"},
        {"question": "NA", "answer": "1.0"},
        {"question": "x", "answer": ""},
    ]
    assert cells(path) == expected
    with gzip.open(tmp_path / "b.csv.gz", "wb") as packed:
        packed.write(path.read_bytes())
    assert cells(tmp_path / "b.csv.gz") == expected


def test_parquet(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": n, "meta": {"tags": ["a", str(n)]}} for n in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1000)
    assert cells(tmp_path / "a.parquet") == rows


def test_a_pattern_reads_files_in_order_and_slices_run_over_all(tmp_path: Path) -> None:
    for name, numbers in (("p-b.jsonl", [3, 4]), ("p-a.jsonl", [0, 1, 2]), ("other.jsonl", [9])):
        write_jsonl(tmp_path / name, [{"n": n} for n in numbers])
    pattern = str(tmp_path / "p-*.jsonl")
    with open_rows({}, pattern, "train") as rows:
        assert [(row.place, row.cells["n"]) for row in rows] == [
            ("p-a.jsonl:1", 0), ("p-a.jsonl:2", 1), ("p-a.jsonl:3", 2), ("p-b.jsonl:1", 3), ("p-b.jsonl:2", 4),
        ]  # fmt: skip
        assert rows.at("p-b.jsonl:2").cells == {"n": 4} and rows.at("p-a.jsonl:1").cells == {"n": 0}
    for split, expected in (("train[:2]", [0, 1]), ("train[2:4]", [2, 3]), ("train[-1:]", [4]), ("train[60%:]", [3, 4]),
                            ("train[:1]+train[4:]", [0, 4])):  # fmt: skip
        assert [row["n"] for row in cells(pattern, split)] == expected, split


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "a.jsonl", [{"n": folder}])
    with open_rows({}, str(tmp_path / "*" / "a.jsonl"), "train") as rows:
        assert [(row.place, row.cells["n"]) for row in rows] == [("x/a.jsonl:1", "x"), ("y/a.jsonl:1", "y")]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_changed_file_is_never_served_stale(tmp_path: Path, suffix: str) -> None:
    """`datasets` keys its own cache by a file's time of change, which a copy that keeps times does not move."""
    path = tmp_path / f"a.{suffix}"

    def write(value: str) -> None:
        if suffix == "parquet":
            pq.write_table(pa.table({"q": [value]}), path)
        else:
            path.write_text(json.dumps({"q": value}) + "\n" if suffix == "jsonl" else f"q\n{value}\n")
        os.utime(path, (1_700_000_000, 1_700_000_000))

    write("old")
    assert cells(path) == [{"q": "old"}]
    write("new")
    assert cells(path) == [{"q": "new"}]


def test_nothing_is_written_beside_the_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, scratch, data = tmp_path / "home", tmp_path / "scratch", tmp_path / "data"
    for folder in (home, scratch, data):
        folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.chdir(home)
    path = write_jsonl(data / "a.jsonl", ROWS)
    with open_rows({}, str(path), "train") as rows:
        assert list(scratch.iterdir()) and len(list(rows)) == 3
    assert [p.name for p in data.iterdir()] == ["a.jsonl"]
    assert list(home.iterdir()) == [] and list(scratch.iterdir()) == []


def test_no_progress_bars_and_the_setting_is_restored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    datasets.enable_progress_bars()
    cells(write_jsonl(tmp_path / "a.jsonl", ROWS))
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


# -- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "phrase"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": \n', r"a\.jsonl, line 2: expected a JSON object a line, got '\{\"q\": ' \("),
        ("a.jsonl", '[{"q": 1}]', r"a\.jsonl, line 1: .* \(this is a list\); a JSON array has to be written as JSONL"),
        ("a.jsonl", '{"q": "\udcff"}', r"a\.jsonl: cannot be read as text: UnicodeDecodeError: 'utf-8' codec"),
        ("a.csv", "q,a\n1,2,3\n1,2,3,4\n", r"a\.csv: cannot be read as csv: "),
        ("a.csv", "", r"a\.csv: expected one header row, the same in every file; got \[\]"),
        ("a.parquet", "no parquet", r"a\.parquet: cannot be read as parquet: "),
        ("a.txt", "x", r"a\.txt: expected \.jsonl, \.csv or \.parquet \(the first two also with \.gz\), .*; got \.txt"),
        ("a.parquet.gz", "x", r"expected \.jsonl, .*; got \.parquet\.gz"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, phrase: str) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ProblemError, match=phrase):
        cells(tmp_path / name)


def test_missing_files_and_splits(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"gone\.jsonl: does not exist; expected JSONL, CSV or parquet"):
        cells(tmp_path / "gone.jsonl")
    with pytest.raises(ProblemError, match=r"gone-\*\.jsonl: matches no file"):
        cells(tmp_path / "gone-*.jsonl")
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    for split in ("test", "train[:9:2]", "train[a]"):
        with pytest.raises(ProblemError, match=r"it has no split .* a file's one split is train, with 3 rows"):
            cells(path, split)


def test_an_unreachable_hub_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    phrase = (
        r"hub data set 'owner/name', configuration 'main': the hub cannot be reached \(.*\); check the network and "
        r"HF_HUB_OFFLINE, or download the files once and give file"
    )
    with pytest.raises(ProblemError, match=phrase):
        open_rows({"hub": "owner/name", "config": "main"}, None, "train")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(ProblemError, match="a directory of this name is here, and would be read in its place"):
        open_rows({"hub": "owner/name"}, None, "train")


@pytest.mark.parametrize(
    ("cause", "phrase"),
    [
        (ValueError("Config name is missing.\nPlease pick one among: ['main', 'socratic']"), r"ValueError: Config name is missing\. Please pick one among: \['main', 'socratic'\]; check id, "),
        (FileNotFoundError("Couldn't find it"), r"revision main, split 'train': cannot be loaded: FileNotFoundError: Couldn't find it"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, cause: Exception, phrase: str) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise cause

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ProblemError, match=phrase):
        open_rows({"hub": "owner/name"}, None, "train")


def test_a_hub_data_set_is_asked_for_by_configuration_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*args: Any, **more: Any) -> Any:
        asked.append((args, more))
        return datasets.Dataset.from_list([{"question": "q", "answer": "1"}])

    monkeypatch.setattr("datasets.load_dataset", load)
    with open_rows({"hub": "owner/name", "config": "main", "revision": "abc"}, None, "test[:1]") as rows:
        assert [(row.place, dict(row.cells)) for row in rows] == [("test[:1]:1", {"question": "q", "answer": "1"})]
    assert asked == [(("owner/name", "main"), {"split": "test[:1]", "revision": "abc"})]


def test_files_of_a_hub_repository_are_read_by_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for index in range(3):
        (tmp_path / "data").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "data" / f"part-{index}.jsonl", [{"n": f"0{index}"}])
    (tmp_path / "README.md").write_text("a card")

    def download(*args: Any, **more: Any) -> str:
        asked.append((args, more))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    table = {"hub": "owner/name", "data_files": "data/part-[01].jsonl", "revision": "abc"}
    with open_rows(table, None, "train") as rows:
        assert [(row.place, row.cells["n"]) for row in rows] == [("part-0.jsonl:1", "00"), ("part-1.jsonl:1", "01")]
    wanted = {"repo_type": "dataset", "revision": "abc", "allow_patterns": ["data/part-[01].jsonl"]}
    assert asked == [(("owner/name",), wanted)], "nothing else is downloaded"
    with open_rows(table, None, "train[1:]") as rows:
        assert [row.cells["n"] for row in rows] == ["01"]
    with pytest.raises(
        ProblemError, match=r"files 'data/part-\[01\]\.jsonl' of hub data set 'owner/name': it has no split 'test'"
    ):
        open_rows(table, None, "test")
    with pytest.raises(
        ProblemError,
        match=r"files 'part-\*' of hub data set 'owner/name', revision main: there are none; data_files is",
    ):
        open_rows({"hub": "owner/name", "data_files": "part-*"}, None, "train")


@pytest.mark.parametrize(
    ("cause", "phrase"),
    [
        (LocalEntryNotFoundError("none here"), r"files 'x\.jsonl' of hub data set 'owner/name': the hub cannot be reached \(.*none here\); check the network"),
        (ValueError("Repo id must be in the form"), r"revision main: cannot be loaded: ValueError: Repo id must .*; check id and revision"),
    ],
)  # fmt: skip
def test_files_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch, cause: Exception, phrase: str) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise cause

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ProblemError, match=phrase):
        open_rows({"hub": "owner/name", "data_files": "x.jsonl"}, None, "train")


def test_no_code_of_a_data_set_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file, as a hub id, and where `datasets` would look for a builder of that name."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    scripts = [tmp_path / f"{name}.py" for name in ("text", "evil")]
    for script in [*scripts, folder / "name.py"]:
        script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ProblemError, match=r"evil\.py: expected \.jsonl, \.csv or \.parquet"):
        open_rows({}, str(tmp_path / "evil.py"), "train")
    for hub in ("owner/name", "evil.py"):
        with pytest.raises(ProblemError, match="of this name is here, and would be read in its place"):
            open_rows({"hub": hub}, None, "train")
    (tmp_path / "a.jsonl").write_text('{"q": 1}\n')
    assert cells("a.jsonl") == [{"q": 1}]
    assert not (tmp_path / "ran").exists()


# -- filters and columns ---------------------------------------------------------------------------------


def test_filters_compare_as_text(tmp_path: Path) -> None:
    rows = [{"n": n, "s": str(n), "ok": n > 1, "deep": {"k": "ab"[n % 2]}} for n in range(4)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)

    def kept(filters: dict[str, Any]) -> list[int]:
        with open_rows({}, str(path), "train") as opened:
            return [row.cells["n"] for row in kept_by(filters, opened, "here")]

    assert kept({}) == [0, 1, 2, 3]
    assert kept({"n": 2}) == [2] and kept({"s": 2}) == [2] and kept({"s": [1, "3"]}) == [1, 3]
    assert kept({"ok": True, "deep.k": "b"}) == [3]
    with pytest.raises(ProblemError, match=r"here: filters: no row has a column 'dep\.k'; .*there are n, s, ok, deep"):
        kept({"dep.k": "a"})
    with pytest.raises(
        ProblemError, match=r"here: filters left none of 4 rows \(one after the other: ok = true kept 2, n = 0 kept 0\)"
    ):
        kept({"ok": True, "n": 0})


def test_columns_reach_into_records(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"extra": {"a.b": "dotted", "list": [{"x": 1}, {"x": 7}]}, "answer": 2.0}]
    )
    reader = Reader.of({"columns": {"question": "extra.list.1.x", "family": "extra.a.b"}})
    with open_rows({}, str(path), "train") as rows:
        row = next(iter(rows))
        assert reader.text(row, "question") == "7" and reader.text(row, "answer") == "2"
        assert reader.text(row, "family") == ""  # a key with a dot inside a record is out of reach


@pytest.mark.parametrize(
    ("table", "phrase"),
    [
        ({"columns": {"question": "qestion"}}, r"here: no column for question: no row has 'qestion'; did you mean 'question'\? there are question, answer; name it with columns: \{question: …\}"),
        ({"columns": {"family": "topic"}}, r"no column for family: no row has 'topic'"),
        ({"format": "openthoughts"}, r"no column for question: no row has 'conversations'"),
    ],
)  # fmt: skip
def test_a_column_that_no_row_has(tmp_path: Path, table: dict[str, Any], phrase: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    reader = Reader.of(table)
    with open_rows({}, str(path), "train") as rows:
        for row in rows:
            for ours in COLUMNS:
                reader.cell(row, ours)
    with pytest.raises(ProblemError, match=phrase):
        reader.check((("question",), ("answer",)), "here")


def test_unknown_formats_and_columns() -> None:
    with pytest.raises(ProblemError, match=r"format 'gms8k' is not known; did you mean 'gsm8k'\? known: boba, "):
        mapping_of({"format": "gms8k"})
    with pytest.raises(
        ProblemError, match=r"columns: 'qestion' is none of ours; did you mean 'question'\? known: question, "
    ):
        mapping_of({"columns": {"qestion": "q"}})


# -- formats ---------------------------------------------------------------------------------------------

BOBA_PROMPT = "<｜User｜>\nWhat is $1+1$? Please reason step by step, and put your final answer within \\boxed{}.<｜Assistant｜><think>\n"
EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "boba": (
        {"prompt": BOBA_PROMPT, "task": "math", "query_id": "x", "solutions": ["\\boxed{2}"]},
        {"question": "What is $1+1$?", "answer": "2"},
    ),
    "s1k": (
        {"question": "Q", "solution": "so \\boxed{128}", "cot_type": "math", "thinking_trajectories": ["t1", "t2"], "attempt": "A"},
        {"question": "Q", "answer": "128", "reasoning": "t1\n\nt2", "response": "A"},
    ),
    "s1k-1.1": (
        {"question": "Q", "solution": "128", "deepseek_thinking_trajectory": "d", "deepseek_attempt": "D",
         "gemini_thinking_trajectory": "g", "gemini_attempt": "G"},
        {"question": "Q", "answer": "128", "reasoning": "d", "response": "D"},
    ),
    "s1k-1.1-gemini": (
        {"question": "Q", "solution": "128", "gemini_thinking_trajectory": "g", "gemini_attempt": "G"},
        {"question": "Q", "answer": "128", "reasoning": "g", "response": "G"},
    ),
    "limo": ({"question": "Q", "solution": "S", "answer": "5"}, {"question": "Q", "answer": "5", "rationale": "S"}),
    "openthoughts": (
        {"system": "s", "conversations": [{"from": "user", "value": "Return your final response within \\boxed{}. Q"},
                                          {"from": "assistant", "value": "<|begin_of_thought|>"}]},
        {"question": "Q"},
    ),
    "openthoughts-metadata": (
        {"problem": "Q", "deepseek_reasoning": "r", "deepseek_solution": "s", "ground_truth_solution": "\\boxed{1} or \\boxed{x}",
         "domain": "math"},
        {"question": "Q", "answer": "x", "reasoning": "r", "response": "s"},
    ),
    "openmathreasoning": (
        {"problem": "Q", "expected_answer": "\\(\\frac{1}{2}\\)", "generated_solution": "<think>\nr\n</think>\n\ns",
         "generation_model": "QwQ-32B", "problem_type": "has_answer_extracted", "inference_mode": "cot"},
        {"question": "Q", "answer": "\\(\\frac{1}{2}\\)", "rationale": "<think>\nr\n</think>\n\ns"},
    ),
    "aime": ({"id": 60, "problem": "Q", "answer": 42}, {"question": "Q", "answer": "42", "id": "60"}),
    "math-500": (
        {"problem": "Q", "solution": "s", "answer": "\\frac12", "subject": "Algebra", "level": 2, "unique_id": "test/1.json"},
        {"question": "Q", "answer": "\\frac12", "id": "test/1.json"},
    ),
    "gpqa": (
        {"Question": "Which one? ", "Correct Answer": "right", "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2",
         "Incorrect Answer 3": "w3\n", "Explanation": "e", "Subdomain": "s", "Record ID": "rec1", "Canary String": "c"},
        {"question": "Which one?\n\nA. w2\nB. right\nC. w3\nD. w1", "answer": "B", "id": "rec1"},
    ),
    "gsm8k": ({"question": "Q", "answer": "Tom has <<2+2=4>>4.\n#### 1,234"}, {"question": "Q", "answer": "1,234"}),
    "nemo-skills": (
        {"problem": "Q", "expected_answer": 4, "generation": "4", "_full_generation": "<think>r</think>4",
         "num_generated_tokens": 17, "finish_reason": "length"},
        {"question": "Q", "answer": "4", "rationale": "<think>r</think>4", "num_tokens": "17", "finish_reason": "length"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_each_format(tmp_path: Path, name: str) -> None:
    theirs, ours = EXAMPLES[name]
    reader = Reader.of({"format": name})
    for path in (write_jsonl(tmp_path / "a.jsonl", [theirs]), tmp_path / "a.parquet"):
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([theirs]), path)
        with open_rows({}, str(path), "train") as rows:
            row = next(iter(rows))
            read = {column: reader.text(row, column) for column in FORMATS[name].columns if column != "messages"}
            assert {column: text for column, text in read.items() if text} == ours


def test_every_format_names_its_card_or_says_that_there_is_none() -> None:
    assert {name for name, one in FORMATS.items() if not one.cards} == {"nemo-skills"}
    assert all(one.license or one.unverified for one in FORMATS.values())
    assert all(set(one.columns) <= set(COLUMNS) and "question" in one.columns for one in FORMATS.values())


def test_columns_rename_what_a_format_reads() -> None:
    mapping = mapping_of({"format": "gsm8k", "columns": {"answer": "label"}})
    assert (
        mapping["answer"].paths == ("label",)
        and mapping["answer"].transform is FORMATS["gsm8k"].columns["answer"].transform
    )


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, ""), (True, "true"), (3, "3"), (3.0, "3"), (2.5, "2.5"), (float("nan"), ""), (1e300, "1e+300"), ("\ud800x", "?x"), ("03", "03")],
)  # fmt: skip
def test_cells_as_text(cell: Any, text: str) -> None:
    assert as_text(cell) == text


@pytest.mark.parametrize(
    ("name", "row", "phrase"),
    [
        ("gsm8k", {"question": "Q", "answer": "4"}, r"expected a solution that ends in '#### answer', got '4'"),
        ("boba", {"prompt": "Q", "solutions": ["\\boxed{1}", "\\boxed{2}"]}, r"expected one reference answer, got 2: \['1', '2'\]"),
        ("openthoughts", {"conversations": [{"from": "user", "value": "a"}, {"from": "user", "value": "b"}]}, "expected one user turn, got 2"),
        ("openthoughts", {"conversations": "text"}, "expected a list of turns, got 'text'"),
    ],
)  # fmt: skip
def test_cells_that_a_format_cannot_read(tmp_path: Path, name: str, row: dict[str, Any], phrase: str) -> None:
    reader = Reader.of({"format": name})
    with (
        open_rows({}, str(write_jsonl(tmp_path / "a.jsonl", [row])), "train") as rows,
        pytest.raises(ValueError, match=phrase),
    ):
        for one in rows:
            assert reader.text(one, "question") + reader.text(one, "answer")


def test_the_last_assistant_turn() -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
            {"role": "assistant", "reasoning_content": "r", "content": "b"}]  # fmt: skip
    assert answered_turn(chat) == ("r", "b")
    with pytest.raises(ValueError, match="expected an assistant turn, got none"):
        answered_turn(chat[:2])


def test_the_standing_instruction_goes_and_nothing_else() -> None:
    assert without_instruction("Please reason step by step about x.") == "Please reason step by step about x."
    assert without_instruction("Q\nplease reason step-by-step and put your final answer within \\boxed{}") == "Q"
