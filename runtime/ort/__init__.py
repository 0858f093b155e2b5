"""A model.onnx file -> logits on a device, through ONNX Runtime.

execution.py       how a bundle is to be run -> its graph; on the CPU if CUDA cannot load it
graph.py           ids -> logits
providers.py       execution providers: choose one, open a session, prove where nodes run
plugins.py         those that come as plugins: find one, and choose a device
known_plugins.py   what is known of each plugin: options, tolerance
tensorrt.py        TensorRT engines: profiles, cache, build
tensorrt_rtx.py    TensorRT RTX engines of bundles: do they fit the card and the tasks
shared_session.py  one session for all engines of a backbone in this process
batch_shapes.py    the batch shapes that a GPU sees
io_binding.py      ids -> logits through memory bound once per batch shape
cpus.py            how many CPUs this process may use
elf.py             a shared library -> the libraries it needs
cuda_driver.py     a CUDA device -> its name, memory and compute capability
"""
