"""KServe's own clients, REST and gRPC, against a running `ptexport serve`.

kserve cannot share ptexport's environment (it pins python-dateutil and protobuf), so this runs in one of its own:

    python -m venv build/kserve && build/kserve/bin/pip install kserve==0.21.0
    ptexport serve BUNDLE --port 8000 --grpc-port 8001 &
    build/kserve/bin/python tests/conformance/kserve_client.py http://127.0.0.1:8000 127.0.0.1:8001 MODEL

It prints one line per call and ends with 0, or at the first difference with a traceback. Follows kserve 0.21.0 as
published on PyPI (https://pypi.org/project/kserve/).
"""

import asyncio
import json
import sys
import urllib.request

import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput

TEXTS = ["the film was bright", "slow", "Владивосток"]


def predicted(url: str, model: str) -> list[dict]:
    """What POST /predict says of the texts; tests/runtime/server compares that with `Engine.predict`."""
    body = json.dumps({"texts": TEXTS, "task": model}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["predictions"]


def tensor(shape: list[int], how: str) -> InferInput:
    if how == "list":
        return InferInput(name="text", shape=shape, datatype="BYTES", data=TEXTS)
    made = InferInput(name="text", shape=shape, datatype="BYTES")
    made.set_data_from_numpy(np.array(TEXTS, dtype=object).reshape(shape), binary_data=how == "binary")
    return made


def check(call: str, response: InferResponse, expected: list[dict]) -> None:
    by_name: dict[str, InferOutput] = {output.name: output for output in response.outputs}
    labels = [x.decode() if isinstance(x, bytes) else x for x in by_name["label"].as_numpy().reshape(-1)]
    assert labels == [prediction["label"] for prediction in expected], (call, labels)
    right = [list(prediction["probabilities"].values()) for prediction in expected]
    np.testing.assert_allclose(by_name["probabilities"].as_numpy(), right, atol=1e-5, err_msg=call)
    print("right:", call)


async def main(url: str, grpc: str, model: str) -> None:
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    expected = predicted(url, model)
    assert await rest.is_server_live(url)
    assert await rest.is_server_ready(url)
    assert await rest.is_model_ready(url, model)
    print("right: REST live, ready, model ready")
    for how in ("list", "binary", "json"):
        for shape in ([3], [3, 1]):
            request = InferRequest(model_name=model, infer_inputs=[tensor(shape, how)], request_id="7")
            response = await rest.infer(url, request, model_name=model)
            assert response.id == "7"
            check(f"REST {how} {shape}", response, expected)
    outputs = [RequestedOutput(name, {"binary_data": True}) for name in ("label", "probabilities")]
    request = InferRequest(model_name=model, infer_inputs=[tensor([3], "binary")], request_outputs=outputs)
    check("REST requested binary outputs", await rest.infer(url, request, model_name=model), expected)
    request = InferRequest(
        model_name=model, infer_inputs=[tensor([3], "binary")], parameters={"binary_data_output": True}
    )
    check("REST binary_data_output", await rest.infer(url, request, model_name=model), expected)

    client = InferenceGRPCClient(grpc, use_ssl=False)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready(model)
    print("right: gRPC live, ready, model ready")
    for how in ("list", "binary"):
        for shape in ([3], [3, 1]):
            values = [text.encode() for text in TEXTS] if how == "list" else None
            given = tensor(shape, how) if values is None else InferInput("text", shape, "BYTES", values)
            request = InferRequest(model_name=model, infer_inputs=[given], request_id="7")
            check(f"gRPC {how} {shape}", await client.infer(request), expected)
    await client.close()
    await rest.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
