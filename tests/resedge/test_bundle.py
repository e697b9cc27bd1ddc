from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from resedge import bundle as bundles
from resedge.artifacts import (
    Artifact,
    Engine,
    Preprocessing,
    TensorSpec,
    canonical_json,
    encode,
    sha256_bytes,
)
from resedge.bundle import Manifest, ModelInfo, Target
from resedge.errors import InputRefused, StaleArtifact


def _manifest(contents: dict[str, bytes]) -> Manifest:
    files = tuple(Artifact(Path(n), sha256_bytes(c), "any") for n, c in sorted(contents.items()))
    return Manifest(
        format_version=1,
        counter=0,
        expires=None,
        signing=None,
        model=ModelInfo(
            "notebook",
            "eager, as trained",
            "keep",
            TensorSpec("input", ("batch", 3, 28, 28), "float32"),
            TensorSpec("logits", ("batch", 10), "float32"),
        ),
        preprocessing=Preprocessing(28, 28, (0.5,) * 3, (0.5,) * 3),
        labels=("a", "b"),
        target=Target(("openvino",)),
        files=files,
        engines=(Engine(files[0], "openvino", "1", "CPU", "int8"),),
        toolchain={},
        parents={},
        trtexec={},
    )


class _Maker:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.locks = root / "locks"
        self.locks.mkdir()
        self.out = root / "model.resedge"

    def publish(self, contents: dict[str, bytes]) -> bundles.Published:
        sources = {}
        for i, (name, content) in enumerate(contents.items()):
            sources[name] = self.root / f"source{i}"
            sources[name].write_bytes(content)
        return bundles.publish(_manifest(contents), sources, self.out, locks=self.locks)


@pytest.fixture
def maker(tmp_path: Path) -> _Maker:
    return _Maker(tmp_path)


CONTENT = {"engines/a.xml": b"xml", "onnx/b.onnx": b"onnx"}


def test_a_bundle_is_written_read_and_checked(maker: _Maker) -> None:
    published = maker.publish(CONTENT)
    assert published.changed
    bundle = bundles.read(maker.out)
    bundles.check(bundle)
    assert bundle.manifest.counter == 1
    assert bundle.file("onnx/b.onnx").read() == b"onnx"
    engine = bundle.engine("openvino", "int8")
    assert engine is not None
    assert engine.artifact.read() == b"xml"
    assert bundle.engine("openvino", "fp16") is None
    with pytest.raises(InputRefused, match="names no other"):
        bundle.file("other")


def test_the_same_content_changes_nothing(maker: _Maker) -> None:
    maker.publish(CONTENT)
    before = {p: p.stat().st_mtime_ns for p in maker.out.rglob("*")}
    assert not maker.publish(CONTENT).changed
    assert {p: p.stat().st_mtime_ns for p in maker.out.rglob("*")} == before


def test_a_change_raises_the_counter_and_drops_the_signature(maker: _Maker) -> None:
    maker.publish(CONTENT)
    (maker.out / bundles.SIGNATURE).write_text("signed")
    assert not maker.publish(CONTENT).changed
    assert (maker.out / bundles.SIGNATURE).exists()
    published = maker.publish({**CONTENT, "onnx/b.onnx": b"new"})
    assert (published.changed, published.dropped_signature) == (True, True)
    assert bundles.read(maker.out).manifest.counter == 2
    assert not (maker.out / bundles.SIGNATURE).exists()


@pytest.mark.parametrize("damage", ["changed", "missing", "extra"])
def test_a_damaged_bundle_is_refused_by_name_and_mended_by_export(maker: _Maker, damage: str) -> None:
    bundle = maker.publish(CONTENT).bundle
    path = maker.out / ("onnx/c.onnx" if damage == "extra" else "onnx/b.onnx")
    path.unlink() if damage == "missing" else path.write_bytes(b"evil")
    with pytest.raises(StaleArtifact, match=path.name):
        bundles.check(bundle)
    assert maker.publish(CONTENT).changed
    bundles.check(bundles.read(maker.out))


def test_a_symbolic_link_in_a_bundle_is_an_extra_file(maker: _Maker) -> None:
    bundle = maker.publish(CONTENT).bundle
    (maker.out / "link").symlink_to("/nowhere")
    with pytest.raises(StaleArtifact, match="link"):
        bundles.check(bundle)


def test_a_folder_with_something_else_in_it_is_left_alone(maker: _Maker) -> None:
    maker.out.mkdir()
    (maker.out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputRefused, match="not a bundle; nothing was written"):
        maker.publish(CONTENT)
    assert [p.name for p in maker.out.iterdir()] == ["thesis.tex"]


def test_places_that_cannot_take_a_bundle_are_refused_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputRefused, match="is not a folder"):
        bundles.check_place(file)
    with pytest.raises(InputRefused, match="does not exist"):
        bundles.check_place(tmp_path / "none" / "model.resedge")
    with pytest.raises(InputRefused, match="cannot be written"):
        bundles.check_place(Path("/proc/model.resedge"))


def test_a_source_that_changed_meanwhile_is_not_published(maker: _Maker) -> None:
    manifest = _manifest(CONTENT)
    sources = {name: maker.root / "other" for name in CONTENT}
    (maker.root / "other").write_bytes(b"other")
    with pytest.raises(StaleArtifact, match="changed while"):
        bundles.publish(manifest, sources, maker.out, locks=maker.locks)
    assert not maker.out.exists()
    assert not list(maker.root.glob(".model*"))


def test_no_bundle_and_other_formats_are_refused(maker: _Maker) -> None:
    with pytest.raises(InputRefused, match="does not exist"):
        bundles.read(maker.out)
    maker.publish(CONTENT)
    path = maker.out / bundles.MANIFEST
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format_version": 2}))
    with pytest.raises(InputRefused, match="format version 2"):
        bundles.read(maker.out)
    path.write_text(json.dumps({**document, "surprise": 1}))
    with pytest.raises(InputRefused, match="unknown key 'surprise'"):
        bundles.read(maker.out)


def test_a_manifest_comes_back_from_json_as_it_was(maker: _Maker) -> None:
    bundle = maker.publish(CONTENT).bundle
    assert bundles.read(maker.out).manifest == bundle.manifest
    text = (maker.out / bundles.MANIFEST).read_text()
    assert text == canonical_json(encode(bundle.manifest))
    assert dataclasses.replace(bundle.manifest, counter=0) == _manifest(CONTENT)
