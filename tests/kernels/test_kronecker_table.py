"""What was measured overrides what is predicted, and only that."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
from pydantic import ValidationError

from lacuna_kernels import DeviceError, Precision
from lacuna_kernels.cuda.kronecker.choose import candidates, stages
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.cuda.kronecker.table import WATTS, Entry, Table
from lacuna_kernels.cuda.measurement import Measurement, Objective, class_of
from lacuna_kernels.cuda.tuned import Tuned, add_to_table, read_table, set_aside, table_path
from lacuna_kernels.ops.kronecker_linear import KSPattern
from tests.kernels.factors import H200

PROBLEM = Problem(KSPattern(2, 64, 64, 4), 1000, Precision.FP16)


def entry(problem: Problem, ways: dict[str, Measurement], objective: Objective = Objective.LATENCY) -> Entry:
    return Entry.of([problem], objective, ways)


def test_the_way_that_was_measured_fastest_comes_first():
    predicted = [way.name for way in candidates(PROBLEM, H200)]
    slowest = predicted[-1]
    ways = {name: Measurement(seconds=1e-9 if name == slowest else 1e-3) for name in predicted}
    table = Table().with_entries([entry(PROBLEM, ways)])

    assert candidates(PROBLEM, H200, table)[0].name == slowest
    assert stages([PROBLEM], H200, table)[0].way.name == slowest


def test_by_energy_the_joules_decide():
    first, second = (way.name for way in candidates(PROBLEM, H200)[:2])
    ways = {first: Measurement(seconds=1e-6, joules=2.0), second: Measurement(seconds=2e-6, joules=1.0)}
    table = Table().with_entries([entry(PROBLEM, ways, Objective.ENERGY)])

    assert candidates(PROBLEM, H200, table)[0].name == second


def test_ways_that_were_not_measured_come_after_those_that_were():
    ways = [way.name for way in candidates(PROBLEM, H200)]
    table = Table().with_entries([entry(PROBLEM, {ways[-1]: Measurement(seconds=1.0)})])

    assert candidates(PROBLEM, H200, table)[0].name == ways[-1]
    assert table.cost([PROBLEM], ways[0]) == inf


CHAIN = [Problem(KSPattern(*values), 1000, Precision.BF16) for values in ((64, 64, 64, 1), (1, 64, 64, 64))]
"""That it is faster in two launches is a prediction by a small margin."""


def test_joules_of_one_factor_do_not_weigh_against_seconds_of_a_chain():
    apart = stages(CHAIN, H200)
    measured = {apart[0].way.name: Measurement(seconds=1.0, joules=apart[0].seconds * WATTS)}
    table = Table().with_entries([entry(CHAIN[0], measured, Objective.ENERGY)])

    assert len(apart) == 2
    assert stages(CHAIN, H200, table) == apart


def test_an_entry_that_names_none_of_the_ways_does_not_rule_a_factor_out():
    table = Table().with_entries([entry(CHAIN[0], {"gone": Measurement(seconds=1.0)})])

    assert stages(CHAIN, H200, table) == stages(CHAIN, H200)


@pytest.mark.parametrize(
    "other",
    [
        Problem(PROBLEM.pattern, 3000, Precision.FP16),
        Problem(PROBLEM.pattern, 1000, Precision.BF16),
        Problem(PROBLEM.pattern, 1000, Precision.FP16, Layout.LAST),
        Problem(KSPattern(2, 64, 64, 8), 1000, Precision.FP16),
    ],
    ids=str,
)
def test_other_problems_are_left_to_the_predictions(other: Problem):
    table = Table().with_entries([entry(PROBLEM, {"none": Measurement(seconds=1.0)})])

    assert table.cost([other], "none") is None
    assert candidates(other, H200, table) == candidates(other, H200)


def test_rows_up_to_the_next_power_of_two_share_an_entry():
    table = Table().with_entries([entry(PROBLEM, {"some": Measurement(seconds=1.0)})])

    assert [class_of(rows) for rows in (0, 1, 2, 3, 1000, 1024, 1025)] == [1, 1, 2, 4, 1024, 1024, 2048]
    assert table.cost([Problem(PROBLEM.pattern, 513, Precision.FP16)], "some") == 1.0


def test_a_table_is_read_as_it_was_written(tmp_path: Path):
    table = Table().with_entries([entry(PROBLEM, {"some": Measurement(seconds=1.5e-5, joules=0.25)})])

    path = add_to_table(tmp_path, "NVIDIA H200", list(table.entries.values()))

    assert path == table_path(tmp_path, "NVIDIA H200") == tmp_path / "tuned" / "NVIDIA-H200.json"
    assert read_table(tmp_path, "NVIDIA H200") == Tuned(factors=table)
    assert read_table(tmp_path, "NVIDIA A100") == Tuned()


def test_a_file_that_is_no_table_is_told_by_name(tmp_path: Path):
    path = table_path(tmp_path, "GPU")
    path.parent.mkdir()
    path.write_text('{"format": 2}')

    with pytest.raises(DeviceError, match=r"GPU\.json is not a table.*delete it, or run `lacuna tune`.*format"):
        read_table(tmp_path, "GPU")


def test_a_file_that_is_no_table_makes_room_for_a_new_one(tmp_path: Path):
    path = table_path(tmp_path, "GPU")
    path.parent.mkdir()
    path.write_text("cut o")

    assert set_aside(tmp_path, "GPU") == tmp_path / "tuned" / "GPU.damaged"
    assert (tmp_path / "tuned" / "GPU.damaged").read_text() == "cut o"
    add_to_table(tmp_path, "GPU", [entry(PROBLEM, {"some": Measurement(seconds=1.0)})])
    assert set_aside(tmp_path, "GPU") is None
    assert len(read_table(tmp_path, "GPU").factors.entries) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"ways": {"some": {"seconds": -1.0}}},
        {"ways": {"some": {"seconds": 0.0}}},
        {"ways": {"some": {"seconds": nan}}},
        {"ways": {"some": {"seconds": 1.0, "joules": inf}}},
        {"rows": -4},
        {"patterns": []},
        {"patterns": [[1, 0, 1, 1]]},
    ],
    ids=str,
)
def test_what_nobody_can_have_measured_is_refused(change: dict[str, object]):
    right = entry(PROBLEM, {"some": Measurement(seconds=1.0)}).model_dump()

    assert Entry.model_validate(right)
    with pytest.raises(ValidationError):
        Entry.model_validate(right | change)


def test_of_two_tunes_at_once_both_keep_their_entries(tmp_path: Path):
    problems = [replace(PROBLEM, rows=2**power) for power in range(20)]

    def tune(mine: list[Problem]) -> None:
        for problem in mine:
            add_to_table(tmp_path, "GPU", [entry(problem, {"some": Measurement(seconds=1.0)})])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(tune, (problems[::2], problems[1::2])))

    assert {key[3] for key in read_table(tmp_path, "GPU").factors.entries} == {problem.rows for problem in problems}


def test_a_folder_that_cannot_be_written_is_told_by_name(tmp_path: Path):
    (tmp_path / "tuned").write_text("a file where the folder should be")

    with pytest.raises(DeviceError, match=r"GPU\.json cannot be written"):
        add_to_table(tmp_path, "GPU", [])
