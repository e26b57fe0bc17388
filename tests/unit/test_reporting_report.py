"""The report: one page, nothing external, text shown as text, whatever the runs have."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import pytest
from reporting_fakes import STAGES, use_fakes

from handbook_utils.errors import RunFolderError, TrainingError
from handbook_utils.pipeline.run import resolve_pipeline, run_pipeline
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS
from handbook_utils.reporting.layout import lay_out, without_shortcuts
from handbook_utils.reporting.picture import duration, pipeline_svg
from handbook_utils.reporting.report import write_report
from handbook_utils.reporting.runs import ancestors, descendants, edges, read_pipeline, read_runs, sources_in


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def html(finished_pipeline, tmp_path_factory):
    path = write_report(finished_pipeline, tmp_path_factory.mktemp("report") / "report.html")
    return path.read_text(encoding="utf-8")


def test_the_page_has_every_section(html):
    ids = {attrs.get("id") for _, attrs in Page(html).tags}
    assert {"pipeline", "models", "claims", "best-of-n", "training", "answers", "cost", "origin"} <= ids


def test_the_page_needs_no_other_file_and_no_script(html):
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "srcset"):
            target = attrs.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, target)
    outside = set(re.findall(r"url\(\s*['\"]?(?!#)[^)]*\)|@import", html))
    assert outside == set()


def test_what_models_wrote_is_text(html):
    assert "<script>alert(" not in html
    assert "&lt;script&gt;alert(" in html


def test_names_and_errors_are_text(finished_pipeline, tmp_path):
    evil = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(finished_pipeline / "sft", evil)
    shutil.copytree(finished_pipeline / "dpo", tmp_path / "dpo")
    html = write_report([evil, tmp_path / "dpo"], tmp_path / "report.html").read_text()
    assert "<img" not in html
    assert "onerror=alert(1)&gt;" in html


def test_answers_stand_side_by_side_unpicked(html):
    text = Page(html).text()
    assert "Prompt 0 SFT gold" in text
    assert text.index("Prompt 0 SFT") < text.index("Prompt 1 SFT") < text.index("Prompt 7 SFT")
    assert text.count("SFT gold") == text.count("DPO gold") == 8


def test_headline_figures_are_those_of_the_runs(html, finished_pipeline):
    metrics = read_pipeline(finished_pipeline)["evaluate-dpo"].final_metrics
    text = Page(html).text()
    for name in ("gold", "gold_gain_vs_evaluate-sft", "win_rate_vs_evaluate-sft"):
        value, interval = str(metrics[name]).split(" ", 1)
        assert value in text
        assert interval in text


def test_claims_say_whether_they_hold(html):
    text = Page(html).text()
    assert text.count("✔ holds") == len(PIPELINE_CLAIMS)
    assert "✘ does not hold" not in text
    for each in PIPELINE_CLAIMS:
        kind = "Observation: " if each.wording == "observation" else ""
        assert f"✔ holds {kind}{each.says}" in " ".join(text.split())


def test_claims_show_fresh_seeds_before_this_run(html):
    text = " ".join(Page(html).text().split())
    for each in PIPELINE_CLAIMS:
        found = each.fresh
        fresh = f"Fresh seeds: {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}], from "
        place = text.index(
            fresh, text.index(f"✔ holds {'Observation: ' * (each.wording != 'claim')}{each.says}")
        )
        assert place < text.index(f"{each.id} , this run:".replace(" ,", ","))
    assert "This run, seed 0." in text


def test_every_picture_has_words_for_those_who_cannot_see_it(html):
    page = Page(html)
    drawings = [attrs for tag, attrs in page.tags if attrs.get("class") == "drawing"]
    assert len(drawings) >= 10
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for attrs in drawings)
    (picture,) = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("class") == "pipeline"]
    assert picture["role"] == "img"
    assert picture["aria-labelledby"] == "pipeline-title pipeline-text"
    assert "dpo (finished, reads sft, preferences)" in page.text()


def test_ids_are_unique_on_the_page(html):
    ids = [attrs["id"] for _, attrs in Page(html).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_tables_scroll_in_their_own_box(html):
    assert html.count("<table>") == len(re.findall(r'class="scroll"[^>]*><table>', html))


def test_a_pipeline_that_stopped_is_reported_with_what_it_has(tmp_path, monkeypatch):
    use_fakes(monkeypatch)

    def diverge(recipe, run):
        run.log_metrics({"step": 1, "loss": 3.0})
        raise TrainingError("loss is not a number at step 2 <b>")

    monkeypatch.setitem(STAGES, "reward", diverge)
    with pytest.raises(TrainingError):
        run_pipeline("pocket/pipeline", tmp_path / "demo")
    views = read_pipeline(tmp_path / "demo")
    assert (views["sft"].status, views["reward"].status, views["dpo"].status) == (
        "finished",
        "failed",
        "planned",
    )
    page = Page(write_report(tmp_path / "demo", tmp_path / "report.html").read_text())
    assert "✘ reward failed: loss is not a number at step 2 <b>" in page.text()
    assert "planned" in page.text()


def test_a_single_run_is_reported(finished_pipeline, tmp_path):
    text = Page(write_report(finished_pipeline / "sft", tmp_path / "report.html").read_text()).text()
    assert text.startswith("Run sft")
    assert "eval_loss" in text


def test_a_folder_without_runs_writes_no_page(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_result_is_named(finished_pipeline, tmp_path):
    shutil.copytree(finished_pipeline / "sft", tmp_path / "sft")
    (tmp_path / "sft" / "result.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"sft/result\.json: gone or damaged"):
        write_report(tmp_path / "sft", tmp_path / "report.html")


def test_runs_of_the_same_name_are_kept_apart(finished_pipeline, tmp_path):
    shutil.copytree(finished_pipeline / "sft", tmp_path / "other" / "sft")
    assert set(read_runs([finished_pipeline / "sft", tmp_path / "other" / "sft"])) == {"sft", "other/sft"}


def test_inputs_are_read_from_all_from_keys_but_not_from_trainer_fields():
    recipe = {
        "model": {"from": "sft"},
        "data": [{"from": "a"}, {"name": "b"}],
        "training": {"x": {"from": "no"}},
    }
    assert sources_in(recipe) == ["sft", "a"]


def test_stages_know_what_they_read_and_what_reads_them(finished_pipeline):
    views = read_pipeline(finished_pipeline)
    assert ancestors(views, "dpo") == {"sft", "samples", "preferences"}
    assert descendants(views, "rft-scores") == {
        "rft-best", "rft-random", "rft", "rft-control", "evaluate-rft", "evaluate-rft-control",
    }  # fmt: skip


def test_every_stage_stands_below_all_it_reads_and_on_nobody(finished_pipeline):
    views = read_pipeline(finished_pipeline)
    layout = lay_out(list(views), edges(views))
    for source, target in edges(views):
        assert layout.places[source][1] < layout.places[target][1]
    by_row: dict[float, list[float]] = {}
    for x, y in layout.places.values():
        by_row.setdefault(y, []).append(x)
    for row in by_row.values():
        gaps = [b - a for a, b in zip(sorted(row), sorted(row)[1:], strict=False)]
        assert all(gap >= 0.999 for gap in gaps)


def test_arrows_that_follow_from_others_are_left_out():
    assert without_shortcuts("abc", [("a", "b"), ("b", "c"), ("a", "c")]) == [("a", "b"), ("b", "c")]


def test_the_picture_shows_state_and_time(finished_pipeline):
    svg = pipeline_svg(read_pipeline(finished_pipeline))
    assert svg.count('class="box finished"') == len(resolve_pipeline("pocket/pipeline")[1])
    assert duration(3.21) == "3.2 s"
    assert duration(59.6) == "60 s"
    assert duration(119.7) == "2 min 00 s"
