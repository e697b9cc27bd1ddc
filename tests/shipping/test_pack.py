from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from resedge import bundle as bundles
from resedge.artifacts import Artifact, Preprocessing, TensorSpec, sha256_bytes, sha256_file
from resedge.bundle import Bundle, Manifest, ModelInfo, Target
from resedge.errors import InputRefused, StaleArtifact
from resedge.shipping.pack import pack, unpack

CONTENTS = {"engines/a.bin": bytes(3_000_000), "golden/b": b"", "onnx/c.onnx": b"graph" * 103}
Entry = tuple[tarfile.TarInfo, bytes]


def _manifest(contents: dict[str, bytes]) -> Manifest:
    return Manifest(
        format_version=1,
        counter=0,
        expires=None,
        signing=None,
        signed_at=None,
        model=ModelInfo(
            "net",
            "eager",
            "keep",
            TensorSpec("input", ("batch", 3, 8, 8), "float32"),
            TensorSpec("logits", ("batch", 2), "float32"),
        ),
        preprocessing=Preprocessing(8, 8, (0.5,) * 3, (0.5,) * 3),
        labels=("a", "b"),
        target=Target(("onnxruntime",)),
        files=tuple(Artifact(Path(name), sha256_bytes(c), "any") for name, c in contents.items()),
        engines=(),
        toolchain={},
        parents={},
        trtexec={},
    )


def make(root: Path, contents: dict[str, bytes]) -> Bundle:
    sources = {name: root / name.replace("/", "-") for name in contents}
    for name, source in sources.items():
        source.write_bytes(contents[name])
    return bundles.publish(_manifest(contents), sources, root / "net.resedge").bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make(tmp_path, CONTENTS)


def entries(packed: Path) -> list[Entry]:
    with tarfile.open(packed) as archive:
        return [(entry, archive.extractfile(entry).read()) for entry in archive]  # type: ignore[union-attr]


def write(packed: Path, found: list[Entry]) -> None:
    with tarfile.open(packed, "w", format=tarfile.USTAR_FORMAT) as archive:
        for entry, content in found:
            archive.addfile(entry, io.BytesIO(content))
    with packed.open("rb") as stream:  # tarfile fills whole records; pack does not
        data = stream.read().rstrip(b"\0")
    packed.write_bytes(data + bytes(-len(data) % 512 + 1024))


def test_what_is_packed_comes_back(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / bundles.SIGNATURE).write_bytes(b"signature")
    pack(bundle, tmp_path / "net.tar")
    back = unpack(tmp_path / "net.tar", tmp_path / "back")
    bundles.check(back)
    assert back.manifest == bundle.manifest
    names = [bundles.MANIFEST, bundles.SIGNATURE, *CONTENTS]
    assert [entry.name for entry, _ in entries(tmp_path / "net.tar")] == names
    for name in names:
        assert (back.path / name).read_bytes() == (bundle.path / name).read_bytes()


def test_a_bundle_has_one_packed_form(bundle: Bundle, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "one.tar")
    back = unpack(tmp_path / "one.tar", tmp_path / "back")
    for path in back.path.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    pack(back, tmp_path / "other.tar")
    assert sha256_file(tmp_path / "one.tar") == sha256_file(tmp_path / "other.tar")


def test_the_tests_can_write_what_pack_writes(bundle: Bundle, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "one.tar")
    write(tmp_path / "other.tar", entries(tmp_path / "one.tar"))
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "other.tar").read_bytes()


def _changed(found: list[Entry], number: int, content: bytes = b"", **fields: object) -> list[Entry]:
    entry, old = found[number]
    for name, value in {"size": len(content or old), **fields}.items():
        setattr(entry, name, value)
    return [*found[:number], (entry, content or old), *found[number + 1 :]]


TAMPERING: dict[str, tuple[Callable[[list[Entry]], list[Entry]], str]] = {
    "a changed byte": (lambda e: _changed(e, 3, b"grapf" * 103), "is not the file that the manifest names"),
    "a shorter file": (lambda e: _changed(e, 3, b"graph" * 102), "is not the file that the manifest names"),
    "a missing file": (lambda e: e[:2] + e[3:], "golden/b: is missing"),
    "a file twice": (lambda e: [*e, e[3]], "or there twice"),
    "the manifest twice": (lambda e: [*e, e[0]], "or there twice"),
    "an extra file": (lambda e: [*e, *_changed(e[-1:], 0, name="extra")], "is not in the manifest"),
    "a path upwards": (lambda e: _changed(e, 3, name="../c.onnx"), "is not in the manifest"),
    "an absolute path": (lambda e: _changed(e, 3, name="/tmp/c.onnx"), "is not in the manifest"),
    "a link": (lambda e: _changed(e, 3, type=tarfile.SYMTYPE, linkname="/etc/hostname"), "in a form that"),
    "a hard link": (lambda e: _changed(e, 3, type=tarfile.LNKTYPE, linkname="golden/b"), "in a form that"),
    "a pipe": (lambda e: _changed(e, 2, type=tarfile.FIFOTYPE), "in a form that"),
    "an owner": (lambda e: _changed(e, 2, uname="mallory"), "in a form that"),
    "a set-uid bit": (lambda e: _changed(e, 2, mode=0o4755), "in a form that"),
    "no manifest first": (lambda e: e[1:], "does not begin with a manifest"),
    "nothing": (lambda _: [], "does not begin with a manifest"),
    "a manifest of another form": (lambda e: _changed(e, 0, b"{}"), "format version None"),
    "a manifest that is no text": (lambda e: _changed(e, 0, b"\xff"), "not UTF-8"),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_tampered_files_are_refused_and_leave_nothing(bundle: Bundle, tmp_path: Path, case: str) -> None:
    tamper, words = TAMPERING[case]
    pack(bundle, tmp_path / "net.tar")
    write(tmp_path / "net.tar", tamper(entries(tmp_path / "net.tar")))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputRefused, match=words):
        unpack(tmp_path / "net.tar", tmp_path / "back")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "ends too early"),
        (lambda data: data[:100], "ends too early"),
        (lambda data: data[:-2000], "ends too early"),
        (lambda data: data + b"\0", "goes on after its end"),
        (lambda data: data[:-1025] + b"x" + bytes(1024), "something between its files"),
        (lambda data: data[:-1] + b"x", "something between its files"),
        (lambda data: b"PK" + data[2:], "is no tar file"),
        (lambda data: b"", "ends too early"),
    ],
)
def test_damaged_files_are_refused(
    bundle: Bundle, tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    packed = tmp_path / "net.tar"
    pack(bundle, packed)
    packed.write_bytes(damage(packed.read_bytes()))
    with pytest.raises(InputRefused, match=words):
        unpack(packed, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_manifest_beyond_the_limit_is_refused_unread(bundle: Bundle, tmp_path: Path) -> None:
    packed = tmp_path / "net.tar"
    pack(bundle, packed)
    header = tarfile.TarInfo(bundles.MANIFEST)
    header.size = bundles.MAX_MANIFEST_BYTES + 1
    packed.write_bytes(header.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(InputRefused, match="manifest or signature of 16,777,217 bytes"):
        unpack(packed, tmp_path / "back")


def test_a_folder_that_is_not_its_manifests_is_not_packed(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "onnx/c.onnx").write_bytes(b"evil")
    with pytest.raises(StaleArtifact, match=r"c\.onnx"):
        pack(bundle, tmp_path / "net.tar")
    assert not (tmp_path / "net.tar").exists()


def test_a_path_too_long_for_tar_is_refused(tmp_path: Path) -> None:
    bundle = make(tmp_path, {"x" * 120: b""})
    with pytest.raises(InputRefused, match="does not fit into a tar file"):
        pack(bundle, tmp_path / "net.tar")
    assert not list(tmp_path.glob("*.tar"))


def test_a_place_that_is_taken_or_not_there_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "net.tar")
    with pytest.raises(InputRefused, match="is there already"):
        unpack(tmp_path / "net.tar", bundle.path)
    with pytest.raises(InputRefused, match="cannot be read"):
        unpack(tmp_path / "none.tar", tmp_path / "back")
    with pytest.raises(InputRefused, match="cannot be written"):
        pack(bundle, tmp_path / "none" / "net.tar")
