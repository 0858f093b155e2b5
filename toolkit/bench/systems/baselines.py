"""Who answers in a speed bench: a bundle, and what people would use instead, each at its best setting.

A system is a module with a class `System`, opened in a process of its own by worker.py. What it needs once a case, an
export say, is made by a module's `prepare(case, folder, hardware)`, in a process of its own too, and kept in the
cache. A rival whose versions clash with ours brings requirements, which are installed into a folder that only its
processes see.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ptexport.toolkit.bench.workers import Hardware

if TYPE_CHECKING:  # a bundle starts without it
    from ptexport.toolkit.bench.systems.case import Case


class System(Protocol):
    """What a module of this package opens.

    Attributes:
        setting: what it runs with, for the report: "fp32, compiled".
        files: files and folders that a device must hold to answer.
        task_files: those of them that are new for another task on the same backbone.
    """

    setting: str
    files: list[Path]
    task_files: list[Path]

    def __init__(self, case: "Case", folder: Path, hardware: Hardware) -> None:
        """Open it.

        Args:
            case: what is asked.
            folder: what `prepare` filled; for a bundle the bundle.
            hardware: to run on.
        """

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts of equal numbers of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A system that can be asked for by name.

    Attributes:
        system: module of this package that opens it.
        prepares: module whose `prepare` fills its folder.
        does: what it is, for the report and the docs.
        tolerance: most that a logit may differ from the bundle's, as a share of the range of the bundle's.
        requirements: what is installed for it alone.
        reads_gguf: whether it reads the GGUF file that the backbone was converted from.
    """

    system: str
    prepares: str
    does: str
    tolerance: float = 1e-2
    requirements: tuple[str, ...] = ()
    reads_gguf: bool = False


RIVALS = {
    "peft": Rival(
        system="peft_eager",
        prepares="peft_eager",
        does="PEFT as trained, PyTorch in inference mode: the leading part of the prompt as its virtual tokens, read "
        "with every text; with label words logits of the whole vocabulary at every position (CAUSAL_LM)",
    ),
    "peft-seqcls": Rival(
        system="peft_seqcls",
        prepares="peft_seqcls",
        does="PEFT for sequence classification (SEQ_CLS): the same, but its classification layer is the label rows, "
        "so that no logits of the vocabulary are made",
    ),
    "transformers": Rival(
        system="transformers_torch",
        prepares="transformers_torch",
        does="Transformers in PyTorch, at the quickest on this machine of fp32 and bf16, each eager, `torch.compile` "
        "and `torch.compile` with its weights as constants, tried beforehand: on a causal model the leading part of "
        "the prompt is read once for all and logits of the vocabulary are made at the last position alone",
        tolerance=0.1,  # it may be in bf16
    ),
    "plain-onnx": Rival(
        system="graph",
        prepares="plain_onnx",
        does="`torch.onnx.export` of the untouched model, its embedding table made longer by the prompt, in ONNX "
        "Runtime as it comes: the prompt is read with every text, logits of the whole vocabulary are made at every "
        "position",
    ),
    "encoder-onnx": Rival(
        system="graph",
        prepares="encoder_onnx",
        does="the prompt encoder inside the graph, as PaddleNLP exports its prompt models, in ONNX Runtime as it "
        "comes: each call makes the rows, puts them among the words' and reads the whole prompt; logits of the whole "
        "vocabulary at the position that is read",
    ),
    "transformers-onnx": Rival(
        system="graph",
        prepares="transformers_onnx",
        does="Transformers' own exporter (`transformers.exporters`) with its fusions for ONNX Runtime, but for those "
        "of keys and values that are kept; the embedding table made longer by the prompt; for sequence classification "
        "where that reads what the run does, else of all that it gives",
    ),
    "optimum-onnx": Rival(
        system="optimum_onnx",
        prepares="optimum_onnx",
        does="optimum-onnx with a Transformers that it goes with, in packages of its own: its export and its "
        "`ORTModelFor…`, the embedding table made longer by the prompt, without keys and values; for sequence "
        "classification where that reads what the run does, else of all that it gives",
        requirements=(
            "optimum-onnx==0.1.0",
            "optimum==2.1.0",
            "transformers==4.57.6",
            "huggingface_hub==0.36.0",
            "tokenizers==0.22.1",
            "requests==2.34.2",
            "urllib3==2.8.0",
            "idna==3.20",
            "certifi==2026.10.18",
            "charset-normalizer==3.5.2",
        ),
    ),
    "llama-cpp": Rival(
        system="llama_cpp",
        prepares="llama_cpp",
        does="llama.cpp through llama-cpp-python, on the GGUF file that the backbone was converted from: as it is, or "
        "its weights made bf16 or Q8_0, whichever is the quickest on this machine, tried beforehand; virtual tokens as "
        "embeddings, what stands before every text read once for all, logits of the vocabulary at the last position "
        "alone",
        tolerance=0.1,  # it rounds activations to 8 bits, or weights to bf16
        requirements=("llama-cpp-python==0.3.36", "diskcache==5.6.3"),
        reads_gguf=True,
    ),
}
