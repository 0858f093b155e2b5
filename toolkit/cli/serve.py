"""`ptexport serve`: a bundle over HTTP. Needs the extra `serve`, and no torch."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptexport.toolkit.cli import options as shared

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 to be reached from other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any free one.")
@shared.opening
@click.option("--json", "as_json", is_flag=True, help="Say where it listens in JSON.")
def serve(bundle: Path, host: str, port: int, as_json: bool, **opening: Any) -> None:
    """Serve a bundle over HTTP: the Open Inference Protocol, and POST /predict.

    SIGTERM and Ctrl-C stop it within 30 s: it finishes what has begun, and answers the rest with status 503.
    """
    with shared.extra("serve"):
        from ptexport.runtime.server.app import serve as run_server
    from ptexport.runtime import Engine

    engine = Engine.open(bundle, **opening)
    name, info = engine.manifest.name, engine.info
    engine.warm_up()  # so that no request is the first of its shape

    def ready(url: str) -> None:
        record = {
            "url": url,
            "model": name,
            "models": list(engine.tasks),
            "provider": info.provider,
            "degraded": info.degraded,
        }
        tasks = f" ({', '.join(engine.tasks)})" if len(engine.tasks) > 1 else ""
        said = f"serving {name}{tasks} on {url} with {info.provider} (Ctrl-C stops it)"
        click.echo(json.dumps(record) if as_json else said)

    with shared.extra("serve"):  # uvicorn loads its event loop and parser when it starts
        run_server(engine, host=host, port=port, on_ready=ready)
    os._exit(0)  # returning would wait for the engine's thread, which may still run a cancelled batch
