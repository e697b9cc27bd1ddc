from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click import Command

from resedge.cli import main
from resedge.pipeline.commands import bench_command, export_command
from resedge.pipeline.options import BenchOptions, ExportOptions, ImageOptions, Measuring, select

MEASURING = Measuring(max_drop=0.01, min_speedup=1.5, confidence=0.9, threads=3, seed=7)
PLAIN = Measuring(threads=2)
BUNDLE = Path("/home/me/my model.resedge")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            bench_command(BenchOptions(BUNDLE, measuring=PLAIN)),
            "resedge bench 'my model.resedge' --threads 2",
        ),
        (
            bench_command(BenchOptions(BUNDLE, Path("/d/test"), select(["openvino:int8"], []), MEASURING)),
            "resedge bench 'my model.resedge' --test-data test --backend openvino:int8 --max-drop 0.01 "
            "--min-speedup 1.5 --confidence 0.9 --seed 7 --threads 3",
        ),
        (
            bench_command(BenchOptions(BUNDLE, measuring=PLAIN, rounds=60, processes=4)),
            "resedge bench 'my model.resedge' --rounds 60 --processes 4 --threads 2",
        ),
        (export_command(ExportOptions(measuring=PLAIN)), "resedge export notebook --threads 2"),
        (
            export_command(
                ExportOptions(
                    images=ImageOptions((3, 8, 6), (1.5,), None, 9, "BGR", 255),
                    input="uint8",
                    measuring=PLAIN,
                )
            ),
            "resedge export notebook --input-shape 3,8,6 --mean 1.5 --channels BGR --value-range 255 "
            "--resize 9 --input uint8 --threads 2",
        ),
        (
            export_command(
                ExportOptions(
                    weights=Path("/w/mine.safetensors"),
                    data=Path("/d/images"),
                    batchnorm="keep",
                    batch_range=(1, 4, 8),
                    keep=("linear", "layer.0"),
                    thorough=False,
                    out=Path("/o/x.resedge"),
                    measuring=PLAIN,
                )
            ),
            "resedge export notebook --weights mine.safetensors --data images --batchnorm keep "
            "--batch-range 1,4,8 --keep linear --keep layer.0 --quick --threads 2",
        ),
    ],
)
def test_the_command_of_a_job(command: str, expected: str) -> None:
    assert command == expected
    _, name, *arguments = shlex.split(command)
    found: Command = main.commands[name]
    assert found.make_context(name, arguments)  # click takes every word of it
