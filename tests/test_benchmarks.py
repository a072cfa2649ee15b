"""The benchmark of estimators: its exact gradients, what its biases tell apart, and the pictures that it writes."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

measured = pytest.importorskip("benchmarks.estimators", reason="benchmarks are seen from the repository's folder")
plots = pytest.importorskip("benchmarks._plots")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def rows() -> list:
    return measured.table(1_000)


def test_the_exact_gradient_is_autograds() -> None:
    torch.testing.assert_close(
        measured.exact(measured.LOGITS), torch.func.grad(measured.expected)(measured.LOGITS), atol=1e-14, rtol=0
    )


def test_the_gaussians_expectation_is_that_of_draws() -> None:
    mean, log_std = measured.MEAN_AND_LOG_STD
    noise = torch.randn(100_000, len(mean), dtype=mean.dtype, generator=torch.Generator().manual_seed(3))
    drawn = measured.f(mean + log_std.exp() * noise)
    assert (
        abs(drawn.mean() - measured.expected_gaussian(measured.MEAN_AND_LOG_STD)) < 4 * drawn.std() / len(drawn) ** 0.5
    )


def test_what_is_unbiased_is_within_its_error_and_what_is_not_is_beyond(rows: list) -> None:
    for row in rows:
        if row.name == "reinforce, mean":  # smaller by (S - 1) / S
            shrunk = measured.exact(measured.LOGITS).norm().item() / row.samples
            assert abs(row.bias - shrunk) < 4 * row.error
        elif not row.name.startswith("gumbel_softmax"):
            assert row.bias < 4 * row.error, row
        elif row.temperature >= 0.5:
            assert row.bias > 4 * row.error, row


def test_a_fitted_control_spreads_less_than_what_it_holds(rows: list) -> None:
    fitted = next(row.variance for row in rows if row.name.startswith("relax"))
    assert fitted < min(row.variance for row in rows if row.name in ("reinforce, baseline E", "rebar"))


def test_the_table_is_printed_and_the_plot_stands_alone(
    rows: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    measured.show(rows)
    assert len(capsys.readouterr().out.splitlines()) == 4 + len(rows)
    measured.plot(rows, tmp_path / "new" / "plot.svg")
    root = ElementTree.parse(tmp_path / "new" / "plot.svg").getroot()
    variance = root.findall(f"{SVG}svg")[1]
    assert {text.text for text in variance.iter(f"{SVG}text")} >= {row.name for row in rows if row.temperature}
    assert "var(" not in ElementTree.tostring(root, encoding="unicode")


def test_curves_by_length_are_all_in_their_picture(tmp_path: Path) -> None:
    curves = {"naive & slow": [(512, 8.0), (1024, 31.0)], "tiled": [(512, 0.9), (1024, 1.9), (2048, 4.0)]}
    plots.write(tmp_path / "a.svg", [plots.by_length("memory, MiB", "tokens", curves)])
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"memory, MiB", "tokens", "512", "2,048", "1", "10", *curves} <= set(words)
    drawn = [group for group in root.iter(f"{SVG}g") if group.get("class") == "series"]
    assert [len(group.findall("*[@class='mark']")) for group in drawn] == [2, 3]
