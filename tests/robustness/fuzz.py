"""Runs commands with random settings, arguments and texts; writes fuzz.csv.

Each command must exit with 0, 1, 2 or 3 within a minute and without a traceback; with exit code 2 it must print at
most three lines and change no files. Everything else is a fault: it is reported in faults.txt in the scratch folder,
with the shell command that repeats it, and the case's folder is kept. Settings that make a run long are limited.
"""

import argparse
import os
import random
import re
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from chargpt.config.raw_values import quote_value
from chargpt.sweeps.markdown import put, table
from chargpt.utils.csv_io import write_rows
from tests.robustness import fork_server
from tests.robustness.text_inputs import PROMPTS, TEXTS, TextInput

HERE = Path(__file__).parent
# Upper limits of settings whose large values are valid but make a run long.
LIMITS = {"trainer.max_steps": 50, "trainer.accumulate_grad_batches": 50, "callbacks.samples.max_new_tokens": 500}
LIMITS |= {"max_new_tokens": 500, "trainer.num_nodes": 1}
BASES = ["", "", "model=gpt_modern", "model=gpt_ensemble model.members=2", "model=bigram", "optimizer=sgd"]
BASES += ["optimizer=muon schedule=warmup_stable_decay", "optimizer=soap schedule=warmup_cosine"]
# Values of settings, most of them invalid.
WRONG = str.split("""
'' "" null true -1 0 1 3 0.5 -0.5 1e-308 1e308 -1e308 1e309 1000000000 1000000000000000000 -1000000000 nan inf
-inf 99999999999999999999999999999999999999999 0x10 1_000 [] [1] [null] [[]] [0.9,0.9] [-1,2] [nan,inf] [a,b] {}
{a:1} {_target_:os.system} {_target_:torch.nn.Linear} {_target_:torch.nn.GELU,_partial_:true}
chargpt.model.bigram.Bigram ß a,b ' " ( = a=b ~ @x ??? $ ${seed} ${nope} ${oc.env:HOME} ${oc.env:NOPE}
${hydra:runtime.cwd} ${oc.decode:1} ${model} ${.} ${} ${..} ${oc.create:{a:1}} ${now:%Y} ${oc.dict.keys:model}
${${name}} choice(1,2) range(1,3) glob(*) int(3.7) str(3) float(x) sort(3,2) shuffle(1,2) . ..
/ HERE/text.txt/x HERE/run auto never cpu
""")
WRONG += [
    "~nobody_at_all/x",
    os.fsdecode(b"\xff"),
    "",
    " ",
    "a b",
    "'🎭'",
    "'a\tb'",
    "\x01",
    "\x1b[31m",
    "\n",
    "😀" * 999,
    "x" * 300,
]
# Values of `_target_`: importable objects of another kind than expected, and names that do not exist.
TARGETS = str.split("""
torch.nn.Identity torch.nn.Linear torch.nn.GELU torch.nn.LayerNorm torch.nn.Module torch.nn torch.optim.Adam
torch.optim.LBFGS chargpt.model.bigram.Bigram chargpt.model.transformer.Block chargpt.data.tokenizer.CharTokenizer
chargpt.optim.adamw.adamw chargpt.optim.lr_schedule.Constant chargpt.model.position.Rotary os.makedirs nope
""")
FLAGS = str.split("""
--cfg --cfg=job --cfg=all --cfg=hydra --resolve --package=model --package=nope --help --info --info=all --info=nope
--hydra-help --version --config-dir=nowhere --config-dir=. --config-dir= --config-name=nope --config-name=sample
--config-path=nowhere --nope -x -- --shell-completion -sc=install=bash --experimental-rerun=nope -m -c -h
""")


@dataclass(frozen=True)
class Case:
    """One command line. `HERE` in its arguments is the case's folder, with `text.txt` and the finished run `run`."""

    kind: str
    command: str
    arguments: tuple[str, ...]
    text: TextInput | None = field(default=None, compare=False)


def draw(strategy: st.SearchStrategy, count: int, seed_number: int) -> list:
    """Returns at most `count` different examples, a function of the seed."""
    examples: dict = {}

    @seed(seed_number)
    @settings(
        max_examples=2 * count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: object) -> None:
        examples[case] = None

    collect()
    return list(examples)[:count]


def to_hydra(value: object) -> str:
    """Plain data in the grammar of Hydra's overrides."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote_value(key)}:{to_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_hydra, value)) + "]"
    return "null" if value is None else quote_value(value) if isinstance(value, str) else str(value).lower()


def values() -> st.SearchStrategy[str]:
    letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(letters, max_size=8)
    data = st.recursive(leaves, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(letters), c, max_size=3))
    invalid_utf8 = st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
    wrong = st.sampled_from(WRONG)
    return wrong | wrong | wrong | data.map(to_hydra) | st.text(letters, max_size=20) | invalid_utf8


def overrides(keys: list[str]) -> st.SearchStrategy[str]:
    prefix = st.sampled_from(["", "", "", "", "", "+", "++", "~"])
    other = st.sampled_from(["nope", "model.nope", "model.norm.nope", "callbacks.mine", ""])
    key = st.sampled_from(keys) if len(keys) < 20 else st.sampled_from(keys) | st.sampled_from(keys) | other
    return st.builds(lambda p, k, v: limited(p + k, v), prefix, key, values())


def limited(key: str, value: str) -> str:
    """`key=value`, with the value limited where a valid number would make a run long."""
    limit = LIMITS.get(key.lstrip("+"))
    try:
        too_large = limit is not None and float(value) > limit
    except ValueError:
        too_large = False
    return f"{key}={limit if too_large else value}"


def strategies(keys: list[str], groups: dict[str, list[str]]) -> dict[str, tuple[float, st.SearchStrategy[Case]]]:
    """For each kind of case: its share of all cases, and its strategy."""
    tiny = tuple(fork_server.tiny_run(Path("HERE/text.txt")))
    base = st.sampled_from(BASES).map(lambda more: tuple(_base_run(more, Path("HERE/text.txt"))))

    def train(kind: str, arguments: st.SearchStrategy, first: st.SearchStrategy = base) -> st.SearchStrategy[Case]:
        return st.builds(lambda b, a: Case(kind, "train", (*b, *_one_limit(a))), first, arguments.map(_listed))

    def command(name: str, keys: list[str], *first: str) -> st.SearchStrategy[Case]:
        arguments = st.lists(overrides(keys), min_size=1, max_size=3)
        return arguments.map(lambda a: Case(name, name, (*first, *a)))

    options = st.sampled_from([f"{g}={o}" for g, options in groups.items() for o in options])
    options |= st.builds("{}={}".format, st.sampled_from([*groups]), values())
    options = st.builds(str.__add__, st.sampled_from(["", "", "", "+", "++", "~"]), options)
    some_keys = st.lists(st.sampled_from(keys), min_size=2, max_size=3, unique=True)
    loops = some_keys.map(lambda some: [f"{a}=${{{b}}}" for a, b in zip(some, [*some[1:], some[0]], strict=True)])
    added = st.builds("+{}.{}".format, st.sampled_from(keys), overrides(["x"]))
    deleted_or_added = st.sampled_from(keys).map("~{}".format) | added
    target_keys = [key for key in keys if key.endswith("_target_")]
    targets = st.builds("{}={}".format, st.sampled_from(target_keys), st.sampled_from(TARGETS))
    hydra = ["hydra.run.dir", "hydra.job.name", "hydra.sweep.dir", "hydra/launcher", "hydra/sweeper", "hydra.nope"]
    flags = st.lists(st.sampled_from(FLAGS) | overrides(keys), min_size=1, max_size=3)
    run = "run=HERE/run"
    commands = [("train", tiny), ("compare", ("runs=HERE/run",))]
    commands += [(name, (run,)) for name in ("sample", "evaluate", "visualize", "export")]
    sweeps = st.lists(st.builds("{},{}".format, overrides(keys), values()), min_size=1, max_size=2)
    device = ["device", "run"]
    visualize, compare = ["text", "folder", *device], ["runs", "folder"]
    sample = ["prompt", "temperature", "top_k", "top_p", "num_samples", "seed", "window", "quantize"]
    sample += ["cuda_graph", *device]
    evaluate = ["split", "data", "data.path", "data.validation_tokens", *device]
    resume = st.just(("resume=HERE/run",))
    readers = st.sampled_from(["train", "train", "evaluate"])
    return {
        "one setting": (0.28, train("one setting", overrides(keys))),
        "several settings": (0.1, train("several settings", st.lists(overrides(keys), min_size=2, max_size=4))),
        "targets": (0.06, train("targets", targets)),
        "config groups": (0.1, train("config groups", st.lists(options, min_size=1, max_size=2))),
        "deleted or added": (0.04, train("deleted or added", deleted_or_added)),
        "interpolation loops": (0.03, train("interpolation loops", loops)),
        "hydra settings": (0.03, train("hydra settings", overrides(hydra))),
        "resume": (0.08, train("resume", st.lists(overrides(keys), min_size=1, max_size=2), resume)),
        "flags": (0.03, st.builds(lambda c, f: Case("flags", c[0], (*c[1], *f)), st.sampled_from(commands), flags)),
        "sweeps": (0.01, train("sweeps", sweeps, st.just(("-m", *tiny)))),
        "sample": (0.07, command("sample", [*sample, "max_new_tokens"], run, "max_new_tokens=20")),
        "evaluate": (0.03, command("evaluate", evaluate, run)),
        "visualize": (0.02, command("visualize", visualize, run)),
        "export": (0.02, command("export", ["run", "file"], run)),
        "compare": (0.02, command("compare", compare, "runs=HERE/run")),
        "prompts": (0.03, st.sampled_from(PROMPTS).flatmap(_prompt_case)),
        "texts": (0.05, st.builds(lambda c, t: _text_case(c, t, tiny), readers, st.sampled_from(TEXTS))),
    }


def _base_run(more: str, text: Path) -> list[str]:
    """The overrides of a valid tiny run."""
    result = [*fork_server.tiny_run(text), *more.split()]
    # Settings that a bigram model does not have.
    absent = ("model.n_", "model.dropout") if "model=bigram" in result else ()
    return [override for override in result if not override.startswith(absent)] if absent else result


def _listed(arguments: str | list[str]) -> list[str]:
    return [arguments] if isinstance(arguments, str) else arguments


def _one_limit(arguments: list[str]) -> list[str]:
    """Keeps the first `trainer.max_*` only: two valid ones together can make a run endless."""
    limits = [a for a in arguments if re.match(r"\+*trainer\.max_", a)]
    return [a for a in arguments if a not in limits[1:]]


def _prompt_case(text: TextInput) -> st.SearchStrategy[Case]:
    setting = st.sampled_from([("sample", "prompt"), ("visualize", "text")])
    return setting.map(lambda s: Case("prompts", s[0], ("run=HERE/run", f"{s[1]}={text.value('@')}"), text))


def _text_case(command: str, text: TextInput, tiny: tuple[str, ...]) -> Case:
    arguments = tiny if command == "train" else ("run=HERE/run", "data=text_file")
    small_split = ("data.train_fraction=0.9999",) if text.large else ()
    return Case("texts", command, (*arguments, *small_split, f"data.path={text.value('')}"), text)


def find_faults(outcome: fork_server.Outcome, changed: list[str]) -> list[str]:
    if outcome.code is None:
        return [f"timeout after {outcome.seconds:.0f} s"]
    lines = outcome.err.splitlines()
    faults = []
    if "Traceback (most recent call last)" in outcome.err:
        faults.append("traceback: " + next((line for line in reversed(lines) if line.strip()), ""))
    if outcome.code not in fork_server.CODES:
        faults.append(f"exit code {outcome.code}")
    if outcome.code == 2 and len(lines) > 3:
        faults.append(f"{len(lines)} lines for a user error")
    if outcome.code == 2 and changed:
        faults.append(f"changed files: {', '.join(changed[:3])}")
    if outcome.code in (1, 2) and not outcome.err.strip():
        faults.append("no error message")
    return faults


def draw_cases(count: int, seed_number: int, kinds: list[str], scratch: Path) -> list[Case]:
    keys, groups = set(), {}
    for more in BASES:
        arguments = [*_base_run(more, scratch / "text.txt"), "--cfg", "job"]
        keys |= {*_all_keys(yaml.safe_load(fork_server.run("train", arguments, scratch).out))}
    conf = fork_server.ROOT / "conf"
    for file in sorted(conf.rglob("*.yaml")):
        group = file.parent.relative_to(conf).as_posix()
        if group != ".":
            groups.setdefault(group, []).append(file.stem)
    cases = []
    for i, (kind, (share, strategy)) in enumerate(strategies(sorted(keys), groups).items()):
        if not kinds or kind in kinds:
            cases += draw(strategy, max(1, round(share * count)), seed_number * 100 + i)
    random.Random(seed_number).shuffle(cases)  # so that the first hundred contain all kinds
    return cases


def _all_keys(config: object, prefix: str = "") -> list[str]:
    if not isinstance(config, dict):
        return []
    return [n for k, v in config.items() for n in (f"{prefix}{k}", *_all_keys(v, f"{prefix}{k}."))]


def run_case(case: Case, folder: Path, source: Path) -> tuple[fork_server.Outcome, list[str], list[str]]:
    """Returns the outcome, the faults and the arguments of a case."""
    fork_server.empty_folder(folder)
    shutil.copyfile(source / "text.txt", folder / "text.txt")
    shutil.copytree(source / "run", folder / "run")
    arguments = [argument.replace("HERE", str(folder)) for argument in case.arguments]
    interference = None
    if text := case.text:
        if text.create:
            text.create(folder / text.name)
        if text.interfere:
            interference = partial(text.interfere, folder / text.name)
    before = fork_server.file_digests(folder)
    # Child processes of a command import everything again.
    several = any(".devices" in argument or argument == "-m" for argument in arguments)
    timeout = fork_server.TIMEOUT * (5 if several else 1)
    outcome = fork_server.run(case.command, arguments, folder, interference, timeout, HOME=str(folder))
    changed = [] if interference else fork_server.changed_files(before, fork_server.file_digests(folder))
    return outcome, find_faults(outcome, changed), arguments


def main(args: argparse.Namespace) -> int:
    fork_server.start()
    scratch = fork_server.empty_folder(args.scratch.absolute())
    fork_server.make_run(scratch)
    cases = draw_cases(args.cases, args.seed, [k for k in args.kinds.split(",") if k], scratch)
    rows = {c.kind: {"kind": c.kind, "cases": 0, "0": 0, "1": 0, "2": 0, "3": 0, "faults": 0} for c in cases}
    with (scratch / "faults.txt").open("w", errors="backslashreplace") as file:
        for number, case in enumerate(cases):
            folder = scratch / f"{number:05d}"
            outcome, faults, arguments = run_case(case, folder, scratch)
            row = rows[case.kind]
            row["cases"] += 1
            row["faults"] += bool(faults)
            if str(outcome.code) in row:
                row[str(outcome.code)] += 1
            if faults:
                end = "\n    ".join(outcome.err.splitlines()[-12:])
                line = fork_server.shell_line(case.command, arguments, folder)
                file.write(f"{case.kind}: {'; '.join(faults)}\n  {line[:5000]}\n    {end}\n\n")
                file.flush()
            else:
                fork_server.empty_folder(folder).rmdir()
            if number % 50 == 49:
                print(f"{number + 1} of {len(cases)}: {sum(r['faults'] for r in rows.values())} faults", flush=True)
    for row in rows.values():
        print(*row.values(), sep="\t")
    if not args.kinds:
        write_rows(HERE / "fuzz.csv", [*rows.values()])
        lines = [{name: str(value) for name, value in row.items()} for row in rows.values()]
        put(HERE / "README.md", "fuzz", table(lines))
    return int(any(row["faults"] for row in rows.values()))
