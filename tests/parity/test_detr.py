"""DETR against transformers' DetrForObjectDetection: same weights, same guesses, losses, gradients and attention.

With ``auxiliary_loss`` transformers hands each decoder layer the normed output of the one before; the authors' code,
and ours, norms a copy. Auxiliary outputs are therefore taken here from its decoder layers, through its norm and heads.
"""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from torch import nn

from sensorium.detection.detr.formats import HF, export_detr, load_detr
from sensorium.detection.detr.method import DETR
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT

transformers = pytest.importorskip("transformers")

CASES = {  # ResNet, transformer, classes, queries, images, each image's own size
    "whole images": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "heads": 4, "ffn": 40},
        3, 5, (2, 64, 48), None,
    ),
    "odd, padded": (
        {"embedding_size": 12, "hidden_sizes": [16, 32, 24], "depths": [1, 1, 2], "layer_type": "bottleneck"},
        {"d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "heads": 3, "ffn": 50},
        4, 7, (3, 75, 101), [[75, 60], [41, 101], [75, 101]],
    ),
    "four stages, early strides": (
        {"embedding_size": 8, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "bottleneck",
         "downsample_in_bottleneck": True, "downsample_in_first_stage": True},
        {"d_model": 40, "encoder_layers": 1, "decoder_layers": 1, "heads": 5, "ffn": 24},
        2, 9, (2, 161, 129), [[161, 129], [97, 66]],
    ),
    "no encoder, padded by a pixel": (
        {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [2, 1], "layer_type": "basic"},
        {"d_model": 16, "encoder_layers": 0, "decoder_layers": 4, "heads": 1, "ffn": 32},
        6, 4, (2, 33, 37), [[32, 37], [33, 36]],
    ),
}  # fmt: skip


def shaken(model: nn.Module) -> nn.Module:
    """Random values everywhere, statistics and biases too, so that nothing agrees by being zero."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor) if name.endswith("var") else 0.1 * torch.randn_like(tensor))
    return model.requires_grad_(True)


def peer(backbone, numbers, classes, queries, **more):
    torch.manual_seed(0)
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(**backbone, out_features=[f"stage{len(backbone['depths'])}"]),
        d_model=numbers["d_model"], encoder_layers=numbers["encoder_layers"], decoder_layers=numbers["decoder_layers"],
        encoder_attention_heads=numbers["heads"], decoder_attention_heads=numbers["heads"],
        encoder_ffn_dim=numbers["ffn"], decoder_ffn_dim=numbers["ffn"], num_queries=queries, num_labels=classes,
        dropout=0.0, attn_implementation="eager", **more,
    )  # fmt: skip
    return shaken(transformers.DetrForObjectDetection(config)).train()


def ours_of(theirs):
    """Our DETR with the weights of a peer, which passed through memory, not through a file."""
    config = theirs.config
    bottleneck = config.backbone_config.layer_type == "bottleneck"
    widths = config.backbone_config.hidden_sizes
    backbone = ResNet(
        tuple(config.backbone_config.depths),
        tuple(w // 4 if bottleneck else w for w in widths),
        bottleneck=bottleneck,
        stem_width=config.backbone_config.embedding_size,
        first_stride=2 if config.backbone_config.downsample_in_first_stage else 1,
        early_stride=config.backbone_config.downsample_in_bottleneck,
    )
    ours = DETR(
        backbone, config.num_labels, queries=config.num_queries, width=config.d_model, hidden=config.encoder_ffn_dim,
        heads=config.encoder_attention_heads, encoder_depth=config.encoder_layers, decoder_depth=config.decoder_layers,
        dropout=0.0,
    )  # fmt: skip
    found = {HF.spelled(name): tensor for name, tensor in theirs.state_dict().items()}
    state = {}
    for name in ours.state_dict():
        if not name.endswith("num_batches_tracked"):
            state[name] = torch.cat([found.pop(their) for their in HF.theirs(name, ours)])
    assert not found
    assert not ours.load_state_dict(state, strict=False).unexpected_keys
    return ours.train()


def batch_of(classes, images, sizes):
    """Images, objects in absolute edges, and what transformers wants for the same. One image has no object."""
    torch.manual_seed(1)
    count, height, width = images
    own = sizes or [[height, width]] * count
    batch = {"image": torch.randn(count, 3, height, width), "boxes": [], "labels": []}
    mask, labels = torch.zeros(count, height, width), []
    for i, (h, w) in enumerate(own):
        mask[i, :h, :w] = 1
        n = 0 if i == 1 else 3
        scale = torch.tensor([w, h, w, h])
        centre, size = torch.rand(n, 2) * 0.5 + 0.25, torch.rand(n, 2) * 0.4 + 0.05
        batch["boxes"].append(torch.cat([centre - size / 2, centre + size / 2], 1) * scale)
        batch["labels"].append(torch.randint(classes, (n,)))
        labels.append({"boxes": torch.cat([centre, size], 1), "class_labels": batch["labels"][-1]})
    if sizes:
        batch["sizes"] = torch.tensor(sizes)
    return batch, mask, labels


def run(theirs, batch, mask):
    """Their output, and logits and boxes after each decoder layer."""
    layers = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, y: layers.append(y))
        for layer in theirs.model.decoder.layers
    ]
    out = theirs(batch["image"], pixel_mask=mask, output_attentions=True)
    for hook in hooks:
        hook.remove()
    hidden = torch.stack([theirs.model.decoder.layernorm(y) for y in layers])
    return out, theirs.class_labels_classifier(hidden), theirs.bbox_predictor(hidden).sigmoid()


def largest(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def compare_gradients(ours, theirs):
    grads = {HF.spelled(name): parameter.grad for name, parameter in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            want = torch.cat([grads.pop(their) for their in HF.theirs(name, ours)])
            assert largest(parameter.grad, want) <= 1e-4, name
            compared += parameter.grad.abs().max() > 0
    assert not [name for name, grad in grads.items() if grad is not None]
    assert compared > 20


@pytest.mark.parametrize("name", CASES)
def test_guesses_losses_gradients_and_attention(name):
    backbone, numbers, classes, queries, images, sizes = CASES[name]
    theirs = peer(backbone, numbers, classes, queries)
    ours = ours_of(theirs)
    batch, mask, labels = batch_of(classes, images, sizes)
    want, want_logits, want_boxes = run(theirs, batch, mask)
    logits, boxes = ours.predict(batch["image"], batch.get("sizes"))
    assert want_logits.abs().max() > 0.5
    assert largest(logits, want_logits) <= 1e-5
    assert largest(boxes, want_boxes) <= 1e-5
    assert largest(logits[-1], want.logits) <= 1e-5
    looks = ours.attention(batch["image"], batch.get("sizes"))
    assert largest(looks.flatten(2), want.cross_attentions[-1].mean(1)) <= 1e-5

    theirs.config.auxiliary_loss = True
    loss, parts, auxiliary = theirs.loss_function(
        want_logits[-1], labels, "cpu", want_boxes[-1], theirs.config, want_logits, want_boxes
    )
    assert len(auxiliary) == len(logits) - 1
    got = ours(batch)
    assert abs(got["loss"] - loss) <= 1e-5 * max(1, loss)
    for part, their in {"class": "ce", "box": "bbox", "giou": "giou"}.items():
        assert largest(got[part], parts[f"loss_{their}"]) <= 1e-5
    assert largest(got["cardinality"], parts["cardinality_error"]) <= 1e-6
    found = ours.set_loss(logits, boxes, *ours.targets(batch))
    for i in range(len(auxiliary)):
        assert largest(found["class"][i], parts[f"loss_ce_{i}"]) <= 1e-5
        assert largest(found["box"][i], parts[f"loss_bbox_{i}"]) <= 1e-5
        assert largest(found["giou"][i], parts[f"loss_giou_{i}"]) <= 1e-5
    got["loss"].backward()
    loss.backward()
    compare_gradients(ours, theirs)


def test_the_loss_of_the_last_layer_alone():
    backbone, numbers, classes, queries, images, sizes = CASES["odd, padded"]
    theirs = peer(backbone, numbers, classes, queries)
    ours = ours_of(theirs)
    ours.auxiliary = False
    batch, mask, labels = batch_of(classes, images, sizes)
    want = theirs(batch["image"], pixel_mask=mask, labels=labels)
    got = ours(batch)
    assert largest(got["loss"], want.loss) <= 1e-5 * want.loss
    got["loss"].backward()
    want.loss.backward()
    compare_gradients(ours, theirs)


def test_what_is_detected_is_what_their_processor_finds():
    backbone, numbers, classes, queries, images, sizes = CASES["odd, padded"]
    theirs = peer(backbone, numbers, classes, queries)
    ours = ours_of(theirs)
    batch, mask, _ = batch_of(classes, images, sizes)
    out = theirs(batch["image"], pixel_mask=mask)
    sure = out.logits.softmax(-1)[..., :-1].max(-1).values.flatten().sort().values
    threshold = sure[10:12].mean().item()  # between two of the twenty-one
    processor = transformers.models.detr.DetrImageProcessorPil()
    want = processor.post_process_object_detection(out, threshold, target_sizes=sizes)
    orders = [wanted["scores"].argsort(descending=True) for wanted in want]
    got = ours.detect(batch["image"], threshold, sizes=batch["sizes"])
    assert sum(len(found["labels"]) for found in got) == 10
    for key, tolerance in (("labels", 0), ("scores", 1e-5), ("boxes", 1e-3)):  # boxes in pixels, of a hundred
        ordered = [wanted[key][order] for wanted, order in zip(want, orders, strict=True)]
        assert [len(found[key]) for found in got] == [len(wanted) for wanted in ordered]
        assert largest(torch.cat([found[key] for found in got]), torch.cat(ordered)) <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_hugging_face_directories_there_and_back(name, tmp_path):
    backbone, numbers, classes, queries, images, sizes = CASES[name]
    theirs = peer(backbone, numbers, classes, queries, id2label={i: f"kind {i}" for i in range(classes)}).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_detr(tmp_path / "theirs")
    assert not ours.training
    assert ours.class_names == tuple(f"kind {i}" for i in range(classes))
    assert all(p.requires_grad == ("bn" not in n and "downsample.1" not in n) for n, p in ours.named_parameters())
    batch, mask, _ = batch_of(classes, images, sizes)
    want = theirs(batch["image"], pixel_mask=mask)
    logits, boxes = ours.predict(batch["image"], batch.get("sizes"))
    assert largest(logits[-1], want.logits) <= 1e-5
    assert largest(boxes[-1], want.pred_boxes) <= 1e-5

    export_detr(ours, "hf", tmp_path / "ours", mean=(0.1, 0.2, 0.3), std=(1, 2, 3), image_size=400)
    again, told = transformers.DetrForObjectDetection.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values()), told
    assert largest(again.eval()(batch["image"], pixel_mask=mask).logits, want.logits) <= 1e-6
    assert again.config.id2label == theirs.config.id2label
    processor = transformers.models.detr.DetrImageProcessorPil.from_pretrained(tmp_path / "ours")
    assert (list(processor.image_mean), processor.size["shortest_edge"]) == ([0.1, 0.2, 0.3], 400)
    back = load_detr(tmp_path / "ours")
    assert torch.equal(back.predict(batch["image"], batch.get("sizes"))[0], logits)
    assert (back.normalization, back.weights, back.costs) == (((0.1, 0.2, 0.3), (1, 2, 3)), ours.weights, ours.costs)


def test_directories_whose_resnet_is_timms(tmp_path):
    pytest.importorskip("timm")
    config = transformers.DetrConfig(
        backbone="resnet18", use_timm_backbone=True, d_model=32, encoder_layers=1, decoder_layers=1, num_labels=3,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=3,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.DetrForObjectDetection(config).eval()
    theirs.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 65, 97)
    assert largest(load_detr(tmp_path).predict(images)[0][-1], theirs(images).logits) <= 1e-5


def authors_names(depth, decoder_depth):
    """The keys of the authors' state dict: its layers are named as torch's own, its body as torchvision's ResNet."""
    with torch.device("meta"):
        body = torchvision.models.resnet18().state_dict()
        layer = {"encoder": nn.TransformerEncoderLayer(8, 1, 8), "decoder": nn.TransformerDecoderLayer(8, 1, 8)}
    pairs = ("transformer.decoder.norm", "class_embed", "input_proj", *(f"bbox_embed.layers.{i}" for i in range(3)))
    return {
        *(f"backbone.0.body.{n}" for n in body if not n.startswith("fc.") and not n.endswith("num_batches_tracked")),
        *(f"transformer.encoder.layers.{i}.{n}" for i in range(depth) for n in layer["encoder"].state_dict()),
        *(f"transformer.decoder.layers.{i}.{n}" for i in range(decoder_depth) for n in layer["decoder"].state_dict()),
        *(f"{part}.{kind}" for part in pairs for kind in ("weight", "bias")),
        "query_embed.weight",
    }  # fmt: skip


def test_the_authors_files_there_and_back(tmp_path):
    torch.manual_seed(0)
    numbers = {"queries": 3, "width": 32, "heads": 8, "encoder_depth": 2, "decoder_depth": 1, "hidden": 16}
    ours = shaken(DETR(ResNet(width=8), 4, **numbers)).eval()
    path = export_detr(ours, "authors", tmp_path)
    state = torch.load(path, weights_only=True)["model"]
    assert state.keys() == authors_names(2, 1)
    assert state["transformer.decoder.layers.0.multihead_attn.in_proj_weight"].shape == (96, 32)
    back = load_detr(path)
    images = torch.randn(1, 3, 64, 80)
    for got, want in zip(back.predict(images), ours.predict(images), strict=True):
        assert torch.equal(got, want)
    for strange in ("mask_head.lay1.weight", "transformer.decoder.ref_point_head.layers.0.weight"):  # of its relatives
        torch.save({"model": state | {strange: torch.zeros(1)}}, tmp_path / "more.pth")
        with pytest.raises(SensoriumError, match=rf"more.pth: '{strange}' is unknown"):
            load_detr(tmp_path / "more.pth")
    del state["transformer.encoder.layers.1.linear2.bias"]
    torch.save({"model": state}, tmp_path / "less.pth")
    with pytest.raises(SensoriumError, match=r"less.pth: 'transformer.encoder.layers.1.linear2.bias' is missing"):
        load_detr(tmp_path / "less.pth")


def test_lying_configurations_cost_an_error(tmp_path):
    backbone, numbers, classes, queries, *_ = CASES["whole images"]
    peer(backbone, numbers, classes, queries).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    inner = config["backbone_config"]
    lies = [
        ({"encoder_layers": 10**9}, "encoder_layers says 1000000000, the weights have 1"),
        ({"d_model": 64}, "d_model says 64"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads"),
        ({"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "heads 3 must divide"),
        ({"encoder_attention_heads": "many"}, "encoder_attention_heads 'many'"),
        ({"position_embedding_type": "learned"}, "position_embedding_type 'learned'"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'"),
        ({"dilation": True}, "dilation 'True'"),
        ({"model_type": "rt_detr"}, "model_type 'rt_detr'"),
        ({"dropout": "no"}, "dropout 'no' is not a number"),
        ({"backbone_config": None}, "backbone_config"),
        ({"backbone_config": inner | {"depths": [10**9, 1]}}, "depths .* is not a list of integers"),
        ({"backbone_config": inner | {"hidden_sizes": [8, -1]}}, "hidden_sizes"),
        ({"backbone_config": inner | {"out_features": ["stage1"]}}, "out_features"),
        ({"backbone_config": inner | {"embedding_size": 9}}, "has shape"),
    ]
    for lie, message in lies:
        (tmp_path / "config.json").write_text(json.dumps(config | lie))
        with pytest.raises(SensoriumError, match=message):
            load_detr(tmp_path)


def test_backbones_that_no_format_holds(tmp_path):
    small = {"queries": 2, "width": 8, "heads": 1, "encoder_depth": 1, "decoder_depth": 1, "hidden": 8}
    for backbone in (ViT(16, 8, 8, 1, 1), ResNet((1,), 4, stem="small")):
        with pytest.raises(SensoriumError, match="7x7 stem"):
            export_detr(DETR(backbone, 2, **small), "hf", tmp_path)
    early = ResNet((1,), 4, bottleneck=True, early_stride=True)
    with pytest.raises(SensoriumError, match="strides in other layers"):
        export_detr(DETR(early, 2, **small), "authors", tmp_path)
