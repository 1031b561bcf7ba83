"""The commands, and the launcher of one process per device. On Windows, importing this package ends the process."""

import sys

from chargpt.errors import ExitCode

if sys.platform == "win32":  # here, because the modules of this package use signals that Windows does not have
    sys.stderr.write(
        "chargpt: Windows is supported only through WSL, which runs Linux programs: "
        "https://learn.microsoft.com/windows/wsl/install\n"
    )
    sys.exit(ExitCode.USER_ERROR)
