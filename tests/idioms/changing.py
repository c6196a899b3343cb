"""What is trained changes in the middle: frozen and unfrozen, groups added, checkpoints loaded, optimizers made anew."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.idioms.loop import STEPS, Loop, idiom, loss_of


@idiom
def a_frozen_backbone(loop: Loop) -> object:
    model = loop.model()
    model[0].requires_grad_(False)
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
def frozen_unfrozen_and_frozen_again(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            model[0].requires_grad_(i // 20 == 1)
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def a_group_added_when_unfreezing(loop: Loop) -> object:
    model = loop.model()
    model[0].requires_grad_(False)
    optimizer = loop.adamw(model[3].parameters())
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            if i == 20:
                model[0].requires_grad_(True)
                optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 3e-4})
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def a_checkpoint_of_the_best_weights_loaded(loop: Loop) -> object:
    """The run goes back to step 20, with its optimizer and schedule, and on from there."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 10)
    kept = [part.state_dict() for part in (model, optimizer, scheduler)]
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            if i == 20:
                kept = copy.deepcopy([part.state_dict() for part in (model, optimizer, scheduler)])
            if i == 40:
                for part, state in zip((model, optimizer, scheduler), kept, strict=True):
                    part.load_state_dict(copy.deepcopy(state))
                del loop.truth[0][20:]  # where steps overlap the later ones win
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
            scheduler.step()
    return model, optimizer


@idiom
def a_run_resumed_with_optimizer_and_schedule(loop: Loop) -> object:
    saved: list[dict[str, object]] = []
    batches = list(loop.batches())
    for half in (batches[:30], batches[30:]):
        torch.manual_seed(1)
        model = loop.model()
        optimizer = loop.adamw(model.parameters())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for part, state in zip((model, optimizer, scheduler), saved, strict=False):
            part.load_state_dict(state)
        with loop.watch(model, optimizer):
            for x, y in half:
                optimizer.zero_grad()
                loss = loss_of(model, x, y)
                loss.backward()
                loop.note(optimizer, loss)
                optimizer.step()
                scheduler.step()
        saved = copy.deepcopy([part.state_dict() for part in (model, optimizer, scheduler)])
    return saved


@idiom
def tied_weights(loop: Loop) -> object:
    embed, hidden, head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
    head.weight = embed.weight
    model = nn.Sequential(embed, hidden, nn.Tanh(), head)
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for _ in range(STEPS):
            words = torch.randint(9, (16,))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(words), (words + 1) % 9)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def complex_weights(loop: Loop) -> object:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64) * 0.4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.fft.fft(x) @ self.weight).abs()

    model = Filter()
    optimizer = loop.adamw(model.parameters(), fused=False)  # torch has no fused step of complex weights
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def a_sparse_embedding_with_an_optimizer_of_its_own(loop: Loop) -> object:
    model = nn.ModuleDict({"embed": nn.Embedding(9, 8, sparse=True), "head": nn.Linear(8, 9)})
    sparse = torch.optim.SparseAdam(model["embed"].parameters(), lr=3e-3)
    dense = loop.adamw(model["head"].parameters())
    with loop.watch(model, [dense, sparse]):
        for _ in range(STEPS):
            words = torch.randint(9, (16,))
            loss = F.cross_entropy(model["head"](model["embed"](words)), (words + 1) % 9)
            dense.zero_grad(), sparse.zero_grad()
            loss.backward()
            loop.note(dense, loss)
            dense.step()
            loop.note(sparse, loss, norm=math.nan)
            loop.truth[1][-1].used = math.nan  # a sparse gradient is not measured
            sparse.step()
    return model


@idiom
def activation_checkpointing(loop: Loop) -> object:
    model = loop.model(dropout=0.1)
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            optimizer.zero_grad()
            out = checkpoint(model, x.requires_grad_(), use_reentrant=i % 2 == 0)
            loss = F.cross_entropy(out, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def validation_in_between(loop: Loop) -> object:
    model = loop.model(dropout=0.1)
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer) as watch:
        for i, (x, y) in enumerate(loop.batches()):
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
            if i % 10 == 9:
                model.eval()
                with torch.no_grad():
                    found = sum(float(loss_of(model, a, b)) for a, b in loop.batches(3, seed=2))
                model.train()
                if watch is not None:
                    watch.log(val_loss=found / 3)
    return model, optimizer


@idiom
def groups_with_and_without_decay(loop: Loop) -> object:
    model = loop.model()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0, "lr": 1e-3},
    ]
    optimizer = loop.adamw(groups)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def an_optimizer_made_anew_for_the_second_phase(loop: Loop) -> object:
    """Fine-tuning in two phases: a head first, then everything, with another optimizer under a watch of its own logdir."""
    model = loop.model()
    for phase, parts in enumerate((model[3].parameters(), model.parameters())):
        optimizer = loop.adamw(parts, lr=3e-3 if phase == 0 else 1e-3)
        with loop.watch(model, optimizer):
            for x, y in loop.batches(STEPS // 2, seed=phase):
                model.zero_grad()
                loss = loss_of(model, x, y)
                loss.backward()
                loop.note(optimizer, loss)
                optimizer.step()
        if phase == 0:
            loop.truth.clear()  # a second attempt in the same directory: the last one is judged
    return model
