"""What `train` chooses where an option is not given: the head, the template and the number of epochs.

Encoders and learning rates by method are in `ptexport.toolkit.methods`. These defaults come from a few runs on the
built-in cities and `examples/tickets.csv`, not from a study.
"""

import math
from collections.abc import Collection, Sequence

from ptexport.runtime.bundle.manifest import TextField
from ptexport.runtime.errors import TemplateError
from ptexport.toolkit.methods import Head, Method, MethodName
from ptexport.toolkit.models.checkpoint import LmHead
from ptexport.toolkit.template.words import WordTokenizer

_ROWS_SEEN = 2100  # rows of all epochs together; small data sets need more epochs for as many steps
_EPOCHS = 3, 30
_SEARCH_EPOCHS = 10  # a pass of `search` takes four batches per virtual token, whatever the number of rows
_PATIENCE = 0.4  # share of the epochs


def choose_head(
    method: Method, lm_head: LmHead | None, names: Collection[str] | None, tokenizer: WordTokenizer | None
) -> tuple[Head, str]:
    """Choose the head.

    Args:
        method: the training method.
        lm_head: the language-model head of the model; None: it has none.
        names: labels read from the data, which have no words; None: labels were given.
        tokenizer: tokenizer of the model; may be None without a language-model head.

    Returns:
        The head, and the reason in words.
    """
    if len(method.heads) == 1:
        return method.heads[0], "since the method has no other"
    if lm_head is None or tokenizer is None:
        return "linear", "since the model has no language-model head"
    for name in names or ():
        if tokenizer.single_word(name, spaced=True) is None:
            return "linear", f"since {name!r} is not a single token, so it cannot be a label word"
    return method.heads[0], "since the model has a language-model head"


def choose_template(
    name: MethodName, method: Method, lm_head: LmHead | None, head: Head, fields: Sequence[TextField]
) -> str:
    """Choose a template for texts.

    Args:
        name: name of the method.
        method: the method.
        lm_head: as in `choose_head`.
        head: the head.
        fields: texts of a row.

    Raises:
        TemplateError: only the user can write the template.
    """
    if "choice" in fields:
        raise TemplateError("template: rows with 'choices' need one of your own; give --template with {choice}")
    if name == "manual":
        raise TemplateError("template: manual measures one of your own; give --template, such as '{text} It was'")
    texts = "{text} {text_b}" if "text_b" in fields else "{text}"
    answer = " [MASK]" if head == "words" and lm_head == "masked" else ""
    if method.virtual_token is None:
        return f"{texts} :{answer}" if head == "words" else texts
    if method.leading:
        return f"[P*8] {texts}{answer}"
    if head == "linear":
        return f"[P*4] {texts}"
    return f"[P*3] {texts.replace(' {text_b}', ' [P*3] {text_b}')} [P*3]{answer}"


def choose_epochs(name: MethodName, n_train: int, epochs: int | None, patience: int | None) -> tuple[int, int]:
    """Choose the maximum number of epochs and the patience that were not given.

    Args:
        name: name of the method.
        n_train: number of training rows.
        epochs: the given number.
        patience: the given patience.
    """
    if epochs is None:
        least, most = _EPOCHS
        epochs = _SEARCH_EPOCHS if name == "search" else min(max(round(_ROWS_SEEN / n_train), least), most)
    return epochs, patience or max(2, math.ceil(_PATIENCE * epochs))
