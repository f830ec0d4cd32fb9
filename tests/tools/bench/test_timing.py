import itertools

import pytest

from im2sp.tools.bench.timing import check_cases, machine, medians, table, take_turns


def test_turns_are_interleaved_and_warm_ups_not_counted():
    calls = []
    ticks = itertools.count()  # each call of the clock is one second later
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = take_turns(runs, 3, clock=lambda: next(ticks), num_warmups=1)
    assert calls == ["a", "b"] * 4
    assert times == {"a": [1, 1, 1], "b": [1, 1, 1]}
    assert medians({"a": [3, 1, 9]}) == {"a": 3}


def test_a_table_parses_and_its_columns_are_aligned():
    rows = [{"case": "ours", "rate": 12345, "left": 1}, {"case": "a rival", "rate": 7}]
    text = table(rows)
    assert len({len(line) for line in text.splitlines()}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert cells[0] == ["case", "rate", "left"]
    assert cells[2:] == [["ours", "12345", "1"], ["a rival", "7", ""]]
    rates = table(rows, ("rate",)).splitlines()
    assert rates == ["| rate  |", "| ----- |", "| 12345 |", "| 7     |"]


def test_machine_names_versions():
    assert "cores; Python 3." in machine("numpy")


def test_an_unknown_case_is_named():
    with pytest.raises(ValueError, match="unknown case 'c', expected some of a, b"):
        check_cases(["a", "c"], {"a": 1, "b": 2})
