"""A bundle -> one text encoder per task.

A bundle of several tasks has their common vocabulary once, in `tokenizer.json`. `templates.json` has the rest of each
task's tokenizer: `{"tasks": {name: …}, "all": … or null}`.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ptexport.runtime.bundle.folder import TEMPLATES, TOKENIZER, Bundle
from ptexport.runtime.engine.text_encoder import TextEncoder, load_tokenizer
from ptexport.runtime.errors import BundleError, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEncoders:
    """The text encoders of a bundle's tasks.

    Attributes:
        of_task: one per task, in the order of the graph's output.
        of_all: encodes a text followed by every task's tokens, for one forward pass; None: this bundle has no such
            encoding, or one task only.
    """

    of_task: list[TextEncoder]
    of_all: TextEncoder | None = None

    @classmethod
    def open(cls, bundle: Bundle) -> "TaskEncoders":
        """Load the tokenizers of a verified bundle.

        Raises:
            BundleError: `templates.json` is not as an export writes it.
        """
        tokenizer_json = (bundle.path / TOKENIZER).read_text(encoding="utf-8")
        tasks = bundle.manifest.tasks
        if len(tasks) == 1:
            return cls(of_task=[TextEncoder.from_json(tokenizer_json, fields=tasks[0].fields)])
        fields = {task.name: task.fields for task in tasks}
        with _template_errors(bundle):
            return cls.from_templates(tokenizer_json, _templates(bundle), fields)

    @classmethod
    def from_templates(
        cls, tokenizer_json: str, templates: dict[str, Any], fields: Mapping[str, Sequence[str]]
    ) -> "TaskEncoders":
        """Build the encoders of several tasks on one vocabulary, which is in memory once.

        Args:
            tokenizer_json: content of `tokenizer.json`.
            templates: content of `templates.json`.
            fields: the texts of a row of each task, by the task's name.
        """
        return cls._on(load_tokenizer(tokenizer_json), json.loads(tokenizer_json), templates, fields)

    def of_bundle(self, bundle: Bundle, others: Mapping[str, Any], n_ids: int) -> "TaskEncoders":
        """Build the encoders of another bundle on the vocabulary of these, which is neither copied nor parsed.

        Args:
            bundle: the other bundle.
            others: its `tokenizer.json` without the model, which may differ in virtual tokens only: no text can
                produce those, and templates have their ids.
            n_ids: number past the largest id that its graph takes.

        Raises:
            BundleError: `templates.json` is not as an export writes it.
        """
        fields = {task.name: task.fields for task in bundle.manifest.tasks}
        with _template_errors(bundle):
            alone: dict[str, Any] = {"tasks": {name: {} for name in fields}, "all": None}  # its template is in `others`
            templates = alone if len(fields) == 1 else _templates(bundle)
            return self._on(self.of_task[0].tokenizer, others, templates, fields, n_ids)

    @classmethod
    def _on(
        cls,
        shared: Tokenizer,
        others: Mapping[str, Any],
        templates: dict[str, Any],
        fields: Mapping[str, Sequence[str]],
        n_ids: int | None = None,
    ) -> "TaskEncoders":
        """Build encoders on the vocabulary of a tokenizer."""
        bare = {**others, "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
        added = [token for _, token in sorted(shared.get_added_tokens_decoder().items())]

        def encoder(template: dict[str, Any], texts: Sequence[str]) -> TextEncoder:
            tokenizer = load_tokenizer(json.dumps(bare | template))
            tokenizer.model = shared.model  # shared, not copied
            for special, tokens in itertools.groupby(added, lambda token: token.special):
                (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(list(tokens))
            return TextEncoder(tokenizer, fields=texts, n_ids=n_ids)

        of_all = None if templates["all"] is None else encoder(templates["all"], next(iter(fields.values())))
        return cls(of_task=[encoder(templates["tasks"][name], own) for name, own in fields.items()], of_all=of_all)


def longest_row(bundle: Bundle) -> int:
    """Read how many ids the longest row of a bundle has, without loading a tokenizer.

    Raises:
        BundleError: `templates.json` is not as an export writes it.
    """
    if len(bundle.manifest.tasks) == 1:
        return bundle.manifest.task.max_length
    with _template_errors(bundle):
        templates = _templates(bundle)
        used = [*templates["tasks"].values(), *filter(None, [templates["all"]])]
        return max(int(template["truncation"]["max_length"]) for template in used)


def _templates(bundle: Bundle) -> Any:
    return json.loads(bundle.read(TEMPLATES))


@contextmanager
def _template_errors(bundle: Bundle) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise BundleError(f"{bundle.path / TEMPLATES}: cannot be read as templates ({reason(e)}); export again") from e
