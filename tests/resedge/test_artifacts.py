from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resedge.artifacts import (
    Accuracy,
    Artifact,
    Distribution,
    Engine,
    Latency,
    Percentile,
    Preprocessing,
    Ranges,
    TensorSpec,
    Verdict,
    WorstClass,
    canonical_json,
    decode,
    encode,
    load,
    parse_json,
    sha256_bytes,
)
from resedge.errors import InputRefused, StaleArtifact

ARTIFACT = Artifact(
    Path("onnx/fp32.onnx"),
    "ab" * 32,
    "onnx/fp32",
    inputs=(TensorSpec("input", ("batch", 3, 28, 28), "float32"),),
    outputs=(TensorSpec("logits", ("batch", 10), "float32"),),
    parents=("cd" * 32,),
    meta={"opset": 19, "nested": {"list": [1, 2.5, None, True]}},
)
ACCURACY = Accuracy(100, 0.99, 0.25, 0.9, 0.91, 0.01, 0.03, 2, 1)
LATENCY = Latency(0.5, 2.0, 4.0, 3.5, 4.5, 3.0, "faster", 8, 100)
FULL_ACCURACY = dataclasses.replace(
    ACCURACY, top5=0.99, top5_eager=1.0, kl=0.001, worst_class=WorstClass(3, 10, 0.1, 0.4), images_needed=900
)
FULL_LATENCY = dataclasses.replace(
    LATENCY,
    p90_ms=Percentile(0.6, 0.58, 0.63),
    log_ratios=(1.4, 1.3),
    processes=(1, 1),
    distribution=Distribution((0.4, 0.5, 0.7), (60, 40)),
    rounds_needed=3,
)
VALUES = [
    ARTIFACT,
    Ranges({"a": (-1.0, 2.5)}, "minmax", "1", "2", 300),
    Engine(ARTIFACT, "openvino", "2026.4.1", "CPU", "int8", companions=(ARTIFACT,)),
    Verdict("openvino", "int8", "pass", (), ACCURACY, LATENCY, {"threads": 2}),
    Verdict("openvino", "fp32", "inconclusive", ("open.",), FULL_ACCURACY, FULL_LATENCY),
    Verdict("tensorrt", "int8", "unavailable", ("to be built on the device",)),
    Preprocessing(28, 28, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_values_come_back_from_json_as_they_were(value: object) -> None:
    text = canonical_json(encode(value))
    assert decode(type(value), parse_json(text, "text"), "text") == value


def test_a_field_that_is_a_word_of_pythons_has_its_key() -> None:
    document = encode(WorstClass(3, 10, 0.1, 0.4))
    assert document == {"class": 3, "images": 10, "drop": 0.1, "drop_upper": 0.4}
    with pytest.raises(InputRefused, match="unknown key 'number'"):
        decode(WorstClass, {"number": 3, "images": 10, "drop": 0.1, "drop_upper": 0.4}, "v.json")


def test_an_unknown_key_is_named() -> None:
    document = {**json.loads(canonical_json(encode(ACCURACY))), "tpo1": 0.9}
    with pytest.raises(InputRefused, match="unknown key 'tpo1'"):
        decode(Accuracy, document, "file.json")


def test_a_missing_key_is_named() -> None:
    document = json.loads(canonical_json(encode(ACCURACY)))
    del document["agreement"]
    with pytest.raises(InputRefused, match="'agreement' is missing"):
        decode(Accuracy, document, "file.json")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"images": "100"}, "file.json: images"),
        ({"images": True}, "file.json: images"),
        ({"images": 1.5}, "file.json: images"),
        ({"agreement": None}, "file.json: agreement"),
        ({"top1": [0.5]}, "file.json: top1"),
    ],
)
def test_a_wrong_type_is_refused_with_its_place(change: dict[str, object], where: str) -> None:
    document = {**json.loads(canonical_json(encode(ACCURACY))), **change}
    with pytest.raises(InputRefused) as caught:
        decode(Accuracy, document, "file.json")
    assert caught.value.where == where


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "a\\b", "a\0b", ""])
def test_a_path_that_leaves_the_bundle_is_refused(path: str) -> None:
    document = {**json.loads(canonical_json(encode(ARTIFACT))), "path": path}
    with pytest.raises(InputRefused, match="not a relative path"):
        decode(Artifact, document, "manifest.json")


def test_an_outcome_that_is_none_of_the_four_is_refused() -> None:
    document = {**json.loads(canonical_json(encode(VALUES[3]))), "outcome": "ok"}
    with pytest.raises(InputRefused, match="expected one of"):
        decode(Verdict, document, "v.json")


def test_a_tuple_of_another_length_is_refused() -> None:
    document = {**json.loads(canonical_json(encode(VALUES[6]))), "resize": [8, 8, 8]}
    with pytest.raises(InputRefused, match="has 3 items, expected 2"):
        decode(Preprocessing, document, "p.json")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1, "a": 2}', "given twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -1e999}', "-1e999 is beyond"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('{"\\uDFFF": 1}', "half of a surrogate pair"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON"),
    ],
)
def test_what_is_not_plain_json_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InputRefused, match=complaint):
        parse_json(text, "text")


def test_nan_has_no_json_form() -> None:
    with pytest.raises(ValueError, match="no JSON form"):
        encode(dataclasses.replace(ACCURACY, agreement=float("nan")))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    )
)
def test_decode_refuses_or_builds_but_never_breaks(document: object) -> None:
    for kind in (Artifact, Verdict, Ranges, Preprocessing):
        with pytest.raises(InputRefused):
            decode(kind, document, "fuzz")


def test_reading_an_artifact_checks_the_bytes_that_are_returned(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"right")
    artifact = Artifact(path, sha256_bytes(b"right"), "any")
    assert artifact.read() == b"right"
    path.write_bytes(b"wrong")
    with pytest.raises(StaleArtifact, match="has changed"):
        artifact.read()
    path.unlink()
    with pytest.raises(InputRefused, match="cannot be read"):
        artifact.read()


def test_paths_move_under_a_root_and_back() -> None:
    there = ARTIFACT.under(Path("/bundle"))
    assert there.path == Path("/bundle/onnx/fp32.onnx")
    assert there.relative_to(Path("/bundle")) == ARTIFACT


def test_load_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"none\.json: cannot be read"):
        load(Accuracy, tmp_path / "none.json")
