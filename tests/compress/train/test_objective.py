"""What is trained: networks without logits learn the outputs of their teacher, and probabilities are read as such."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.datasets import load_data
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.split import ArraySource
from calibration.transforms import eval_transform
from compress.config import TrainConfig
from compress.errors import ModelError
from compress.progress import Silent
from compress.train.distill import relative_error
from compress.train.evaluate import evaluate
from compress.train.loop import fit
from compress.train.readout import readout

PREPROCESS = Preprocess(size=16, resize=16, mean=(0.3,) * 3, std=(0.35,) * 3)
CONFIG = TrainConfig(batch_size=32, lr=0.1, flip=False, device="cpu")


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def binary():
    """Bright and dark noise, told apart by brightness: two classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    pixels = rng.integers(0, 156, (200, 16, 16)) + (labels * 40)[:, None, None]
    return ArraySource("noise", pixels.astype(np.uint8)).split("train", ("dark", "bright"), labels)


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Features(nn.Module):
    """Feature maps of two depths in a dict, of very different scales; no logits."""

    def __init__(self, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, 8, 3, 2, 1), nn.ReLU())

    def forward(self, x):
        y = self.one(x)
        return {"low": y.mean(1), "deep": 1000 * self.two(y), "shape": tuple(y.shape)}


def trained(data):
    """With the batch norms' statistics of the images, as a trained network has them."""
    net = Features()
    for x, _ in batches(data.train.subset(range(320), "train"), eval_transform(PREPROCESS), 64):
        net(x)
    return net.eval()


def damaged(teacher):
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.one[0].weight[::4] = 0
    return student


def test_without_logits_a_network_learns_its_teachers_outputs(data):
    teacher = trained(data)
    student, notes = damaged(teacher), Notes()
    history = fit(
        student,
        data.train.subset(range(400), "train"),
        data.holdout,
        PREPROCESS,
        CONFIG.model_copy(update={"lr": 0.01}),
        epochs=3,
        labels=False,
        teacher=teacher,
        progress=notes,
    )
    errors = [row.error for row in history.epochs]
    assert errors[history.best] == min(errors) < 0.5 * errors[0]
    assert all(row.top1 is None for row in history.epochs)
    x = torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        assert relative_error(student(x), teacher(x)) < relative_error(damaged(teacher)(x), teacher(x))
    assert "held-out error" in notes.notes[-1]


def test_a_ruinous_training_leaves_the_outputs_as_they_were(data):
    teacher = Features().eval()
    student = damaged(teacher)
    config = CONFIG.model_copy(update={"lr": 300.0, "schedule": "constant"})
    few = data.train.subset(range(100), "train")
    history = fit(student, few, data.holdout, PREPROCESS, config, epochs=1, labels=False, teacher=teacher)
    assert history.best == 0
    assert torch.equal(student.one[0].weight, damaged(teacher).one[0].weight)


def test_batch_steps_work_without_labels(data):
    teacher = Features().eval()
    config = CONFIG.model_copy(update={"steps": ("mixup", "cutmix")})
    few = data.train.subset(range(100), "train")
    history = fit(damaged(teacher), few, data.holdout, PREPROCESS, config, epochs=1, labels=False, teacher=teacher)
    assert history.epochs[1].loss > 0


def test_without_logits_and_without_a_teacher_nothing_is_trained(data):
    net, notes = Features(), Notes()
    before = copy.deepcopy(net.state_dict())
    history = fit(net, data.train, data.holdout, PREPROCESS, CONFIG, epochs=3, labels=False, progress=notes)
    assert history.epochs == ()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert notes.notes == ["not trained: there are no labels, and with distill=0 nothing else to learn from"]


def test_the_relative_error_does_not_depend_on_scale():
    torch.manual_seed(0)
    one, other = torch.randn(4, 3), torch.randn(4, 3)
    assert relative_error([one, one], [other, other]).item() == pytest.approx(relative_error(one, other).item())
    assert relative_error(100 * one, 100 * other).item() == pytest.approx(relative_error(one, other).item(), rel=1e-4)
    constant = torch.full((4, 3), 2.0)
    assert relative_error(constant, constant).item() == 0  # no variance


class Ends(nn.Module):
    """A small classifier whose logits go through a function."""

    def __init__(self, outputs, end):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, outputs))
        self.end = end

    def forward(self, x):
        return self.end(self.body(x))


def softmax(x: Tensor) -> Tensor:
    return F.softmax(x, 1)


def log_softmax(x: Tensor) -> Tensor:
    return F.log_softmax(x, 1)


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(("outputs", "end", "shares"), [(3, same, False), (3, softmax, True), (3, log_softmax, False)])
def test_probabilities_are_read_as_the_logits_that_they_came_from(outputs, end, shares):
    net, x = Ends(outputs, end), torch.randn(5, 3, 16, 16)
    read = readout(net, PREPROCESS)
    assert read.probabilities == shares
    assert read.classes == 3
    expected = net.body(x).log_softmax(1)
    assert torch.allclose(read(net(x), 5).log_softmax(1), expected, atol=1e-5)


@pytest.mark.parametrize(("end", "shares"), [(same, False), (torch.sigmoid, True)])
def test_one_output_is_the_score_of_the_second_of_two_classes(binary, end, shares):
    net, x = Ends(1, end), torch.randn(5, 3, 16, 16)
    read = readout(net, PREPROCESS)
    assert (read.classes, read.probabilities) == (2, shares)
    scores, z = read(net(x), 5), net.body(x)[:, 0]
    labels = torch.tensor([0, 1, 0, 1, 1])
    entropy = F.binary_cross_entropy_with_logits(z, labels.float())
    assert F.cross_entropy(scores, labels).item() == pytest.approx(entropy.item(), rel=1e-4)
    assert torch.equal(scores.argmax(1), (z > 0).long())


@pytest.mark.parametrize("end", [same, torch.sigmoid])
def test_a_binary_classifier_learns(binary, end):
    net = Ends(1, end)
    before = evaluate(net, binary, PREPROCESS).top1
    teacher = copy.deepcopy(net).eval()
    fit(net, binary, None, PREPROCESS, CONFIG.model_copy(update={"lr": 0.02}), epochs=8)
    assert evaluate(net, binary, PREPROCESS).top1 > max(0.9, before)
    distilled = CONFIG.model_copy(update={"distill": 0.5, "label_smoothing": 0.1, "steps": ("mixup",)})
    fit(net, binary, binary, PREPROCESS, distilled, epochs=1, teacher=teacher)


def test_probabilities_train_like_logits_and_the_user_is_told(data):
    nets, found = [Ends(10, same), Ends(10, softmax)], []
    few, notes = data.train.subset(range(300), "train"), Notes()
    for net in nets:
        exact = CONFIG.model_copy(update={"amp": False})
        history = fit(net, few, data.holdout, PREPROCESS, exact, epochs=3, progress=notes)
        found.append([row.loss for row in history.epochs[1:]])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert [note for note in notes.notes if "probabilities" in note] == [
        "the network returns probabilities: it is trained on their logarithms (NLL)"
    ]


def test_a_binary_network_does_not_fit_other_classes(data):
    with pytest.raises(Exception, match="the network has 2 outputs, the train images have 10 classes"):
        fit(Ends(1, torch.sigmoid), data.train, None, PREPROCESS, CONFIG, epochs=1)
    with pytest.raises(ModelError, match="the network returns a dict of 3"):
        evaluate(Features(), data.eval, PREPROCESS)
