"""Thousands of wrong settings, words and texts against the verbs; writes fuzz.csv.

    python experiments/torture/fuzz.py                       # 2,000 cases, most of an hour on a core
    python experiments/torture/fuzz.py --cases 50 --seed 1 --kinds texts,prompts

Whatever is asked, a verb ends with 0, 1, 2 or 3, within a minute and without a traceback; with 2 in at most three
lines, and nothing is left behind. All else is a fault, and stands in faults.txt in the scratch folder with the
command that shows it; the case's own folder stays. Settings that make a run long are kept short.
"""

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import forks
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from texts import PROMPTS, TEXTS, Text

from chargpt.config.overrides import quote_value
from chargpt.sweeps.markdown import put, table
from chargpt.utils.csv_io import write_rows

HERE = Path(__file__).parent
# Legal numbers that only make a run long, and the most of them that is tried.
LONG = {"trainer.max_steps": 50, "trainer.accumulate_grad_batches": 50, "callbacks.samples.max_new_tokens": 500}
LONG |= {"max_new_tokens": 500, "trainer.num_nodes": 1}
BASES = ["", "", "model=gpt_modern", "model=gpt_ensemble model.members=2", "model=bigram", "optimizer=sgd"]
BASES += ["optimizer=muon schedule=warmup_stable_decay", "optimizer=soap schedule=warmup_cosine"]
# What is typed behind the equals sign.
WRONG = str.split("""
'' "" null true -1 0 1 3 0.5 -0.5 1e-308 1e308 -1e308 1e309 1000000000 1000000000000000000 -1000000000 nan inf
-inf 99999999999999999999999999999999999999999 0x10 1_000 [] [1] [null] [[]] [0.9,0.9] [-1,2] [nan,inf] [a,b] {}
{a:1} {_target_:os.system} {_target_:torch.nn.Linear} {_target_:torch.nn.GELU,_partial_:true}
chargpt.model.bigram.Bigram ß a,b ' " ( = a=b ~ @x ??? $ ${seed} ${nope} ${oc.env:HOME} ${oc.env:NOPE}
${hydra:runtime.cwd} ${oc.decode:1} ${model} ${.} ${} ${..} ${oc.create:{a:1}} ${now:%Y} ${oc.dict.keys:model}
${${name}} choice(1,2) range(1,3) glob(*) int(3.7) str(3) float(x) sort(3,2) shuffle(1,2) /dev/null /dev/full . ..
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
# In a part's place: what may be built and is no such part, and what may not.
PARTS = str.split("""
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
    """One command. In its words HERE stands for its folder, which holds `text.txt` and the finished run `run`."""

    kind: str
    verb: str
    words: tuple[str, ...]
    text: Text | None = field(default=None, compare=False)


def draw(strategy: st.SearchStrategy, count: int, number: int) -> list:
    """So many different draws, the same for the same number."""
    found: dict = {}

    @seed(number)
    @settings(
        max_examples=2 * count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(case: object) -> None:
        found[case] = None

    keep()
    return list(found)[:count]


def typed(value: object) -> str:
    """Plain data as Hydra's grammar writes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote_value(key)}:{typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(typed, value)) + "]"
    return "null" if value is None else quote_value(value) if isinstance(value, str) else str(value).lower()


def values() -> st.SearchStrategy[str]:
    letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(letters, max_size=8)
    data = st.recursive(leaves, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(letters), c, max_size=3))
    broken = st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
    wrong = st.sampled_from(WRONG)
    return wrong | wrong | wrong | data.map(typed) | st.text(letters, max_size=20) | broken


def word(keys: list[str]) -> st.SearchStrategy[str]:
    sign = st.sampled_from(["", "", "", "", "", "+", "++", "~"])
    other = st.sampled_from(["nope", "model.nope", "model.norm.nope", "trainer.fast_dev_run", "callbacks.mine", ""])
    key = st.sampled_from(keys) if len(keys) < 20 else st.sampled_from(keys) | st.sampled_from(keys) | other
    return st.builds(lambda s, k, v: short(s + k, v), sign, key, values())


def short(key: str, value: str) -> str:
    """`key=value`, but for a number that is legal and would keep a run busy."""
    most = LONG.get(key.lstrip("+"))
    try:
        large = most is not None and float(value) > most
    except ValueError:
        large = False
    return f"{key}={most if large else value}"


def strategies(keys: list[str], groups: dict[str, list[str]]) -> dict[str, tuple[float, st.SearchStrategy[Case]]]:
    """Of each kind of case its share, and how one is drawn."""
    tiny = tuple(forks.tiny(Path("HERE/text.txt")))
    base = st.sampled_from(BASES).map(lambda more: tuple(_on(more, Path("HERE/text.txt"))))

    def train(kind: str, words: st.SearchStrategy, first: st.SearchStrategy = base) -> st.SearchStrategy[Case]:
        return st.builds(lambda b, w: Case(kind, "train", (*b, *_one_end(w))), first, words.map(_listed))

    def verb(name: str, some: list[str], *first: str) -> st.SearchStrategy[Case]:
        words = st.lists(word(some), min_size=1, max_size=3)
        return words.map(lambda w: Case(name, name, (*first, *w)))

    choices = st.sampled_from([f"{g}={o}" for g, options in groups.items() for o in options])
    choices |= st.builds("{}={}".format, st.sampled_from([*groups]), values())
    choices = st.builds(str.__add__, st.sampled_from(["", "", "", "+", "++", "~"]), choices)
    pairs = st.lists(st.sampled_from(keys), min_size=2, max_size=3, unique=True)
    loops = pairs.map(lambda some: [f"{a}=${{{b}}}" for a, b in zip(some, [*some[1:], some[0]], strict=True)])
    deleted = st.sampled_from(keys).map("~{}".format) | st.builds("+{}.{}".format, st.sampled_from(keys), word(["x"]))
    targets = [key for key in keys if key.endswith("_target_")]
    parts = st.builds("{}={}".format, st.sampled_from(targets), st.sampled_from(PARTS))
    hydra = ["hydra.run.dir", "hydra.job.name", "hydra.sweep.dir", "hydra/launcher", "hydra/sweeper", "hydra.nope"]
    flags = st.lists(st.sampled_from(FLAGS) | word(keys), min_size=1, max_size=3)
    run = "run=HERE/run"
    named = [("train", tiny), ("compare", ("runs=HERE/run",))]
    named += [(verb, (run,)) for verb in ("sample", "evaluate", "visualize", "export")]
    sweeps = st.lists(st.builds("{},{}".format, word(keys), values()), min_size=1, max_size=2)
    device = ["device", "run"]
    look, compare = ["text", "folder", *device], ["runs", "folder"]
    sample = ["prompt", "temperature", "top_k", "top_p", "num_samples", "seed", "window", "quantize"]
    sample += ["cuda_graph", *device]
    resumed = st.just(("resume=HERE/run",))
    here = st.sampled_from(["train", "train", "evaluate"])
    return {
        "one setting": (0.28, train("one setting", word(keys))),
        "several settings": (0.1, train("several settings", st.lists(word(keys), min_size=2, max_size=4))),
        "parts": (0.06, train("parts", parts)),
        "choices": (0.1, train("choices", st.lists(choices, min_size=1, max_size=2))),
        "left out and added": (0.04, train("left out and added", deleted)),
        "interpolation loops": (0.03, train("interpolation loops", loops)),
        "hydra's settings": (0.03, train("hydra's settings", word(hydra))),
        "going on": (0.08, train("going on", st.lists(word(keys), min_size=1, max_size=2), resumed)),
        "flags": (0.03, st.builds(lambda v, w: Case("flags", v[0], (*v[1], *w)), st.sampled_from(named), flags)),
        "sweeps": (0.01, train("sweeps", sweeps, st.just(("-m", *tiny)))),
        "sample": (0.07, verb("sample", [*sample, "max_new_tokens"], run, "max_new_tokens=20")),
        "evaluate": (
            0.03,
            verb("evaluate", ["split", "data", "data.path", "data.validation_tokens", *device], run),
        ),
        "visualize": (0.02, verb("visualize", look, run)),
        "export": (0.02, verb("export", ["run", "file"], run)),
        "compare": (0.02, verb("compare", compare, "runs=HERE/run")),
        "prompts": (0.03, st.sampled_from(PROMPTS).flatmap(_prompted)),
        "texts": (0.05, st.builds(lambda v, t: _on_text(v, t, tiny), here, st.sampled_from(TEXTS))),
    }


def _on(more: str, text: Path) -> list[str]:
    """The words of a valid tiny run of a kind."""
    words = [*forks.tiny(text), *more.split()]
    absent = ("model.n_", "model.dropout") if "model=bigram" in words else ()
    return [word for word in words if not word.startswith(absent)] if absent else words


def _listed(words: str | list[str]) -> list[str]:
    return [words] if isinstance(words, str) else words


def _one_end(words: list[str]) -> list[str]:
    """Of several words about a run's end the first: two legal ones together may put it off for ever."""
    ends = [w for w in words if re.match(r"\+*trainer\.max_", w)]
    return [w for w in words if w not in ends[1:]]


def _prompted(text: Text) -> st.SearchStrategy[Case]:
    setting = st.sampled_from([("sample", "prompt"), ("visualize", "text")])
    return setting.map(lambda s: Case("prompts", s[0], ("run=HERE/run", f"{s[1]}={text.word('@')}"), text))


def _on_text(verb: str, text: Text, tiny: tuple[str, ...]) -> Case:
    words = tiny if verb == "train" else ("run=HERE/run", "data=text_file")
    most = ("data.train_fraction=0.9999",) if text.large else ()
    return Case("texts", verb, (*words, *most, f"data.path={text.word('')}"), text)


def faults_of(case: Case, done: forks.Outcome, before: dict[str, str], after: dict[str, str]) -> list[str]:
    found = []
    if done.code is None:
        return [f"hang: not done after {done.seconds:.0f} s"]
    if "Traceback (most recent call last)" in done.err:
        found.append("traceback: " + next((x for x in reversed(done.err.splitlines()) if x.strip()), ""))
    if done.code not in forks.CODES:
        found.append(f"exit code {done.code}")
    if done.code == 2:
        if len(done.err.splitlines()) > 3:
            found.append(f"{len(done.err.splitlines())} lines for a mistake")
        if changed := sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p)):
            found.append(f"left behind: {', '.join(changed[:3])}")
    if done.code in (1, 2) and not done.err.strip():
        found.append("nothing was said")
    return found


def cases(count: int, number: int, kinds: list[str], scratch: Path) -> list[Case]:
    keys, groups = set(), {}
    for more in BASES:
        words = [*_on(more, scratch / "text.txt"), "--cfg", "job"]
        keys |= {*_leaves(yaml.safe_load(forks.run("train", words, scratch).out))}
    for file in sorted((forks.ROOT / "conf").rglob("*.yaml")):
        group = file.parent.relative_to(forks.ROOT / "conf").as_posix()
        if group != ".":
            groups.setdefault(group, []).append(file.stem)
    found = []
    for i, (kind, (share, strategy)) in enumerate(strategies(sorted(keys), groups).items()):
        if not kinds or kind in kinds:
            found += draw(strategy, max(1, round(share * count)), number * 100 + i)
    random.Random(number).shuffle(found)  # so that the first hundred are of all kinds
    return found


def _leaves(config: object, prefix: str = "") -> list[str]:
    if not isinstance(config, dict):
        return []
    return [n for k, v in config.items() for n in (f"{prefix}{k}", *_leaves(v, f"{prefix}{k}."))]


def try_one(case: Case, folder: Path, source: Path) -> tuple[forks.Outcome, list[str], list[str]]:
    """How it ended, its faults, and its words."""
    forks.fresh(folder)
    shutil.copyfile(source / "text.txt", folder / "text.txt")
    shutil.copytree(source / "run", folder / "run")
    words = [word.replace("HERE", str(folder)) for word in case.words]
    meanwhile: Callable[[], None] | None = None
    if case.text:
        case.text.make(folder)
        meanwhile = case.text.meanwhile and (lambda: case.text.meanwhile(folder / case.text.name))
    before = forks.tree(folder)
    several = any(".devices" in word or word == "-m" for word in words)  # processes that import everything anew
    done = forks.run(case.verb, words, folder, meanwhile, forks.TIMEOUT * (5 if several else 1), HOME=str(folder))
    after = before if meanwhile else forks.tree(folder)
    return done, faults_of(case, done, before, after), words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="some of them, with commas; then fuzz.csv is left as it is")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "chargpt-fuzz")
    args = parser.parse_args()
    forks.warm()
    scratch = forks.fresh(args.scratch.absolute())
    forks.make_run(scratch)
    wanted = cases(args.cases, args.seed, [k for k in args.kinds.split(",") if k], scratch)
    rows = {c.kind: {"kind": c.kind, "cases": 0, "0": 0, "1": 0, "2": 0, "3": 0, "faults": 0} for c in wanted}
    with (scratch / "faults.txt").open("w", errors="backslashreplace") as file:
        for number, case in enumerate(wanted):
            folder = scratch / f"{number:05d}"
            done, faults, words = try_one(case, folder, scratch)
            row = rows[case.kind]
            row["cases"] += 1
            row["faults"] += bool(faults)
            if str(done.code) in row:
                row[str(done.code)] += 1
            if faults:
                end = "\n    ".join(done.err.splitlines()[-12:])
                line = forks.command(case.verb, words, folder)
                file.write(f"{case.kind}: {'; '.join(faults)}\n  {line[:5000]}\n    {end}\n\n")
                file.flush()
            else:
                forks.fresh(folder).rmdir()
            if number % 50 == 49:
                print(f"{number + 1} of {len(wanted)}: {sum(r['faults'] for r in rows.values())} faults", flush=True)
    for row in rows.values():
        print(*row.values(), sep="\t")
    if not args.kinds:
        write_rows(HERE / "fuzz.csv", [*rows.values()])
        lines = [{name: str(value) for name, value in row.items()} for row in rows.values()]
        put(HERE / "README.md", "fuzz", table(lines))
    sys.exit(any(row["faults"] for row in rows.values()))


if __name__ == "__main__":
    main()
