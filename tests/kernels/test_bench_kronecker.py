"""The benchmark of Kronecker-sparse factors, all of it that needs no GPU: grid, ways, judge, results, report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import kronecker_chains as chains
from bench.bench_kronecker import main
from bench.kronecker_grid import (
    FEW_PATTERNS,
    MEMORY_BYTES,
    PATTERNS,
    ROWS,
    grid,
    key,
    memory_bytes,
    patterns,
    problems,
    roof_ms,
)
from bench.kronecker_lazylinop import generated
from bench.kronecker_measure import Judge, Record
from bench.kronecker_report import report, tables
from bench.kronecker_results import Results
from bench.kronecker_summary import summary, worst_tenth
from bench.kronecker_ways import TORCH_WAYS, Operands, Skipped
from bench.timing import ROTATE_BYTES, copies_of
from lacuna_kernels import Precision
from lacuna_kernels.cuda.kronecker.problem import Layout, Problem
from lacuna_kernels.ops.kronecker_linear import KSPattern, ks_matmul

SMALL = [
    KSPattern(2, 3, 5, 4),
    KSPattern(5, 3, 4, 2),
    KSPattern(3, 4, 2, 1),
    KSPattern(1, 1, 1, 7),
    KSPattern(1, 6, 5, 1),
]


def test_the_grid_is_the_papers():
    found = list(grid())
    assert len(found) == len(set(found)) == 14 * 14 * (10 + 2 * 6)
    assert {p.b / p.c for p in found} == {1, 4, 0.25}
    assert {p.a for p in found} == {p.d for p in found}
    assert (min(p.b for p in found), max(p.c for p in found)) == (48, 1024)


def test_the_sample_is_always_the_same_and_fits_in_memory():
    chosen = patterns()
    assert chosen == patterns(PATTERNS)
    assert len(set(chosen)) == len(chosen) >= 120
    assert patterns(FEW_PATTERNS) == chosen[:FEW_PATTERNS]
    assert max(memory_bytes(p, ROWS) for p in chosen) <= MEMORY_BYTES
    assert chosen[:3] == [KSPattern(2, 768, 768, 48), KSPattern(24, 256, 256, 8), KSPattern(6, 64, 64, 12)]


def test_the_sample_is_over_the_whole_grid():
    chosen = patterns()
    assert {p.b for p in chosen} == {p.b for p in grid()}
    assert {p.a for p in chosen} == {p.d for p in chosen} == {p.a for p in grid()}


@pytest.mark.parametrize(
    ("pattern", "precision", "ms"),
    [
        ((1, 48, 48, 128), Precision.BF16, 0.144),  # bound by memory
        ((1, 64, 256, 16), Precision.FP16, 0.060),
        ((1, 128, 128, 64), Precision.FP32, 0.384),
        ((1, 1024, 1024, 1), Precision.FP32, 2 * ROWS * 1024**2 / 137e9),  # bound by arithmetic
        ((1, 1024, 1024, 1), Precision.TF32, 2 * ROWS * 1024**2 / 411e9),
    ],
)
def test_the_roof_is_the_longer_of_arithmetic_and_traffic(pattern, precision, ms):
    assert roof_ms(Problem(KSPattern(*pattern), ROWS, precision)) == pytest.approx(ms, rel=0.01)


def test_every_problem_has_a_key_of_its_own():
    found = problems(patterns(3), [1, 8], list(Precision), list(Layout))
    assert len({key(problem) for problem in found}) == len(found) == 3 * 2 * len(Precision) * 2


def test_small_operands_are_rotated_past_the_cache():
    assert copies_of(10**9) == 2
    assert copies_of(ROTATE_BYTES // 8) == 8
    assert copies_of(1) == 1024


def small_operands(pattern: KSPattern, layout: Layout, rows: int = 6) -> Operands:
    return Operands.random(Problem(pattern, rows, Precision.FP32, layout), copies=2, device="cpu")


def expected(operands: Operands, copy: int) -> torch.Tensor:
    x = operands.xs[copy].double()
    if operands.problem.layout is Layout.FIRST:
        return ks_matmul(x, operands.values[copy].double())
    return ks_matmul(x.T, operands.values[copy].double()).T


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("pattern", SMALL, ids=str)
@pytest.mark.parametrize("name", TORCH_WAYS)
def test_every_existing_way_multiplies(name: str, pattern: KSPattern, layout: Layout):
    operands = small_operands(pattern, layout)
    try:
        multiply = TORCH_WAYS[name](operands)
    except Skipped:
        assert layout is Layout.FIRST
        assert (name == "strided bmm") == (pattern.d > 1)
        return
    for copy in (0, 1):
        y = multiply(copy).reshape(operands.ys[copy].shape)
        torch.testing.assert_close(y.double(), expected(operands, copy), rtol=1e-5, atol=1e-6)


def test_a_dense_matrix_that_does_not_fit_is_said_to_be_skipped():
    operands = Operands(Problem(KSPattern(128, 48, 48, 32), ROWS, Precision.FP32), [], [torch.empty(0)] * 2, [])
    with pytest.raises(Skipped, match="155 GB"):
        TORCH_WAYS["dense"](replace(operands))


@pytest.mark.parametrize("layout", Layout)
def test_the_judge_passes_what_is_right_and_hears_one_wrong_row(layout: Layout):
    operands = small_operands(SMALL[0], layout, rows=4000)
    judge, y = Judge(operands), expected(operands, 0)
    wrong, unwritten = y.clone(), y.clone()
    (wrong if layout is Layout.FIRST else wrong.T)[1234] *= -1
    (unwritten if layout is Layout.FIRST else unwritten.T)[2345, 7] = torch.nan

    assert judge.error(y) < 1e-12
    assert judge.error(wrong) > 1e-3
    assert not judge.error(unwritten) < 1


def test_lazylinops_kernel_covers_all_of_y():
    made = generated(KSPattern(4, 192, 48, 16), ROWS, torch.float16)
    text = Path(made.variant.source).read_text()
    tile_rows, tile_columns = (int(text.split(f"#define {name} ")[1].split()[0]) for name in ("xTILEXx", "xTILEYx"))
    assert made.grid == (ROWS // tile_rows, 4 * 192 * 16 // tile_columns, 1)
    assert "USE_FLOAT16" in text
    assert "ksmm(" in text


@pytest.mark.parametrize(
    ("pattern", "rows", "why"),
    [((1, 48, 48, 1), 8, "takes many seconds"), ((96, 256, 1024, 1), ROWS, "32 bits")],
)
def test_what_lazylinop_cannot_do_is_skipped(pattern, rows, why):
    with pytest.raises(Skipped, match=why):
        generated(KSPattern(*pattern), rows, torch.float32)


def test_a_chains_floor_leaves_out_what_is_between_its_factors():
    floors = [chains.fused_roof_ms(chains.chain_problems(name, Precision.BF16)) for name in chains.CHAINS]
    assert [round(1e3 * floor) for floor in floors] == [60, 60, 60, 96, 23, 9]  # us


def test_existing_ways_for_a_chain_multiply(monkeypatch):
    monkeypatch.setitem(chains.CHAINS, "small", (KSPattern(2, 3, 2, 1), KSPattern(1, 5, 3, 2)))
    o = chains.ChainOperands.random(chains.chain_problems("small", Precision.FP32, rows=7), 2, "cpu")
    wanted = ks_matmul(ks_matmul(o.stations[0][0], o.factors[0][0]), o.factors[1][0])
    for multiply in (chains.factor_by_factor(o), chains.dense(o)):
        torch.testing.assert_close(multiply(0), wanted, rtol=1e-5, atol=1e-6)


def record(problem: Problem, ours: float, **others: float) -> dict:
    """A measured record: times as multiples of the roof."""
    ways = {"ours": {"ms": ours * roof_ms(problem), "error": 1e-7, "way": "mine"}}
    ways |= {name: {"ms": times * roof_ms(problem), "error": 1e-7} for name, times in others.items()}
    return Record(problem, ways | {"dense": {"skipped": "the matrix has 309 GB"}}).as_json()


def test_results_are_continued_and_a_line_cut_off_is_left_out(tmp_path: Path):
    first = Results(tmp_path / "some" / "results.jsonl")
    first.add("grid", {"key": "one", "value": 1})
    first.add("grid", {"key": "two", "value": 2})
    first.add("rows", {"key": "one", "value": 3})
    with first.path.open("a") as file:
        file.write('{"part": "grid", "key": "thr')

    again = Results(first.path)

    assert again.has("grid", "two")
    assert not again.has("rows", "two")
    assert [found["value"] for found in again.part("grid")] == [1, 2]


def test_a_run_after_one_that_was_cut_off_does_not_spoil_its_line(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"part": "grid", "key": "thr')
    Results(path).add("grid", {"key": "four"})
    assert Results(path).has("grid", "four")


def test_a_record_comes_back_from_its_line():
    problem = Problem(KSPattern(2, 768, 768, 48), ROWS, Precision.TF32, Layout.LAST)
    found = Record.from_json(json.loads(json.dumps(record(problem, 2.0, bmm=3.0, einsum=2.5))))
    assert found.problem == problem
    assert found.best == ("einsum", pytest.approx(2.5 * roof_ms(problem)))
    assert found.ours_ms == pytest.approx(2.0 * roof_ms(problem))


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_an_existing_way_that_is_wrong_is_not_the_best(error: float):
    data = record(Problem(SMALL[0], ROWS, Precision.FP16), 2.0, bmm=3.0, lazylinop=1.0)
    data["ways"]["lazylinop"]["error"] = error
    best = Record.from_json(data).best
    assert best is not None
    assert best[0] == "bmm"


@pytest.mark.parametrize(
    ("bmm", "einsum", "close"),
    [(1.65, 5.0, ["ours", "bmm"]), (2.45, 2.4, ["ours", "bmm", "einsum"]), (1.5, 2.0, []), (2.6, 5.0, [])],
)
def test_ways_that_are_as_fast_but_for_the_clocks_are_timed_again(bmm: float, einsum: float, close: list[str]):
    data = record(Problem(SMALL[0], ROWS, Precision.FP16), 2.0, bmm=bmm, einsum=einsum)

    assert Record.from_json(data).close == close


def test_others_of_ours_are_timed_again_but_not_what_is_wrong():
    data = record(Problem(SMALL[0], ROWS, Precision.FP16), 2.0, bmm=2.1, lazylinop=2.0)
    data["ways"]["ours: planes"] = data["ways"]["bmm"]
    data["ways"]["lazylinop"]["error"] = 0.5

    assert sorted(Record.from_json(data).close) == ["bmm", "ours", "ours: planes"]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Ten patterns, batch-size-first in fp16 with ours at 1/1, 1/2 ... 1/10 of the roof and bmm four times slower."""
    found = Results(tmp_path / "results.jsonl")
    found.add("run", {"key": "now", "device": "Some GPU", "torch": "2", "cuda": "13", "command": "measure"})
    for index in range(1, 11):
        problem = Problem(KSPattern(16 + index, 64, 64, 2), ROWS, Precision.FP16)
        found.add("grid", record(problem, float(index), bmm=4.0 * index, einsum=5.0 * index))
    found.add("rows", record(Problem(KSPattern(16, 64, 64, 2), 8, Precision.FP16), 1.0, bmm=3.0))
    short = Problem(KSPattern(1, 48, 48, 2), ROWS, Precision.FP16)
    found.add("grid", record(short, 100.0, bmm=1.0))
    joules = {"ours": {"joules": 0.3, "watts": 600, "ms": 1}, "bmm": {"joules": 1.0, "watts": 500, "ms": 4}}
    found.add("energy", record(problem, 1.0) | {"ways": joules})
    return found


def test_the_summary_has_medians_worst_tenths_and_gains_of_long_problems(results: Results):
    found = {line.what.partition(" (")[0]: line for line in summary(results)}
    fractions = found["fraction of the roof, first d > 1, fp16/bf16, median / worst tenth"]
    assert (fractions.existing, fractions.ours) == ("0.05 / 0.03", "0.18 / 0.11")
    assert found["speed-up, first d > 1, fp16/bf16"].ours == "4.00x"
    assert found["speed-up, anywhere, worst"].ours == "4.00x"
    assert found["joules over the best existing, first d > 1, fp16, median"].ours == "0.30"
    assert found["largest relative error, fp16"].ours == "1e-07"
    assert "fraction of the roof, last, fp16/bf16, median / worst tenth" not in found


def test_an_error_that_is_not_a_number_is_not_hidden(results: Results):
    problem = Problem(KSPattern(3, 64, 64, 2), ROWS, Precision.FP16)
    results.add("grid", record(problem, 1.0, bmm=1.0) | {"ways": {"ours": {"ms": 1.0, "error": float("nan")}}})
    assert "nan" in tables(results)


def test_the_report_writes_tables_data_and_plots(results: Results, tmp_path: Path):
    text = report(results, tmp_path / "report")
    assert "batch-size-first d > 1 fp16" in text
    assert "    8 rows: first fp16 3.00x (worst 3.00x)" in text
    assert "4.00x  17,64,64,2 25088 fp16 first        mine, against bmm" in text
    assert "Some GPU" in text
    assert "the matrix has 309 GB" in (tmp_path / "report.txt").read_text()
    assert json.loads((tmp_path / "report.json").read_text())[0]["goal"] == "0.70 / 0.45; 0.80 / 0.56"
    assert {path.name for path in tmp_path.glob("*.svg")} == {"report_speedup.svg", "report_roof.svg"}


def test_the_report_names_guesses_that_were_not_the_fastest(results: Results):
    found = record(Problem(KSPattern(2, 48, 48, 4), ROWS, Precision.FP16), 1.0)
    found["ways"] |= {"ours": {"ms": 3.0, "error": 1e-7, "way": "slow"}}
    results.add("grid", found | {"ways": found["ways"] | {"ours: slower": {"ms": 4.0}, "ours: fast": {"ms": 2.0}}})
    assert "1.50  2,48,48,4 25088 fp16 first: slow, not fast" in tables(results)


def test_what_tuning_would_choose_stands_beside_the_rules(tmp_path: Path):
    results, problem = Results(tmp_path / "tuned.jsonl"), Problem(KSPattern(16, 64, 64, 2), ROWS, Precision.FP16)
    found = record(problem, 4.0, bmm=8.0)
    results.add("grid", found | {"ways": found["ways"] | {"ours: fast": {"ms": 2 * roof_ms(problem), "error": 1e-7}}})
    lines = {line.what.partition(" (n")[0]: line for line in summary(results)}
    assert lines["speed-up, first d > 1, fp16/bf16"].ours == "2.00x"
    assert lines["speed-up, first d > 1, fp16/bf16"].tuned == "4.00x"
    assert lines["fraction of the roof, first d > 1, fp16/bf16, median / worst tenth"].tuned == "0.50 / 0.50"


def test_failures_are_counted(results: Results):
    found = record(Problem(KSPattern(3, 64, 64, 2), ROWS, Precision.FP16), 1.0, bmm=1.0)
    results.add("grid", found | {"ways": found["ways"] | {"ours": {"skipped": "failed: no such kernel"}}})
    results.add("failed", {"key": "grid something", "error": "illegal address"})
    (line,) = [line for line in summary(results) if line.what == "problems that ours failed at"]
    assert line.ours == "2"


def test_no_results_file_is_said_and_nothing_written(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench_kronecker.py", "report", "--results", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit, match="run measure first"):
        main()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["measure", "report"])
def test_results_that_a_report_would_overwrite_are_refused(tmp_path: Path, monkeypatch, capsys, command):
    path = tmp_path / "results.json"
    path.write_text("measured")
    monkeypatch.setattr("sys.argv", ["bench_kronecker.py", command, "--results", str(path)])
    with pytest.raises(SystemExit):
        main()

    assert "must end in .jsonl" in capsys.readouterr().err
    assert path.read_text() == "measured"


def test_a_report_has_the_whole_name_of_its_results(results: Results, tmp_path: Path, monkeypatch):
    named = results.path.rename(tmp_path / "h200.run2.jsonl")
    monkeypatch.setattr("sys.argv", ["bench_kronecker.py", "report", "--results", str(named)])
    main()

    written = {path.name.removeprefix("h200.run2") for path in tmp_path.iterdir()}
    assert written == {".jsonl", ".txt", ".json", "_speedup.svg", "_roof.svg"}


def test_nothing_measured_is_an_empty_report(tmp_path: Path):
    report(Results(tmp_path / "none.jsonl"), tmp_path / "none")
    assert not list(tmp_path.glob("*.svg"))


@pytest.mark.parametrize(("count", "worst"), [(1, 0), (9, 0), (10, 1), (25, 2)])
def test_nine_tenths_reach_the_worst_tenth(count: int, worst: int):
    assert worst_tenth(list(range(count))) == worst
