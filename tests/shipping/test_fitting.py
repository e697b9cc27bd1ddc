from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resedge.artifacts import Artifact, Engine, Preprocessing, TensorSpec
from resedge.bundle import Manifest, ModelInfo, Target
from resedge.engines import EngineName
from resedge.errors import InputRefused, RuntimeUnavailable
from resedge.shipping import wire
from resedge.shipping.fitting import choose, files_of, misfits

SPEC = TensorSpec("x", ("batch", 3, 8, 8), "float32")
ORIN = wire.JetsonFacts(
    model="Orin Nano",
    module="Orin Nano 8 GB",
    l4t="36.4.3",
    jetpack="6.2",
    tensorrt="10.3.0.30",
    cuda="12.6",
    compute_capability="8.7",
    power_mode="15W",
    clocks_locked=False,
)
EVERYTHING = {
    "openvino": ("fp32", "fp16", "int8"),
    "onnxruntime": ("fp32", "int8"),
    "tensorrt": ("fp16", "int8"),
}


def facts(runtimes: dict[str, tuple[str, ...]], **change: Any) -> wire.Facts:  # noqa: ANN401
    found = tuple(
        wire.RuntimeFacts(name, "1.0" if name in runtimes else None, None, runtimes.get(name, ()), None)
        if name in runtimes
        else wire.RuntimeFacts(name, None, None, (), f"{name} is not installed")
        for name in EVERYTHING
    )
    status = wire.Status(True, None, 0, None, (), None, None)
    made = wire.Facts(
        *("0", "3.10.12", "1.26", "any", ("avx2",), True, 4, 8 << 30, 4 << 30, 8 << 30),
        *("2026-01-01T00:00:00Z", "/device", found, None, status),
    )
    return replace(made, **change)


def manifest(
    *names: str,
    engines: tuple[EngineName, ...] = (),
    pair_safe: bool = False,
    **target: Any,  # noqa: ANN401
) -> Manifest:
    files = tuple(
        Artifact(Path(name), "0" * 64, name.rpartition(".")[0], meta={"pair_safe": pair_safe})
        for name in names
    )
    return Manifest(
        format_version=1,
        counter=1,
        expires=None,
        signing=None,
        signed_at=None,
        model=ModelInfo("m", "eager", "keep", SPEC, SPEC),
        preprocessing=Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3),
        labels=(),
        target=Target(**{"runtimes": tuple(EVERYTHING), **target}),
        files=files,
        engines=tuple(
            Engine(Artifact(Path(f"engines/{r}-{p}"), "1" * 64, "any"), r, "1", "CPU", p) for r, p in engines
        ),
        toolchain={},
        parents={},
        trtexec={},
    )


WHOLE = manifest("onnx/fp32.onnx", "onnx/fp16.onnx", "onnx/int8.cpu.onnx", "onnx/int8.tensorrt.onnx")


@pytest.mark.parametrize(
    ("runtimes", "expected"),
    [
        (EVERYTHING, ("tensorrt", "int8")),
        ({"openvino": EVERYTHING["openvino"], "onnxruntime": ("fp32",)}, ("openvino", "int8")),
        ({"onnxruntime": ("fp32", "int8")}, ("onnxruntime", "int8")),
        ({"onnxruntime": ("fp32",)}, ("onnxruntime", "fp32")),
        ({"tensorrt": ("fp16",)}, ("tensorrt", "fp16")),
    ],
)
def test_the_first_engine_that_fits_is_chosen(
    runtimes: dict[str, tuple[str, ...]], expected: EngineName
) -> None:
    assert choose(WHOLE, facts(runtimes)) == expected


def test_an_int8_graph_that_would_saturate_is_passed_over_unless_it_is_safe() -> None:
    here = facts({"openvino": EVERYTHING["openvino"]}, exact_int8=False)
    assert choose(WHOLE, here) == ("openvino", "fp16")
    with pytest.raises(InputRefused, match="pairs of 8-bit products saturate"):
        choose(WHOLE, here, ("openvino", "int8"))
    assert choose(manifest("onnx/int8.cpu.onnx", pair_safe=True), here) == ("openvino", "int8")


def test_no_runtime_is_told_from_a_bundle_that_does_not_fit() -> None:
    with pytest.raises(RuntimeUnavailable, match="onnxruntime is not installed"):
        choose(WHOLE, facts({}))
    with pytest.raises(RuntimeUnavailable, match="tensorrt is not installed"):
        choose(WHOLE, facts({"openvino": ("fp32",)}), ("tensorrt", "fp16"))
    with pytest.raises(InputRefused, match="has no engine and no graph"):
        choose(manifest("README"), facts(EVERYTHING))
    with pytest.raises(InputRefused, match="neither this engine nor the graph"):
        choose(manifest("onnx/fp32.onnx"), facts(EVERYTHING), ("tensorrt", "int8"))


@pytest.mark.parametrize(
    ("target", "fits"),
    [
        ({"jetpack": "6.2"}, True),
        ({"jetpack": "6"}, True),
        ({"jetpack": "6.1"}, False),
        ({"jetpack": "5"}, False),
        ({"tensorrt": "10.3"}, True),
        ({"tensorrt": "10.30"}, False),
        ({"compute_capability": "8.7"}, True),
        ({"compute_capability": "7.2"}, False),
    ],
)
def test_a_bundle_for_a_certain_jetson(target: dict[str, Any], fits: bool) -> None:
    made = manifest("onnx/fp32.onnx", **target)
    on_orin = misfits(made, facts({"openvino": ("fp32",)}, jetson=ORIN), ("openvino", "fp32"))
    assert (on_orin == ()) == fits
    (elsewhere,) = misfits(made, facts({"openvino": ("fp32",)}), ("openvino", "fp32"))
    assert "there is none that is known" in elsewhere


def test_the_files_of_an_engine_are_its_own_or_its_graph_and_never_a_plan() -> None:
    made = manifest("onnx/fp32.onnx", "onnx/fp16.onnx", engines=(("openvino", "fp32"), ("tensorrt", "fp16")))
    paths = {
        name: [file.path.as_posix() for file in files_of(made, name)]
        for name in (("openvino", "fp32"), ("openvino", "fp16"), ("tensorrt", "fp16"), ("tensorrt", "int8"))
    }
    assert paths == {
        ("openvino", "fp32"): ["engines/openvino-fp32"],
        ("openvino", "fp16"): ["onnx/fp32.onnx"],
        ("tensorrt", "fp16"): ["onnx/fp16.onnx"],
        ("tensorrt", "int8"): [],
    }
