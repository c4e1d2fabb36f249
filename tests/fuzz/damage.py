"""Damaged plans: truncated, flipped, exchanged, edited by hand, forged."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tally import Tally
from torch import Tensor, nn

import convfactor
from convfactor import Cascade, Plan
from convfactor.conv.structure import StageShape, Structure
from convfactor.errors import PlanMismatchError
from convfactor.model.digests import digest
from convfactor.plans import records
from convfactor.plans.storage import PLAN_FILE, WEIGHTS_FILE

SECONDS = 1.0
NAMES = (
    *("__class__", "forward", "weight", "", ".", "a.b", "..", "0.", ".0", "0.weight", "training"),
    *(
        "__dict__",
        "_modules",
        "0.__class__",
        "parameters",
        "stages",
        "\ud800",
        "\x1b[31m",
        "a" * 9999,
    ),
)
NUMBERS = (0, -1, 1, 2, 3, 10**6, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.0, 1e308, "inf", "nan")
VALUES = (None, True, False, [], {}, "", [[]], {"a": 1}, *NUMBERS, *NAMES)


class _Net(nn.Module):
    """Three kinds of sites."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = _conv(2, 2, **options)
        self.rest = nn.ModuleDict({"deep": nn.Sequential(nn.ReLU(), _conv(2, 2, groups=2))})
        self.kernel = nn.Parameter(_kernel(2, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.rest["deep"](self.first(x)), self.kernel, padding=2)


def _kernel(out: int, channels: int, groups: int) -> Tensor:
    """A 5x5 kernel that is two 3x3 ones."""
    stages = (StageShape(channels, groups, (3, 3), groups=groups),)
    stages += (StageShape(groups, out, (3, 3), groups=groups),)
    return Cascade.random(Structure(stages), 0).compose().float()


def _conv(channels: int, out: int, groups: int = 1, **options: Any) -> nn.Conv2d:
    layer = nn.Conv2d(channels, out, 5, padding=2, groups=groups, **options)
    with torch.no_grad():
        layer.weight.copy_(_kernel(out, channels, groups))
        if layer.bias is not None:
            layer.bias.fill_(0.5)
    return layer


def models() -> list[nn.Module]:
    """A few tiny models with something to replace."""
    return [
        nn.Sequential(_conv(2, 2), nn.ReLU(), _conv(2, 2, bias=False)),
        _conv(2, 2, padding_mode="reflect"),
        _Net(),
        nn.Sequential(_conv(2, 2)).half(),
    ]


def images(model: nn.Module) -> Tensor:
    """What they are tried on."""
    x = torch.rand(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    return x.to(next(model.parameters()).dtype)


def save(model: nn.Module, folder: Path) -> None:
    """Plan a model and keep the plan."""
    calibration = [images(model) + i / 9 for i in range(4)]
    plan = convfactor.plan(
        model, images(model), 0.02, calibration=calibration, objective="macs", progress=False
    )
    assert plan.replaced
    plan.save(folder)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values of a record, the inner ones included."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*path, key))


def _put(record: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> None:
    """Change what holds the value at the end of a path."""
    for key in path[:-1]:
        record = record[key]
    change(record, path[-1])


def _edit(rng: random.Random, record: dict[str, Any]) -> None:
    """Change one value or key of a record."""
    path = rng.choice(list(_leaves(record)))
    kind = rng.choice(["value"] * 6 + ["number"] * 3 + ["drop", "rename", "repeat", "swap"])

    def change(owner: Any, key: Any) -> None:
        if kind == "value":
            owner[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == "number" and type(owner[key]) in (int, float):
            owner[key] = rng.choice([owner[key] + 1, owner[key] - 1, -owner[key], owner[key] * 2])
        elif kind == "drop":
            del owner[key]
        elif kind == "rename" and isinstance(owner, dict):
            owner[rng.choice([f"{key}x", str(key).upper(), "__class__", ""])] = owner.pop(key)
        elif kind == "repeat" and isinstance(owner, list):
            owner.append(owner[key])
        else:
            other = rng.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
            owner[key], owner[other] = owner[other], owner[key]

    _put(record, path, change)


def _forge(folder: Path, record: dict[str, Any]) -> None:
    """Write a record with digests that fit."""
    tensors = load_file(folder / WEIGHTS_FILE)
    record = {**record, "tensors_sha256": digest(tensors)}
    record.pop(records.SEAL, None)
    with contextlib.suppress(ValueError):  # not even a digest can be taken of some
        record = {records.SEAL: records._seal(record), **record}
    (folder / PLAN_FILE).write_text(json.dumps(record), encoding="utf-8")


def _bytes(rng: random.Random, path: Path) -> None:
    """Truncate a file, flip bits, or write over a part of it."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["cut", "flip", "flip", "flips", "fill", "insert", "empty", "double"])
    at = rng.randrange(len(data))
    if kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = rng.randbytes(rng.randint(1, 50))
    elif kind == "fill":
        length = min(rng.randint(1, 200), len(data) - at)
        data[at : at + length] = rng.choice([b"\0", b"\xff", b"{", b"9"]) * length
    elif kind in ("empty", "double"):
        data = data * 2 if kind == "double" else bytearray()
    else:
        for _ in range(1 if kind == "flip" else 20):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _tensors(rng: random.Random, path: Path) -> None:
    """Exchange, change, add or drop tensors."""
    tensors = load_file(path)
    name, other = rng.choice(list(tensors)), rng.choice(list(tensors))
    value = tensors[name]
    fill = rng.choice([float("inf"), float("nan"), 6e4, -1e4, 0.0])
    changes: dict[str, Callable[[], dict[str, Tensor]]] = {
        "swap": lambda: {name: tensors[other].clone(), other: value.clone()},
        "fill": lambda: {name: torch.full_like(value, fill)},
        "one": lambda: {name: value.flatten().index_fill(0, torch.tensor(0), fill).view_as(value)},
        "dtype": lambda: {name: value.to(rng.choice([torch.float64, torch.half, torch.int8]))},
        "shape": lambda: {name: value.flatten().clone()},
        "turn": lambda: {name: value.flip(-1).contiguous()},
        "less": lambda: {name: value[..., :-1].contiguous()},
        "extra": lambda: {f"{name}{rng.choice(NAMES[:9])}x": value.clone()},
        "drop": dict,
    }
    kind = rng.choice(list(changes))
    if kind == "drop":
        del tensors[name]
    save_file({**tensors, **changes[kind]()}, path)


def _huge(rng: random.Random, folder: Path) -> None:
    """Make a file that is long, deep or both."""
    path = folder / PLAN_FILE
    text = path.read_text()
    count = rng.choice([10**5, 10**6])
    opened = ["[" * count, '{"a":' * count, "[" * count + "]" * count, "1" * count]
    flat = [f'"{"x" * count}"', "[" + "[]," * (count // 3) + "[]]", "[" + "1," * count + "1]"]
    filled = rng.choice([*opened, *flat])
    at = rng.choice(['"calibration": ', '"entries": ', '"name": ', '"format": ', '"owners": '])
    path.write_text(rng.choice([filled, text.replace(at, f"{at}{filled}, {at}", 1)]))


def damage(rng: random.Random, folder: Path) -> str:
    """Damage a plan in one of many ways.

    Returns:
        The way; "forged" where the digests are made to fit.
    """
    way = rng.choice(["bytes"] * 2 + ["tensors"] * 2 + ["edited"] * 3 + ["forged"] * 6 + ["huge"])
    path = folder / PLAN_FILE
    if way == "bytes":
        _bytes(rng, folder / rng.choice([PLAN_FILE, WEIGHTS_FILE]))
    elif way == "huge":
        _huge(rng, folder)
    else:
        record = json.loads(path.read_text(encoding="utf-8"))
        if way == "tensors" or (way == "forged" and rng.random() < 0.3):
            _tensors(rng, folder / WEIGHTS_FILE)
        else:
            _edit(rng, record)
        if way == "forged":
            _forge(folder, record)
        else:
            path.write_text(json.dumps(record), encoding="utf-8")
    return way


def use(folder: Path, model: nn.Module) -> Tensor:
    """Load a plan, look at it and run what it makes of a model."""
    plan = Plan.load(folder)
    assert str(plan)
    assert plan.to_csv()
    assert plan.to_markdown()
    with torch.no_grad():
        result: Tensor = plan.apply(model)(images(model))
    return result


def run(count: int, seed: int = 0) -> Tally:
    """Damage plans at random; case ``i`` is drawn from the seed ``(seed, i)``.

    A plan that was damaged gives the outputs that it gave before, or a clear error. One that was
    forged, with digests that fit, is another plan: it need only not end in a raw error.
    """
    tally = Tally("damaged plans")
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = []
        for i, model in enumerate(models()):
            save(model, Path(scratch) / str(i))
            whole.append((Path(scratch) / str(i), model, use(Path(scratch) / str(i), model)))
        for i in range(count):
            rng = random.Random(f"{seed}, {i}")
            source, model, expected = rng.choice(whole)
            folder = Path(scratch) / "damaged"
            shutil.copytree(source, folder)
            way = damage(rng, folder)
            what = f"plan {seed}, {i} ({way}, model {source.name})"
            with tally.case(what, SECONDS, (ValueError, FileNotFoundError, PlanMismatchError)):
                got = use(folder, model)
                assert way == "forged" or torch.equal(got, expected), "other outputs"
            shutil.rmtree(folder)
    return tally


if __name__ == "__main__":
    import sys

    result = run(*map(int, sys.argv[1:]))
    print(result, *result.wrong, *result.raw, *result.late, sep="\n")
