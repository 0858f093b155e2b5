"""`ptexport serve`: a bundle over HTTP. Needs the extra `serve`, and no torch."""

import json
import os
from pathlib import Path
from typing import Any

import click

from ptexport.toolkit.cli import options as shared


@click.command()
@shared.bundle
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 accepts requests from other machines.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: any free one."
)
@shared.opening
@click.option("--json", "as_json", is_flag=True, help="Print the address and the tasks as JSON.")
def serve(bundle: Path, host: str, port: int, as_json: bool, **opening: Any) -> None:
    """Serve a bundle over HTTP: the Open Inference Protocol, and POST /predict.

    SIGTERM and Ctrl-C stop the server within 30 s: it finishes open requests, or gives them status 503.
    """
    with shared.extra("serve"):
        from ptexport.runtime.server.app import serve as run_server
    from ptexport.runtime import Engine

    engine = Engine.open(bundle, **opening)
    name, info = engine.manifest.name, engine.info
    engine.warm_up()  # so that no request is the first of its batch shape

    def ready(url: str) -> None:
        record = {
            "url": url,
            "model": name,
            "models": list(engine.tasks),
            "provider": info.provider,
            "degraded": info.degraded,
        }
        tasks = f" ({', '.join(engine.tasks)})" if len(engine.tasks) > 1 else ""
        line = f"serving {name}{tasks} on {url} with {info.provider} (Ctrl-C stops it)"
        click.echo(json.dumps(record) if as_json else line)

    with shared.extra("serve"):  # uvicorn loads its event loop and parser when it starts
        run_server(engine, host=host, port=port, on_ready=ready)
    os._exit(0)  # returning would wait for the engine's thread, which may still run a cancelled batch
