"""The loops of PyTorch's page "Automatic Mixed Precision examples" (https://docs.pytorch.org/docs/stable/notes/amp_examples.html).

On the CPU, so with autocast to bfloat16; the order of the calls is the page's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from tests.idioms.loop import STEPS, Loop, idiom, loss_of


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def norm_of(optimizer: torch.optim.Optimizer) -> float:
    return float(torch.stack([p.grad.norm() for group in optimizer.param_groups for p in group["params"]]).norm())


@idiom
def typical_mixed_precision_training(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**12, growth_interval=25)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            with autocast():
                loss = loss_of(model, x, y)
            scaler.scale(loss).backward()
            loop.note(optimizer, loss, scale=scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
    return model, optimizer, scaler.state_dict()


@idiom
def the_first_steps_skipped_until_the_scale_fits(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            with autocast():
                loss = F.cross_entropy(model(x).float(), y, reduction="sum")
            scaler.scale(loss).backward()
            finite = all(bool(p.grad.isfinite().all()) for p in model.parameters())
            loop.note(optimizer, loss, scale=scaler.get_scale(), skipped=not finite)
            scaler.step(optimizer)
            scaler.update()
    return model, optimizer, scaler.state_dict()


@idiom
def mixed_precision_gradient_clipping(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**12, growth_interval=25)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            with autocast():
                loss = loss_of(model, x, y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = clip_grad_norm_(model.parameters(), 0.5)
            loop.note(optimizer, loss, norm=norm)
            scaler.step(optimizer)
            scaler.update()
    return model, optimizer, scaler.state_dict()


@idiom
def mixed_precision_gradient_accumulation(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**12, growth_interval=25)
    total = 0.0
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches(4 * STEPS)):
            with autocast():
                loss = loss_of(model, x, y)
                loss = loss / 4
            scaler.scale(loss).backward()
            total += float(loss)
            if (i + 1) % 4 == 0:
                scaler.unscale_(optimizer)
                norm = clip_grad_norm_(model.parameters(), 0.5)
                loop.note(optimizer, total, 4, norm)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                total = 0.0
    return model, optimizer, scaler.state_dict()


@idiom
def gradient_penalty(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            penalty = sum(grad.pow(2).sum() for grad in grads) ** 0.5
            loss = loss + 0.1 * penalty
            loss.backward()
            norm = clip_grad_norm_(model.parameters(), 1.0)
            loop.note(optimizer, loss, norm=norm)
            optimizer.step()
    return model, optimizer


@idiom
def mixed_precision_gradient_penalty(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**12, growth_interval=25)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            with autocast():
                loss = loss_of(model, x, y)
            scaled = torch.autograd.grad(scaler.scale(loss), list(model.parameters()), create_graph=True)
            inverse = 1.0 / scaler.get_scale()
            grads = [p * inverse for p in scaled]
            with autocast():
                penalty = sum(grad.pow(2).sum() for grad in grads).sqrt()
                loss = loss + 0.1 * penalty
            scaler.scale(loss).backward()
            loop.note(optimizer, loss, scale=scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
    return model, optimizer, scaler.state_dict()


@idiom
def several_models_losses_and_optimizers_with_one_scaler(loop: Loop) -> object:
    models = nn.ModuleList([loop.model(), loop.model()])
    first, second = (loop.adamw(m.parameters()) for m in models)
    scaler = GradScaler("cpu", init_scale=2.0**12, growth_interval=25)
    with loop.watch(models, [first, second]):
        for x, y in loop.batches():
            first.zero_grad()
            second.zero_grad()
            with autocast():
                a, b = (loss_of(m, x, y) for m in models)
                one, two = 2 * a + 3 * b, 3 * a - 0.5 * b
            scaler.scale(one).backward(retain_graph=True)
            scaler.scale(two).backward()
            scaler.unscale_(first)
            loop.note(first, one + two, 2, norm_of(first))
            loop.note(second, one + two, 2, scale=scaler.get_scale())
            scaler.step(first)
            scaler.step(second)
            scaler.update()
    return models, first, second, scaler.state_dict()


@idiom
def bfloat16_autocast_without_a_scaler(loop: Loop) -> object:
    model = loop.model(dropout=0.1)
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            with autocast():
                loss = loss_of(model, x, y)
            loss.backward()
            norm = clip_grad_norm_(model.parameters(), 0.5)
            loop.note(optimizer, loss, norm=norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return model, optimizer


@idiom
def a_disabled_scaler_and_autocast(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    scaler = GradScaler("cpu", enabled=False)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            with torch.autocast("cpu", torch.bfloat16, enabled=False):
                loss = loss_of(model, x, y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = clip_grad_norm_(model.parameters(), 0.5)
            loop.note(optimizer, loss, norm=norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return model, optimizer


@idiom
def a_loss_scale_by_hand(loop: Loop) -> object:
    """A static scale, taken off the gradients before the step."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            (loss * 1024).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.grad.div_(1024)
            loop.note(optimizer, loss * 1024, norm=float("nan"))
            optimizer.step()
    return model, optimizer
