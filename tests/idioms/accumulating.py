"""Gradients gathered over micro-batches, clipped and cleared in every way that is right."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tests.idioms.loop import STEPS, Loop, idiom, loss_of


@idiom
def plain_zero_grad_before_backward(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def plain_zero_grad_after_step(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizer


@idiom
def zero_grad_to_zeros_on_the_model(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            model.zero_grad(set_to_none=False)
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def zero_grad_between_backward_and_the_next_forward(loop: Loop) -> object:
    """The loss first, then zero_grad, backward, step: as many write it."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            loss = loss_of(model, x, y)
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def gradients_set_to_none_by_hand(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            for p in model.parameters():
                p.grad = None
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def accumulation_with_division(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    total = 0.0
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches(3 * STEPS)):
            loss = loss_of(model, x, y) / 3
            loss.backward()
            total += float(loss)
            if (i + 1) % 3 == 0:
                loop.note(optimizer, total, 3)
                optimizer.step()
                optimizer.zero_grad()
                total = 0.0
    return model, optimizer


@idiom
def accumulation_without_division(loop: Loop) -> object:
    """Adam does not mind the factor; the loss of the step is the mean."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    losses: list[float] = []
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches(3 * STEPS)):
            loss = loss_of(model, x, y)
            loss.backward()
            losses.append(float(loss))
            if (i + 1) % 3 == 0:
                loop.note(optimizer, sum(losses) / 3, 3)
                optimizer.step()
                optimizer.zero_grad()
                losses = []
    return model, optimizer


@idiom
def accumulation_divided_at_the_gradients(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    losses: list[float] = []
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches(3 * STEPS)):
            loss = loss_of(model, x, y)
            loss.backward()
            losses.append(float(loss))
            if (i + 1) % 3 == 0:
                with torch.no_grad():
                    for p in model.parameters():
                        p.grad /= 3
                loop.note(optimizer, sum(losses) / 3, 3, math.nan)
                optimizer.step()
                optimizer.zero_grad()
                losses = []
    return model, optimizer


@idiom
def accumulation_over_tokens(loop: Loop) -> object:
    """Sums divided by the number of all tokens of the step, as the micro-batches differ in length."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for step, (x, y) in enumerate(loop.batches(STEPS, 24)):
            lengths = [5 + step % 7, 24 - 5 - step % 7]
            total = 0.0
            for part, labels in zip(x.split(lengths), y.split(lengths), strict=True):
                loss = F.cross_entropy(model(part), labels, reduction="sum") / len(y)
                loss.backward()
                total += float(loss)
            loop.note(optimizer, total, 2)
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizer


@idiom
def accumulation_with_the_rest_stepped_at_the_end_of_the_epoch(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for epoch in range(6):
            total, calls = 0.0, 0
            batches = list(loop.batches(18, seed=epoch))
            for i, (x, y) in enumerate(batches):
                in_group = 4 if i < 16 else 2
                loss = loss_of(model, x, y) / in_group
                loss.backward()
                total, calls = total + float(loss), calls + 1
                if (i + 1) % 4 == 0 or i + 1 == len(batches):
                    loop.note(optimizer, total, calls)
                    optimizer.step()
                    optimizer.zero_grad()
                    total, calls = 0.0, 0
    return model, optimizer


@idiom
def accumulation_with_the_rest_divided_as_if_it_were_whole(loop: Loop) -> object:
    """As Accelerate's `accumulate` does: fewer micro-batches at the end of the epoch, and the same divisor."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for epoch in range(6):
            total, calls = 0.0, 0
            batches = list(loop.batches(23, seed=epoch))
            for i, (x, y) in enumerate(batches):
                loss = loss_of(model, x, y) / 4
                loss.backward()
                total, calls = total + float(loss), calls + 1
                if (i + 1) % 4 == 0 or i + 1 == len(batches):
                    loop.note(optimizer, total, calls)
                    optimizer.step()
                    optimizer.zero_grad()
                    total, calls = 0.0, 0
    return model, optimizer


@idiom
def clipping_by_norm(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            norm = clip_grad_norm_(model.parameters(), max_norm=0.5)
            loop.note(optimizer, loss, norm=norm)
            optimizer.step()
    return model, optimizer


@idiom
def clipping_by_value(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            clip_grad_value_(model.parameters(), 0.05)
            loop.note(optimizer, loss, norm=norm)
            optimizer.step()
    return model, optimizer


@idiom
def clipping_by_hand(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            for p in model.parameters():
                p.grad.mul_(torch.clamp(0.5 / (norm + 1e-6), max=1.0))
            loop.note(optimizer, loss, norm=math.nan)
            optimizer.step()
    return model, optimizer


@idiom
def clipping_each_layer_by_itself(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            norms = [clip_grad_norm_(layer.parameters(), 0.3) for layer in (model[0], model[3])]
            loop.note(optimizer, loss, norm=torch.stack(norms).norm())
            optimizer.step()
    return model, optimizer


@idiom
def clipping_with_the_norm_worked_out_before(loop: Loop) -> object:
    """As torchtitan does: the total norm, then the clip with it."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
            nn.utils.clip_grads_with_norm_(model.parameters(), 0.5, norm)
            loop.note(optimizer, loss, norm=norm)
            optimizer.step()
    return model, optimizer


@idiom
def a_batch_with_a_bad_loss_left_out(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            optimizer.zero_grad()
            loss = loss_of(model, x * (math.nan if i % 20 == 7 else 1.0), y)
            if not torch.isfinite(loss):
                continue
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def a_step_left_out_where_the_gradient_is_too_large(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            optimizer.zero_grad()
            loss = loss_of(model, x, y) * (1e4 if i % 20 == 7 else 1.0)
            loss.backward()
            norm = clip_grad_norm_(model.parameters(), 1.0)
            if norm > 100:
                continue
            loop.note(optimizer, loss, norm=norm)
            optimizer.step()
    return model, optimizer
