from __future__ import annotations

from dataclasses import replace

import torch
from tiny import conv, images

from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.moments import Moments
from convfactor.factorization.factorizer import Factorizer
from convfactor.factorization.families import full
from convfactor.planning.frontier import Look, look
from convfactor.planning.memo import Memo


def task_on(data: torch.Tensor | None) -> Look:
    layer = conv()
    geometry = ConvGeometry.from_conv(layer)
    moments = None if data is None else Moments.from_inputs(layer, [data])
    factorizer = Factorizer(layer.weight.detach(), geometry, moments)
    return Look(factorizer, (next(full(geometry)).structure((1,)),))


def test_answers_are_those_to_what_was_asked(tmp_path):
    """Layers of equal weights that read other inputs have answers of their own."""
    memo, asked = Memo(tmp_path), task_on(images(1, size=24))
    assert memo.recall(asked) is None
    answers = look(asked)
    memo.keep(asked, answers)
    (known,) = memo.recall(asked)
    for mine, other in zip(known.stages, answers[0].stages, strict=True):
        assert torch.equal(mine.weight, other.weight)
    assert known.error == answers[0].error
    for other in (task_on(images(2, size=24)), task_on(None)):
        assert memo.recall(other) is None
    shifted = replace(asked.factorizer.moments, mean=asked.factorizer.moments.mean + 1)
    factorizer = replace(asked.factorizer, moments=shifted)
    assert memo.recall(replace(asked, factorizer=factorizer)) is None


def test_without_a_folder_nothing_is_remembered():
    memo, asked = Memo(None), task_on(None)
    memo.keep(asked, look(asked))
    assert memo.recall(asked) is None
