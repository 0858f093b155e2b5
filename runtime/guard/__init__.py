"""Bytes from anybody -> requests within limits.

connections.py    bytes of a connection -> requests, within limits
limits.py         a request -> the same with its whole body, or a refusal
origins.py        the Host and Origin of a request -> the same, or a refusal
auth.py           a token file -> requests that carry the token
tls.py            a certificate and its key -> what HTTP and gRPC serve with
private_files.py  a path -> a secret that others cannot read
refusals.py       a refusal -> one JSON sentence that its client can read
"""
