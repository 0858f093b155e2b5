"""Who answers in a speed bench: a bundle, and what people would use instead, each at its best setting.

Each module has a class `System`, opened in a process of its own by worker.py. Rivals that need an export have `prepare`
too, run once a case and kept in the cache. A rival whose versions clash with ours brings requirements, which are
installed into a folder of its own that only its process sees.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a bundle starts without it
    from ptexport.toolkit.bench.case import Case


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

    def __init__(self, case: "Case", folder: Path, threads: int) -> None:
        """Open it.

        Args:
            case: what is asked.
            folder: what `prepare` filled; for a bundle the bundle.
            threads: CPUs to use.
        """

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts of equal numbers of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A system that can be asked for by name.

    Attributes:
        module: in this package.
        does: what it is, for the report and the docs.
        tolerance: most that a logit may differ from the bundle's, as a share of the range of the bundle's; None: its
            weights are rounded otherwise, so the difference is only shown.
        prepared: whether it exports something first.
        requirements: what is installed for it alone.
    """

    module: str
    does: str
    tolerance: float | None = 1e-2
    prepared: bool = False
    requirements: tuple[str, ...] = ()


RIVALS = {
    "peft": Rival(
        module="peft_eager",
        does="PEFT as trained, PyTorch in inference mode: the leading part of the prompt as its virtual tokens, read "
        "with every text; with label words logits of the whole vocabulary at every position (CAUSAL_LM)",
    ),
    "peft-seqcls": Rival(
        module="peft_seqcls",
        does="PEFT for sequence classification (SEQ_CLS): the same, but its classification layer is the label rows, "
        "so that no logits of the vocabulary are made: PEFT at its best",
    ),
    "transformers": Rival(
        module="transformers_torch",
        does="Transformers in PyTorch, at the quickest on this machine of fp32 and bf16, each eager, `torch.compile` "
        "and `torch.compile` with its weights as constants, tried beforehand: on a causal model the leading part of "
        "the prompt is read once for all and logits of the vocabulary are made at the last position alone",
        tolerance=0.1,  # it may be in bf16
        prepared=True,
    ),
    "plain-onnx": Rival(
        module="plain_onnx",
        does="`torch.onnx.export` of the untouched model, its embedding table made longer by the prompt, in ONNX "
        "Runtime as it comes: the prompt is read with every text, logits of the whole vocabulary are made at every "
        "position",
        prepared=True,
    ),
    "encoder-onnx": Rival(
        module="encoder_onnx",
        does="the prompt encoder inside the graph, as PaddleNLP exports its prompt models, in ONNX Runtime as it "
        "comes: each call makes the rows, puts them among the words' and reads the whole prompt; logits of the whole "
        "vocabulary at the position that is read",
        prepared=True,
    ),
    "optimum-onnx": Rival(
        module="optimum_onnx",
        does="optimum-onnx with a Transformers that it goes with, in packages of its own: its export and its "
        "`ORTModelFor…`, the embedding table made longer by the prompt, without keys and values; for sequence "
        "classification where that reads what the run does, else of all that it gives",
        prepared=True,
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
}
