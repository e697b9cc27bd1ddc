"""Eager: the PyTorch model itself, behind the same protocol as the engines that are compared with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from resedge.artifacts import Artifact, Engine
from resedge.errors import BuildFailed
from resedge.protocols import Array, BuildOptions, Float32Array, Probe, Runner, RunOptions
from resedge.runtimes.border import check_options, demand_kind, imported, input_spec, runner

MemoryFormat = Literal["contiguous", "channels_last"]

_KINDS = {"fp32": "reference/source"}
_WEIGHTS_FILE = "weights.safetensors"


class Eager:
    """Runs the module that `load` rebuilds from a reference folder, in inference mode.

    Args:
        load: Maps a reference folder to a torch.nn.Module that maps the input to logits.
        memory_format: "contiguous" leaves the module as it was loaded; "channels_last" converts it and
            each input.
    """

    name = "eager"

    def __init__(self, load: Callable[[Path], Any], memory_format: MemoryFormat = "contiguous") -> None:
        self._load = load
        self._memory_format = memory_format

    def probe(self) -> Probe:
        """Say which PyTorch is here.

        Raises:
            RuntimeUnavailable: PyTorch is not installed.
        """
        return Probe(self.name, _version(), "CPU", {"fp32": "FP32 weights, computed in FP32"})

    def build(self, model: Artifact, out: Path, options: BuildOptions) -> Engine:
        """Return the engine that a reference folder is, once its files are checked; nothing is written.

        Args:
            model: The folder's source.json, whose one parent is the weights beside it.
            out: Not used.
            options: The precision, which must be fp32.

        Raises:
            RuntimeUnavailable: PyTorch is not installed, or another precision was asked for.
            BuildFailed: `model` is no source.json, or does not name its weights.
            StaleArtifact: The source or the weights have changed.
        """
        demand_kind(self.name, model, options.precision, _KINDS)
        if len(model.parents) != 1:
            raise BuildFailed(
                f"has {len(model.parents)} parents, expected its weights.", where=str(model.path)
            )
        weights = Artifact(model.path.with_name(_WEIGHTS_FILE), model.parents[0], "reference/weights")
        engine = Engine(model, self.name, _version(), "CPU", options.precision, (weights,))
        _check_files(engine)
        return engine

    @contextmanager
    def open(self, engine: Engine, options: RunOptions) -> Iterator[Runner]:
        """Load the module, and give torch back its own number of threads at the end.

        Raises:
            StaleArtifact: A file is not the one that the engine was built from.
            RuntimeUnavailable: PyTorch is not installed.
        """
        check_options(options)
        torch = _library()
        # The loader reads the files itself, so they are checked on both sides of its reading.
        _check_files(engine)
        module = self._load(engine.artifact.path.parent).eval()
        _check_files(engine)
        memory_format = torch.preserve_format
        if self._memory_format == "channels_last":
            memory_format = torch.channels_last
            module = module.to(memory_format=memory_format)

        def infer(batch: Array) -> Float32Array:
            # The number belongs to the process and to the calling thread: another engine may have set it.
            if torch.get_num_threads() != options.threads:
                torch.set_num_threads(options.threads)
            with torch.inference_mode():
                images = torch.from_numpy(batch).to(memory_format=memory_format)
                logits: Float32Array = module(images).numpy().copy()
            return logits

        found = torch.get_num_threads()
        torch.set_num_threads(options.threads)
        try:
            with runner(input_spec(engine.artifact, options), infer) as run:
                yield run
        finally:
            torch.set_num_threads(found)


def _check_files(engine: Engine) -> None:
    for file in (engine.artifact, *engine.companions):
        file.read()


def _version() -> str:
    return str(_library().__version__)


def _library() -> Any:  # noqa: ANN401 - torch
    return imported(Eager.name, "torch", "Try: pip install 'resedge[export]'")
