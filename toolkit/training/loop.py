"""The loop: rows -> what is trained; knows steps, rates and stopping, nothing of files, templates or methods."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec
import torch
from torch import Tensor, nn

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.scoring import EncodedRows, Scorer
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt
from ptexport.toolkit.run.config import Stopped, TrainSettings
from ptexport.toolkit.training.loss import Loss, NotFiniteError, batches, score_batches

SAVE_EVERY_S = 30.0
SAVE_PAUSE = 10  # times what the last one took, at least, until the next
_OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive")  # torch's allocator; oneDNN, of an LSTM


class Counters(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How far a training is.

    Attributes:
        done: optimizer steps taken.
        epochs: epochs evaluated on dev.
        best_accuracy: dev accuracy of the best epoch; -1 before the first.
        best_loss: dev loss of the same, which decides among equals; nats.
        since_best: epochs since then.
        seconds: wall time of steps and evaluations so far.
    """

    done: int = 0
    epochs: int = 0
    best_accuracy: float = -1.0
    best_loss: float = 0.0
    since_best: int = 0
    seconds: float = 0.0


class Training:
    """A training under way: everything that changes from step to step, so that it can stop anywhere and go on.

    Args:
        prompt: what the task brings; what of it is trained, is trained in place.
        backbone: parameters of the language model that are trained, by name; none of a frozen one.
        settings: rates and sizes.
        n_rows: rows to learn from.
    """

    def __init__(
        self, prompt: SoftPrompt, backbone: Mapping[str, nn.Parameter], settings: TrainSettings, n_rows: int
    ) -> None:
        self.prompt = prompt
        self.settings = settings
        self.steps_per_epoch = math.ceil(math.ceil(n_rows / settings.batch_size) / settings.accumulate)
        of_prompt = {f"prompt.{name}": parameter for name, parameter in prompt.named_parameters()}
        of_backbone = {f"backbone.{name}": parameter for name, parameter in backbone.items()}
        self.parameters = of_prompt | of_backbone
        # The rate is set at each step, to a share of the peak. Biases and norms do not decay, as is usual.
        groups = [
            {"params": chosen, "lr": peak, "peak": peak, "weight_decay": settings.weight_decay * decays}
            for part, peak in ((of_prompt, settings.lr), (of_backbone, settings.backbone_lr))
            for decays in (True, False)
            if (chosen := [parameter for parameter in part.values() if (parameter.ndim > 1) == decays])
            and peak is not None  # words that are searched for have none
        ]
        self.optimizer = torch.optim.AdamW(groups) if groups else None
        self.best_state = self._state()
        self.at = Counters()
        self.restart_clock()

    @property
    def total_steps(self) -> int:
        """Steps of all epochs, if none is spared."""
        return self.steps_per_epoch * self.settings.epochs

    @property
    def n_trained(self) -> int:
        """Floats that the optimizer changed: those that a gradient reached."""
        return 0 if self.optimizer is None else sum(parameter.numel() for parameter in self.optimizer.state)

    @property
    def rates(self) -> str:
        """The peak rates, as the command line takes them."""
        given = (("--lr", self.settings.lr), ("--backbone-lr", self.settings.backbone_lr))
        return " and ".join(f"{name} {rate}" for name, rate in given if rate is not None)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or enough of them were no better."""
        return self.at.epochs >= self.settings.epochs or self.at.since_best >= self.settings.patience

    def restart_clock(self) -> None:
        """Count no time before now."""
        self._ticked = time.perf_counter()

    def tick(self) -> None:
        """Count the time since the last tick."""
        now = time.perf_counter()
        self.at.seconds += now - self._ticked
        self._ticked = now

    def step(self) -> None:
        """Take an optimizer step along the gradients that all processes have, and leave none."""
        assert self.optimizer is not None
        distributed.add_gradients(list(self.parameters.values()))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * _rate(self.at.done, self.total_steps, self.settings.warmup)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        try:
            self.optimizer.step()
        except RuntimeError as e:
            if "overflow" not in str(e):
                raise
            raise NotFiniteError("a step is no float32") from e
        self.optimizer.zero_grad(set_to_none=True)
        self.at.done += 1
        self.tick()

    def evaluated(self, accuracy: float, loss: float) -> None:
        """Count an epoch and keep what is trained if it is the best so far."""
        self.tick()
        self.at.epochs += 1
        self.at.since_best += 1
        if (accuracy, -loss) > (self.at.best_accuracy, -self.at.best_loss):
            self.best_state = self._state()
            self.at.best_accuracy, self.at.best_loss, self.at.since_best = accuracy, loss, 0

    def take_best(self) -> None:
        """Go back to the best epoch."""
        self._take(self.best_state)

    def tensors(self) -> dict[str, Tensor]:
        """All state but the counters, by names of their own."""
        named = {f"now.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        named |= {f"best.{name}": value for name, value in self.best_state.items()}
        if self.optimizer is not None:
            for index, state in self.optimizer.state_dict()["state"].items():
                named |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        return named

    def restore(self, tensors: Mapping[str, Tensor], at: Counters) -> None:
        """Go back to a state that `tensors` and `at` gave.

        Raises:
            KeyError, RuntimeError: the tensors are of another training.
        """
        state: dict[int, dict[str, Tensor]] = {}
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}}
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            if part == "optimizer":
                index, name = name.split(".", 1)
                state.setdefault(int(index), {})[name] = value
            else:
                parts[part][name] = value
        self._take(parts["now"])
        self.best_state = {name: parts["best"][name].to(parameter) for name, parameter in self.parameters.items()}
        if self.optimizer is not None:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.at = at

    def _state(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def _take(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


def fit(
    training: Training,
    scorer: Scorer,
    *,
    train: EncodedRows,
    dev: EncodedRows,
    progress: Progress,
    save: Callable[[], None],
) -> Stopped | None:
    """Train, and leave the prompt as it was after its best epoch on dev.

    Args:
        training: new, or restored.
        scorer: scores dev rows; its classifier is the frozen backbone, on the prompt's device.
        train: rows to learn from, encoded by the scorer's encoder.
        dev: rows that choose the epoch, likewise.
        progress: told of steps and epochs.
        save: keeps the training's state; called after each epoch and every `SAVE_EVERY_S`.

    Returns:
        Why it stopped before its end, after at least one epoch; None if it did not.

    Raises:
        TrainError: the loss is not a number, in the first epoch.
        KeyboardInterrupt: in the first epoch, or one of several processes.
    """
    if training.optimizer is None:
        training.at.best_accuracy, training.at.best_loss = scorer.accuracy(training.prompt, dev)
        return None
    try:
        _fit(training, scorer, train, dev, progress, save)
        stopped: Stopped | None = None
    except KeyboardInterrupt:
        # Several processes are not interrupted at one place, where they could end what they do together.
        if training.at.epochs == 0 or distributed.several():
            raise
        stopped = "interrupted"
    except NotFiniteError as e:
        if training.at.epochs == 0:
            where = f"after {training.at.done} steps at {training.rates}"
            raise TrainError(f"training: {e} {where}; use a lower rate") from e
        stopped = "diverged"
    training.take_best()
    return stopped


@contextmanager
def saying_what_would_fit(batch_size: int, examples: EncodedRows) -> Iterator[None]:
    """Say what to lower where the memory of the device is too small.

    Args:
        batch_size: rows per step.
        examples: the rows.

    Raises:
        TrainError: in place of torch's own error.
    """
    try:
        yield
    except RuntimeError as e:
        if not isinstance(e, torch.OutOfMemoryError) and not any(sign in str(e) for sign in _OUT_OF_MEMORY):
            raise
        tokens = max(map(len, examples.encodings))
        smaller = f"--batch-size {batch_size // 2}, or " if batch_size > 1 else ""
        raise TrainError(
            f"training: out of memory with {batch_size} rows of up to {tokens} tokens a step; "
            f"use {smaller}a lower --max-length"
        ) from e


def _fit(
    training: Training,
    scorer: Scorer,
    train: EncodedRows,
    dev: EncodedRows,
    progress: Progress,
    save: Callable[[], None],
) -> None:
    prompt, settings, at = training.prompt, training.settings, training.at
    lengths = [len(encoding) for encoding in train.encodings]
    training.restart_clock()
    if scorer.reads_once:
        progress.stage("reading the texts once")
    score_train, score_dev = score_batches(scorer, prompt, (train, dev), settings)
    loss_of = Loss(prompt, settings, scorer, train, score_train)
    saved, pause_s = time.perf_counter(), SAVE_EVERY_S
    while not training.finished:
        epoch, done = divmod(at.done, training.steps_per_epoch)
        if epoch > at.epochs:
            accuracy, loss_ = scorer.accuracy(prompt, dev, score_dev)
            if not math.isfinite(loss_):
                raise NotFiniteError(f"the dev loss is {loss_}")
            training.evaluated(accuracy, loss_)
            save()
            progress.epoch(at.epochs, accuracy)
            continue
        order = batches(lengths, settings.batch_size, random.Random(f"{settings.seed} {epoch}"))
        for start in range(done * settings.accumulate, len(order), settings.accumulate):
            loss = loss_of.with_gradients(order[start : start + settings.accumulate])
            training.step()
            progress.step(at.done, training.total_steps, loss)
            if time.perf_counter() - saved > pause_s:
                started = time.perf_counter()
                save()
                # A whole model takes its time.
                pause_s = max(SAVE_EVERY_S, SAVE_PAUSE * (time.perf_counter() - started))
                saved = time.perf_counter()


def _rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate at a step: up linearly, then down linearly to 0."""
    rising = max(1, round(total * warmup))
    return (step + 1) / rising if step < rising else max(0.0, (total - step) / max(1, total - rising))
