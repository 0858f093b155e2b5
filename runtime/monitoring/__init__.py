"""What became of requests and batches -> metrics, logs and traces.

records.py       what is known of a request once it is answered, and of the models that answer
metric_names.py  every metric: name, kind, unit, labels, meaning
metric_sums.py   what is summed over requests and batches
metrics.py       records -> Prometheus and OpenMetrics text
logs.py          events and records -> lines of JSON on standard error
tracing.py       traceparent of a caller; address of a collector
observer.py      the end of a request -> metrics, its line in the log and its span
spans.py         records -> spans of OpenTelemetry; the one file that imports the extra otel
start_report.py  what runs where -> lines and JSON
"""
