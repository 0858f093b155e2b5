"""Runs on one backbone -> the arrays, tokenizers and configuration of one bundle; without torch.

In a bundle of several tasks each task has its own range of virtual-token ids past the vocabulary. The token type of an
id names its task: 2 x segment + token type, with segment 0 for tokens that all tasks share and segment t + 1 for the
tokens of task t (exporters/trace/multitask_classifier.py). A bundle of one task uses the backbone's own token types.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptexport.exporters.trace.cached import TraceKind
from ptexport.runtime.bundle.folder import CONFIG, TEMPLATES, TOKENIZER, TOKENIZER_CONFIG
from ptexport.runtime.bundle.manifest import ALL
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import ExportError
from ptexport.toolkit.run.config import RunConfig
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.compile import CompiledTemplate, TemplateToken, TextSlot

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OF_TASK = ("normalizer", "truncation", "post_processor")


class JointTasks:
    """One or several runs that one graph can serve.

    Args:
        runs: by the task's name, in the order of the graph's output.

    Raises:
        ExportError: of several runs, the backbones, tokenizers or poolings differ, a name cannot be used, or a run
            needs a graph of its own: it trained its backbone, or has an open vocabulary.
    """

    def __init__(self, runs: dict[str, Run]) -> None:
        self.runs = runs
        self.first = next(iter(runs.values()))
        if self.several:
            _check_each(runs)
            _check_alike(runs)
        self._compiled = [run.config.compile(run.tokenizer_json) for run in runs.values()]
        self._n_own = [run.config.n_prompt_embeddings for run in runs.values()]

    @property
    def several(self) -> bool:
        """Whether there are several tasks."""
        return len(self.runs) > 1

    @property
    def has_prefix_kv(self) -> bool:
        """Whether any task has past key/values."""
        return any(run.arrays.has_prefix_kv for run in self.runs.values())

    @property
    def kind(self) -> TraceKind:
        """The kind of graph; only a causal model that is read at the last token can run several tasks in one row."""
        config = self.first.config
        if not self.several:
            return "task"
        return "blocks" if config.facts.causal and config.pooling == "last" else "mixed"

    @property
    def n_labels(self) -> list[int]:
        """The number of labels of each task."""
        return [len(run.config.labels) for run in self.runs.values()]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Make the task arrays by the graph's input names; shapes as in `MultitaskClassifier.forward`."""
        if not self.several:
            return self.first.arrays.by_name()
        runs, first = list(self.runs.values()), self.first.arrays
        embeddings = [run.arrays.prompt_embeddings[:n] for run, n in zip(runs, self._n_own, strict=True)]
        if self.first.config.pooling == "mask" or not any(self._n_own):
            embeddings.append(first.prompt_embeddings[-1:])  # the mask slot, or the zero row of a table without tokens
        label_weights = np.zeros((len(runs), max(self.n_labels), first.label_weights.shape[1]), dtype=np.float32)
        label_bias = np.full(label_weights.shape[:2], -np.inf, dtype=np.float32)
        for t, (run, n) in enumerate(zip(runs, self.n_labels, strict=True)):
            label_weights[t, :n], label_bias[t, :n] = run.arrays.label_weights, run.arrays.label_bias
        arrays = {
            "prompt_embeddings": np.concatenate(embeddings),
            "label_weights": label_weights,
            "label_bias": label_bias,
        }
        return arrays | (self._prefixes() if self.has_prefix_kv else {})

    def _prefixes(self) -> dict[str, NDArray[np.float32]]:
        of_task = [run.arrays.prefix_kv for run in self.runs.values()]
        lengths = [0 if prefix_kv is None else prefix_kv.shape[4] for prefix_kv in of_task]
        layers, two, _, heads, _, width = next(prefix_kv for prefix_kv in of_task if prefix_kv is not None).shape
        joined = np.zeros((layers, two, len(of_task), heads, max(lengths), width), dtype=np.float32)
        mask = np.zeros((len(of_task), max(lengths)), dtype=np.float32)
        for t, (prefix_kv, n) in enumerate(zip(of_task, lengths, strict=True)):
            if prefix_kv is not None and n:  # padded on the left: sliding windows count back from the queries
                joined[:, :, t, :, -n:] = prefix_kv[:, :, 0]
                mask[t, -n:] = 1
        return {"prefix_kv": joined, "prefix_mask": mask}

    @cached_property
    def of_all(self) -> CompiledTemplate | None:
        """The template that encodes a text followed by the tokens of every task.

        None if there is one task, the graph cannot hold several tasks in a row, or what precedes the end of the text
        differs between tasks.
        """
        parts = [_split(run, compiled) for run, compiled in zip(self.runs.values(), self._compiled, strict=True)]
        shared, tails = [part[0] for part in parts], [part[1] for part in parts]
        prefixes = [run.arrays.prefix_kv for run in self.runs.values()]
        first = self._compiled[0]
        alike = (
            self.kind == "blocks"
            and all(tails)
            and all(items == shared[0] for items in shared)
            and not any(isinstance(item, TemplateToken) and item.id >= first.vocab for item in shared[0])
            and all(np.array_equal(own, prefixes[0]) for own in prefixes if own is not None and prefixes[0] is not None)
            and all((c.text_spaced, c.truncate) == (first.text_spaced, first.truncate) for c in self._compiled)
        )
        if not alike:
            return None
        # Each task must truncate as it does alone; the engine runs longer texts task by task.
        n_shared = sum(isinstance(item, TemplateToken) for item in shared[0])
        room = min(
            c.max_length - c.n_prefix - run.config.n_folded - n_shared - len(tail)
            for c, run, tail in zip(self._compiled, self.runs.values(), tails, strict=True)
        )
        items = shared[0] + tuple(item for t, tail in enumerate(tails) for item in self._owned(t, tail))
        return replace(first, items=items, max_length=room + n_shared + sum(map(len, tails)), n_prefix=0)

    def texts(self, inputs: Sequence[str]) -> dict[str, str]:
        """Write the bundle's text files.

        Args:
            inputs: names of the graph's inputs that a tokenizer fills.

        Returns:
            Contents by file name: of one task, `tokenizer.json` and what Transformers needs beside it; of several, the
            common vocabulary as `tokenizer.json`, and `templates.json`.
        """
        if self.several:
            return self._joint_texts()
        config, (compiled,) = self.first.config, self._compiled
        return {
            TOKENIZER: compiled.tokenizer_json(n_folded=config.n_folded),
            TOKENIZER_CONFIG: _pretty(_tokenizer_config(config, inputs)),
            CONFIG: _pretty(_model_config(config)),
        }

    def encoders(self, folder: Path) -> TaskEncoders:
        """Load the text encoders of the tasks from the text files in a folder."""
        fields = {name: run.config.fields for name, run in self.runs.items()}
        tokenizer_json = (folder / TOKENIZER).read_text(encoding="utf-8")
        if not self.several:
            return TaskEncoders(of_task=[TextEncoder.from_json(tokenizer_json, fields=own) for own in fields.values()])
        templates = json.loads((folder / TEMPLATES).read_text(encoding="utf-8"))
        return TaskEncoders.from_templates(tokenizer_json, templates, fields)

    def _joint_texts(self) -> dict[str, str]:
        templates: dict[str, Any] = {}
        every: list[TemplateToken | TextSlot] = [TextSlot(sequence="A", type_id=0)]
        for t, ((name, run), compiled) in enumerate(zip(self.runs.items(), self._compiled, strict=True)):
            owned = self._owned(t, compiled.items)
            every += [item for item in owned if isinstance(item, TemplateToken)]
            spec = json.loads(replace(compiled, items=owned).tokenizer_json(n_folded=run.config.n_folded))
            templates[name] = {key: spec[key] for key in _OF_TASK}
        of_all = None
        if self.of_all is not None:
            spec = json.loads(self.of_all.tokenizer_json())
            of_all = {key: spec[key] for key in _OF_TASK}
        vocabulary = json.loads(replace(self._compiled[0], items=tuple(every)).tokenizer_json())
        return {
            TOKENIZER: json.dumps(vocabulary | dict.fromkeys(_OF_TASK), ensure_ascii=False),
            TEMPLATES: json.dumps({"tasks": templates, "all": of_all}, ensure_ascii=False, indent=1),
        }

    def _owned(self, t: int, items: Sequence[TemplateToken | TextSlot]) -> tuple[TemplateToken | TextSlot, ...]:
        """Give a task's tokens its segment, and its virtual tokens their ids among those of all tasks."""
        vocab = self._compiled[0].vocab
        owned: list[TemplateToken | TextSlot] = []
        for item in items:
            type_id = 2 * (t + 1) + item.type_id
            if isinstance(item, TemplateToken) and item.id >= vocab:
                number = item.id - vocab
                is_mask = number == self._n_own[t]
                number = sum(self._n_own) if is_mask else number + sum(self._n_own[:t])
                owned.append(TemplateToken(id=vocab + number, name=f"[P {number}]", type_id=type_id))
            else:
                owned.append(replace(item, type_id=type_id))
        return tuple(owned)


def _split(
    run: Run, compiled: CompiledTemplate
) -> tuple[tuple[TemplateToken | TextSlot, ...], tuple[TemplateToken, ...]]:
    """Split the items that are not folded after the last text."""
    items = compiled.items[run.config.n_folded :]
    end = max(i for i, item in enumerate(items) if isinstance(item, TextSlot)) + 1
    return items[:end], tuple(item for item in items[end:] if isinstance(item, TemplateToken))


def _check_each(runs: dict[str, Run]) -> None:
    """Refuse names that cannot be used, and runs that need a graph of their own."""
    for name, run in runs.items():
        if not _NAME.fullmatch(name) or name == ALL:
            raise ExportError(
                f"task: got the name {name!r}, need letters, digits, '.', '_', '-', but not {ALL!r}; rename its folder"
            )
        if run.config.open_vocabulary:
            raise ExportError(
                f"task {name}: has an open vocabulary, which has too many labels for a multi-task bundle; "
                "export it alone"
            )
        if run.config.trained_backbone is not None:
            raise ExportError(f"task {name}: its backbone was trained with it, need a frozen one; export it alone")


def _check_alike(runs: dict[str, Run]) -> None:
    """Refuse runs of different backbones, tokenizers or poolings."""
    (first_name, first), *others = runs.items()
    for name, run in others:
        for what, got, need in (
            ("backbone", run.config.facts.fingerprint, first.config.facts.fingerprint),
            ("configuration", run.config.facts.config_sha256, first.config.facts.config_sha256),
            ("tokenizer", run.config.facts.tokenizer_sha256, first.config.facts.tokenizer_sha256),
            ("pooling", run.config.pooling, first.config.pooling),
        ):
            if got != need:
                raise ExportError(f"task {name}: its {what} is {got[:16]}, {first_name}'s {need[:16]}; export it alone")


def _tokenizer_config(config: RunConfig, inputs: Sequence[str]) -> dict[str, object]:
    # Any other class may rebuild the tokenizer from its vocabulary and silently lose the template.
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(inputs),
        "pad_token": config.facts.tokens["pad"],
        "model_max_length": config.max_length - config.n_prefix - config.n_folded,
    }


def _model_config(config: RunConfig) -> dict[str, object]:
    return {
        "model_type": config.facts.model_type,
        "id2label": {str(i): label for i, label in enumerate(config.labels)},
        "label2id": {label: i for i, label in enumerate(config.labels)},
        "vocab_size": config.facts.vocab,
    }


def _pretty(value: dict[str, object]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
