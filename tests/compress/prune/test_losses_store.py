"""The images that losses are measured on."""

from pathlib import Path

import pytest
import torch

from compress.config import load_config
from compress.data import RunImages
from compress.models.model import load_model
from compress.progress import SILENT
from compress.prune.losses.store import solve_and_judge
from compress.prune.stage import solving_and_judging
from compress.run import Run
from compress.train.stage import baseline


@pytest.mark.parametrize(
    ("images", "spare", "judging"),
    [(300, 0, 75), (450, 150, 150), (374, 74, 75), (1000, 0, 125), (1000, 333, 250), (20, 0, 20)],
)
def test_losses_are_measured_on_the_first_images_and_weights_solved_on_the_others(
    images: int, spare: int, judging: int
) -> None:
    sample = torch.arange(images)
    halves = solve_and_judge(sample.split(25), spare)
    assert torch.equal(torch.cat(list(halves.judge)), sample[:judging])
    assert torch.equal(torch.cat(list(halves.solve)), sample[judging:] if judging < images else sample)


def test_pruning_measures_on_half_as_many_further_images(tmp_path: Path) -> None:
    config = load_config(
        None, ["model.arch=cifar_resnet20", "data.input_size=16", "prune.images=300", "train.epochs=0"]
    )
    folder = baseline(config, Run(tmp_path))
    halves = solving_and_judging(config, RunImages(config.data, 0), load_model(folder), SILENT)
    assert (sum(map(len, halves.solve)), sum(map(len, halves.judge))) == (300, 150)
    assert not {x.sum().item() for x in torch.cat(list(halves.solve))} & {
        x.sum().item() for x in torch.cat(list(halves.judge))
    }
