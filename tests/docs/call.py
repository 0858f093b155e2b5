"""Asks a gRPC server whether it lives: call.py ADDRESS [CERTIFICATE TOKEN]. Prints the bytes of the answer, in hex."""

import sys
from pathlib import Path

import grpc

address, *secured = sys.argv[1:]
metadata = []
if secured:
    channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(secured[0]).read_bytes()))
    metadata = [("authorization", f"Bearer {secured[1]}")]
else:
    channel = grpc.insecure_channel(address)
with channel:
    live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    print(live(b"", timeout=5, metadata=metadata).hex())
