"""Runs on one frozen backbone -> what their one graph and its tokenizers are made of; without torch.

Each task owns a range of rows past the vocabulary. A token's type says whose it is: 2 x segment + token type, segment 0
for what tasks share and t + 1 for task t's (exporters/trace/multitask_classifier.py).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptexport.exporters.trace.cached import TraceKind
from ptexport.runtime.errors import ExportError
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.compile import CompiledTemplate, TemplateToken, TextSlot
from ptexport.toolkit.template.template import Template

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OF_TASK = ("normalizer", "truncation", "post_processor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizers:
    """The texts of tokenizer.json, the vocabulary with every task's rows, and templates.json."""

    vocabulary: str
    templates: str


class Joined:
    """Runs that can be one graph.

    Args:
        runs: by the task's name, in the order of the graph's output.

    Raises:
        ExportError: their backbones, tokenizers or read positions differ, or one was trained with its task.
    """

    def __init__(self, runs: dict[str, Run]) -> None:
        self.runs = runs
        (first_name, first), *others = runs.items()
        for name, run in runs.items():
            if not _NAME.fullmatch(name) or name == "all":
                raise ExportError(
                    f"task {name!r}: need letters, digits, '.', '_' or '-', and not 'all'; rename its folder"
                )
            if run.config.open_vocabulary:
                raise ExportError(
                    f"task {name}: its labels are a vocabulary, too many to stand beside others; export it alone"
                )
            if "choice" in Template.parse(run.config.template).fields:
                raise ExportError(f"task {name}: is a multiple choice, need labels of its own; export it alone")
            if run.config.trained_backbone is not None:
                raise ExportError(f"task {name}: its backbone was trained with it, need a frozen one; export it alone")
        for name, run in others:
            for what, got, need in (
                ("backbone", run.config.facts.fingerprint, first.config.facts.fingerprint),
                ("configuration", run.config.facts.config_sha256, first.config.facts.config_sha256),
                ("tokenizer", run.config.facts.tokenizer_sha256, first.config.facts.tokenizer_sha256),
                ("read position", run.config.pooling, first.config.pooling),
            ):
                if got != need:
                    raise ExportError(
                        f"task {name}: its {what} is {got[:16]}, {first_name}'s {need[:16]}; export it alone"
                    )
        self.first = first
        self._compiled = [run.config.compile(run.tokenizer_json) for run in runs.values()]
        self._n_rows = [run.config.n_prompt_embeddings for run in runs.values()]

    @property
    def has_prefix_kv(self) -> bool:
        """Whether keys and values stand before any task's rows."""
        return any(run.arrays.has_prefix_kv for run in self.runs.values())

    @property
    def kind(self) -> TraceKind:
        """Which graph: causal models read at the end can hold several tasks' tokens in one row."""
        config = self.first.config
        return "blocks" if config.facts.causal and config.pooling == "last" else "mixed"

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Make the graph's constants, by input name; shapes as `TaskClassifier.forward` says."""
        runs, first = list(self.runs.values()), self.first.arrays
        rows = [run.arrays.prompt_embeddings[:n] for run, n in zip(runs, self._n_rows, strict=True)]
        if self.first.config.pooling == "mask" or not any(self._n_rows):
            rows.append(first.prompt_embeddings[-1:])  # the mask slot, which all share, or the row that stands for none
        n_labels = [len(run.config.labels) for run in runs]
        label_weights = np.zeros((len(runs), max(n_labels), first.label_weights.shape[1]), dtype=np.float32)
        label_bias = np.full(label_weights.shape[:2], -np.inf, dtype=np.float32)
        for t, (run, n) in enumerate(zip(runs, n_labels, strict=True)):
            label_weights[t, :n], label_bias[t, :n] = run.arrays.label_weights, run.arrays.label_bias
        arrays = {"prompt_embeddings": np.concatenate(rows), "label_weights": label_weights, "label_bias": label_bias}
        return arrays | (self._leading() if self.has_prefix_kv else {})

    def _leading(self) -> dict[str, NDArray[np.float32]]:
        of_task = [run.arrays.prefix_kv for run in self.runs.values()]
        lengths = [0 if states is None else states.shape[4] for states in of_task]
        layers, two, _, heads, _, width = next(states for states in of_task if states is not None).shape
        joined = np.zeros((layers, two, len(of_task), heads, max(lengths), width), dtype=np.float32)
        mask = np.zeros((len(of_task), max(lengths)), dtype=np.float32)
        for t, (states, n) in enumerate(zip(of_task, lengths, strict=True)):
            if states is not None and n:  # padded on the left: a layer with a window counts how far keys are
                joined[:, :, t, :, -n:] = states[:, :, 0]
                mask[t, -n:] = 1
        return {"prefix_kv": joined, "prefix_mask": mask}

    @cached_property
    def of_all(self) -> CompiledTemplate | None:
        """A text and every task's tokens after it; None if what stands before or in the text differs by task."""
        parts = [_split(run, compiled) for run, compiled in zip(self.runs.values(), self._compiled, strict=True)]
        shared, tails = [part[0] for part in parts], [part[1] for part in parts]
        states = [run.arrays.prefix_kv for run in self.runs.values()]
        first = self._compiled[0]
        alike = (
            self.kind == "blocks"
            and all(tails)
            and all(items == shared[0] for items in shared)
            and not any(isinstance(item, TemplateToken) and item.id >= first.vocab for item in shared[0])
            and all(np.array_equal(own, states[0]) for own in states if own is not None and states[0] is not None)
            and all((c.text_spaced, c.truncate) == (first.text_spaced, first.truncate) for c in self._compiled)
        )
        if not alike:
            return None
        # What is cut must be what each task cuts: a row too long for any of them is answered task by task.
        n_shared = sum(isinstance(item, TemplateToken) for item in shared[0])
        room = min(
            c.max_length - c.n_prefix - run.config.n_folded - n_shared - len(tail)
            for c, run, tail in zip(self._compiled, self.runs.values(), tails, strict=True)
        )
        items = shared[0] + tuple(item for t, tail in enumerate(tails) for item in self._owned(t, tail))
        return replace(first, items=items, max_length=room + n_shared + sum(map(len, tails)), n_prefix=0)

    def tokenizers(self) -> Tokenizers:
        """Write the vocabulary once, and beside it what each task's tokenizer has of its own."""
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
        return Tokenizers(
            vocabulary=json.dumps(vocabulary | dict.fromkeys(_OF_TASK), ensure_ascii=False),
            templates=json.dumps({"tasks": templates, "all": of_all}, ensure_ascii=False, indent=1),
        )

    def _owned(self, t: int, items: Sequence[TemplateToken | TextSlot]) -> tuple[TemplateToken | TextSlot, ...]:
        """Give a task's tokens its segment, and its virtual tokens their place among all tasks' rows."""
        vocab = self._compiled[0].vocab
        owned: list[TemplateToken | TextSlot] = []
        for item in items:
            type_id = 2 * (t + 1) + item.type_id
            if isinstance(item, TemplateToken) and item.id >= vocab:
                row = item.id - vocab
                is_mask = row == self._n_rows[t]
                row = sum(self._n_rows) if is_mask else row + sum(self._n_rows[:t])
                owned.append(TemplateToken(id=vocab + row, name=f"[P {row}]", type_id=type_id))
            else:
                owned.append(replace(item, type_id=type_id))
        return tuple(owned)


def _split(
    run: Run, compiled: CompiledTemplate
) -> tuple[tuple[TemplateToken | TextSlot, ...], tuple[TemplateToken, ...]]:
    """Split what is not folded behind the last text."""
    items = compiled.items[run.config.n_folded :]
    end = max(i for i, item in enumerate(items) if isinstance(item, TextSlot)) + 1
    return items[:end], tuple(item for item in items[end:] if isinstance(item, TemplateToken))
