"""Models and optimizers that have copies: averages, teachers, targets, snapshots."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader

from tests.idioms.loop import Loop, idiom, loss_of


@idiom
def ema_by_averaged_model(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
            average.update_parameters(model)
    return model, optimizer, average


@idiom
def ema_by_hand(loop: Loop) -> object:
    """The average is swapped in for validation and out again."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    average = copy.deepcopy(model)
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
            with torch.no_grad():
                for a, p in zip(average.parameters(), model.parameters(), strict=True):
                    a.lerp_(p, 0.01)
            if i % 20 == 19:
                own = copy.deepcopy(model.state_dict())
                model.load_state_dict(average.state_dict())
                with torch.no_grad():
                    loss_of(model, x, y)
                model.load_state_dict(own)
    return model, optimizer, average


@idiom
def stochastic_weight_averaging(loop: Loop) -> object:
    """As in the documentation of torch.optim.swa_utils."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    average = AveragedModel(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=45)
    swa = SWALR(optimizer, swa_lr=1e-3, anneal_epochs=5)
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
            if i >= 40:
                average.update_parameters(model)
                swa.step()
            else:
                scheduler.step()
        update_bn(DataLoader([x for x, _ in loop.batches(2)], batch_size=None), average)
    return model, optimizer, average


@idiom
def distillation_from_a_frozen_teacher(loop: Loop) -> object:
    model, teacher = loop.model(), loop.model().requires_grad_(False)
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            soft = F.kl_div(model(x).log_softmax(1), teacher(x).log_softmax(1), log_target=True, reduction="batchmean")
            loss = 0.5 * soft + 0.5 * loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def a_target_network_that_follows(loop: Loop) -> object:
    """As in deep Q-learning."""
    model = loop.model()
    target = copy.deepcopy(model)
    optimizer = loop.adamw(model.parameters(), lr=1e-3)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            with torch.no_grad():
                aim = (torch.rand(len(x)) + 0.9 * target(x).max(1).values).unsqueeze(1)
            loss = F.smooth_l1_loss(model(x).gather(1, y.unsqueeze(1)), aim)
            optimizer.zero_grad()
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
            target.load_state_dict({k: v.lerp(model.state_dict()[k], 0.05) for k, v in target.state_dict().items()})
    return model, optimizer, target


@idiom
def a_deep_copy_trained_beside(loop: Loop) -> object:
    """A copy of model and optimizer is trained in the same loop, and is none of ours."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
            if i % 10 == 5:
                twin, twin_optimizer = copy.deepcopy((model, optimizer))
                for _ in range(3):
                    twin_optimizer.zero_grad()
                    loss_of(twin, x, y).backward()
                    torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
                    twin_optimizer.step()
    return model, optimizer, twin


@idiom
def checkpoints_saved_in_between(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    saved = []
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
            if i % 20 == 10:
                saved.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
    return model, optimizer, [m for m, _ in saved]
