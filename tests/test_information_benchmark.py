"""The benchmark of bounds of mutual information: its closed forms, its table and its picture."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

measured = pytest.importorskip("benchmarks.information", reason="benchmarks are seen from the repository's folder")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("truth", [2.0, 10.0])
def test_the_ratio_is_that_of_the_densities_and_its_mean_the_truth(truth: float) -> None:
    x, y = measured.draw(truth, 4_000, torch.Generator().manual_seed(0))
    rho = measured.correlation(truth)
    assert truth == pytest.approx(-measured.DIMS / 2 * math.log(1 - rho**2))
    normal = torch.distributions.Normal
    given = normal(rho * x[None, :9], math.sqrt(1 - rho**2)).log_prob(y[:9, None]).sum(-1)
    alone = normal(0.0, 1.0).log_prob(y[:9]).sum(-1)
    found = measured.log_ratio(x, y, truth)
    torch.testing.assert_close(found[:9, :9], given - alone[:, None], atol=1e-3, rtol=1e-4)
    own = found.diagonal()
    assert abs(own.mean() - truth) < 4 * own.std() / len(own) ** 0.5


@pytest.fixture(scope="module")
def rows() -> list:
    return measured.table(3, 20)


def test_every_bound_is_measured_with_both_critics(rows: list) -> None:
    of = {(row.name, row.critic, row.batch, row.truth): row for row in rows}
    critics = len(measured.ESTIMATES) + len(measured.ESTIMATES) - len(measured.TRAINED_ONLY)
    assert len(of) == len(rows) == critics * len(measured.BATCHES) * len(measured.TRUTHS)
    for (name, _, batch, truth), row in of.items():
        if name == "infonce":
            assert truth + row.bias <= math.log(batch)
    for batch in measured.BATCHES:
        row = of["nwj", "best", batch, 2.0]
        assert abs(row.bias) < 4 * row.error
        assert of["infonce", "best", batch, 10.0].variance < of["nwj", "best", batch, 10.0].variance / 100


def test_the_table_is_printed_and_the_plot_stands_alone(
    rows: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    measured.show(rows)
    critics = 2 * len(measured.ESTIMATES) - len(measured.TRAINED_ONLY)
    assert len(capsys.readouterr().out.splitlines()) == 2 + critics * len(measured.BATCHES)
    measured.plot(rows, tmp_path / "plot.svg")
    drawn = ElementTree.parse(tmp_path / "plot.svg").getroot().findall(f"{SVG}svg")
    assert len(drawn) == 6
    words = [{text.text for text in panel.iter(f"{SVG}text")} for panel in drawn]
    assert all({"truth", f"log {batch}"} <= found for found, batch in zip(words[:4], (64, 256, 64, 256), strict=True))
    assert set(measured.ESTIMATES) <= words[5]
