"""A pilot before the test: how many images would the margin take?

The answer changes nothing of the test, whose images are fixed before the first is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from resedge.artifacts import Engine, Preprocessing
from resedge.images import ImageSet
from resedge.pipeline.reporting import Reporter
from resedge.pipeline.running import evaluate, evaluation_batch
from resedge.protocols import Float32Array, RunOptions

PILOT_IMAGES = 500


@dataclass(frozen=True)
class Piloting:
    """What the test is to show: a drop within `margin`, with `confidence` for that many `engines` at once."""

    margin: float
    confidence: float
    engines: int

    def say(
        self,
        engine: Engine,
        test: ImageSet,
        outside: Preprocessing | None,
        eager: Float32Array,
        threads: int,
        reporter: Reporter,
    ) -> None:
        """Run an engine over a few of the test images and warn where all of them look too few.

        Nothing is said without labels, or where the test is no larger than the pilot: its verdict will.

        Args:
            engine: As it was built.
            test: All test images, (N,).
            outside: What is done to them before the engine gets them.
            eager: Eager's logits of all of them, (N, classes) float32.
            threads: Compute threads.
            reporter: Who is warned.
        """
        from resedge.benchmarks.accuracy import count_pairs
        from resedge.benchmarks.bounds import images_needed
        from resedge.runtimes.table import runtime

        if test.labels is None or len(test) <= PILOT_IMAGES:
            return
        chosen = pilot_images(test)
        few, called = test.select(chosen), f"{engine.runtime} {engine.precision}"
        with runtime(engine.runtime).open(engine, RunOptions(threads)) as run:
            label = f"{called}, pilot"
            logits = evaluate(run, few, outside, reporter, label, evaluation_batch(engine))
        counts = count_pairs(eager[chosen], logits, test.labels[chosen])
        flips = counts.negative_flips, counts.positive_flips
        each = 1 - (1 - self.confidence) / self.engines
        needed = images_needed(*flips, PILOT_IMAGES, self.margin, each)
        if needed is None or needed > len(test):
            number = "no number of images" if needed is None else f"about {needed:,} images"
            reporter.warn(
                f"{called}: {sum(flips)} of {PILOT_IMAGES} images flip in a pilot; to settle "
                f"{100 * self.margin:.2f} points of top-1 takes {number}, and there are {len(test):,}"
            )


def pilot_images(test: ImageSet) -> list[int]:
    """Return the positions of the images with the smallest digests, which no order of files decides."""
    return sorted(range(len(test)), key=test.digests.__getitem__)[:PILOT_IMAGES]
