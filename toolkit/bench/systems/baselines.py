"""The systems of a speed bench: the alternatives to a bundle, each at its fastest setting.

A system is a module with `SYSTEM`, a class that satisfies `System`; worker.py opens it in its own process. The
function `prepare(case, folder, hardware)` of a module makes what a system needs once per case, such as an export, also
in its own process; the cache keeps it. The requirements of a baseline with conflicting versions are installed into a
folder that only its processes use.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ptexport.toolkit.bench.workers import Hardware

if TYPE_CHECKING:  # opening a bundle does not need it
    from ptexport.toolkit.bench.systems.case import Case


class System(Protocol):
    """A system that computes logits.

    Attributes:
        setting: precision and mode, for the report: "fp32, compiled".
        files: files that a device needs.
        task_files: those of them that are new for another task on the same backbone.
    """

    setting: str
    files: list[Path]
    task_files: list[Path]

    def __init__(self, case: "Case", folder: Path, hardware: Hardware) -> None:
        """Open the system.

        Args:
            case: task and prompt; not used by a bundle.
            folder: folder that `prepare` filled, or the bundle.
            hardware: hardware to run on.
        """

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts with equal numbers of tokens."""


SETTING = "setting.json"
"""File in the folder of a baseline with its setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A system that `--against` takes by name.

    Attributes:
        system: module of this package with its class.
        prepares: module of this package with its `prepare`; None: nothing is prepared.
        description: description for the report.
        tolerance: largest difference of a logit from the bundle's, as a share of the range of the bundle's logits.
        requirements: packages that are installed for it alone.
        reads_gguf: whether it reads the GGUF file that the backbone was converted from.
        setting: fixed setting; None: `prepare` chooses the fastest, or there is only one.
        own_graph: whether it runs the bundle's own graph, and so needs no run.
    """

    system: str
    prepares: str | None
    description: str
    tolerance: float = 1e-2
    requirements: tuple[str, ...] = ()
    reads_gguf: bool = False
    setting: str | None = None
    own_graph: bool = False


_MODES = {"": "eager", "-compiled": "compiled", "-max-autotune": "compiled with CUDA graphs"}
"""Settings of PyTorch by the end of a baseline's name."""


def _lower_precision() -> dict[str, Baseline]:
    """List PEFT and Transformers with a fixed setting in lower precision, which GPUs multiply in."""
    listed = {}
    for dtype in ("fp16", "bf16"):
        setting = f"{dtype}, eager"
        described = f"PEFT as trained, in {dtype}, as `peft` otherwise"
        listed[f"peft-{dtype}"] = Baseline(
            system="peft_eager", prepares="peft_eager", description=described, tolerance=0.1, setting=setting
        )
        for suffix, mode in _MODES.items():
            listed[f"transformers-{dtype}{suffix}"] = Baseline(
                system="transformers_torch",
                prepares=None,
                description=f"Transformers in {dtype}, {mode}, as `transformers` otherwise",
                tolerance=0.1,
                setting=f"{dtype}, {mode}",
            )
    return listed


_OPENVINO = ("openvino==2026.4.1",)

BASELINES = {
    "peft": Baseline(
        system="peft_eager",
        prepares="peft_eager",
        description="PEFT as trained, PyTorch in inference mode. The leading part of the prompt is its virtual tokens, "
        "computed with every text. With label words it computes logits of the whole vocabulary at every position "
        "(CAUSAL_LM)",
    ),
    "peft-seqcls": Baseline(
        system="peft_seqcls",
        prepares="peft_seqcls",
        description="PEFT for sequence classification (SEQ_CLS): the same, with the label weights as its "
        "classification layer and without logits of the vocabulary",
    ),
    "transformers": Baseline(
        system="transformers_torch",
        prepares="transformers_torch",
        description="Transformers in PyTorch with the fastest setting on this machine, determined beforehand: fp32 "
        "or bf16; eager, `torch.compile`, or `torch.compile` with weights as constants. On a causal "
        "model the leading part of the prompt is computed once, and logits of the vocabulary only at the "
        "last position",
        tolerance=0.1,  # may be bf16
    ),
    "plain-onnx": Baseline(
        system="graph",
        prepares="plain_onnx",
        description="`torch.onnx.export` of the untouched model with the prompt embeddings in its embedding table, "
        "in ONNX Runtime with default settings. It computes the prompt with every text, and logits of "
        "the whole vocabulary at every position",
    ),
    "encoder-onnx": Baseline(
        system="graph",
        prepares="encoder_onnx",
        description="the prompt encoder inside the graph, as PaddleNLP exports its prompt models, in ONNX Runtime with "
        "default settings. Each call computes the prompt embeddings and the whole prompt; logits of the whole "
        "vocabulary at one position",
    ),
    "transformers-onnx": Baseline(
        system="graph",
        prepares="transformers_onnx",
        description="the exporter of Transformers (`transformers.exporters`) with its fusions for ONNX Runtime, "
        "without a KV cache. The prompt embeddings are in the embedding table. The model is a sequence "
        "classifier if it pools like the run, else it returns all positions",
    ),
    "optimum-onnx": Baseline(
        system="optimum_onnx",
        prepares="optimum_onnx",
        description="optimum-onnx with a compatible Transformers, installed for it alone: its export and its "
        "`ORTModelFor…`, without a KV cache. The prompt embeddings are in the embedding table. The model "
        "is a sequence classifier if it pools like the run, else it returns all positions",
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
    "llama-cpp": Baseline(
        system="llama_cpp",
        prepares="llama_cpp",
        description="llama.cpp through llama-cpp-python, on the GGUF file of the backbone: unchanged, or with weights "
        "converted to bf16 or Q8_0, whichever is fastest on this machine. Virtual tokens are passed as embeddings, "
        "everything before the text is computed once, and logits of the vocabulary only at the last position",
        tolerance=0.1,  # rounds activations to 8 bits, or weights to bf16
        requirements=("llama-cpp-python==0.3.36", "diskcache==5.6.3"),
        reads_gguf=True,
    ),
    "openvino": Baseline(
        system="openvino",
        prepares=None,
        description="the bundle's own graph and tokenizer in OpenVINO instead of ONNX Runtime, in the precision of the "
        "graph",
        requirements=_OPENVINO,
        own_graph=True,
    ),
    "openvino-bf16": Baseline(
        system="openvino_bf16",
        prepares=None,
        description="the same, with products in bf16, on processors for which OpenVINO lists BF16",
        tolerance=0.1,
        requirements=_OPENVINO,
        own_graph=True,
    ),
    **_lower_precision(),
}
