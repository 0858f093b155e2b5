"""The training loop: encoded rows -> trained parameters. Steps, learning rates and early stopping."""

import math
import random
import time
from collections.abc import Callable, Mapping

import msgspec
import torch
from torch import Tensor, nn

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.scoring import EncodedRows, ScoreBatch, Scorer
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt
from ptexport.toolkit.run.config import Stopped, TrainSettings
from ptexport.toolkit.training.loss import Loss, NotFiniteError, batches, score_batches

SAVE_EVERY_S = 30.0
SAVE_PAUSE = 10  # minimum time between saves, in multiples of the time of the last save


class Counters(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Progress of a training.

    Attributes:
        done: optimizer steps taken.
        epochs: epochs evaluated on dev.
        best_accuracy: dev accuracy of the best epoch; -1 before the first.
        best_loss: dev loss of the best epoch in nats, which decides between equal accuracies.
        since_best: epochs since the best epoch.
        seconds: wall time of steps and evaluations so far.
    """

    done: int = 0
    epochs: int = 0
    best_accuracy: float = -1.0
    best_loss: float = 0.0
    since_best: int = 0
    seconds: float = 0.0


class Training:
    """State of a training: everything that changes from step to step, so that it can be saved and resumed.

    Args:
        prompt: the task tensors, trained in place.
        backbone: trained parameters of the language model, by name; empty for a frozen one.
        settings: learning rates and sizes.
        n_rows: number of training rows.
    """

    def __init__(
        self, prompt: SoftPrompt, backbone: Mapping[str, nn.Parameter], settings: TrainSettings, n_rows: int
    ) -> None:
        assert settings.epochs is not None, "it is filled in"
        assert settings.patience is not None, "it is filled in"
        self.prompt = prompt
        self.settings = settings
        self.max_epochs, self.patience = settings.epochs, settings.patience
        self.steps_per_epoch = math.ceil(math.ceil(n_rows / settings.batch_size) / settings.accumulate)
        prompt_parameters = {f"prompt.{name}": parameter for name, parameter in prompt.named_parameters()}
        backbone_parameters = {f"backbone.{name}": parameter for name, parameter in backbone.items()}
        self.parameters = prompt_parameters | backbone_parameters
        # Every step sets the learning rate to a share of the peak. Biases and norms do not decay, as is usual.
        groups = [
            {"params": chosen, "lr": peak, "peak": peak, "weight_decay": settings.weight_decay * decays}
            for part, peak in ((prompt_parameters, settings.lr), (backbone_parameters, settings.backbone_lr))
            for decays in (True, False)
            if (chosen := [parameter for parameter in part.values() if (parameter.ndim > 1) == decays])
            and peak is not None  # `search` has no learning rate
        ]
        self.optimizer = torch.optim.AdamW(groups) if groups else None
        self.best_state = self._state()
        self.at = Counters()
        self.restart_clock()

    @property
    def total_steps(self) -> int:
        """Number of steps of all epochs, without early stopping."""
        return self.steps_per_epoch * self.max_epochs

    @property
    def n_trained(self) -> int:
        """Number of floats that the optimizer changed: those that received a gradient."""
        return 0 if self.optimizer is None else sum(parameter.numel() for parameter in self.optimizer.state)

    @property
    def rates(self) -> str:
        """The peak learning rates, as command-line options."""
        given = (("--lr", self.settings.lr), ("--backbone-lr", self.settings.backbone_lr))
        return " and ".join(f"{name} {rate}" for name, rate in given if rate is not None)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or `patience` epochs brought no improvement."""
        return self.at.epochs >= self.max_epochs or self.at.since_best >= self.patience

    def restart_clock(self) -> None:
        """Start to count wall time from now."""
        self._ticked = time.perf_counter()

    def tick(self) -> None:
        """Add the wall time since the last tick."""
        now = time.perf_counter()
        self.at.seconds += now - self._ticked
        self._ticked = now

    def step(self) -> None:
        """Sum the gradients over all processes, take an optimizer step, and clear the gradients."""
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
            raise NotFiniteError("an optimizer step overflows float32") from e
        self.optimizer.zero_grad(set_to_none=True)
        self.at.done += 1
        self.tick()

    def evaluated(self, accuracy: float, loss: float) -> None:
        """Record the dev results of an epoch; keep its parameters if it is the best so far."""
        self.tick()
        self.at.epochs += 1
        self.at.since_best += 1
        if (accuracy, -loss) > (self.at.best_accuracy, -self.at.best_loss):
            self.best_state = self._state()
            self.at.best_accuracy, self.at.best_loss, self.at.since_best = accuracy, loss, 0

    def take_best(self) -> None:
        """Restore the parameters of the best epoch."""
        self._take(self.best_state)

    def tensors(self) -> dict[str, Tensor]:
        """Return all state but the counters, by name."""
        named = {f"now.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        named |= {f"best.{name}": value for name, value in self.best_state.items()}
        if self.optimizer is not None:
            for index, state in self.optimizer.state_dict()["state"].items():
                named |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        return named

    def restore(self, tensors: Mapping[str, Tensor], at: Counters) -> None:
        """Restore a state from `tensors()` and `at`.

        Raises:
            KeyError, RuntimeError: the tensors belong to another training.
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
    """Train, and leave the prompt with the parameters of its best epoch on dev.

    Args:
        training: a new or restored training.
        scorer: scores dev rows, on the device of the prompt.
        train: training rows, encoded by the encoder of the scorer.
        dev: dev rows, which choose the epoch, encoded likewise.
        progress: receives steps and epochs.
        save: saves the state of the training; called after each epoch and every `SAVE_EVERY_S` seconds.

    Returns:
        Why the training stopped early, after at least one epoch; None if it did not.

    Raises:
        TrainError: the loss is not finite in the first epoch.
        KeyboardInterrupt: Ctrl-C in the first epoch, or with several processes.
    """
    if training.optimizer is None:
        training.at.best_accuracy, training.at.best_loss = scorer.accuracy(training.prompt, dev)
        return None
    try:
        _fit(training, scorer, train, dev, progress, save)
        stopped: Stopped | None = None
    except KeyboardInterrupt:
        # Several processes are interrupted at different places, so they cannot finish together.
        if training.at.epochs == 0 or distributed.is_distributed():
            raise
        stopped = "interrupted"
    except NotFiniteError as e:
        if training.at.epochs == 0:
            where = f"after {training.at.done} steps at {training.rates}"
            raise TrainError(f"training: {e} {where}; use a lower rate") from e
        stopped = "diverged"
    training.take_best()
    return stopped


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
    if scorer.caches_prefixes:
        progress.stage("caching prefixes")
    score_train, score_dev = score_batches(scorer, prompt, (train, dev), settings)
    loss_of = Loss(prompt, settings, scorer, train, score_train)
    save_at_times = _SaveAtTimes(save)
    while not training.finished:
        epoch, done = divmod(at.done, training.steps_per_epoch)
        if epoch > at.epochs:
            accuracy = _evaluate(training, scorer, dev, score_dev)
            save()
            progress.epoch(at.epochs, accuracy)
            continue
        order = batches(lengths, settings.batch_size, random.Random(f"{settings.seed} {epoch}"))
        for start in range(done * settings.accumulate, len(order), settings.accumulate):
            loss = loss_of.with_gradients(order[start : start + settings.accumulate])
            training.step()
            progress.step(at.done, training.total_steps, loss)
            save_at_times()


def _evaluate(training: Training, scorer: Scorer, dev: EncodedRows, score_dev: ScoreBatch) -> float:
    """Record the dev results of an epoch, and return its dev accuracy.

    Raises:
        NotFiniteError: the dev loss is not finite.
    """
    accuracy, loss = scorer.accuracy(training.prompt, dev, score_dev)
    if not math.isfinite(loss):
        raise NotFiniteError(f"the dev loss is {loss}")
    training.evaluated(accuracy, loss)
    return accuracy


class _SaveAtTimes:
    """Calls `save` every `SAVE_EVERY_S` seconds, less often if saving takes long (a whole model does)."""

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._saved, self._pause_s = time.perf_counter(), SAVE_EVERY_S

    def __call__(self) -> None:
        started = time.perf_counter()
        if started - self._saved > self._pause_s:
            self._save()
            self._saved = time.perf_counter()
            self._pause_s = max(SAVE_EVERY_S, SAVE_PAUSE * (self._saved - started))


def _rate(step: int, total: int, warmup: float) -> float:
    """Return the share of the peak learning rate at a step: it rises linearly, then falls linearly to 0."""
    rising = max(1, round(total * warmup))
    return (step + 1) / rising if step < rising else max(0.0, (total - step) / max(1, total - rising))
