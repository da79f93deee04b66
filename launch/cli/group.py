"""Group of all commands: the sections of its help, and --version."""

import click

from launch.cli.shared import code_version, short_commit
from launch.console import log_to_terminal, print_text


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    code = code_version()
    commit, bundle = short_commit(code["commit"]), code["bundle_id"][:12]
    print_text(f"version {code['version']}, commit {commit}, bundle {bundle}")
    context.exit()


class _Sections(click.Group):
    """A group that lists its commands by the order in which a user needs them."""

    _SECTIONS = (
        ("Before it costs quota", ("smoke", "doctor", "experiments", "options")),
        ("On Kaggle", ("run", "status", "watch", "logs", "output", "push", "submit", "report", "ensemble")),
        ("On this machine", ("download", "import", "weights", "local", "predict", "export")),
        ("With the plain Kaggle client", ("build", "check", "emulator")),
    )

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of the help for each part of the way."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for title, names in self._SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])


@click.group(
    cls=_Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version, the commit and the bundle id, and exit.",
)
def main() -> None:
    """Train and submit for Histopathologic Cancer Detection on Kaggle.

    Start with `smoke` (no account needed), then `doctor`, then `run`.

    Exit codes: 0 done; 1 failed, with a sentence that names the cause and the remedy; 2 wrong use.
    """
    log_to_terminal()
