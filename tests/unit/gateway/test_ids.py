"""Ids are all different, in a forked process too."""

from __future__ import annotations

import multiprocessing

from gateway.ids import hex_id


def draw(many: int) -> set[str]:
    return {hex_id() for _ in range(many)}


def test_ids_are_hex_and_all_different() -> None:
    ids = draw(1000)
    assert len(ids) == 1000
    assert all(len(id) == 32 and int(id, 16) >= 0 for id in ids)


def test_a_forked_process_draws_others() -> None:
    hex_id()  # some are drawn ahead
    with multiprocessing.get_context("fork").Pool(1) as pool:
        theirs = pool.apply(draw, (300,))
    assert not theirs & draw(300)
