"""Quantiles against printed tables, the signed-rank distribution against counting all signs."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from resedge.benchmarks import distributions
from resedge.errors import RuntimeUnavailable


def test_quantiles_are_those_of_the_tables() -> None:
    assert distributions.normal_quantile(0.95) == pytest.approx(1.644854, abs=1e-6)
    assert distributions.student_quantile(0.975, 4) == pytest.approx(2.776445, abs=1e-6)
    assert distributions.binomial_upper(0, 598, 0.95) == pytest.approx(1 - 0.05 ** (1 / 598))
    assert distributions.binomial_upper(3, 20, 0.95) == pytest.approx(0.34366, abs=1e-5)
    assert distributions.binomial_upper(7, 7, 0.95) == 1.0


@pytest.mark.parametrize("probability", [1e-9, 0.025, 0.3, 0.975, 1 - 1e-9])
@pytest.mark.parametrize(("trials", "rate"), [(1, 0.5), (20, 0.9), (1000, 0.99)])
def test_binomial_quantile_is_scipys(probability: float, trials: int, rate: float) -> None:
    assert distributions.binomial_quantile(probability, trials, rate) == binom.ppf(probability, trials, rate)


def test_beta_and_binomial_are_two_views_of_one_sum() -> None:
    # I(p; n - k, k + 1) is the chance of n - k or more events of rate p in n trials.
    assert distributions.beta_cdf(0.9, 62, 3) == pytest.approx(1 - distributions.binomial_cdf(61, 64, 0.9))


def test_root_is_found() -> None:
    assert distributions.root(lambda x: x * x - 2, 0.0, 2.0) == pytest.approx(2**0.5, abs=1e-10)


@pytest.mark.parametrize("pairs", [1, 2, 5, 9])
def test_signed_rank_distribution_counts_all_signs(pairs: int) -> None:
    ranks = range(1, pairs + 1)
    sums = Counter(sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=pairs))
    top = pairs * (pairs + 1) // 2
    expected = np.cumsum([sums[total] / 2**pairs for total in range(top + 1)])
    np.testing.assert_allclose(distributions.signed_rank_cdf(pairs), expected, atol=1e-15)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("scipy.special", lambda: distributions.student_quantile(0.9, 3)),
        ("scipy.special", lambda: distributions.binomial_upper(1, 9, 0.9)),
        ("scipy.special", lambda: distributions.binomial_cdf(1, 9, 0.9)),
        ("scipy.special", lambda: distributions.beta_cdf(0.5, 1, 2)),
        ("scipy.special", lambda: distributions.chi_squared_tail(1.0, 2)),
        ("scipy.optimize", lambda: distributions.root(lambda x: x, -1.0, 1.0)),
    ],
)
def test_without_scipy_the_cure_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, call: Callable[[], float]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'resedge\[bench\]'"):
        call()


def test_importing_the_room_imports_no_scipy() -> None:
    names = (
        *("accuracy", "answers", "bounds", "conditions", "distributions", "intervals", "kernel"),
        *(
            "latency",
            "multiplicity",
            "processes",
            "report",
            "rounds",
            "stability",
            "tails",
            "verdict",
            "warmup",
        ),
    )
    lines = [f"import resedge.benchmarks.{name}" for name in names]
    program = "\n".join(["import sys", *lines, "print('scipy' in sys.modules)"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
