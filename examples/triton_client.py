"""Ask a server with Triton's client, over HTTP and gRPC: python triton_client.py HOST:PORT HOST:GRPC_PORT MODEL."""

import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http

http_address, grpc_address, model = sys.argv[1:]
texts = np.array(["The lift is stuck", "I was charged twice"], dtype=np.object_)
for client, address in ((tritonclient.http, http_address), (tritonclient.grpc, grpc_address)):
    server = client.InferenceServerClient(address)
    text = client.InferInput("text", [len(texts)], "BYTES")
    text.set_data_from_numpy(texts)
    answer = server.infer(model, [text])
    for label, probabilities in zip(answer.as_numpy("label"), answer.as_numpy("probabilities"), strict=True):
        print(label.decode(), probabilities)
    server.close()
