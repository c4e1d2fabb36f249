"""Models of transformers: saved with their configuration, and never loaded by halves."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import images, kernel
from torch import nn

import convfactor
from convfactor import CascadeConv2d

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:::transformers", "ignore:.*torch.jit")


def configuration(**options):
    sizes = {"num_channels": 2, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    return transformers.ResNetConfig(**sizes, layer_type="basic", num_labels=3, **options)


def resnet() -> nn.Module:
    """A small ResNet whose 7x7 stem is a cascade of narrow 3x3 stages."""
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(configuration()).eval()
    stem = model.resnet.embedder.embedder.convolution
    with torch.no_grad():
        stem.weight.copy_(kernel(4, 2, 7))
    return model


@pytest.fixture
def fast() -> nn.Module:
    model = resnet()
    fast, plan = convfactor.optimize(
        model, images(size=32), 1e-3, objective="macs", structures="cascade"
    )
    assert plan.replaced
    return fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_configuration_makes_the_model_that_is_loaded(fast, dtype, tmp_path):
    fast = fast.to(dtype)
    convfactor.save(fast, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"config.json", "convfactor.json", "convfactor.safetensors"}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "convfactor.load(folder, model)" in saved["convfactor"]["note"]
    assert saved["architectures"] == ["ResNetForImageClassification"]
    assert saved["dtype"] == str(dtype).removeprefix("torch.")

    config = transformers.AutoConfig.from_pretrained(tmp_path)
    fresh = transformers.AutoModelForImageClassification.from_config(config).eval()
    loaded = convfactor.load(tmp_path, fresh)
    x = images(size=32, seed=3).to(dtype)
    assert torch.equal(loaded(x).logits, fast(x).logits)
    assert isinstance(loaded.resnet.embedder.embedder.convolution, CascadeConv2d)
    convfactor.save(loaded, tmp_path)  # again, as after training


def test_a_result_tells_in_its_configuration_that_its_layers_were_exchanged(tmp_path):
    model = resnet()
    fast, plan = convfactor.optimize(model, images(size=32), 1e-3, objective="macs")
    assert plan.replaced
    fast.save_pretrained(tmp_path)  # past convfactor.save, as a trainer does
    note = json.loads((tmp_path / "config.json").read_text())["convfactor"]["note"]
    assert "from_pretrained can't" in note
    convfactor.save(fast, tmp_path / "own")
    loaded = convfactor.load(tmp_path / "own", resnet())
    assert loaded.config.convfactor == fast.config.convfactor
    for untouched in (model, plan.revert(fast, model), plan.without("*").apply(model)):
        assert not hasattr(untouched.config, "convfactor")


def test_from_pretrained_refuses_the_folder(fast, tmp_path):
    convfactor.save(fast, tmp_path)
    for kind in (transformers.ResNetForImageClassification, transformers.ResNetModel):
        with pytest.raises(OSError, match="no file named"):
            kind.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors",
                                  "pytorch_model.bin"])  # fmt: skip
def test_a_folder_with_other_weights_is_refused(fast, name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"folder holds {name}, which from_pretrained would load"):
        convfactor.save(fast, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_tied_embeddings_and_the_configuration_of_generation(tmp_path):
    options = {"n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": 9, "n_positions": 8}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options, **ends)).eval()
    model.generation_config.max_length = 7
    convfactor.save(model, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    loaded = convfactor.load(tmp_path, transformers.GPT2LMHeadModel(config).eval())
    tokens = torch.tensor([[1, 3, 5]])
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    kept = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert kept.max_length == 7
