"""What ``optimize`` takes besides files, prints for programs, and leaves when it fails."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import batches, conv

import convfactor
from convfactor import Plan
from convfactor.cli.commands.optimize import PARTIAL

GIVEN = [
    "--input",
    "1x2x12x12",
    "--output",
    "out",
    "--objective",
    "macs",
    "--structures",
    "cascade",
]


def optimize(run, model="theirs:net", *more):
    return run("optimize", model, *GIVEN, "--tolerance", "0.001", *more)


def test_the_outcome_as_json_is_all_of_stdout(folder, run):
    ran = optimize(run, "theirs:make", "--json")
    found = json.loads(ran.out)
    plan = Plan.load("out")
    (layer,), (entry,) = found["layers"], plan.entries
    assert (found["output"], found["replaced"], found["found"]) == ("out", 1, 1)
    assert sorted(found["files"]) == sorted(path.name for path in (folder / "out").iterdir())
    assert (layer["name"], layer["structure"]) == ("0", str(entry.decision.structure))
    assert layer["error"] == pytest.approx(entry.error)
    assert layer["multiplies_before"] == 100
    assert found["model"]["errors"] == pytest.approx(plan.whole.errors)
    assert "a word of the user's own" in ran.err
    assert "1 of 1 large-kernel layer replaced" in ran.err


def test_quiet_leaves_the_table_out_beside_json(folder, run):
    ran = optimize(run, "theirs:net", "--json", "--quiet")
    assert json.loads(ran.out)["replaced"] == 1
    assert ran.err == ""


@pytest.mark.parametrize("model", ["theirs:net", "theirs:Net", "theirs:make", "theirs:inner.net"])
def test_a_module_its_class_or_what_makes_it_is_a_model(folder, run, model):
    assert optimize(run, model).status == 0
    assert len(Plan.load("out").replaced) == 1


def test_batches_may_be_there_already(folder, run):
    assert optimize(run, "theirs:net", "--calibration", "theirs:data").status == 0
    assert Plan.load("out").calibration.fit == 3


@pytest.mark.parametrize("kind", ["safetensors", "pt", "npz"])
def test_weights_and_batches_are_read_from_stdin(folder, run, monkeypatch, kind):
    buffer = io.BytesIO()
    state = {"0.weight": conv().weight.detach(), "0.bias": torch.ones(2)}
    if kind == "safetensors":
        buffer.write(safetensors.torch.save(state))
    elif kind == "pt":
        torch.save(state, buffer)
    else:
        np.savez(buffer, *[batch.numpy() for batch in batches(4)])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(buffer.getvalue())))
    option = "--calibration" if kind == "npz" else "--weights"
    assert optimize(run, "theirs:net" if kind == "npz" else "theirs:empty", option, "-").status == 0
    plan = Plan.load("out")
    assert len(plan.replaced) == 1
    assert plan.calibrated == (kind == "npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "out", "--weights", "w.pt"], "--weights are those of --model: give --model"),
        (["show", "out", "--model", "a:b"], "--model is for the page: give --html as well"),
        (["show", "out", "--csv", "-", "--json", "-"], "--csv and --json can't both be -"),
        (["optimize", "a:b", "--input", "1", "--output", "-"], "--output must be a folder, got -"),
        (
            ["optimize", "a:b", "--weights", "-", "--calibration", "-", *GIVEN],
            "--weights and --calibration can't both be -: stdin holds one file",
        ),
        (["optimize", "theirs:data", *GIVEN], "theirs:data must be a torch.nn.Module, or return"),
    ],
)
def test_what_does_not_belong_together_is_refused(folder, run, arguments, message):
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err


@pytest.mark.parametrize("target", [["-"], []])
def test_reports_go_to_stdout_in_place_of_the_table(folder, run, target):
    optimize(run)
    plan = Plan.load("out")
    for name in ("csv", "markdown", "json", "html"):
        assert run("show", "out", f"--{name}", *target) == (0, getattr(plan, f"to_{name}")(), "")


@pytest.mark.parametrize("output", ["out", "new/deep/out"])
def test_a_failed_run_leaves_no_empty_folder(folder, run, output):
    assert optimize(run, "theirs:nothing", "--output", output).status == 2
    assert optimize(run, "theirs:net", "--output", output, "--select", "nothing").status == 2
    assert not (folder / output.split("/")[0]).exists()
    (folder / output).mkdir(parents=True)
    assert optimize(run, "theirs:nothing", "--output", output).status == 2
    assert not list((folder / output).iterdir())


@pytest.mark.parametrize("error", [ValueError("theirs"), convfactor.ToleranceError("missed")])
def test_a_failed_run_says_what_is_kept_unless_it_is_of_no_use(folder, run, monkeypatch, error):
    def fail(*args, checkpoint, **kwargs):
        checkpoint.mkdir()
        (checkpoint / "plan.json").touch()
        raise error

    monkeypatch.setattr("convfactor.optimize", fail)
    (folder / "out" / "partial").mkdir(parents=True)
    ran = optimize(run)
    missed = isinstance(error, convfactor.ToleranceError)
    assert ran.status == (1 if missed else 2)
    assert (f"kept in out/{PARTIAL}, and the same command goes on" in ran.err) == (not missed)
    left = {path.name for path in (folder / "out").iterdir()}
    assert left == ({"partial"} if missed else {"partial", PARTIAL})


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupted_run_says_what_is_kept(folder, run, monkeypatch, kept):
    def interrupt(*args, checkpoint, **kwargs):
        checkpoint.mkdir()
        if kept:
            (checkpoint / "plan.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("convfactor.optimize", interrupt)
    ran = optimize(run)
    assert (ran.status, ran.out) == (130, "")
    told = f"what was found is kept in out/{PARTIAL}, and the same command goes on from there"
    assert ran.err == f"convfactor: interrupted; {told if kept else 'nothing was written'}\n"
    assert (folder / "out").exists() == kept


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("model", "where", "told"),
    [
        ("theirs:net", "convfactor.plans.plan.Plan.to_html", "what was found is kept"),
        (
            "theirs:small",
            "convfactor.plans.plan.Plan.to_html",
            "cascades.safetensors, plan.json, table.txt in out is all that was written",
        ),
        (
            "theirs:small",
            "convfactor.cli.commands.optimize.note",
            "the result in out is complete",
        ),
    ],
)  # fmt: skip
def test_an_interruption_while_writing_says_what_was_written(
    folder, run, monkeypatch, model, where, told
):
    monkeypatch.setattr(where, interrupt)
    ran = optimize(run, model)
    assert ran.status == 130
    assert f"convfactor: interrupted; {told}" in ran.err


def test_the_demo_checks_packages_and_folder_before_it_solves(folder, run, monkeypatch):
    monkeypatch.setattr("convfactor.optimize", None)
    (folder / "file").touch()
    ran = run("demo", "--output", "file/demo")
    assert ran.status == 2
    assert "file" in ran.err
    monkeypatch.setattr("convfactor.demo.run.find_spec", lambda name: None)
    ran = run("demo", "--output", "demo")
    assert ran.status == 2
    assert "needs scikit-image and matplotlib, which is not installed" in ran.err
    assert "pip install 'convfactor[demo]'" in ran.err
    assert not (folder / "demo").exists()


def test_an_interrupted_demo_says_what_is_true(folder, run, monkeypatch):
    pytest.importorskip("skimage")

    monkeypatch.setattr("convfactor.demo.run.convfactor.optimize", interrupt)
    ran = run("demo", "--workers", "1")
    assert ran == (130, "", "convfactor: interrupted; nothing was written\n")
    assert not (folder / "convfactor-demo").exists()
