"""llama.cpp through llama-cpp-python, on the GGUF file that the backbone was converted from; without torch.

Virtual tokens are passed as embeddings, other tokens as ids. Each sequence of a batch keeps the KV cache of everything
before the text; the next call drops the rest.
"""

import ctypes
import logging
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead
from ptexport.toolkit.bench.systems.timing import time_calls
from ptexport.toolkit.bench.workers import Hardware

CHOSEN = "chosen.json"
_FILE_TYPES = {"bf16": "LLAMA_FTYPE_MOSTLY_BF16", "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}
_CELLS = 256  # llama.cpp allocates a sequence in steps of this size


class ChosenModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fastest model file.

    Attributes:
        model: path of the file, relative to the prepared folder if it was converted.
        seconds: seconds per call of each file.
    """

    model: str
    seconds: dict[str, float]

    def write(self, folder: Path) -> None:
        """Write it into the prepared folder."""
        (folder / CHOSEN).write_bytes(msgspec.json.encode(self))


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Time the file and conversions of it to other weight types, and keep the fastest.

    Raises:
        BenchError: llama.cpp cannot run this case.
    """
    if hardware.provider != "cpu":
        raise BenchError("llama-cpp: is built for CPUs only; leave it out, or use --provider cpu")
    if case.config.pooling != "last":
        raise BenchError(f"llama-cpp: got pooling {case.config.pooling!r}, need 'last'; leave it out")
    assert case.config.gguf is not None, "checked by prepare_baseline"
    source, threads = Path(case.config.gguf), hardware.threads
    models = {"unchanged": str(source)} | {kind: f"{kind}.gguf" for kind in _FILE_TYPES}
    seconds = {}
    for kind, model in models.items():
        if kind in _FILE_TYPES and not _requantize(source, folder / model, _FILE_TYPES[kind], threads):
            continue
        seconds[kind] = time_calls(case, GgufModel(case, folder / model, threads).logits)
    fastest = min(seconds, key=lambda kind: seconds[kind])
    for kind in _FILE_TYPES.keys() - {fastest}:
        (folder / models[kind]).unlink(missing_ok=True)
    ChosenModel(model=models[fastest], seconds=seconds).write(folder)


def _requantize(source: Path, target: Path, file_type: str, threads: int) -> bool:
    """Convert a model's weights to another type; return False if their shapes do not allow it."""
    llama = _library()
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = getattr(llama, file_type), True, threads
    error: int = llama.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params))
    return not error


def _library() -> Any:
    """Import llama_cpp and let it log errors only."""
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    import llama_cpp

    return llama_cpp


class LlamaCpp:
    """The fastest model file."""

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        chosen = msgspec.json.decode((folder / CHOSEN).read_bytes(), type=ChosenModel)
        model = folder / chosen.model
        self._gguf = GgufModel(case, model, hardware.threads)
        self.setting = f"{self._gguf.file_type}, flash attention"
        self.task_files = case.task_files
        self.files = [model, *self.task_files]

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        return self._gguf.logits(texts)


SYSTEM = LlamaCpp


class GgufModel:
    """A model file, loaded.

    Args:
        case: task and prompt.
        path: GGUF file.
        threads: number of CPU threads.

    Attributes:
        file_type: type of most of its weights, such as "Q4_1".
    """

    def __init__(self, case: Case, path: Path, threads: int) -> None:
        self._llama = _library()
        self._model = self._llama.llama_model_load_from_file(bytes(path), self._llama.llama_model_default_params())
        if not self._model:
            raise BenchError(f"llama-cpp: cannot read {path}; leave it out")
        description = ctypes.create_string_buffer(128)
        self._llama.llama_model_desc(self._model, description, len(description))
        self.file_type = description.value.decode().split(maxsplit=2)[-1]  # "llama 256M Q4_1"
        self._case, self._threads = case, threads
        self._inputs, self._head = Inputs(case), LabelHead(case)
        self._capacity: tuple[int, int] = (0, 0)  # texts, and tokens of each
        self._context: _Context | None = None

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        input_ids = self._inputs(texts)["input_ids"].astype(np.int32)
        n_texts, n_tokens = input_ids.shape
        capacity = max(n_texts, self._capacity[0]), max(n_tokens, self._capacity[1])
        if self._context is None or capacity != self._capacity:
            self._context = None  # frees it before the next one is allocated
            self._context = _Context(self._llama, self._model, self._case, self._threads, *capacity)
            self._capacity = capacity
        return self._head.label_logits(self._context.run(input_ids))


class _Context:
    """A KV cache per sequence, each with everything before the text."""

    def __init__(self, llama: Any, model: Any, case: Case, threads: int, n_sequences: int, n_positions: int) -> None:
        self._llama, self._case = llama, case
        params = llama.llama_context_default_params()
        params.n_seq_max, params.n_ctx = n_sequences, n_sequences * (-(-n_positions // _CELLS) * _CELLS)
        params.n_batch = params.n_ctx
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = llama.llama_init_from_model(model, params)
        if not self._context:
            raise BenchError(
                f"llama-cpp: cannot allocate a context for {n_sequences} texts of {n_positions} tokens; leave it out"
            )
        self._memory = llama.llama_get_memory(self._context)
        self._states = case.config.word_ids is None
        vocab = llama.llama_model_get_vocab(model)
        self._width = llama.llama_model_n_embd(model) if self._states else llama.llama_vocab_n_tokens(vocab)
        self._leading = _leading(case)
        self._feed(np.tile(self._leading, (n_sequences, 1)), output=False)

    def __del__(self) -> None:
        if self._context:
            self._llama.llama_free(self._context)

    def run(self, input_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Run the model on texts.

        Args:
            input_ids: int32 [b, s], ids of the whole template.

        Returns:
            Logits of the vocabulary at the last position, float32 [b, v], or hidden states [b, h] for a linear head.
        """
        kept = min(len(self._leading), input_ids.shape[1] - 1)
        for sequence in range(len(input_ids)):
            self._llama.llama_memory_seq_rm(self._memory, sequence, kept, -1)
        if not self._states:
            self._feed(input_ids[:, kept:], output=True)
            return self._outputs(len(input_ids))
        # In embeddings mode llama.cpp outputs all tokens and still computes logits, so only the last token uses it.
        self._feed(input_ids[:, kept:-1], output=False)
        self._llama.llama_set_embeddings(self._context, True)
        self._feed(input_ids[:, -1:], output=True)
        self._llama.llama_set_embeddings(self._context, False)
        return self._outputs(len(input_ids))

    def _feed(self, input_ids: NDArray[np.int32], *, output: bool) -> None:
        """Append ids, int32 [b, s], to the sequences; a llama.cpp batch has either ids or embeddings."""
        start, vocab = 0, self._case.config.vocab
        n_ids = input_ids.shape[1]
        for virtual, run in groupby((input_ids[0] >= vocab).tolist()):
            end = start + len(list(run))
            ids = np.ascontiguousarray(input_ids[:, start:end])
            embeddings = np.ascontiguousarray(self._case.prompt_embeddings[ids - vocab]) if virtual else None
            self._decode(ids, embeddings, output=output and end == n_ids)
            start = end

    def _decode(self, ids: NDArray[np.int32], embeddings: NDArray[np.float32] | None, *, output: bool) -> None:
        """Run the model on ids, int32 [b, s], or on embeddings instead, float32 [b, s, e]."""
        sequences = np.repeat(np.arange(len(ids), dtype=np.int32), ids.shape[1])
        of_each = sequences.ctypes.data + sequences.itemsize * np.arange(ids.size, dtype=np.uintp)  # pointers
        one = np.ones(ids.size, np.int32)
        outputs = np.zeros(ids.shape, np.int8)
        outputs[:, -1] = output
        id_pointer = ctypes.POINTER(ctypes.c_int32)
        batch = self._llama.llama_batch(
            n_tokens=ids.size,
            token=ids.ctypes.data_as(id_pointer) if embeddings is None else None,
            embd=None if embeddings is None else embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=None,  # after the last position of each sequence
            n_seq_id=one.ctypes.data_as(id_pointer),
            seq_id=of_each.ctypes.data_as(ctypes.POINTER(id_pointer)),
            logits=outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        error = self._llama.llama_decode(self._context, batch)
        if error:
            raise BenchError(f"llama-cpp: llama_decode of {ids.size} tokens returned {error}; leave it out")

    def _outputs(self, n_texts: int) -> NDArray[np.float32]:
        """Copy the outputs, float32 [n_texts, width]."""
        llama = self._llama
        get = llama.llama_get_embeddings if self._states else llama.llama_get_logits
        return np.ctypeslib.as_array(get(self._context), (n_texts, self._width)).copy()


def _leading(case: Case) -> NDArray[np.int32]:
    """Return the ids before the text, with the virtual token that `CaseConfig.leading_ids` may lack."""
    leading, ids = case.config.leading_ids, case.tokenizer().encode("the").ids
    if len(ids) > len(leading) and ids[len(leading)] >= case.config.vocab:
        leading = ids[: len(leading) + 1]
    return np.array(leading, np.int32)
