"""--model: what the name resolves to, and one clear message for everything that can be wrong with a folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from questbench.errors import PrerequisiteError, QuestbenchError, UsageError
from questbench.measure import memory
from questbench.methods.quest import Quest
from questbench.models import _folder, hf
from questbench.models._fits import check_memory
from questbench.models.loading import resolve
from questbench.models.shapes import SHAPES

FP32 = torch.float32


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model with its tokenizer, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("saved")
    tiny("llama").save_pretrained(folder)
    words = {f"w{number}": number for number in range(97)}
    tokenizer = Tokenizer(WordLevel(words, "w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to break."""
    return shutil.copytree(saved, tmp_path / "model")


def refused(name, error=PrerequisiteError, **options) -> QuestbenchError:
    with pytest.raises(error) as caught:
        resolve(str(name), **({"dtype": FP32} | options))
    assert caught.value.hint and "\n" not in caught.value.message
    return caught.value


def test_a_folder_is_loaded_as_it_was_saved(folder):
    loaded = resolve(str(folder), dtype=FP32)
    assert (loaded.name, loaded.dense_layers) == (str(folder), 2)
    assert loaded.tokenizer("w5 w7")["input_ids"] == [5, 7]
    assert not loaded.model.training
    pairs = zip(loaded.model.parameters(), tiny("llama").parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_dtype_is_the_one_asked_for(folder):
    model = resolve(str(folder), dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_contents_know_every_byte_and_what_else_decides(folder):
    """It looked at three megabytes of each file, and at no tokenizer: other weights passed for the same."""
    weights = load_file(folder / "model.safetensors")
    weights["padding"] = torch.zeros(3 << 20)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    seen = {str(_folder.contents(folder))}
    size = (folder / "model.safetensors").stat().st_size
    for place in (size // 4, size // 3, size - 5 * size // 12):
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(place)
            file.write(b"\x01")
        seen.add(str(_folder.contents(folder)))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        with (folder / name).open("a") as file:
            file.write("\n")
        seen.add(str(_folder.contents(folder)))
    assert len(seen) == 8
    (folder / "README.md").write_text("A model.")
    assert str(_folder.contents(folder)) in seen


def test_the_embedded_model():
    loaded = resolve("constructed", dtype=FP32)
    assert loaded.dense_layers == 1
    assert loaded.tokenizer is not None


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-0.5b"])
def test_a_shape_with_random_weights_runs(name):
    loaded = resolve(f"shape:{name}", dtype=torch.bfloat16, layers=2)
    shape, config = SHAPES[name], loaded.model.config
    assert loaded.tokenizer is None
    assert (config.hidden_size, config.num_key_value_heads, config.num_hidden_layers) == (
        shape.hidden,
        shape.kv_heads,
        2,
    )
    cache = hf.build_cache(loaded.model, Quest(64), dense_layers=1, ops="reference")
    logits = hf.forward(loaded.model, list(range(40)), cache)
    assert logits.isfinite().all() and 0.05 < float(logits.float().std()) < 20
    assert cache.layers[0].store.head_dim == shape.head_dim


def test_random_weights_follow_from_the_seed_and_no_two_rows_are_equal():
    one, same, other = (
        resolve("shape:smollm2-135m", dtype=torch.bfloat16, seed=seed, layers=1).model.lm_head.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert len(torch.unique(one[:2000], dim=0)) == 2000


PARAMETERS = {
    **{"gemma-2-2b": 2.6143, "gemma-2-9b": 9.2417, "gemma-2-27b": 27.2271},
    **{"llama-2-7b": 6.7384, "llama-2-13b": 13.0159, "llama-2-70b": 68.9766},
    **{"llama-3.1-8b": 8.0303, "llama-3.1-70b": 70.5537, "llama-3.2-1b": 1.2358, "llama-3.2-3b": 3.2127},
    **{"mistral-7b-v0.3": 7.2480, "phi-3-mini": 3.8211, "phi-4": 14.6595, "yi-6b": 6.0610},
    **{"qwen2.5-0.5b": 0.4940, "qwen2.5-1.5b": 1.5437, "qwen2.5-7b": 7.6156, "qwen2.5-14b": 14.7700},
    **{"qwen3-0.6b": 0.5960, "qwen3-1.7b": 1.7206, "qwen3-4b": 4.0225, "qwen3-8b": 8.1907, "qwen3-14b": 14.7683},
    **{"qwen3-32b": 32.7621, "sheared-llama-1.3b": 1.3454, "sheared-llama-2.7b": 2.7016},
    **{"smollm2-135m": 0.1345, "tinyllama-1.1b": 1.1000},
}
"""Billions of parameters that the published weights have: what a shape must come to."""


def test_shapes_come_to_the_published_numbers_of_parameters():
    assert set(PARAMETERS) == set(SHAPES)
    for name, shape in SHAPES.items():
        attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
        matrices = shape.layers * (attention + 3 * shape.hidden * shape.ff)
        embeddings = (1 if shape.tied else 2) * shape.vocab * shape.hidden
        # Norms and biases are the rest.
        assert (matrices + embeddings) / 1e9 == pytest.approx(PARAMETERS[name], rel=5e-4), name
        assert shape.heads % shape.kv_heads == 0


@pytest.mark.parametrize("architecture", sorted({shape.architecture for shape in SHAPES.values()}))
def test_every_architecture_of_the_table_has_its_parameters(architecture):
    from transformers import AutoModelForCausalLM

    from questbench.models._random_weights import configuration

    shape = next(shape for shape in SHAPES.values() if shape.architecture == architecture)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(shape, layers=2))
    layer = model.model.layers[1].self_attn
    width = sum(p.shape[0] for n, p in layer.named_parameters() if n in ("q_proj.weight", "qkv_proj.weight"))
    kv = 2 * shape.kv_heads if architecture == "phi3" else 0
    assert width == (shape.heads + kv) * shape.head_dim
    assert hf.build_cache(model, Quest(64), dense_layers=1, ops="reference")


def test_names_that_mean_nothing(tmp_path):
    assert "Did you mean 'llama-2-7b'" in refused("shape:llama-2-7", UsageError).hint
    assert "32 layers" in refused("shape:llama-2-7b", UsageError, layers=33).message
    assert "Only shape: models" in refused("constructed", UsageError, layers=1).message
    for name in (tmp_path / "absent", "./absent", "~/absent-model", "three/part/name", "a b", ""):
        assert "no model folder" in refused(name, PrerequisiteError).message
    assert "Unknown device" in refused("constructed", UsageError, device="abacus").message


def test_a_hub_id_is_not_looked_up_unasked(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    error = refused("questbench-tests/absent")
    assert "neither a folder nor a model that has been downloaded" in error.message
    assert "--online" in error.hint


def test_a_hub_model_in_the_cache_is_a_folder(monkeypatch, folder):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolve("owner/name", dtype=FP32)
    assert asked["local_files_only"] and asked["name"] == "owner/name"
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])
    resolve("owner/name", dtype=FP32, online=True)
    assert not asked["local_files_only"]


def test_a_failed_download_says_why(monkeypatch):
    def snapshot_download(name, **options):
        raise ConnectionError("Name or service not known\nlong story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert "Name or service not known" in refused("owner/name", online=True).message


def test_a_file_or_an_empty_folder_is_no_model(tmp_path, folder):
    assert "no config.json" in refused(tmp_path / "model" / "..").message
    assert "is not a folder" in refused(folder / "config.json").message


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    error = refused(folder)
    assert "pickle" in error.message and "safetensors" in error.hint


def test_absent_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "no *.safetensors" in refused(folder).message


def test_an_absent_shard_is_named(folder):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-00002-of-00002.safetensors" in refused(folder).message


@pytest.mark.parametrize("size", [0, 5, 2000, -100])
def test_truncated_weights(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "truncated or corrupt" in refused(folder).message


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hidden_size": 3}', "\0\1"])
def test_a_broken_configuration(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder).message


def test_an_unknown_kind_of_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of", "architectures": None}))
    assert "cannot be loaded" in refused(folder).message
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert "no causal language model" in refused(folder).message


def test_weights_that_do_not_fit_the_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    refused(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    assert "incomplete" in refused(folder).message


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, poison):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] = poison
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "up_proj" in refused(folder).message


def test_an_absent_or_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer" in refused(folder).message
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(folder).message
    assert resolve(str(folder), dtype=FP32, need_tokenizer=False).tokenizer is None


def test_code_that_comes_with_a_model_is_not_run_unasked(folder, tmp_path):
    proof = tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    custom = {"AutoConfig": "custom.Custom", "AutoModelForCausalLM": "custom.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "custom", "auto_map": custom}))
    (folder / "custom.py").write_text(f"import pathlib\npathlib.Path({str(proof)!r}).touch()\n")
    error = refused(folder)
    assert "code of its own" in error.message and "--trust-remote-code" in error.hint
    assert not proof.exists()


def test_weights_beyond_memory_are_refused_before_loading(monkeypatch, folder):
    assert "GiB are free" in refused("shape:llama-3.1-70b", dtype=torch.float64).message
    monkeypatch.setattr(memory, "_available", lambda: 1024)
    with pytest.raises(PrerequisiteError, match="need 1"):
        check_memory("x", 1 << 30, "cpu")


@pytest.mark.parametrize("weight_map", [None, [], 3, "a", {"model.norm.weight": 7}])
def test_an_index_of_another_form_is_refused(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert "weight_map" in refused(folder).message
    (folder / "model.safetensors.index.json").write_text(json.dumps([weight_map]))
    assert "must hold an object" in refused(folder).message


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("token", ["</s>", "2", -1, [2, "</s>"], True, 1.5])
def test_a_stop_token_that_is_no_number_is_refused(folder, file, token):
    held = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(held | {"eos_token_id": token}))
    message = refused(folder).message
    assert file in message and "eos_token_id" in message


@pytest.mark.parametrize("layers", [1_000_000, 0, -3, "4", 2.5])
def test_layers_that_the_weights_cannot_fill_are_refused_at_once(folder, layers):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers, "layer_types": None}))
    assert "num_hidden_layers" in refused(folder).message


@pytest.mark.parametrize("configured", [True, False])
def test_gguf_weights_are_named_with_the_way_to_convert_them(folder, configured):
    (folder / "model.safetensors").unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")
    if not configured:
        (folder / "config.json").unlink()
    error = refused(folder)
    assert "model-q4.gguf" in error.message and "gguf_file='model-q4.gguf'" in error.hint
