"""A CUDA device -> its name, memory and compute capability, through the CUDA driver API.

Not run on a GPU yet; the tests use a fake driver.

Source: https://docs.nvidia.com/cuda/cuda-driver-api.
"""

import ctypes
from typing import Any

import msgspec

from ptexport.runtime.errors import ProviderError

_NAME_BYTES = 256
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A CUDA device.

    Attributes:
        name: product name.
        compute_capability: compute capability, such as "8.7".
        memory_bytes: total memory.
        driver_cuda: newest CUDA version that the driver supports, such as "13.0".
    """

    name: str
    compute_capability: str
    memory_bytes: int
    driver_cuda: str


def read_gpu(device: int, driver: Any = None) -> Gpu:
    """Describe a device.

    Args:
        device: number of the device.
        driver: loaded driver library; None: the system's.

    Raises:
        ProviderError: there is no driver, or no such device.
    """
    if driver is None:
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError as e:
            raise ProviderError(f"GPU {device}: {e}; install an NVIDIA driver, or use provider cpu") from e

    def call(function: str, *arguments: Any) -> None:
        code = getattr(driver, function)(*arguments)
        if code:
            raise ProviderError(f"GPU {device}: {function} failed with CUDA error {code}; choose another device")

    call("cuInit", 0)
    handle, version, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    capability = [ctypes.c_int(), ctypes.c_int()]
    call("cuDeviceGet", ctypes.byref(handle), device)
    call("cuDeviceGetName", name, _NAME_BYTES, handle)
    for number, attribute in zip(capability, (_MAJOR, _MINOR), strict=True):
        call("cuDeviceGetAttribute", ctypes.byref(number), attribute, handle)
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    call("cuDriverGetVersion", ctypes.byref(version))
    return Gpu(
        name=name.value.decode(),
        compute_capability=f"{capability[0].value}.{capability[1].value}",
        memory_bytes=memory.value,
        driver_cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )
