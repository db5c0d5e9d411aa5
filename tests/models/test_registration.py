"""transformers knows the attention "questbench" right behind `import questbench`, whichever is imported first."""

import subprocess
import sys

import pytest

USE = """
import sys
{imports}
config = AutoConfig.for_model("llama", vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1)
model = AutoModelForCausalLM.from_config(config, attn_implementation="questbench")
assert model.config._attn_implementation == "questbench"
assert "questbench.models.hf" not in sys.modules, "attention itself is imported when it is called"
import torch
logits = model(torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[0, 1, 1]])).logits
model.set_attn_implementation("sdpa")
wanted = model(torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[0, 1, 1]])).logits
assert torch.allclose(logits[:, 1:], wanted[:, 1:], atol=1e-5)
import transformers.modeling_utils as module
assert type(module.__loader__).__module__ != "questbench.models._registration"
print("fine")
"""
TRANSFORMERS = "from transformers import AutoConfig, AutoModelForCausalLM"


@pytest.mark.parametrize(
    "imports",
    [
        f"import questbench\nassert not {{'torch', 'transformers'}} & set(sys.modules)\n{TRANSFORMERS}",
        f"{TRANSFORMERS}\nimport transformers.modeling_utils\nimport questbench",
        f"{TRANSFORMERS}\nimport questbench",
    ],
    ids=["questbench-first", "transformers-first", "transformers-half-loaded"],
)
def test_attention_is_known(imports, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", USE.format(imports=imports)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "fine", done.stderr
