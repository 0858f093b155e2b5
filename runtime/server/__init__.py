"""A service -> HTTP and gRPC.

serve.py          a configuration -> a server with its models, batcher, metrics and logs
listen.py         a service -> HTTP and gRPC on their ports, until a signal comes
app.py            routes: a service -> an HTTP application
schemas.py        types of the bodies of requests and responses, decoded strictly
bodies.py         bodies of HTTP requests and responses <-> the protocol's values
grpc_service.py   the same service over gRPC
openapi.py        the routes as an OpenAPI document
page.py           the page at `GET /`; its files are in static/
connections.py    bytes of a connection -> requests, within limits
limits.py         a request -> the same with its whole body, or a refusal
auth.py           a token file -> requests that carry the token
tls.py            a certificate and its key -> what HTTP and gRPC serve with
private_files.py  a path -> a secret that others cannot read
refusals.py       a refusal -> one JSON sentence that its client can read
stopping.py       a signal -> a server that finishes its work and ends
"""
