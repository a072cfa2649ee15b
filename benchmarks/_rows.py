"""The table behind the docs' numbers: what is measured, by which commands, and which of what they say is the figure.

A command is what a person would type; ``{bccd}`` stands for that data set in the folder $SENSORIUM_DATA (docs/benchmarks.md says
what they are). Commands of one row run in a folder of the row's own; rows with the same commands share one run of them.
"""

from __future__ import annotations

from typing import NamedTuple


class Score(NamedTuple):
    """A score of ``RUN/evaluation.json`` with its standard error, or the value of a simple model ``beside`` it."""

    run: str
    name: str
    beside: str | None = None


class Varied(NamedTuple):
    """A score of every value that ``sensorium ablate`` varied, the best one first."""

    name: str


class Ratio(NamedTuple):
    """Ratio and quartiles in a printed table of pairs; ``row`` is what its line begins with."""

    row: str


class Cell(NamedTuple):
    """What stands in a printed table: in the last line that begins with ``row``, under ``column``."""

    row: str
    column: str


class Printed(NamedTuple):
    """The first group of a regular expression in what was printed."""

    pattern: str


class Table(NamedTuple):
    """A whole printed table, by what its first line begins with."""

    head: str


Pick = Score | Varied | Ratio | Cell | Printed | Table


class Row(NamedTuple):
    """``figure`` has a pair of braces for each pick; ``minutes`` is what the commands take on two cores, roughly; ``needs`` are
    data sets that the commands read without naming them; a row with a ``title`` is a table of its own."""

    id: str
    family: str
    what: str
    commands: tuple[str, ...]
    figure: str
    picks: tuple[Pick, ...]
    minutes: float
    needs: tuple[str, ...] = ()
    title: str = ""


VIT = ("python -m benchmarks.vit_mae",)
LANGUAGE = ("sensorium compare causal_lm flash recurrent_lm --data {text/warpeace.txt} --budget 4m",)
VQGAN = (
    "sensorium train vqgan --data {fashion-mnist} --budget 1500steps --judge",
    "sensorium train token_prior --tokens sensorium-runs/vqgan --data {fashion-mnist} --budget 1500steps --judge",
)
EMOJI = (
    "sensorium train vqgan --data {emoji} --image-size 32 --budget 1500steps --judge",
    "sensorium train token_prior --tokens sensorium-runs/vqgan --data {emoji} --image-size 32 --budget 3000steps --judge",
)
DETR = (
    "sensorium train fcos --data scenes:5000 --image-size 64 --budget 4m --out fcos --judge",
    "sensorium train detr --data scenes:5000 --image-size 64 --budget 15m --backbone fcos --batch-size 16 --crop 0 --jitter 0 --judge",
)
OADTR = ("python -m benchmarks.oadtr --lengths 64,128,256,512,1024",)
FLASH = ("python -m benchmarks.flash --rounds 3",)
EXPERTS = ("python -m benchmarks.parts --only experts --rounds 5 --dtypes float32",)
MAE_PAIRS = ("MAE micro 32/4 x64, transformers", "MAE small 96/8 x8, transformers")
COLLAPSE = (
    "python -m benchmarks.collapse",
    "python -m benchmarks.predictors sensorium-collapse --plot predictors.svg",
)
THEIRS = "ours / theirs"


def vit(shape: str) -> tuple[Pick, ...]:
    return Ratio(f"{shape}, timm"), Ratio(f"{shape}, transformers"), Cell(f"{shape}, timm", THEIRS), Cell(f"{shape}, transformers", THEIRS)  # fmt: skip


def system(id: str, family: str, what: str, name: str, *, more: str = "", picks: tuple[Pick, ...] = ()) -> Row:
    """Forward pass and training step beside the peer."""
    figure, own = (
        f"forward {{}}, training step {{}}{more}",
        (Ratio(f"{name}: forward"), Ratio(f"{name}: training step")),
    )
    return Row(id, family, what, (f"python -m benchmarks.systems --only {id} --rounds 25",), figure, (*own, *picks), 3)


def parts(varied: str) -> str:
    return f"sensorium ablate causal_lm,width=64 --vary {varied} --data {{text/warpeace.txt}} --budget 45s --seeds 3 --threads 1"


def ablation(id: str, what: str, command: str, minutes: float) -> Row:
    return Row(id, "ablations", f"{what}, bits per byte", (command,), "{}", (Varied("bits per byte"),), minutes)


ROWS = (
    Row("augment", "selfsup", "SimCLR's two views against lightly's transform, one core", ("python -m benchmarks.augment",),
        "32 px {}, 224 px {}", (Ratio("SimCLR two views, 32 px"), Ratio("SimCLR two views, 224 px")), 1.5),
    Row("mae-step", "selfsup", "MAE training step, micro at 32 px / small at 96 px, against transformers; peak memory ours / theirs", VIT,
        "{} / {}; memory {}x / {}x", (*map(Ratio, MAE_PAIRS), *(Cell(name, THEIRS) for name in MAE_PAIRS)), 5),
    Row("vit-micro-step", "selfsup", "ViT training step, micro, 32 px, batch 64, against timm / transformers; peak memory ours / theirs",
        VIT, "{} / {}; memory {}x / {}x", vit("ViT micro 32/4 x64"), 5),
    Row("vit-small-step", "selfsup", "ViT training step, small, 96 px, batch 8, against timm / transformers; peak memory ours / theirs",
        VIT, "{} / {}; memory {}x / {}x", vit("ViT small 96/8 x8"), 5),
    Row("mae-masking", "selfsup", "MAE training step with 75 % of the patches masked against the same network that encodes all, micro at 32 px / small at 224 px",
        ("python -m benchmarks.masking",), "{} / {}", tuple(Ratio(f"MAE {shape}, 75 % masked") for shape in ("micro 32/4 x32", "small 224/16 x4")), 2),
    Row("patch-dropout", "selfsup", "SimCLR / DINO training step with half of a ViT's patches left out against one with none left out, micro at 32 px, batch 32",
        ("python -m benchmarks.masking",), "{} / {}", tuple(Ratio(f"{system} micro 32/4 x32, 50 % dropped") for system in ("SimCLR", "DINO")), 2),
    Row("simclr-training", "selfsup", "whole SimCLR training against lightly's loop, as shipped (views at 24 px) / same views and batch",
        ("python -m benchmarks.simclr --rounds 2",), "{} / {}; waits for data {} / {} of the time",
        (Ratio("SimCLR training an image, as shipped"), Ratio("SimCLR training an image, like theirs"),
         Printed(r"as shipped;.* waits ([\d.]+%)"), Printed(r"like theirs;.* waits ([\d.]+%)")), 6, ("cifar10/train.npz",)),
    Row("knn", "selfsup", "kNN of 4,000 among 20,000 features of 512; of 50,000 among 1,281,167, extrapolated; memory beyond a quarter of these",
        ("python -m benchmarks.knn",), "{} s; {} min; {} MiB (scikit-learn: {} MiB)",
        (Printed(r'"20,000 x 4,000: seconds": ([\d.]+)'), Printed(r'minutes, extrapolated": ([\d.]+)'),
         Printed(r'"ours, 1/4 of 1,281,167 x 4,000": (\d+)'), Printed(r'"theirs, 1/4 of 1,281,167 x 4,000": (\d+)')), 6),
    Row("few-labels", "selfsup", "with 1 % of CIFAR-10's labels: the best of the four methods below, or a student of it, against supervised learning from scratch on these 200 images for as "
        "long as training and judging took, 4,000 test images",
        ("python -m benchmarks.learning", "python -m benchmarks.few_labels --student 150s"), "{}",
        (Printed(r"with 1 % of the labels, at equal total time: (.*)"),), 100, ("cifar10/train.npz", "cifar10/test.npz")),
    Row("learning", "selfsup", "Ten minutes a method on 20,000 CIFAR-10 images, two cores, seed 0, 4,000 test images; top-1 in %; "
        "fine-tuning is bounded to 30 seconds a subset of labels. kNN and linear probes undersell MAE, as its paper says.",
        ("python -m benchmarks.learning",), "{}", (Table(" | images seen"),), 70, ("cifar10/train.npz", "cifar10/test.npz"),
        "Four methods on CIFAR-10"),
    Row("learning-all", "selfsup", "Ten minutes a training, every system that learns pictures, on 20,000 CIFAR-10 images, two cores; mean and standard deviation over "
        "seeds 0 to 2, 4,000 test images; top-1 in %.",
        ("python -m benchmarks.learning --all --seeds 3",), "{}", (Table(" | images seen"),), 1100, ("cifar10/train.npz", "cifar10/test.npz"),
        "Every system on CIFAR-10"),
    Row("learning-fashion", "selfsup", "The same on 60,000 Fashion-MNIST images, 10,000 test images.",
        ("python -m benchmarks.learning --all --seeds 3 --on fashion-mnist",), "{}", (Table(" | images seen"),), 1100, ("fashion-mnist",),
        "Every system on Fashion-MNIST"),
    Row("methods", "selfsup", "Images per second of whole training as shipped, and milliseconds of a training step alone, with the same network on both sides; "
        "the goals are 2x and 1x.",
        ("python -m benchmarks.methods --rounds 3",), "{}", (Table("method | network"),), 14, ("cifar10/train.npz",),
        "Methods against lightly's examples of them"),
    Row("collapse", "selfsup", "A minute a training, 64 images a step, every system that learns pictures without labels, on 20,000 CIFAR-10 images; seed 0, 4,000 "
        "test images; linear probes in %.",
        COLLAPSE, "{}", (Table(" | images seen"),), 45, ("cifar10/train.npz", "cifar10/test.npz"), "Small batches without labels"),
    Row("predictors", "selfsup", "How the scores that need no labels order these runs, against the linear probe on all labels.",
        COLLAPSE, "{}", (Table("predictor | networks"),), 45, ("cifar10/train.npz", "cifar10/test.npz"), "RankMe, LiDAR and alpha-ReQ as predictors"),
    Row("distill", "selfsup", "Five minutes a student, the same network, on 20,000 CIFAR-10 images without labels; the teacher is a supervised run of ten "
        "minutes. Seed 0, 4,000 test images; top-1 in %, of a tenth of the labels the mean of three draws.",
        ("python -m benchmarks.distill",), "{}", (Table(" | images seen"),), 30, ("cifar10/train.npz", "cifar10/test.npz"),
        "A teacher's features against SimCLR"),
    Row("causal_lm", "language", "causal_lm on *War and Peace*, twenty minutes, bits per byte",
        ("sensorium train causal_lm --data {text/warpeace.txt} --budget 20m --judge",), "{} (Kneser-Ney of order five: {}, unigram: {})",
        (Score("sensorium-runs/causal_lm", "bits per byte"), Score("sensorium-runs/causal_lm", "bits per byte", "Kneser-Ney, 5"),
         Score("sensorium-runs/causal_lm", "bits per byte", "unigram")), 22),
    Row("causal_lm-6m", "language", "the same in six minutes", ("sensorium train causal_lm --data {text/warpeace.txt} --budget 6m --judge",),
        "{}", (Score("sensorium-runs/causal_lm", "bits per byte"),), 8),
    Row("language-4m", "language", "three language models on *War and Peace*, four minutes each, bits per byte", LANGUAGE,
        "recurrent_lm {}, causal_lm {}, flash {}",
        tuple(Score(f"sensorium-compare/{name}", "bits per byte") for name in ("recurrent_lm", "causal_lm", "flash")), 16),
    Row("flash-quality", "language", "FLASH / FLASH-Quad to the quality of a tuned Transformer after one minute, rows of 1,024 bytes of "
        "*War and Peace*, one seed",
        ("python -m benchmarks.flash --quality {text/warpeace.txt} --seconds 60 --lengths 1024",), "{}x / {}x, to {} bits per byte",
        (Cell("1,024 | FLASH |", "speed-up"), Cell("1,024 | FLASH-Quad |", "speed-up"), Cell("1,024 | Transformer |", "final bits per byte")), 6),
    Row("flash-step", "language", "FLASH training step at 1,024 / 4,096 tokens a row against a Transformer with fused attention; scores laid out", FLASH,
        "{} / {}; {} / {}", tuple(Ratio(f"FLASH beside the Transformer{how}, N = {n}") for how in ("", ", laid out") for n in ("1,024", "4,096")), 4),
    Row("flash-quad-step", "language", "FLASH-Quad, the same", FLASH, "{} / {}; {} / {}",
        tuple(Ratio(f"FLASH-Quad beside the Transformer{how}, N = {n}") for how in ("", ", laid out") for n in ("1,024", "4,096")), 4),
    Row("recurrence", "language", "LSTM against a Transformer of as many parameters: training step at 128 / 4,096 tokens; a written token after 4,096, ms",
        ("python -m benchmarks.recurrence --rounds 3",), "{} / {}; {} (Transformer: {})",
        (Ratio("LSTM beside Transformer, N = 128"), Ratio("LSTM beside Transformer, N = 4,096"),
         Cell("4,096 |", "ms a written token, LSTM"), Cell("4,096 |", "ms a written token, Transformer")), 5),
    system("llama", "language", "Llama against transformers; 64 tokens with the cache", "Llama 4 x 256, 8 rows of 128",
           more=", writing {}", picks=(Ratio("Llama 4 x 256, 8 rows of 128: 64 tokens"),)),
    system("mixtral", "language", "Mixtral against transformers; 64 tokens with the cache", "Mixtral 4 x 256, 4 experts",
           more=", writing {}", picks=(Ratio("Mixtral 4 x 256, 4 experts: 64 tokens"),)),
    Row("clip-emoji", "multimodal", "CLIP on 2,844 emoji with their names, twenty minutes, R@1 over both ways on other families",
        ("sensorium train clip --data {emoji} --budget 20m --judge",), "{} (chance: {})",
        (Score("sensorium-runs/clip", "R@1"), Score("sensorium-runs/clip", "R@1", "chance")), 22),
    Row("clip-emoji-6m", "multimodal", "the same in six minutes", ("sensorium train clip --data {emoji} --budget 6m --judge",),
        "{}", (Score("sensorium-runs/clip", "R@1"),), 8),
    Row("clip-emoji-vit", "multimodal", "the same in six minutes with the image tower clip-micro",
        ("sensorium train clip --data {emoji} --budget 6m --backbone clip-micro --judge",), "{}", (Score("sensorium-runs/clip", "R@1"),), 8),
    Row("clip-loss", "multimodal", "memory of CLIP's loss, 512 to 4,096 pairs", ("python -m benchmarks.clip_loss",),
        "in chunks {} ({} MiB), whole {} ({} MiB)", (Printed(r"in chunks: memory grows as (N\^[\d.]+)"), Cell("4096 |", "in chunks, MiB"),
        Printed(r"whole: memory grows as (N\^[\d.]+)"), Cell("4096 |", "whole, MiB")), 0.5),
    system("clip", "multimodal", "CLIP against transformers", "CLIP 4 x 192, 64 px, 32 pairs"),
    Row("flow", "generative", "rectified flow on Fashion-MNIST, fifteen minutes, Fréchet distance in a classifier's features",
        ("sensorium train rectified_flow --data {fashion-mnist} --budget 15m --judge",),
        "{} (a Gaussian in 64 components: {}, held-out images: {})", (Score("sensorium-runs/rectified_flow", "Fréchet distance"),
        Score("sensorium-runs/rectified_flow", "Fréchet distance", "Gaussian in PCA"),
        Score("sensorium-runs/rectified_flow", "Fréchet distance", "held-out pictures")), 22),
    Row("made", "generative", "MADE on Fashion-MNIST in black and white, three minutes, bits per pixel",
        ("sensorium train made --data {fashion-mnist} --budget 3m --judge",), "{} (independent pixels: {})",
        (Score("sensorium-runs/made", "bits per pixel"), Score("sensorium-runs/made", "bits per pixel", "independent pixels")), 8),
    Row("vqgan", "generative", "VQGAN on Fashion-MNIST, 1,500 steps of 32", VQGAN, "PSNR {} dB, SSIM {}, rFID {}",
        tuple(Score("sensorium-runs/vqgan", name) for name in ("PSNR", "SSIM", "rFID")), 14),
    Row("token_prior", "generative", "token_prior on the codes of that run, 1,500 steps of 32, Fréchet distance in a classifier's features",
        VQGAN, "{} (held-out images: {})", (Score("sensorium-runs/token_prior", "Fréchet distance"),
        Score("sensorium-runs/token_prior", "Fréchet distance", "held-out pictures")), 14),
    Row("vqgan-emoji", "generative", "VQGAN on emoji at 32 px, 1,500 steps of 32", EMOJI, "PSNR {} dB, SSIM {}, rFID {}",
        tuple(Score("sensorium-runs/vqgan", name) for name in ("PSNR", "SSIM", "rFID")), 12),
    Row("token_prior-emoji", "generative", "token_prior on the codes of that run, 3,000 steps of 32, Fréchet distance in a ResNet of random weights",
        EMOJI, "{} (held-out images: {})", (Score("sensorium-runs/token_prior", "Fréchet distance"),
        Score("sensorium-runs/token_prior", "Fréchet distance", "held-out pictures")), 12),
    Row("drawing", "generative", "Fifteen minutes a system on 60,000 Fashion-MNIST images, two cores, seed 0, beside 10,000 test images; samples in the features of "
        "one ResNet of these images.", ("python -m benchmarks.drawing",), "{}", (Table("|  | pictures seen"),), 330, ("fashion-mnist",),
        "Every generator on Fashion-MNIST"),
    Row("prompts", "generative", "latent diffusion of emoji, fifteen minutes: held-out names, of which CLIP finds the own among the first 10",
        ("python -m benchmarks.text_to_picture",), "{}", (Printed(r"held-out names among the first 10: (.*)"),), 28, ("emoji",)),
    Row("sampling", "generative", "NADE's / MADE's pictures by partial sums against a pass for each pixel", ("python -m benchmarks.sampling",),
        "{} / {}", (Ratio("nade, 16 pictures"), Ratio("made, 16 pictures")), 2),
    Row("text-unet", "generative", "U-Net of Stable Diffusion 1 at reduced width against diffusers, training step; peak memory ours / theirs",
        ("python -m benchmarks.text_unet",), "{}; memory {}x", (Ratio("U-Net of Stable Diffusion 1"), Cell("U-Net of Stable Diffusion 1", THEIRS)), 3),
    Row("ddim", "generative", "50 steps of DDIM against diffusers' pipelines: 8 pictures of a U-Net, 32 px / a prompt at Stable Diffusion 1's shape and reduced width",
        ("python -m benchmarks.ddim",), "{} / {}", (Ratio("8 pictures, U-Net"), Ratio("a prompt, Stable Diffusion")), 5),
    system("unet", "generative", "U-Net against diffusers", "U-Net 32-64-128, 32 px, batch 8"),
    system("dit", "generative", "DiT against diffusers", "DiT 6 x 192, 32 px, batch 8"),
    Row("fcos-cells", "detection", "FCOS on blood cells, five minutes from random weights", ("sensorium train fcos --data {bccd} --budget 5m --judge",),
        "AP {}, AP50 {} (the same boxes everywhere: AP50 {})", (Score("sensorium-runs/fcos", "AP"), Score("sensorium-runs/fcos", "AP50"),
        Score("sensorium-runs/fcos", "AP50", "same boxes everywhere")), 7),
    Row("detr-scenes", "detection", "DETR on 5,000 generated scenes, fifteen minutes on a backbone that FCOS trained for four", DETR,
        "AP {}, AP50 {}", (Score("sensorium-runs/detr", "AP"), Score("sensorium-runs/detr", "AP50")), 24),
    Row("fcos-scenes", "detection", "that FCOS, after its four minutes", DETR, "AP {}, AP50 {}", (Score("fcos", "AP"), Score("fcos", "AP50")), 24),
    system("detr", "detection", "DETR against transformers", "DETR 3 + 3 x 128, 160 px, batch 4"),
    system("fcos", "detection", "FCOS against torchvision", "FCOS ResNet-50, 160 px, batch 2"),
    Row("coco", "detection", "COCO AP against pycocotools", ("python -m benchmarks.systems --only coco",), "{}", (Ratio("COCO AP"),), 1),
    Row("oadtr-har", "streaming", "OadTR on phone signals of twelve activities, three minutes, per-frame mAP",
        ("sensorium train oadtr --data {har} --budget 3m --judge",), "{} (logistic regression on the window: {}, most frequent class: {})",
        (Score("sensorium-runs/oadtr", "per-frame mAP"), Score("sensorium-runs/oadtr", "per-frame mAP", "logistic regression"),
         Score("sensorium-runs/oadtr", "per-frame mAP", "most frequent class")), 6),
    Row("oadtr-step", "streaming", "a step of causal OadTR against the whole window, 64 / 256 / 1,024 frames", OADTR, "{} / {} / {}",
        tuple(Ratio(f"causal T={n}, window") for n in (64, 256, 1024)), 4),
    Row("oadtr-reach", "streaming", "the same against all frames that the answer rests on", OADTR, "{} / {} / {}",
        tuple(Ratio(f"causal T={n}, reach") for n in (64, 256, 1024)), 4),
    Row("tiled-memory", "parts", "memory of attention in tiles to 16,384 tokens, of naive attention to 4,096",
        ("python -m benchmarks.parts --only memory",), "{} ({} MiB), {} ({} MiB)", (Printed(r"tiled: memory grows as (N\^[\d.]+)"),
        Cell("16,384 |", "tiled, MiB"), Printed(r"naive: memory grows as (N\^[\d.]+)"), Cell("4,096 |", "naive, MiB")), 1),
    Row("fused-call", "parts", "`fused` against a call of torch's own, 64 / 512 / 2,048 tokens", ("python -m benchmarks.parts --only call --rounds 5",),
        "{} / {} / {}", tuple(Ratio(f"fused, N = {n}") for n in (64, 512, 2048)), 0.5),
    Row("products", "parts", "attention in bfloat16 on a CPU, forward and backward: three products against torch's kernel, 17 / 65 / 197 / 512 tokens",
        ("python -m benchmarks.parts --only products --rounds 5",), "{} / {} / {} / {}",
        tuple(Ratio(f"products, N = {n}") for n in (17, 65, 197, 512)), 0.5),
    Row("linear-step", "parts", "training step of linear attention against softmax, 1,024 / 8,192 tokens; its growth to 32,768",
        ("python -m benchmarks.parts --only linear --rounds 5",), "{} / {}; {}", (Ratio("linear beside softmax, N = 1,024"),
        Ratio("linear beside softmax, N = 8,192"), Printed(r"grows as (N\^[\d.]+) from 1k")), 2),
    Row("recurrent-token", "parts", "a token by the recurrence of linear attention after 65,536, ms",
        ("python -m benchmarks.parts --only decoding --rounds 5",), "{} (softmax with a cache: {})",
        (Cell("65,536 |", "recurrence, ms"), Cell("65,536 |", "softmax with a cache, ms")), 1),
    Row("experts-8", "parts", "step of 8 experts, 2 active, against the fastest of transformers': loop / grouped / batched", EXPERTS,
        "{} / {} / {}", tuple(Ratio(f"8 experts, 2 active, float32: {way}") for way in ("loop", "grouped", "batched")), 2),
    Row("experts-64", "parts", "step of 64 experts, 6 active, against the same", EXPERTS,
        "{} / {} / {}", tuple(Ratio(f"64 experts, 6 active, float32: {way}") for way in ("loop", "grouped", "batched")), 2),
    Row("packed", "parts", "images packed in one row against a padded batch, step of a ViT: 8 drawn / 32 drawn / 14 real images",
        ("python -m benchmarks.packed --rounds 4",), "{} / {} / {}",
        (Ratio("drawn, 8 pictures"), Ratio("drawn, 32 pictures"), Ratio("real, ")), 5, ("photos", "mtcnn/images")),
    Row("estimators", "parts", "variance of estimated gradients: REINFORCE / leave-one-out / REBAR at temperature 1 / RELAX",
        ("python -m benchmarks.estimators",), "{} / {} / {} / {}", (Cell("reinforce |  | 4 |", "variance"),
        Cell("reinforce, leave-one-out |  | 4 |", "variance"), Cell("rebar | 1 |", "variance"), Cell("relax, control fitted |", "variance")), 2),
    ablation("positions", "rope, sinusoidal, alibi, t5, no positions", parts("positions=rope,sinusoidal,alibi,t5,none"), 16),
    ablation("attention", "softmax, linear, performer, gau, flash", parts("attention=softmax,linear,performer,gau,flash"), 16),
    ablation("ffn", "feed-forward layers", parts("ffn=swiglu,geglu,gelu,relu2"), 13),
    ablation("init", "initial weights", parts("init=normal,lecun,xavier,orthogonal,ntk"), 16),
    ablation("placement", "where norms stand, eight layers", "sensorium ablate causal_lm,width=64,depth=8 "
             "--vary placement=pre,post,deepnorm,rezero,fixup --data {text/warpeace.txt} --budget 60s --seeds 3 --jobs 2", 12),
    Row("busy", "machine", "Steps a second of a small MAE on two cores, and the share of its quiet rate with torch's own threads; the busy program "
        "is a shell's endless loop; medians of five rounds (lowest to highest).", ("python -m benchmarks.busy",), "{}",
        (Table("threads | case"),), 9, (), "Beside other programs"),
)  # fmt: skip
