"""Rows -> warnings about them; changes no row."""

from collections.abc import Iterator, Sequence

from tokenizers import Encoding

from ptexport.toolkit.data.splits import DataSplits
from ptexport.toolkit.template.compile import count_split_differently
from ptexport.toolkit.template.template import Template


def find_data_problems(
    data: DataSplits, labels: Sequence[str], template: Template, tokenizer_json: str, encodings: Sequence[Encoding]
) -> Iterator[str]:
    """Find problems that do not prevent training, one sentence each.

    Args:
        data: the rows.
        labels: the declared labels.
        template: the template to train.
        tokenizer_json: tokenizer of the backbone.
        encodings: encodings of all rows.
    """
    n_train = len(data.train)
    joined = count_split_differently(template, tokenizer_json, data.train)
    if joined:
        yield (
            f"{joined} of {n_train} training rows would be other tokens as one string, since {template.source!r} "
            "joins characters to a text; put a space between them"
        )
    truncated = sum(bool(encoding.overflowing) for encoding in encodings)
    if truncated:
        yield f"{truncated} of {len(encodings)} rows are too long with the template, so truncated; see --strict"
    empty = sum(not (row.text.strip() or (row.text_b or "").strip()) for row in data.train)
    if empty:
        yield f"{empty} of {n_train} training rows have no text"
    absent = [label for label in labels if all(row.label != label for row in data.train)]
    if absent:
        yield f"no training row has the label {', '.join(map(repr, absent))}"
    yield from _find_repeated_texts(data)


def _find_repeated_texts(data: DataSplits) -> Iterator[str]:
    seen = {row.texts for row in data.train}
    for name, rows in (("dev", data.dev), ("test", data.test)):
        repeated = sum(row.texts in seen for row in rows)
        if repeated:
            yield f"{repeated} of {len(rows)} {name} rows are in the training rows too; accuracy looks too good"
    labels_of: dict[str | tuple[str, str], set[str | None]] = {}
    for row in data.train:
        labels_of.setdefault(row.texts, set()).add(row.label)
    ambiguous = sum(len(labels) > 1 for labels in labels_of.values())
    if ambiguous:
        yield f"{ambiguous} training texts have more than one label"
