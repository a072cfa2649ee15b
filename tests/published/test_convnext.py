"""ConvNeXt and ConvNeXt V2: files that transformers, timm and torchvision wrote, and the authors' names, give the same
outputs and gradients, and go back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
)

from sensorium.errors import SensoriumError
from sensorium.networks.convnext import ConvNeXt
from sensorium.networks.formats.convnext import AUTHORS, HF, HF_V2, TIMM, TORCHVISION
from sensorium.published import export, load, load_backbone
from sensorium.published.format import IMAGENET, write
from sensorium.selfsup.supervised.method import Supervised

SIZES = [(64, 64), (50, 67), (33, 97)]  # incomplete patches are at every stage of the last two
SMALL: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 3]}
CONFIGS: list[dict[str, Any]] = [
    SMALL,
    {"hidden_sizes": [8, 20, 12], "depths": [2, 1, 2], "num_stages": 3, "patch_size": 3, "layer_norm_eps": 1e-3},
]
CLASSES: dict[str, Any] = {
    "v1": (ConvNextConfig, ConvNextModel, ConvNextForImageClassification, HF),
    "v2": (ConvNextV2Config, ConvNextV2Model, ConvNextV2ForImageClassification, HF_V2),
}


def shaken(model: nn.Module) -> Any:
    """Every number its own, so that nothing agrees by being zero, one or tiny."""
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def pictures(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(size[1]))


def assert_gradients(found: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """found, theirs: gradients of the weights, by their names."""
    assert found.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (found[name].flatten() - gradient.flatten()).abs().max() <= 1e-4, name
        assert gradient.abs().max() > 0, name


def backward(network: Any, feature: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """A feature, and the gradient of the images; those of the weights are left in the network."""
    network.zero_grad()
    x = images.clone().requires_grad_()
    found = feature(x)
    way = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)) / found.numel() ** 0.5
    (found * way).sum().backward()
    assert x.grad is not None
    return found.detach(), x.grad


def compare(ours: Any, form: Any, theirs: Any, feature: Any, ignored: tuple[str, ...] = ()) -> None:
    """Features and gradients of pictures and weights at every size."""
    for size in SIZES:
        got, moved = backward(ours, ours.features, pictures(size))
        wanted, theirs_moved = backward(theirs, feature, pictures(size))
        assert (got - wanted).abs().max() <= 1e-5
        assert (moved - theirs_moved).abs().max() <= 1e-4
        assert theirs_moved.abs().max() > 0
        found = write(form, ours, {name: p.grad for name, p in ours.named_parameters()})
        expected = {name: p.grad for name, p in theirs.named_parameters() if not name.startswith(ignored or "-")}
        assert_gradients(found, expected)


# --- transformers ---


@pytest.mark.parametrize("numbers", CONFIGS, ids=["four stages", "three, patches of 3"])
@pytest.mark.parametrize("version", CLASSES)
def test_what_transformers_wrote_gives_the_same_and_goes_back(version: str, numbers: dict, tmp_path: Path) -> None:
    config, model, _, form = CLASSES[version]
    theirs = shaken(model(config(**numbers)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    assert isinstance(ours, ConvNeXt)
    assert (ours.grn, ours.layer_scale > 0) == ((version == "v2"), (version == "v1"))
    assert ours.normalization == IMAGENET
    compare(ours, form, theirs, lambda x: theirs(x).pooler_output)
    export(ours, "hf", tmp_path / "back")
    export(ours, "safetensors", tmp_path / "own")
    again, told = model.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    others: list[Any] = [load(tmp_path / "back"), load(tmp_path / "own")]
    with torch.no_grad():
        for size in SIZES:
            images = pictures(size)
            wanted = theirs(images, output_hidden_states=True)
            assert (again.eval()(images).pooler_output - wanted.pooler_output).abs().max() <= 1e-5
            assert all(torch.equal(other.features(images), ours.features(images)) for other in others)
            maps = ours.maps(images)
            assert [tuple(one.shape[2:]) for one in maps] == [tuple(n // s for n in size) for s in ours.strides]
            assert (maps[-1] - wanted.last_hidden_state).abs().max() <= 1e-5
            assert (maps[0] - wanted.hidden_states[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("version", CLASSES)
def test_the_backbone_of_transformers_classifier_and_a_classifier_of_ours(version: str, tmp_path: Path) -> None:
    config, _, classifier, _ = CLASSES[version]
    theirs = shaken(classifier(config(**SMALL, num_labels=5)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load_backbone(tmp_path / "theirs")
    method = Supervised(ours, 5)
    method.head.load_state_dict(theirs.classifier.state_dict())
    export(method, "hf", tmp_path / "back", classes=[*"abcde"])
    again, told = classifier.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.id2label == dict(enumerate("abcde"))
    with torch.no_grad():
        for size in SIZES:
            wanted = theirs(pictures(size)).logits
            assert (method.eval().logits(pictures(size)) - wanted).abs().max() <= 1e-5
            assert (again.eval()(pictures(size)).logits - wanted).abs().max() <= 1e-5


def test_a_convnext_without_layer_scale(tmp_path: Path) -> None:
    theirs = shaken(ConvNextModel(ConvNextConfig(**SMALL, layer_scale_init_value=0.0)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    assert ours.layer_scale == 0
    assert (ours.features(pictures((50, 67))) - theirs(pictures((50, 67))).pooler_output).abs().max() <= 1e-5
    export(ours, "hf", tmp_path / "back")
    again: Any = load(tmp_path / "back")
    assert torch.equal(again.features(pictures((50, 67))), ours.features(pictures((50, 67))))


# --- timm ---

V1, V2 = {"use_grn": False}, {"use_grn": True, "ls_init_value": None}
KINDS: list[dict[str, Any]] = [
    V1,
    {**V1, "conv_mlp": True, "head_norm_first": True, "patch_size": 3},
    {**V1, "ls_init_value": None, "norm_eps": 1e-3},
    V2,
    {**V2, "conv_mlp": True, "norm_eps": 1e-4},
    {**V2, "ls_init_value": 1e-6, "head_norm_first": True},
]


def timms(classes: int = 0, **how: Any) -> TimmConvNeXt:
    return shaken(TimmConvNeXt(**{"depths": (1, 2, 1, 3), "dims": (8, 12, 16, 24), "num_classes": classes} | how))


def pre_logits(model: Any) -> Any:
    return lambda images: model.forward_head(model.forward_features(images), pre_logits=True)


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_what_timm_wrote_gives_the_same_and_goes_back(how: dict, tmp_path: Path) -> None:
    theirs = timms(**how)
    name = "convnextv2_tiny" if how["use_grn"] else "convnext_tiny"
    theirs.pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()  # type: ignore[assignment]
    sizes = {"depths": (1, 2, 1, 3), "dims": (8, 12, 16, 24), "num_classes": 0}
    save_for_hf(
        theirs, str(tmp_path / "theirs"), {"architecture": name, "model_args": sizes | how}, safe_serialization=True
    )
    ours: Any = load(tmp_path / "theirs")
    assert (ours.norm_first, ours.grn) == (how.get("head_norm_first", False), how["use_grn"])
    assert ours.normalization == IMAGENET
    compare(ours, TIMM, theirs, pre_logits(theirs))
    export(ours, "timm", tmp_path / "back")
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    for size in SIZES:
        assert (again(pictures(size)) - pre_logits(theirs)(pictures(size))).abs().max() <= 1e-5
    for file in (tmp_path / "back", tmp_path / "back" / "model.safetensors"):
        read: Any = load(file)
        assert torch.equal(read.features(pictures((50, 67))), ours.features(pictures((50, 67))))


@pytest.mark.parametrize(
    "name", ["convnext_pico", "convnext_tiny_hnf", "convnext_large_mlp", "convnextv2_nano", "convnext_xxlarge"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timms_named_models_as_files(name: str, suffix: str, tmp_path: Path) -> None:
    """Narrow, as deep as they are, with their classifiers, whose hidden layer is not a part of the backbone."""
    theirs: Any = shaken(timm.create_model(name, dims=(4, 6, 8, 10), num_classes=3))
    path = tmp_path / f"w{suffix}"
    save_file(theirs.state_dict(), path) if suffix == ".safetensors" else torch.save(
        {"state_dict": theirs.state_dict()}, path
    )
    ours: Any = load(path)
    if name.endswith("_mlp"):
        theirs.head.pre_logits = nn.Identity()
    with torch.no_grad():
        assert (ours.features(pictures((50, 67))) - pre_logits(theirs)(pictures((50, 67)))).abs().max() <= 1e-5


@pytest.mark.parametrize("how", [KINDS[0], KINDS[1], KINDS[3]], ids=str)
def test_a_classifier_of_ours_opens_in_timm(how: dict, tmp_path: Path) -> None:
    theirs = timms(5, **how)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    method = Supervised(load_backbone(tmp_path / "w.safetensors"), 5).eval()
    method.head.load_state_dict(theirs.head.fc.state_dict())
    export(method, "timm", tmp_path / "back", classes=[*"abcde"])
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    with torch.no_grad():
        for size in SIZES:
            wanted = theirs(pictures(size))
            assert (method.logits(pictures(size)) - wanted).abs().max() <= 1e-5
            assert (again(pictures(size)) - wanted).abs().max() <= 1e-5


def test_a_file_without_a_last_norm_gets_a_new_one(tmp_path: Path) -> None:
    """timm's of FCMAE pretraining, which timm itself loads so."""
    theirs: Any = timms(**V2)
    nn.init.ones_(theirs.head.norm.weight)
    nn.init.zeros_(theirs.head.norm.bias)
    bare = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("head.")}
    save_file(bare, tmp_path / "fcmae.safetensors")
    with pytest.warns(UserWarning, match=r"fcmae\.safetensors: it has no last norm"):
        ours: Any = load(tmp_path / "fcmae.safetensors")
    assert (ours.features(pictures((50, 67))) - pre_logits(theirs)(pictures((50, 67)))).abs().max() <= 1e-5


@pytest.mark.parametrize("name, why", [
    ("convnext_atto_ols", "an overlapping stem"),
    ("convnext_zepto_rms_ols", "an overlapping stem"),
    ("convnext_atto_rms", "norms without a bias"),
    ("test_convnext3", r"'stages\.1\.blocks\.0\.conv_dw\.weight' has shape \[12, 1, 5, 5\], expected \[12, 1, 7, 7\]"),
])  # fmt: skip
def test_other_variants_of_timm_are_refused(name: str, why: str, tmp_path: Path) -> None:
    torch.save(timm.create_model(name, dims=(8, 12, 16, 24)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(SensoriumError, match=rf"w\.pth: .*{why}"):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("change, why", [
    ({"architecture": "test_convnext"}, r"architecture 'test_convnext' has another activation"),
    ({"act_layer": "silu"}, r"model_args\.act_layer 'silu' is not supported"),
    ({"output_stride": 16}, r"model_args\.output_stride '16' is not supported"),
    ({"global_pool": "max"}, r"model_args\.global_pool 'max' is not supported"),
    ({"norm_eps": "x"}, r"model_args\.norm_eps 'x' is not a number"),
])  # fmt: skip
def test_arguments_of_timm_that_change_numbers_are_refused(change: dict, why: str, tmp_path: Path) -> None:
    save_file(timms().state_dict(), tmp_path / "model.safetensors")
    told = {"architecture": change.pop("architecture", "convnext_tiny"), "model_args": change}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(SensoriumError, match=rf"config\.json: {why}"):
        load(tmp_path)


def test_a_downsampling_before_the_first_stage_is_refused(tmp_path: Path) -> None:
    torch.save(timms(patch_size=2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(SensoriumError, match="a downsampling before its first stage"):
        load(tmp_path / "w.pth")


# --- torchvision, and the authors ---


def test_what_torchvision_wrote_gives_the_same_and_goes_back(tmp_path: Path) -> None:
    theirs: Any = shaken(torchvision.models.convnext_tiny(num_classes=4))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours: Any = load(tmp_path / "w.pth")

    def pooled(x: Tensor) -> Tensor:
        return theirs.classifier[:2](theirs.avgpool(theirs.features(x)))

    got, moved = backward(ours, ours.features, pictures((50, 67)))
    wanted, theirs_moved = backward(theirs, pooled, pictures((50, 67)))
    assert (got - wanted).abs().max() <= 1e-5
    assert (moved - theirs_moved).abs().max() <= 1e-4
    back, state = write(TORCHVISION, ours), theirs.state_dict()
    assert state.keys() - back.keys() == {"classifier.2.weight", "classifier.2.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


def authors(grn: bool, head: bool = True) -> dict[str, Tensor]:
    """A state dict of the names and shapes of the authors' code."""
    dims, depths, state = (8, 12, 16, 24), (1, 2, 1, 3), {}
    for s, (width, depth) in enumerate(zip(dims, depths, strict=True)):
        shapes = {"0": (8, 3, 4, 4), "1": (8,)} if s == 0 else {"0": dims[s - 1 : s], "1": (width, dims[s - 1], 2, 2)}
        modules = {f"downsample_layers.{s}.{k}": shape for k, shape in shapes.items()}
        for i in range(depth):
            inner = {
                "dwconv": (width, 1, 7, 7),
                "norm": (width,),
                "pwconv1": (4 * width, width),
                "pwconv2": (width, 4 * width),
            }
            modules |= {f"stages.{s}.{i}.{k}": shape for k, shape in inner.items()}
            vectors = (
                {"grn.gamma": (1, 1, 1, 4 * width), "grn.beta": (1, 1, 1, 4 * width)} if grn else {"gamma": (width,)}
            )
            state |= {f"stages.{s}.{i}.{k}": torch.randn(shape) for k, shape in vectors.items()}
        for name, shape in modules.items():
            state |= {f"{name}.weight": 0.2 * torch.randn(shape), f"{name}.bias": 0.2 * torch.randn(shape[0])}
    last = {"norm.weight": torch.randn(24), "norm.bias": torch.randn(24)} if head else {}
    return state | last | ({"head.weight": torch.randn(7, 24), "head.bias": torch.randn(7)} if head else {})


@pytest.mark.parametrize("grn", [False, True])
def test_the_authors_files(grn: bool, tmp_path: Path) -> None:
    """Held to timm, whose own conversion fills its network with the same file."""
    torch.manual_seed(2)
    state = authors(grn)
    torch.save({"model": state}, tmp_path / "convnext.pth")
    theirs = timms(7, **(V2 if grn else V1))
    theirs.load_state_dict(checkpoint_filter_fn({"model": dict(state)}, theirs))
    ours: Any = load(tmp_path / "convnext.pth")
    for size in SIZES:
        wanted = pre_logits(theirs)(pictures(size))
        assert (ours.features(pictures(size)) - wanted).abs().max() <= 1e-5
    back = write(AUTHORS, ours)
    assert state.keys() - back.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


def test_the_authors_file_of_pretraining(tmp_path: Path) -> None:
    """GRN as sparse convolutions have it, no last norm; and the sparse convolutions themselves."""
    state = authors(True, head=False)
    sparse = {name: tensor.flatten(0, 2) if ".grn." in name else tensor for name, tensor in state.items()}
    torch.save({"model": sparse}, tmp_path / "fcmae.pt")
    theirs = TimmConvNeXt(depths=(1, 2, 1, 3), dims=(8, 12, 16, 24), num_classes=0, **V2).eval()
    theirs.load_state_dict(checkpoint_filter_fn({"model": dict(state)}, theirs), strict=False)
    with pytest.warns(UserWarning, match="no last norm"):
        ours: Any = load(tmp_path / "fcmae.pt")
    assert (ours.features(pictures((50, 67))) - pre_logits(theirs)(pictures((50, 67)))).abs().max() <= 1e-5
    kernels = {n.replace("dwconv.weight", "dwconv.kernel"): t for n, t in state.items()}
    torch.save({"model": kernels}, tmp_path / "sparse.pt")
    with pytest.raises(SensoriumError, match=r"sparse\.pt: sparse convolutions .* remap_checkpoint_keys"):
        load(tmp_path / "sparse.pt")


# --- broken files, and what a format does not hold ---


def test_what_a_broken_configuration_has_wrong_is_said(tmp_path: Path) -> None:
    shaken(ConvNextModel(ConvNextConfig(**SMALL))).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"depths": [1, 2, 2, 3]}, r"depths says \[1, 2, 2, 3\], the weights have \[1, 2, 1, 3\]"),
        ({"hidden_sizes": [8, 12, 16]}, "the number of hidden_sizes says 3, the weights have 4"),
        ({"num_stages": 5}, "num_stages says 5, the weights have 4"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"num_channels": 1}, "num_channels '1' is not supported"),
        ({"patch_size": "4"}, "patch_size '4' is not an integer"),
        ({"layer_norm_eps": -1}, "layer_norm_eps -1 is not a number"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=rf"config\.json: {said}"):
            load(tmp_path)
    for change, said in (
        (
            {"hidden_sizes": [8, 12, 20, 24]},
            r"'encoder\.stages\.2\.downsampling_layer\.1\.weight' has shape \[16, 12, 2, 2\]",
        ),
        (
            {"patch_size": 2},
            r"'embeddings\.patch_embeddings\.weight' has shape \[8, 3, 4, 4\], expected \[8, 3, 2, 2\]",
        ),
        ({"layer_scale_init_value": 0}, r"'encoder\.stages\.0\.layers\.0\.layer_scale_parameter' is unknown"),
        ({"model_type": "convnextv2"}, r"'encoder\.stages\.0\.layers\.0\.grn\.weight' is missing"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=rf"{tmp_path.name}: {said}"):
            load(tmp_path)


@pytest.mark.parametrize(
    "name", ["stem.0.bias", "stages.2.downsample.0.weight", "stages.1.blocks.1.gamma", "head.norm.bias"]
)
def test_damaged_files_of_timm_name_the_tensor(name: str, tmp_path: Path) -> None:
    state = timms().state_dict()
    torch.save({n: t for n, t in state.items() if n != name}, tmp_path / "w.pth")
    with pytest.raises(SensoriumError, match=rf"w\.pth: '{name}' is missing"):
        load(tmp_path / "w.pth")
    torch.save(state | {name: torch.zeros(5)}, tmp_path / "w.pth")
    with pytest.raises(SensoriumError, match=rf"w\.pth: '{name}' has shape \[5\]"):
        load(tmp_path / "w.pth")
    torch.save(state | {"stem.0.weight": torch.zeros(8, 3, 4, 5)}, tmp_path / "w.pth")
    with pytest.raises(SensoriumError, match=r"w\.pth: 'stem\.0\.weight' has 3 input channels and patches of 4x5"):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("how, to, why", [
    ({"norm_first": True}, "hf", "its last norm after pooling"),
    ({"grn": True}, "hf", "either GRN or LayerScale"),
    ({"depths": (1, 1), "widths": (8, 8)}, "timm", "four stages, this network 2"),
    ({"patch": 2}, "timm", "patches of 2 pixels has another downsampling"),
])  # fmt: skip
def test_what_a_library_cannot_hold_is_refused(how: dict, to: str, why: str, tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8)}
    network = ConvNeXt(**numbers | how)
    for part in (network, Supervised(network, 3)):
        with pytest.raises(SensoriumError, match=rf"{why}.*Use --to safetensors"):
            export(part, to, tmp_path / "x")
        assert not (tmp_path / "x").exists()


def test_another_epsilon_than_a_file_can_hold_is_told(tmp_path: Path) -> None:
    numbers: Any = {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8)}
    with pytest.warns(UserWarning, match=r"timm's norms have an epsilon of 1e-06 in such a file; this network's 1e-12"):
        export(ConvNeXt(**numbers, pool_eps=1e-12), "timm", tmp_path / "timm")
    with pytest.warns(
        UserWarning, match=r"Hugging Face's norms have an epsilon of 1e-06 in such a file; this network's 0\.001"
    ):
        export(ConvNeXt(**numbers, eps=1e-3), "hf", tmp_path / "hf")


def test_a_classifier_there_and_back_and_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="ONNX is an extra")
    ours = shaken(Supervised(ConvNeXt((1, 2), (8, 12), patch=2, grn=True, layer_scale=0), 3))
    export(ours, "safetensors", tmp_path / "own", image_size=21)
    images = torch.rand(5, 3, 21, 21)
    again: Any = load(tmp_path / "own")
    assert torch.equal(again.logits(images), ours.logits(images))
    path = export(ours.backbone, "onnx", tmp_path / "m.onnx", image_size=21)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})[0]
    assert (torch.from_numpy(found) - ours.backbone.features(images)).abs().max() <= 1e-5
    assert load_file(tmp_path / "own" / "model.safetensors").keys() == ours.state_dict().keys()
