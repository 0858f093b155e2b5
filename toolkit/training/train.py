"""Inputs -> a Run, in memory or in a folder: calls every step in order."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch

from ptexport.runtime.errors import OutputError, TrainError
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.scoring import EncodedRows
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt
from ptexport.toolkit.run.check_rows import choose_check_rows
from ptexport.toolkit.run.config import Stopped
from ptexport.toolkit.run.metrics import Metrics
from ptexport.toolkit.run.run import BACKBONE, POSSIBLE_FILES, RESUME, Run, TaskArrays
from ptexport.toolkit.store.folders import kept_folder
from ptexport.toolkit.template.words import WordTokenizer
from ptexport.toolkit.training.calibration import fit_temperature, fit_threshold, measure_log_prior
from ptexport.toolkit.training.inputs import Inputs, is_finished
from ptexport.toolkit.training.loop import Training, fit
from ptexport.toolkit.training.plan import Plan, make_plan
from ptexport.toolkit.training.resume import Ticket, check_same, hash_data, load_state, save_state
from ptexport.toolkit.training.search import search, word_ids

VERSIONED = ("ptexport", "torch", "transformers", "tokenizers")
_OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive")  # torch's allocator; oneDNN's LSTM


def train(inputs: Inputs, progress: Progress, *, folder: Path | None = None, backbone: Backbone | None = None) -> Run:
    """Train a task.

    All checks run before training starts.

    Args:
        inputs: the rows and the complete configuration.
        progress: receives stages, steps, epochs and warnings.
        folder: receives the training state, from which training resumes if it is there already, and a trained language
            model; required if the method trains the language model.
        backbone: the backbone of the configuration, if it is loaded already.

    Returns:
        The run; with several processes, it is complete in rank 0 only. If Ctrl-C or a loss that is not finite stopped
        the training (`run.metrics.stopped`), it holds the best epoch.

    Raises:
        PtexportError: parts do not fit together; see `ptexport.runtime.errors`.
    """
    config = inputs.config
    if folder is None and inputs.method.backbone_training != "nothing":
        raise TrainError(f"{config.method}: trains the language model, which needs a folder; give one")
    plan = make_plan(inputs, progress, backbone)
    ticket = _ticket(plan)
    settings, prompt_model = plan.inputs.config.settings, plan.prompt_model
    torch.manual_seed(settings.seed)
    prompt = prompt_model.prompt(plan.inputs.template)
    training = Training(prompt, prompt_model.trainable.parameters, settings, len(plan.train.targets))
    found_words, stopped = None, None
    with _explain_out_of_memory(settings.batch_size, plan.train):
        # Before training, so that a hand-written template that does not fit costs no training.
        manual_accuracy = _measure_manual(plan, progress)
        if config.contextual_calibration:
            prompt.log_prior = measure_log_prior(plan.scorer, prompt, plan.inputs.template.fields)
        if prompt_model.method.virtual_token == "word":
            found_words = _search(plan, training, progress)
        else:
            stopped = _fit(plan, training, ticket, folder, progress)
        metrics = _measure(plan, training, stopped, manual_accuracy, ticket.data_sha256, found_words, inputs.choices)
    return _make_run(plan, metrics, training, folder)


@contextmanager
def _explain_out_of_memory(batch_size: int, rows: EncodedRows) -> Iterator[None]:
    """Turn an out-of-memory error of torch into advice on what to lower.

    Args:
        batch_size: rows per forward pass.
        rows: the training rows.

    Raises:
        TrainError: the block ran out of memory.
    """
    try:
        yield
    except RuntimeError as e:
        if not isinstance(e, torch.OutOfMemoryError) and not any(sign in str(e) for sign in _OUT_OF_MEMORY):
            raise
        tokens = max(map(len, rows.encodings))
        smaller = f"--batch-size {batch_size // 2}, or " if batch_size > 1 else ""
        raise TrainError(
            f"training: out of memory with {batch_size} rows of up to {tokens} tokens per batch; "
            f"use {smaller}a lower --max-length"
        ) from e


def _fit(plan: Plan, training: Training, ticket: Ticket, folder: Path | None, progress: Progress) -> Stopped | None:
    state = None if folder is None else folder / RESUME
    if state is not None and state.exists():
        load_state(state, training, ticket)
        progress.note(f"resuming after {training.at.done} of {training.total_steps} steps")
    keep = functools.partial(save_state, state, training, ticket) if state and distributed.is_rank_0() else lambda: None
    return fit(training, plan.scorer, train=plan.train, dev=plan.dev, progress=progress, save=keep)


def _search(plan: Plan, training: Training, progress: Progress) -> list[str]:
    """Search for words, leave them in the prompt and return them."""
    words = WordTokenizer(plan.prompt_model.backbone.tokenizer_json)
    training.restart_clock()
    found = search(
        training.prompt,
        plan.scorer,
        train=plan.train,
        dev=plan.dev,
        candidates=word_ids(words, plan.prompt_model.backbone.facts.vocab),
        settings=plan.inputs.config.settings,
        progress=progress,
    )
    training.tick()
    training.at.best_accuracy, training.at.epochs = found.dev_accuracy, found.passes
    names = [words.tokenizer.decode([id_]).strip() for id_ in found.ids]
    progress.note(f"found {', '.join(names)}")
    return names


def _make_run(plan: Plan, metrics: Metrics, training: Training, folder: Path | None) -> Run:
    prompt_model, prompt = plan.prompt_model, training.prompt
    config, backbone = plan.run_config, prompt_model.backbone
    if prompt_model.method.backbone_training != "nothing" and distributed.is_rank_0():
        assert folder is not None
        backbone = prompt_model.trainable.write(folder / BACKBONE, backbone.head)
        config = msgspec.structs.replace(config, trained_backbone=backbone.facts)
    return Run(
        config=config,
        metrics=metrics,
        trained={name: value.detach().cpu().numpy() for name, value in prompt.named_parameters()},
        arrays=_task_arrays(plan, prompt, backbone, metrics.temperature),
        tokenizer_json=prompt_model.backbone.tokenizer_json,
        check_rows=choose_check_rows(plan.inputs.data.test),
    )


def train_into(
    out: Path,
    inputs: Inputs,
    progress: Progress,
    *,
    resume: bool = False,
    force: bool = False,
    backbone: Backbone | None = None,
) -> Run:
    """Train into a folder. It appears when the training is done, or stopped early with at least one epoch.

    Args:
        out: folder of the run.
        inputs: the rows and the complete configuration.
        progress: receives stages, steps, epochs and warnings.
        resume: resume an interrupted training; a finished one is returned unchanged.
        force: replace an existing folder.
        backbone: the backbone of the configuration, if it is loaded already.

    Raises:
        OutputError: the folder exists, a training into it was interrupted, or it cannot be written.
        PtexportError: see `train`.
    """
    if resume and is_finished(out):
        return _read_finished(out, inputs, progress, backbone)
    with ExitStack() as stack:
        own: Path | None = None
        if distributed.is_rank_0():
            kept = kept_folder(out, resume=resume, force=force, files=POSSIBLE_FILES, state=RESUME)
            own = stack.enter_context(kept)
        folder = distributed.broadcast_from_rank_0(own)
        run = train(inputs, progress, folder=folder, backbone=backbone)
        if distributed.is_rank_0():
            run.write(folder)
    assert run.metrics is not None
    if run.metrics.stopped is None and distributed.is_rank_0():
        # After the folder has its name, so that a kill at any moment leaves either the run or the state.
        (out / RESUME).unlink(missing_ok=True)  # methods without optimizer steps have none
    return run


def _read_finished(folder: Path, inputs: Inputs, progress: Progress, backbone: Backbone | None) -> Run:
    """Read a finished run, and check that this configuration would give the same run.

    Raises:
        OutputError: the run has other options or data (the message names them).
        PtexportError: see `train`.
    """
    run = Run.read(folder)
    if run.metrics is None:
        raise OutputError(f"{folder}: holds an imported run, need a trained one; choose another name")
    old = Ticket(
        config=msgspec.structs.replace(run.config, trained_backbone=None),
        data_sha256=run.metrics.data_sha256,
        manual=list(run.metrics.manual_accuracy),
    )
    check_same(folder, old, _ticket(make_plan(inputs, progress, backbone)))
    return run


def _ticket(plan: Plan) -> Ticket:
    return Ticket(config=plan.run_config, data_sha256=hash_data(plan.inputs.data), manual=list(plan.inputs.manual))


def _measure(
    plan: Plan,
    training: Training,
    stopped: Stopped | None,
    manual_accuracy: dict[str, float],
    data_sha256: str,
    found_words: list[str] | None,
    choices: list[str],
) -> Metrics:
    config, scorer, prompt = plan.inputs.config, plan.scorer, training.prompt
    temperature, abstain_below = 1.0, None
    if config.calibrate or config.abstain is not None:
        logits, targets = scorer.logits(prompt, plan.dev.encodings).cpu(), torch.tensor(plan.dev.targets)
        temperature = fit_temperature(logits, targets) if config.calibrate else 1.0
        abstain_below = None if config.abstain is None else fit_threshold(logits / temperature, targets, config.abstain)
    return Metrics(
        method=config.method,
        model=config.model,
        n_train=len(plan.inputs.data.train),
        n_dev=len(plan.inputs.data.dev),
        n_test=len(plan.inputs.data.test),
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
        seed=plan.inputs.config.settings.seed,
        data_sha256=data_sha256,
        versions={name: version(name) for name in VERSIONED},
        choices=choices,
    )


def _measure_manual(plan: Plan, progress: Progress) -> dict[str, float]:
    """Measure the test accuracy, 0 to 1, of hand-written templates with the same label words and rows."""
    prompt_model, accuracies = plan.prompt_model, {}
    for source, template in plan.inputs.manual.items():
        scorer = prompt_model.scorer(prompt_model.compile(template))
        rows = EncodedRows.encode(plan.inputs.data.test, scorer.encoder, prompt_model.verbalizer.labels)
        accuracies[source] = scorer.accuracy(prompt_model.prompt(template), rows)[0]
        progress.note(f"hand-written {source!r}: test accuracy {accuracies[source]:.1%}")
    return accuracies


@torch.no_grad()
def _task_arrays(plan: Plan, prompt: SoftPrompt, backbone: Backbone, temperature: float) -> TaskArrays:
    """Compute the final task tensors: run the prompt encoder, and run the backbone over the folded tokens."""
    prompt_embeddings = prompt.prompt_embeddings().cpu()
    label_weights, label_bias = prompt.labels()
    prefix_kv = None if prompt.prefix is None else prompt.prefix()
    if prefix_kv is None and backbone.facts.causal:
        prefix_kv = backbone.classifier("last").cpu().prefix_kv(plan.scorer.folded_ids, prompt_embeddings)
    return TaskArrays(
        prompt_embeddings=prompt_embeddings.numpy(),
        label_weights=(label_weights / temperature).cpu().numpy(),
        label_bias=(label_bias / temperature).cpu().numpy(),
        prefix_kv=None if prefix_kv is None else prefix_kv.cpu().numpy(),
    )
