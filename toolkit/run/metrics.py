"""What came out of a training: metrics.json of a run."""

import msgspec

from ptexport.toolkit.run.config import Stopped


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """What came out. Accuracies are shares, 0 to 1.

    Attributes:
        method: as in the config.
        model: as in the config.
        n_train: rows learned from.
        n_dev: rows that chose the epoch.
        n_test: rows measured on.
        trainable_parameters: floats that the optimizer changed.
        epochs: passes over the training rows.
        stopped: why it ended early, with the best epoch so far; None: it did not, or dev accuracy no longer rose.
        dev_accuracy: of the epoch kept.
        test_accuracy: of the same.
        temperature: that logits are divided by; the label rows in `baked` are.
        abstain_below: probability below which no label is given; None: there is always one.
        log_prior: taken from the logits, by label; None: nothing is.
        found_words: of `search`, the words it found, in order; None: it did not look for any.
        manual_accuracy: test accuracy of hand-written templates, by template.
        train_seconds: wall time of the loop alone.
        seed: as in the config.
        data_sha256: of all rows, texts and labels.
        versions: of what it ran on.
    """

    method: str
    model: str
    n_train: int
    n_dev: int
    n_test: int
    trainable_parameters: int
    epochs: int
    stopped: Stopped | None
    dev_accuracy: float
    test_accuracy: float
    temperature: float
    abstain_below: float | None
    log_prior: list[float] | None
    found_words: list[str] | None
    manual_accuracy: dict[str, float]
    train_seconds: float
    seed: int
    data_sha256: str
    versions: dict[str, str]
