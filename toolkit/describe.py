"""A run or bundle folder -> what is in it, as plain values; without torch for bundles."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ptexport.runtime.bundle import MANIFEST, MODEL, TOKENIZER, Bundle
from ptexport.runtime.errors import DataError, ModelError, RunError
from ptexport.runtime.signature import SIGNATURE

N_NEAREST = 5


def describe(path: Path, *, require_signature: Path | None = None) -> dict[str, Any]:
    """Describe a bundle, once its hashes are verified, and its signature where a key is given; or a run.

    Raises:
        BundleError: the bundle does not verify (says why).
        RunError: the run cannot be read.
        DataError: the folder is neither.
    """
    if (path / MANIFEST).is_file():
        return _bundle(path, require_signature)
    if (path / "metrics.json").is_file():
        return _run(path)
    raise DataError(
        f"{path}: holds neither manifest.json nor metrics.json; need the folder of a bundle or a finished run"
    )


def nearest_words(
    rows: NDArray[np.float32], table: NDArray[np.float32], tokenizer: Tokenizer
) -> list[list[tuple[str, float]]]:
    """Find the vocabulary's words nearest to each row.

    Args:
        rows: float32 [p, e].
        table: the backbone's embeddings, float32 [vocab, e].
        tokenizer: its tokenizer.

    Returns:
        For each row the `N_NEAREST` words with the largest cosine, -1 to 1, largest first.
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
    manifest = bundle.manifest
    tokenizer_json = (path / TOKENIZER).read_text(encoding="utf-8")
    signature = (
        "none" if not (path / SIGNATURE).exists() else "not checked" if require_signature is None else "verified"
    )
    record: dict[str, Any] = {
        "kind": "bundle",
        "verified": True,
        "signature": signature,
        **msgspec.to_builtins(manifest),
    }
    record["template_tokens"] = _template_tokens(json.loads(tokenizer_json)["post_processor"], manifest.fields)
    of_layers = manifest.method in ("p-tuning-v2", "prefix")
    n_rows = 0 if of_layers else manifest.graph.prompt_tokens
    record["nearest_words"] = _nearest_in_bundle(path, n_rows, tokenizer_json)
    return record


def _template_tokens(post_processor: dict[str, Any], fields: Sequence[str]) -> list[str | list[Any]]:
    """Name what stands around the texts: `[name, id]`, or a field's name."""
    ids = {name: token["ids"][0] for name, token in post_processor["special_tokens"].items()}
    layout = post_processor["pair" if len(fields) == 2 else "single"]
    return [
        [item["SpecialToken"]["id"], ids[item["SpecialToken"]["id"]]]
        if "SpecialToken" in item
        else fields["AB".index(item["Sequence"]["id"])]
        for item in layout
    ]


def _nearest_in_bundle(path: Path, n_prompt: int, tokenizer_json: str) -> list[list[tuple[str, float]]] | None:
    """None where onnx_ir, which reads the graph's constants, is not installed."""
    try:
        import onnx_ir as ir
    except ModuleNotFoundError:
        return None
    constants = ir.load(path / MODEL).graph.initializers
    rows, table = (constants[name].const_value for name in ("prompt_rows", "table.weight"))
    assert rows is not None
    assert table is not None
    return nearest_words(rows.numpy()[:n_prompt], table.numpy(), Tokenizer.from_str(tokenizer_json))


def _run(path: Path) -> dict[str, Any]:
    from ptexport.toolkit.run import Run
    from ptexport.toolkit.template import Template
    from ptexport.toolkit.tokenizer import TemplateToken
    from ptexport.toolkit.tuning import load_backbone_of

    run = Run.read(path)
    tokenizer = Tokenizer.from_str(run.tokenizer_json)
    record: dict[str, Any] = {"kind": "run", "name": path.resolve().name, **msgspec.to_builtins(run.config)}
    if run.config.open_answers:
        record["labels"] = record["label_words"] = None  # as in a bundle: too many to read
    record["files"] = {
        file.name: {"size_bytes": file.stat().st_size} for file in sorted(path.iterdir()) if file.is_file()
    }
    record["metrics"] = msgspec.to_builtins(run.metrics)
    fields = Template.parse(run.config.template).fields
    record["template_tokens"] = [
        [item.name, item.id] if isinstance(item, TemplateToken) else fields["AB".index(item.sequence)]
        for item in run.config.compile(run.tokenizer_json).items
    ]
    try:
        table = load_backbone_of(run.config, path).model.get_input_embeddings().weight.detach().numpy()
    except (ModelError, RunError) as e:
        record["nearest_words"], record["warning"] = None, str(e)  # all else needs no backbone
    else:
        record["nearest_words"] = nearest_words(run.baked.prompt_rows[: run.config.n_rows], table, tokenizer)
    return record
