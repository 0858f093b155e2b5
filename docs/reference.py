"""Write commands.md from the command line itself. Run by `make docs`; a test compares."""

import sys
from pathlib import Path

import click

from ptexport.toolkit.cli import cli


def reference() -> str:
    """Return the page."""
    context = click.Context(cli, info_name="ptexport", max_content_width=100, terminal_width=100)
    parts = ["# Commands", "", "Exit code 0: done. 1: failed, with one sentence. 2: wrong use.", ""]
    for name, command in cli.commands.items():
        inner = click.Context(command, info_name=name, parent=context, max_content_width=100, terminal_width=100)
        parts += [f"## ptexport {name}", "", "```", command.get_help(inner), "```", ""]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
