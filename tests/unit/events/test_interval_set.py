"""The compact set of delivered ids, against a plain set."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_archiver.events.interval_set import IntervalSet

numbers = st.lists(st.integers(min_value=1, max_value=120), max_size=200)


def holding(values: list[int], limit: int = 1000) -> IntervalSet:
    found = IntervalSet(limit)
    for value in values:
        found.add(value)
    return found


@given(numbers)
def test_below_the_limit_it_is_a_set(values: list[int]) -> None:
    found = holding(values)
    assert [n for n in range(130) if n in found] == sorted(set(values))


@given(numbers)
def test_ranges_are_sorted_and_neither_overlap_nor_touch(values: list[int]) -> None:
    ranges = holding(values).ranges
    assert all(first <= last for first, last in ranges)
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(ranges))
    assert {n for first, last in ranges for n in range(first, last + 1)} == set(values)


@given(numbers, st.integers(min_value=1, max_value=5))
def test_past_the_limit_it_contains_all_that_was_added_and_is_exact_above_its_lowest_range(
    values: list[int], limit: int
) -> None:
    found = holding(values, limit)
    assert len(found.ranges) <= limit
    assert all(value in found for value in values)
    if found.ranges:
        floor = found.ranges[0][1]
        assert {n for n in range(floor + 1, 130) if n in found} == {n for n in values if n > floor}


@given(numbers, numbers)
def test_a_copy_is_independent(values: list[int], later: list[int]) -> None:
    found = holding(values)
    twin = found.copy()
    before = twin.ranges
    for value in later:
        found.add(value)
    assert twin.ranges == before


def test_ids_that_come_in_order_take_one_range_however_many_they_are() -> None:
    assert holding(list(range(1, 5001))).ranges == ((1, 5000),)


def test_an_invalid_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid limit of an interval set: 0"):
        IntervalSet(0)
