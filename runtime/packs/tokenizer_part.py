"""The tasks' parts of a bundle's tokenizer.json <-> that file.

Parsing and writing a vocabulary of 30,000 words blocks all other threads of Python for 30 ms. So the parts are replaced
in the bytes, where they are: small ones before the model, and the tasks' tokens at the end of the vocabulary. The
result is the file that was exported if its hash is, and its hash is always compared.
"""

import json
from typing import Any

import msgspec

_MODEL = b', "model": {'
_OTHERS = {"added_tokens", "decoder", "normalizer", "padding", "post_processor", "pre_tokenizer", "truncation"}


def split(tokenizer_json: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a tokenizer.json into all that is not its model, parsed, and the bytes from its model on.

    Raises:
        ValueError: the file is not laid out as an export writes it.
    """
    at = tokenizer_json.find(_MODEL)
    others = json.loads(tokenizer_json[: max(at, 0)] + b"}")
    if not others.keys() >= _OTHERS:
        raise ValueError(f"has no {', '.join(sorted(_OTHERS - others.keys()))} before its model")
    return others, tokenizer_json[at:]


class PackTokenizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parts of tokenizer.json that belong to the tasks.

    Attributes:
        vocab: first id past the backbone's embedding table.
        tokens: ids from `vocab` on, by name.
        normalizer: as in the file; None in a bundle of several tasks, which has these three in `templates.json`.
        truncation: as in the file, likewise.
        post_processor: as in the file, likewise.
    """

    vocab: int
    tokens: dict[str, int]
    normalizer: dict[str, Any] | None
    truncation: dict[str, Any] | None
    post_processor: dict[str, Any] | None

    @classmethod
    def of(cls, tokenizer_json: str, vocab: int) -> "PackTokenizer":
        """Take the tasks' parts out of a bundle's tokenizer.json."""
        spec = json.loads(tokenizer_json)
        entries = spec["model"]["vocab"]
        ids = entries if isinstance(entries, dict) else {name: id_ for id_, (name, _) in enumerate(entries)}
        return cls(
            vocab=vocab,
            tokens={name: id_ for name, id_ in ids.items() if id_ >= vocab},
            normalizer=spec["normalizer"],
            truncation=spec["truncation"],
            post_processor=spec["post_processor"],
        )

    @property
    def n_ids(self) -> int:
        """Number past the largest id that the graph takes."""
        return max(self.tokens.values(), default=self.vocab - 1) + 1

    def put_into(self, tokenizer_json: bytes) -> bytes:
        """Replace the tasks' parts in a bundle's tokenizer.json by these.

        Raises:
            ValueError: the file is not laid out as an export writes it.
        """
        others, model = split(tokenizer_json)
        own = {"normalizer": self.normalizer, "truncation": self.truncation, "post_processor": self.post_processor}
        is_list = b'"vocab": [' in model
        start = model.index(b'"vocab": ') + len(b'"vocab": ')
        end = model.find(b']], "' if is_list else b'}, "', start) + is_list
        if end <= start:  # the vocabulary is the last part of the model: }}}
            end = len(model) - 3
        entries = self._in_list(model[start:end]) if is_list else self._in_dict(model[start:end])
        return json.dumps(others | own, ensure_ascii=False).encode()[:-1] + model[:start] + entries + model[end:]

    def _in_dict(self, entries: bytes) -> bytes:
        """Replace the last entries of `{"a": 0, "b": 1`."""
        end = len(entries)
        while (at := entries.rfind(b', "', 0, end)) >= 0 and int(entries[at:end].rpartition(b": ")[2]) >= self.vocab:
            end = at
        return entries[:end] + b"".join(b", " + _json({name: id_})[1:-1] for name, id_ in self.tokens.items())

    def _in_list(self, entries: bytes) -> bytes:
        """Replace the last entries of `[["a", -1.5], ["b", -2.5]`, whose index is the id.

        It may end with fillers up to the tasks' tokens: see `add_to_vocab` of the compiler.
        """
        size, end = entries.count(b'], ["') + 1, len(entries)
        while (at := entries.rfind(b', ["', 0, end)) >= 0 and (
            size > self.vocab or entries[at:end].startswith(f', ["[unused {size - 1}]"'.encode())
        ):
            size, end = size - 1, at
        names = {id_: name for name, id_ in self.tokens.items()}
        added = ([names.get(id_, f"[unused {id_}]"), 0.0] for id_ in range(size, self.n_ids if names else size))
        return entries[:end] + b"".join(b", " + _json(entry) for entry in added)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
