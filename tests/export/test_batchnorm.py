from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resedge.errors import InputRefused
from resedge.export.batchnorm import call_counts, compare_modes, first_gap, reestimate, shared, split
from resedge.protocols import Float32Array, Int64Array


class Twice(nn.Module):
    """One BatchNorm over two features of very different spread; the class is read off both."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(2, affine=False)
        self.fail_between = False

    def forward(self, x: Tensor) -> Tensor:
        first = self.bn(x)
        if self.fail_between:
            raise RuntimeError("in the middle")
        second: Tensor = self.bn(100.0 * x + 50.0)
        return torch.cat([first, second.flip(1) * 0.7], 1)


class MoreThanSplit(nn.Module):
    def __init__(self, calls: int) -> None:
        super().__init__()
        self.bn, self.calls = nn.BatchNorm1d(2), calls

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls):
            x = self.bn(x)
        return x


@pytest.fixture
def batches() -> list[Float32Array]:
    generator = np.random.default_rng(5)
    return [(generator.standard_normal((1024, 2)) * (1, 3)).astype(np.float32) for _ in range(4)]


@pytest.fixture
def mixed(batches: list[Float32Array]) -> nn.Module:
    """`Twice` with the statistics that training leaves: one mixture of both call sites."""
    module = Twice().train()
    with torch.no_grad():
        for _ in range(20):
            for batch in batches:
                module(torch.tensor(batch))
    return module.eval()


def test_the_notebook_shares_three_batchnorms(notebook: nn.Module, images: Float32Array) -> None:
    counts = call_counts(notebook, images[:1])
    assert counts == {"layer.0.bn": 3, "layer.1.bn": 3, "layer.2.bn": 3}
    assert shared(counts) == counts
    assert call_counts(split(notebook, counts), images[:1]) == {
        f"layer.{block}.bn.sites.{site}": 1 for block in range(3) for site in range(3)
    }


def test_counting_leaves_no_hook_and_no_mode_behind(images: Float32Array) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Dropout()).train()
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    assert call_counts(module, images[:1]) == {"0": 1, "1": 1}
    assert shared({"0": 1, "1": 1}) == {}
    assert [part.training for part in module] == [True, False, True]
    assert not module[0]._forward_hooks
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_split_computes_the_same_until_it_is_reestimated(notebook: nn.Module, images: Float32Array) -> None:
    with torch.no_grad():
        expected = notebook(torch.tensor(images))
        assert torch.equal(split(notebook, {"layer.1.bn": 3})(torch.tensor(images)), expected)


def test_split_and_reestimation_restore_the_agreement(mixed: nn.Module, batches: list[Float32Array]) -> None:
    before = compare_modes(mixed, batches)
    assert before.calls == {"bn": 2}
    assert before.images == 4096
    assert before.agreement < 0.6
    repaired = split(mixed, before.calls)
    reestimate(repaired, batches)
    after = compare_modes(repaired, batches)
    assert after.agreement > 0.95
    assert after.calls == {}


def test_reestimated_statistics_are_the_mean_over_batches(
    mixed: nn.Module, batches: list[Float32Array]
) -> None:
    repaired = split(mixed, {"bn": 2})
    reestimate(repaired, batches)
    at_second = [100.0 * batch.astype(np.float64) + 50.0 for batch in batches]
    mean = np.mean([batch.mean(0) for batch in at_second], 0)
    variance = np.mean([batch.var(0, ddof=1) for batch in at_second], 0)
    state = {key: value.numpy() for key, value in repaired.state_dict().items()}
    np.testing.assert_allclose(state["bn.sites.1.running_mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(state["bn.sites.1.running_var"], variance, rtol=1e-5)
    assert state["bn.sites.1.num_batches_tracked"] == 4


def test_reestimation_puts_momentum_and_modes_back(batches: list[Float32Array]) -> None:
    linear, norm = nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=0.25)
    module = nn.Sequential(linear, norm).train()
    linear.eval()
    weight = linear.weight.clone()
    reestimate(module, batches)
    assert norm.momentum == 0.25
    assert (linear.training, norm.training) == (False, True)
    assert torch.equal(linear.weight, weight)
    assert linear.weight.grad is None


def test_reestimation_needs_an_image(notebook: nn.Module) -> None:
    with pytest.raises(InputRefused, match="no image"):
        reestimate(copy.deepcopy(notebook), [])


def test_an_exception_in_mid_forward_does_not_shift_the_next_pass(
    mixed: nn.Module, batches: list[Float32Array]
) -> None:
    repaired = split(mixed, {"bn": 2})
    reestimate(repaired, batches)
    x = torch.tensor(batches[0])
    expected = repaired(x)
    repaired.fail_between = True  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="in the middle"):
        repaired(x)
    repaired.fail_between = False  # type: ignore[assignment]
    assert torch.equal(repaired(x), expected)


def test_a_deep_copy_counts_for_itself(mixed: nn.Module, batches: list[Float32Array]) -> None:
    repaired = split(mixed, {"bn": 2})
    twin = copy.deepcopy(repaired)
    reestimate(twin, batches)
    x = torch.tensor(batches[0])
    assert torch.equal(repaired(x), mixed(x))
    assert not torch.equal(twin(x), mixed(x))
    assert torch.equal(copy.deepcopy(twin)(x), twin(x))


def test_a_batchnorm_under_two_names_is_replaced_under_both() -> None:
    norm = nn.BatchNorm1d(2)
    module = nn.Sequential(norm, nn.ReLU(), norm).eval()
    example = np.ones((2, 2), np.float32)
    assert call_counts(module, example) == {"0": 2}
    repaired = split(module, {"0": 2})
    assert call_counts(repaired, example) == {"0.sites.0": 1, "0.sites.1": 1}


def test_each_call_site_is_a_node_of_its_own_in_export(mixed: nn.Module) -> None:
    repaired = split(mixed, {"bn": 2})
    batch = torch.export.Dim("batch")
    program = torch.export.export(repaired, (torch.zeros(3, 2),), dynamic_shapes=({0: batch},))
    norms = [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    assert len(norms) == 2
    assert {str(node.args[3]) for node in norms} == {
        "b_bn_sites_0_running_mean",
        "b_bn_sites_1_running_mean",
    }


def test_a_split_model_pays_for_no_more_module_calls_than_one_written_by_hand(
    mixed: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired = split(mixed, {"bn": 2})
    called: list[str] = []
    real_call: Callable[..., Any] = nn.Module._call_impl

    def recorded(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as nn.Module's
        called.append(type(self).__name__)
        return real_call(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "_call_impl", recorded)
    repaired(torch.zeros(4, 2))
    assert called == ["Twice", "BatchNorm1d", "BatchNorm1d"]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in repaired.modules())


@pytest.mark.parametrize(
    ("sites", "calls", "complaint"),
    [
        (2, 3, "has 2 call sites, called once more"),
        (4, 3, "bn: was called 3 times, split for 4"),
        (4, 1, "bn: was called 1 times, split for 4"),
    ],
)
def test_another_number_of_calls_is_refused(sites: int, calls: int, complaint: str) -> None:
    module = split(MoreThanSplit(sites), {"bn": sites})
    module.calls = calls  # type: ignore[assignment]
    with pytest.raises(InputRefused, match=f"{complaint} in one forward pass"):
        module(torch.zeros(4, 2))


@pytest.mark.parametrize("calls", [{"nowhere": 3}, {"bn": 1}])
def test_what_cannot_be_split_is_refused(calls: dict[str, int]) -> None:
    with pytest.raises(InputRefused, match="BatchNorms of this model: bn;"):
        split(MoreThanSplit(2), calls)


def test_comparison_counts_right_answers_and_changes_nothing() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2, affine=False)).eval()
    module.get_buffer("0.running_mean").copy_(torch.tensor([0.0, 10.0]))
    before = copy.deepcopy(module.state_dict())
    # Eval mode sees class 0 everywhere (x1 - 10 < x0); batch statistics rank the columns.
    batch = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0], [3.0, 5.0]], np.float32)
    labels: Int64Array = np.array([1, 0, 0, 1], np.int64)
    report = compare_modes(module, [batch[:2], batch[2:]], labels)
    assert report.top1_eval == 0.5
    assert report.top1_batch == 1.0
    assert report.agreement == 0.5
    assert compare_modes(module, [batch]).top1_eval is None
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_comparison_refuses_another_number_of_labels(batches: list[Float32Array]) -> None:
    with pytest.raises(InputRefused, match="4096 images and 3 labels"):
        compare_modes(nn.BatchNorm1d(2), batches, np.zeros(3, np.int64))


def test_read_only_images_are_taken(mixed: nn.Module, batches: list[Float32Array]) -> None:
    for batch in batches:
        batch.setflags(write=False)
    assert compare_modes(mixed, batches).images == 4096


@pytest.mark.parametrize(
    ("scale", "offset", "shift", "spread"),
    [(1.0, 0.0, 0.0, 1.0), (0.25, 0.0, 0.0, 0.25), (1.0, 4.0, 4.0, 1.0)],
)
def test_the_first_batchnorm_tells_how_images_were_normalised(
    scale: float, offset: float, shift: float, spread: float
) -> None:
    trained = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    module = nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.ReLU(), nn.BatchNorm2d(3)).train()
    module(trained)
    gap = first_gap(module.eval(), (trained * scale + offset).numpy())
    assert gap is not None
    assert gap.batchnorm == "0"
    assert gap.shift == pytest.approx(shift, abs=0.02)
    assert gap.spread == pytest.approx(spread, rel=0.02)


def test_shared_batchnorms_and_those_without_statistics_tell_nothing() -> None:
    images = np.zeros((2, 3, 8, 8), np.float32)
    assert first_gap(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), images) is None
    assert first_gap(nn.Sequential(nn.BatchNorm2d(3)), images, shared={"0"}) is None
