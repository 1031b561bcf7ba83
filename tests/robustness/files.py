"""Loads damaged, foreign and hostile checkpoints with each command that reads checkpoints; writes files.csv.

Each checkpoint is passed to sample.py, evaluate.py and train.py resume=. A checkpoint that is merely damaged is also
tried as last.ckpt alone, where resuming must fall back to previous.ckpt. The table counts tracebacks, invalid
checkpoints that a command accepted, executed code (which creates a canary file), files modified by a command that
failed, and commands that ran for more than a minute. The checksums of hostile checkpoints are correct, as an
attacker's would be.
"""

import argparse
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chargpt.sweeps.markdown import put, table
from chargpt.utils.csv_io import read_rows, write_rows
from tests.robustness import fork_server, hostile_folders
from tests.robustness.hostile_checkpoints import COMMANDS, contents, pickles
from tests.robustness.hostile_folders import HostileFolder, plant, plant_module, start

HERE = Path(__file__).parent
TRUNCATIONS, BIT_FLIPS = 100, 100
FAULTS = ("tracebacks", "accepted", "executed", "modified files", "hangs", "other exit codes")


@dataclass
class Case:
    """One invalid checkpoint.

    Attributes:
        refused_by: the commands that must refuse it; the others may accept it.
        last_only: whether to try it as last.ckpt alone, too.
    """

    kind: str
    description: str
    content: bytes
    refused_by: tuple[str, ...] = COMMANDS
    last_only: bool = False


def damaged(intact: bytes) -> list[Case]:
    """Truncated files and flipped bits: at random places, and at the boundaries of the file format."""
    rng = random.Random(0)
    size = len(intact)
    end_record = intact.rindex(b"PK\x05\x06")  # end of the ZIP archive
    directory = intact.index(b"PK\x01\x02")  # start of its list of files
    checksum = intact.rindex(b"chargpt sha256")
    sizes = {0, 1, 2, 4, 30, size - 1, size - 2, size - 64, checksum, checksum + 14}
    sizes |= {end_record, end_record + 4, directory}
    sizes |= {*rng.sample(range(5, size), TRUNCATIONS - len(sizes))}
    places = (0, 2, 8, 30, directory, directory + 10, end_record, end_record + 12, end_record + 20, checksum)
    bits = [8 * place for place in places]
    bits += [8 * place + 7 for place in range(size - 10, size)]
    bits += [8 * rng.randrange(directory, size) + rng.randrange(8) for _ in range(20)]
    bits += rng.sample(range(8 * size), BIT_FLIPS - len(bits))
    cases = [Case("truncated", f"{n} of {size} bytes", intact[:n], last_only=True) for n in sorted(sizes)]
    for bit in bits:
        content = bytearray(intact)
        content[bit // 8] ^= 1 << bit % 8
        cases.append(Case("bit flip", f"bit {bit} of {8 * size}", bytes(content), last_only=True))
    return cases


def foreign(source: Path, scratch: Path) -> list[Case]:
    """Intact files that belong to another run or another program."""

    def checkpoint(*overrides: str) -> bytes:
        run = fork_server.make_run(fork_server.empty_folder(scratch / "other"), *overrides)
        return (run / "checkpoints" / "last.ckpt").read_bytes()

    def saved(content: object) -> bytes:
        torch.save(content, scratch / "saved.pt")
        return (scratch / "saved.pt").read_bytes()

    (scratch / "other.txt").write_text("Another text, of other letters: xyz!\n" * 300)
    (scratch / "longer.txt").write_text((source / "text.txt").read_text() + "The end.\n")
    files = {
        "another torch file": (saved({"weight": torch.zeros(3)}), COMMANDS),
        "a tensor": (saved(torch.zeros(3)), COMMANDS),
        "a text": (b"To be or not to be", COMMANDS),
        "an image": (b"\x89PNG\r\n\x1a\n" + bytes(1000), COMMANDS),
        # Valid checkpoints of other runs: they may be used.
        "a model of another size": (checkpoint("model.n_embd=32"), ()),
        "another optimizer": (checkpoint("optimizer=muon"), ()),
        "another text": (checkpoint(f"data.path={scratch / 'other.txt'}"), ()),
        "a longer text": (checkpoint(f"data.path={scratch / 'longer.txt'}"), ()),
        "other submodules": (checkpoint("model/position=rotary", "model/feed_forward=swiglu"), ()),
    }
    return [Case("foreign", description, content, refused) for description, (content, refused) in files.items()]


def attempts(case: Case) -> list[tuple[str, list[str], tuple[str, ...]]]:
    """Command, arguments, and which checkpoints of the run are replaced."""
    every = ("last", "previous", "best")
    resume = ["resume=HERE/run", "trainer.max_steps=4"]
    result = [
        ("sample", ["run=HERE/run", "max_new_tokens=5"], every),
        ("evaluate", ["run=HERE/run"], every),
        ("train", resume, every),
    ]
    return [*result, ("train", resume, ("last",))] if case.last_only else result


def run_case(case: Case, number: int, scratch: Path) -> list[tuple[dict[str, int], str]]:
    """For each attempt: counters, and a report with the command that repeats it (empty without a fault)."""
    results = []
    for attempt, (command, template, replaced) in enumerate(attempts(case)):
        folder = fork_server.empty_folder(scratch / f"{number:04d}_{attempt}")
        shutil.copytree(scratch / "source", folder, dirs_exist_ok=True)
        canaries = fork_server.empty_folder(scratch / "canaries")
        for name in replaced:
            (folder / "run" / "checkpoints" / f"{name}.ckpt").write_bytes(case.content)
        arguments = [argument.replace("HERE", str(folder)) for argument in template]
        before = fork_server.file_digests(folder)
        outcome = fork_server.run(command, arguments, folder)
        changed = fork_server.changed_files(before, fork_server.file_digests(folder))
        if command == "train" and outcome.code in (0, 1):  # a run that was resumed writes to its directory
            changed = [path for path in changed if not path.startswith(str(folder / "run"))]
        last_only = len(replaced) == 1
        # Only the warning about the unreadable file names last.ckpt.
        fell_back = outcome.code == 0 and "last.ckpt" in outcome.err
        counters = {
            "tracebacks": int("Traceback (most recent call last)" in outcome.err),
            "accepted": int(outcome.code == 0 and not last_only and command in case.refused_by),
            "executed": int(any(canaries.iterdir())),
            "modified files": int(bool(changed)),
            "hangs": int(outcome.code is None),
            "other exit codes": int(outcome.code not in (None, *fork_server.CODES) or (last_only and not fell_back)),
        }
        report = ""
        if any(counters.values()):
            faults = ", ".join(name for name, count in counters.items() if count)
            details = "\n    ".join([*changed[:3], *outcome.err.splitlines()[-8:]])
            report = f"{case.kind}, {case.description}: {faults}; exit {outcome.code}\n  "
            report += f"{fork_server.shell_line(command, arguments, folder)}\n    {details}\n\n"
        else:
            fork_server.empty_folder(folder).rmdir()
        results.append(({str(outcome.code): 1} | counters, report))
    return results


def run_folder(case: HostileFolder, number: int, scratch: Path) -> list[tuple[dict[str, int], str]]:
    """As `run_case`, for a hostile folder. Each attempt is a command and a way to start it."""
    results = []
    attempts = [(how, *command) for how in case.starts or ("",) for command in case.commands]
    for attempt, (how, command, arguments) in enumerate(attempts):
        folder = fork_server.empty_folder(scratch / f"folder_{number:04d}_{attempt}")
        shutil.copytree(scratch / "source", folder, dirs_exist_ok=True)
        canaries = fork_server.empty_folder(scratch / "canaries")
        case.build(folder)
        plant(folder, canaries / "canary")
        for module in case.modules:
            plant_module(folder, module, canaries / "canary")
        before = fork_server.file_digests(folder)
        outcome = start(how, command, arguments, folder) if how else fork_server.run(command, arguments, folder)
        changed = fork_server.changed_files(before, fork_server.file_digests(folder))
        changed = [path for path in changed if "__pycache__" not in path]  # of the trusted module
        counters = {
            "tracebacks": int("Traceback (most recent call last)" in outcome.err),
            "accepted": int(outcome.code == 0 and case.refused),
            "executed": int(any(canaries.iterdir())),
            "modified files": int(bool(changed) and outcome.code == 2),
            "hangs": int(outcome.code is None),
            "other exit codes": int(outcome.code not in (None, *fork_server.CODES)),
        }
        report = ""
        if any(counters.values()):
            faults = ", ".join(name for name, count in counters.items() if count)
            details = "\n    ".join([*changed[:3], *outcome.err.splitlines()[-8:]])
            line = fork_server.shell_line(command, arguments, folder)
            report = (
                f"{case.description} ({how or 'script'}): {faults}; exit {outcome.code}\n  {line}\n    {details}\n\n"
            )
        else:
            fork_server.empty_folder(folder).rmdir()
        results.append(({str(outcome.code): 1} | counters, report))
    return results


def main(args: argparse.Namespace) -> int:
    fork_server.start()
    scratch = fork_server.empty_folder(args.scratch.absolute())
    intact = (fork_server.make_run(scratch / "source") / "checkpoints" / "last.ckpt").read_bytes()
    exported = fork_server.run("export", ["run=run", "file=model.safetensors"], scratch / "source")
    assert exported.code == 0, exported.err
    canary = scratch / "canaries" / "canary"
    cases: list[Any] = [*damaged(intact), *foreign(scratch / "source", scratch)]
    cases += [Case(*hostile) for hostile in (*pickles(intact, canary, scratch), *contents(intact, canary))]
    cases += hostile_folders.cases(canary)
    kinds = [kind for kind in args.kinds.split(",") if kind]
    cases = [case for case in cases if not kinds or case.kind in kinds][:: args.every]
    rows: dict[str, dict] = {}
    with (scratch / "faults.txt").open("w", errors="backslashreplace") as file:
        for number, case in enumerate(cases):
            empty = {"kind": case.kind, "checkpoints": 0, "attempts": 0} | dict.fromkeys(("0", "1", "2"), 0)
            row = rows.setdefault(case.kind, empty | dict.fromkeys(FAULTS, 0))
            row["checkpoints"] += 1
            run = run_folder if isinstance(case, HostileFolder) else run_case
            for counters, report in run(case, number, scratch):
                row["attempts"] += 1
                for name, count in counters.items():
                    if name in row:
                        row[name] += count
                file.write(report)
                file.flush()
            if number % 20 == 19:
                print(f"{number + 1} of {len(cases)}", flush=True)
    for row in rows.values():
        print(*row.values(), sep="\t")
    if args.every == 1:
        every = [*({row["kind"]: row for row in read_rows(HERE / "files.csv")} | rows).values()]
        write_rows(HERE / "files.csv", every)
        lines = [{name: str(value) for name, value in row.items()} for row in every]
        put(HERE / "README.md", "files", table(lines))
    return int(any(row[name] for row in rows.values() for name in FAULTS))
