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
        tolerance: most that a logit may differ from the bundle's; None: its weights are rounded otherwise, so the
            difference is only shown.
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
        does="PEFT as trained: the leading part of the prompt as its virtual tokens, PyTorch in inference mode, logits "
        "of the whole vocabulary at every position (CAUSAL_LM), or the states under a linear head",
    ),
    "peft-seqcls": Rival(
        module="peft_seqcls",
        does="PEFT for sequence classification: the same, but only the label rows at the last position (SEQ_CLS)",
    ),
    "transformers": Rival(
        module="transformers_torch",
        does="Transformers and PyTorch at the quickest of eager and torch.compile, fp32 and bf16, tried beforehand: "
        "logits of one position, keys and values of the leading prompt computed once",
        tolerance=None,
        prepared=True,
    ),
    "plain-onnx": Rival(
        module="plain_onnx",
        does="torch.onnx.export of the untouched model, its embedding table made longer by the prompt: the prompt is "
        "read with every text, logits of the whole vocabulary at every position; ONNX Runtime's own defaults",
        prepared=True,
    ),
}
