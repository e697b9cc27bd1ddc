"""Run by `test_fuzz.py`: put mutants of one kind through the functions that take files from strangers.

The arguments are the kind, the first mutant's number, how many, and an empty folder. What came of them is
printed as JSON. A crash ends this process, and so does a mutant that takes longer than the limit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from mutating import mutant  # type: ignore[import-not-found]  # beside this script
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from resedge import bundle as bundles
from resedge.artifacts import (
    FORMAT_VERSION,
    Artifact,
    Engine,
    Preprocessing,
    TensorSpec,
    canonical_json,
    encode,
    sha256_file,
)
from resedge.errors import InputRefused, ResedgeError
from resedge.export.checkpoints import parse_safetensors
from resedge.gate import check_onnx, read_safetensors
from resedge.pipeline import recognising
from resedge.pipeline.inspecting import inspect

SECONDS = 10.0  # a mutant may take
MEMORY = 3 << 30  # bytes of its own that this process may have, torch's among them
FORBIDDEN = ("ctypes.dlopen", "os.exec", "os.posix_spawn", "os.system", "pickle.find_class")
FORBIDDEN_STARTS = ("socket.", "subprocess.")
OWN_CODE = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(__file__).parents[2]), "<")


@dataclass(frozen=True)
class Kind:
    """Sound files, and what takes a mutant of them: it returns, or raises an error of resedge's tree."""

    seeds: Sequence[bytes]
    take: Callable[[bytes], None]


# --- safetensors ---------------------------------------------------------------------------------


def _safetensors(folder: Path) -> Kind:
    path = folder / "weights.safetensors"

    def take(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(ResedgeError):  # it may be of another kind by now, or of none
            inspect(path)
        parse_safetensors(read_safetensors(path), str(path))

    ones = np.ones((2, 3), np.float32)
    return Kind(
        (
            save({"conv.weight": ones, "conv.bias": ones[0]}, metadata={"format": "pt"}),
            save({f"layer.{i}.weight": ones.astype(np.float16) for i in range(12)}),
            save(
                {"steps": np.array(7), "flags": np.ones(5, np.bool_), "bytes": np.ones((1, 1, 9), np.uint8)}
            ),
        ),
        take,
    )


# --- ONNX ----------------------------------------------------------------------------------------


def _onnx(folder: Path) -> Kind:
    path = folder / "net.onnx"
    vars(recognising)["refusal_of_graph"] = _nothing  # it starts a child, as is done here

    def take(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(ResedgeError):
            inspect(path)
        _check_in_child(data, str(path))

    return Kind(tuple(graph.SerializeToString() for graph in (_residual(), _quantised(), _shapes())), take)


def _nothing(_: Artifact) -> str:
    return ""


def _check_in_child(data: bytes, where: str) -> None:
    """Ask the gate in a child, as `vouching_child.py` does; forked, which takes milliseconds.

    A crash of the child is a refusal, and an error that is not of resedge's tree a failure.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            check_onnx(data, where)
            code = 0
        except ResedgeError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise InputRefused(f"crashed the library ({os.WTERMSIG(status)})")
    if code := os.waitstatus_to_exitcode(status):
        raise (
            InputRefused("was refused") if code == InputRefused.exit_code else RuntimeError(f"child: {code}")
        )


def _model(nodes: Sequence[onnx.NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "resedge",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 19)])


def _weight(*shape: int) -> Any:  # noqa: ANN401 - an array
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _residual() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["c"], "conv", pads=[1] * 4, kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["c2"], "conv2", pads=[1] * 4, group=4, strides=[1, 1]),
        helper.make_node("Add", ["c2", "r"], ["a"], "add"),
        helper.make_node("MaxPool", ["a"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["m"], ["g"], "global"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["logits"], "fc", transB=1),
    ]
    constants = {"w": _weight(4, 3, 3, 3), "b": _weight(4), "w2": _weight(4, 1, 3, 3), "w3": _weight(4, 4)}
    return _model(nodes, constants)


def _quantised() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], "dw", axis=0),
        helper.make_node("Conv", ["d", "dw"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", "one", "zero", "zero", "one"], ["n"], "bn"),
        helper.make_node("ReduceMean", ["n", "axes"], ["m"], "mean", keepdims=0),
        helper.make_node("Identity", ["m"], ["logits"], "out"),
    ]
    constants = {
        "s": np.float32(0.1),
        "z": np.uint8(3),
        "w": np.ones((4, 3, 3, 3), np.int8),
        "sw": np.full(4, 0.1, np.float32),
        "zw": np.zeros(4, np.int8),
        "one": np.ones(4, np.float32),
        "zero": np.zeros(4, np.float32),
        "axes": np.array([2, 3]),
    }
    return _model(nodes, constants)


def _shapes() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Resize", ["input", "", "", "to"], ["u"], "resize", mode="nearest"),
        helper.make_node("Pad", ["u", "pads"], ["p"], "pad"),
        helper.make_node("Slice", ["p", "from", "until"], ["s"], "slice"),
        helper.make_node("Transpose", ["s"], ["t"], "transpose", perm=[0, 2, 3, 1]),
        helper.make_node("Concat", ["t", "t"], ["c"], "concat", axis=3),
        helper.make_node("Reshape", ["c", "flat"], ["r"], "reshape"),
        helper.make_node("MatMul", ["r", "w"], ["logits"], "fc"),
    ]
    constants = {
        "to": np.array([1, 3, 10, 10]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "from": np.array([0, 0, 4, 4]),
        "until": np.array([1, 3, 8, 8]),
        "flat": np.array([1, -1]),
        "w": _weight(96, 4),
    }
    return _model(nodes, constants)


# --- the manifest of a bundle --------------------------------------------------------------------


def _manifest(folder: Path) -> Kind:
    bundle = folder / "model.resedge"

    def take(data: bytes) -> None:
        (bundle / bundles.MANIFEST).write_bytes(data)
        inspect(bundle)
        read = bundles.read(bundle)
        canonical_json(encode(read.manifest)).encode()
        for engine in read.manifest.engines:
            found = read.engine(engine.runtime, engine.precision)
            assert found is not None
            found.artifact.read()

    written = [_written_manifest(folder, bundle, extra) for extra in (False, True)]
    return Kind(tuple(written), take)


def _written_manifest(folder: Path, bundle: Path, extra: bool) -> bytes:
    """Publish a small bundle, and return its manifest."""
    source = folder / "file"
    source.write_bytes(b"content")
    digest = sha256_file(source)
    image, logits = (
        TensorSpec("input", ("batch", 3, 8, 8), "float32"),
        TensorSpec("logits", ("batch", 4), "float32"),
    )
    graph = Artifact(
        Path("onnx/int8.cpu.onnx"), digest, "onnx/int8.cpu", (image,), (logits,), ("ab",), {"pair_safe": True}
    )
    names = ("engines/a.xml", "engines/a.bin", "calibration/ranges.json")
    others = [Artifact(Path(name), digest, "file", (image,), (logits,)) for name in names]
    manifest = bundles.Manifest(
        format_version=FORMAT_VERSION,
        counter=1,
        expires="2030-01-01T00:00:00Z" if extra else None,
        signing=bundles.Signing("resedge", "SHA256:abc") if extra else None,
        signed_at="2029-01-01T00:00:00Z" if extra else None,
        model=bundles.ModelInfo("notebook", "eager", "split", image, logits),
        preprocessing=Preprocessing(8, 8, (0.5,) * 3, (0.25,) * 3),
        labels=("a", "b", "c", "d"),
        target=bundles.Target(("openvino",), ("avx2",), jetpack="6.2" if extra else None),
        files=(graph, *others),
        engines=(Engine(others[0], "openvino", "2026.4", "CPU", "int8", (others[1],)),),
        toolchain={"torch": "2.13", "onnx": "1.23"},
        parents={"weights": digest},
        trtexec={"onnx/int8.tensorrt.onnx": {"10.3": "trtexec --onnx=x"}} if extra else {},
    )
    places = {artifact.path.as_posix(): source for artifact in manifest.files}
    bundles.publish(manifest, places, bundle, seal=(lambda _: b"signature") if extra else None)
    return (bundle / bundles.MANIFEST).read_bytes()


# --- the run -------------------------------------------------------------------------------------

KINDS = {"safetensors": _safetensors, "onnx": _onnx, "manifest": _manifest}


class Watch:
    """Hears what the interpreter is asked to do: to run code, to start programs, to write elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.heard: list[str] = []
        self.armed = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and self._is_forbidden(event, arguments):
            self.heard.append(f"{event} {arguments!r:.100}")

    def _is_forbidden(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "exec":
            return not arguments[0].co_filename.startswith(OWN_CODE)
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
            return writes and isinstance(path, str) and not path.startswith(self.folder)
        return event in FORBIDDEN or event.startswith(FORBIDDEN_STARTS)


def main(arguments: list[str]) -> None:
    """Put mutants through, and print what came of them."""
    name, first, count, folder = arguments[0], int(arguments[1]), int(arguments[2]), Path(arguments[3])
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kind = KINDS[name](folder)
    for seed in kind.seeds:
        kind.take(seed)  # must be sound, and whatever is imported late is then there
    watch, came, failures, slowest = Watch(folder), Counter[str](), [], 0.0
    sys.addaudithook(watch)
    for number in range(first, first + count):
        data = mutant(kind.seeds, number)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        watch.armed, began = True, time.perf_counter()
        try:
            kind.take(data)
            came["accepted"] += 1
        except ResedgeError as error:
            came[str(error.exit_code)] += 1
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            failures.append(f"mutant {number}: {type(error).__name__}: {error!s:.200}")
        watch.armed, slowest = False, max(slowest, time.perf_counter() - began)
        faulthandler.cancel_dump_traceback_later()
    failures += watch.heard
    sys.stdout.write(json.dumps({"came": came, "failures": failures, "slowest": round(slowest, 3)}))


if __name__ == "__main__":
    main(sys.argv[1:])
