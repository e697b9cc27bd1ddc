"""What a file is, by its content, without loading it into a runtime and without running anything of it.

Only headers are read, with limits; an ONNX file is parsed as the protocol buffer that it is, and a child
process finds out what the gate says of it.
"""

from __future__ import annotations

import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resedge import files, gate
from resedge.artifacts import Artifact, parse_json, sha256_bytes, sha256_file
from resedge.errors import InputRefused, RuntimeUnavailable
from resedge.pipeline.vouching import refusal_of_graph

if TYPE_CHECKING:
    import onnx

Line = tuple[str, str]

_HEAD: Final = 4096  # bytes that tell what a file is
_LARGEST_PREFIX: Final = 1 << 20  # bytes of JSON before a plan
_LARGEST_IR: Final = 64 << 20  # bytes of XML; the weights lie beside it
_MOST_ENTRIES: Final = 100_000
_KINDS_SHOWN: Final = 8
_PLANS: Final = (b"ftrt", b"vtrt")


def recognise(path: Path) -> list[Line]:
    """Describe a file: its kind, then what its header tells.

    Raises:
        InputRefused: It cannot be read, is damaged, or is of no kind that is known here.
        RuntimeUnavailable: Reading this kind takes a library that is not installed.
    """
    with files.disk_errors(path, "cannot be read"):
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        size = path.stat().st_size
    return [*_described(path, head), ("size", f"{size:,} bytes"), ("sha256", sha256_file(path))]


def _described(path: Path, head: bytes) -> list[Line]:
    if head[:4] in _PLANS:
        return _plan(path, head)
    if (prefix := _length_of_prefix(head)) is not None:
        return _prefixed_plan(path, prefix)
    if head[:4] == b"PK\x03\x04":
        return _archive(path)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return [
            ("file", "a pickle, which runs code when it is loaded; what it holds is not looked at"),
            ("cure", "if it is a checkpoint of an old torch, save it again as .safetensors"),
        ]
    if head[8:9] == b"{":
        return _safetensors(path)
    if head.lstrip()[:1] == b"<":
        return _intermediate_representation(path)
    if head[:1] == b"\x08":
        return _onnx(path)
    raise InputRefused(
        "is no file that resedge knows.",
        where=str(path),
        cure="Known are bundles, .safetensors, checkpoints of torch, ONNX, OpenVINO's .xml, TensorRT plans.",
    )


# --- TensorRT ------------------------------------------------------------------------------------


def _plan(path: Path, head: bytes) -> list[Line]:
    from resedge.runtimes.trt_plans import read_header

    header = read_header(head, str(path))
    version = ".".join(map(str, header.version))
    library = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}[header.runtime]
    kind = f"a plan of {library} {version}: it runs on that version and on the kind of GPU that built it"
    return [("file", kind), *_record(path), *_library_here(header.runtime, version)]


def _record(path: Path) -> list[Line]:
    """Return what the record beside a plan says; a plan of others has none."""
    from resedge.runtimes.trt_plans import read_record, record_path

    beside = record_path(path)
    if not beside.is_file():
        return [("record", "none beside it: which GPU and which graph it was built for is not known")]
    with files.disk_errors(beside, "cannot be read"):
        record = read_record(beside.read_bytes(), str(beside))
    low, usual, high = record.batch_range
    same = record.plan_sha256 == sha256_file(path)
    device = record.device
    return [
        ("record", "of this very plan" if same else "of ANOTHER plan: run `resedge build` again"),
        ("built for", f"{device.name}, compute capability {device.compute_capability}, {device.platform}"),
        ("precision", record.precision),
        ("batch", f"{low} to {high}, at its best at {usual}"),
        ("layers", record.layers.sentence()),
        ("graph", f"sha256 {record.graph_sha256[:12]}"),
    ]


def _library_here(runtime_name: str, version: str) -> list[Line]:
    """Say whether the library that is here is the plan's."""
    from resedge.runtimes.table import runtime

    try:
        probe = runtime(runtime_name).probe()
    except RuntimeUnavailable as error:
        return [("here", str(error))]
    fits = probe.version == version or version.startswith(f"{probe.version}.")
    verdict = "the plan's version" if fits else "another version: run `resedge build` on this device"
    return [("here", f"{runtime_name} {probe.version} on {probe.device}, {verdict}")]


def _length_of_prefix(head: bytes) -> int | None:
    """Return the length of the JSON that Ultralytics puts before a plan, behind its own four bytes."""
    if len(head) < 5 or head[4:5] != b"{":
        return None
    (length,) = struct.unpack("<I", head[:4])
    return int(length) if 2 <= length <= _LARGEST_PREFIX else None


def _prefixed_plan(path: Path, length: int) -> list[Line]:
    with files.disk_errors(path, "cannot be read"), path.open("rb") as stream:
        stream.seek(4)
        prefix, head = stream.read(length), stream.read(_HEAD)
    if head[:4] not in _PLANS:
        raise InputRefused("has JSON before something that is no plan.", where=str(path))
    try:
        metadata = parse_json(prefix.decode(), str(path))
    except UnicodeDecodeError as error:
        raise InputRefused("has a prefix that is not UTF-8 text.", where=str(path)) from error
    told = metadata if isinstance(metadata, Mapping) else {}
    words = ", ".join(
        f"{key} {told[key]}" for key in ("description", "version", "task", "batch") if key in told
    )
    return [
        (
            "file",
            f"a plan behind {length} bytes of JSON, as Ultralytics writes it; TensorRT wants it off",
        ),
        ("prefix", words or "names nothing that is known here"),
        *(("plan", text) for _, text in _plan(path, head)[:1]),
    ]


# --- weights -------------------------------------------------------------------------------------


def _safetensors(path: Path) -> list[Line]:
    header = gate.read_safetensors_header(path)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    types = Counter(str(entry["dtype"]) for entry in tensors.values())
    numbers = sum(_product(entry["shape"]) for entry in tensors.values())
    lines = [
        ("file", f"safetensors: {len(tensors)} tensors, {numbers:,} numbers ({_counted(types)})"),
        ("tensors", _listed(f"{name} {tuple(entry['shape'])}" for name, entry in tensors.items())),
    ]
    metadata = header.get("__metadata__")
    return [*lines, *([("metadata", f"{metadata}"[:200])] if metadata else [])]


def _archive(path: Path) -> list[Line]:
    """Tell torch's archives apart by the names in them; nothing is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputRefused(f"is a damaged archive ({error}).", where=str(path)) from error
    if len(entries) > _MOST_ENTRIES:
        raise InputRefused(f"has {len(entries):,} entries, more than {_MOST_ENTRIES:,}.", where=str(path))
    inside = {entry.filename.split("/", 1)[-1] for entry in entries}
    storages = [entry for entry in entries if "/data/" in f"/{entry.filename}"]
    held = f"{len(storages)} storages of {sum(entry.file_size for entry in storages):,} bytes"
    if "archive_format" in inside or any(name.startswith("models/") for name in inside):
        return [("file", "a program of torch.export (.pt2); loading one can run code")]
    if any(name.startswith("code/") for name in inside):
        return [("file", f"a TorchScript program, {held}; it is code, and resedge does not load it")]
    if "data.pkl" in inside:
        return [
            ("file", f"a checkpoint of torch, {held}"),
            ("safety", "it is a pickle: read it with torch.load(weights_only=True) alone"),
        ]
    if inside and all(name.endswith(".npy") for name in inside):
        return [("file", f"arrays of numpy (.npz): {_listed(sorted(inside))}")]
    raise InputRefused("is an archive of no kind that is known here.", where=str(path))


# --- graphs --------------------------------------------------------------------------------------


def _intermediate_representation(path: Path) -> list[Line]:
    from xml.etree import ElementTree

    text = _read(path, _LARGEST_IR)
    if b"<!" in text:
        # Entities can blow a small file up; OpenVINO declares none.
        raise InputRefused("declares a document type or entities.", where=str(path))
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputRefused(f"is damaged XML ({error}).", where=str(path)) from error
    if root.tag != "net":
        raise InputRefused(f"is XML, and no OpenVINO graph: its root is {root.tag!r}.", where=str(path))
    kinds = Counter(layer.get("type", "?") for layer in root.iter("layer"))
    weights = path.with_suffix(".bin")
    held = f"{weights.stat().st_size:,} bytes in" if weights.is_file() else "MISSING: no"
    quantised = kinds.get("FakeQuantize", 0)
    return [
        ("file", f"an OpenVINO graph (IR version {root.get('version')}), {root.get('name')!r}"),
        ("layers", _counted(kinds)),
        ("quantised", f"{quantised} FakeQuantize" if quantised else "no FakeQuantize: a float graph"),
        ("weights", f"{held} {weights.name}"),
    ]


def _onnx(path: Path) -> list[Line]:
    data, where = _read(path, gate.MAX_ONNX_BYTES), str(path)
    model = gate.parse_onnx(data, where)
    graph, kinds = model.graph, Counter(node.op_type for node in model.graph.node)
    outside = sum(bool(tensor.data_location) for tensor in graph.initializer)
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    lines = [
        ("file", f"{_onnx_kind(model)}, opset {opsets}, IR {model.ir_version}"),
        ("made by", f"{model.producer_name or '-'} {model.producer_version}".strip()),
        *(("input", _value_words(value)) for value in graph.input if value.name not in _weights(graph)),
        *(("output", _value_words(value)) for value in graph.output),
        ("nodes", f"{len(graph.node)}: {_counted(kinds)}"),
        ("weights", f"{len(graph.initializer)} tensors, {_bytes_of(graph):,} bytes"),
    ]
    if outside:
        lines.append(("outside", f"{outside} weights lie in other files"))
    return [*lines, ("gate", _word_of_gate(path, data))]


def _word_of_gate(path: Path, data: bytes) -> str:
    reason = refusal_of_graph(Artifact(path, sha256_bytes(data), "onnx"))
    if not reason:
        return "passes: operators, shapes and sizes are those of a ResNet"
    return f"does not pass: {reason.removeprefix('was refused: ').removeprefix(f'{path.absolute()}: ')}"


def _onnx_kind(model: onnx.ModelProto) -> str:
    """Say whether a graph is quantised, and by which scheme as far as its zero points show."""
    import onnx

    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    points = [
        types.get(node.input[2])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and len(node.input) > 2
    ]
    if not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        halves = sum(kind == onnx.TensorProto.FLOAT16 for kind in types.values())
        return "an ONNX graph in FP16" if halves * 2 > len(types) else "an ONNX graph in FP32"
    if onnx.TensorProto.UINT8 in points:
        return "a Q/DQ ONNX graph with UINT8 activations (OpenVINO, ONNX Runtime; TensorRT refuses it)"
    return "a Q/DQ ONNX graph with INT8 activations (TensorRT)"


def _weights(graph: onnx.GraphProto) -> frozenset[str]:
    return frozenset(tensor.name for tensor in graph.initializer)


def _bytes_of(graph: onnx.GraphProto) -> int:
    return sum(tensor.ByteSize() for tensor in graph.initializer)


def _value_words(value: onnx.ValueInfoProto) -> str:
    import onnx

    tensor = value.type.tensor_type
    shape = ", ".join(size.dim_param or str(size.dim_value) for size in tensor.shape.dim)
    names = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    return f"{value.name} ({shape}) {names.get(tensor.elem_type, tensor.elem_type)}"


def _read(path: Path, most: int) -> bytes:
    with files.disk_errors(path, "cannot be read"):
        if (size := path.stat().st_size) > most:
            raise InputRefused(f"has {size:,} bytes, more than {most:,}.", where=str(path))
        return path.read_bytes()


# --- words ---------------------------------------------------------------------------------------


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _counted(kinds: Counter[str]) -> str:
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_KINDS_SHOWN))
    left = len(kinds) - _KINDS_SHOWN
    return f"{shown} and {left} other kinds" if left > 0 else shown


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:_KINDS_SHOWN])
    left = len(listed) - _KINDS_SHOWN
    return f"{shown} and {left} more" if left > 0 else shown
