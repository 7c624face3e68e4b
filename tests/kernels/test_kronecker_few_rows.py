"""How factors for few rows are dealt to a team of blocks: what the kernel counts on, without a GPU."""

import struct

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_kernels.cuda.kronecker.few_rows_program import LONGEST, Deal, Link, Program, pack
from lacuna_kernels.ops.kronecker_linear import KSPattern

entry = st.integers(1, 70)
patterns = st.builds(KSPattern, st.integers(1, 9), entry, entry, st.integers(1, 9))
teams = st.integers(1, 132)


@given(patterns, teams)
def test_a_team_has_every_item_and_no_block_two_parts_of_units(pattern: KSPattern, team: int) -> None:
    deal = Deal.of(pattern, team)

    assert deal.blocks <= team
    assert deal.items <= deal.blocks * deal.share < deal.items + deal.share
    if deal.spread > 1:
        assert (deal.units, deal.share * deal.spread) == (1, deal.strips)
    else:
        assert deal.share == deal.units * deal.strips


@settings(deadline=None)
@given(patterns, teams)
def test_every_feature_has_a_place_of_its_own_in_the_blocks_that_read_it(pattern: KSPattern, team: int) -> None:
    deal = Deal.of(pattern, team)
    places = deal.places(torch.arange(pattern.width_in))
    ranks, bytes_in = places >> 20, places & (1 << 20) - 1

    assert len(places.unique()) == pattern.width_in
    assert int(bytes_in.max()) + 16 <= deal.pitch
    assert int(ranks.max()) + deal.spread <= team
    unit = (
        torch.arange(pattern.width_in) // (pattern.c * pattern.d) * pattern.d
        + torch.arange(pattern.width_in) % pattern.d
    )
    assert torch.equal(ranks, unit // deal.units * deal.spread)


@settings(deadline=None)
@given(patterns, st.integers(1, 16))
def test_every_column_of_y_is_made_and_gathered_once(pattern: KSPattern, team: int) -> None:
    program = Program((pattern,), team, 1, 16, 3, gather=True)
    (routes,) = program.routes(torch.device("cpu"))
    made = routes[routes[:, 0] >= 0]

    assert torch.equal(made[:, 0].sort().values, torch.arange(pattern.width_out, dtype=torch.int32))
    assert len(made[:, 1].unique()) == pattern.width_out
    assert torch.equal(made[:, 1] >> 20, made[:, 0] // program.run)


def test_fragments_hold_what_a_lane_of_the_tensor_cores_multiplies() -> None:
    values = torch.randn(2, 20, 40, 3).half()
    found = pack(values).view(torch.float16).view(6, 2, 3, 32, 2, 2, 2)  # unit, strip, step, lane, half of k, of j, k

    for i, j, k, at in [(0, 0, 0, 0), (1, 19, 39, 2), (0, 7, 17, 1), (1, 12, 8, 0), (1, 16, 31, 2)]:
        lane, step = j % 8 * 4 + k % 8 // 2, k // 16
        part = found[i * 3 + at, j // 16, step, lane, k % 16 // 8, j % 16 // 8, k % 2]
        assert part == values[i, j, k, at]
    assert int(torch.count_nonzero(found)) == values.numel()


def test_a_program_is_as_long_as_the_kernel_thinks() -> None:
    chain = (KSPattern(4, 32, 16, 1), KSPattern(1, 16, 32, 4))
    program = Program(chain, 16, 2, 16, 3, gather=True)

    code = program.encode([Link(1, 2), Link(3, 4, y=5, activation=1)])

    assert len(code) == 32 + 128 * (LONGEST + 1)
    assert struct.unpack_from("8i", code)[:4] == (2, 0, 1, 16)
    assert struct.unpack_from("5Q", code, 32 + 128) == (3, 4, 0, 0, 5)
