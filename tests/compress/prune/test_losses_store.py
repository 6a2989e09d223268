"""The images that losses are measured on."""

import pytest
import torch

from compress.prune.losses.store import solve_and_judge


def batches_of(count: int, size: int = 25) -> list[torch.Tensor]:
    return list(torch.arange(count).float().split(size)) if count else []


@pytest.mark.parametrize(
    ("sample", "more", "solving", "judging"),
    [
        (300, 150, 300, 150),
        (300, 75, 300, 75),
        (300, 74, 225, 75),
        (300, 0, 225, 75),
        (1000, 0, 875, 125),
        (20, 0, 20, 20),
    ],
)
def test_losses_are_measured_on_other_images_where_there_are_enough(
    sample: int, more: int, solving: int, judging: int
) -> None:
    images = solve_and_judge(batches_of(sample), batches_of(more, 19))
    assert (sum(map(len, images.solve)), sum(map(len, images.judge))) == (solving, judging)
