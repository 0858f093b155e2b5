"""A plan -> a Run, in memory or in a folder; knows the order of things, none of them itself."""

import functools
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch

from ptexport.runtime.errors import OutputError, TrainError
from ptexport.toolkit.methods import find_method
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.scoring import EncodedRows
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt
from ptexport.toolkit.run.backbone import BACKBONE
from ptexport.toolkit.run.check_rows import choose_check_rows
from ptexport.toolkit.run.config import RunConfig, Stopped, TrainConfig
from ptexport.toolkit.run.metrics import Metrics
from ptexport.toolkit.run.run import FILES, METRICS, RESUME, Run, TaskArrays
from ptexport.toolkit.store.folders import kept_folder
from ptexport.toolkit.template.words import WordTokenizer
from ptexport.toolkit.training.calibration import fit_temperature, fit_threshold, measure_log_prior
from ptexport.toolkit.training.loop import Training, fit, saying_what_would_fit
from ptexport.toolkit.training.plan import Plan, make_plan, run_config
from ptexport.toolkit.training.resume import Ticket, check_same, hash_data, load_state, save_state
from ptexport.toolkit.training.search import search, word_ids

VERSIONED = ("ptexport", "torch", "transformers", "tokenizers")


def train(
    config: TrainConfig, progress: Progress, *, folder: Path | None = None, backbone: Backbone | None = None
) -> Run:
    """Train what a method trains.

    What can be refused without the backbone is refused before it is loaded, and all else before training begins.

    Args:
        config: what to train, on what.
        progress: told how far it is.
        folder: keeps the training's state, which is gone on from if it is there, and a language model that is trained;
            needed for such a one.
        backbone: the config's, if it is loaded already.

    Returns:
        The run, whole in the first of several processes alone; if Ctrl-C or a loss that is no number stopped it
        (`run.metrics.stopped`), of the best epoch so far.

    Raises:
        PtexportError: anything that does not fit together; see `ptexport.runtime.errors`.
    """
    if (
        folder is None
        and find_method(config.method, train_backbone=config.train_backbone).backbone_training != "nothing"
    ):
        raise TrainError(f"{config.method}: trains the language model, which needs a folder; give one")
    plan = make_plan(config, progress, backbone)
    ticket = _ticket(plan)
    settings, prompt_model = plan.config.settings, plan.prompt_model
    torch.manual_seed(settings.seed)
    prompt = prompt_model.prompt(plan.template)
    training = Training(prompt, prompt_model.trainable.parameters, settings, len(plan.learn.targets))
    found = None
    with saying_what_would_fit(settings.batch_size, plan.learn):
        # Before training, so that a hand-written template or its words that do not fit cost no training.
        manual_accuracy = _measure_by_hand(plan, progress)
        if config.prior_correction:
            prompt.log_prior = measure_log_prior(plan.scorer, prompt, plan.template.fields)
        if prompt_model.choice.method.virtual_token == "word":
            found = _search(plan, training, progress)
            stopped = None
        else:
            stopped = _fit(plan, training, ticket, folder, progress)
        metrics = _measure(plan, training, stopped, manual_accuracy, ticket.data_sha256, found)
    return _run(plan, ticket.config, metrics, training, folder)


def _fit(plan: Plan, training: Training, ticket: Ticket, folder: Path | None, progress: Progress) -> Stopped | None:
    state = None if folder is None else folder / RESUME
    if state is not None and state.exists():
        load_state(state, training, ticket)
        progress.note(f"going on after {training.at.done} of {training.total_steps} steps")
    keep = functools.partial(save_state, state, training, ticket) if state and distributed.is_first() else lambda: None
    return fit(training, plan.scorer, train=plan.learn, dev=plan.dev, progress=progress, save=keep)


def _search(plan: Plan, training: Training, progress: Progress) -> list[str]:
    """Look for words; what was found is in the prompt then."""
    words = WordTokenizer(plan.prompt_model.backbone.tokenizer_json)
    training.restart_clock()
    found = search(
        training.prompt,
        plan.scorer,
        train=plan.learn,
        dev=plan.dev,
        candidates=word_ids(words, plan.prompt_model.backbone.facts.vocab),
        settings=plan.config.settings,
        progress=progress,
    )
    training.tick()
    training.at.best_accuracy, training.at.epochs = found.dev_accuracy, found.passes
    names = [words.tokenizer.decode([id_]).strip() for id_ in found.ids]
    progress.note(f"found {', '.join(names)}")
    return names


def _run(plan: Plan, config: RunConfig, metrics: Metrics, training: Training, folder: Path | None) -> Run:
    prompt_model, prompt = plan.prompt_model, training.prompt
    trained = {name: value.detach().cpu().numpy() for name, value in prompt.named_parameters()}
    backbone = prompt_model.backbone
    if prompt_model.choice.method.backbone_training != "nothing" and distributed.is_first():
        assert folder is not None
        backbone = prompt_model.trainable.write(folder / BACKBONE, prompt_model.choice.head)
        config = msgspec.structs.replace(config, trained_backbone=backbone.facts)
    return Run(
        config=config,
        metrics=metrics,
        trained=trained,
        arrays=_bake(plan, prompt, backbone, metrics.temperature),
        tokenizer_json=prompt_model.backbone.tokenizer_json,
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
    with ExitStack() as stack:
        own: Path | None = None
        if distributed.is_first():
            files = (*FILES, BACKBONE, RESUME)
            own = stack.enter_context(kept_folder(out, resume=resume, force=force, files=files, state=RESUME))
        folder = distributed.told_by_first(own)
        run = train(config, progress, folder=folder, backbone=backbone)
        if distributed.is_first():
            run.write(folder)
    assert run.metrics is not None
    if run.metrics.stopped is None and distributed.is_first():
        # When the run is where it belongs, so that a kill at any moment leaves one or the other.
        (out / RESUME).unlink(missing_ok=True)  # where nothing is learned step by step, there is none
    return run


def _read_finished(folder: Path, config: TrainConfig, progress: Progress, backbone: Backbone | None) -> Run:
    """Read a run that was finished before, if it is what `train` would make of this config now.

    Raises:
        OutputError: it is of other options or data (says which).
        PtexportError: see `train`.
    """
    run = Run.read(folder)
    if run.metrics is None:
        raise OutputError(f"{folder}: was imported, not trained; choose another name")
    made = Ticket(
        config=msgspec.structs.replace(run.config, trained_backbone=None),
        data_sha256=run.metrics.data_sha256,
        manual=list(run.metrics.manual_accuracy),
    )
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
    found_words: list[str] | None,
) -> Metrics:
    config, scorer, prompt = plan.config, plan.scorer, training.prompt
    temperature, abstain_below = 1.0, None
    if config.calibrate or config.abstain is not None:
        logits, targets = scorer.logits(prompt, plan.dev.encodings).cpu(), torch.tensor(plan.dev.targets)
        temperature = fit_temperature(logits, targets) if config.calibrate else 1.0
        abstain_below = None if config.abstain is None else fit_threshold(logits / temperature, targets, config.abstain)
    return Metrics(
        method=config.method,
        model=config.model,
        n_train=len(plan.data.train),
        n_dev=len(plan.data.dev),
        n_test=len(plan.data.test),
        trainable_parameters=training.n_trained,
        epochs=training.at.epochs,
        stopped=stopped,
        dev_accuracy=training.at.best_accuracy,
        test_accuracy=scorer.accuracy(prompt, plan.test)[0],
        temperature=temperature,
        abstain_below=abstain_below,
        log_prior=None if prompt.log_prior is None else prompt.log_prior.tolist(),
        found_words=found_words,
        manual_accuracy=manual_accuracy,
        train_seconds=training.at.seconds,
        seed=plan.config.settings.seed,
        data_sha256=data_sha256,
        versions={name: version(name) for name in VERSIONED},
    )


def _measure_by_hand(plan: Plan, progress: Progress) -> dict[str, float]:
    """Measure hand-written templates with the same label words and rows; accuracies, 0 to 1."""
    prompt_model, accuracies = plan.prompt_model, {}
    for source, template in plan.manual.items():
        scorer = prompt_model.scorer(prompt_model.compile(template))
        examples = EncodedRows.encode(plan.data.test, scorer.encoder, prompt_model.verbalizer.labels)
        accuracies[source] = scorer.accuracy(prompt_model.prompt(template), examples)[0]
        progress.note(f"hand-written {source!r}: test accuracy {accuracies[source]:.1%}")
    return accuracies


@torch.no_grad()
def _bake(plan: Plan, prompt: SoftPrompt, backbone: Backbone, temperature: float) -> TaskArrays:
    """Run the encoder one last time, and the backbone, as it is now, over the leading prompt."""
    rows = prompt.prompt_embeddings().cpu()
    label_weights, label_bias = prompt.labels()
    states = None if prompt.prefix is None else prompt.prefix()
    if states is None and backbone.facts.causal:
        states = backbone.classifier("last").cpu().prefix_kv(plan.scorer.leading_ids, rows)
    return TaskArrays(
        prompt_embeddings=rows.numpy(),
        label_weights=(label_weights / temperature).cpu().numpy(),
        label_bias=(label_bias / temperature).cpu().numpy(),
        prefix_kv=None if states is None else states.cpu().numpy(),
    )
