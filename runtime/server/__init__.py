"""A service -> HTTP and gRPC.

serve.py         a configuration -> a server with its models, batcher, metrics and logs
address.py        where a server listens, and for whom
listen.py        a service -> HTTP and gRPC on their ports, until a signal comes
app.py           routes: a service -> an HTTP application
schemas.py       types of the bodies of requests and responses, decoded strictly
bodies.py        bodies of HTTP requests and responses <-> the protocol's values
grpc_service.py  the same service over gRPC
openapi.py       the routes as an OpenAPI document
page.py          the page at `GET /`; its files are in static/
stopping.py      a signal -> a server that finishes its work and ends
"""
