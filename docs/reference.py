"""Write commands.md from the command line itself. Run by `make docs`; a test compares."""

import sys
from pathlib import Path

import click

from ptexport.toolkit.cli.main import cli


def reference() -> str:
    """Return the page."""
    names = cli.context_settings["help_option_names"]
    context = click.Context(cli, info_name="ptexport", help_option_names=names)
    parts = ["# Commands", "", "Exit code 0: done. 1: failed, with one sentence. 2: wrong usage.", ""]
    for command in cli.commands.values():
        parts += describe(command, context)
    return "\n".join(parts).rstrip() + "\n"


def describe(command: click.Command, parent: click.Context) -> list[str]:
    """Return a command's lines; of a group, those of its commands."""
    context = click.Context(command, info_name=command.name, parent=parent, max_content_width=100, terminal_width=100)
    if isinstance(command, click.Group):
        return [line for inner in command.commands.values() for line in describe(inner, context)]
    return [f"## {context.command_path}", "", "```", command.get_help(context), "```", ""]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
