"""The training loop: baseline, fine-tuning after pruning and quantization-aware training all go through ``fit``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.seeds import derive
from calibration.split import Split
from calibration.transforms import at_size, train_transform
from compress.config import TrainConfig
from compress.distributed import World, has_bfloat16, join, pick_device
from compress.errors import ConfigError, ModelError
from compress.progress import SILENT, Progress
from compress.registries import STEPS
from compress.train.average import Average
from compress.train.history import Epoch, History
from compress.train.objective import Labels, Objective, Outputs
from compress.train.optimizer import make_optimizer, make_schedule
from compress.train.readout import run
from compress.train.snapshot import StateFile, Stateful, copy_weights

SNAPSHOT = "training.pt"
NOTHING_TO_LEARN = "not trained: there are no labels, and with distill=0 nothing else to learn from"


def fit(
    net: nn.Module,
    train: Split,
    holdout: Split | None,
    preprocess: Preprocess,
    config: TrainConfig,
    *,
    epochs: int,
    labels: bool = True,
    seed: int = 0,
    workers: int = 0,
    teacher: nn.Module | None = None,
    scratch: Path | None = None,
    progress: Progress = SILENT,
) -> History:
    """Train ``net`` in place; leave it in its best state, in eval mode, on the CPU.

    The best state is that of highest held-out accuracy (without labels: of least error), the latest of equals. The
    state before the first epoch takes part, so the result is never worse on ``holdout`` than what came in. With
    ``config.ema`` the states are those of the average. On a CPU the same seed and number of threads give the same bits,
    and a training that was killed and resumed gives those of one that was not.

    Args:
        net: fx graphs and fake-quantized networks too.
        holdout: where None, the state after the last epoch is kept.
        epochs: passes over ``train``, or times ``config.steps_per_epoch``; 0 only measures.
        labels: the network is a classifier of ``train``'s classes. Where it is not, or the images have no labels, it
            learns the outputs of the teacher; without one nothing is trained, which a note says.
        teacher: whose outputs are learned from; needed where ``config.distill`` is above 0.
        scratch: folder of the state file, written after each epoch; training goes on from one that is there.

    Raises:
        ModelError: ``labels`` and the network is no classifier, or its loss is no longer finite, or a GPU is full.
        DataError: the images' classes do not fit the network, or an image cannot be read.
        ConfigError: settings that contradict one another.
    """
    device = pick_device(config.device)
    labels = labels and train.labelled
    if labels and config.distill > 0 and teacher is None:
        raise ConfigError(f"distill={config.distill:g} needs a teacher, and there is none", remedy="set distill=0")
    if not labels and teacher is None:
        progress.note(NOTHING_TO_LEARN)
        return History((), 0)
    batch = min(config.batch_size, len(train))
    times = min(config.accumulate, len(train) // batch)
    steps = config.steps_per_epoch or len(train) // (batch * times)
    images = at_size(preprocess, config.size)
    job = f"{config.model_dump_json()} epochs={epochs} seed={seed} images={len(train)} labels={labels}"

    here = join(device)
    if batch % here.size:
        raise ConfigError(f"a batch of {batch} images cannot be split evenly over {here.size} processes")
    if not here.leads:
        progress = SILENT

    with _on(device, net, teacher), _seeded(seed, device):
        if config.size is not None:
            try:
                run(net, torch.zeros(2, *images.shape), images)
            except ModelError as error:  # not every network takes another size
                raise ModelError(error.message, remedy="leave `size` of the training section unset") from None
        objective: Objective = (
            Outputs(teacher, train, preprocess)
            if teacher is not None and not labels
            else Labels(net, teacher, train, preprocess, config)
        )
        step = _Step(net, objective, config, epochs=max(epochs, 1), steps=steps, times=times, here=here)
        kept = step.average.net if step.average else net  # what is evaluated, and left behind
        state = None if scratch is None else StateFile(scratch / SNAPSHOT, job, step.parts)
        if state is not None and (saved := state.load(device)) is not None:
            rows, best = saved
            progress.note(f"continuing after epoch {rows[-1].epoch} of {epochs}")
        else:
            started, best = time.monotonic(), copy_weights(kept)
            found = _held_out(net, holdout, objective, here, workers)
            rows = [Epoch(0, None, step.lr, found.get("top1"), _since(started), found.get("error"))]
            if objective.note:
                progress.note(objective.note)
        if config.patience and holdout is None:
            progress.note("trained to the last epoch: patience needs held-out images, and there are none")
        transform = train_transform(
            images,
            crop=config.crop,
            flip=config.flip,
            jitter=config.jitter,
            resized_crop=config.resized_crop,
            augment=config.augment,
            erasing=config.erasing,
        )

        for epoch in range(len(rows), epochs + 1):
            if config.patience and holdout is not None and epoch - (gained := _gained(rows)) > config.patience:
                progress.note(f"stopped: no gain on the held-out images since epoch {gained}")
                break
            started, lr, losses = time.monotonic(), step.lr, []
            torch.manual_seed(derive(seed, epoch))  # dropout and the like; order and augmentation have it from `seed=`
            loader = batches(
                train,
                transform,
                batch,
                shuffle=True,
                seed=derive(seed, epoch),
                workers=workers,
                drop_last=True,
                steps=steps * times,
                rank=here.rank,
                world=here.size,
            )
            net.train()
            if not labels:
                _keep_statistics(net)
            for x, y in progress.track(loader, f"epoch {epoch}/{epochs}"):
                losses.append(step(x, y))
                if not math.isfinite(losses[-1]):
                    raise ModelError(
                        f"the loss became {losses[-1]} at epoch {epoch}, step {len(losses)} of {len(loader)}",
                        remedy=f"lower the learning rate (lr={config.lr:g}), add warm-up, or clip harder (clip_norm)",
                    )
            here.align(net)
            here.align(kept)
            found = _held_out(kept, holdout, objective, here, workers)
            loss = here.sum(sum(losses) / len(losses)) / here.size
            rows.append(Epoch(epoch, loss, lr, found.get("top1"), _since(started), found.get("error")))
            progress.note(_line(rows[-1], epochs))
            if _best(rows) == epoch:
                best = copy_weights(kept)
            if state is not None and here.leads:
                state.save(rows, best)

        net.load_state_dict(best)
        return History(tuple(rows), _best(rows))


class _Step:
    """Forward, loss and backward for a batch; after every ``times`` batches, clip and update. Mixed precision on a GPU.

    fp16 needs its gradients scaled against underflow (Micikevicius et al. 2018, arXiv:1710.03740), bf16 does not.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        config: TrainConfig,
        *,
        epochs: int,
        steps: int,
        times: int,
        here: World,
    ) -> None:
        self._times, self._batches = times, 0
        self.average = Average(net, config.ema) if config.ema > 0 else None
        self.config, self.objective = config, objective
        self.before = [STEPS[name] for name in config.steps]
        self.device = here.device
        self.net = here.wrap(net)
        self.dtype = torch.bfloat16 if has_bfloat16(here.device) else torch.float16
        self.mixed = config.amp and (here.device.type == "cuda" or self.dtype == torch.bfloat16)
        self.optimizer: Optimizer = make_optimizer(net, config)
        self.schedule = make_schedule(self.optimizer, config, epochs, steps)
        self.scaler = GradScaler(here.device.type, enabled=self.mixed and self.dtype == torch.float16)
        self.parts: dict[str, Stateful] = {
            "net": net,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        if self.average:
            self.parts["average"] = self.average

    @property
    def lr(self) -> float:
        group = self.optimizer.param_groups[0]
        return float(group["lr"] / group["size"])

    def __call__(self, x: Tensor, y: Tensor) -> float:
        """Learn from images (N, C, H, W) and labels (N,); returns their loss, from before it."""
        x, y = x.to(self.device, memory_format=torch.channels_last), y.to(self.device)
        if self.before:
            y = F.one_hot(y, self.objective.classes).to(x)
            for change in self.before:
                x, y = change(x, y)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.mixed):
            loss = self.objective.loss(self.net(x), x, y)
        if self._batches % self._times == 0:
            self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss / self._times).backward()  # type: ignore[no-untyped-call]
        self._batches += 1
        if self._batches % self._times == 0:
            self._update()
        return float(loss.detach())

    def _update(self) -> None:
        if self.config.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average:
            self.average.update()


def _held_out(
    net: nn.Module, holdout: Split | None, objective: Objective, here: World, workers: int
) -> dict[str, float]:
    """The objective's measure over ``holdout``, by its name; each process on its own share: no image counts twice."""
    if holdout is None:
        return {}
    share = holdout.subset(range(here.rank, len(holdout), here.size), holdout.name)
    return {objective.measure: here.sum(objective.total(net, share, workers)) / len(holdout)}


def _best(rows: list[Epoch]) -> int:
    return max(rows, key=lambda row: (row.score, row.epoch)).epoch


def _gained(rows: list[Epoch]) -> int:
    """The first epoch that was as good as the best."""
    return max(rows, key=lambda row: (row.score, -row.epoch)).epoch


def _line(row: Epoch, epochs: int) -> str:
    found = ""
    if row.top1 is not None:
        found = f", held-out top-1 {row.top1:.2%}"
    elif row.error is not None:
        found = f", held-out error {row.error:.4f}"
    return f"epoch {row.epoch}/{epochs}: loss {row.loss:.4f}{found}, lr {row.lr:.2g}, {row.seconds:.1f} s"


def _keep_statistics(net: nn.Module) -> None:
    """Leave the batch norms in eval mode: their statistics are the repaired network's, and the teacher's are fixed too.

    Those of a batch, and of augmented images, would move the outputs away from what they are compared with.
    """
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _since(started: float) -> float:
    return time.monotonic() - started


@contextmanager
def _on(device: torch.device, net: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
    """Move the networks to ``device``, channels last (15% faster on a CPU, more on tensor cores), and back."""
    models = [model for model in (net, teacher) if model is not None]
    try:
        for model in models:
            model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        yield
    except torch.OutOfMemoryError:
        raise ModelError(f"{device} ran out of memory", remedy="set a smaller batch_size") from None
    finally:
        for model in models:
            model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's generators for the block; the caller's state comes back after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
