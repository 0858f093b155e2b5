"""An engine -> an HTTP server.

app.py   routes, limits and shutdown
page.py  the page at `GET /` and its files, in static/
oip.py   JSON bodies of the Open Inference Protocol <-> texts and predictions
"""
