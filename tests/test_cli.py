from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from tiny import batches, conv, images

import convfactor
from convfactor import Plan, __version__
from convfactor.cli import main

MODULE = """
import torch
from tiny import batches, conv
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(2, 2, 5, padding=2), nn.ReLU())

def tied():
    a, b = nn.Conv2d(2, 2, 5, padding=2), nn.Conv2d(2, 2, 5, padding=2)
    b.weight, b.bias = a.weight, a.bias
    return nn.Sequential(a, b)

def data():
    yield from batches(4)

class Branch(nn.Sequential):
    def forward(self, x):
        return super().forward(x) if x.sum().item() > 0 else x

def branch():
    return Branch(conv())

def rough():
    torch.manual_seed(0)
    return net()

def string():
    return "net"

def breaks():
    raise KeyError("no such thing")

def pair():
    return nn.Sequential(conv(), nn.ReLU(), conv(seed=2))

def score(model):
    with torch.no_grad():
        return -float(sum(model(x).square().mean() for x in batches(2)))

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a module ``mine`` in it."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "wrong.py").write_text("def net(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("convfactor.progress.EVERY", 1e6)  # no lines on a slow machine
    yield tmp_path
    for name in ("mine", "wrong"):
        sys.modules.pop(name, None)


def run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def optimize(model: str = "mine:net", *more: str) -> int:
    given = ["--input", "1x2x12x12", "--output", "out", "--tolerance", "0.001"]
    fast = ["--objective", "macs", "--structures", "cascade"]  # fewer are solved
    return run("optimize", model, *given, *fast, *more)


@pytest.mark.parametrize(
    ("calls", "written"),
    [
        (["1x2x12x12", "--call", "2.5*1x2x16x16"], ["1 x (1x2x12x12)", "2.5 x (1x2x16x16)"]),
        (["3*2x2x8x9"], ["3 x (2x2x8x9)"]),
    ],
)
def test_several_calls(folder, calls, written):
    given = ["--output", "out", "--objective", "macs", "--structures", "cascade"]
    assert run("optimize", "mine:pair", *given, "--call", *calls) == 0
    assert [str(call) for call in Plan.load("out").calls] == written


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give the shapes of the inputs: --input for one call, or --call for each"),
        (["--input", "1x2", "--call", "1x2"], "--input is for one call and --call for each"),
        (["--call", "x*1x2"], "'x' is not a number of times"),
        (["--call", "0*1x2"], "'0' is not a number of times"),
        (["--call", "2*1x2,1y2"], "'1y2' is not a shape"),
    ],
)
def test_calls_that_can_not_be_read(folder, capsys, given, message):
    assert run("optimize", "mine:net", "--output", "out", *given) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def state():
    return {"0.weight": conv().weight.detach(), "0.bias": torch.ones(2)}


@pytest.mark.parametrize(
    "budget",
    [
        ["--model-tolerance", "0.02", "--workers", "1"],
        ["--evaluate", "mine:score", "--max-drop", "0.01", "--no-refine", "--workers", "2"],
        ["--evaluate", "mine:score", "--max-drop", "0.01", "--lower-is-better", "--time-limit",
         "600", "--workers", "1"],
    ],
)  # fmt: skip
def test_a_budget_for_the_model(folder, capsys, budget):
    given = ["--input", "1x2x12x12", "--output", "out", "--objective", "macs"]
    given += ["--structures", "cascade"]
    assert run("optimize", "mine:pair", *given, "--calibration", "mine:data", *budget) == 0
    plan = Plan.load("out")
    assert capsys.readouterr().out == f"{plan}\n"
    assert len(plan.replaced) == 2
    assert plan.settings.evaluate == ("score" if "--evaluate" in budget else "")
    assert plan.settings.refine == ("--no-refine" not in budget)
    assert plan.settings.higher_is_better == ("--lower-is-better" not in budget)
    assert plan.spending.limit == float(budget[budget.index("--max-drop") + 1]
                                        if "--evaluate" in budget else 0.02)  # fmt: skip
    assert len(list((folder / "out").iterdir())) == 7


def test_an_evaluation_that_is_not_there(folder, capsys):
    given = ["--input", "1x2x12x12", "--output", "out", "--max-drop", "1"]
    assert run("optimize", "mine:net", *given, "--evaluate", "mine:absent") == 2
    assert "--evaluate 'mine:absent': there is no absent in mine" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("calibration", [None, "data.npz", "mine:data"])
def test_everything_is_written_and_can_be_loaded(folder, capsys, state, kind, calibration):
    if kind == "pt":
        torch.save(state, "weights.pt")
    else:
        save_file(state, "weights.safetensors")
    np.savez("data.npz", *[batch.numpy() for batch in batches(4)])
    more = [] if calibration is None else ["--calibration", calibration]
    assert optimize("mine:net", "--weights", f"weights.{kind}", *more) == 0

    out, err = capsys.readouterr()
    plan = Plan.load("out")
    assert out == f"{plan}\n" == (folder / "out" / "table.txt").read_text()
    assert ("calibration batches" in out) == (calibration is not None)
    assert err.splitlines()[-1].startswith("convfactor: wrote plan.json, cascades.safetensors")
    assert len(list((folder / "out").iterdir())) == 7

    import mine

    model = mine.net()
    model.load_state_dict(state)
    fast = plan.apply(model)
    assert len(plan.replaced) == 1
    exported = torch.export.load("out/model.pt2").module()
    torch.testing.assert_close(exported(images()), fast(images()))
    torch.testing.assert_close(fast(images()), model(images()), rtol=1e-3, atol=1e-4)
    fresh = mine.net()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    assert torch.equal(convfactor.load("out", fresh)(images()), fast(images()))
    assert load_file("out/convfactor.safetensors").keys() <= fast.state_dict().keys()
    assert (folder / "out" / "report.html").read_text() == plan.to_html(model=model)

    assert run("show", "out") == 0
    assert capsys.readouterr().out == out
    original = ["--model", "mine:net", "--weights", f"weights.{kind}"]
    assert run("show", "out", "--html", "page.html", *original) == 0
    assert (folder / "page.html").read_text() == plan.to_html(model=model)


def test_weights_that_a_training_framework_nests(folder, state):
    torch.save({"epoch": 3, "state_dict": state}, "weights.pt")
    assert optimize("mine:net", "--weights", "weights.pt") == 0
    assert Plan.load("out").replaced


def test_an_output_that_is_a_file(folder, capsys):
    (folder / "out").write_text("mine")
    assert optimize() == 2
    assert "--output must be a folder" in capsys.readouterr().err
    assert (folder / "out").read_text() == "mine"


def test_tied_weights_from_a_file_that_holds_them_once(folder):
    model = torch.nn.Sequential(conv(), conv())
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    save_model(model, "weights.safetensors")
    assert optimize("mine:tied", "--weights", "weights.safetensors") == 0
    assert Plan.load("out").entries[0].subject.owners == ("0", "1")


def test_a_model_that_can_not_be_exported_is_optimized_all_the_same(folder, capsys):
    assert optimize("mine:branch") == 0
    out, err = capsys.readouterr()
    assert "1 of 1 large-kernel layer replaced" in out
    assert "model.pt2 was not written" in err
    assert not (folder / "out" / "model.pt2").exists()


def test_strict(folder, capsys):
    assert optimize("mine:rough", "--strict") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("convfactor: error: the tolerance of 0.001 is missed: 0 (")
    assert optimize("mine:rough") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine:nothing"], "there is no nothing in mine"),
        (["mine:number"], "mine:number must be a torch.nn.Module, or return one, got int"),
        (["mine"], "must be given as MODULE:NAME, got 'mine'"),
        (["nowhere:net"], "No module named 'nowhere'"),
        (["wrong:net"], "can't be imported: SyntaxError"),
        (["mine:breaks"], "raised KeyError"),
        (["mine:string"], "must be a torch.nn.Module, or return one, got str"),
        (["mine:net", "--weights", "absent.pt"], "--weights must be a file, got absent.pt"),
        (["mine:net", "--weights", "mine.py"], "mine.py can't be read"),
        (["mine:net", "--weights", "junk.safetensors"], "junk.safetensors can't be read"),
        (["mine:net", "--weights", "other.safetensors"], "does not fit mine:net"),
        (["mine:net", "--weights", "other.pt"], "does not fit mine:net"),
        (["mine:net", "--weights", "list.pt"], "does not fit mine:net"),
        (["mine:net", "--calibration", "absent.npz"], "--calibration must be a file"),
        (["mine:net", "--calibration", "junk.npz"], "junk.npz can't be read"),
        (["mine:net", "--calibration", "array.npz"], "array.npz can't be read"),
        (["mine:net", "--calibration", "mine:number"], "must be batches, or a function"),
        (["mine:net", "--calibration", "mine:breaks"], "raised KeyError"),
        (["mine:net", "--calibration", "mine:net3"], "there is no net3 in mine; did you mean net?"),
        (["mine:net", "--calibration", "wide.npz"], "calibration batch 0 must look like"),
        (["mine:net", "--calibration", "empty.npz"], "at least one batch"),
        (["mine:net", "--calibration", "text.npz"], "text.npz can't be read"),
        (["mine:net", "--input", "1x2x12x12"], "example_inputs must be what the model takes"),
        (["mine:net", "--tolerance", "nan"], "tolerance must be a positive number"),
        (["mine:net", "--tolerance", "0"], "tolerance must be a positive number"),
        (["mine:net", "--model-tolerance", "0.1"], "give one of --tolerance"),
        (["mine:net", "--max-drop", "0.1"], "give one of --tolerance"),
        (["mine:net", "--evaluate", "mine:score"], "evaluate and --max-drop belong together"),
        (["mine:net", "--evaluate", "score"], "--evaluate must be given as MODULE:NAME"),
        (["mine:net", "--refine"], "refine needs a budget for the model"),
        (["mine:net", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["mine:net", "--min-speedup", "0"], "--min-speedup must be"),
        (["mine:net", "--device", "toaster"], "--device toaster can't be used"),
        (["mine:net", "--output", "mine.py"], "mine.py"),
    ],
)
def test_a_mistake_is_one_line_without_a_traceback(folder, capsys, arguments, message):
    for name in ("junk.npz", "junk.safetensors"):
        (folder / name).write_bytes(b"PK\x03\x04 this is no archive")
    save_file({"1.weight": torch.ones(2)}, "other.safetensors")
    torch.save({"1.weight": torch.ones(2)}, "other.pt")
    torch.save([1, 2], "list.pt")
    np.savez("wide.npz", np.zeros((2, 3, 12, 12), np.float32))
    np.savez("empty.npz")
    np.savez("text.npz", np.array(["a"]))
    with open("array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    assert optimize(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("convfactor: error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (folder / "out" / "plan.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["optimise"],
        ["optimize"],
        ["optimize", "mine:net", "--output", "out"],
        ["optimize", "mine:net", "--output", "out", "--input", "1x2x"],
        ["optimize", "mine:net", "--output", "out", "--input", "1x0x9x9"],
        ["optimize", "mine:net", "--output", "out", "--input", "large"],
        ["optimize", "mine:net", "--output", "out", "--input", "1x2", "--tolerance", "much"],
        ["optimize", "mine:net", "--output", "out", "--input", "1x2", "--objective", "size"],
        ["show"],
        ["show", "nowhere"],
    ],
)
def test_wrong_usage(folder, capsys, arguments):
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "convfactor" in err


def test_reports_of_a_saved_plan(folder, capsys):
    assert optimize("mine:branch") == 0
    table = capsys.readouterr().out
    plan = Plan.load("out")
    files = {"html": "a/page.html", "markdown": "a/page.md", "csv": "plan.csv", "json": "plan.json"}
    options = [part for name, file in files.items() for part in (f"--{name}", file)]
    assert run("show", "out", *options) == 0
    out, err = capsys.readouterr()
    assert out == table
    assert err.splitlines() == [f"convfactor: wrote {file}" for file in files.values()]
    for name, file in files.items():
        text = (folder / file).read_text()
        assert text == getattr(plan, f"to_{name}")()
        assert plan.entries[0].name in text


def test_a_report_that_can_not_be_written(folder, capsys):
    assert optimize("mine:branch") == 0
    capsys.readouterr()
    assert run("show", "out", "--html", "mine.py/page.html") == 2
    err = capsys.readouterr().err
    assert err.startswith("convfactor: error: ")
    assert "mine.py" in err
    assert run("show", "out", "--csv", "out") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_and_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == __version__
    assert run("optimize", "--help") == 0
    assert "MODULE:NAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, "optimize a model of your own"),
        (["optimize", "--help"], 0, "MODULE:NAME"),
        (["--version"], 0, __version__),
        ([], 2, "COMMAND must be one of demo, optimize, show"),
        (["optimize", "mine:net", "--output", "out"], 2, "give the shapes of the inputs: --input"),
        (["demo", "--max-drop", "much"], 2, "--max-drop: 'much' is not a number"),
        (["demo", "--max-drop", "-5"], 2, "--max-drop must be a number >= 0"),
        (["demo", "--output", "mine.py"], 2, "--output must be a folder"),
        (["optimize", "mine:net", "--input", "1x2", "--output", "mine.py"], 2, "is a file"),
        (["optimize", "mine", "--input", "1x2", "--output", "out"], 2, "MODULE:NAME, got 'mine'"),
        (["show", "out", "--html", "page", "--model", "mine"], 2, "MODULE:NAME, got 'mine'"),
    ],
)
def test_torch_is_not_loaded_for_an_answer_that_needs_no_model(folder, arguments, status, message):
    code = (
        "import sys\n"
        "from convfactor.cli import main\n"
        "try: status = main()\n"
        "except SystemExit as stop: status = stop.code\n"
        "assert not {'torch', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert message in (done.stderr if status else done.stdout)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "replaced"),
    [
        (["--select", "0"], ["0"]),
        (["--select", "0", "--select", "2"], ["0", "2"]),
        (["--skip", "0"], ["2"]),
        (["--select", "*", "--skip", "2", "--skip", "0"], []),
    ],
)
def test_layers_are_selected_by_patterns(folder, given, replaced):
    assert optimize("mine:pair", *given) == 0
    plan = Plan.load("out")
    assert [entry.name for entry in plan.entries] == ["0", "2"]
    assert [entry.name for entry in plan.entries if entry.replaced] == replaced


def test_a_pattern_that_matches_nothing_is_a_mistake(folder, capsys):
    assert optimize("mine:pair", "--skip", "head") == 2
    assert "--skip 'head' matches none of the layers" in capsys.readouterr().err


@pytest.fixture
def program(folder):
    """An exported program of any batch size in the working folder."""
    size = torch.export.Dim("size", max=64)
    given = torch.export.export(conv().eval(), (images(count=2),), dynamic_shapes=({0: size},))
    torch.export.save(given, "given.pt2")
    return given


@pytest.mark.parametrize("more", [[], ["--input", "3x2x12x12", "--calibration", "mine:data"]])
def test_an_exported_program_in_and_one_out(folder, capsys, program, more):
    given = ["--output", "out", "--objective", "macs", "--structures", "cascade"]
    assert run("optimize", "given.pt2", *given, "--tolerance", "0.001", *more) == 0
    files = {path.name for path in (folder / "out").iterdir()}
    assert files == {
        "plan.json", "cascades.safetensors", "table.txt", "report.html", "model.pt2",
    }  # fmt: skip
    plan = Plan.load("out")
    assert [str(call) for call in plan.calls] == [f"1 x ({3 if more else 2}x2x12x12)"]
    fast = torch.export.load("out/model.pt2")
    assert len(fast.graph_signature.parameters) > len(program.graph_signature.parameters)
    x = images(1, count=5)
    torch.testing.assert_close(fast.module()(x), program.module()(x), rtol=0, atol=1e-5)
    assert run("show", "out", "--model", "given.pt2", "--html", "page.html") == 0
    assert "<svg" in (folder / "page.html").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["absent.pt2"], "the model must be a file or MODULE:NAME, got absent.pt2"),
        (["junk.pt2"], "junk.pt2 can't be read as an exported program"),
        (["given.pt2", "--weights", "given.pt2"], "--weights is for MODULE:NAME, given.pt2"),
        (["given.pt2", "--dtype", "float64"], "--device and --dtype are for MODULE:NAME"),
        (["given.pt2", "--input", "1x3x12x12"], "example_inputs must be what the model takes"),
        (["model.pt2", "--output", "."], "--output must be another folder, the result would"),
    ],
)
def test_programs_that_can_not_be_optimized(folder, capsys, program, given, message):
    (folder / "junk.pt2").write_bytes(b"junk")
    torch.export.save(program, "model.pt2")
    assert run("optimize", "--output", "out", *given) == 2
    assert message in capsys.readouterr().err
