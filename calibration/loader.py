"""Batches of a split; they are the same for any number of worker processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from calibration.children import hear_termination, undisturbed
from calibration.errors import DataError, PipelineError
from calibration.seeds import derive
from calibration.split import Split
from calibration.transforms import Transform

_quiet: set[object] = set()  # the SIGCHLD handlers that do not raise


class Batches:
    """Sized and re-iterable; each step gives x (N, C, H, W) float32 and y (N,) int64. Made by ``batches``."""

    def __init__(self, split: Split, transform: Transform, plan: list[list[int]], seed: int, workers: int) -> None:
        self._loader = DataLoader(
            _Items(split, transform, seed),
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_begin,
            generator=torch.Generator(),  # otherwise each iteration would draw from the global generator
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            with undisturbed():
                loader = iter(self._loader)
            _find_killed_workers_when_waiting()
            for batch in loader:
                if isinstance(batch, PipelineError):
                    raise batch
                yield batch
        except (RuntimeError, EOFError, ConnectionError) as error:
            if not self._loader.num_workers or not _is_of_a_killed_worker(error):
                raise
            raise DataError(
                "a worker process that reads images was killed, as the system does when it runs out of memory",
                remedy="set data.workers to a smaller number or to 0, or free memory",
            ) from None


def batches(
    split: Split,
    transform: Transform,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    drop_last: bool = False,
    steps: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """Make batches of the images of ``split``.

    Order and augmentation depend on ``seed`` alone, not on ``workers``.

    Args:
        drop_last: leave out a last batch that is not full.
        steps: so many full batches in place of one pass over the images, which are gone through as often as it takes.
        rank, world: this process gets every ``world``-th image of each batch, starting at ``rank``; together the
            processes see the same batches as a single process would.

    >>> from calibration.datasets import load_data
    >>> from calibration.preprocess import Preprocess
    >>> from calibration.transforms import eval_transform
    >>> loader = batches(load_data("digits").eval, eval_transform(Preprocess(64)), 100)
    >>> len(loader), next(iter(loader))[0].shape
    (5, torch.Size([100, 3, 64, 64]))
    """
    generator = np.random.default_rng(seed)
    passes = 1 if steps is None else -(-steps * batch_size // len(split))
    order = np.concatenate(
        [generator.permutation(len(split)) if shuffle else np.arange(len(split)) for _ in range(passes)]
    )[: None if steps is None else steps * batch_size]
    starts = range(0, len(order) - (batch_size - 1 if drop_last else 0), batch_size)
    plan = [order[start : start + batch_size][rank::world].tolist() for start in starts]
    return Batches(split, transform, plan, seed, workers)


def _begin(_: int) -> None:
    """The first function that a worker process runs; see ``undisturbed``."""
    hear_termination()


def _find_killed_workers_when_waiting() -> None:
    """Keep torch's SIGCHLD handler from raising at an arbitrary point; the loader itself detects a missing worker."""
    theirs = signal.getsignal(signal.SIGCHLD)
    if not callable(theirs) or theirs in _quiet or threading.current_thread() is not threading.main_thread():
        return  # there are no workers, it is done already, or it is not possible

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            theirs(number, frame)
        except RuntimeError as error:
            if not _is_of_a_killed_worker(error):
                raise

    _quiet.add(handler)
    signal.signal(signal.SIGCHLD, handler)


def _is_of_a_killed_worker(error: Exception) -> bool:
    """Whether the error means that a worker was killed: torch's own report, or a broken connection to a worker."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    return not str(error).startswith("Caught ")


class _Items(Dataset[tuple[Tensor, int] | PipelineError]):
    def __init__(self, split: Split, transform: Transform, seed: int) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed

    def __getitem__(self, i: int) -> tuple[Tensor, int] | PipelineError:
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(derive(self.seed, i))
        try:
            return self.transform(self.split.image(i)), int(self.split.labels[i])
        except PipelineError as error:  # returned as a value, because a worker would wrap it in its own traceback
            return error
        finally:
            generator.set_state(before)


def _collate(items: list[tuple[Tensor, int] | PipelineError]) -> tuple[Tensor, Tensor] | PipelineError:
    pairs = []
    for item in items:
        if isinstance(item, PipelineError):
            return item
        pairs.append(item)
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
