"""Shards: killed anywhere, made by any number of processes, a run ends with the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from handbook_utils.data.load import load_dataset
from handbook_utils.data.mixture import LeftOutPromptsWarning
from handbook_utils.data.prompts import LeftOut
from handbook_utils.errors import DataError, ModelError, RunFolderError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.records import Completion
from handbook_utils.runs.folder import open_run, read_result
from handbook_utils.runs.state import read_manifest
from handbook_utils.sampling.dry_run import plan_sampling
from handbook_utils.sampling.execution import parts, shards
from handbook_utils.sampling.execution.parts import make_shards
from handbook_utils.sampling.execution.shards import ShardLock, cut_shards, keep_whole, read_plan, write_proof
from handbook_utils.sampling.generation.engines.interface import Answers, Prompt, SamplingSettings
from handbook_utils.schema.stages import GenerateRecipe
from tests.waiting import wait_for

pytestmark = [
    # two dozen prompts are too few for an interval to rely on, and the figures say so
    pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
PROMPTS, SIZE, SAMPLES = 22, 4, 3
TEXTS = [f"question {row}" for row in range(PROMPTS)]


class HashEngine:
    """Answers that follow from the prompt's id alone, at no cost."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.asked: list[int] = []

    def answer(self, prompts: Sequence[Prompt], settings: SamplingSettings, *, progress: Any = None):
        self.asked.append(len(prompts))
        time.sleep(self.pause_s)
        return Answers([one for prompt in prompts for one in answers_to(prompt, settings.samples)])


def answers_to(prompt: Prompt, samples: int) -> list[Completion]:
    words = [hashlib.sha256(f"{prompt[0]} {index}".encode()).hexdigest() for index in range(samples)]
    ends = ["length" if word < "3" else "stop" for word in words]
    return [
        Completion(prompt[0], index, prompt[1], word, len(word.split("a")), end, -1.0)
        for index, (word, end) in enumerate(zip(words, ends, strict=True))
    ]


@pytest.fixture
def engine(monkeypatch) -> HashEngine:
    engine = HashEngine()
    monkeypatch.setattr(parts, "load_engine", lambda *_: engine)
    return engine


@pytest.fixture
def recipe(tmp_path) -> GenerateRecipe:
    return recipe_of(tmp_path, TEXTS)


def recipe_of(folder: Path, texts: Sequence[str], **changes: Any) -> GenerateRecipe:
    rows = [{"prompt": text, "prompt_id": f"p{number}"} for number, text in enumerate(texts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    content = {
        "stage": "generate",
        "model": {"name": "none"},
        "data": [{"name": str(folder / "prompts.jsonl")}],
        "samples": SAMPLES,
        "prompts_per_part": SIZE,
    }
    return GenerateRecipe(**{**content, **changes})


def run(recipe: GenerateRecipe, folder: Path) -> Any:
    return run_stage(recipe, folder, progress=False)


def content(folder: Path) -> dict[str, bytes]:
    """All that a run leaves of samples; nothing but that may be left."""
    kept = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).parts[0] in ("samples", "shards.json")
    }
    assert len(kept) == 7
    assert not {shards.PLAN, shards.PLAN_PROMPTS, shards.JOURNAL, shards.LOCKS} & set(os.listdir(folder))
    return kept


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "load_engine", lambda *_: HashEngine())
        run(recipe_of(folder, TEXTS), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def whole(whole_folder) -> dict[str, bytes]:
    return content(whole_folder)


def child(work: Callable[[], None]) -> int:
    """Start work in a process of its own; return its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(3)
    return pid


def death_of(pid: int) -> int:
    """The signal a child was killed by, 0 where it ended well."""
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_rename(name: str, *, after: bool) -> None:
    replace = os.replace

    def killing(source: Any, target: Any) -> None:
        hit = str(target).endswith(name)
        if hit and not after:
            die()
        replace(source, target)
        if hit:
            die()

    os.replace = killing


def kill_in_half_a_table() -> None:
    def half(table: Any, where: Any) -> None:
        if "part-00003" in str(where):
            Path(where).write_bytes(b"PAR1 half a table")
            die()
        write(table, where)

    write = pq.write_table
    pq.write_table = half


def kill_in_half_a_line() -> None:
    original = shards._line

    def line(record: Any) -> str:
        if record.number == 2:
            with (FOLDER / shards.JOURNAL).open("a", encoding="utf-8") as stream:
                stream.write(original(record)[:40])
            die()
        return original(record)

    shards._line = line


def kill_in_call(module: Any, name: str, number: int) -> None:
    original, calls = getattr(module, name), []

    def killing(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            die()
        return original(*given, **named)

    setattr(module, name, killing)


FOLDER = Path()
RENAMED = [
    "plan.parquet",
    "plan.json",
    "shards.jsonl",
    "part-00000.parquet",
    "part-00005.parquet",
    "shards.json",
]
POINTS: dict[str, Callable[[], None]] = {
    **{f"before {name} is there": lambda name=name: kill_at_rename(name, after=False) for name in RENAMED},
    **{f"after {name} is there": lambda name=name: kill_at_rename(name, after=True) for name in RENAMED},
    "while prompts are cut": lambda: kill_in_call(shards.pq.ParquetWriter, "write_table", 3),
    "while the first shard is sampled": lambda: kill_in_call(HashEngine, "answer", 1),
    "while the last shard is sampled": lambda: kill_in_call(HashEngine, "answer", 6),
    "in half a table": kill_in_half_a_table,
    "in half a line of the journal": kill_in_half_a_line,
    "before the proof": lambda: kill_in_call(parts, "write_proof", 1),
    "after the proof": lambda: kill_in_call(parts.RunFolder, "note", 1),
    "before the run is finished": lambda: kill_in_call(parts.RunFolder, "finish", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_at_any_point_goes_on_and_ends_with_the_same_bytes(
    point, recipe, whole, engine, tmp_path
):
    folder = tmp_path / "killed"

    def work() -> None:
        global FOLDER
        FOLDER = folder
        POINTS[point]()
        run(recipe, folder)

    assert death_of(child(work)) == signal.SIGKILL, f"the point '{point}' was never reached"
    kept = len(list(folder.glob("samples/part-*.parquet")))
    run(recipe, folder)
    assert content(folder) == whole
    # a shard that was not recorded cannot be told from a damaged one, so one at most is made twice
    assert len(engine.asked) in (6 - kept, 7 - kept)


def watch_files(folder: Path, when: Callable[[int], None]) -> None:
    """In this process, call `when` with its number at each file of a folder that is opened or renamed."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "os.remove") and str(folder) in str(arguments[0]):
            count += 1
            when(count)

    sys.addaudithook(hook)


def test_runs_killed_at_random_moments_end_with_the_same_bytes(recipe, whole, engine, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the moments: {seed}")
    moments = random.Random(seed)
    numbers: list[int] = []

    def counted() -> None:
        watch_files(tmp_path / "counted", numbers.append)
        run(recipe, tmp_path / "counted")
        (tmp_path / "moments").write_text(str(len(numbers)), encoding="utf-8")

    assert death_of(child(counted)) == 0
    whole_run = int((tmp_path / "moments").read_text(encoding="utf-8"))
    folder, deaths = tmp_path / "killed", 0
    for death in range(10):
        # what is left to do after a death has fewer moments, and those of a whole run always suffice once
        moment = moments.randint(1, max(1, whole_run >> death))

        def killed(moment: int = moment) -> None:
            watch_files(folder, lambda number: die() if number == moment else None)
            run(recipe, folder)

        deaths += death_of(child(killed)) == signal.SIGKILL
    assert deaths
    run(recipe, folder)
    assert content(folder) == whole


class StuckEngine:
    """Answers nothing, so that whoever asks it holds a shard until it is killed."""

    def answer(self, prompts, settings, *, progress=None):
        (FOLDER / "stuck").touch()
        time.sleep(60)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("with_kill", [False, True])
def test_any_number_of_processes_gives_the_same_bytes(
    count, with_kill, recipe, whole, engine, tmp_path, monkeypatch
):
    """Processes share shards out by their locks; with a kill, whoever is left makes the dead one's shard."""
    folder = tmp_path / "together"
    monkeypatch.setattr(sys.modules[__name__], "FOLDER", tmp_path)
    with open_run(folder, recipe, progress=False) as open_folder:
        plan = parts._cut(recipe, open_folder)
        keep_whole(folder, plan)
        settings = parts.settings_of(recipe)
        stuck = child(lambda: make_shards(folder, plan, StuckEngine(), settings)) if with_kill else None
        if stuck:
            wait_for((tmp_path / "stuck").exists)
        others = [
            child(lambda: make_shards(folder, plan, HashEngine(pause_s=0.01), settings))
            for _ in range(count - with_kill)
        ]
        if stuck:
            made = 5 if others else 0
            wait_for(lambda: len(list(folder.glob("samples/part-*.parquet"))) == made)
            os.kill(stuck, signal.SIGKILL)
            assert death_of(stuck) == signal.SIGKILL
        assert [death_of(pid) for pid in others] == [0] * len(others)
    run(recipe, folder)
    assert content(folder) == whole
    assert len(engine.asked) == (0 if others else 6)  # what the processes made is not made again


def test_a_shard_is_locked_by_one_process_and_free_when_that_is_gone(tmp_path):
    def hold() -> None:
        lock = ShardLock(tmp_path)
        with lock.held(7, wait=False):
            (tmp_path / "held").touch()
            time.sleep(30)

    pid = child(hold)
    wait_for((tmp_path / "held").exists)
    lock = ShardLock(tmp_path)
    with lock.held(7, wait=False) as is_mine:
        assert not is_mine
    with lock.held(6, wait=False) as is_mine:
        assert is_mine
    os.kill(pid, signal.SIGKILL)
    death_of(pid)
    with lock.held(7, wait=True) as is_mine:
        assert is_mine
    lock.close()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("is_finished", [False, True])
def test_a_damaged_shard_is_found_and_made_again(damage, is_finished, recipe, whole, engine, tmp_path):
    folder = tmp_path / "run"
    if is_finished:
        run(recipe, folder)
    else:
        assert death_of(child(lambda: (kill_in_call(HashEngine, "answer", 6), run(recipe, folder)))) == 9
    engine.asked.clear()
    damage(folder / "samples" / "part-00001.parquet")
    run(recipe, folder)
    assert engine.asked == ([SIZE] if is_finished else [SIZE, 2])
    assert content(folder) == whole
    assert read_manifest(folder)["status"] == "finished"


@pytest.mark.parametrize("name", ["plan.json", "plan.parquet"])
def test_a_damaged_plan_is_cut_again(name, recipe, whole, engine, tmp_path):
    folder = tmp_path / "run"
    assert death_of(child(lambda: (kill_in_call(HashEngine, "answer", 4), run(recipe, folder)))) == 9
    flip_a_bit(folder / name)
    run(recipe, folder)
    assert engine.asked == [SIZE, SIZE, 2]
    assert content(folder) == whole


def test_a_finished_run_that_is_whole_is_not_opened_again(recipe, engine, tmp_path):
    run(recipe, tmp_path / "run")
    engine.asked.clear()
    before = (tmp_path / "run" / "manifest.json").stat().st_mtime_ns
    run(recipe, tmp_path / "run")
    assert engine.asked == []
    assert (tmp_path / "run" / "manifest.json").stat().st_mtime_ns == before


def test_shards_of_other_prompts_than_the_plans_are_refused(tmp_path):
    """Data that changed between two sessions where no checksum tells, such as those of the hub."""
    asked = [("p", [{"role": "user", "content": "hi"}])]
    [shard] = cut_shards(tmp_path, asked, size=1, decides={}, left_out=LeftOut())
    record = shards.write_shard(tmp_path, shard, asked, Answers(answers_to(asked[0], 1)), samples=1)
    shards.record_shard(tmp_path, record)
    assert list(keep_whole(tmp_path, [shard])) == [0]
    changed = cut_shards(tmp_path, [("q", asked[0][1])], size=1, decides={}, left_out=LeftOut())
    with pytest.raises(DataError, match="prompts of shard 0 are not those that this run began with"):
        keep_whole(tmp_path, changed)


def test_a_full_disk_stops_cleanly_and_the_run_goes_on_when_there_is_room(
    recipe, whole, engine, tmp_path, monkeypatch
):
    folder, write = tmp_path / "run", pq.write_table

    def full(table: Any, where: Any) -> None:
        if "part-00002" in str(where):
            Path(where).write_bytes(b"PAR1 as much as there was room for")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))
        write(table, where)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(RunFolderError, match=r"the disk is full\. What was finished before is kept"):
        run(recipe, folder)
    assert sorted(file.name for file in (folder / "samples").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert read_manifest(folder)["status"] == "failed"
    monkeypatch.setattr(pq, "write_table", write)
    engine.asked.clear()
    run(recipe, folder)
    assert engine.asked == [SIZE] * 3 + [2]
    assert content(folder) == whole


def test_a_second_run_on_the_folder_is_refused_with_the_first_ones_process(recipe, engine, tmp_path):
    with (
        open_run(tmp_path / "run", recipe, progress=False),
        pytest.raises(RunFolderError, match=rf"in use by process {os.getpid()} on "),
    ):
        run(recipe, tmp_path / "run")


def test_the_proof_counts_every_prompt_once(recipe, whole):
    proof = json.loads(whole["shards.json"])
    assert proof["prompts"] == PROMPTS
    assert proof["answers"] == PROMPTS * SAMPLES
    assert [shard["prompts"] for shard in proof["shards"]] == [4, 4, 4, 4, 4, 2]
    for number, shard in enumerate(proof["shards"]):
        assert shard["sha256"] == hashlib.sha256(whole[f"samples/part-{number:05d}.parquet"]).hexdigest()
    assert len({shard["address"] for shard in proof["shards"]}) == 6


def test_an_address_follows_from_prompts_and_settings_alone(tmp_path):
    asked = [(f"p{row}", [{"role": "user", "content": "hi"}]) for row in range(4)]

    def addresses(prompts: list[Any], **decides: Any) -> list[str]:
        return [
            each.address
            for each in cut_shards(tmp_path, prompts, size=2, decides=decides, left_out=LeftOut())
        ]

    base = addresses(asked, seed=0)
    assert addresses(asked, seed=0) == base
    assert set(addresses(asked, seed=1)).isdisjoint(base)
    changed = addresses([*asked[:3], ("p3", [{"role": "user", "content": "ho"}])], seed=0)
    assert changed[0] == base[0]
    assert changed[1] != base[1]


def test_a_proof_is_refused_while_a_shard_is_missing(tmp_path):
    plan = cut_shards(
        tmp_path, [("p", [{"role": "user", "content": "hi"}])], size=1, decides={}, left_out=LeftOut()
    )
    assert read_plan(tmp_path) == plan
    with pytest.raises(DataError, match=r"samples/part-00000\.parquet is missing \(1 in all\)"):
        write_proof(tmp_path, plan)


@pytest.mark.parametrize(
    "change", [lambda rows: rows[1:], lambda rows: rows[:1] + rows, lambda rows: rows[::-1]]
)
def test_an_engine_that_leaves_out_repeats_or_swaps_answers_is_found_out(
    change, recipe, tmp_path, monkeypatch
):
    class Careless:
        def answer(self, prompts, settings, *, progress=None):
            return Answers(change(HashEngine().answer(prompts, settings).completions))

    monkeypatch.setattr(parts, "load_engine", lambda *_: Careless())
    with pytest.raises(ModelError, match=r"the engine gave \d+ answers where 12 were due"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "samples" / "part-00000.parquet").exists()


def test_rows_that_are_no_prompts_are_errors_or_left_out_and_counted(engine, tmp_path):
    texts = ["a question", "", "another", "   "]
    with pytest.raises(DataError, match=r"row 2, .*of the user is empty"):
        run(recipe_of(tmp_path, texts), tmp_path / "strict")
    with pytest.warns(LeftOutPromptsWarning, match="2 rows are no prompts"):
        run(recipe_of(tmp_path, texts, bad_prompts="skip"), tmp_path / "lenient")
    proof = json.loads((tmp_path / "lenient" / "shards.json").read_text(encoding="utf-8"))
    assert proof["prompts"] == 2
    assert [text.partition("prompts.jsonl: ")[2][:5] for text in proof["left_out"]] == ["row 2", "row 4"]
    notes = read_manifest(tmp_path / "lenient")["notes"]
    assert (notes["prompts"], notes["left_out_prompts"]) == (2, 2)


def test_repeated_prompts_are_left_out_counted_and_warned_of_in_a_dry_run_too(engine, tmp_path):
    recipe = recipe_of(tmp_path, [])
    texts = ["a question", "another", "a question", "a question"]
    lines = [json.dumps({"prompt": text}) for text in texts]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    message = "2 rows repeat the prompt of an earlier row: left out, which leaves 2 prompts"
    with pytest.warns(LeftOutPromptsWarning, match=message):
        plan = plan_sampling(recipe, {})
    assert (plan["prompts"], plan["repeated_prompts"], plan["answers"]) == (2, 2, 2 * SAMPLES)
    with pytest.warns(LeftOutPromptsWarning, match=message):
        run(recipe, tmp_path / "run")
    notes = read_manifest(tmp_path / "run")["notes"]
    assert (notes["prompts"], notes["repeated_prompts"], notes["skipped_prompts"]) == (2, 2, 0)
    with pytest.warns(LeftOutPromptsWarning, match=message):
        assert len(load_dataset(str(tmp_path / "prompts.jsonl"), kind="prompt")) == 2


def test_samples_say_by_their_prompt_id_that_they_are_of_one_prompt(engine, tmp_path):
    recipe = recipe_of(tmp_path, [])
    lines = [json.dumps({"prompt": "a question", "prompt_id": "q", "completion": text}) for text in "ab"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert plan_sampling(recipe, {})["repeated_prompts"] == 1
    run(recipe, tmp_path / "run")  # no warning, which would be an error here
    assert read_manifest(tmp_path / "run")["notes"]["repeated_prompts"] == 1


def test_a_conversation_without_a_users_turn_is_no_prompt(engine, tmp_path):
    recipe = recipe_of(tmp_path, [], bad_prompts="skip")
    rows = [[{"role": "system", "content": "Be brief."}], [{"role": "user", "content": "Hi"}]]
    lines = [json.dumps({"prompt_id": str(row), "prompt": each}) for row, each in enumerate(rows)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.warns(LeftOutPromptsWarning, match="1 rows are no prompts"):
        run(recipe, tmp_path / "run")
    proof = json.loads((tmp_path / "run" / "shards.json").read_text(encoding="utf-8"))
    assert proof["prompts"] == 1
    assert "ends with a message of the system" in proof["left_out"][0]


def test_prompts_the_engine_skips_are_named_with_the_reason_and_counted(recipe, tmp_path, monkeypatch):
    class Picky(HashEngine):
        def answer(self, prompts, settings, *, progress=None):
            kept = [prompt for prompt in prompts if prompt[0] != "p5"]
            skipped = {"p5": "too long"} if len(kept) < len(prompts) else {}
            return Answers(super().answer(kept, settings).completions, skipped)

    monkeypatch.setattr(parts, "load_engine", lambda *_: Picky())
    with pytest.warns(LeftOutPromptsWarning, match="of the prompts 1 are skipped"):
        result = run(recipe, tmp_path / "run")
    proof = json.loads((tmp_path / "run" / "shards.json").read_text(encoding="utf-8"))
    assert proof["skipped"] == {"p5": "too long"}
    assert (proof["prompts"], proof["answers"]) == (PROMPTS, (PROMPTS - 1) * SAMPLES)
    assert result.final_metrics["tokens"].n == PROMPTS - 1


def test_a_run_in_which_no_prompt_can_be_answered_says_why(recipe, tmp_path, monkeypatch):
    class Nothing:
        def answer(self, prompts, settings, *, progress=None):
            return Answers([], {name: "too long" for name, _ in prompts})

    monkeypatch.setattr(parts, "load_engine", lambda *_: Nothing())
    with pytest.raises(DataError, match=r"none of 22 prompts could be answered\. The first, 'p0': too long"):
        run(recipe, tmp_path / "run")


def test_a_run_that_never_made_a_shard_leaves_no_folder(recipe, tmp_path, monkeypatch):
    def no_model(*_: Any) -> None:
        raise ModelError("no such model")

    monkeypatch.setattr(parts, "load_engine", no_model)
    with pytest.raises(ModelError):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_figures_are_those_of_the_samples(whole_folder):
    table = pq.read_table(whole_folder / "samples")
    metrics = read_result(whole_folder).final_metrics
    assert metrics["tokens"].value == pytest.approx(sum(table["tokens"].to_pylist()) / len(table))
    assert metrics["words"].value == 1
    cut = [reason == "length" for reason in table["finish_reason"].to_pylist()]
    assert metrics["truncated_rate"].value == pytest.approx(sum(cut) / len(cut))
