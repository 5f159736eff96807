"""What the training of a MoTE layer computes: gradients against finite differences where they are exact and against the
straight-through definition where they are not, padding, and the balancing loss in batches that are accumulated.

That the forward pass equals the exported operator on packed weights is in test_model.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import collate_texts, text_model

from mote_export.model import MoeSettings, MoteLayer
from mote_export.model.modeling import token_mask
from mote_export.model.quantizers import fake_quantize_activations, ternarize
from mote_export.train.data import turn_mask


class GatedMlp(nn.Module):
    def __init__(self, hidden: int = 6, intermediate: int = 8) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


def make_layer(experts: str = "full", top_k: int = 1, normalize: bool = False, shared: str = "full") -> MoteLayer:
    torch.manual_seed(0)
    settings = MoeSettings(3, top_k, normalize, (0,), experts=experts, shared_expert=shared)  # type: ignore[arg-type]
    layer = MoteLayer(GatedMlp(), settings)
    nn.init.normal_(layer.router.weight)
    return layer


@pytest.mark.parametrize(("top_k", "normalize", "shared"), [(1, False, "full"), (2, True, "none")])
def test_gradients_are_those_of_finite_differences(top_k: int, normalize: bool, shared: str) -> None:
    layer = make_layer(top_k=top_k, normalize=normalize, shared=shared).double()
    # The router computes in float32, which finite differences are too fine for.
    monkey: Callable[[Tensor], Tensor] = Tensor.double
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        y = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        assert layer.aux_loss is not None
        return y.pow(2).sum() + layer.aux_loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", monkey)
        assert torch.autograd.gradcheck(loss, (x, *parameters))


def test_ternary_gradients_are_straight_through() -> None:
    layer = make_layer("ternary", shared="none")
    x = torch.randn(5, 6, requires_grad=True)
    layer(x).pow(2).sum().backward()

    # The same by hand: the products' gradients with respect to what they were given, handed on as they are.
    weights = {
        name: (codes * scale[..., None, None]).detach().requires_grad_()
        for name, (codes, scale) in ((name, ternarize(p.detach())) for name, p in layer.experts.named_parameters())
    }
    quantized = fake_quantize_activations(x.detach()).requires_grad_()
    plain = x.detach().requires_grad_()
    probability = (plain @ layer.router.weight.T).softmax(dim=-1)
    expert = probability.argmax(dim=-1)
    rows = []
    for token, index in enumerate(expert.tolist()):
        gate, up = (F.linear(quantized[token], weights[name][index]) for name in ("gate_proj", "up_proj"))
        hidden = F.silu(gate) * up
        hidden = hidden + (fake_quantize_activations(hidden) - hidden).detach()
        rows.append(probability[token, index] * F.linear(hidden, weights["down_proj"][index]))
    torch.stack(rows).pow(2).sum().backward()
    for name, parameter in layer.experts.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad)
    assert x.grad is not None
    assert plain.grad is not None
    assert quantized.grad is not None
    torch.testing.assert_close(x.grad, plain.grad + quantized.grad)


def test_padding_counts_neither_in_the_load_nor_in_the_balancing_loss() -> None:
    model = text_model().train()
    batch = collate_texts([0, 1, 2, 3])  # 3, 4, 5 and 6 tokens
    model(**batch)
    layer = model.mote_layers()[0]
    assert layer.expert_counts is not None
    assert layer.expert_counts.sum() == 18
    padded = [layer.aux_loss for layer in model.mote_layers()]
    more = {name: F.pad(tensor, (0, 5), value=-100 if name == "labels" else 0) for name, tensor in batch.items()}
    with torch.no_grad():
        model(**more)
    torch.testing.assert_close([layer.aux_loss for layer in model.mote_layers()], padded)
    model.eval()
    with torch.no_grad():
        model(**more)
    assert layer.expert_counts.sum() == 18
    with torch.no_grad():  # one mask for all rows
        model(input_ids=more["input_ids"], attention_mask=turn_mask(torch.tensor([[0] * 5 + [-1] * 6])))
    assert layer.expert_counts.sum() == 20
    with torch.no_grad():
        model(input_ids=more["input_ids"])  # an earlier mask is of no effect
    assert layer.expert_counts.sum() == 44


def test_padding_is_seen_in_every_kind_of_mask() -> None:
    groups = torch.tensor([[0, 0, 1, 1, 2, -1], [1, 1, 1, -1, -1, -1]])
    expected = groups >= 0
    mask = turn_mask(groups)
    assert token_mask(mask, 6).equal(expected)  # type: ignore[union-attr]
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert token_mask(added, 6).equal(expected)  # type: ignore[union-attr]
    assert token_mask(expected.long(), 6).equal(expected)  # type: ignore[union-attr]
    assert token_mask(expected.long(), 2).equal(expected[:, -2:])  # type: ignore[union-attr]
    assert mask.any(dim=-1).all()  # nobody looks at nothing


def test_accumulated_batches_add_up_to_means() -> None:
    """As Trainer does it: the labels of all batches are told to each, and what they return is added up."""
    model = text_model().train()
    halves = [collate_texts([0, 1]), collate_texts([2, 3])]
    labels = torch.tensor([batch["labels"].ne(-100).sum() for batch in halves])
    total = sum(model(**batch, num_items_in_batch=labels.sum()).loss for batch in halves)
    plain, balance = torch.zeros(()), torch.zeros(())
    for batch, count in zip(halves, labels, strict=True):
        output = model(**batch)
        auxiliary = torch.as_tensor(model.load_balancing_loss())
        assert auxiliary > 0.1
        balance += auxiliary * count / labels.sum()
        plain += (output.loss - auxiliary) * count / labels.sum()
    torch.testing.assert_close(total, plain + balance)


@pytest.mark.parametrize("case", ["checkpointing", "bf16"])
def test_other_ways_of_computing_give_the_same_loss(case: str) -> None:
    model, batch = text_model().train(), collate_texts([0, 1, 2, 3])
    expected = model(**batch).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    if case == "bf16":
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    tolerance = 2e-2 if case == "bf16" else 1e-6
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    if case == "checkpointing":
        # What the backward pass computed again is let go of.
        assert all(layer.probability_sum is not None for layer in model.mote_layers())
        assert not any(layer.probability_sum.requires_grad for layer in model.mote_layers())
        torch.testing.assert_close(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, gradients
        )
