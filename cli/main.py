"""The group ``atmc``; a command is imported when it is used, so that help is quick."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any

import click

from atmc import __version__
from atmc import messages as wording

from .errors import report, several

# Name of a command (and of its file) to its line in `atmc --help`.
COMMANDS = {
    "compress": "Train a classifier, compress it into a file of a given size, evaluate the file.",
    "evaluate": "Clean and robust accuracy of an artifact.",
    "inspect": "Where every bit of an artifact went; needs no model and no data.",
    "export": "ONNX, safetensors, a torch.export program or C code of an artifact.",
    "sweep": "Many runs from one file, resumed, from shared dense starts; then the curves.",
    "report": "Curves, tables and one HTML page from finished runs.",
}


class CommandLine(click.Group):
    """A group with lazily imported commands, whose every error is one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of that name; None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        if several() and cmd_name != "compress":
            raise click.UsageError(f"{cmd_name} runs in one process: start it without torchrun")
        command: click.Command = importlib.import_module(f".{cmd_name}", __package__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit; an error becomes one line, which names options."""
        kwargs["standalone_mode"] = False  # click would print errors itself
        with wording.options(), wording.on_stderr(), _processes():
            try:
                code = super().main(*args, **kwargs)
                sys.stdout.flush()
            except BrokenPipeError:
                # The reader has left (`| head`): Python must not flush into the closed pipe.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(1)
            except (Exception, KeyboardInterrupt) as error:
                sys.exit(report(error))
        sys.exit(code if isinstance(code, int) else 0)


def _processes() -> contextlib.AbstractContextManager[None]:
    """Joins the processes of ``torchrun``, where it has started several."""
    if not several():
        return contextlib.nullcontext()
    from atmc import distributed

    return distributed.joined()


@click.group(
    "atmc",
    cls=CommandLine,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="atmc")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Compress a PyTorch classifier into a file of a given size that is hard to fool."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)
