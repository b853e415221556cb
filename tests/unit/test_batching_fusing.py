"""Fused decoders give what transformers' own layers give, and leave other models in the process alone."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ts_mps.batching import fusing

SIZE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS = [(Qwen2Config, Qwen2ForCausalLM), (LlamaConfig, LlamaForCausalLM), (MistralConfig, MistralForCausalLM)]


@pytest.mark.parametrize(("config", "kind"), KINDS)
def test_logits_are_the_same_with_fewer_products(config, kind, monkeypatch) -> None:
    torch.manual_seed(0)
    plain, fused = kind(config(**SIZE)).eval(), kind(config(**SIZE)).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    fused.load_state_dict(plain.state_dict())
    fusing.fuse(fused)
    rotated = []
    rotate = fusing._rotate
    monkeypatch.setattr(fusing, "_rotate", lambda *given: rotated.append(1) or rotate(*given))
    ids = torch.randint(0, 50, (3, 9))
    with torch.inference_mode():
        wanted = plain(ids).logits
        assert not rotated, "the plain model was rotated by the fused one's function"
        assert torch.allclose(fused(ids).logits, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(plain(ids).logits, wanted), "fusing one model changed another"
    assert len(rotated) == SIZE["num_hidden_layers"]
    linear = [one for one in fused.modules() if isinstance(one, torch.nn.Linear)]
    joined = [one for one in fused.modules() if isinstance(one, fusing._First)]
    assert (len(linear), len(joined)) == (2 * SIZE["num_hidden_layers"] + 1, 2 * SIZE["num_hidden_layers"])
    assert sum(isinstance(one, torch.nn.RMSNorm) for one in fused.modules()) == 2 * SIZE["num_hidden_layers"] + 1


def test_fusing_twice_in_one_process() -> None:
    for _ in range(2):
        model = Qwen2ForCausalLM(Qwen2Config(**SIZE)).eval()
        ids = torch.tensor([[1, 2, 3]])
        with torch.inference_mode():
            wanted = model(ids).logits
            fusing.fuse(model)
            assert torch.allclose(model(ids).logits, wanted, rtol=1e-4, atol=1e-5)


def test_parts_called_with_different_inputs_are_an_error() -> None:
    model = Qwen2ForCausalLM(Qwen2Config(**SIZE)).eval()
    fusing.fuse(model)
    attention = model.model.layers[0].self_attn
    attention.q_proj(torch.zeros(1, 1, 32))
    with pytest.raises(RuntimeError, match="different inputs"):
        attention.k_proj(torch.zeros(1, 1, 32))


def test_other_layers_are_left_alone() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(4, 4)
            self.k_proj = torch.nn.Linear(5, 4)
            self.v_proj = torch.nn.Linear(4, 4)
            self.gate_proj = torch.nn.Linear(4, 4, bias=False)
            self.up_proj = torch.nn.Linear(4, 4)

    odd = Odd()
    fusing.fuse(odd)
    assert all(type(one) is torch.nn.Linear for one in odd.children())


@pytest.mark.parametrize(("config", "kind"), [(CohereConfig, CohereForCausalLM), (GlmConfig, GlmForCausalLM)])
def test_rotations_of_another_kind_are_left_as_they_are(config, kind) -> None:
    """Cohere interleaves the halves, and GLM turns a part of each head."""
    torch.manual_seed(0)
    model = kind(config(**SIZE, head_dim=8, pad_token_id=0)).eval()
    ids = torch.randint(1, 50, (2, 40))
    with torch.inference_mode():
        wanted = model(ids).logits
        fusing.fuse(model)
        assert not isinstance(model.model.rotary_emb, fusing._Rotary)
        assert torch.allclose(model(ids).logits, wanted, rtol=1e-4, atol=1e-5)
