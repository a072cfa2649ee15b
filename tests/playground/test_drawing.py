"""What the tabs that draw pictures compute, without a browser."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("gradio", reason="the page needs gradio")

from sensorium.errors import SensoriumError
from sensorium.generative.gan.method import GAN
from sensorium.generative.rectified_flow.method import RectifiedFlow
from sensorium.generative.vae.method import VAE
from sensorium.generative.vq_vae.method import VQVAE
from sensorium.networks.autoencoder import autoencoder
from sensorium.parts.density.pixels import BernoulliPixels
from sensorium.parts.quantize import Quantizer
from sensorium.playground import fits, prompt, reconstruct, sample
from sensorium.playground.drawing import ANY, seed_of, settings
from sensorium.playground.inputs import CheckedBlocks


class Net(nn.Module):
    labels = 3


def played(method: Any, *classes: str) -> Any:
    return SimpleNamespace(method=method, run=SimpleNamespace(situation=SimpleNamespace(classes=classes)))


def vae() -> VAE:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    decoder = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))
    return VAE(encoder, decoder, BernoulliPixels(), (1, 8, 8), 3)


def vq_vae() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(*autoencoder("micro", 8), Quantizer(16, 4), (8, 8))


def test_what_a_run_has_not_is_left_out_of_its_settings() -> None:
    flow = played(RectifiedFlow(Net(), (3, 4, 4), classes=2), "cat", "dog")
    assert settings(flow, 7, "dog", 3.0) == {"steps": 7, "label": "dog", "guidance": 3.0}
    assert settings(flow, 7, ANY, 3.0) == {"steps": 7, "label": None, "guidance": 3.0}  # of all classes in turn
    gan: Any = object.__new__(GAN)
    gan.__dict__["classes"] = 2
    assert settings(played(gan, "cat", "dog"), 7, "cat", 3.0) == {"steps": None, "label": "cat", "guidance": 1.0}
    assert settings(played(vae()), 7, ANY, 3.0) == {"steps": None, "label": None, "guidance": 1.0}


def test_a_seed_that_is_no_number_is_told() -> None:
    assert seed_of(0) == 0
    with pytest.raises(SensoriumError, match="First seed: give a whole number"):
        seed_of(None, "First seed")


def test_reconstructions_of_codes_and_of_latents() -> None:
    given = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    method = vq_vae()
    pictures, words = reconstruct.reconstructed(method, given)
    assert [caption.partition(";")[0] for _, caption in pictures] == ["picture", "reconstruction", "error"]
    times = pictures[0][0].width // 8
    seen, drawn, error = (np.asarray(one)[::times, ::times].astype(float) for one, _ in pictures)
    np.testing.assert_array_equal(seen, given[0].permute(1, 2, 0))
    wrong = np.abs(seen - drawn).mean(-1)
    np.testing.assert_allclose(error[..., 0], wrong * 255 / wrong.max(), atol=0.5)
    assert f"white: {wrong.max():.0f} of 255" in pictures[2][1]
    assert f"PSNR {10 * np.log10(255**2 / np.square(seen - drawn).mean()):.1f} dB" in words
    codes = method.encode(method.from_pixels(given))
    assert f"2 x 2 codes of a codebook of 16, {len(codes.unique())} of them different: 16 bits." in words
    pictures, words = reconstruct.reconstructed(vae(), given)
    assert set(np.asarray(pictures[0][0]).ravel()) <= {0, 255}  # as it sees the picture
    assert words.endswith("Encoded as 3 numbers.")


def test_a_picture_without_error_has_a_black_map() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Parameter(torch.zeros(()))

        encode = decode = staticmethod(lambda x: x)
        from_pixels = to_pixels = staticmethod(lambda x: x)

    pictures, words = reconstruct.reconstructed(Same(), torch.full((1, 3, 4, 4), 9, dtype=torch.uint8))
    assert not np.asarray(pictures[2][0]).any()
    assert "PSNR 100.0 dB" in words


def test_stations_on_the_way_of_a_picture() -> None:
    path = torch.linspace(-1, 1, 26).view(26, 1, 1, 1).expand(26, 3, 4, 4)
    shown = sample.stations(RectifiedFlow(Net(), (3, 4, 4), classes=2), path)
    assert [caption for _, caption in shown][:2] == ["noise", "step 4"]
    assert (len(shown), shown[-1][1]) == (8, "step 25")
    assert [np.asarray(picture).max() for picture, _ in shown][::7] == [0, 255]
    assert [caption for _, caption in sample.stations(vae(), torch.zeros(2, 1, 8, 8))] == ["noise", "step 1"]


def test_which_tab_fits() -> None:
    assert [fits(one, vae()) for one in (sample, reconstruct, prompt)] == [True, True, False]
    assert [fits(one, vq_vae()) for one in (sample, reconstruct, prompt)] == [False, True, False]


def test_pictures_of_a_changed_component_are_in_the_folder_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr
    from gradio.state_holder import SessionState

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))  # while it is made, as by ``application``
    with CheckedBlocks() as blocks:
        shown = gr.Image(format="png")
        gr.Button().click(lambda: None, None, [shown])
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "other"))
    folder: Any = SimpleNamespace(path=tmp_path / "page")
    blocks.folder, state = folder, SessionState(blocks)
    event, picture = next(iter(blocks.fns.values())), Image.new("RGB", (4, 4))

    def given(answer: Any) -> Any:
        # a thread of its own: a browser test before it may have left a loop in this one
        work = lambda: asyncio.run(blocks.postprocess_data(event, answer, state))[0]  # noqa: E731
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(work).result()

    asked = given(gr.update(value=picture, visible=True))["value"]["path"]
    given(gr.update(visible=True))
    for path in (asked, given(picture)["path"]):
        assert Path(path).is_relative_to(tmp_path / "page")
        assert Path(path).is_file()
    assert not (tmp_path / "other").exists()
