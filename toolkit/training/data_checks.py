"""Rows -> what is odd about them, and which of them prove parity; changes none."""

from collections.abc import Iterator, Sequence

from tokenizers import Encoding

from ptexport.toolkit.data.splits import Data
from ptexport.toolkit.template.compile import count_split_differently
from ptexport.toolkit.template.template import Template


def oddities(
    data: Data, labels: Sequence[str], template: Template, tokenizer_json: str, encodings: Sequence[Encoding]
) -> Iterator[str]:
    """Say what is odd about rows but stops no training, in sentences.

    Args:
        data: the rows.
        labels: the declared labels.
        template: the one trained.
        tokenizer_json: the backbone's own tokenizer.
        encodings: of all rows.
    """
    joined = count_split_differently(template, tokenizer_json, data.train)
    if joined:
        yield (
            f"{joined} of {len(data.train)} training rows would be other tokens as one string, since "
            f"{template.source!r} glues characters to a text; a space between them avoids it"
        )
    truncated = sum(bool(encoding.overflowing) for encoding in encodings)
    if truncated:
        yield f"{truncated} of {len(encodings)} rows are too long with the template, so cut; --strict refuses them"
    empty = sum(not (row.text.strip() or (row.text_b or "").strip()) for row in data.train)
    if empty:
        yield f"{empty} of {len(data.train)} training rows have no text"
    absent = [label for label in labels if all(row.label != label for row in data.train)]
    if absent:
        yield f"no training row has the label {', '.join(map(repr, absent))}"
    seen = {row.texts for row in data.train}
    for name, rows in (("dev", data.dev), ("test", data.test)):
        twice = sum(row.texts in seen for row in rows)
        if twice:
            yield f"{twice} of {len(rows)} {name} rows are in the training rows too; accuracy looks too good"
    labels_of: dict[str | tuple[str, str], set[str | None]] = {}
    for row in data.train:
        labels_of.setdefault(row.texts, set()).add(row.label)
    torn = sum(len(labels) > 1 for labels in labels_of.values())
    if torn:
        yield f"{torn} training texts have more than one label"
