from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from resedge.errors import InputRefused
from resedge.export.trace import trace


class Returns(nn.Module):
    """Returns whatever `result` makes of a (N, 8) feature matrix."""

    def __init__(self, result: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.linear, self.result = nn.Linear(8, 8), result

    def forward(self, x: Tensor) -> object:
        return self.result(self.linear(x))


def test_the_graph_computes_what_the_module_does_at_any_batch(notebook: nn.Module) -> None:
    traced = trace(notebook, (3, 28, 28))
    assert (traced.input_shape, traced.classes) == ((3, 28, 28), 10)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 28, 28, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            assert torch.equal(traced.graph(x), notebook(x))


def test_a_module_in_training_mode_is_traced_as_it_evaluates() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8)).train()
    traced = trace(module, (8,))
    assert module.training
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(traced.graph(x), x / (1 + 1e-5) ** 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda x: (x, x), "not a single tensor"),
        (lambda x: {"logits": x}, "not a single tensor"),
        (lambda x: x.argmax(1), "int64"),
        (lambda x: x.double(), "float64"),
        (lambda x: x.reshape(-1, 2, 4), r"a tensor of shape \(s\d+, 2, 4\)"),
        (lambda x: x.sum(0, keepdim=True), r"a tensor of shape \(1, 8\)"),
    ],
)
def test_an_output_that_is_no_logits_is_refused(result: Callable[[Tensor], object], reason: str) -> None:
    with pytest.raises(InputRefused, match=rf"^Returns: forward returns {reason}; needed is one"):
        trace(Returns(result), (8,))


def test_control_flow_on_values_is_refused_with_what_torch_said() -> None:
    with pytest.raises(InputRefused, match=r"cannot be traced by torch.export: .{20}") as caught:
        trace(Returns(lambda x: x if x.sum() > 0 else -x), (8,))
    assert len(str(caught.value)) < 600


def test_a_fixed_batch_size_is_refused() -> None:
    with pytest.raises(InputRefused, match="take any batch size"):
        trace(Returns(lambda x: x.reshape(2, 8)), (8,))
