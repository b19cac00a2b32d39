"""The GPU targets without a GPU: floors and goals, report, verdicts, time limits, and dry runs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import plain
from benchmarks.cases import NOT_TIMED, cases
from benchmarks.gpu import costs, render, steps, targets
from benchmarks.inputs import CPU, FULL, SMALL
from tests.ops.op_cases import needs_extension
from tests.ops.recorded import recorded_ops, registered_ops

# Rates of an H200: 4.3 TB/s, 790 TFLOP/s of bf16 and half of it of TF32, and 16 bit counts per clock on 132
# multiprocessors at 1.755 GHz.
H200 = costs.Ceilings(4.3e12, {"bf16": 790e12, "tf32": 395e12, "popcount": 16 * 132 * 1.755e9}, 2e-6)


@pytest.mark.parametrize(
    ("key", "floor", "goal"),
    [
        ("saliency_few_bf16_nchw", 17, 40),
        ("saliency_many_bf16_channels_last", 69, 120),
        ("saliency_few_fp32_nchw", 33, 70),
        ("mask_nms_few", 3.5, 12),
        ("mask_nms_many", 59, 80),
        ("proposals", 20, 60),
        ("roi_forward_nchw", 96, 125),
        ("roi_both_channels_last", 192, 260),
        ("match_forward", 2, 6),
        ("loss_both", 4, 14),
    ],
)
def test_floors_and_goals_in_microseconds_of_an_h200(key, floor, goal):
    work, multiple = costs.rows(FULL)[key]
    found = sum(costs.floor(step, H200) for step in work) * 1e6
    assert found == pytest.approx(floor, rel=0.03)
    assert found * multiple == pytest.approx(goal, rel=0.06)


def test_floor_is_the_largest_term():
    ceilings = costs.Ceilings(copy=100.0, rates={"bf16": 10.0}, launch=3.0)
    assert costs.floor(costs.Work(500, {"bf16": 20}), ceilings) == 5
    assert costs.floor(costs.Work(100, {"bf16": 90}), ceilings) == 9
    assert costs.floor(costs.Work(100, {"bf16": 20}, launches=2), ceilings) == 6


def test_every_case_is_counted():
    for sizes in (FULL, SMALL):
        assert {case.key for case in cases(SMALL, "cpu")} == set(costs.rows(sizes))


@needs_extension
def test_every_op_is_timed():
    with recorded_ops() as found:
        for case in cases(SMALL, "cpu"):
            case.call(case.op)(*case.make(0))
    assert found.isdisjoint(NOT_TIMED)
    assert found | set(NOT_TIMED) == registered_ops()


def floats(result):
    """All floating-point tensors in a result, in order."""
    if isinstance(result, torch.Tensor):
        return [result] if result.is_floating_point() else []
    return [x for part in result for x in floats(part)] if isinstance(result, tuple | list) else []


@pytest.mark.parametrize("case", cases(SMALL, "cpu"), ids=lambda case: case.key)
def test_plain_pytorch_gives_the_same(case):
    inputs = case.make(0)
    got = case.call(case.op)(*inputs)
    if case.plain is None or case.key == "proposals":
        return
    expected = case.call(case.plain)(*inputs)
    if case.key.startswith("mask_nms"):
        assert torch.equal(got, expected)
    if case.key.startswith("parts"):
        assert all(map(torch.equal, got, expected))
    tolerance = 2e-2 if "bf16" in case.title else 1e-4
    for one, other in zip(floats(got), floats(expected), strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=tolerance)


def test_cases_of_the_cpu_are_fp32():
    table = {case.key: case for case in cases(CPU, "cpu")}
    assert table["roi_both_nchw"].plain is plain.roi_average_pool
    assert not any("bf16" in case.title for case in table.values())


def report(graph=10.0, **changes):
    """A report with one row of times."""
    row = {
        "title": "mask NMS",
        "floor_us": 3.5,
        "goal": 3.4,
        "measured": {
            "in a graph": {"us": graph},
            "as called": {"us": 31.0},
            "kernels": [{"kernel": "keep_masks", "launches": 1, "us": 9.0}],
            "plain PyTorch": {"us": 12345.6},
            "theirs": {"us": 99.0},
        },
        **changes,
    }
    if graph is None:
        del row["measured"]["in a graph"]
    found = {
        "date": "2026-11-22",
        "commit": "abc1234",
        "versions": {"torch": "2.11.0", "triton": None},
        "steps": {"times": {"verdict": "passed", "note": "a|b", "seconds": 100.4}},
        "left_out": ["matrix NMS: needs mmdet, which is not installed"],
        "sizes": "12 images",
        "ceilings": {
            "copy": 4.3e12,
            "rates": {"bf16": 790e12, "tf32": 395e12, "popcount": 3.7e12},
            "launch": 2e-6,
        },
        "rows": {"mask_nms_few": row},
    }
    return {"gpu": "NVIDIA H200", "bench": found}


def test_report_as_markdown(tmp_path):
    render.write(report(), tmp_path / "card.json")
    assert render.read(tmp_path / "card.json") == report()
    assert render.read(tmp_path / "absent.json") == {}
    text = (tmp_path / "card.md").read_text()
    assert text.startswith("# NVIDIA H200\n\n## make gpu-bench\n")
    assert "commit abc1234; torch 2.11.0." in text
    assert "| times | passed | 100 | a/b |" in text
    assert "| mask NMS | 10 | 3.5 | 2.9 | 3.4 | met | 31 | 12,346 | - | theirs: 99 |" in text
    assert "copy 4.30 TB/s" in text
    assert "- matrix NMS: needs mmdet, which is not installed\n" in text


def test_goals_that_are_missed_or_not_known():
    assert "| 13 | 3.5 | 3.7 | 3.4 | missed |" in render.render(report(graph=13.0))
    assert "| mask NMS | - | 3.5 | - | 3.4 |  | 31 |" in render.render(report(graph=None))
    assert "| mask NMS | 10 | - | - | - |  | 31 |" in render.render(report(floor_us=None, goal=None))


def place(tmp_path, **device):
    return steps.Place(tmp_path, tmp_path / "results.json", {"gpu": "g", **device})


def test_commands_are_printed_and_logged(tmp_path, capfd):
    code = "import os; print('one', os.environ['A']); raise SystemExit(3)"
    assert place(tmp_path).run("name", ["-c", code], 60, A="b") == (3, "one b\n")
    assert (tmp_path / "name.log").read_text() == "one b\n"
    assert capfd.readouterr().out == "    one b\n"


def test_what_hangs_is_stopped_with_all_it_started(tmp_path):
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']); "
        "print(child.pid); time.sleep(1000)"
    )
    status, text = place(tmp_path).run("hangs", ["-c", code], 12)
    assert status is None
    child = Path(f"/proc/{int(text)}")
    for _ in range(200):  # until its new parent reaps it
        if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process was left running")


def carry_out(tmp_path, seconds, *given):
    found = {"gpu": "g", "test": {**report()["bench"], "steps": {}}}
    steps.carry_out(list(given), seconds, place(tmp_path), found, "test")
    assert json.loads((tmp_path / "results.json").read_text()) == found
    return {name: (step["verdict"], step["note"]) for name, step in found["test"]["steps"].items()}


def test_steps_share_the_time_and_are_written_as_they_end(tmp_path):
    limits = []

    def second(place, limit):
        assert list(render.read(place.results)["test"]["steps"]) == ["first"]
        limits.append(limit)
        return "passed", ""

    def first(place, limit):
        limits.append(limit)
        return "failed", "broke"

    got = carry_out(tmp_path, 400, steps.Step("first", first, share=3), steps.Step("second", second))
    assert got == {"first": ("failed", "broke"), "second": ("passed", "")}
    assert limits == [pytest.approx(300, rel=0.1), pytest.approx(400, rel=0.1)]


def test_after_a_vital_step_that_fails_the_rest_is_left_out(tmp_path):
    got = carry_out(
        tmp_path,
        400,
        steps.Step("build", lambda *_: ("failed", "nvcc"), vital=True),
        steps.Step("ops", lambda *_: pytest.fail("begun")),
    )
    assert got["ops"] == ("left out", "build: failed")


def test_a_step_without_time_is_named(tmp_path):
    got = carry_out(tmp_path, 10, steps.Step("ops", lambda *_: pytest.fail("begun")))
    assert got == {"ops": ("out of time", "not begun")}


@pytest.mark.parametrize(
    ("text", "status", "verdict"),
    [
        ("84 passed in 3s\n========= ERROR SUMMARY: 0 errors\n", 0, "passed"),
        ("84 passed\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n", 0, "passed"),
        ("84 passed\n========= ERROR SUMMARY: 3 errors\n", 9, "failed"),
        ("84 passed\n", 0, "failed"),
        ("========= ERROR SUMMARY: 0 errors\n", 0, "failed"),
        ("========= Error: Device not supported. Please refer to the documentation\n", 1, "left out"),
        ("4 passed", None, "out of time"),
        ("", 1, "failed"),
    ],
)
def test_verdict_of_the_sanitizer(text, status, verdict):
    assert targets.judge_sanitizer(status, text)[0] == verdict


def test_the_extension_is_built_once_for_the_same_sources_and_device(tmp_path, monkeypatch):
    run = []

    def record(self, name, command, limit, **env):
        run.append((name, env.get("TORCH_CUDA_ARCH_LIST")))
        return 0, "done"

    monkeypatch.setattr(steps.Place, "run", record)
    for capability in ("9.0", "9.0", "8.0"):
        assert targets.build(place(tmp_path, capability=capability), 60) == ("passed", "done")
    assert run == [("build", "9.0"), ("import", None), ("import", None), ("build", "8.0"), ("import", None)]


def test_packages_of_the_folder_are_found_behind_the_installed_ones(tmp_path, monkeypatch):
    monkeypatch.delenv("SP_FAST_WHEELS", raising=False)
    site = tmp_path / "site"
    site.mkdir()
    (site / "linked.pth").write_text(f"{tmp_path / 'elsewhere'}\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "found_by_pth.py").touch()
    (site / "pytest.py").write_text("raise SystemExit(9)")
    dry = steps.Place(tmp_path, tmp_path / "results.json", {}, dry=True)
    assert targets.build(dry, 60)[0] == "left out"
    assert dry.run("import", ["-c", "import found_by_pth, pytest"], 60) == (0, "")


def test_a_measurement_goes_on_after_a_process_that_broke(tmp_path, monkeypatch):
    begun = iter([["a", "b"], ["a", "b", "c"]])
    statuses = iter([-11, 0])
    render.write(report(), tmp_path / "results.json")

    def record(self, name, command, limit, **env):
        found = render.read(self.results)
        found["bench"]["begun"] = next(begun)
        render.write(found, self.results)
        return next(statuses), "Segmentation fault"

    monkeypatch.setattr(steps.Place, "run", record)
    assert targets.measure(place(tmp_path), 100) == ("passed", "2 left out")
    assert render.read(tmp_path / "results.json")["bench"]["left_out"][-1] == "b: Segmentation fault"


def run_target(*arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=steps.ROOT, env=env, capture_output=True, text=True)


def test_dry_run_of_the_measurement(tmp_path):
    done = run_target("bench", "--dry-run", "--minutes", 60, "--results", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "dry-run.json").read_text())["bench"]
    assert set(found["rows"]) == set(costs.rows(SMALL))
    assert all(row["measured"]["as called"]["us"] > 0 for row in found["rows"].values())
    assert found["steps"]["times"]["verdict"] == "passed"
    assert "| mask NMS of 6 masks per image |" in (tmp_path / "dry-run.md").read_text()
    assert "left out: build: a dry run builds nothing" in done.stdout


def test_the_tests_of_the_targets_exist():
    for target in ("test", "sanitize"):
        for step in targets.TARGETS[target]:
            for path in getattr(step.work, "keywords", {}).get("paths", []):
                assert path.startswith("-") or path == "not cpu" or (steps.ROOT / path).exists(), path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path):
    done = run_target("test", "--results", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu-test: expected a GPU that PyTorch can use, got none with PyTorch 2.")
    assert done.stderr.count("\n") == 1
