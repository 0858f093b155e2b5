"""llama.cpp on the GGUF file that the backbone was converted from, through llama-cpp-python; without torch.

Virtual tokens are given as embeddings, words as tokens. What stands before every text is read once for each sequence of
a batch and kept; the keys and values of a text are dropped by the next call.
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
from ptexport.toolkit.bench.systems.inputs import Inputs, Reader
from ptexport.toolkit.bench.systems.trial import time_calls
from ptexport.toolkit.bench.workers import Hardware

TRIED = "tried.json"
_FILE_TYPES = {"bf16": "LLAMA_FTYPE_MOSTLY_BF16", "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}
_CELLS = 256  # llama.cpp makes room for a sequence in such steps


class Tried(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was found beforehand.

    Attributes:
        model: the file, whose path starts at this one's folder if it was made.
        seconds: a call, for what was tried.
    """

    model: str
    seconds: dict[str, float]

    def write(self, folder: Path) -> None:
        """Write it."""
        (folder / TRIED).write_bytes(msgspec.json.encode(self))


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Try the file as it is, and its weights in types that this processor may multiply quicker; keep the quickest.

    Raises:
        BenchError: the case is not one for it.
    """
    if hardware.provider != "cpu":
        raise BenchError("llama-cpp: is installed for CPUs alone; leave it out, or ask for --provider cpu")
    if case.config.pooling != "last":
        raise BenchError(
            f"llama-cpp: reads the last position, and this run reads {case.config.pooling!r}; leave it out"
        )
    assert case.config.gguf is not None, "checked before it is made ready"
    source, threads = Path(case.config.gguf), hardware.threads
    models = {"as it is": str(source)} | {how: f"{how}.gguf" for how in _FILE_TYPES}
    seconds = {}
    for how, model in models.items():
        if how in _FILE_TYPES and not _requantize(source, folder / model, _FILE_TYPES[how], threads):
            continue
        seconds[how] = time_calls(case, Scorer(case, folder / model, threads).logits)
    quickest = min(seconds, key=lambda how: seconds[how])
    for how in _FILE_TYPES.keys() - {quickest}:
        (folder / models[how]).unlink(missing_ok=True)
    Tried(model=models[quickest], seconds=seconds).write(folder)


def _requantize(source: Path, target: Path, file_type: str, threads: int) -> bool:
    """Store a model's weights in another type; False: its sizes do not allow that."""
    llama = _library()
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = getattr(llama, file_type), True, threads
    refused: int = llama.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params))
    return not refused


def _library() -> Any:
    """Import it; it says nothing but warnings then."""
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    import llama_cpp

    return llama_cpp


class System:
    """The model as it was quickest."""

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        tried = msgspec.json.decode((folder / TRIED).read_bytes(), type=Tried)
        model = folder / tried.model
        self._scorer = Scorer(case, model, hardware.threads)
        self.setting = f"{self._scorer.file_type}, flash attention"
        self.task_files = case.task_files
        self.files = [model, *self.task_files]

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        return self._scorer.logits(texts)


class Scorer:
    """A model of one file.

    Args:
        case: what is asked.
        path: the GGUF file.
        threads: to use.

    Attributes:
        file_type: that most of its weights are in.
    """

    def __init__(self, case: Case, path: Path, threads: int) -> None:
        self._llama = _library()
        self._model = self._llama.llama_model_load_from_file(bytes(path), self._llama.llama_model_default_params())
        if not self._model:
            raise BenchError(f"llama-cpp: cannot read {path}; leave it out")
        said = ctypes.create_string_buffer(128)
        self._llama.llama_model_desc(self._model, said, len(said))
        self.file_type = said.value.decode().split(maxsplit=2)[-1]  # "llama 256M Q4_1"
        self._case, self._threads = case, threads
        self._inputs, self._reader = Inputs(case), Reader(case)
        self._room: tuple[int, int] = (0, 0)  # texts and tokens of each
        self._context: _Context | None = None

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        input_ids = self._inputs(texts)["input_ids"].astype(np.int32)
        n_texts, n_tokens = input_ids.shape
        room = max(n_texts, self._room[0]), max(n_tokens, self._room[1])
        if self._context is None or room != self._room:
            self._context = None  # frees it before there is another
            self._context = _Context(self._llama, self._model, self._case, self._threads, *room)
            self._room = room
        return self._reader.of_labels(self._context.read(input_ids))


class _Context:
    """Sequences of keys and values, each with what stands before every text in it."""

    def __init__(self, llama: Any, model: Any, case: Case, threads: int, n_sequences: int, n_positions: int) -> None:
        self._llama, self._case = llama, case
        params = llama.llama_context_default_params()
        params.n_seq_max, params.n_ctx = n_sequences, n_sequences * (-(-n_positions // _CELLS) * _CELLS)
        params.n_batch = params.n_ctx
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = llama.llama_init_from_model(model, params)
        if not self._context:
            raise BenchError(f"llama-cpp: cannot hold {n_sequences} texts of {n_positions} tokens; leave it out")
        self._memory = llama.llama_get_memory(self._context)
        self._states = case.config.word_ids is None
        vocab = llama.llama_model_get_vocab(model)
        self._width = llama.llama_model_n_embd(model) if self._states else llama.llama_vocab_n_tokens(vocab)
        self._leading = _leading(case)
        self._feed(np.tile(self._leading, (n_sequences, 1)), answer=False)

    def __del__(self) -> None:
        if self._context:
            self._llama.llama_free(self._context)

    def read(self, input_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Read texts.

        Args:
            input_ids: int32 [b, s], of the whole template.

        Returns:
            float32 [b, v] of the vocabulary at the last position, or states [b, h] there for a linear head.
        """
        kept = min(len(self._leading), input_ids.shape[1] - 1)
        for sequence in range(len(input_ids)):
            self._llama.llama_memory_seq_rm(self._memory, sequence, kept, -1)
        if not self._states:
            self._feed(input_ids[:, kept:], answer=True)
            return self._answers(len(input_ids))
        # Where states are asked for, those of all tokens are given, and logits of the vocabulary made of them.
        self._feed(input_ids[:, kept:-1], answer=False)
        self._llama.llama_set_embeddings(self._context, True)
        self._feed(input_ids[:, -1:], answer=True)
        self._llama.llama_set_embeddings(self._context, False)
        return self._answers(len(input_ids))

    def _feed(self, input_ids: NDArray[np.int32], *, answer: bool) -> None:
        """Append ids, int32 [b, s], to the sequences, and answer at the last; llama.cpp takes words or embeddings."""
        start, vocab = 0, self._case.config.vocab
        n_ids = input_ids.shape[1]
        for virtual, run in groupby((input_ids[0] >= vocab).tolist()):
            end = start + len(list(run))
            ids = np.ascontiguousarray(input_ids[:, start:end])
            rows = np.ascontiguousarray(self._case.prompt_embeddings[ids - vocab]) if virtual else None
            self._decode(ids, rows, answer=answer and end == n_ids)
            start = end

    def _decode(self, ids: NDArray[np.int32], rows: NDArray[np.float32] | None, *, answer: bool) -> None:
        """Run the model on ids, int32 [b, s], or on rows in their place, float32 [b, s, e]."""
        sequences = np.repeat(np.arange(len(ids), dtype=np.int32), ids.shape[1])
        of_each = sequences.ctypes.data + sequences.itemsize * np.arange(ids.size, dtype=np.uintp)  # pointers
        one = np.ones(ids.size, np.int32)
        answered = np.zeros(ids.shape, np.int8)
        answered[:, -1] = answer
        id_pointer = ctypes.POINTER(ctypes.c_int32)
        batch = self._llama.llama_batch(
            n_tokens=ids.size,
            token=ids.ctypes.data_as(id_pointer) if rows is None else None,
            embd=None if rows is None else rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=None,  # behind what a sequence has
            n_seq_id=one.ctypes.data_as(id_pointer),
            seq_id=of_each.ctypes.data_as(ctypes.POINTER(id_pointer)),
            logits=answered.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        failed = self._llama.llama_decode(self._context, batch)
        if failed:
            raise BenchError(f"llama-cpp: llama_decode of {ids.size} tokens answered {failed}")

    def _answers(self, n_texts: int) -> NDArray[np.float32]:
        """Copy what was answered, a row for each text."""
        llama = self._llama
        get = llama.llama_get_embeddings if self._states else llama.llama_get_logits
        return np.ctypeslib.as_array(get(self._context), (n_texts, self._width)).copy()


def _leading(case: Case) -> NDArray[np.int32]:
    """Ids that stand before every text: the case's may keep one back, which is virtual then."""
    leading, ids = case.config.leading_ids, case.tokenizer().encode("the").ids
    if len(ids) > len(leading) and ids[len(leading)] >= case.config.vocab:
        leading = ids[: len(leading) + 1]
    return np.array(leading, np.int32)
