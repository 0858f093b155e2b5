"""A run -> its graph in a folder, and how far that is from the untouched model."""

from pathlib import Path

from tiny import Quiet

from ptexport.exporters.bake import BakedGraph, bake
from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.parity.compare import compare_graph
from ptexport.exporters.parity.reference import Reference
from ptexport.exporters.parity.report import summarize
from ptexport.exporters.trace.trace import trace
from ptexport.runtime.bundle.measured import Parity
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.run.run import Run


def bake_run(run: Run, backbone: Backbone, folder: Path, *, opset: int = 18) -> BakedGraph:
    """Trace a backbone, and bake a run into the graph."""
    traced = trace(backbone, run.config.pooling, has_prefix_kv=run.arrays.has_prefix_kv, opset=opset)
    return bake(JointTasks({"task": run}), traced, folder)


def check_parity(run: Run, backbone: Backbone, folder: Path) -> Parity:
    """Compare a graph in a folder with the untouched model of a run, on the run's check rows."""
    reference = Reference.compute(run, backbone, run.check_rows, Quiet())
    (report,) = compare_graph(JointTasks({"task": run}), [reference], folder)
    return summarize(report)
