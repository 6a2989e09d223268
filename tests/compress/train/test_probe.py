"""Fitting a new classifier on the features of a network."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from calibration.datasets import load_data
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.transforms import eval_transform
from compress.errors import ModelError
from compress.models.registry import build
from compress.train.probe import fit_classifier

SMALL = Preprocess(16)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build("cifar_resnet20", 10).eval()


def of_classes(split, classes, count=200):
    wanted = np.flatnonzero(np.isin(split.labels, classes))[:count]
    return split.subset(wanted.tolist(), split.name)


@torch.no_grad()
def predicted(net, split):
    loader = batches(split, eval_transform(SMALL), 100)
    return torch.cat([net(x).argmax(1) for x, _ in loader]).numpy()


def fit(net, split):
    return fit_classifier(net, net.linear, split, SMALL, device=torch.device("cpu"))


def test_classes_without_images_are_never_predicted_and_the_body_stays(net):
    before = copy.deepcopy(net.state_dict())
    split = of_classes(load_data("digits").train, [2, 5, 7])
    assert fit(net, split) == 200
    assert np.mean(predicted(net, split) == split.labels) > 0.8
    assert set(predicted(net, load_data("digits").eval)) <= {2, 5, 7}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items() if "linear" not in key)


def test_two_classes(net):
    split = of_classes(load_data("digits").train, [0, 1])
    net.linear = nn.Linear(64, 2)
    assert fit(net, split) == 200
    assert np.mean(predicted(net, split) == split.labels) > 0.9


def test_a_classifier_without_bias(net):
    split = of_classes(load_data("digits").train, list(range(10)), 600)
    net.linear = nn.Linear(64, 10, bias=False)
    assert fit(net, split) == 600
    assert np.mean(predicted(net, split) == split.labels) > 0.5


def test_images_of_one_class_teach_nothing(net):
    before = net.linear.weight.clone()
    assert fit(net, of_classes(load_data("digits").train, [4])) == 0
    assert torch.equal(net.linear.weight, before)


def test_broken_features_are_told(net):
    with torch.no_grad():
        net.bn1.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN or infinite"):
        fit(net, of_classes(load_data("digits").train, [0, 1]))
