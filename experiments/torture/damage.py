"""Damaged, foreign and hostile checkpoints against the verbs that read one; writes damage.csv.

    python experiments/torture/damage.py                  # 880 checkpoints, 2,640 tries: an hour on a core
    python experiments/torture/damage.py --kinds "cut short" --every 10

Each is tried with sample.py, evaluate.py and train.py resume=; what is merely damaged also as last.ckpt alone,
where a run falls back to the checkpoint before it. Counted are tracebacks, checkpoints that were taken for good,
code that was executed (it would leave a file), files that were touched, and what was not done after a minute.
What an attacker would write is sealed with its right digest.
"""

import argparse
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import forks
from hostile import contents, pickles

from chargpt.sweeps.markdown import put, table
from chargpt.utils.csv_io import read_rows, write_rows

HERE = Path(__file__).parent
CUTS, FLIPS = 100, 100
READERS = ("sample", "evaluate", "train")
FAULTS = ("tracebacks", "taken for good", "executed", "touched", "hangs", "other codes")


@dataclass
class Damaged:
    """One checkpoint that is not what it should be.

    Attributes:
        what: in words.
        refused: the verbs that must not take it for good; the others may ignore what is wrong.
        alone: whether it is tried as last.ckpt alone too.
    """

    kind: str
    what: str
    content: bytes
    refused: tuple[str, ...] = READERS
    alone: bool = False


def damaged(whole: bytes) -> list[Damaged]:
    """Bytes that are lost or changed: anywhere, and at each place that has a meaning of its own."""
    draw = random.Random(0)
    size = len(whole)
    directory = whole.rindex(b"PK\x05\x06")  # where the ZIP archive ends
    first = whole.index(b"PK\x01\x02")  # where its list of files begins
    seal = whole.rindex(b"chargpt sha256")
    cuts = {0, 1, 2, 4, 30, size - 1, size - 2, size - 64, seal, seal + 14, directory, directory + 4, first}
    cuts |= {*draw.sample(range(5, size), CUTS - len(cuts))}
    bits = [8 * place for place in (0, 2, 8, 30, first, first + 10, directory, directory + 12, directory + 20, seal)]
    bits += [8 * place + 7 for place in range(size - 10, size)]
    bits += [8 * draw.randrange(first, size) + draw.randrange(8) for _ in range(20)]
    bits += draw.sample(range(8 * size), FLIPS - len(bits))
    found = [Damaged("cut short", f"{cut} of {size} bytes", whole[:cut], alone=True) for cut in sorted(cuts)]
    for bit in bits:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        found.append(Damaged("a bit flipped", f"bit {bit} of {8 * size}", bytes(content), alone=True))
    return found


def foreign(source: Path, scratch: Path) -> list[Damaged]:
    """Files that are whole, and not of this run or this bench."""
    import torch

    def of(*words: str) -> bytes:
        folder = forks.fresh(scratch / "other")
        return (forks.make_run(folder, *words) / "checkpoints" / "last.ckpt").read_bytes()

    def saved(content: object) -> bytes:
        torch.save(content, scratch / "saved.pt")
        return (scratch / "saved.pt").read_bytes()

    (scratch / "other.txt").write_text("Another text, of other letters: xyz!\n" * 300)
    (scratch / "longer.txt").write_text((source / "text.txt").read_text() + "The end.\n")
    found = {
        "another torch file": (saved({"weight": torch.zeros(3)}), READERS),
        "a tensor": (saved(torch.zeros(3)), READERS),
        "a text": (b"To be or not to be", READERS),
        "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(1000), READERS),
        "a model of another size": (of("model.n_embd=32"), ()),  # whole: what it holds is another run's
        "another optimizer": (of("optimizer=muon"), ()),
        "on another text": (of(f"data.path={scratch / 'other.txt'}"), ()),
        "on a text that has grown": (of(f"data.path={scratch / 'longer.txt'}"), ()),
        "a model of other parts": (of("model/position=rotary", "model/feed_forward=swiglu"), ()),
    }
    return [Damaged("foreign", what, content, refused) for what, (content, refused) in found.items()]


def attempts(one: Damaged) -> list[tuple[str, list[str], tuple[str, ...]]]:
    """Verb, words, and which of the run's checkpoints are replaced."""
    every = ("last", "previous", "best")
    found = [
        ("sample", ["run=HERE/run", "max_new_tokens=5"], every),
        ("evaluate", ["run=HERE/run"], every),
        ("train", ["resume=HERE/run", "trainer.max_steps=4"], every),
    ]
    if one.alone:
        found.append(("train", ["resume=HERE/run", "trainer.max_steps=4"], ("last",)))
    return found


def try_one(one: Damaged, number: int, scratch: Path) -> list[tuple[dict[str, int], str]]:
    """For each attempt what is counted, and what a person needs to see it again; empty where all went well."""
    results = []
    for turn, (verb, words, replaced) in enumerate(attempts(one)):
        folder = forks.fresh(scratch / f"{number:04d}_{turn}")
        shutil.copytree(scratch / "source", folder, dirs_exist_ok=True)
        canaries = forks.fresh(scratch / "canaries")
        for name in replaced:
            (folder / "run" / "checkpoints" / f"{name}.ckpt").write_bytes(one.content)
        before = forks.tree(folder)
        typed = [word.replace("HERE", str(folder)) for word in words]
        done = forks.run(verb, typed, folder)
        after = forks.tree(folder)
        went_on = verb == "train" and done.code in (0, 1)
        run = str(folder / "run")
        touched = [p for p in before.keys() | after.keys() if before.get(p) != after.get(p)]
        touched = [p for p in touched if not (went_on and p.startswith(run))]
        fell_back = len(replaced) == 1
        right = done.code == 0 and "Trying an earlier checkpoint" in done.err if fell_back else True
        counted = {
            "tracebacks": int("Traceback (most recent call last)" in done.err),
            "taken for good": int(done.code == 0 and not fell_back and verb in one.refused),
            "executed": int(any(canaries.iterdir())),
            "touched": int(bool(touched)),
            "hangs": int(done.code is None),
            "other codes": int(done.code not in (None, *forks.CODES) or not right),
        }
        line = ""
        if any(counted.values()):
            kinds = ", ".join(name for name, count in counted.items() if count)
            last = "\n    ".join([*touched[:3], *done.err.splitlines()[-8:]])
            line = f"{one.kind}, {one.what}: {kinds}; exit {done.code}\n  "
            line += f"{forks.command(verb, typed, folder)}\n    {last}\n\n"
        else:
            forks.fresh(folder).rmdir()
        results.append(({f"exit {done.code}": 1} | counted, line))
    return results


def _write(rows: dict[str, dict]) -> None:
    """The rows of these kinds in the place of what stood for them."""
    path = HERE / "damage.csv"
    every = [*({row["kind"]: row for row in read_rows(path)} | rows).values()]
    write_rows(path, every)
    put(HERE / "README.md", "damage", table([{name: str(value) for name, value in row.items()} for row in every]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kinds", default="", help="some of them, with commas; the others stay as they are in damage.csv"
    )
    parser.add_argument("--every", type=int, default=1, help="only each n-th; then damage.csv is left as it is")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "chargpt-damage")
    args = parser.parse_args()
    forks.warm()
    scratch = forks.fresh(args.scratch.absolute())
    whole = (forks.make_run(scratch / "source") / "checkpoints" / "last.ckpt").read_bytes()
    canary = scratch / "canaries" / "dead"
    every = [*damaged(whole), *foreign(scratch / "source", scratch)]
    hostile = [*pickles(whole, canary, scratch), *contents(whole, canary)]
    every += [Damaged(kind, what, content, refused) for kind, what, content, refused in hostile]
    kinds = [kind for kind in args.kinds.split(",") if kind]
    every = [one for one in every if not kinds or one.kind in kinds][:: args.every]
    rows: dict[str, dict] = {}
    with (scratch / "faults.txt").open("w", errors="backslashreplace") as file:
        for number, one in enumerate(every):
            empty = {"kind": one.kind, "checkpoints": 0, "tries": 0} | dict.fromkeys(("0", "1", "2"), 0)
            row = rows.setdefault(one.kind, empty | dict.fromkeys(FAULTS, 0))
            row["checkpoints"] += 1
            for counted, line in try_one(one, number, scratch):
                row["tries"] += 1
                for name, count in counted.items():
                    if (key := name.removeprefix("exit ")) in row:
                        row[key] += count
                file.write(line)
                file.flush()
            if number % 20 == 19:
                print(f"{number + 1} of {len(every)}", flush=True)
    for row in rows.values():
        print(*row.values(), sep="\t")
    if args.every == 1:
        _write(rows)
    sys.exit(any(row[name] for row in rows.values() for name in FAULTS))


if __name__ == "__main__":
    main()
