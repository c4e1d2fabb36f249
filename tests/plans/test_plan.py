from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import damage  # tests/fuzz
import numpy as np
import pytest
import torch
from interruptions import interrupted
from safetensors.torch import load_file, save_file
from tiny import Functional, batches, conv, images
from torch import nn

import convfactor
from convfactor import Bounds, CascadeConv2d, Plan, cli
from convfactor.conv.accuracy import OutputErrors
from convfactor.errors import PlanMismatchError
from convfactor.latency import Timing
from convfactor.model.digests import digest
from convfactor.model.formats import channels_last
from convfactor.model.reasons import Reason
from convfactor.plans import records
from convfactor.plans.circumstances import HeldOut, WhiteNoise
from convfactor.plans.decisions import Cost, Entry, Kept, Swapped, Tried, WholeModel
from convfactor.plans.storage import PLAN_FILE, WEIGHTS_FILE


def model() -> nn.Module:
    return nn.Sequential(conv(), conv(seed=1), Functional())


@pytest.fixture(scope="module")
def planned() -> Plan:
    plan = convfactor.plan(
        model(),
        images(),
        1e-3,
        calibration=batches(4),
        objective="macs",
        select=lambda name, module: name != "0",
    )
    timing = Timing(0.1, 1e-3, 2.0)
    whole = WholeModel((0.01, math.inf), timing, timing, "channels_last")
    decision = replace(
        plan.entries[1].decision,
        cost=replace(plan.entries[1].decision.cost, before=timing, after=timing),
        bounds=Bounds(1.0, math.inf),
        errors=OutputErrors(1e-17, math.inf, math.nan, None),
    )
    entry = replace(plan.entries[1], decision=decision)
    return replace(plan, entries=(plan.entries[0], entry, plan.entries[2]), whole=whole)


@pytest.fixture(scope="module")
def varied(planned) -> Plan:
    """The plan with every other kind of decision, made without data."""
    subject, decision = planned.entries[1].subject, planned.entries[1].decision
    transform = replace(
        subject, kind="transform", weight_name="", dtype="", kernel_size=(), geometry=None
    )
    clocked = Cost(Timing(2.0, 1.0, 3.0), Timing(0.5, 0.5, 0.5))
    speed = Kept(Reason("speed", "slower", "it is slower"), Tried(None, clocked, math.nan))
    miss = Kept(Reason("tolerance", "tolerance", "it is too far off"), decision.tried)
    entries = (
        *planned.entries,
        Entry(subject, miss),
        Entry(transform, speed),
        Entry(transform, Swapped(clocked, math.inf, "cpp")),
    )
    return replace(planned, entries=entries, calibration=WhiteNoise(), whole=None)


def test_saving_and_loading_gives_the_same_plan(planned, tmp_path):
    planned.save(tmp_path / "a" / "b")
    loaded = Plan.load(tmp_path / "a" / "b")
    assert repr(loaded.entries) == repr(planned.entries)  # a NaN is not equal to itself
    assert loaded.entries[0].decision == planned.entries[0].decision
    for mine, theirs in zip(loaded.entries, planned.entries, strict=True):
        assert mine.subject == theirs.subject
    for part in ("settings", "environment", "calibration", "whole"):
        assert getattr(loaded, part) == getattr(planned, part)
    assert loaded.replaced == planned.replaced == [1, 2]
    for i in planned.replaced:
        decision, other = planned.entries[i].decision, loaded.entries[i].decision
        assert type(other) is type(decision)
        for part in ("memory_format", "cost", "error", "weight_error", "bounds", "structure"):
            assert getattr(other, part) == getattr(decision, part)
        assert torch.equal(other.bias_shift, decision.bias_shift)
        assert other.bias_shift.dtype == decision.bias_shift.dtype
        for mine, theirs in zip(other.cascade.stages, decision.cascade.stages, strict=True):
            assert mine.weight.dtype == theirs.weight.dtype
            assert torch.equal(mine.weight, theirs.weight)
    assert str(loaded) == str(planned)


def test_every_kind_of_decision_is_kept(varied, tmp_path):
    varied.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert repr(loaded.entries) == repr(varied.entries)
    assert loaded.calibration == WhiteNoise()
    assert loaded.whole is None
    kinds = [type(entry.decision).__name__ for entry in loaded.entries]
    assert kinds == ["Kept", "Replaced", "Replaced", "Kept", "Kept", "Swapped"]
    assert loaded.entries[3].decision.tried.structure == varied.entries[1].decision.structure
    assert [entry.missed for entry in loaded.entries] == [False] * 3 + [True] + [False] * 2
    assert loaded.to_csv() == varied.to_csv()


def test_a_loaded_plan_gives_a_fresh_model_the_same_outputs(planned, tmp_path):
    planned.save(tmp_path)
    fast, again = planned.apply(model()), Plan.load(tmp_path).apply(model())
    assert torch.equal(fast(images()), again(images()))
    assert not torch.equal(fast(images()), model()(images()))


def test_the_files_are_plain_json_and_tensors(planned, tmp_path):
    planned.save(tmp_path)
    planned.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PLAN_FILE, WEIGHTS_FILE])

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads((tmp_path / PLAN_FILE).read_text(), parse_constant=refuse)
    assert record["entries"][1]["decision"]["bounds"]["spectral"] == "inf"
    assert [entry["decision"]["decision"] for entry in record["entries"]] == [
        "kept",
        "replaced",
        "replaced",
    ]
    assert record["calibration"]["errors_on"] == "heldout"
    assert load_file(tmp_path / WEIGHTS_FILE).keys() == set("012345")
    assert not (tmp_path / WEIGHTS_FILE).read_bytes()[:2].startswith(b"\x80")


def test_tensors_that_share_memory_are_saved(planned, tmp_path):
    decision = planned.entries[1].decision
    cascade = decision.cascade
    first = cascade.stages[0]
    expanded = replace(first, weight=first.weight.expand_as(first.weight))
    shared = replace(
        decision,
        cascade=replace(cascade, stages=(expanded, *cascade.stages[1:])),
        bias_shift=torch.zeros(4, dtype=torch.float64)[::2],
    )
    entry = replace(planned.entries[1], decision=shared)
    replace(planned, entries=(planned.entries[0], entry, entry)).save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert loaded.replaced == [1, 2]
    for i in loaded.replaced:
        read = loaded.entries[i].decision
        assert torch.equal(read.cascade.stages[0].weight, first.weight)
        assert torch.equal(read.bias_shift, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]",
        lambda text: "3",
        lambda text: text.replace('"format": 4', '"format": 99'),
        lambda text: text.replace('"decision": "replaced"', '"decision": "perhaps"'),
        lambda text: text.replace('"entries"', '"items"'),
        lambda text: text.replace('"kernel_size"', '"ksize"'),
        lambda text: text.replace('"tolerance": 0.001', '"tolerance": "much"'),
        lambda text: text.replace('"out_channels": 2', '"out_channels": 5'),
    ],
)
def test_damaged_text_gives_a_clear_error(planned, tmp_path, damage):
    planned.save(tmp_path)
    text = (tmp_path / PLAN_FILE).read_text()
    assert damage(text) != text
    (tmp_path / PLAN_FILE).write_text(damage(text))
    with pytest.raises(ValueError, match="does not hold a plan that can be read"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"\0" * 99]
)
def test_damaged_weights_give_a_clear_error(planned, tmp_path, damage):
    planned.save(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="does not hold a plan that can be read"):
        Plan.load(tmp_path)


def forge(folder, change) -> None:
    """Change a record, and seal it anew."""
    record = json.loads((folder / PLAN_FILE).read_text())
    del record[records.SEAL]
    change(record)
    record[records.SEAL] = records._seal(record)
    (folder / PLAN_FILE).write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: {**t, "2": t["2"] + math.inf},
        lambda t: {**t, "2": t["2"].float()},
        lambda t: {**t, "2": torch.cat([t["2"], t["2"]])},
        lambda t: {**t, "0": t["0"] * 1e30},
        lambda t: {**t, "0": t["0"] * math.nan},
        lambda t: {**t, "0": t["0"].double()},
        lambda t: {**t, "0": t["0"].mT.contiguous()},
        lambda t: {**t, "0": t["0"].transpose(0, 1).contiguous()},
        lambda t: {**t, "0": t["3"] * 1},
        lambda t: {**t, "6": t["2"] * 1},
        lambda t: {k: v for k, v in t.items() if k != "5"},
    ],
)
def test_exchanged_tensors_are_refused_also_where_the_digest_fits(planned, tmp_path, damage):
    planned.save(tmp_path)
    tensors = damage(load_file(tmp_path / WEIGHTS_FILE))
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="not hold the tensors that were saved"):
        Plan.load(tmp_path)
    forge(tmp_path, lambda record: record.update(tensors_sha256=digest(tensors)))
    sound = all(tensor.isfinite().all() for tensor in tensors.values())
    if sound and looks(tensors) == looks(records.write(planned)[1]):
        assert Plan.load(tmp_path)  # another sound plan
    else:
        with pytest.raises(ValueError, match=r"tensor|weights: must have the shapes|bias_shift"):
            Plan.load(tmp_path)


def looks(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("settings.tolerance", -1),
        ("settings.tolerance", 0.25),
        ("settings.seed", "0"),
        ("entries.1.decision.error", 0.0),
        ("entries.1.decision.cascade.structure.offset", [1, 0]),
        ("entries.1.decision.decision", "kept"),
        ("entries.0.decision.reason.code", "tolerance"),
        ("whole.memory_format", "as given"),
    ],
)
def test_values_that_were_changed_by_hand_are_refused(planned, tmp_path, path, value):
    planned.save(tmp_path)
    record = json.loads((tmp_path / PLAN_FILE).read_text())
    put(record, path, value)
    (tmp_path / PLAN_FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"not those that were saved; .*Plan\.without"):
        Plan.load(tmp_path)


def test_another_layout_of_the_same_values_is_read(planned, tmp_path):
    planned.save(tmp_path)
    record = json.loads((tmp_path / PLAN_FILE).read_text())
    (tmp_path / PLAN_FILE).write_text(json.dumps(dict(reversed(record.items()))))
    assert str(Plan.load(tmp_path)) == str(planned)


def put(record, path: str, value) -> None:
    *way, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in way:
        record = record[key]
    assert record[last] != value
    record[last] = value


def test_a_plan_without_what_older_versions_did_not_write_is_read(planned, tmp_path):
    assert planned.calibration.model
    planned.save(tmp_path)

    def older(record):
        for name in ("model", "measured"):
            del record["calibration"][name]

    forge(tmp_path, older)
    assert Plan.load(tmp_path).calibration == planned.calibration


STRUCTURE = "entries.1.decision.cascade.structure"
NO_COST = {"before": None, "after": None, "macs_before": None, "macs_after": None}
SWAPPED = {
    "cost": {**NO_COST, "macs_before": 2, "macs_after": 1},
    "error": 0.0,
    "backend": "torch",
    "decision": "swapped",
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("settings.tolerance", -1, "tolerance must be a positive number"),
        ("settings.tolerance", "0.01", "must be a number, got '0.01'"),
        ("settings.min_kernel_size", 3, "min_kernel_size must be an int >= 4"),
        ("settings.min_speedup", "nan", "min_speedup must be a number >= 1"),
        ("settings.seed", 2**64, "seed must be an int of 64 bits"),
        ("calibration.model", "0", "sha256 and model must be digests"),
        ("calibration.measured", 0, "numbers of batches must be >= 1"),
        ("calibration.measured", 2, "numbers of batches must be >= 1, measured of held_out"),
        ("settings.objective", "beauty", "beauty"),
        ("entries.1.subject.shapes.0.0.channels_last", 1, "must be of type bool, got 1"),
        ("entries.1.subject.name", None, "must be of type str, got None"),
        ("entries.1.subject.name", "\ud800", "surrogates not allowed"),
        ("entries.1.subject.kind", "thing", "thing"),
        ("entries.1.subject.kernel_size", [True, 5], "must be of type int, got True"),
        ("entries.1.subject.kernel_size", [7, 5], "kernel_size is not that of its geometry"),
        ("entries.1.subject.owners", "abc", "must be a list"),
        ("entries.1.subject.owners", [], "owners must be qualified names"),
        ("entries.1.subject.owners", ["__class__"], "owners must be qualified names"),
        ("entries.1.subject.owners", ["0.forward"], "owners must be qualified names"),
        ("entries.1.subject.owners", ["1..2"], "owners must be qualified names"),
        ("entries.1.subject.weight_name", "1.__dict__", "weight_name must be the qualified name"),
        ("entries.1.subject.weight_name", "1.", "weight_name must be the qualified name"),
        ("entries.1.subject.weight_name", "", "must have a weight_name"),
        ("entries.1.subject.dtype", "load", "dtype must be one of"),
        ("entries.1.subject.dtype", "float64", "tensors must be float64, got float32"),
        ("entries.1.subject.fingerprint", "", "fingerprint must be a digest"),
        ("entries.1.subject.geometry", None, "must be a 2-D convolution"),
        ("entries.1.subject.kind", "transform", "must be a 2-D convolution"),
        ("entries.1.subject.geometry.stride", [0, 1], "number that is too small"),
        ("entries.1.subject.geometry.padding", [-1, 2, 2, 2], "number that is too small"),
        ("entries.1.subject.geometry.groups", 3, "must divide its channels"),
        ("entries.1.subject.geometry.padding_mode", "wrap", "wrap"),
        ("entries.1.subject.geometry.padding", [1, 2, 3], "must be a list"),
        ("entries.1.subject.shapes.0.1", 0, "shapes must be counts"),
        ("entries.1.subject.pads", [1, 1, 1, 1], "pads must be counts and those of a module"),
        ("entries.1.subject.pad", "1..2", "pads must be counts and those of a module"),
        ("entries.1.subject.form.same", {"extent": [5, 5], "stride": [1, 1]}, "form is not that"),
        (f"{STRUCTURE}.stages", [], "at least one stage"),
        (f"{STRUCTURE}.stages.0.groups", 0, "no stage has"),
        (f"{STRUCTURE}.stages.0.groups", 3, "must divide its channels"),
        (f"{STRUCTURE}.stages.0.in_channels", 3, "must have the shapes"),
        (f"{STRUCTURE}.stages.0.dilation", [10**9, 1], "values is too large"),
        (f"{STRUCTURE}.stages.0.dilation", [99, 1], "more than 20 pixels is too large"),
        (f"{STRUCTURE}.stages.0.kernel_size", [2, 3], "must have the shapes .* got"),
        (f"{STRUCTURE}.stages.0.stride", [2, 2], "structure has stride"),
        (f"{STRUCTURE}.offset", [0, 99], "must overlap the kernel"),
        ("entries.1.decision.cascade.weights", ["0"], "must have the shapes"),
        ("entries.1.decision.cascade.weights", ["0", "0"], "the tensor '0' is missing"),
        ("entries.1.decision.cascade.weights", ["1", "0"], "must have the shapes"),
        ("entries.1.decision.cascade.weights.0", "7", "the tensor '7' is missing"),
        ("entries.1.decision.cascade.weights.0", None, "the tensor None is missing"),
        ("entries.1.decision.cascade", [], r"@ \$\.entries\.decision\.cascade"),
        ("entries.1.decision.bias_shift", "9", "the tensor '9' is missing"),
        ("entries.1.decision.gains", "9", "the tensor '9' is missing"),
        ("entries.1.decision.memory_format", "as liked", "as liked"),
        ("entries.1.decision.error", -0.5, "errors and bounds must be >= 0"),
        ("entries.1.decision.error", None, "must be a number, got None"),
        ("entries.1.decision.errors.border", -1, "errors and bounds must be >= 0"),
        ("entries.1.decision.weight_error", -1, "errors and bounds must be >= 0"),
        ("entries.1.decision.bounds.l_inf", "-inf", "errors and bounds must be >= 0"),
        ("entries.1.decision.cost.before.median", 0.0, "times must be positive and in order"),
        ("entries.1.decision.cost.after.low", 1.0, "times must be positive and in order"),
        ("entries.1.decision.cost.before", None, "a cost has two sides"),
        ("entries.1.decision.cost.after", None, "a cost has two sides"),
        ("entries.1.decision.cost.macs_after", None, "a cost has two sides"),
        ("entries.2.decision.cost.macs_before", None, "a cost has two sides"),
        ("entries.2.decision.cost", NO_COST, "a cost has two sides"),
        ("entries.1.decision.cost.macs_before", -3, "multiplies must be >= 1"),
        ("entries.1.decision.decision", "perhaps", "perhaps"),
        ("entries.1.decision.decision", "kept", "Kept"),
        ("entries.0.decision.decision", "swapped", "Swapped"),
        ("entries.0.decision.reason.code", "boredom", "boredom"),
        ("entries.0.decision.reason.text", 5, "must be of type str, got 5"),
        ("entries.0.decision", SWAPPED, "only a transform is swapped"),
        ("calibration.errors_on", "guesses", "guesses"),
        ("whole.after.high", "inf", "times must be positive and in order"),
        ("whole.errors", [-1.0], "errors must be >= 0"),
        ("environment.threads", 0, "threads must be >= 1"),
        ("tensors_sha256", "../*", "tensors_sha256 must be a digest"),
    ],
)
def test_forged_values_are_checked_one_by_one(planned, tmp_path, path, value, message):
    planned.save(tmp_path)
    forge(tmp_path, lambda record: put(record, path, value))
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("entries.3.decision.tried.structure.stages.0.groups", 0, "no stage has"),
        ("entries.3.decision.tried.structure.stages.0.groups", 3, "must divide its channels"),
        ("entries.3.decision.tried.structure.stages", [], "at least one stage"),
        ("entries.3.decision.tried.error", -1, "errors and bounds must be >= 0"),
        ("entries.3.decision.tried.errors.worst_batch", -1, "errors and bounds must be >= 0"),
        ("entries.3.decision.tried.cost.macs_after", 0, "multiplies must be >= 1"),
        ("entries.4.decision.tried.cost.before", None, "a cost has two sides"),
        ("entries.4.decision.tried.cost", NO_COST, "a cost has two sides"),
        ("entries.5.decision.cost.after", None, "a cost has two sides"),
        ("entries.5.decision.cost.after.high", 0.1, "times must be positive and in order"),
        ("entries.5.decision.error", -1, "errors and bounds must be >= 0"),
        ("entries.5.subject.fingerprint", "f", "fingerprint must be a digest"),
        ("entries.5.subject.kind", "module", "only a transform is swapped"),
    ],
)
def test_forged_values_of_every_kind_of_decision_are_checked(
    varied, tmp_path, path, value, message
):
    varied.save(tmp_path)
    forge(tmp_path, lambda record: put(record, path, value))
    with pytest.raises(ValueError, match=message):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "entries.1",
        "entries.1.subject",
        "entries.1.decision",
        "entries.1.decision.cost",
        "entries.1.decision.cascade",
        STRUCTURE,
        "entries.0.decision",
        "entries.0.decision.reason",
        "calibration",
    ],
)
def test_values_with_other_names_are_refused(planned, tmp_path, path):
    def add(record):
        for key in filter(None, path.split(".")):
            record = record[int(key) if key.isdigit() else key]
        record["more"] = 1

    planned.save(tmp_path)
    forge(tmp_path, add)
    with pytest.raises(ValueError, match="more"):
        Plan.load(tmp_path)


def test_channels_that_are_rounded_off_by_groups_are_not_read(tmp_path):
    layer = nn.Sequential(conv(groups=2))
    convfactor.plan(layer, images(), 1e-3, objective="macs").save(tmp_path)
    path = STRUCTURE.replace("1", "0") + ".stages.0.in_channels"
    forge(tmp_path, lambda record: put(record, path, 3))  # 3 // 2 is as 2 // 2
    with pytest.raises(ValueError, match="must divide its channels"):
        Plan.load(tmp_path)


def test_a_module_that_is_missing_is_a_mismatch(planned, tmp_path):
    planned.save(tmp_path)
    forge(tmp_path, lambda record: put(record, "entries.2.subject.owners", ["elsewhere"]))
    plan = Plan.load(tmp_path)
    assert plan.entries[2].subject.kind == "functional"
    with pytest.raises(PlanMismatchError, match="elsewhere"):
        plan.apply(model())


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 10**8,
        '"' + "x" * 10**8 + '"',
        "1" * 10**6,
        "[" + "[]," * 10**6 + "[]]",
        "[" + "1," * 2 * 10**6 + "1]",
        '{"format": 4, "sha256": NaN}',
        "\ufeff{}",
    ],
    ids=lambda text: f"{text[:3]}, {len(text)}",
)
def test_long_and_deep_text_ends_with_an_error_within_a_second(planned, tmp_path, text):
    planned.save(tmp_path)
    (tmp_path / PLAN_FILE).write_text(text)
    start = time.process_time()
    with pytest.raises(ValueError, match="does not hold a plan that can be read") as caught:
        Plan.load(tmp_path)
    assert time.process_time() - start < 1  # of the processor, whatever else runs
    assert len(str(caught.value)) < 1000


def test_a_header_that_claims_a_hundred_megabytes_is_refused(planned, tmp_path):
    planned.save(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes((10**8).to_bytes(8, "little") + b"{" * 10**6)
    with pytest.raises(ValueError, match="header of more than"):
        Plan.load(tmp_path)


def test_a_plan_that_is_too_large_to_be_read_again_is_not_written(planned, tmp_path):
    planned.save(tmp_path)
    large = replace(planned, calibration=HeldOut(1, 1, "x" * records.LARGEST))
    with pytest.raises(ValueError, match="plan must take at most"):
        large.save(tmp_path)
    assert str(Plan.load(tmp_path)) == str(planned)


SAVING = """
import errno, resource, sys
from pathlib import Path
from convfactor import Plan
plan = Plan.load(sys.argv[1]).keeping(1, "another")
size = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    plan.save(sys.argv[2])
except OSError as error:
    print(type(error).__name__, error.errno == errno.EFBIG)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize("size", [0, 100, 4000])
def test_a_full_disk_is_one_error_and_leaves_the_old_plan(planned, tmp_path, size):
    planned.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert min(map(len, before.values())) > 100
    arguments = [sys.executable, "-c", SAVING, str(tmp_path), str(tmp_path), str(size)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout == "OSError True\n"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert str(Plan.load(tmp_path)) == str(planned)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("stop", range(5))
def test_a_run_that_ends_while_it_saves_leaves_one_of_the_two_plans(
    planned, tmp_path, monkeypatch, stop, fresh
):
    """Each step in turn is the first that does not happen."""
    other = planned.keeping(2, "another")
    if not fresh:
        planned.save(tmp_path)
    with interrupted(monkeypatch, stop):
        other.save(tmp_path)
    if fresh and stop < 3:
        with pytest.raises(FileNotFoundError):
            Plan.load(tmp_path)
    else:
        assert str(Plan.load(tmp_path)) == str(planned if stop < 3 else other)
    planned.save(tmp_path)  # and it goes on from there
    assert str(Plan.load(tmp_path)) == str(planned)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PLAN_FILE, WEIGHTS_FILE])


def test_damaged_plans_give_the_same_outputs_or_a_clear_error(planned, tmp_path):
    expected = planned.apply(model())(images())
    answers = 0
    for i in range(200):
        folder = tmp_path / str(i)
        planned.save(folder)
        way = damage.damage(random.Random(i), folder)
        with suppress(ValueError):
            plan = Plan.load(folder)
            assert str(plan)
            got = plan.apply(model())(images())
            assert way == "forged" or torch.equal(got, expected), (i, way)
            answers += 1
    assert answers


def test_the_command_line_reports_damage_in_one_line(planned, tmp_path, capsys):
    planned.save(tmp_path)
    forge(tmp_path, lambda record: put(record, "entries.1.subject.owners", ["__class__"]))
    assert cli.main(["show", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "owners must be qualified names of modules, got ('__class__',)" in err


def test_numbers_of_numpy_are_saved(planned, tmp_path):
    settings = replace(planned.settings, tolerance=np.float32(0.5))
    replace(planned, settings=settings).save(tmp_path)
    assert Plan.load(tmp_path).settings.tolerance == 0.5


@pytest.mark.parametrize("missing", [PLAN_FILE, WEIGHTS_FILE])
def test_missing_files_are_named(planned, tmp_path, missing):
    planned.save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {PLAN_FILE} and {WEIGHTS_FILE}"):
        Plan.load(tmp_path)


def test_keeping_a_layer_after_all(planned):
    less = planned.keeping(1, "undone")
    decision = planned.entries[1].decision
    assert less.entries[1].subject == planned.entries[1].subject
    assert less.entries[1].decision.label == "kept"
    assert less.entries[1].reason == "undone"
    assert less.entries[1].decision.reason == Reason("unselected", "undone", "undone")
    tried = Tried(decision.structure, decision.cost, decision.error, decision.errors)
    assert less.entries[1].decision.tried == tried
    assert not less.entries[1].missed
    assert less.replaced == [2]
    assert planned.entries[1].replaced
    assert isinstance(less.apply(model())[1], nn.Conv2d)


def test_keeping_a_layer_for_a_reason(planned):
    reason = Reason("unsound", "undone", "undone: the outputs differ")
    less = planned.keeping(2, reason)
    assert less.entries[2].decision.reason == reason
    assert less.entries[2].missed
    again = less.keeping(2, "another").keeping(0, "another")  # both are kept already
    assert again.entries[2].decision.reason == reason
    assert again.entries[0].decision == planned.entries[0].decision


def test_weights_that_read_one_channel_are_brought_into_the_format_too():
    layer = nn.Conv2d(1, 8, 5)
    cascade = CascadeConv2d.from_conv(
        layer, convfactor.factorize(layer.weight, widths=(2,)), torch.channels_last
    )
    assert channels_last(layer).weight.stride() == (25, 1, 5, 1)
    for module in (layer, channels_last(cascade)):
        output = module(torch.rand(1, 1, 9, 9))
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("path", "error"), [(3, TypeError), (nn.ReLU(), TypeError)])
def test_a_path_must_be_a_path(path, error):
    plan = convfactor.plan(nn.Sequential(conv()), images(), objective="macs")
    with pytest.raises(error, match="path must be"):
        plan.to_csv(path)


def test_a_folder_is_no_file(tmp_path):
    plan = convfactor.plan(nn.Sequential(conv()), images(), objective="macs")
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        plan.to_html(tmp_path)


@pytest.mark.parametrize("model", [nn.Conv2d, {"weight": torch.ones(1)}])
def test_plans_apply_to_modules_only(model):
    plan = convfactor.plan(nn.Sequential(conv()), images(), objective="macs")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        plan.apply(model)
