"""``check`` on a network that is really trained: each mistake in the configuration is found and named."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from compress.check.classes import fitted_right, known_orders
from compress.check.search import by_chance
from compress.cli import main

ROOT = Path(__file__).parents[3]
NET = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, num_classes),
    )
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net for coloured digits of 16 pixels, its weights, and images/CLASS/*.png that it was not trained on."""
    home = tmp_path_factory.mktemp("check")
    (home / "digit_net.py").write_text(NET)
    digits = load_digits()
    grey = np.kron(digits.images / 16, np.ones((2, 2)))
    colours = np.stack([grey, 0.6 * grey, 0.5 * (1 - grey)], axis=-1)
    pixels = np.round(colours * 255).astype(np.uint8)
    for i in range(1297, 1797):
        path = home / "images" / str(digits.target[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(path)
    torch.manual_seed(0)
    space: dict[str, object] = {}
    exec(NET, space)
    net: nn.Module = space["net"]()  # type: ignore[operator]
    x = (torch.from_numpy(pixels[:1297]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    y = torch.from_numpy(digits.target[:1297])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(12):
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    torch.save(net.state_dict(), home / "net.pth")
    return home


RIGHT = {"mean": "0.5", "std": "0.25", "input_size": "16", "resize": "16"}


def check(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str, **settings: str
) -> tuple[int, str]:
    monkeypatch.chdir(home)
    pairs = {**RIGHT, **settings}
    sets = [word for key, value in pairs.items() for word in ("--set", f"data.{key}={value}")]
    data = [] if "--data" in more else ["--data", "images"]
    with pytest.raises(SystemExit) as ended:
        main(["check", "--weights", "net.pth", "--arch", "digit_net:net", *data, *sets, *more])
    return int(ended.value.code or 0), " ".join(capsys.readouterr().out.split())


def test_what_is_right_is_fine(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = check(trained, monkeypatch, capsys)
    assert "fine:" in said or "not clear:" in said
    assert code == 0


@pytest.mark.parametrize(
    ("settings", "hypothesis", "line"),
    [
        ({"mean": "0", "std": "0.003922"}, "the network expects", "std ="),
        ({"channel_order": "bgr"}, "RGB in place of BGR", 'channel_order = "rgb"'),
        ({"input_size": "64", "resize": "64"}, "an input of", "input_size ="),
    ],
)
def test_each_mistake_is_named_with_the_lines_that_fix_it(
    settings: dict[str, str],
    hypothesis: str,
    line: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = check(trained, monkeypatch, capsys, **settings)
    assert code == 1
    assert hypothesis in said.partition("WRONG")[2]
    assert line in said.partition("[data]")[2]


def test_a_shuffled_order_of_classes_is_found_and_its_fix_is_taken(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    names = {digit: f"{'hcjaebgidf'[digit]}_class" for digit in range(10)}
    for digit, name in names.items():
        (shuffled / name).symlink_to(trained / "images" / str(digit))
    code, said = check(trained, monkeypatch, capsys, "--data", str(shuffled))
    assert code == 1
    assert "classes in another order" in said.partition("WRONG")[2]
    assert all(f'"{name}" = {digit}' in said for digit, name in names.items())
    fix = "{" + ", ".join(f"{name} = {digit}" for digit, name in names.items()) + "}"
    code, said = check(trained, monkeypatch, capsys, "--data", str(shuffled), classes=fix)
    assert code == 0


def test_mistakes_of_the_user_are_one_line(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    for words, code in (
        (["--data", "images", "--set", "run.dir=none"], 2),
        (["images", "images"], 2),
        (["x.pth", "gone"], 1),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["check", *words])
        error = capsys.readouterr().err
        assert (ended.value.code, "Traceback" in error, "error:" in error) == (code, False, True)


@pytest.mark.parametrize("program", ["compress", "benchmarks"])
def test_help_does_not_wait_for_torch(program: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", program, "check", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--weights" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.endswith(" torch")]


def test_orders_that_are_usual_mistakes() -> None:
    found = known_orders(["1", "10", "2"], np.array([0, 1, 2]), 3)
    assert [order.outputs.tolist() for order in found] == [[0, 2, 1]]
    background = known_orders(["a", "b"], np.array([0, 1]), 3)
    assert [order.outputs.tolist() for order in background] == [[1, 2]]
    assert [o.outputs.tolist() for o in known_orders(["0", "1", "2"], np.array([1, 2]), 2)][-1] == [-1, 0, 1]


def test_an_order_is_not_fitted_to_noise() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = np.repeat(np.arange(10), 20), rng.integers(0, 10, 200)
    right = fitted_right(predicted, labels, 10, 10)
    assert right is not None
    assert right.mean() < 0.2
    assert by_chance(right, predicted == labels) > 0.01
    assert fitted_right(predicted[:20], np.arange(20), 20, 20) is None
