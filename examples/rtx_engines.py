"""Build the TensorRT RTX engine of a bundle, then that of a second task on its backbone, which costs no build.

usage: python examples/rtx_engines.py BUNDLE SECOND_BUNDLE [CAPABILITIES]

Both are bundles of `ptexport export --target cpu` in one precision; CAPABILITIES are such as 89,120. Needs the extra
`tensorrt-rtx`, and no GPU. The cache of engines is left alone. Prints seconds, layers and bytes (docs/export.md).
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from ptexport.exporters.engine import add_engine
from ptexport.exporters.targets.tensorrt_rtx import read_capabilities
from ptexport.runtime.bundle.folder import ENGINE, MODEL, WEIGHTS, Bundle
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.store.folders import clone


class Stages(Progress):
    """Prints what is done."""

    def stage(self, name: str) -> None:
        """Print a stage."""
        print(f"  {name}")


def main() -> None:
    """Build, and show the time of each."""
    bundles = [Path(name) for name in sys.argv[1:3]]
    capabilities = read_capabilities(sys.argv[3] if len(sys.argv) > 3 else "89,120")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for bundle in bundles:
            manifest = Bundle.open(bundle).manifest
            with tempfile.TemporaryDirectory(dir=bundle.parent) as name:
                folder = Path(name)
                for file in (MODEL, WEIGHTS):
                    clone(bundle / file, folder / file)
                started, cpu = time.perf_counter(), time.process_time()
                engine, files = add_engine(
                    folder, manifest.files[WEIGHTS], manifest.tasks[0].max_length, capabilities, Stages()
                )
                seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
            print(f"{bundle}: {seconds:.1f} s, {cpu_seconds:.1f} s of CPU time, {engine.layers} layers")
            print(f"  {files[ENGINE].size_bytes:,} bytes, sha256 {files[ENGINE].sha256[:12]}")


if __name__ == "__main__":
    main()
