"""The GPU report's own logic: floors, goals, table, verdicts, time limits, whole files. No GPU is needed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from gpu_report import cli, costs, environment, files, outcomes, parts, readme, render, running

# The rates the goals were set for: 4.3 TB/s, 790 TFLOP/s of bf16 and half of it of TF32, and 16 bit counts a
# clock on 132 multiprocessors at 1.755 GHz.
H200 = costs.Ceilings(4.3e12, {"bf16": 790e12, "tf32": 395e12, "popcount": 16 * 132 * 1.755e9}, 2e-6)


@pytest.mark.parametrize(
    ("key", "floor", "goal"),
    [
        ("saliency_few_bf16_nchw", 17, 40),
        ("saliency_many_bf16_channels_last", 69, 120),
        ("saliency_few_fp32_nchw", 33, 70),
        ("mask_nms_few", 3.5, 12),
        ("mask_nms_many", 59, 80),
        ("roi_forward_nchw", 96, 125),
        ("roi_both_channels_last", 192, 260),
    ],
)
def test_floors_and_goals(key, floor, goal):
    row = {row.key: row for row in costs.rows(costs.FULL)}[key]
    assert row.floor(H200) * 1e6 == pytest.approx(floor, rel=0.02)
    assert row.goal == goal


def test_floor_is_the_largest_term():
    ceilings = costs.Ceilings(copy=100.0, rates={"bf16": 10.0}, launch=3.0)
    assert costs.floor(costs.Work(500, {"bf16": 20}), ceilings) == 5
    assert costs.floor(costs.Work(100, {"bf16": 90}), ceilings) == 9
    assert costs.floor(costs.Work(100, {"bf16": 20}, launches=2), ceilings) == 6


def test_floor_of_steps_that_wait_is_their_sum():
    row = {row.key: row for row in costs.rows(costs.FULL)}["proposals"]
    assert row.floor(H200) == pytest.approx(sum(costs.floor(work, H200) for work in row.work))
    assert len(row.work) == 2


def test_rows_are_the_same_at_every_size():
    assert [r.key for r in costs.rows(costs.SMALL)] == [r.key for r in costs.rows(costs.FULL)]
    assert len({r.key for r in costs.rows(costs.FULL)}) == len(costs.rows(costs.FULL))


def test_cases_are_the_rows():
    """In a process of its own, as the benchmarks' conftest is imported."""
    code = (
        "from gpu_report.cases import cases; from gpu_report.costs import SMALL, rows; "
        "found = cases(SMALL, 'cpu'); "
        "assert sorted(c.row.key for c in found) == sorted(r.key for r in rows(SMALL)); "
        "[c.call(c.op)(*c.make(0)) for c in found]"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(environment.BENCHMARKS), str(environment.ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def measured(us):
    return {"us": us, "low_us": us, "high_us": us}


def report(**changes):
    row = {
        "title": "mask NMS",
        "goal_us": 12,
        "floor_us": 3.5,
        "graph": measured(10.0),
        "called": measured(31.4),
        "plain": measured(12345.6),
        "compiled": None,
        "peers": {"theirs": measured(99), "absent": None},
    }
    found = {
        "gpu": "NVIDIA H200",
        "date": "2026-11-22T12:00:00+00:00",
        "commit": "abc1234",
        "versions": {"torch": "2.11.0", "triton": None},
        "images": "12 images",
        "missing": ["mmdet"],
        "parts": {
            "tests": {
                "verdict": "failed",
                "note": "",
                "seconds": 61.2,
                "tests": {
                    "passed": 1000,
                    "failed": 1,
                    "skipped": 2,
                    "failures": ["tests.ops::test_x"],
                    "skips": {"needs two GPUs": 2},
                },
            },
            "benchmarks": {
                "verdict": "passed",
                "note": "",
                "seconds": 100.0,
                "ceilings": {
                    "copy": 4.3e12,
                    "rates": {"bf16": 790e12, "tf32": 395e12, "popcount": 3.7e12},
                    "launch": 2e-6,
                },
                "rows": {"mask_nms_few": {**row, **changes}},
                "skipped": [{"what": "peer", "why": "needs mmdet, which is not installed"}],
            },
            "sanitizer": {"verdict": "skipped", "note": "compute-sanitizer was not found", "seconds": 0.0},
        },
    }
    return found


def test_report_as_markdown():
    text = render.render(report())
    assert "| mask NMS | 10 | 3.5 | 2.9 | 12 | met | 31 | 12,346 | - | theirs: 99 |" in text
    assert "torch 2.11.0." in text
    assert "copy 4.30 TB/s" in text
    assert "1,000 passed, 1 failed, 2 skipped" in text
    assert "- tests: `tests.ops::test_x`" in text
    for left_out in (
        "`mmdet` is not installed",
        "tests, 2 skipped: needs two GPUs",
        "sanitizer: compute-sanitizer was not found",
        "peer: needs mmdet, which is not installed",
    ):
        assert f"- {left_out}\n" in text


def test_a_goal_that_is_missed_and_a_row_that_was_not_measured():
    assert "| 13 | 3.5 | 3.7 | 12 | missed |" in render.render(report(graph=measured(13.0)))
    assert "| mask NMS | - | 3.5 | - | 12 |  | 31 |" in render.render(report(graph=None))
    nothing = report()
    del nothing["parts"]["benchmarks"]
    assert "Nothing was measured." in render.render(nothing)


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "results.json"
    assert files.read_json(path) == {}
    files.write_json(path, {"a": 1})

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    path.write_text('{"a": ')
    assert files.read_json(path) == {}


def test_copies_are_cut_at_their_beginning(tmp_path):
    (tmp_path / "log").write_text("0123456789")
    files.copy_out([tmp_path / "log", tmp_path / "absent"], str(tmp_path / "out"), most=4)
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == {"log": "6789"}
    files.copy_out([tmp_path / "log"], None)


def test_slug():
    assert files.slug("NVIDIA H200") == "nvidia-h200"
    assert files.slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"


def everything(line):
    return True


def run(tmp_path, code, limit=60.0, show=everything):
    command = [sys.executable, "-u", "-c", code]
    return running.run(
        command, limit=limit, log=tmp_path / "log", cwd=tmp_path, env=dict(os.environ), show=show
    )


def test_commands_are_logged_and_shown(tmp_path, capsys):
    outcome = run(
        tmp_path, "print('one'); print('two'); raise SystemExit(3)", show=lambda line: line == "two"
    )
    assert outcome.status == 3
    assert outcome.text == "one\ntwo\n"
    assert capsys.readouterr().out == "    two\n"


def test_what_hangs_is_stopped_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "GRACE", 0.2)
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']); "
        "print(child.pid); time.sleep(1000)"
    )
    outcome = run(tmp_path, code, limit=2.0)
    assert outcome.status is None
    child = Path(f"/proc/{int(outcome.text)}")
    for _ in range(100):  # until it is reaped, by whoever its parent is now
        if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process was left running")


def test_limits_shrink_with_the_time_left():
    assert cli.limit_of("tests", 500) == parts.PARTS["tests"][1]
    assert cli.limit_of("tests", 60) == 60 - cli.RESERVE
    times = iter([0.0, 30.0, 100.0])
    clock = running.Clock(1, lambda: next(times))
    assert clock.left == 30
    assert clock.left == 0


def test_junit(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure message="x"/></testcase>'
        '<testcase classname="a" name="d"><skipped message="needs a GPU"/></testcase>'
        "</testsuite></testsuites>"
    )
    found = outcomes.of_junit(path)
    assert found == {
        "passed": 1,
        "failed": 1,
        "skipped": 1,
        "failures": ["a::c"],
        "skips": {"needs a GPU": 1},
    }
    assert outcomes.of_junit(tmp_path / "absent.xml") is None


def test_log_of_tests_that_were_stopped():
    text = (
        "[gw1] [ 10%] PASSED tests/a.py::one[1-2] \n[gw0] [ 20%] FAILED tests/a.py::two \n"
        "[gw0] [ 30%] SKIPPED tests/a.py::three \ntests/a.py::four \nFAILED tests/a.py::two - assert\n"
    )
    found = outcomes.of_log(text)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == ["tests/a.py::two"]


@pytest.mark.parametrize(
    ("text", "status", "verdict"),
    [
        (f"{outcomes.DONE}\n========= ERROR SUMMARY: 0 errors\n", 0, "passed"),
        (
            f"{outcomes.DONE}\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
            0,
            "passed",
        ),
        (f"{outcomes.DONE}\n========= ERROR SUMMARY: 3 errors\n", 9, "failed"),
        ("========= ERROR SUMMARY: 0 errors\n", 0, "failed"),
        ("========= Error: Device not supported. Please refer to the documentation\n", 1, "skipped"),
        ("small suite: torch.float32\n", None, "timed out"),
        ("", 1, "failed"),
    ],
)
def test_verdict_of_the_sanitizer(text, status, verdict):
    assert outcomes.of_sanitizer(text, status)[0] == verdict


def test_worst_verdict():
    assert parts.worst(["passed", "skipped"]) == "skipped"
    assert parts.worst(["timed out", "failed", "passed"]) == "failed"


@pytest.mark.parametrize(
    ("verdicts", "bad"),
    [
        ({"build": "passed", "tests": "passed", "sanitizer": "skipped"}, False),
        ({"tests": "failed"}, True),
        ({"tests": "timed out"}, True),
        ({"suite": "timed out", "benchmarks": "timed out"}, False),
        ({"suite": "failed"}, True),
    ],
)
def test_exit_status(verdicts, bad):
    of = {"parts": {name: {"verdict": verdict} for name, verdict in verdicts.items()}}
    assert cli.failed(of, list(verdicts)) == bad
    assert not cli.failed(of, [])


def test_results_of_other_versions_are_not_kept():
    device = {"gpu": "g", "torch": "2.11.0"}
    first = cli.start(device, {}, costs.FULL)
    first["parts"]["tests"] = {"verdict": "passed"}
    assert cli.start(device, first, costs.FULL)["parts"] == {"tests": {"verdict": "passed"}}
    assert cli.start({**device, "torch": "2.14.0"}, first, costs.FULL)["parts"] == {}


def test_wheels_of_what_is_installed_are_not_wanted(tmp_path):
    for name in ("torch-9.9-py3-none-any.whl", "no_such_package_here-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert [w.name for w in environment.wheels_wanted(tmp_path)] == [
        "no_such_package_here-1.0-py3-none-any.whl"
    ]
    assert "no folder" in environment.install_wheels(str(tmp_path / "absent"), tmp_path)
    assert "not set" in environment.install_wheels(None, tmp_path)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "MODULES", {"json": "json", "no_such_module": "no-such-package"})
    assert environment.missing() == {"no_such_module": "no-such-package"}
    (tmp_path / "no_such_module.py").touch()
    assert environment.missing([str(tmp_path)]) == {}


def test_packages_of_the_folder_are_found_by_the_parts(tmp_path):
    environment.make_site(tmp_path / "site")
    (tmp_path / "site" / "linked.pth").write_text(f"{tmp_path / 'elsewhere'}\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "found_by_pth.py").touch()
    env = environment.variables(tmp_path / "site")
    subprocess.run([sys.executable, "-c", "import found_by_pth"], env=env, check=True)


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(environment, "probe", lambda: {"gpu": None, "torch": "2.14.1", "torch_cuda": "13.0"})
    assert cli.main([]) == 2
    said = capsys.readouterr().err
    assert (
        said == "gpu_report: expected a GPU that PyTorch can use, got none with PyTorch 2.14.1 (CUDA 13.0)\n"
    )


def test_unknown_part(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--parts", "build,paint"])
    assert "got paint" in capsys.readouterr().err


def test_parts_are_written_as_they_end(monkeypatch, tmp_path, capsys):
    device = {"gpu": "Some GPU", "torch": "2.14.1", "capability": "9.0"}
    results = tmp_path / "results"
    seen = []

    def second(place, limit):
        seen.append(json.loads((results / "some-gpu.json").read_text())["parts"])
        return parts.Part("failed", "broke")

    monkeypatch.setattr(environment, "probe", lambda: device)
    monkeypatch.setattr(environment, "missing", lambda search: {})
    monkeypatch.setattr(cli, "WORK", tmp_path / "work")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(
        cli, "PARTS", {"build": (lambda place, limit: parts.Part("passed"), 9), "tests": (second, 9)}
    )
    assert cli.main(["--results", str(results)]) == 1
    assert [part["build"]["verdict"] for part in seen] == ["passed"]
    assert "| tests | failed | 0 | broke |" in (results / "some-gpu.md").read_text()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"some-gpu.json", "some-gpu.md"}
    assert "tests: failed: broke" in capsys.readouterr().out


def test_readme_has_the_times_of_the_results():
    text = (environment.ROOT / "README.md").read_text()
    assert readme.put(text, readme.measured()) == text, "run: cd benchmarks && python3 -m gpu_report.readme"


def test_times_go_into_the_readme(tmp_path):
    files.write_json(tmp_path / "nvidia-h200.json", report())
    files.write_json(tmp_path / "other.json", {"gpu": "none", "parts": {}})
    text = f"above\n{readme.BEGIN}\nold\n{readme.END}\nbelow\n"
    got = readme.put(text, readme.measured(tmp_path))
    assert got.startswith(f"above\n{readme.BEGIN}\nNVIDIA H200, PyTorch 2.11.0, 12 images; microseconds")
    assert "| mask NMS | 10 | 3.5 |" in got
    assert "old" not in got
    assert readme.put(got, {}) == text.replace("old", readme.NOTHING)
