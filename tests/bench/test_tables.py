"""The comparison's arithmetic: medians, ratios and verdicts, and how they are shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import direct
from bench.compare import Result
from bench.files import cache_in_small_pages, write_image
from bench.load import Cell, Sample
from bench.report import number, table
from bench.servers import QEMU_DIRECT
from bench.tables import DATA_TABLES, _main_table

DEEP = Cell("nbd-load", "randread", 4096, 32)


def result(server: str, *iops: float, cpu_us: float = 1.0) -> Result:
    return Result(DEEP, server, tuple(Sample(one, one / 256, 10.0, 20.0, cpu_us) for one in iops))


def cells_of(text: str) -> list[str]:
    return [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]


def test_median_each_figure_has_its_own() -> None:
    samples = (Sample(1, 30, 5, 5, 5), Sample(2, 20, 5, 5, 5), Sample(9, 10, 5, 5, 5))
    middle = Result(DEEP, "any", samples).median
    assert (middle.iops, middle.mib_s) == (2, 20)


@pytest.mark.parametrize(("ours", "met"), [(400.0, "yes"), (300.0, "NO")])
def test_verdict_is_against_the_best_peer(ours: float, met: str) -> None:
    shown = ["ubi_rpc ubi", "nbdkit file", "nbdkit cow"]
    results = [result("ubi_rpc ubi", ours), result("nbdkit file", 100.0), result("nbdkit cow", 200.0)]
    row = cells_of(_main_table(DATA_TABLES["p1"], [DEEP], shown, results))
    assert row == [str(DEEP), f"{ours:.0f}", "100", "200", f"{ours / 200:.2f}", "≥ 1.70", met]


def test_verdict_compares_within_each_round() -> None:
    shown = ["ubi_rpc ubi", "nbdkit file"]
    results = [result("ubi_rpc ubi", 200.0, 20.0, 100.0), result("nbdkit file", 100.0, 10.0, 90.0)]
    row = cells_of(_main_table(DATA_TABLES["p1"], [DEEP], shown, results))
    assert row == [str(DEEP), "100", "90.00", "2.00", "≥ 1.70", "yes"]


@pytest.mark.parametrize(("ours", "met"), [(2.0, "yes"), (4.0, "NO")])
def test_verdict_of_costs_is_against_the_lowest(ours: float, met: str) -> None:
    results = [
        result("ubi_rpc ubi", 1, cpu_us=ours),
        result("nbdkit file", 1, cpu_us=3),
        result("nbdkit cow", 1, cpu_us=9),
    ]
    row = cells_of(_main_table(DATA_TABLES["p6"], [DEEP], ["ubi_rpc ubi", "nbdkit file", "nbdkit cow"], results))
    assert row[-3:] == [f"{ours / 3:.2f}", "≤ 1.00", met]


def test_verdict_without_a_rival_is_empty() -> None:
    row = cells_of(_main_table(DATA_TABLES["p1"], [DEEP], ["ubi_rpc ubi"], [result("ubi_rpc ubi", 5.0)]))
    assert row == [str(DEEP), "5.00", "", "", ""]


def test_targets_are_those_of_the_plan() -> None:
    targets = {str(cell): DATA_TABLES["p1"].target(cell) for cell in DATA_TABLES["p1"].cells}
    assert targets["randread 4k qd1 nbd-load"] == targets["randwrite 4k qd1 fio"] == 1.0
    assert targets["randread 4k qd1 one core fio"] == 1.0
    assert targets["randwrite 4k qd32 nbd-load"] == 1.7
    assert (targets["randread 4k qd32 fio"], targets["randwrite 4k qd32 fio"]) == (1.3, 1.15)
    assert len(targets) == 12


def test_targets_of_four_connections_are_those_of_the_plan() -> None:
    targets = {str(cell): DATA_TABLES["p3"].target(cell) for cell in DATA_TABLES["p3"].cells}
    assert targets["randread 4k qd4x32 nbd-load"] == targets["randwrite 4k qd4x32 nbd-load"] == 2.0
    assert targets["randread 4k qd4x32 fio"] == targets["read 128k qd4x8 fio"] == 1.5
    assert targets["write 128k qd4x8 nbd-load"] is None
    assert len(targets) == 8


def test_row_without_a_target_is_only_shown() -> None:
    cell = Cell("nbd-load", "write", 128 << 10, 8, connections=4)
    results = [
        Result(cell, name, (Sample(1, mib, 1, 1, 1),)) for name, mib in (("ubi_rpc ubi", 30), ("nbdkit file", 20))
    ]
    row = cells_of(_main_table(DATA_TABLES["p3"], [cell], ["ubi_rpc ubi", "nbdkit file"], results))
    assert row == [str(cell), "30.00", "20.00", "1.50", "", ""]


@pytest.mark.parametrize(
    ("ours", "met"), [(90.0, ["0.90", "yes", "1.50", "yes"]), (80.0, ["0.80", "NO", "1.33", "NO"])]
)
def test_direct_row_is_against_the_file_and_against_the_peer(ours: float, met: list[str]) -> None:
    rates = {direct.FILE: [100.0], "ubi_rpc ubi": [ours], QEMU_DIRECT.name: [60.0]}
    assert direct.row_of(direct.CELLS[0], list(rates), rates)[-4:] == met


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "0.50"), (99.99, "99.99"), (123.4, "123"), (1234.0, "1.2k"), (123456.0, "123k")]
)
def test_number_is_short(value: float, shown: str) -> None:
    assert number(value) == shown


def test_table_columns_are_aligned() -> None:
    lines = table("T", ["a", "b"], [["long name", "1"], ["x", "22"]]).splitlines()[3:]
    assert len({len(line) for line in lines}) == 1


def test_cache_in_small_pages_keeps_the_content(tmp_path: Path) -> None:
    sizes = {tmp_path / "small": 1 << 20, tmp_path / "large": 5 << 20}
    for path, size in sizes.items():
        write_image(path, size)
    before = {path: path.read_bytes() for path in sizes}
    cache_in_small_pages(*sizes)
    for path, size in sizes.items():
        with path.open("rb") as file:
            now = bytearray(size)
            assert os.preadv(file.fileno(), [now], 0, os.RWF_NOWAIT) == size, "all of it is in the cache"
        assert now == before[path]
