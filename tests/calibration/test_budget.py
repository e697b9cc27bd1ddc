from __future__ import annotations

from dataclasses import replace

import pytest

from resedge.artifacts import Artifact
from resedge.calibration.bakeoff import Score
from resedge.calibration.budget import Goal, Sensitivity, Trial, frontier, search, sensitivities
from resedge.calibration.layers import Layer, chosen, layers_of
from resedge.errors import UsageError

LAYERS = tuple(Layer(name, f"net.{name}", "Conv", macs) for name, macs in (("a", 10), ("b", 50), ("c", 40)))
HARM = {"a": 0.004, "b": 0.010, "c": 0.001}  # of drop, each layer's own


def _score(kept: frozenset[str]) -> Score:
    drop = sum(harm for name, harm in HARM.items() if name not in kept)
    return Score(agreement=1 - drop, kl=drop / 10, drop=drop, images=1000)


BASE = _score(frozenset())
FOUND = sensitivities(LAYERS, BASE, _score, {"a": 20.0})


def test_a_sensitivity_is_what_the_layer_alone_gains() -> None:
    assert FOUND[0].name == "a"
    assert FOUND[0].module == "net.a"
    assert FOUND[0].share == 0.1
    assert FOUND[0].sqnr == 20.0
    assert FOUND[1].sqnr is None
    assert [layer.kl_gain for layer in FOUND] == pytest.approx([0.0004, 0.0010, 0.0001])
    assert [layer.agreement_gain for layer in FOUND] == pytest.approx([0.004, 0.010, 0.001])


def _at_most(max_drop: float) -> Goal:
    return lambda score: score.drop <= max_drop


@pytest.mark.parametrize(
    ("max_drop", "kept", "met"),
    [
        (0.016, (), True),
        (0.012, ("a",), True),  # the best for its cost
        (0.006, ("b",), True),  # a, then b, after which a is idle
        (0.0005, (), False),  # only all three would do, and c with another is more than half of the work
    ],
)
def test_the_fewest_layers_that_the_budget_needs(max_drop: float, kept: tuple[str, ...], met: bool) -> None:
    shares = {"a": 0.1, "b": 0.4, "c": 0.5}
    found = tuple(replace(layer, share=shares[layer.name]) for layer in FOUND)
    result = search(found, BASE, _score, _at_most(max_drop), frozenset())
    assert (result.kept, result.met) == (kept, met)
    assert result.trials[0].kept == ()
    assert result.trials[0].score == BASE


def test_a_budget_that_half_of_the_work_cannot_meet_is_not_met() -> None:
    result = search(FOUND, BASE, _score, _at_most(0.0001), frozenset({"c"}))
    assert not result.met
    assert result.kept == ("c",)
    assert len(result.trials) > 1


def test_layers_that_do_not_help_are_not_kept() -> None:
    useless = [Sensitivity("a", "a", 0.1, -0.1, 0.0, None)]
    result = search(useless, BASE, _score, _at_most(0.001), frozenset())
    assert len(result.trials) == 1
    assert not result.met


def test_the_frontier_has_what_no_cheaper_trial_beats() -> None:
    def trial(kept: str, share: float, drop: float) -> Trial:
        return Trial(tuple(kept), share, Score(agreement=1 - drop, kl=drop, drop=drop, images=1000))

    none, a, b, both = (
        trial("", 0.0, 0.03),
        trial("a", 0.1, 0.01),
        trial("b", 0.2, 0.02),
        trial("ab", 0.3, 0.0),
    )
    assert frontier((none, both, b, a)) == (none, a, both)


def test_layers_of_a_graph_and_their_work(networks: dict[str, Artifact]) -> None:
    layers = {layer.name: layer for layer in layers_of(networks["notebook"])}
    assert list(layers)[:3] == ["layer.0.conv1", "layer.0.conv2", "layer.0.conv3"]
    assert layers["layer.0.conv1"].macs == 16 * 3 * 9 * 12 * 12
    assert layers["layer.1.conv2"].macs == 16 * 16 * 9 * 12 * 12
    assert layers["linear"].macs == 10 * 16 * 12 * 12
    assert layers["linear"].op_type == "Gemm"


def test_layers_are_chosen_by_name_or_module(networks: dict[str, Artifact]) -> None:
    layers = layers_of(networks["notebook"])
    assert chosen(layers, frozenset({"layer.0"})) == {f"layer.0.conv{i}" for i in (1, 2, 3)}
    assert chosen(layers, frozenset({"linear"})) == {"linear"}
    with pytest.raises(UsageError, match=r"layer.0.con.*Did you mean layer.0.conv"):
        chosen(layers, frozenset({"layer.0.con"}))
