from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.timing.worker import Settings, Turn, inner_calls, input_pool, time_samples, warm_up
from compress.engines.base import TensorSpec
from compress.errors import EngineError

MS = 1_000_000


class Clock:
    """Time that passes only when an engine runs."""

    def __init__(self, *durations_ms: float) -> None:
        self.now = 0
        self.runs = 0
        self._durations = durations_ms

    def __call__(self) -> int:
        return self.now

    def run(self) -> None:
        self.now += round(self._durations[min(self.runs, len(self._durations) - 1)] * MS)
        self.runs += 1


def test_samples_until_the_time_is_up() -> None:
    clock = Clock(10)
    assert time_samples(clock.run, clock, turn=Turn(0.1), inner=1) == [10 * MS] * 10


def test_at_least_one_sample() -> None:
    clock = Clock(50)
    assert time_samples(clock.run, clock, turn=Turn(0), inner=1) == [50 * MS]


def test_a_turn_ends_when_it_has_its_time_and_its_samples_or_the_limit() -> None:
    clock = Clock(10)
    assert len(time_samples(clock.run, clock, turn=Turn(0.05, least=20), inner=1)) == 20
    assert len(time_samples(clock.run, clock, turn=Turn(0.05, least=20, limit_s=0.1), inner=1)) == 10
    settings = Settings(duration_s=8, iterations=100, limit_s=16, processes=4, turns=2)
    assert Turn.of(settings) == Turn(1.0, 13, 2.0)


def test_a_sample_is_the_mean_of_its_inner_calls() -> None:
    clock = Clock(1, 3, 2, 2)
    assert time_samples(clock.run, clock, turn=Turn(0.008), inner=2) == [2 * MS, 2 * MS]


@pytest.mark.parametrize(("call_ms", "calls"), [(10, 1), (1, 1), (0.4, 3), (0.001, 1000), (0, MS)])
def test_a_sample_lasts_a_millisecond(call_ms: float, calls: int) -> None:
    assert inner_calls(call_ms * MS) == calls


def test_warm_up_by_time() -> None:
    clock = Clock(10)
    assert warm_up(clock.run, clock, seconds=0.5, runs=3).steady
    assert clock.now == 1000 * MS  # the asked half second, and a window that agrees with it


def test_warm_up_by_count() -> None:
    clock = Clock(400)
    warm_up(clock.run, clock, seconds=0.5, runs=20)
    assert clock.runs >= 20


def test_warm_up_goes_on_while_it_gets_faster() -> None:
    clock = Clock(*[100] * 5, *[50] * 10, 20)
    warmed = warm_up(clock.run, clock, seconds=0.5, runs=1)
    assert warmed.steady
    assert clock.now == 2000 * MS


def test_never_steady_is_told() -> None:
    clock = Clock(*np.geomspace(1, 1e6, 30))
    assert not warm_up(clock.run, clock, seconds=0.01, runs=1).steady


@pytest.fixture
def specs() -> tuple[TensorSpec, ...]:
    return (TensorSpec("input", (None, 3, 4, 4), np.dtype("float32")),)


def test_pool_is_seeded_and_varied(specs: tuple[TensorSpec, ...]) -> None:
    pool = input_pool(specs, Settings(batch=2))
    assert len(pool) == 8
    assert pool[0]["input"].shape == (2, 3, 4, 4)
    assert not np.array_equal(pool[0]["input"], pool[1]["input"])
    np.testing.assert_array_equal(input_pool(specs, Settings(batch=2))[3]["input"], pool[3]["input"])


def test_pool_of_images_uses_each_in_turn(specs: tuple[TensorSpec, ...]) -> None:
    images = np.arange(5, dtype=np.float32)[:, None, None, None] * np.ones((5, 3, 4, 4), np.float32)
    pool = input_pool(specs, Settings(batch=2, images=(np.ones((5, 3, 8, 8), np.float32), images)))
    assert [feed["input"][:, 0, 0, 0].tolist() for feed in pool[:3]] == [[0, 1], [2, 3], [4, 0]]
    other = input_pool(specs, Settings(batch=2, images=(np.ones((5, 3, 8, 8), np.float32),)))
    assert other[0]["input"].shape == (2, 3, 4, 4)  # no images of its size: random ones


@pytest.mark.parametrize(
    ("shape", "message"), [((4, 3), "batches of 4, not 2"), ((None, 3, None), "only the batch may be dynamic")]
)
def test_shapes_that_cannot_be_timed(shape: tuple[int | None, ...], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        input_pool((TensorSpec("input", shape, np.dtype("float32")),), Settings(batch=2))


def test_integer_inputs(specs: tuple[TensorSpec, ...]) -> None:
    make: Callable[[str], np.ndarray] = lambda kind: input_pool(  # noqa: E731
        (TensorSpec("input", (None, 3), np.dtype(kind)),), Settings()
    )[0]["input"]
    assert make("uint8").dtype == np.uint8
    assert make("int64").dtype == np.int64
