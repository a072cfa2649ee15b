"""CPC of text against the paper's formula as a loop over rows, places and candidates."""

import pytest
import torch

from sensorium.selfsup.cpc_text.method import TextCPC


@pytest.mark.parametrize(("length", "halvings", "steps"), [(12, 1, 2), (5, 0, 4), (31, 2, 1)])
def test_the_loss_and_its_gradients(length: int, halvings: int, steps: int) -> None:
    torch.manual_seed(0)
    model = TextCPC(9, length, width=6, state=5, depth=2, halvings=halvings, steps=steps)
    tokens = torch.randint(9, (3, length))
    out = model({"tokens": tokens})
    x = torch.stack([torch.stack([model.entry.weight[i] for i in row]) for row in tokens.tolist()])  # type: ignore[index]
    for layer in model.encoder:
        x = layer(x)
    c, S, losses = model.gru(x)[0], x.shape[1], []
    for k, W in enumerate((layer.weight for layer in model.predict), 1):
        terms = []
        for b in range(3):
            for t in range(S - k):
                f = torch.stack([(x[n, s] @ W @ c[b, t]).exp() for n in range(3) for s in range(S)])
                terms.append(-(f[b * S + t + k] / f.sum()).log())
        losses.append(torch.stack(terms).mean())
    want = torch.stack(losses).mean()
    assert (out["loss"] - want).abs() <= 1e-5
    parameters = list(model.parameters())
    ours, theirs = torch.autograd.grad(out["loss"], parameters), torch.autograd.grad(want, parameters)
    assert max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)) <= 1e-4
