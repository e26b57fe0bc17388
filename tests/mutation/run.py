"""Would a wrong change be noticed? A sample of small wrong changes, each tried by the tests of its module.

python tests/mutation/run.py [--size 300] [--seed 0] [--jobs 2] [--only PART] [--limit N] [--store]

A process that has loaded the libraries, and nothing of the package, is forked for each mutant: the mutant is
imported instead of its module, nothing on disk changes, and no mutant pays for importing PyTorch. (mutmut and
cosmic-ray are kept tools. But mutmut wraps what it changes and changes nothing outside functions, cosmic-ray
starts Python anew for each mutant, and neither draws a sample stratified by module.) What has been tried is
kept in `_build/mutation`: a run that was ended goes on, and when tests change only survivors are tried anew.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from tests.mutation.mutants import Mutant, mutants_of, mutated, sample  # noqa: E402

PACKAGE = ROOT / "handbook_utils"
WORK = ROOT / "_build" / "mutation"
STORE = ROOT / "book" / "results" / "mutation.json"
# "MODULE: BEFORE -> AFTER in LINE": why nobody could see that change
EQUIVALENT = Path(__file__).with_name("equivalent.json")
# what is changed, and the tests that have to notice it, quick ones first
TESTS: dict[str, list[str]] = {
    "evaluation/judged/": ["test_judged", "test_estimators_held", "test_selection_held"],
    "evaluation/reward/": ["test_reward_report_held", "test_reward_report"],
    "evaluation/power": ["test_power", "test_estimators_held"],
    "evaluation/two_level": ["test_judged"],
    "evaluation/agreement": ["test_agreement"],
    "evaluation/coverage": ["test_coverage", "test_estimators_held", "test_statistics", "test_win_rate"],
    "evaluation/": [
        *("test_statistics", "test_win_rate", "test_best_of_n", "test_kl", "test_evaluation_held"),
        *("test_estimators_held", "test_reward_report_held", "test_selection_held", "test_coverage"),
    ],
    "sampling/selection/": [
        "test_selection_held",
        "test_sampling_choose",
        "test_sampling_select",
        "test_sampling_select_stage",
    ],
    "shared_prefix/answers": ["test_online"],
    "shared_prefix/batching": ["test_length_batches", "test_training_together"],
    "shared_prefix/": ["test_shared_prefix", "test_training_together"],
    "chat/loss_masks": [
        *(
            "test_chat_loss_masks",
            "test_loss_masks_held",
            "test_training_rows",
            "test_chat_packaged_templates",
        ),
    ],
    "pipeline/compare": ["test_selection_held", "test_pipeline_measures", "test_reporting_report"],
    "pipeline/evaluate": ["test_selection_held", "test_pipeline_measures", "test_rounds"],
}
EXAMPLES = "tests/unit/test_doctests.py::test_examples_are_true"
LIBRARIES = ("torch", "transformers", "datasets", "pyarrow.parquet", "scipy.stats")  # no plugin of pytest
# CPU time, so that a busy machine ends no mutant early; one that waits for ever ends by the clock
SHORTEST_LIMIT_S, PATIENCE = 60.0, 20
CAUGHT, LIVED, OVERTIME = "killed", "survived", "timeout"
Record = dict[str, Any]


def main() -> None:
    """Try a sample, or what is left of it; end with the score and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=300, help="Mutants to try, at least.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the sample.")
    parser.add_argument("--jobs", type=int, default=2, help="Mutants tried at once.")
    parser.add_argument("--only", default="", help="Only modules with this in their path; nothing is stored.")
    parser.add_argument("--limit", type=int, help="Only so many of the sample; nothing is stored.")
    parser.add_argument("--store", action="store_true", help="Write book/results/mutation.json.")
    asked = parser.parse_args()
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in modules()}
    found = {name: mutants_of(text, name) for name, text in sources.items() if asked.only in name}
    drawn = sample(found, asked.size, asked.seed)
    step = max(1, len(drawn) // asked.limit) if asked.limit else 1
    drawn = drawn[::step][: asked.limit]
    print(f"{len(drawn)} of {sum(map(len, found.values()))} mutants in {len(found)} modules", flush=True)
    records = try_all(drawn, sources, asked.jobs)
    summary = summary_of(records, {name: len(each) for name, each in found.items()}, asked.seed)
    print("\n" + table(summary))
    if asked.store and not asked.only and not asked.limit:
        STORE.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        print(f"stored in {STORE.relative_to(ROOT)}")


def modules() -> list[Path]:
    """The files that are changed."""
    found = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]
    return [path for path in found if assigned_tests(str(path.relative_to(ROOT)))]


def assigned_tests(module: str) -> list[str]:
    """What has to notice a change of a module, its own examples included; nothing where it is not changed."""
    name = module.removeprefix("handbook_utils/")
    stems = next((tests for start, tests in TESTS.items() if name.startswith(start)), [])
    files = [f"tests/unit/{stem}.py" for stem in stems]
    if files and ">>>" in (ROOT / module).read_text(encoding="utf-8"):
        files.append(f"{EXAMPLES}[{module.removesuffix('.py').replace('/', '.')}]")
    return files


def try_all(drawn: Sequence[Mutant], sources: dict[str, str], jobs: int) -> list[Record]:
    """Try what was not tried yet, `jobs` at once; records in the order of the sample."""
    WORK.mkdir(parents=True, exist_ok=True)
    _load_libraries()
    known = _known(sources)
    missing = [mutant for mutant in drawn if mutant.name not in known]
    limits = _limits({mutant.module for mutant in missing})
    for number, record in enumerate(_tried(missing, sources, limits, jobs), 1):
        known[record["name"]] = record
        with (WORK / "tried.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        print(f"{number}/{len(missing)} {record['outcome']:<8} {record['place']}", flush=True)
    return [known[mutant.name] for mutant in drawn]


def _known(sources: dict[str, str]) -> dict[str, Record]:
    """What was tried with modules as they are now; survivors count only with tests as they are now."""
    journal = WORK / "tried.jsonl"
    known: dict[str, Record] = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # what a kill cut short
            continue
        module = record["module"]
        same = record["source"] == _digest(sources.get(module, ""))
        record["line"] = _line(sources.get(module, ""), record["place"])
        if same and (record["outcome"] != LIVED or record["tests"] == _tests_digest(module)):
            known[record["name"]] = record
    return known


def _line(source: str, place: str) -> str:
    """The line of a source that a mutant's place ends with."""
    lines, number = source.splitlines(), int(place.rpartition(":")[2])
    return lines[number - 1].strip() if number <= len(lines) else ""


def _tried(
    mutants: Sequence[Mutant], sources: dict[str, str], limits: dict[str, float], jobs: int
) -> Iterator[Record]:
    waiting, running = list(mutants), dict[int, tuple[Mutant, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            code = compile(mutated(sources[mutant.module], mutant), mutant.module, "exec")
            running[_start(mutant.module, code, mutant.name)] = mutant, time.monotonic()
        time.sleep(0.05)
        for child, (mutant, began) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            limit = limits[mutant.module]
            late = not ended and (_cpu_seconds(child) > limit or time.monotonic() - began > PATIENCE * limit)
            if late:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            if ended or late:
                del running[child]
                yield _record(mutant, sources, OVERTIME if not ended else _outcome(status), began)


def _record(mutant: Mutant, sources: dict[str, str], outcome: str, began: float) -> Record:
    by = _told(mutant.name)
    return {
        "name": mutant.name,
        "module": mutant.module,
        "place": f"{mutant.module}:{mutant.line}",
        "line": _line(sources[mutant.module], f":{mutant.line}"),
        "operator": mutant.operator,
        "before": mutant.before,
        "after": mutant.after,
        "outcome": outcome,
        "by": by.read_text(encoding="utf-8") if outcome == CAUGHT and by.exists() else None,
        "seconds": round(time.monotonic() - began, 1),
        "source": _digest(sources[mutant.module]),
        "tests": _tests_digest(mutant.module),
    }


def _limits(changed: set[str]) -> dict[str, float]:
    """CPU seconds that a mutant of each module has: five times what its tests take, which pass without it."""
    took: dict[str, float] = {}
    limits: dict[str, float] = {}
    for module in sorted(changed):
        files = " ".join(name for name in assigned_tests(module) if "::" not in name)
        if files not in took:
            _, status, used = os.wait4(_start(module, None, "unchanged"), 0)
            if _outcome(status) != LIVED:
                sys.exit(f"without any change these tests fail: {files} (see {WORK / 'unchanged.txt'})")
            took[files] = used.ru_utime + used.ru_stime
            print(f"unchanged: {took[files]:.0f} CPU s for {files}", flush=True)
        limits[module] = max(SHORTEST_LIMIT_S, 5 * took[files])
    return limits


def _cpu_seconds(child: int) -> float:
    """What a process and those it has waited for have used; 0 once it is gone."""
    try:
        used = psutil.Process(child).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(used.user + used.system + used.children_user + used.children_system)


def _outcome(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == 5:
        sys.exit("no tests were found")
    return LIVED if code == 0 else CAUGHT  # a crash is noticed, too


def _start(module: str, code: CodeType | None, name: str) -> int:
    """Fork a process that runs a module's tests with other code in its place; None: with its own."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.setsid()
    status = 70
    try:
        with (WORK / f"{'unchanged' if code is None else 'last'}.txt").open("w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if code is not None:
            dotted = module.removesuffix(".py").replace("/", ".")
            sys.meta_path.insert(0, _Instead(dotted, ROOT / module, code))
        status = _run_tests(module, _told(name))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_tests(module: str, told: Path) -> int:
    import pytest

    class FirstFailure:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed and not told.exists():
                told.write_text(report.nodeid, encoding="utf-8")

    told.unlink(missing_ok=True)
    # pytest cannot rewrite the asserts of plugins that the libraries have imported already
    options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "--hypothesis-seed=0"]
    return int(pytest.main([*options, *assigned_tests(module)], plugins=[FirstFailure()]))


class _Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module the code of its mutant."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._path, loader=self)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, vars(module))


def _load_libraries() -> None:
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in LIBRARIES:
        importlib.import_module(name)
    assert not any(name.startswith("handbook_utils") for name in sys.modules), "a mutant would come too late"


def summary_of(records: Sequence[Record], sizes: dict[str, int], seed: int) -> dict[str, Any]:
    """The score with its Wilson interval, by module, and every survivor; equivalent ones count as such."""
    from handbook_utils.evaluation.statistics import proportion_estimate

    explained = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    noticed = sum(record["outcome"] != LIVED for record in records)
    by_module = {}
    for module in sorted({record["module"] for record in records}):
        own = [record["outcome"] != LIVED for record in records if record["module"] == module]
        by_module[module] = {"mutants": sizes[module], "tried": len(own), "noticed": sum(own)}
    survivors = [
        {key: record[key] for key in ("place", "operator", "before", "after")}
        | {"equivalent": explained.get(_change(record))}
        for record in records
        if record["outcome"] == LIVED
    ]
    score = proportion_estimate(noticed, len(records)).to_json()
    timeouts = sum(record["outcome"] == OVERTIME for record in records)
    counts = {"seed": seed, "tried": len(records), "noticed": noticed, "timeouts": timeouts}
    return {**counts, "score": score, "modules": by_module, "survivors": survivors}


def _change(record: Record) -> str:
    return f"{record['module']}: {record['before']} -> {record['after']} in {record['line']}"


def table(summary: dict[str, Any]) -> str:
    """The score by module, then the survivors."""
    lines = [f"{'module':<52} noticed of tried"]
    for module, counts in summary["modules"].items():
        lines.append(f"{module:<52} {counts['noticed']:>7} of {counts['tried']}")
    for survivor in summary["survivors"]:
        why = f" (equivalent: {survivor['equivalent']})" if survivor["equivalent"] else ""
        change = f"{survivor['before']}  ->  {survivor['after']}"
        lines.append(f"survived: {survivor['place']} {survivor['operator']}: {change}{why}")
    score = summary["score"]
    lines.append(
        f"{summary['noticed']} of {summary['tried']} noticed: {score['value']:.1%} "
        f"[{score['low']:.1%}, {score['high']:.1%}] (Wilson, {score['level']:.0%})"
    )
    return "\n".join(lines)


def _told(name: str) -> Path:
    return WORK / f"by-{hashlib.sha256(name.encode()).hexdigest()[:16]}.txt"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tests_digest(module: str) -> str:
    files = [name.partition("::")[0] for name in assigned_tests(module)]
    return _digest("".join((ROOT / file).read_text(encoding="utf-8") for file in files))


if __name__ == "__main__":
    main()
