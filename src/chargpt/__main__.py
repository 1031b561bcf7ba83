"""The console command: `chargpt train`, also as `python -m chargpt train`."""

import sys

from chargpt import invocation
from chargpt.cli.commands import COMMANDS
from chargpt.errors import ExitCode
from chargpt.version import __version__


def main() -> None:
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        invocation.use_console_command(command)
        sys.argv = [sys.argv[0], *arguments]
        return COMMANDS[command][0]()
    if command == "--version":
        print(f"chargpt {__version__}")
    elif command in ("--help", "-h"):
        print("chargpt COMMAND [GROUP=OPTION ...] [KEY=VALUE ...]\n")
        for name, (_, description) in COMMANDS.items():
            print(f"  {name:<10} {description}")
        print("\nSettings of a command: chargpt COMMAND --help")
    else:
        sys.stderr.write(f"chargpt: there is no command {command!r}. The commands are {', '.join(COMMANDS)}\n")
        sys.exit(ExitCode.USER_ERROR)


if __name__ == "__main__":
    main()
