"""`compact` on published model code: heads and neurons of BERT, GPT-2 and Llama with random weights."""

from __future__ import annotations

import pytest
import torch

from torchreg import compact

transformers = pytest.importorskip("transformers")
SIZES = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
pytestmark = pytest.mark.filterwarnings("ignore")


def bert():
    config = transformers.BertConfig(**SIZES, intermediate_size=32)
    model = transformers.BertModel(config)
    for layer in model.encoder.layer:
        zero_rows(layer.intermediate.dense.weight, range(20))
        zero_rows(layer.attention.self.value.weight, range(6, 12))
    return model, {
        "encoder.layer.1.attention.self.query.weight": (18, 24),
        "encoder.layer.0.output.dense.weight": (24, 12),
    }


def gpt2():
    config = transformers.GPT2Config(
        n_embd=24, n_layer=2, n_head=4, vocab_size=40, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    for block in model.transformer.h:  # its weights are (inputs, outputs)
        zero_rows(block.mlp.c_fc.weight.T, range(20))
        zero_rows(block.attn.c_attn.weight.T, range(48 + 6, 48 + 12))
        zero_rows(block.attn.c_proj.weight, range(12, 18))
    return model, {"transformer.h.0.attn.c_attn.weight": (24, 36), "transformer.h.1.mlp.c_proj.weight": (76, 24)}


def llama():
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=32)
    model = transformers.LlamaForCausalLM(config)
    for layer in model.model.layers:
        zero_rows(layer.mlp.gate_proj.weight, range(20))
        zero_rows(layer.self_attn.v_proj.weight, range(6, 12))
    return model, {"model.layers.0.self_attn.q_proj.weight": (12, 24), "model.layers.1.mlp.up_proj.weight": (12, 24)}


def zero_rows(w, index):
    with torch.no_grad():
        w[list(index)] = 0.0


@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_heads_and_neurons_go_and_the_outputs_stay(make):
    torch.manual_seed(0)
    model, sizes = make()
    given = {"input_ids": torch.randint(0, 40, (2, 7))} | ({} if make is bert else {"use_cache": False})
    smaller, report = compact(model, given)
    after = {change.name: change.after for change in report.layers}
    assert {name: after.get(name) for name in sizes} == sizes
    assert type(smaller) is type(model)
    longer = given | {"input_ids": torch.randint(0, 40, (3, 11))}
    with torch.no_grad():
        for x in (given, longer):
            a, b = model.eval()(**x)[0], smaller.eval()(**x)[0]
            assert float((a - b).abs().max()) <= 1e-6 * float(a.abs().max())
