"""A method with every kind of state (batch norm, dropout, teacher, queue, schedule), tiny data, and one way to run it.

As a program, ``python training_cases.py OUT PAUSE [PROCESSES [BUDGET [plain]]]``, it is the run that the tests kill, or start by srun
or torchrun; plain: one whose numbers do not depend on how many processes there are.
"""

import csv
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from sensorium.data.rows import ArrayRows
from sensorium.method import Method
from sensorium.parts.ema import ema_, frozen_copy
from sensorium.parts.gather import gather
from sensorium.recipe.recipe import Recipe, Setting, Settings
from sensorium.training.fit import Options, fit


def make_rows(n=50, size=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    images = rng.integers(0, 120, (n, 3, size, size)) + 60 * labels[:, None, None, None]
    return ArrayRows({"image": images.astype(np.uint8), "label": labels}, "images")


def views(fields, draw):
    image = fields["image"]
    return {"image": image.float() / 128 - 1 + 0.1 * draw.randn(*image.shape[1:]), "label": fields["label"]}


class Tiny(Method):
    dim = 8

    def __init__(self, *, norm=True, dropout=0.2):
        super().__init__()
        norm_layer = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), norm_layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)
        self.teacher = frozen_copy(self.backbone)
        self.register_buffer("queue", torch.zeros(8))
        self.register_buffer("tau", torch.tensor(1.0))
        self.seen = []
        self.calls = []

    def forward(self, batch):
        x = self.backbone(batch["image"])
        with torch.no_grad():
            t = self.teacher(batch["image"])
            self.seen.append(gather(t).float().mean(0))
        supervised = F.cross_entropy(self.head(self.dropout(x)) / self.tau, batch["label"])
        pull = F.mse_loss(x, t - 0.1 * self.queue)
        return {"loss": supervised + 0.1 * pull, "supervised": supervised.detach(), "tau": self.tau}

    def before_step(self, at):
        self.calls.append(("before", at))
        self.tau.fill_(1.0 - 0.5 * at.fraction)

    def before_update(self, at):
        self.calls.append(("update", at))

    def after_step(self, at):
        self.calls.append(("after", at))
        ema_(self.teacher, self.backbone, 0.9)
        self.queue.lerp_(torch.stack(self.seen).mean(0), 0.1)
        self.seen = []

    def features(self, images):
        return self.backbone(images)


class Adversarial(Method):
    """A generator and its discriminator, as VQGAN weighs them: by gradients at the generator's last layer."""

    phases = ("generator", "discriminator")

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(108, 8), nn.Linear(8, 108)
        self.judge = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.Tanh(), nn.Linear(4, 1))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("steps", torch.tensor(0))
        self.calls = []

    def forward(self, batch, phase):
        self.calls.append(phase)
        x = batch["image"].flatten(1)
        made = self.scale * self.last(self.inner(x).tanh())
        if phase == "discriminator":
            real, fake = self.judge(x), self.judge(made.detach())
            return {"loss": F.softplus(-real).mean() + F.softplus(fake).mean(), "real": real.mean().detach()}
        close, fooled = F.mse_loss(made, x), F.softplus(-self.judge(made)).mean()
        a, b = (torch.autograd.grad(y, self.last.weight, retain_graph=True)[0].norm() for y in (close, fooled))
        weight = (0.01 * a / (b + 1e-4)).detach()
        if batch.get("plain"):
            weight = torch.tensor(0.5)
        return {"loss": close + weight * fooled, "close": close.detach()}

    def before_step(self, at):
        self.calls.append("before")

    def before_update(self, at):
        self.calls.append(sorted({n.split(".")[0] for n, p in self.named_parameters() if p.grad is not None}))

    def after_step(self, at):
        self.calls.append("after")
        self.steps += 1


def of_generator(method):
    own = [*method.inner.parameters(), *method.last.parameters(), method.scale]
    return torch.optim.SGD(own, 0.05, momentum=0.9)


def of_discriminator(method):
    return torch.optim.SGD(method.judge.parameters(), 0.02, momentum=0.9)


BOTH = {"generator": of_generator, "discriminator": of_discriminator}


def make_adversarial():
    torch.manual_seed(5)
    return Adversarial()


def plain_views(fields, draw):
    return views(fields, draw) | {"plain": True}


def make_method(**options):
    torch.manual_seed(7)
    return Tiny(**options)


def optimizer(method):
    return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.02)


def sgd(method):  # Adam would blow rounding up wherever a gradient is zero but for it
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.05, momentum=0.9)


def schedule(fraction):
    return 1 - 0.9 * fraction


def run(out, method=None, rows=None, **changes):
    """``fit`` with the settings of these tests, on a fresh method unless one is given."""
    how = {"views": views, "optimizer": optimizer, "schedule": schedule, "batch_size": 12, "average": None}
    how |= {name: changes.pop(name) for name in list(changes) if name in how}
    settings = Settings({name: Setting(value, "given") for name, value in changes.pop("settings", {}).items()})
    asked = {name: changes.pop(name) for name in ("budget", "online", "fresh") if name in changes}
    recipe = Recipe(
        "tiny", method or make_method(), how["views"], how["optimizer"], how["schedule"], how["batch_size"], settings,
        how["average"],
    )  # fmt: skip
    options = Options(**({"precision": "32-true", "device": "cpu", "progress": False} | changes))
    return fit(recipe, rows or make_rows(), out=out, options=options, **({"budget": "60steps"} | asked))


def table(path):
    with Path(path).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def curve(out):
    """Every number of ``metrics.csv`` that does not depend on the clock."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table(Path(out) / "metrics.csv")]


def weights(out):
    return load_file(Path(out) / "model.safetensors")


def same_weights(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


if __name__ == "__main__":
    torch.set_num_threads(1)
    pause = float(sys.argv[2])

    def slow(fields, draw):
        time.sleep(pause)
        return views(fields, draw)

    processes = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    budget = sys.argv[4] if len(sys.argv) > 4 else "60steps"
    plain = {"method": make_method(dropout=0.0), "optimizer": sgd} if sys.argv[5:] == ["plain"] else {}
    run(sys.argv[1], views=slow, checkpoint_every=0.0, devices=processes, budget=budget, **plain)
