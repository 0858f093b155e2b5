"""A plan -> a Run, in memory or in a folder; knows the order of things, none of them itself."""

import functools
from importlib.metadata import version
from pathlib import Path

import torch

from ptexport.toolkit.audit import choose_check_rows
from ptexport.toolkit.backbone import Backbone
from ptexport.toolkit.calibration import fit_temperature, fit_threshold
from ptexport.toolkit.encoder import SoftPrompt
from ptexport.toolkit.folders import kept_folder
from ptexport.toolkit.plan import Plan, TrainConfig, make_plan, run_config
from ptexport.toolkit.resume import Ticket, check_same, hash_data, load_state, save_state
from ptexport.toolkit.run import FILES, METRICS, RESUME, Baked, Metrics, Run, Stopped
from ptexport.toolkit.scoring import Examples
from ptexport.toolkit.training import Progress, Training, fit, saying_what_would_fit

VERSIONED = ("ptexport", "torch", "transformers", "tokenizers")


def train(
    config: TrainConfig, progress: Progress, *, state: Path | None = None, backbone: Backbone | None = None
) -> Run:
    """Train a prompt.

    What can be refused without the backbone is refused before it is loaded, and all else before training begins.

    Args:
        config: what to train, on what.
        progress: told how far it is.
        state: file that the training's state is kept in, and gone on from if it is there.
        backbone: the config's, if it is loaded already.

    Returns:
        The run; if Ctrl-C or a loss that is no number stopped it (`run.metrics.stopped`), of the best epoch so far.

    Raises:
        PtexportError: anything that does not fit together; see `ptexport.runtime.errors`.
    """
    plan = make_plan(config, progress, backbone)
    ticket = _ticket(plan)
    torch.manual_seed(plan.config.settings.seed)
    prompt = plan.task.prompt(plan.template, with_encoder=True)
    training = Training(prompt, plan.config.settings, len(plan.data.train))
    if state is not None and state.exists():
        load_state(state, training, ticket)
        progress.note(f"going on after {training.at.done} of {training.total_steps} steps")
    keep = (lambda: None) if state is None else functools.partial(save_state, state, training, ticket)
    with saying_what_would_fit(plan.config.settings.batch_size, plan.learn):
        # Before training, so that a hand-written template or its words that do not fit cost no training.
        manual_accuracy = _measure_by_hand(plan, progress)
        stopped = fit(training, plan.scorer, train=plan.learn, dev=plan.dev, progress=progress, save=keep)
        metrics = _measure(plan, training, stopped, manual_accuracy, ticket.data_sha256)
    return Run(
        config=ticket.config,
        metrics=metrics,
        trained={name: value.cpu().numpy() for name, value in prompt.state_dict().items()},
        baked=_bake(plan, prompt, metrics.temperature),
        tokenizer_json=plan.task.backbone.tokenizer_json,
        check_rows=choose_check_rows(plan.data.test),
    )


def train_into(
    out: Path,
    config: TrainConfig,
    progress: Progress,
    *,
    resume: bool = False,
    force: bool = False,
    backbone: Backbone | None = None,
) -> Run:
    """Train into a folder, which is there when the training is done, or stopped with something to show.

    Args:
        out: the run's folder.
        config: what to train, on what.
        progress: told how far it is.
        resume: go on where a training stopped; one that is done stays as it is.
        force: replace what is there.
        backbone: the config's, if it is loaded already.

    Raises:
        OutputError: the folder is there, or begun, or cannot be written.
        PtexportError: see `train`.
    """
    under_way = [folder / RESUME for folder in (out, out.with_name(out.name + ".partial"))]
    if resume and (out / METRICS).is_file() and not any(path.exists() for path in under_way):
        return _read_finished(out, config, progress, backbone)
    with kept_folder(out, resume=resume, force=force, files=(*FILES, RESUME), state=RESUME) as folder:
        run = train(config, progress, state=folder / RESUME, backbone=backbone)
        run.write(folder)
    if run.metrics.stopped is None:
        (
            out / RESUME
        ).unlink()  # when the run is where it belongs, so that a kill at any moment leaves one or the other
    return run


def _read_finished(folder: Path, config: TrainConfig, progress: Progress, backbone: Backbone | None) -> Run:
    """Read a run that was finished before, if it is what `train` would make of this config now.

    Raises:
        OutputError: it is of other options or data (says which).
        PtexportError: see `train`.
    """
    run = Run.read(folder)
    made = Ticket(config=run.config, data_sha256=run.metrics.data_sha256, manual=list(run.metrics.manual_accuracy))
    check_same(folder, made, _ticket(make_plan(config, progress, backbone)))
    return run


def _ticket(plan: Plan) -> Ticket:
    return Ticket(config=run_config(plan), data_sha256=hash_data(plan.data), manual=list(plan.manual))


def _measure(
    plan: Plan,
    training: Training,
    stopped: Stopped | None,
    manual_accuracy: dict[str, float],
    data_sha256: str,
) -> Metrics:
    config, scorer, prompt = plan.config, plan.scorer, training.prompt
    logits, targets = scorer.logits(prompt, plan.dev.encodings).cpu(), torch.tensor(plan.dev.targets)
    temperature = fit_temperature(logits, targets) if config.calibrate else 1.0
    return Metrics(
        method="p-tuning",
        model=config.model,
        n_train=len(plan.data.train),
        n_dev=len(plan.data.dev),
        n_test=len(plan.data.test),
        trainable_parameters=sum(parameter.numel() for parameter in prompt.trainable_parameters()),
        epochs=training.at.epochs,
        stopped=stopped,
        dev_accuracy=training.at.best_accuracy,
        test_accuracy=scorer.accuracy(prompt, plan.test)[0],
        temperature=temperature,
        abstain_below=None if config.abstain is None else fit_threshold(logits / temperature, targets, config.abstain),
        manual_accuracy=manual_accuracy,
        train_seconds=training.at.seconds,
        seed=plan.config.settings.seed,
        data_sha256=data_sha256,
        versions={name: version(name) for name in VERSIONED},
    )


def _measure_by_hand(plan: Plan, progress: Progress) -> dict[str, float]:
    """Measure hand-written templates with the same label words and rows; accuracies, 0 to 1."""
    task, accuracies = plan.task, {}
    for source, template in plan.manual.items():
        scorer = task.scorer(task.compile(template))
        examples = Examples.encode(plan.data.test, scorer.encoder, task.verbalizer.labels)
        accuracies[source] = scorer.accuracy(task.prompt(template, with_encoder=False), examples)[0]
        progress.note(f"hand-written {source!r}: test accuracy {accuracies[source]:.1%}")
    return accuracies


@torch.no_grad()
def _bake(plan: Plan, prompt: SoftPrompt, temperature: float) -> Baked:
    """Run the encoder one last time, and the backbone over the leading prompt."""
    rows = prompt.prompt_rows()
    task, leading_ids = plan.task, plan.scorer.leading_ids
    causal = task.backbone.facts.causal
    return Baked(
        prompt_rows=rows.cpu().numpy(),
        label_rows=(prompt.label_rows / temperature).cpu().numpy(),
        label_bias=(prompt.label_bias / temperature).cpu().numpy(),
        leading_states=task.classifier.leading_states(leading_ids, rows).cpu().numpy() if causal else None,
    )
