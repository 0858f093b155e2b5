"""Requests -> responses, on models that come and go; knows neither HTTP nor gRPC.

service.py    a request, answered
call.py       a request while it is answered, and what it ends with if it fails
metadata.py   models -> what the protocol says of them
questions.py  tensors and parameters of a request -> texts or ids
answers.py    predictions -> tensors of a response
tensors.py    the values of the Open Inference Protocol
models.py     names -> tasks
watch.py      a folder of bundles and packs -> models that come and go
"""
