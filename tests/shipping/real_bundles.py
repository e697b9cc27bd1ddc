"""Signed bundles that are small and real: a network that a runtime runs, its golden images, the agent.

`tests/conftest.py` runs this file. Everything that a device judges can be set: keys, counter, times, target,
and what the golden images demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from resedge import bundle as bundles
from resedge.artifacts import Artifact, Engine, Preprocessing, TensorSpec, sha256_bytes
from resedge.bundle import Bundle, Manifest, ModelInfo, Signing, Target
from resedge.codec import canonical_json, encode
from resedge.golden import Thresholds
from resedge.shipping import moments, signing, zipapp

IMAGES, SIZE, CHANNELS, CLASSES = 12, 8, 8, 6
INPUT = TensorSpec("input", ("batch", 3, SIZE, SIZE), "float32")
LOGITS = TensorSpec("logits", ("batch", CLASSES), "float32")
KINDS = {
    "onnx/fp32.onnx": "onnx/fp32",
    bundles.GOLDEN: "golden",
    bundles.THRESHOLDS: "golden/trial",
    bundles.AGENT: "agent",
    bundles.AGENT_SIGNATURE: "agent/signature",
}


class Maker:
    """Makes bundles below a folder, signed with its own key or another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self.keys.mkdir()
        self.private, self.public = signing.generate(self.keys)
        self._agent = zipapp.build()
        self._made = 0

    def signers(self) -> str:
        """What a device that trusts this maker has in its file of keys."""
        return signing.allowed_signers(self.public)

    def other_key(self) -> Path:
        """Return a private key that nobody trusts."""
        self._made += 1
        folder = self.folder / f"other-{self._made}"
        folder.mkdir()
        return signing.generate(folder)[0]

    def contents(self, seed: int = 1, *, wrong: bool = False) -> dict[str, bytes]:
        """Return the files of a network's bundle; `wrong`: its golden logits are another network's."""
        from safetensors.numpy import save

        graph = network(seed)
        images = np.random.default_rng(9).normal(size=(IMAGES, 3, SIZE, SIZE)).astype(np.float32)
        logits = np.roll(logits_of(graph, images), 1, axis=1) if wrong else logits_of(graph, images)
        return {
            "onnx/fp32.onnx": graph,
            bundles.GOLDEN: save({"input": images, "logits": logits}),
            bundles.THRESHOLDS: canonical_json(encode(Thresholds(1, IMAGES, 1.0))).encode(),
        }

    def bundle(
        self,
        contents: Mapping[str, bytes] | None = None,
        *,
        counter: int = 1,
        days: float = 90,
        age: float = 0,
        key: Path | None = None,
        **change: Any,  # noqa: ANN401
    ) -> Bundle:
        """Write a signed bundle.

        Args:
            contents: Its files; None: those of a network.
            counter: Its counter.
            days: For how many days it is good, from when it was signed.
            age: How many days ago it was signed.
            key: The private key; None: the maker's own.
            change: Fields of the manifest.
        """
        self._made += 1
        key = key or self.private
        signed_at = moments.now() - timedelta(days=age)
        agent_signature = signing.sign(self._agent, key, signing.AGENT_NAMESPACE)
        everything = {
            **(self.contents() if contents is None else contents),
            bundles.AGENT: self._agent,
            bundles.AGENT_SIGNATURE: agent_signature,
        }
        manifest = replace(
            _manifest(everything),
            counter=counter,
            signed_at=moments.to_text(signed_at),
            expires=moments.to_text(signed_at + timedelta(days=days)),
            signing=Signing(signing.BUNDLE_NAMESPACE, signing.fingerprint(key)),
            **change,
        )
        return self._written(self.folder / f"{self._made}.resedge", manifest, everything, key)

    def _written(self, out: Path, manifest: Manifest, contents: Mapping[str, bytes], key: Path) -> Bundle:
        for name, content in contents.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        text = canonical_json(encode(manifest)).encode()
        (out / bundles.MANIFEST).write_bytes(text)
        (out / bundles.SIGNATURE).write_bytes(signing.sign(text, key, signing.BUNDLE_NAMESPACE))
        return bundles.read(out)


def network(seed: int) -> bytes:
    """Return an ONNX file: convolution with bias, ReLU, global pool, linear layer."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    weights = {
        "conv.weight": rng.normal(size=(CHANNELS, 3, 3, 3)),
        "conv.bias": rng.normal(size=CHANNELS),
        "fc.weight": rng.normal(size=(CLASSES, CHANNELS)),
        "fc.bias": rng.normal(size=CLASSES),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "conv.weight", "conv.bias"], ["conv"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["relu"]),
            helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
            helper.make_node("Flatten", ["pool"], ["flat"]),
            helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], transB=1),
        ],
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(INPUT.shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, list(LOGITS.shape))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def logits_of(graph: bytes, images: Any) -> Any:  # noqa: ANN401 - arrays
    """Return a network's logits, computed by the reference evaluator of onnx."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    (logits,) = ReferenceEvaluator(onnx.load_from_string(graph)).run(None, {"input": images})
    return logits


def _manifest(contents: Mapping[str, bytes]) -> Manifest:
    files = tuple(
        Artifact(
            Path(name),
            sha256_bytes(content),
            KINDS.get(name, "any"),
            *(((INPUT,), (LOGITS,)) if name.startswith("onnx/") else ()),
        )
        for name, content in sorted(contents.items())
    )
    graphs = [file for file in files if file.kind == "onnx/fp32"]
    return Manifest(
        format_version=1,
        counter=0,
        expires=None,
        signing=None,
        signed_at=None,
        model=ModelInfo("small", "eager", "keep", INPUT, LOGITS),
        preprocessing=Preprocessing(SIZE, SIZE, (0.5,) * 3, (0.25,) * 3),
        labels=tuple("abcdef"),
        target=Target(("openvino", "onnxruntime", "tensorrt")),
        files=files,
        engines=tuple(Engine(graph, "onnxruntime", "1", "CPU", "fp32") for graph in graphs),
        toolchain={},
        parents={},
        trtexec={},
    )
