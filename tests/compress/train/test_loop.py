"""Training: it learns, repeats itself bit for bit, goes on after a kill, and keeps the best state."""

import copy

import pytest
import torch
from torch import fx, nn

from calibration.datasets import load_data
from calibration.preprocess import Preprocess
from compress.config import TrainConfig
from compress.errors import ConfigError, DataError, ModelError
from compress.progress import Silent
from compress.train.distill import soft_targets
from compress.train.evaluate import evaluate, rank_of_label
from compress.train.history import Epoch
from compress.train.loop import fit
from compress.train.optimizer import make_optimizer, make_schedule
from compress.train.snapshot import StateFile, copy_weights

PREPROCESS = Preprocess(size=16, resize=16, mean=(0.3,) * 3, std=(0.35,) * 3)
CONFIG = TrainConfig(batch_size=32, lr=0.1, flip=False, device="cpu")


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def few(data):
    return data.train.subset(range(200), "train")


def small_net(classes=10, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(512, classes),
    )


class FullyConvolutional(nn.Module):
    """Takes images of any size."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.end = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(16, 10, 3, 2))

    def forward(self, x):
        return self.end(self.body(x)).mean((2, 3))


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_it_learns(data):
    net = small_net()
    history = fit(net, data.train, data.holdout, PREPROCESS, CONFIG, epochs=4)
    assert evaluate(net, data.eval, PREPROCESS).top1 > 0.93
    assert history.epochs[4].loss < 0.5 * history.epochs[1].loss
    assert not net.training
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    assert net[0].weight.is_contiguous()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_bits(few, data, workers):
    config = CONFIG.model_copy(update={"flip": True, "jitter": 0.2})
    nets = [small_net(dropout=0.3) for _ in range(3)]
    for net, count, seed in zip(nets, (0, workers, 0), (5, 5, 6), strict=True):
        torch.manual_seed(torch.seed())  # what the caller did before does not count
        fit(net, few, data.holdout, PREPROCESS, config, epochs=2, seed=seed, workers=count)
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


class KilledError(Exception):
    pass


class KillsAfter(Silent):
    """Kills a training in the middle of the given epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def track(self, items, what, total=None):
        for done, item in enumerate(items):
            if what.startswith(f"epoch {self.epoch}/") and done == 2:
                raise KilledError
            yield item


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        *(("sgd", schedule) for schedule in ("cosine", "onecycle", "cyclical")),
        *(("adamw", schedule) for schedule in ("step", "onecycle", "constant")),
        ("adam", "cyclical"),
    ],
)
def test_a_killed_training_goes_on_to_the_same_bits(few, data, tmp_path, optimizer, schedule):
    update = {"optimizer": optimizer, "schedule": schedule, "step_epochs": (2,), "lr": 0.01, "warmup": 0.5}
    config = CONFIG.model_copy(update=update)
    whole, killed = small_net(dropout=0.3), small_net(dropout=0.3)
    uninterrupted = fit(whole, few, data.holdout, PREPROCESS, config, epochs=3)
    with pytest.raises(KilledError):
        fit(killed, few, data.holdout, PREPROCESS, config, epochs=3, scratch=tmp_path, progress=KillsAfter(3))
    started_anew = small_net(dropout=0.3)  # as a new process would
    resumed = fit(started_anew, few, data.holdout, PREPROCESS, config, epochs=3, scratch=tmp_path)
    assert same(whole, started_anew)
    assert resumed.to_json() == uninterrupted.to_json()
    assert resumed.epochs[2].seconds != uninterrupted.epochs[2].seconds  # they are the killed run's own


def test_a_killed_training_with_an_average_and_longer_epochs_goes_on_too(few, data, tmp_path):
    update = {"ema": 0.9, "accumulate": 3, "steps_per_epoch": 4, "patience": 1, "augment": "trivialaugment"}
    config = CONFIG.model_copy(update={**update, "steps": ("mixup_or_cutmix",), "size": 12, "erasing": 0.5})
    whole, killed, anew = (FullyConvolutional(dropout=0.3) for _ in range(3))
    uninterrupted = fit(whole, few, data.holdout, PREPROCESS, config, epochs=5)
    with pytest.raises(KilledError):
        fit(killed, few, data.holdout, PREPROCESS, config, epochs=5, scratch=tmp_path, progress=KillsAfter(2))
    resumed = fit(anew, few, data.holdout, PREPROCESS, config, epochs=5, scratch=tmp_path)
    assert same(whole, anew)
    assert resumed.to_json() == uninterrupted.to_json()


def test_accumulated_batches_are_one_large_batch(few):
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(768, 10)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, update in zip(nets, ({"batch_size": 64}, {"batch_size": 16, "accumulate": 4}), strict=True):
        fit(net, few, None, PREPROCESS, CONFIG.model_copy(update={**update, "amp": False}), epochs=2)
    assert torch.allclose(nets[0][1].weight, nets[1][1].weight, atol=1e-6)


def test_an_epoch_has_as_many_steps_as_asked_for(few, data):
    counted = []

    class Counts(Silent):
        def track(self, items, what, total=None):
            items = list(items)
            counted.append(len(items))
            return items

    for steps in (2, 20):  # of 6 in one pass
        fit(
            small_net(),
            few,
            None,
            PREPROCESS,
            CONFIG.model_copy(update={"steps_per_epoch": steps}),
            epochs=1,
            progress=Counts(),
        )
    assert counted == [2, 20]


def test_it_stops_when_nothing_is_gained_any_more(few, data):
    config = CONFIG.model_copy(update={"patience": 2, "lr": 1e-9})
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    history = fit(net, few, data.holdout, PREPROCESS, config, epochs=50)
    assert len(history.epochs) == 3  # equal is no gain
    assert history.best == 2
    ends = fit(net, few, None, PREPROCESS, config, epochs=4)  # nothing is held out: to the end
    assert ends.best == 4


def test_the_average_is_what_is_kept(few, data):
    averaged, last = FullyConvolutional(), FullyConvolutional()
    config = CONFIG.model_copy(update={"ema": 0.99, "schedule": "constant", "lr": 0.2})
    history = fit(averaged, few, data.holdout, PREPROCESS, config, epochs=6)
    fit(last, few, None, PREPROCESS, config.model_copy(update={"ema": 0.0}), epochs=6)
    assert not same(averaged, last)
    assert history.top1 == evaluate(averaged, data.holdout, PREPROCESS).top1


def test_a_network_of_one_size_is_not_trained_at_another(few):
    with pytest.raises(ModelError, match=r"does not run on an input of \(3, 12, 12\)"):
        fit(small_net(), few, None, PREPROCESS, CONFIG.model_copy(update={"size": 12}), epochs=1)


def test_the_state_of_another_job_is_not_gone_on_from(few, data, tmp_path):
    fit(small_net(), few, data.holdout, PREPROCESS, CONFIG, epochs=1, scratch=tmp_path)
    nets = [small_net() for _ in range(2)]
    fit(nets[0], few, data.holdout, PREPROCESS, CONFIG, epochs=1, seed=1)
    fit(nets[1], few, data.holdout, PREPROCESS, CONFIG, epochs=1, seed=1, scratch=tmp_path)
    assert same(nets[0], nets[1])
    (tmp_path / "training.pt").write_bytes(b"cut short")
    again = small_net()
    fit(again, few, data.holdout, PREPROCESS, CONFIG, epochs=1, seed=1, scratch=tmp_path)
    assert same(nets[0], again)


def test_never_worse_on_held_out_than_it_began(few, data):
    net = small_net()
    fit(net, data.train, data.holdout, PREPROCESS, CONFIG, epochs=3)
    before, state = evaluate(net, data.holdout, PREPROCESS).top1, copy.deepcopy(net.state_dict())
    ruinous = CONFIG.model_copy(update={"lr": 30.0, "schedule": "constant"})
    history = fit(net, few, data.holdout, PREPROCESS, ruinous, epochs=1)
    assert history.best == 0
    assert history.top1 == before
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_without_held_out_images_the_last_state_is_kept(few):
    history = fit(small_net(), few, None, PREPROCESS, CONFIG, epochs=2)
    assert history.best == 2
    assert history.top1 is None


def test_history_is_json_without_times(few, data):
    import json

    history = fit(small_net(), few, data.holdout, PREPROCESS, CONFIG, epochs=1)
    record = json.loads(json.dumps(history.to_json()))
    assert record["best"] == history.best
    assert set(record["epochs"][1]) == {"epoch", "loss", "lr", "top1", "error"}
    assert history.epochs[1].seconds > 0


def test_a_student_comes_closer_to_its_teacher(few, data):
    teacher = small_net()
    fit(teacher, data.train, data.holdout, PREPROCESS, CONFIG, epochs=2)
    config = CONFIG.model_copy(update={"distill": 1.0})
    with pytest.raises(ConfigError, match="needs a teacher"):
        fit(small_net(), few, None, PREPROCESS, config, epochs=1)
    torch.manual_seed(1)
    student = small_net()
    history = fit(student, few, None, PREPROCESS, config, epochs=3, teacher=teacher)
    assert history.epochs[3].loss < 0.5 * history.epochs[1].loss
    assert not teacher.training


def test_soft_targets_are_hintons():
    student, teacher = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert soft_targets(student, teacher, 3.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_graph_modules_train(few, data):
    net = fx.symbolic_trace(small_net())
    before = copy.deepcopy(net.state_dict())
    fit(net, few, data.holdout, PREPROCESS, CONFIG, epochs=1)
    assert any(not torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_loss_that_is_not_finite_says_where(few):
    config = CONFIG.model_copy(update={"lr": 1e30, "clip_norm": 0.0, "schedule": "constant"})
    with pytest.raises(ModelError, match=r"the loss became (nan|inf) at epoch 1, step \d of 6") as error:
        fit(small_net(), few, None, PREPROCESS, config, epochs=1)
    assert "lower the learning rate" in error.value.remedy


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = small_net()

    def forward(self, x):
        y = self.body(x)
        return y, y


def test_networks_that_are_no_classifier(few):
    with pytest.raises(ModelError, match="a tuple of 2, not one tensor"):
        fit(TwoHeads(), few, None, PREPROCESS, CONFIG, epochs=1)
    with pytest.raises(ModelError, match=r"not \(images, classes\)"):
        fit(small_net()[:2], few, None, PREPROCESS, CONFIG, epochs=1)
    with pytest.raises(DataError, match="7 outputs, the train images have 10 classes") as error:
        fit(small_net(7), few, None, PREPROCESS, CONFIG, epochs=1)
    assert "model.new_head" in error.value.remedy
    with pytest.raises(ModelError, match="does not run on an input of"):
        evaluate(small_net(), few, Preprocess(size=40))


def test_evaluate(data):
    net = small_net()
    net.train()
    net[1].eval()  # a frozen layer
    split = data.eval.subset(range(50), "eval")
    one, other = (evaluate(net, split, PREPROCESS, batch_size=size) for size in (50, 7))
    assert net.training
    assert not net[1].training
    assert one.count == 50
    assert one.correct.tolist() == other.correct.tolist()
    assert one.top1 == one.correct.mean() <= one.top5
    assert evaluate(net, data.eval.subset([], "eval"), PREPROCESS).count == 0
    with torch.no_grad():
        net[-1].bias[0] = float("nan")
    with pytest.raises(ModelError, match="outputs are not finite on eval images"):
        evaluate(net, split, PREPROCESS)


def test_rank_of_label_agrees_with_argmax_on_ties():
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0]])
    assert rank_of_label(scores, torch.tensor([1, 0])).tolist() == [1, 1]
    assert (rank_of_label(scores, scores.argmax(1)) == 0).all()


def rates(epochs=4, steps=5, **settings):
    net = small_net()
    config = TrainConfig(lr=1.0, **settings)
    optimizer = make_optimizer(net, config)
    schedule = make_schedule(optimizer, config, epochs, steps)
    found = []
    for _ in range(epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules():
    cosine = rates(schedule="cosine")
    assert cosine[0] == 1
    assert cosine == sorted(cosine, reverse=True)
    assert 0 < cosine[-1] < 0.02
    assert rates(schedule="constant") == [1.0] * 20
    assert rates(schedule="step", step_epochs=(1, 3)) == pytest.approx([1.0] * 5 + [0.1] * 10 + [0.01] * 5)
    onecycle = rates(schedule="onecycle")
    assert max(onecycle) == pytest.approx(1.0, abs=0.01)
    assert onecycle[0] < 0.05
    assert onecycle[-1] < 1e-4
    warm = rates(schedule="step", step_epochs=(2,), warmup=1.0)
    assert warm[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert warm[9:11] == pytest.approx([1.0, 0.1])


def test_a_warm_up_that_is_longer_than_the_training():
    with pytest.raises(ConfigError, match="not shorter than the training of 4"):
        rates(warmup=4.0)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weight_decay_spares_bn_and_biases(name):
    net = small_net()
    net[3].weight.requires_grad_(False)
    groups = make_optimizer(net, TrainConfig(optimizer=name, weight_decay=0.1)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(net[0].weight), id(net[7].weight)}


def test_a_flipped_bit_in_a_training_state_starts_over(tmp_path):
    net, state = small_net(), StateFile(tmp_path / "training.pt", "job", {})
    state.save([Epoch(0, None, 0.1, 0.5, 1.0)], copy_weights(net))
    assert state.load(torch.device("cpu")) is not None
    content = state.path.read_bytes()
    for place in range(0, len(content), len(content) // 100):
        for changed in (content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :], content[:place]):
            state.path.write_bytes(changed)
            assert state.load(torch.device("cpu")) is None
