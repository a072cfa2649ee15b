"""Videos made here: every frame, at other rates, upright, of odd sizes; and files that are no videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sensorium.data.streams.video import video_frames
from sensorium.errors import SensoriumError

av = pytest.importorskip("av")

GREYS = [20 + 11 * i for i in range(20)]


def make(path: Path, *, size: tuple[int, int] = (48, 32), fps: int = 10, times: list[int] | None = None,
         codec: str = "mpeg4", corner: bool = False) -> Path:  # fmt: skip
    """A gray level a frame (GREYS in turn); ``times`` are timestamps in frames; ``corner``: red at the top left."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p" if codec != "ffv1" else "bgr0"
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        stream.codec_context.time_base = Fraction(1, fps)
        for i, grey in enumerate(GREYS):
            pixels = np.full((height, width, 3), grey, np.uint8)
            if corner:
                pixels[: height // 2, : width // 2] = (255, 0, 0)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def which(image: np.ndarray) -> int:
    return int(np.abs(np.array(GREYS) - image.mean()).argmin())


def test_every_frame_in_order(tmp_path: Path) -> None:
    found = list(video_frames(make(tmp_path / "a.mp4")))
    assert [which(frame.image) for frame in found] == list(range(20))
    assert [round(frame.seconds, 3) for frame in found] == [i / 10 for i in range(20)]
    assert found[0].image.shape == (3, 32, 48)
    assert found[0].image.dtype == np.uint8
    assert abs(float(found[7].image.mean()) - GREYS[7]) < 3


@pytest.mark.parametrize("rate", [1, 3, 5, 10, 25])
def test_at_another_rate_each_tick_has_the_frame_that_is_shown_then(tmp_path: Path, rate: int) -> None:
    found = list(video_frames(make(tmp_path / "a.mp4"), rate=rate))
    ticks = [k for k in range(1000) if k / rate <= 1.9 + 1e-9]
    expected = [int(k / rate * 10 + 1e-6) for k in ticks]
    got = [which(frame.image) for frame in found]
    assert got[: len(expected)] == expected
    assert len(got) - len(expected) <= 1  # the last frame is shown until its end
    assert [frame.seconds for frame in found] == [k / rate for k in range(len(found))]


def test_uneven_timestamps(tmp_path: Path) -> None:
    times = [2 * i if i < 10 else 18 + 6 * (i - 9) for i in range(20)]  # begins with a step of 2, goes on with 6
    found = list(video_frames(make(tmp_path / "a.mkv", times=times), rate=5))
    expected = [i for i in range(9) for _ in range(1)] + [9 + j // 3 for j in range(30)]
    assert [which(frame.image) for frame in found][:39] == expected


@pytest.mark.parametrize(("size", "codec"), [((47, 33), "ffv1"), ((2, 2), "mpeg4"), ((130, 18), "mpeg4")])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], codec: str) -> None:
    path = make(tmp_path / ("a.mkv" if codec == "ffv1" else "a.mp4"), size=size, codec=codec)
    found = [frame.image for frame in video_frames(path)]
    assert found[0].shape == (3, size[1], size[0])
    assert [which(image) for image in found] == list(range(20))
    assert max(float(image.std()) for image in found) < 6  # no rows of padding in the picture


def turned(path: Path, out: Path, degrees: int) -> Path:
    """The same file with another display matrix in its track header (a, b, c, d as 16.16 fixed point)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix lies 40 bytes behind the box's name
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    for slot, value in ((0, cos), (1, sin), (3, -sin), (4, cos)):
        data[at + 4 * slot : at + 4 * slot + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    out.write_bytes(data)
    return out


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_pictures_stand_upright(tmp_path: Path, degrees: int) -> None:
    """The matrix asks for a turn clockwise: the red corner goes from the top left on to the top right, and so on."""
    path = make(tmp_path / "a.mp4", corner=True)
    flat = next(video_frames(path)).image
    found = next(video_frames(turned(path, tmp_path / "b.mp4", degrees))).image
    assert np.abs(found.astype(int) - np.rot90(flat, -degrees // 90, (1, 2))).max() <= 2
    assert found.shape == ((3, 32, 48) if degrees == 180 else (3, 48, 32))
    corner = {
        90: (slice(0, 12), slice(-8, None)),
        180: (slice(-8, None), slice(-12, None)),
        270: (slice(-12, None), slice(0, 8)),
    }
    assert found[0][corner[degrees]].mean() > 200 > 60 > found[1][corner[degrees]].mean()


def test_frames_come_one_at_a_time(tmp_path: Path) -> None:
    frames = video_frames(make(tmp_path / "a.mp4"))
    assert which(next(frames).image) == 0
    assert which(next(frames).image) == 1
    frames.close()


def test_what_is_no_video_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    whole = make(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "headless.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    for name, said in (
        ("none.mp4", "no such file"),
        ("empty.mp4", "cannot be decoded"),
        ("text.mp4", "cannot be decoded"),
        ("headless.mp4", "has no video; if it should, it is truncated"),
        ("sound.wav", "has no video"),
    ):
        with pytest.raises(SensoriumError, match=f"{name}: .*{said}") as caught:
            list(video_frames(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_truncated_file_gives_what_it_has_and_then_says_so(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(60):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    whole = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert len(list(video_frames(path))) == 60
    seen = []
    with pytest.raises(SensoriumError, match=r"cut\.mp4: (ends after|cannot be decoded)"):
        for frame in video_frames(tmp_path / "cut.mp4"):
            seen.append(frame.seconds)
    assert 10 < len(seen) < 40


def test_random_damage_never_shows_another_error(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.mp4").read_bytes()
    rng = np.random.default_rng(1)
    for i in range(25):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 40):
            data[at] = int(rng.integers(256))
        (tmp_path / "b.mp4").write_bytes(data)
        count, said = 0, str(tmp_path / "b.mp4")
        try:
            count = sum(1 for _ in video_frames(tmp_path / "b.mp4", rate=10))
        except SensoriumError as error:
            said = str(error)
        assert "b.mp4" in said, i
        assert count < 20_000


def test_a_rate_is_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rate"):
        list(video_frames(make(tmp_path / "a.mp4"), rate=0))
