"""Fill figures into the book from `book/results/*.json`, so that no page holds a typed result.

{result}`sft:evaluate-sft.gold`          the estimate with its interval
{result}`sft:evaluate-sft.gold|value`    the estimate alone; also |percent, |n, |minutes, and |plain
                                         for what was set or counted
{result}`calibration:claim.ID`           its mean and interval over fresh seeds, in every style;
                                         also |range, and |held: on how many seeds it held
{result}`dpo:claim.too-far-costs|rises`  by its sign "rises by ..." or "falls by ..."; also |gains, |above
```{results-table} sft                   run folders as rows, figures as columns, with a |style or none
```{results-claims} sft                  the claims, as measured
```{results-cost} sft                    time, memory and hardware
```{results-calibration} calibration     how the claims fared on fresh seeds
```{results-sabotage} sabotage           which claims fail under which break
```{results-mutation} mutation           how many small wrong changes the tests notice, and which they do not
```{results-gpu} gpu                     training speed on a GPU
```{results-shared} shared_prefix        time and memory of pairs with each prompt computed once
```{results-coverage} log-normal         how often intervals held the truth, for scores of that distribution
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole

from handbook_utils.evaluation.coverage_table import coverage_rows

FOLDER = Path("book/results")
DASH = "\N{EM DASH}"
# how a difference reads: from zero up, and below zero
DIRECTIONS = {
    "rises": ("rises by {}", "falls by {}"),
    "gains": ("gains {}", "loses {}"),
    "above": ("{} above", "{} below"),
}
STYLES = ("interval", "value", "plain", "percent", "n", "minutes", "held", "range", *DIRECTIONS)
OBSERVED, UNCONFIRMED = "Observation: ", "Not confirmed: "
UNTRIED = "not tried on fresh seeds"
SEEDS_NOTE = (
    "Mean and 95 % interval are over fresh seeds: each seed is one run, and the interval is Student's t over "
    "the runs. The range goes from the lowest run to the highest. Settings were chosen on seed 0."
)
NOTE = (
    "An observation was seen here and need not be seen on the next seed; what is not confirmed was seen on "
    "half of the fresh seeds or fewer. Results and status has the margins."
)
SECTIONS = ("training", "models", "reward_models", "pairs", "best_of_n", "rounds", "measured")


class UnknownResultError(KeyError):
    """A page asks for a file or a figure that no run has written."""

    def __str__(self) -> str:
        return str(self.args[0])


def load_results(folder: Path, name: str) -> dict[str, Any]:
    """Read one results file.

    Raises:
        UnknownResultError: there is no such file; the nearest is named.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise UnknownResultError(
            f"no results '{name}'. {_nearest(name, [p.stem for p in folder.glob('*.json')])}"
        )
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def all_figures(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every estimate of a results file as `run.figure`, and every claim as `claim.id`.

    >>> models = {"dpo": {"label": "DPO", "gold.safe": {"value": 0.9}}}
    >>> list(all_figures({"models": models, "claims": {"a": {"value": 1}}}))
    ['dpo.gold.safe', 'claim.a']
    """
    runs = {run: found for section in SECTIONS for run, found in results.get(section, {}).items()}
    figures = {
        f"{run}.{key}": f for run, found in runs.items() for key, f in found.items() if isinstance(f, dict)
    }
    return figures | {f"claim.{name}": record for name, record in results.get("claims", {}).items()}


def find_figure(results: Mapping[str, Any], key: str) -> dict[str, Any]:
    """One figure of a results file: an estimate as a dictionary.

    Raises:
        UnknownResultError: there is none; the nearest name is given.
    """
    figures = all_figures(results)
    if key not in figures:
        raise UnknownResultError(f"no figure '{key}'. {_nearest(key, figures)}")
    return figures[key]


def render_figure(figure: Mapping[str, Any], style: str = "interval") -> str:
    """Write a figure for readers.

    >>> render_figure({"value": 0.51234, "low": 0.4812, "high": 0.5449, "n": 200})
    '0.512 [0.481, 0.545]'
    >>> render_figure({"value": -0.0004}, "value")  # no zero below zero
    '0.000'
    >>> render_figure({"value": 0.034, "low": 0.02, "high": 0.06, "n": 200}, "percent")
    '3.4\xa0%'
    >>> render_figure({"value": 0.0005}, "plain")
    '0.0005'
    >>> render_figure({"held": 4, "of": 5}, "held")
    '4 of 5'
    >>> render_figure({"value": 0.09, "lowest": 0.071, "highest": 0.106}, "range")
    '0.071 to 0.106'
    >>> render_figure({"value": -0.061, "low": -0.092, "high": -0.03}, "rises")
    'falls by 0.061 [0.030, 0.092]'
    """
    if style == "held":
        return f"{figure['held']} of {figure['of']}"
    if style == "range":
        return _range_over_seeds(figure)
    if style in DIRECTIONS:
        return _directed(figure, style)
    value = figure["value"]
    digits = 1 if abs(value) >= 10 else 3
    if style == "value":
        return f"{value:z.{digits}f}"
    if style == "plain":
        return f"{value:g}"
    if style == "percent":
        return f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
    if style == "n":
        return str(figure["n"])
    if style == "minutes":
        return f"{value / 60:.1f} minutes"
    if style == "interval":
        return f"{value:z.{digits}f} [{figure['low']:z.{digits}f}, {figure['high']:z.{digits}f}]"
    raise UnknownResultError(f"no style '{style}'. {_nearest(style, STYLES)}")


def _unbroken(text: str) -> str:
    """The text on one line of a table's cell."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _range_over_seeds(figure: Mapping[str, Any]) -> str:
    """The lowest and the highest seed; of a study's figure they stand in its seeds."""
    values = [each[0] for each in figure["by_seed"].values()] if "lowest" not in figure else []
    ends = (figure["lowest"], figure["highest"]) if "lowest" in figure else (min(values), max(values))
    return " to ".join(render_figure({"value": end}, "value") for end in ends)


def _directed(figure: Mapping[str, Any], style: str) -> str:
    """A difference in words for its sign, with the figure's own sign taken off, its interval's with it."""
    rising, falling = DIRECTIONS[style]
    if figure["value"] >= 0:
        return rising.format(render_figure(figure))
    # the far end of an interval below zero is the near one of its size
    size = {"value": -figure["value"], "low": -figure["high"], "high": -figure["low"]}
    return falling.format(render_figure(size))


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.3)
    return (
        f"Nearest: {', '.join(near)}."
        if near
        else "There are none yet: run `make notebooks` and `make figures`."
    )


def read_results(env: BuildEnvironment, name: str) -> dict[str, Any]:
    """Read a results file for a page, which is built anew when the file changes.

    Raises:
        UnknownResultError: as `load_results`.
    """
    folder = Path(env.srcdir) / FOLDER
    env.note_dependency(str(folder / f"{name}.json"))
    return load_results(folder, name)


class ResultRole(SphinxRole):
    """A figure in a sentence."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Replace `file:key|style` by the figure, or warn and leave a mark."""
        name, _, rest = self.text.partition(":")
        key, _, style = rest.partition("|")
        try:
            text = render_figure(find_figure(read_results(self.env, name), key), style or "interval")
        except UnknownResultError as error:
            message = self.inliner.reporter.warning(f"{{result}}`{self.text}`: {error}", line=self.lineno)
            return [nodes.problematic(self.text, f"[{self.text}]")], [message]
        return [nodes.inline(text, text, classes=["result"])], []


class ResultsDirective(SphinxDirective):
    """Base of the directives that show one results file."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Show the file, or warn."""
        try:
            shown = self.show(read_results(self.env, self.arguments[0]))
        except UnknownResultError as error:
            return [
                self.state.document.reporter.warning(
                    f"{self.name} {self.arguments[0]}: {error}", line=self.lineno
                )
            ]
        return shown

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the nodes."""
        raise NotImplementedError


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


class FiguresTable(ResultsDirective):
    """Run folders as rows, figures as columns."""

    option_spec = {"rows": _words, "columns": _words, "names": _words, "heads": _words}  # noqa: RUF012 - docutils' own form

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build a table; a figure that a run does not have is a dash."""
        rows, columns = self.options["rows"], self.options["columns"]
        names, figures = self.options.get("names") or rows, all_figures(results)
        styled = [column.partition("|")[::2] for column in columns]
        for column, _ in styled:  # a column nobody has is a misspelt one
            if not any(f"{row}.{column}" in figures for row in rows):
                find_figure(results, f"{rows[0]}.{column}")

        def cell(key: str, style: str) -> str:
            return render_figure(figures[key], style or "interval") if key in figures else DASH

        shown = [[cell(f"{row}.{column}", style) for column, style in styled] for row in rows]
        plain = [column.replace("_", " ").replace("gold.", "") for column, _ in styled]
        head = ["", *self.options.get("heads", plain)]
        return [table(head, [[name, *line] for name, line in zip(names, shown, strict=True)])]


class BestOfNTable(ResultsDirective):
    """One line per n: gold reward for both arms, the proxy's own score and its words."""

    columns: ClassVar[dict[str, str]] = {
        "proxy.gold": "gold reward",
        "control.gold": "gold reward, control",
        "proxy.score": "its own score",
        "proxy.words": "words",
    }

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the table."""
        (figures,) = results["best_of_n"].values()
        ns = sorted(int(key.rsplit("@", 1)[1]) for key in figures if key.startswith("proxy.gold@"))
        cells = [[str(n), *(render_figure(figures[f"{name}@{n}"]) for name in self.columns)] for n in ns]
        return [table(["n", *self.columns.values()], cells)]


class AllFigures(ResultsDirective):
    """Every figure of a results file, a row each."""

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the long table: it is for looking things up."""
        figures = all_figures(results).items()
        cells = [[key, render_figure(f), str(f["n"]), f["unit"], f["method"]] for key, f in figures]
        return [table(["figure", "estimate and 95 % interval", "n", "unit", "method"], cells)]


class ClaimsTable(ResultsDirective):
    """The claims of a results file: first what fresh seeds give, last what the seed of the settings gave.

    A claim is what the calibration calls one; what nobody has tried on fresh seeds is an observation.
    """

    head = ("claim", "mean of fresh seeds", "range", "must be", "holds on")

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the table."""
        calibrated = read_results(self.env, "calibration")["claims"]
        cells = [claim_cells(c, calibrated.get(name)) for name, c in results["claims"].items()]
        tuning = ", ".join(f"seed {seed}" for seed in results["seeds"])
        notes = [SEEDS_NOTE] if any(row[1] != UNTRIED for row in cells) else []
        notes += [NOTE] if any(row[0].startswith((OBSERVED, UNCONFIRMED)) for row in cells) else []
        return [table([*self.head, tuning], cells), *(nodes.paragraph(note, note) for note in notes)]


def claim_cells(record: Mapping[str, Any], calibrated: Mapping[str, Any] | None) -> list[str]:
    """One row of the table of claims.

    Args:
        record: a claim of a results file.
        calibrated: how it fared on fresh seeds; None where nobody has tried.

    >>> claim = {"says": "It grows", "relation": ">", "bound": 0.0, "holds": True}
    >>> claim |= {"value": 0.2, "low": 0.1, "high": 0.3}
    >>> fresh = {"value": 0.1, "low": 0.0, "high": 0.2, "lowest": -0.05, "highest": 0.22}
    >>> claim_cells(claim, fresh | {"wording": "observation", "held": 4, "of": 5, "over": "seeds"})[:3]
    ['Observation: It grows', '0.100 [0.000, 0.200]', '-0.050\xa0to\xa00.220']
    >>> claim_cells(claim, None)[1]
    'not tried on fresh seeds'
    """
    wording = calibrated["wording"] if calibrated else "observation"
    kind = {"claim": "", "does not hold": UNCONFIRMED}.get(wording, OBSERVED)
    bound = f"{record['relation']} {record['bound']:g}"
    here = render_figure(record) + ("" if record["holds"] else ", does not hold")
    if calibrated is None:
        return [kind + record["says"], UNTRIED, DASH, bound, DASH, here]
    held = render_figure(calibrated, "held") + (" repeats" if calibrated["over"] == "repeats" else "")
    fresh = [render_figure(calibrated), _unbroken(render_figure(calibrated, "range"))]
    return [kind + record["says"], *fresh, bound, held, here]


class CalibrationTable(ResultsDirective):
    """How each claim fared on fresh seeds; the false-alarm rate is extrapolated, and called so."""

    head = (
        *("claim", "mean of fresh seeds", "range", "holds on", "margin, sd over seeds"),
        *("false alarms, extrapolated", "worded as"),
    )

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the table."""
        cells = []
        for name, found in results["claims"].items():
            margin, rate = found["margin_sd"], found["false_alarm_rate_extrapolated"]
            numbers = [DASH if margin is None else f"{margin:.1f}", DASH if rate is None else f"{rate:.2g}"]
            spread = _unbroken(render_figure(found, "range"))
            mean = [render_figure(found), spread, render_figure(found, "held")]
            cells.append([name, *mean, *numbers, found["wording"]])
        seeds = ", ".join(map(str, results["seeds"]))
        return [nodes.paragraph("", f"Fresh seeds: {seeds}."), table(self.head, cells)]


class SabotageTable(ResultsDirective):
    """Which claims fail under which break, a table for each notebook and for the demo's pipeline."""

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the tables; what has to fail and does not is said to survive."""
        shown: list[nodes.Node] = []
        for place, breaks in results["places"].items():
            claims = list(dict.fromkeys(name for each in breaks.values() for name in each["claims"]))
            cells = [
                [each["says"], each["mechanism"], *(under_break(each, claim) for claim in claims)]
                for each in breaks.values()
            ]
            shown += [nodes.rubric(place, place), table(["one line broken", "mechanism", *claims], cells)]
        return shown


def under_break(record: Mapping[str, Any], claim: str) -> str:
    """What a claim does under a break, in a word.

    >>> record = {"fails": ["a", "b"], "claims": {"a": "failed", "b": "held", "c": "failed", "d": "held"}}
    >>> [under_break(record, claim) for claim in "abcd"]
    ['fails', 'survives', 'fails too', 'holds']
    """
    found, has_to_fail = record["claims"].get(claim), claim in record["fails"]
    if found is None:
        return "not measured" if has_to_fail else DASH
    if found == "failed":
        return "fails" if has_to_fail else "fails too"
    return "survives" if has_to_fail else "holds"


class MutationTable(ResultsDirective):
    """How many small wrong changes to the code the tests notice, by module, and those that they do not."""

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the sentence and both tables."""
        if not results["tried"]:
            text = "No change has been tried yet."
            return [nodes.paragraph(text, text)]
        score = results["score"]
        text = (
            f"The tests notice {results['noticed']} of {results['tried']} changes: "
            f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}], Wilson's "
            f"interval at {score['level']:.0%}, for a sample drawn with seed {results['seed']}."
        )
        counts = [
            [
                name.removeprefix("handbook_utils/"),
                *(f"{found[key]:,}" for key in ("mutants", "tried", "noticed")),
            ]
            for name, found in results["modules"].items()
        ]
        lived = [
            [
                each["place"].removeprefix("handbook_utils/"),
                each["before"],
                each["after"],
                each["equivalent"] or DASH,
            ]
            for each in results["survivors"]
        ]
        shown = [nodes.paragraph(text, text), table(["module", "possible", "tried", "noticed"], counts)]
        return [*shown, table(["not noticed", "before", "after", "why it changes nothing"], lived)]


class GpuTable(ResultsDirective):
    """Training speed and memory on a GPU, a line a case; what nobody has measured yet says so."""

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the table."""
        cells = [[name, *self._figures(found)] for name, found in results["cases"].items()]
        where = f"Measured on {results['device']}." if any(results["cases"].values()) else ""
        shown = table(["case", "tokens/s", "model-FLOPs utilisation", "peak memory, GiB"], cells)
        return [nodes.paragraph(where, where), shown] if where else [shown]

    @staticmethod
    def _figures(found: Mapping[str, Any] | None) -> list[str]:
        if not found or "tokens_per_s" not in found:
            return ["out of memory" if found and found.get("out_of_memory") else "not measured"] * 3
        mfu, memory = found["mfu"], found["peak_memory_gib"]
        return [
            f"{found['tokens_per_s']:,.0f}",
            "not measured" if mfu is None else f"{mfu:.0%}".replace("%", "\N{NO-BREAK SPACE}%"),
            f"{memory:.1f}",
        ]


class CoverageTable(SphinxDirective):
    """How often each kind of interval held the truth in simulated data sets, from the package's own table."""

    required_arguments = 1
    methods: ClassVar[dict[str, str]] = {
        "auto": "the package's choice",
        "student-t": "Student's t",
        "percentile": "percentile bootstrap",
    }

    def run(self) -> list[nodes.Node]:
        """Build one line per number of prompts, for scores of the named distribution."""
        found = {
            (row.prompts, row.method): f"{row.coverage:.1%}".replace("%", "\N{NO-BREAK SPACE}%")
            for row in coverage_rows()
            if row.distribution == self.arguments[0] and row.design == "unpaired" and row.rows == 1
        }
        prompts = sorted({count for count, _ in found})
        cells = [[str(count), *(found[count, method] for method in self.methods)] for count in prompts]
        return [table(["prompts", *self.methods.values()], cells)]


class Cost(ResultsDirective):
    """A note on time, memory, hardware and seeds."""

    gains = (
        "Gains in the text are means over fresh seeds with a 95 % interval over seeds, as in the table of "
        "what was claimed; a gain that is named so, or that fresh seeds have not tried, is of this seed."
    )

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build a short note."""
        minutes, memory = results["total"]["runtime_s"] / 60, results["total"]["peak_memory_gib"]
        scale, seeds = results.get("scale", "pocket"), ", ".join(map(str, results["seeds"]))
        text = (
            f"Measured at the scale {scale}: {minutes:.1f} minutes in all stages together and "
            f"{memory:.1f} GiB at most, on {results['device']}. Tables and charts show seed {seeds}, on "
            f"which settings were chosen. {self.gains}"
        )
        return [nodes.note("", nodes.paragraph(text, text))]


class StagesTable(ResultsDirective):
    """Time, memory and speed of every stage."""

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the table."""
        cells = [
            [name, f"{s['runtime_s']:.0f}", f"{s['peak_memory_gib']:.2f}", _speed(s.get("tokens_per_s"))]
            for name, s in results["cost"].items()
        ]
        return [table(["stage", "seconds", "peak memory, GiB", "tokens/s"], cells)]


class StepsTable(ResultsDirective):
    """How far the same training, split in other ways, is from training in one pass a step."""

    head = ("", "rows per pass", "passes", "processes", "steps", "largest gap, loss", "largest gap, weight")

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the table; gaps are far too small for a fixed number of digits."""
        counts = ("per_device_batch", "accumulation", "processes", "steps")
        cells = [
            [name, *(str(way[key]) for key in counts), _gap(way["loss_gap"]), _gap(way["weight_gap"])]
            for name, way in results["ways"].items()
        ]
        seeds = ", ".join(map(str, results["seeds"]))
        return [table(self.head, cells), nodes.paragraph("", f"Seeds: {seeds}.")]


class SharedTable(ResultsDirective):
    """How much less time and memory pairs take with each prompt computed once, beside TRL's trainers."""

    head = (
        *("", "prompt / answers, median", "vocabulary", "TRL's time over ours, by default"),
        *("with `length_batching`", "same head", "ratio of the tokens", "peak memory, GiB", "TRL's"),
    )

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the table; ranges are of the rounds."""
        cells = [
            [
                *(f["stage"], f"{f['prompt']} / {f['answer']}", f"{f['vocabulary']:,}"),
                _range(f["by_default"]) if "by_default" in f else "not measured",
                *(_range(f[key]) for key in ("speedup", "same_head")),
                *(f"{f[key]:.2f}" for key in ("ideal", "peak_gib", "peak_gib_trl")),
            ]
            for f in results["measured"].values()
        ]
        return [table(self.head, cells)]


class BenchmarksTable(ResultsDirective):
    """What `make bench` measured, each figure beside its goal and its peer."""

    head = ("figure", "value", "goal", "beside", "measured")
    shown_elsewhere = ("shared_dpo", "shared_reward", "shared_decode")  # in "Scaling out"

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the table."""
        cells = []
        for name, figure in results["figures"].items():
            if name.startswith(self.shown_elsewhere):
                continue
            peer = figure["peer"]
            cells.append(
                [
                    name.replace("_", " "),
                    "not measured" if figure["value"] is None else f"{figure['value']:.3g} {figure['unit']}",
                    _goal(figure),
                    f"{peer['value']:.3g}: {peer['name']}" if peer else "",
                    f"{figure['date']}, {figure['device']}",
                ]
            )
        return [table(self.head, cells)]


class Provenance(ResultsDirective):
    """Where a results file comes from."""

    def show(self, results: Mapping[str, Any]) -> list[nodes.Node]:
        """Build the list."""
        versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        seeds = ", ".join(map(str, results["seeds"]))
        lines = [
            f"Commit {(results['commit'] or 'unknown')[:12]}, {results['date']}",
            results["device"],
            f"Seeds {seeds}",
            versions,
        ]
        return [nodes.bullet_list("", *(nodes.list_item("", nodes.paragraph(line, line)) for line in lines))]


def _range(figure: Mapping[str, Any]) -> str:
    parts = f"{figure['value']:.2f}", f"({figure['low']:.2f}", "to", f"{figure['high']:.2f})"
    return "\N{NO-BREAK SPACE}".join(parts)


def _goal(figure: Mapping[str, Any]) -> str:
    sign = "at least" if figure["better"] == "higher" else "at most"
    return DASH if figure["goal"] is None else f"{sign} {figure['goal']:.3g}"


def _gap(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _speed(value: float | None) -> str:
    return f"{value:,.0f}" if value else DASH


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> nodes.Node:
    """A table node; all cells are text, so nothing in a results file can become markup."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", group, classes=["results"])


def _row(cells: Sequence[str]) -> nodes.row:
    return nodes.row("", *(_cell(text) for text in cells))


def _cell(text: str) -> nodes.entry:
    # an interval stays whole
    shown = text.replace(", ", ",\N{NO-BREAK SPACE}") if text.endswith("]") else text
    return nodes.entry("", nodes.paragraph(text, shown))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role and the directives."""
    app.add_role("result", ResultRole())
    directives_: dict[str, type[ResultsDirective]] = {"table": FiguresTable, "all": AllFigures}
    directives_ |= {"claims": ClaimsTable, "cost": Cost, "calibration": CalibrationTable}
    directives_ |= {"sabotage": SabotageTable, "mutation": MutationTable}
    directives_ |= {"best-of-n": BestOfNTable, "stages": StagesTable, "provenance": Provenance}
    app.add_directive("results-coverage", CoverageTable)
    directives_ |= {
        "steps": StepsTable,
        "gpu": GpuTable,
        "shared": SharedTable,
        "benchmarks": BenchmarksTable,
    }
    for name, kind in directives_.items():
        app.add_directive(f"results-{name}", kind)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
