"""`metrics.json` of a run: what a training measured."""

import msgspec

from ptexport.toolkit.run.config import Stopped


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Results of a training. Accuracies are shares, 0 to 1.

    Attributes:
        method: the method, as in the config.
        model: the model, as in the config.
        n_train: number of training rows.
        n_dev: number of dev rows, which choose the epoch.
        n_test: number of test rows.
        trainable_parameters: number of floats that the optimizer changed.
        epochs: passes over the training rows.
        stopped: why training was cut short and kept its best epoch; None: it ended by itself.
        dev_accuracy: dev accuracy of the epoch that was kept.
        test_accuracy: test accuracy of the same epoch.
        temperature: divisor of the logits; `TaskArrays.label_weights` are divided by it already.
        abstain_below: probability below which no label is given; None: every row gets a label.
        log_prior: log-probabilities subtracted from the logits, one per label; None: nothing is subtracted.
        found_words: words that `search` found, in order; None for other methods.
        manual_accuracy: test accuracy of hand-written templates, by template.
        train_seconds: wall time of the training loop.
        seed: the seed, as in the config.
        data_sha256: sha256 over the texts and labels of all rows.
        versions: package versions at the time of the training.
        choices: what the training said about the rows, and about what it chose.
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
    choices: list[str] = []

    def shortfall(self, abstain: float | None) -> str | None:
        """Say in which respect the training fell short of its options; None: in none.

        Args:
            abstain: accuracy that the labelled dev rows had to reach; None: not requested.

        Returns:
            A clause for *where: …*, with advice.
        """
        if self.stopped == "interrupted":
            return f"interrupted; holds the best of {self.epochs} epochs, continue with --resume"
        if self.stopped == "diverged":
            return "the loss became infinite or NaN; the run holds the best epoch before that, use a lower --lr"
        if abstain is not None and self.abstain_below is None:
            return (
                f"abstain {abstain}: even the most confident dev rows are less accurate than that; the run always "
                "gives a label; train longer, or lower --abstain"
            )
        return None
