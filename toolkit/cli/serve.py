"""`ptexport serve`: bundles over HTTP and gRPC. Needs the extra `serve`, and no torch."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ptexport.toolkit.cli import options as shared


@click.command()
@click.argument("bundles", nargs=-1, type=shared.BundleFolder())
@click.option(
    "--watch",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Serve the bundles and packs in this folder too, as they come, change and go.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 accepts requests from other machines.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: any free one."
)
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Port of gRPC; 0: any free one [default: no gRPC].")
@click.option(
    "--max-batch-tokens",
    metavar="N",
    type=click.IntRange(1),
    help="Most tokens of a batch, padding included; 1: one text at a time [default: what suits the device].",
)
@click.option(
    "--max-delay-ms",
    metavar="MS",
    type=shared.FiniteRange(0, 1000),
    default=0,
    show_default=True,
    help="Longest time that an idle server waits for a batch to fill up.",
)
@click.option(
    "--max-queue",
    metavar="TEXTS",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="Texts that may wait; requests beyond get status 429.",
)
@click.option(
    "--token-file", metavar="FILE", type=click.Path(path_type=Path), help="Requests must carry the token in this file."
)
@click.option("--tls-cert", metavar="FILE", type=click.Path(path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", metavar="FILE", type=click.Path(path_type=Path), help="Its private key, PEM.")
@click.option("--log-requests", is_flag=True, help="Log every request, without its texts.")
@click.option("--otlp-endpoint", metavar="URL", help="Send traces to this OpenTelemetry collector.")
@shared.opening
@click.option("--json", "as_json", is_flag=True, help="Print what runs where as JSON.")
def serve(
    bundles: tuple[Path, ...],
    watch: Path | None,
    max_batch_tokens: int | None,
    max_delay_ms: float,
    max_queue: int,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    log_requests: bool,
    otlp_endpoint: str | None,
    as_json: bool,
    host: str,
    port: int,
    grpc_port: int | None,
    **opening: Any,
) -> None:
    """Serve bundles: the Open Inference Protocol over HTTP and gRPC, POST /predict, and a page at /.

    SIGTERM and Ctrl-C stop the server within 30 s: it finishes open requests, or gives them status 503. A second signal
    stops it at once.
    """
    if not bundles and watch is None:
        raise click.UsageError("Missing argument 'BUNDLES...'; give a bundle, or a folder with --watch.")
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key: got one, need both or neither.")
    # gRPC's core, once imported, would write lines of its own on standard error, which has lines of JSON.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with shared.extra("serve"):
        from ptexport.runtime.server.address import Listening
        from ptexport.runtime.server.serve import ServeConfig, run
    config = ServeConfig(
        bundles=bundles,
        watch=watch,
        at=Listening(host=host, port=port, grpc_port=grpc_port),
        max_batch_tokens=max_batch_tokens,
        max_delay_s=max_delay_ms / 1000,
        max_queue=max_queue,
        token_file=token_file,
        tls_files=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        log_requests=log_requests,
        otlp_endpoint=otlp_endpoint,
        opening=opening,
    )

    def show(record: dict[str, Any], lines: Sequence[str]) -> None:
        click.echo(json.dumps(record) if as_json else "\n".join(lines))

    with shared.extra("serve"):  # uvicorn loads its event loop and parser when it starts
        run(config, show)
    os._exit(0)  # returning would wait for the engine's thread, which may still run a cancelled batch
