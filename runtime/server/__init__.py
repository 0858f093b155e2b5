"""An engine -> an HTTP server.

app.py  routes, limits and shutdown
oip.py  JSON bodies of the Open Inference Protocol <-> texts and predictions
"""
