from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resedge import bundle as bundles
from resedge import files
from resedge.artifacts import (
    Artifact,
    Engine,
    Preprocessing,
    TensorSpec,
    canonical_json,
    encode,
    sha256_bytes,
)
from resedge.bundle import Manifest, ModelInfo, Target, publishing, reading
from resedge.errors import InputRefused, StaleArtifact


def _manifest(contents: dict[str, bytes]) -> Manifest:
    files = tuple(Artifact(Path(n), sha256_bytes(c), "any") for n, c in sorted(contents.items()))
    return Manifest(
        format_version=1,
        counter=0,
        expires=None,
        signing=None,
        signed_at=None,
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
        self.out = root / "model.resedge"

    def publish(self, contents: dict[str, bytes]) -> bundles.Published:
        return bundles.publish(_manifest(contents), self._sources(contents), self.out)

    def sign(self, contents: dict[str, bytes]) -> bundles.Published:
        """Publish what signing makes of a bundle: two more files, times, a signature."""
        everything = {**contents, bundles.AGENT: b"agent", bundles.AGENT_SIGNATURE: b"its signature"}
        manifest = dataclasses.replace(
            _manifest(everything),
            engines=_manifest(contents).engines,
            expires="2030-01-01T00:00:00Z",
            signing=bundles.Signing("resedge-bundle", "SHA256:abc"),
            signed_at="2029-01-01T00:00:00Z",
        )
        return bundles.publish(manifest, self._sources(everything), self.out, lambda text: text[::-1])

    def _sources(self, contents: dict[str, bytes]) -> dict[str, Path]:
        sources = {}
        for i, (name, content) in enumerate(contents.items()):
            sources[name] = self.root / f"source{i}"
            sources[name].write_bytes(content)
        return sources


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


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_models_input_says_what_is_left_to_do_to_a_frame(dtype: str) -> None:
    manifest = _manifest(CONTENT)
    model = dataclasses.replace(manifest.model, input=TensorSpec("input", ("batch", 28, 28, 3), dtype))
    outside = dataclasses.replace(manifest, model=model).outside
    assert outside == (manifest.preprocessing if dtype == "float32" else None)


def test_the_same_content_changes_nothing(maker: _Maker) -> None:
    maker.publish(CONTENT)
    before = {p: p.stat().st_mtime_ns for p in maker.out.rglob("*")}
    assert not maker.publish(CONTENT).changed
    assert {p: p.stat().st_mtime_ns for p in maker.out.rglob("*")} == before


def test_a_signature_is_over_the_bytes_of_the_manifest(maker: _Maker) -> None:
    maker.publish(CONTENT)
    bundle = maker.sign(CONTENT).bundle
    bundles.check(bundle)
    assert bundle.manifest.counter == 2
    assert bundle.manifest.signing is not None
    text = (maker.out / bundles.MANIFEST).read_bytes()
    assert (maker.out / bundles.SIGNATURE).read_bytes() == text[::-1]
    assert maker.sign(CONTENT).bundle.manifest.counter == 3


def test_a_change_raises_the_counter_and_drops_the_signature(maker: _Maker) -> None:
    maker.publish(CONTENT)
    maker.sign(CONTENT)
    assert not maker.publish(CONTENT).changed
    assert (maker.out / bundles.SIGNATURE).exists()
    published = maker.publish({**CONTENT, "onnx/b.onnx": b"new"})
    assert (published.changed, published.dropped_signature) == (True, True)
    manifest = bundles.read(maker.out).manifest
    assert (manifest.counter, manifest.expires, manifest.signing, manifest.signed_at) == (3, None, None, None)
    assert sorted(a.path.as_posix() for a in manifest.files) == sorted(CONTENT)
    assert not (maker.out / bundles.SIGNATURE).exists()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_bundle_is_refused_by_name_and_mended_by_export(maker: _Maker, damage: str) -> None:
    bundle = maker.publish(CONTENT).bundle
    path = maker.out / "onnx/b.onnx"
    path.unlink() if damage == "missing" else path.write_bytes(b"evil")
    with pytest.raises(StaleArtifact, match=path.name):
        bundles.check(bundle)
    bundles.check_place(maker.out)
    assert maker.publish(CONTENT).changed
    bundles.check(bundles.read(maker.out))


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/hostname"), os.mkfifo, Path.mkdir])
def test_a_file_that_is_a_link_or_a_pipe_is_refused_unread(
    maker: _Maker, make: Callable[[Path], None]
) -> None:
    maker.publish(CONTENT)
    path = maker.out / "onnx" / "b.onnx"
    path.unlink()
    make(path)
    with pytest.raises(InputRefused, match=r"b\.onnx: is a link or not a regular file"):
        bundles.read(maker.out)


def test_a_folder_that_leads_out_of_the_bundle_is_refused(maker: _Maker, tmp_path: Path) -> None:
    maker.publish(CONTENT)
    (maker.out / "engines").rename(tmp_path / "elsewhere")
    (maker.out / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputRefused, match="engines: is a link"):
        bundles.read(maker.out)


def test_a_manifest_beyond_the_limit_is_refused_unread(maker: _Maker) -> None:
    maker.publish(CONTENT)
    os.truncate(maker.out / bundles.MANIFEST, bundles.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(InputRefused, match="bytes, more than"):
        bundles.read(maker.out)


def _write_file(path: Path) -> None:
    path.write_text("years of work")


@pytest.mark.parametrize("make", [_write_file, lambda path: path.symlink_to("/usr"), os.mkfifo])
def test_files_of_the_users_in_a_bundle_are_never_replaced(
    maker: _Maker, make: Callable[[Path], None]
) -> None:
    bundle = maker.publish(CONTENT).bundle
    extra = maker.out / "onnx" / "notes.txt"
    make(extra)
    with pytest.raises(StaleArtifact, match=r"notes\.txt: is not in the manifest"):
        bundles.check(bundle)
    changed = {**CONTENT, "onnx/b.onnx": b"new"}
    for attempt in (lambda: bundles.check_place(maker.out), lambda: maker.publish(changed)):
        with pytest.raises(
            InputRefused, match=r"not in its manifest: onnx/notes\.txt; nothing .* Move them elsewhere"
        ):
            attempt()
    extra.unlink()
    bundles.check(bundle)


def test_many_files_of_the_users_are_counted(maker: _Maker) -> None:
    maker.publish(CONTENT)
    for i in range(8):
        (maker.out / f"{i}").touch()
    with pytest.raises(InputRefused, match="manifest: 0, 1, 2, 3, 4 and 3 more;"):
        bundles.check_place(maker.out)


def test_a_write_protected_bundle_is_refused_before_the_work(
    maker: _Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.publish(CONTENT)
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).endswith("onnx"))
    with pytest.raises(InputRefused, match="onnx: is write-protected"):
        bundles.check_place(maker.out)


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
    with pytest.raises(InputRefused, match="is a mount point"):
        bundles.check_place(Path("/"))
    with pytest.raises(InputRefused, match=r"cannot be read \(File name too long\)"):
        bundles.check_place(tmp_path / ("x" * 300))
    (tmp_path / "real").mkdir()
    for name, target in (("link", "real"), ("loop", "loop"), ("dangling", "none")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(InputRefused, match=f"{name}: is a symbolic link"):
            bundles.check_place(tmp_path / name)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "real", "link", "loop", "dangling"}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"name": "an extension of a browser"}', '{"format_version": 1}']
)
def test_a_folder_with_another_manifest_is_refused_before_the_work(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputRefused, match=r"Remove the folder or name another with --out\.$"):
        bundles.check_place(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def _deny(monkeypatch: pytest.MonkeyPatch, name: str, denied: Path) -> None:
    """Make a function of os refuse one path, as it does for those who are not root."""
    original = getattr(os, name)

    def call(path: object, *args: object, **kwargs: object) -> object:
        if not isinstance(path, int) and Path(os.fspath(path)) == denied:  # type: ignore[call-overload]
            raise PermissionError(errno.EACCES, "Permission denied", str(denied))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, name, call)


def test_folders_that_may_not_be_read_are_refused(maker: _Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = maker.publish(CONTENT).bundle
    for name, denied in (("stat", maker.out / bundles.MANIFEST), ("open", maker.root)):
        with monkeypatch.context() as patched:
            _deny(patched, name, denied)
            with pytest.raises(InputRefused, match=r"cannot be read \(Permission denied\)"):
                bundles.check_place(maker.out)
    with monkeypatch.context() as patched:
        _deny(patched, "stat", maker.out / bundles.MANIFEST)
        for look in (bundles.is_bundle, bundles.read):
            with pytest.raises(InputRefused, match=r"cannot be read \(Permission denied\)"):
                look(maker.out)
    with monkeypatch.context() as patched:
        _deny(patched, "scandir", maker.out / "onnx")
        attempts: tuple[Callable[[], None], ...] = (
            lambda: bundles.check(bundle),
            lambda: bundles.check_place(maker.out),
        )
        for attempt in attempts:
            with pytest.raises(InputRefused, match=r"onnx: cannot be read \(Permission denied\)"):
                attempt()


def test_a_file_that_may_not_be_read_is_refused(maker: _Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = maker.publish(CONTENT).bundle

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(reading, "sha256_file", refuse)
    with pytest.raises(InputRefused, match=r"a\.xml: cannot be read \(Permission denied\)"):
        bundles.check(bundle)


def test_writers_of_one_place_exclude_each_other_by_whatever_name(
    maker: _Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_LOCK_SECONDS", 0.06)
    (maker.root / "link").symlink_to(maker.root)
    with files.locked_folder(maker.root, 0):
        for out in (
            maker.out,
            maker.root / "link" / maker.out.name,
            maker.root / "x" / ".." / maker.out.name,
        ):
            with pytest.raises(InputRefused, match="is being written by another resedge"):
                bundles.check_place(out)
        with pytest.raises(InputRefused, match="is being written by another resedge"):
            maker.publish(CONTENT)
    maker.publish(CONTENT)
    assert sorted(p.name for p in maker.root.iterdir()) == ["link", "model.resedge", "source0", "source1"]


_KILLED_BETWEEN_THE_RENAMES = """
import os, pathlib, signal, sys
from resedge import files
rename = pathlib.Path.rename
def once(path, target):
    rename(path, target)
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.rename = once
files._exchange = lambda *_: False
files.publish_folder(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def test_a_bundle_that_a_kill_left_aside_is_back_before_the_work(maker: _Maker) -> None:
    maker.publish(CONTENT)
    staged = maker.root / f".model.resedge.staged{files.ASIDE_SUFFIX}"
    staged.mkdir()
    command = [sys.executable, "-c", _KILLED_BETWEEN_THE_RENAMES, str(staged), str(maker.out)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not maker.out.exists()
    bundles.check_place(maker.out)
    bundles.check(bundles.read(maker.out))
    assert maker.publish({**CONTENT, "onnx/b.onnx": b"new"}).bundle.manifest.counter == 2
    assert sorted(p.name for p in maker.root.iterdir()) == ["model.resedge", "source0", "source1"]


def test_a_source_that_changed_meanwhile_is_not_published(maker: _Maker) -> None:
    manifest = _manifest(CONTENT)
    sources = {name: maker.root / "other" for name in CONTENT}
    (maker.root / "other").write_bytes(b"other")
    with pytest.raises(StaleArtifact, match="changed while"):
        bundles.publish(manifest, sources, maker.out)
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
