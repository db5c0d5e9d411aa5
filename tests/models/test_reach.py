"""What is said of how many layers a method acts on."""

from transformers import AutoConfig

from questbench.experiments import accuracy, e2e
from questbench.experiments.accuracy import AccuracyConfig
from questbench.experiments.e2e import E2EConfig
from questbench.models import reach

GEMMA3 = [index % 6 != 5 for index in range(18)]


def test_all_layers_are_full():
    assert reach.describe([False] * 32, 2) == "methods act on 30 of 32 layers; the first 2 stay dense"
    assert reach.describe([False] * 2, 1) == "methods act on 1 of 2 layers; the first stays dense"
    assert reach.describe([False] * 2, 0) == "methods act on 2 of 2 layers"


def test_dense_layers_that_slide_are_named():
    said = reach.describe(GEMMA3, 2, 512)
    assert said.startswith("methods act on 3 of 18 layers (numbers 5, 11, 17); 15 attend to a window of 512 tokens")
    assert said.endswith("--dense-layers 2 counts all layers and keeps no full-attention layer dense")
    said = reach.describe(GEMMA3, 6, 512)
    assert "act on 2 of 18 layers (numbers 11, 17)" in said and said.endswith("keeps 1 full-attention layer dense")


def test_configurations_say_which_layers_slide():
    small = {"num_hidden_layers": 6, "sliding_window": 8}
    assert reach.sliding_layers(AutoConfig.for_model("gemma3_text", **small)) == [True] * 5 + [False]
    assert reach.sliding_layers(AutoConfig.for_model("mistral", num_hidden_layers=2, sliding_window=8)) == [True] * 2
    assert reach.sliding_layers(AutoConfig.for_model("llama", num_hidden_layers=2)) == [False] * 2


def test_the_card_says_it(tmp_path):
    AutoConfig.for_model("gemma3_text", num_hidden_layers=6, sliding_window=8).save_pretrained(tmp_path)
    config = AccuracyConfig(tasks=["passkey"], seq_lens=[512], budgets=[64], samples=1, model=str(tmp_path))
    assert "methods act on 1 of 6 layers (numbers 5)" in accuracy.card(config)["layers"]
    assert "act on 30 of 32" in e2e.card(E2EConfig(model="shape:llama-2-7b"))["layers"]
    assert reach.sentence("owner/name") is None and reach.sentence(str(tmp_path / "absent")) is None


def test_a_model_of_a_package_is_looked_at_as_well(tmp_path, monkeypatch):
    AutoConfig.for_model("gemma3_text", num_hidden_layers=6, sliding_window=8).save_pretrained(tmp_path)
    monkeypatch.setattr("questbench.models.loading.folder_of", lambda name: tmp_path)
    assert "methods act on 1 of 6 layers" in str(reach.sentence("pip:some-model"))


def test_only_hybrid_models_have_their_layers_in_every_record():
    mixed = AutoConfig.for_model("gemma3_text", num_hidden_layers=6, sliding_window=8)
    assert "on 1 of 6 layers (numbers 5); 5 attend to a window of 8" in str(reach.hybrid(mixed, 0))
    assert reach.hybrid(AutoConfig.for_model("llama", num_hidden_layers=2), 0) is None
    assert reach.hybrid(AutoConfig.for_model("mistral", num_hidden_layers=2, sliding_window=8), 0) is None
