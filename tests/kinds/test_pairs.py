"""Pictures with captions from the command line: train, judge, take away; and what is said when it cannot work."""

import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sensorium
from sensorium.abilities import ImageText
from sensorium.base.draw import Draw
from sensorium.cli.main import main
from sensorium.data.pairs import prepare as pairs
from sensorium.data.pairs.prepare import PairSituation
from sensorium.data.source import Source
from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.judge.pair_scores import chance, named, recall
from sensorium.multimodal.clip.recipe import clip, pair_views

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data"))
MERGES = DATA / "clip" / "bpe_simple_vocab_16e6.txt.gz"

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
SMALL = ["--image-size", "8", "--backbone", "resnet-micro"]
TINY = ["--text-width", "32", "--text-depth", "1", "--embed-dim", "16", "--batch-size", "8", "--quiet"]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "white": (240, 240, 240)}
NAMES = [f"a {colour} {shape}" for colour in COLOURS for shape in ("sky", "sea")]


def png(name: str, seed: int, side: int = 16) -> bytes:
    """A field of the color that ``name`` names, its upper half dark for a sea, with noise."""
    _, colour, shape = name.split()
    pixels = np.broadcast_to(np.array(COLOURS[colour]), (side, side, 3)) + np.random.default_rng(seed).normal(
        0, 12, (side, side, 3)
    )
    if shape == "sea":
        pixels[: side // 2] *= 0.25
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def fields(repeats: int, seed: int) -> dict[str, bytes]:
    members = {}
    for i, (_, name) in enumerate(itertools.product(range(repeats), NAMES)):
        members |= {f"{i:03d}.png": png(name, seed + i), f"{i:03d}.txt": name.encode()}
    return members


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    tar(folder / "train-0.tar", fields(12, 0))
    tar(folder / "test-0.tar", fields(4, 1000))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "clip"
    words = ["--lr", "0.003", "--weight-decay", "0.01", "--budget", "60steps", *SMALL, *TINY]
    main(["train", "clip", "--data", str(data), "--out", str(out), *words])
    return out


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "scenes"
    main(
        [
            "train",
            "clip",
            "--data",
            "scenes:64",
            "--out",
            str(out),
            "--budget",
            "3steps",
            "--backbone",
            "clip-micro",
            *TINY,
        ]
    )
    return out


def test_it_learns_and_is_judged_beside_chance(trained: Path, command: Command) -> None:
    code, out, _ = command("evaluate", str(trained), "--json")
    told = json.loads(out)
    found = told["details"]["retrieval"]
    assert code == 0
    r, luck = found["retrieval"], found["retrieval"]["baselines"]["chance"]
    assert (r["images"], r["texts"]) == (32, 8)
    assert luck["image_to_text_r1"] == pytest.approx(1 / 8)
    assert luck["text_to_image_r1"] == pytest.approx(4 / 32)
    assert r["image_to_text_r1"] > 3 * luck["image_to_text_r1"]
    assert r["text_to_image_r1"] > 3 * luck["text_to_image_r1"]
    assert found["zero_shot"]["top1"] > 3 * found["zero_shot"]["baselines"]["majority"]
    assert found["zero_shot"]["n"] == 32
    assert (trained.parent / told["pictures"][0]["file"]).is_file()
    code, out, _ = command("evaluate", str(trained))
    first = (r["image_to_text_r1"] + r["text_to_image_r1"]) / 2
    with np.load(trained / "outcomes.npz") as kept:
        assert kept["R@5 to caption"].dtype == bool
        assert kept["R@5 to caption"].mean() == pytest.approx(r["image_to_text_r5"])
        assert kept["R@1"].shape == (8,)  # each caption with its four pictures
        assert kept["R@1"].mean() == pytest.approx(first)
        assert kept["zero-shot"].mean() == pytest.approx(found["zero_shot"]["top1"])
    assert out.startswith("R@1")
    assert f"{100 * first:.1f} %" in out
    assert "chance" in out
    rows = (trained / "online.csv").read_text().splitlines()
    assert rows[0].endswith("r1")
    assert float(rows[-1].split(",")[-1]) == pytest.approx(first)


def test_scenes_have_captions_and_classes(scenes: Path, command: Command) -> None:
    run = sensorium.Run(scenes)
    ready = run.data()
    assert isinstance(run.method, ImageText)
    assert (len(ready.train), len(ready.test)) == (64, 12)
    assert all("on a" in text for text in ready.train.texts)
    names, labels = named(ready.test)
    assert len(names) == 10
    assert [names[k] in text for k, text in zip(labels, ready.test.texts, strict=True)] == [True] * 12
    code, out, _ = command("evaluate", str(scenes), "--json")
    assert code == 0
    assert json.loads(out)["details"]["retrieval"]["zero_shot"]["classes"] == 10
    assert pairs.describe(ready)["unit"] == "pairs"
    again = pairs.prepare(Source("scenes:64", None, scenes.parent / "other", limit=10))
    assert len(again.train) == 10
    assert np.array_equal(again.train.pixels.images, ready.train.pixels.images[:10])


def test_chance_is_what_random_orders_come_to() -> None:
    rng = np.random.default_rng(0)
    of_images, of_texts = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 2])
    for way, own, theirs in (("image_to_text", of_images, of_texts), ("text_to_image", of_texts, of_images)):
        for k in (1, 2):
            orders = [
                [own[q] in theirs[rng.permutation(len(theirs))[:k]] for q in range(len(own))] for _ in range(2000)
            ]
            assert chance(of_images, of_texts, (k,))[f"{way}_r{k}"] == pytest.approx(np.mean(orders), abs=0.02)
    assert chance(of_images, of_texts, (10,))["image_to_text_r10"] == 1


def test_a_picture_of_many_captions_is_kept_once(tmp_path: Path) -> None:
    for i, name in enumerate(NAMES[:6]):
        (tmp_path / f"{i}.png").write_bytes(png(name, i))
    rows = [{"file": f"{i}.png", "caption": [name, f"{name} seen by day"]} for i, name in enumerate(NAMES[:6])]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "test").mkdir()
    ready = pairs.prepare(Source(str(tmp_path / "captions.jsonl"), None, tmp_path / "cache"))
    train = ready.train
    assert len(train) == 2 * len(train.pixels)
    assert train.fields["image"].shape == train.pixels.images.shape[1:]
    for i in range(len(train)):
        name = train.texts[i].removesuffix(" seen by day")
        mean = train.take(np.array([i]))["image"][0].numpy().mean((1, 2))
        assert mean.argmax() == np.argmax(COLOURS[name.split()[1]]) or "white" in name
        assert ready.tokens.decode(train.tokens[i].tolist()) == train.texts[i]
    few = train.some(3)
    assert len(few) == 3
    assert len(few.pixels) <= 3
    for i, text in enumerate(few.texts):
        at = list(train.texts).index(text)
        assert torch.equal(few.take(np.array([i]))["image"], train.take(np.array([at]))["image"])
    run = clip(pairs.situate(ready), text_width=32, text_depth=1, embed_dim=8)
    found = recall(run.method.eval(), train, "cpu")
    assert (found["images"], found["texts"]) == (len(train.pixels), len(train))


def test_what_is_broken_is_named_and_left_out(tmp_path: Path) -> None:
    broken = {
        "900.png": png(NAMES[0], 0), "900.txt": b"\xff\xfe not text",
        "901.png": b"no picture", "901.txt": b"a torn picture",
        "902.png": png(NAMES[0], 1),
        "../../903.png": png(NAMES[0], 2), "../../903.txt": b"a climber",
    }  # fmt: skip
    ready = pairs.prepare(Source(str(tar(tmp_path / "a.tar", fields(2, 0) | broken)), None, tmp_path / "cache"))
    assert len(ready.train) + len(ready.test or ()) == 16
    told = " ".join(f"{one.file}: {one.reason}" for one in ready.skipped)
    for said in ("900.png: caption is not UTF-8", "901.png", "902.png: no caption", "leads outside the archive"):
        assert said in told
    assert len(ready.skipped) == 4
    assert sum("skipped" in note for note in pairs.describe(ready)["notes"]) == 3
    assert len(pairs.describe(ready)["skipped"]) == 4
    assert not (tmp_path.parent.parent / "903.png").exists()


def test_names_of_classes_are_captions_where_there_are_no_others(tmp_path: Path, data: Path) -> None:
    for i, name in enumerate(NAMES * 5):
        folder = tmp_path / "pictures" / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(name, i))
    ready = pairs.prepare(Source(str(tmp_path / "pictures"), None, tmp_path / "cache"))
    assert set(ready.train.texts) == set(NAMES)
    assert "class names" in ready.opened.notes[0]
    mixed = pairs.prepare(Source(str(data), str(tmp_path / "pictures"), tmp_path / "cache"))
    assert len(mixed.test) == 40
    names, labels = named(mixed.test)
    assert set(names) == set(NAMES)
    assert [names[k] for k in labels] == [mixed.test.texts[i] for i in np.argsort(mixed.test.rows)]


def test_crops_follow_from_the_draw_and_nothing_is_mirrored() -> None:
    on = PairSituation(16, 64, (), (0.5,) * 3, (0.25,) * 3, vocab=600, context=7)
    pixels = torch.randint(0, 255, (8, 3, 16, 16), dtype=torch.uint8)
    tokens = torch.arange(56, dtype=torch.int32).view(8, 7)
    whole = pair_views(on, 16)({"image": pixels, "tokens": tokens}, Draw.seeded(0, 3, 8))
    for rows in (slice(0, 4), slice(4, 8)):
        fields = {"image": pixels[rows], "tokens": tokens[rows]}
        part = pair_views(on, 16)(fields, Draw.seeded(0, 3, 8, rows.start, rows.stop))
        assert torch.equal(part["image"], whole["image"][rows])
        assert torch.equal(part["tokens"], whole["tokens"][rows])
    assert whole["tokens"].dtype == torch.int64
    ramp = torch.arange(16).mul(15).to(torch.uint8).expand(8, 3, 16, 16)
    seen = pair_views(on, 16)({"image": ramp, "tokens": tokens}, Draw.seeded(0, 3, 8))["image"]
    assert (seen.diff(dim=-1) >= -1e-5).all()
    flipped = pair_views(on, 16, flip=True)({"image": ramp, "tokens": tokens}, Draw.seeded(0, 3, 8))["image"]
    assert (flipped.diff(dim=-1) < -1e-5).any()


def test_exported_it_opens_in_transformers(scenes: Path, tmp_path: Path, command: Command) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    assert command("export", str(scenes), "--to", "hf", "--out", str(tmp_path))[0] == 0
    run = sensorium.Run(scenes)
    theirs, tokenizer = CLIPModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    texts = ["A red  ball", "an unseen word: zebra\u00fc!", "a small blue cone on a striped ground " * 9]
    ours = pairs.kept_tokens(scenes).encode(texts, run.situation.context)
    length = run.situation.context
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    for mine, told, mask in zip(ours, batch["input_ids"], batch["attention_mask"], strict=True):
        assert mine[: mask.sum()].tolist() == told[: mask.sum()].tolist()
    assert tokenizer.model_max_length == length
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = theirs(pixel_values=images, **batch).logits_per_image
        mine = run.method.logits(run.method.embed_image(images), run.method.embed_text(ours))
    torch.testing.assert_close(mine, logits, atol=1e-4, rtol=1e-5)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    seen = processor(picture, return_tensors="pt")["pixel_values"]
    raw = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    torch.testing.assert_close(seen, run.prepare_images(raw), atol=1e-4, rtol=1e-4)
    again = sensorium.load(tmp_path)
    torch.testing.assert_close(again.embed_image(images), run.method.embed_image(images))


def test_a_tower_without_a_published_format_says_so(trained: Path, tmp_path: Path, command: Command) -> None:
    code, _, err = command("export", str(trained), "--to", "hf", "--out", str(tmp_path / "x"))
    assert code == 1
    assert "--backbone clip-micro" in err


def test_its_image_tower_is_kept_as_a_backbone(scenes: Path) -> None:
    tower = sensorium.load(scenes / "backbone")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(tower.features(images), sensorium.Run(scenes).features(images))


@pytest.mark.skipif(not MERGES.is_file(), reason=f"CLIP's merges are not at {MERGES}; set SENSORIUM_DATA")
def test_the_published_vocabulary_serves_when_asked_for(data: Path, tmp_path: Path) -> None:
    words = ["--tokenizer", str(MERGES), "--budget", "2steps", *SMALL, *TINY]
    main(["train", "clip", "--data", str(data), "--out", str(tmp_path / "clip"), *words])
    run = sensorium.Run(tmp_path / "clip")
    assert run.situation.vocab == 49408
    assert run.data().train.tokens[0][:3].tolist() == [49406, 320, 736]  # as the authors' code has "a red"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nowhere"), "nothing at 'nowhere'"),
        (("--data", "scenes:0"), "not a number of scenes"),
        (("--vocab", "100"), "514"),
        (("--tokenizer", "nowhere"), "nothing at 'nowhere'"),
        (("--tokenizer", str(Path(__file__).parent), "--vocab", "600"), "--vocab is for a learned tokenizer"),
        (("--context", "2"), "3 tokens"),
        (("--image-size", "4"), "8 pixels"),
        (("--backbone", "clip-mikro"), "Did you mean clip-micro?"),
        (("--text-width", "65"), "--text-width 65"),
        (("--limit", "0"), "must be at least 1"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(words, said: str, data: Path, tmp_path: Path, command: Command) -> None:
    given = [] if "--data" in words else ["--data", str(data)]
    code, _, err = command("train", "clip", *given, *words, "--out", str(tmp_path / "out"), "--budget", "2steps")
    assert code == 1
    assert said in err
    assert "Traceback" not in err


def test_the_same_captions_teach_the_same_tokens() -> None:
    captions = [
        f"{''.join(letters)} stands by {''.join(letters[::-1])}" for letters in itertools.permutations("aeiou", 3)
    ]
    merges = {
        json.dumps(json.loads(CLIPTokens.learn(captions, 600, clean="plain").inner.to_str())["model"]["merges"])
        for _ in range(5)
    }
    assert len(merges) == 1
