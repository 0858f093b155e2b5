"""A bundle or run folder -> its contents as plain values. Bundles need no torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ptexport.runtime.bundle.folder import MANIFEST, MODEL, TEMPLATES, TOKENIZER, Bundle
from ptexport.runtime.bundle.signature import SIGNATURE
from ptexport.runtime.errors import DataError, ModelError, RunError

N_NEAREST = 5


def describe(path: Path, *, require_signature: Path | None = None) -> dict[str, Any]:
    """Describe a bundle, after verifying it, or a run.

    Args:
        path: the folder.
        require_signature: PEM file with the public key of the required signature; None: none is required.

    Raises:
        BundleError: the bundle does not match its manifest or signature.
        RunError: the run cannot be read.
        DataError: the folder is neither a bundle nor a run.
    """
    if (path / MANIFEST).is_file():
        return _bundle(path, require_signature)
    if (path / "metrics.json").is_file():
        return _run(path)
    raise DataError(
        f"{path}: got neither manifest.json nor metrics.json, need the folder of a bundle or a finished run; check it"
    )


def nearest_words(
    rows: NDArray[np.float32], table: NDArray[np.float32], tokenizer: Tokenizer
) -> list[list[tuple[str, float]]]:
    """Find the tokens whose embeddings are nearest to each row.

    Args:
        rows: prompt embeddings, float32 [rows, hidden size].
        table: embedding table of the backbone, float32 [vocabulary, hidden size].
        tokenizer: tokenizer of the backbone.

    Returns:
        For each row, the `N_NEAREST` tokens with the largest cosine similarity, -1 to 1, the largest first.
    """
    norms = np.linalg.norm(table, axis=1)
    cosines = rows @ table.T / np.maximum(norms * np.linalg.norm(rows, axis=1)[:, None], 1e-12)
    best = np.argsort(-cosines, axis=1)[:, :N_NEAREST]
    return [
        [(tokenizer.decode([int(id_)], skip_special_tokens=False), float(cosine[id_])) for id_ in ids]
        for ids, cosine in zip(best, cosines, strict=True)
    ]


def _bundle(path: Path, require_signature: Path | None) -> dict[str, Any]:
    bundle = Bundle.open(path, require_signature=require_signature)
    tokenizer_json = (path / TOKENIZER).read_text(encoding="utf-8")
    signature = (
        "none" if not (path / SIGNATURE).exists() else "not checked" if require_signature is None else "verified"
    )
    record: dict[str, Any] = {
        "kind": "bundle",
        "verified": True,
        "signature": signature,
        **msgspec.to_builtins(bundle.manifest),
    }
    nearest = _nearest_in(path, Tokenizer.from_str(tokenizer_json))
    tasks = bundle.manifest.tasks
    templates = {tasks[0].name: json.loads(tokenizer_json)}
    if len(tasks) > 1:
        templates = json.loads((path / TEMPLATES).read_text(encoding="utf-8"))["tasks"]
    first = 0
    for described, task in zip(record["tasks"], tasks, strict=True):
        n_prompt = _n_prompt_embeddings(task.method, task.prompt_tokens)
        described["template_tokens"] = _template_tokens(templates[task.name]["post_processor"], task.fields)
        described["first_virtual_token"], described["nearest_words"] = first, nearest(first, n_prompt)
        first += n_prompt
    return record


def _n_prompt_embeddings(method: str, prompt_tokens: int) -> int:
    """Count the virtual tokens that have an embedding; trained past key/values have none."""
    return 0 if method in ("p-tuning-v2", "prefix") else prompt_tokens


def _template_tokens(post_processor: dict[str, Any], fields: Sequence[str]) -> list[str | list[Any]]:
    """List the parts of a template: `[name, id]` of a token, or the name of a text."""
    ids = {name: token["ids"][0] for name, token in post_processor["special_tokens"].items()}
    layout = post_processor["pair" if len(fields) == 2 else "single"]
    return [
        [item["SpecialToken"]["id"], ids[item["SpecialToken"]["id"]]]
        if "SpecialToken" in item
        else fields["AB".index(item["Sequence"]["id"])]
        for item in layout
    ]


def _nearest_in(path: Path, tokenizer: Tokenizer) -> Callable[[int, int], list[list[tuple[str, float]]] | None]:
    """Read the prompt embeddings of a graph, and return a function that finds the words nearest to some of them.

    The function takes the number of the first embedding and how many follow. It returns None if onnx_ir, which reads
    the graph, is not installed.
    """
    try:
        import onnx_ir as ir
    except ModuleNotFoundError:
        return lambda first, n: None
    constants = {name: value.const_value for name, value in ir.load(path / MODEL).graph.initializers.items()}
    embeddings = _array(constants, "prompt_embeddings", "prompt_rows")  # the second is ptexport 0.1's name
    table = _array(constants, "table.weight")
    return lambda first, n: nearest_words(embeddings[first : first + n], table, tokenizer)


def _array(constants: Mapping[str, Any], *names: str) -> NDArray[np.float32]:
    """Read the constant of one of some names as float32 [rows, hidden size], whatever precision stores it."""
    arrays = {
        own.removeprefix("one."): value  # the prefix of a graph of several tasks
        for own, value in constants.items()
        if own.removeprefix("one.").startswith(names)
    }
    int8 = next((name for name in arrays if name.endswith(".int8")), None)
    if int8 is not None:  # in blocks of a row
        scale = arrays[f"{int8.removesuffix('.int8')}.scale"].numpy()
        blocks: NDArray[np.float32] = arrays[int8].numpy() * scale
        return blocks.reshape(len(blocks), -1)
    (array,) = arrays.values()
    whole: NDArray[np.float32] = array.numpy().astype(np.float32, copy=False)
    return whole


def _run(path: Path) -> dict[str, Any]:
    from ptexport.toolkit.run.backbone import load_backbone_of
    from ptexport.toolkit.run.run import Run
    from ptexport.toolkit.template.compile import TemplateToken

    run = Run.read(path)
    tokenizer = Tokenizer.from_str(run.tokenizer_json)
    record: dict[str, Any] = {"kind": "run", "name": path.resolve().name, **msgspec.to_builtins(run.config)}
    if run.config.open_vocabulary:
        record["labels"] = record["label_words"] = None  # as in a bundle: too many to print
    record["files"] = {
        file.name: {"size_bytes": file.stat().st_size} for file in sorted(path.iterdir()) if file.is_file()
    }
    record["metrics"] = msgspec.to_builtins(run.metrics)
    fields = run.config.fields
    record["template_tokens"] = [
        [item.name, item.id] if isinstance(item, TemplateToken) else fields["AB".index(item.sequence)]
        for item in run.config.compile(run.tokenizer_json).items
    ]
    try:
        table = load_backbone_of(run.config, path).model.get_input_embeddings().weight.detach().numpy()
    except (ModelError, RunError) as e:
        record["nearest_words"], record["warning"] = None, str(e)  # the rest needs no backbone
    else:
        record["nearest_words"] = nearest_words(
            run.arrays.prompt_embeddings[: run.config.n_prompt_embeddings], table, tokenizer
        )
    return record
