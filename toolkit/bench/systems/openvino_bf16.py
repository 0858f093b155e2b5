"""The bundle's own graph in OpenVINO, which computes in bf16 where the processor can."""

from functools import partial

from ptexport.toolkit.bench.systems.openvino import OpenVino

SYSTEM = partial(OpenVino, precision="bf16")
