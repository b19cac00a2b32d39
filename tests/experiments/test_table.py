"""The table on the terminal and as markdown, and the status."""

import io

import pytest
from rich.console import Console
from scipy.stats import ttest_1samp

from sp_fast.experiments import Analysis, Experiment, Row
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.report import print_status
from sp_fast.experiments.results import collect, paired
from sp_fast.experiments.table import about_differences, blocks, markdown, print_table
from sp_fast.files import write_json
from sp_fast.locks import try_lock
from tests.experiments import made_up


def printed(show, *arguments) -> str:
    """What is printed in 80 columns."""
    console = Console(file=io.StringIO(), width=80)
    show(*arguments, console)
    return console.file.getvalue()


def test_cells_are_mean_and_spread_over_seeds_beside_the_papers_number(finished: Plan) -> None:
    ten, hundred = blocks(collect(finished))
    assert (ten.heading, ten.columns) == ("Fine-tuned on 10 %", ["AP", "AP50", "seeds"])
    # 12, 13 and 14 over the three seeds.
    assert ten.lines[0].cells == ("13.0 ± 1.0", "26.0 ± 2.0", "3")
    assert [(line.cells[0], line.paper) for line in hundred.lines] == [
        ("21.0 ± 1.0", ("21.7", "", "")),
        ("24.0 ± 1.0", ()),
        ("25.0 ± 1.0", ("23.5", "41.0", "")),
    ]
    assert all(line.complete and "*" not in line.label for line in (*ten.lines, *hundred.lines))
    # 16 - 12 with each seed; the claim compares the first metric alone.
    assert ten.findings[0] == (
        "Pre-training helps: saliency prompts − no pre-training = +4.0 ± 0.0 AP (higher, p < 0.001, 3 seeds)"
    )


def test_paired_differences_have_a_standard_error_and_a_p_value() -> None:
    found = paired([1.0, 2.0, 3.0, 2.0])
    assert found["mean"] == 2.0
    assert found["error"] == pytest.approx((2 / 3) ** 0.5 / 2)
    assert found["p"] == pytest.approx(ttest_1samp([1.0, 2.0, 3.0, 2.0], 0).pvalue)
    assert found["verdict"] == "higher"
    assert paired([-1.0, 2.0, 0.0])["verdict"] == "within the noise"
    assert (paired([0.0] * 3)["p"], paired([1.0] * 3)["p"]) == (1, 0)
    assert (paired([1.0, 2.0])["p"], paired([1.0])["error"]) == (None, None)


def test_differences_are_counted(finished: Plan) -> None:
    results = collect(finished)
    note = about_differences(results)
    count = len(results["comparisons"])
    assert count > 1
    assert f"Of {count} such differences, one in twenty" in note
    assert f"p < {0.05 / count:.2g} is significant" in note
    assert note.replace("<", r"\<") in markdown(results)
    assert "Bonferroni" not in about_differences({**results, "comparisons": results["comparisons"][:1]})
    assert about_differences({**results, "comparisons": []}) == ""


def test_rows_that_lack_seeds_are_marked_and_the_missing_runs_are_counted(plan: Plan, tmp_path) -> None:
    for run in plan.needed(["none"], [0, 1]) + plan.needed(["prompts"], [0]):
        made_up.finish(plan, run, tmp_path / "images")
    results = collect(plan)
    block = blocks(results)[0]
    assert [line.label for line in block.lines] == [
        "no pre-training *",
        "pseudo labels [alone] *",
        "saliency prompts *",
    ]
    assert [list(line.cells) for line in block.lines] == [
        ["12.5 ± 0.7", "25.0 ± 1.4", "2 of 3"],
        ["-", "-", "0 of 3"],
        ["16.0", "32.0", "1 of 3"],
    ]
    assert block.findings[0].endswith("(cannot tell, 1 of 3 seeds)")
    # 4 fine-tunings of `none`, proposals, pre-training and 2 fine-tunings of `prompts`.
    notice = f"Not complete (*): {len(plan.runs) - 8} of {len(plan.runs)} runs are missing"
    assert notice in printed(print_table, results)
    text = markdown(results)
    assert notice.replace("*", r"\*") in text
    assert r"| no pre-training \* | 12.5 ± 0.7 | 25.0 ± 1.4 | 2 of 3 |" in text
    title = f"Made-up <numbers> (8 of {len(plan.runs)} runs)"
    assert text.startswith(f"# {title}\n".replace("<", r"\<"))
    assert f"{title}, seeds 0, 1, 2" in printed(print_table, results)


def test_the_terminal_and_markdown_show_the_same_cells(finished: Plan) -> None:
    results = collect(finished)
    terminal, text = (
        printed(print_table, results),
        markdown(results),
    )
    assert all(len(line) <= 80 for line in terminal.splitlines())
    for block in blocks(results):
        for line in block.lines:
            assert "| " + " | ".join([line.label, *line.cells]) + " |" in text.splitlines()
            shown = next(one for one in terminal.splitlines() if all(cell in one for cell in line.cells))
            assert line.label in shown  # rich would take [alone] for markup
            paper = "| " + " | ".join(["paper", *line.paper]) + " |"
            assert not line.paper or paper in text.splitlines()
            assert not line.paper or any(
                one.split() == ["paper", *" ".join(line.paper).split()] for one in terminal.splitlines()
            )
    assert "missing" not in terminal + text


def test_markdown_shows_each_seed_of_several(finished: Plan) -> None:
    results = collect(finished)
    lines = markdown(results).splitlines()
    assert lines.count("| AP by seed | 0 | 1 | 2 |") == len(blocks(results))
    assert "| no pre-training | 12.00 | 13.00 | 14.00 |" in lines
    results["rows"]["none"]["trainings"]["10 %"]["summary"][made_up.AP]["values"].pop("1")
    assert "| no pre-training | 12.00 | - | 14.00 |" in markdown(results).splitlines()
    results["seeds"] = [0]
    assert "AP by seed" not in markdown(results)


def test_six_metrics_with_their_spread_fit_80_columns_beside_the_papers(finished: Plan) -> None:
    results = collect(finished)
    results["metrics"] = {f"{made_up.AP}{k}": f"AP{k}" for k in range(6)}
    for row in results["rows"].values():
        trained = row["trainings"]["100 %"]
        trained["summary"] = dict.fromkeys(results["metrics"], trained["summary"][made_up.AP])
        trained["expected"] = dict.fromkeys(results["metrics"], 23.5) | {f"{made_up.AP}2": None}
    results["comparisons"] = []
    lines = printed(print_table, results).splitlines()
    assert all(len(line) <= 80 for line in lines)
    ours = next(k for k, line in enumerate(lines) if "25.0±1.0" in line)
    assert lines[ours].split() == ["saliency", *6 * ["25.0±1.0"], "3"]
    assert [line.split() for line in lines[ours + 1 : ours + 3]] == [["prompts"], ["paper", *5 * ["23.5"]]]


def test_an_analysis_that_measures_is_part_of_the_table(tmp_path) -> None:
    others, maps = (Analysis(f"package.module:{name}") for name in ("function", "maps"))
    expected = {"boxes": {"AP": 5.5}}
    row = Row("a", "others", analyses={"boxes": others, "maps": maps}, expected=expected)
    plan = Plan(Experiment("e", "e", [row], {"AP": "AP"}), tmp_path, [0])
    (block,) = blocks(collect(plan))
    assert (block.heading, block.lines[0].cells, block.lines[0].paper) == (
        "boxes",
        ("-", "0 of 1"),
        ("5.5", ""),
    )
    for name, result in (("boxes", {"evaluations": [{"step": 0, "AP": 0.0625}]}), ("maps", {})):
        write_json(result, plan.of("a", name, 0).folder / "result.json")
    (block,) = blocks(collect(plan))
    assert block.lines[0].cells == ("6.25", "1")


def test_nothing_finished_gives_dashes(plan: Plan) -> None:
    results = collect(plan)
    for block in blocks(results):
        assert all(line.cells[0] == "-" and line.cells[-1] == "0 of 3" for line in block.lines)
        assert not block.findings
    assert f"{len(plan.runs)} of {len(plan.runs)} runs are missing" in printed(print_table, results)


def test_status_counts_runs_and_takes_the_time_left_from_finished_ones(plan: Plan, tmp_path) -> None:
    assert "Time left: not known yet for" in printed(print_status, plan)
    for run in plan.needed(["none", "labels"], [0, 1]):
        made_up.finish(plan, run, tmp_path / "images")
    running = plan.of("none", "10 %", 2)
    running.folder.mkdir(parents=True)
    lock = try_lock(running.folder / "lock")
    text = printed(print_status, plan)
    # The proposals are one run; every seed has 2 pre-trainings and 6 fine-tunings.
    assert "25 runs: 11 done, 1 running, 13 missing" in text
    # Left: pre-trainings of 200 s, fine-tunings of 400 s and of 800 s.
    seconds = 4 * 200 + 5 * 400 + 5 * 800
    assert f"about {seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d} " in text
    assert "10 %           0, 1 done; 2 running" in text
    assert "Rows running: none\nRows missing: labels, prompts" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert lock is not None


@pytest.mark.parametrize("seeds", [[3], [0, 3]])
def test_seeds_are_named(tmp_path, seeds) -> None:
    plan = Plan(made_up.experiment(tmp_path), tmp_path / "out", seeds)
    text = markdown(collect(plan))
    assert ("seeds 0, 3" if len(seeds) > 1 else "A single run of each row, seed 3") in text
