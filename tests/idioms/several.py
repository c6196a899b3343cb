"""Several losses, several optimizers, closures."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.idioms.loop import STEPS, Loop, idiom, loss_of


def generator_and_critic() -> nn.ModuleDict:
    return nn.ModuleDict({
        "generator": nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 6)),
        "critic": nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)),
    })  # fmt: skip


@idiom
def gan(loop: Loop) -> object:
    """PyTorch's DCGAN tutorial: two backward calls for the discriminator, one for the generator, which reaches both."""
    models = generator_and_critic()
    g, d = (loop.adamw(models[k].parameters(), lr=2e-4, betas=(0.5, 0.999)) for k in ("generator", "critic"))
    with loop.watch(dict(models), [d, g]):
        for real, _ in loop.batches():
            ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            models["critic"].zero_grad()
            errors = F.binary_cross_entropy_with_logits(models["critic"](real), ones)
            errors.backward()
            fake = models["generator"](torch.randn(len(real), 4))
            fooled = F.binary_cross_entropy_with_logits(models["critic"](fake.detach()), zeros)
            fooled.backward()
            loop.note(d, (errors + fooled) / 2, 2)  # two of the same kind, not divided: their mean
            d.step()
            models["generator"].zero_grad()
            loss = F.binary_cross_entropy_with_logits(models["critic"](fake), ones)
            loss.backward()
            loop.note(g, loss)
            g.step()
    return models, g, d


@idiom
def gan_with_several_critic_steps_and_a_gradient_penalty(loop: Loop) -> object:
    """WGAN-GP: the critic steps three times for one step of the generator."""
    models = generator_and_critic()
    g, d = (loop.adamw(models[k].parameters(), lr=1e-4, betas=(0.5, 0.9)) for k in ("generator", "critic"))
    with loop.watch(models, [d, g]):
        for i, (real, _) in enumerate(loop.batches(3 * STEPS)):
            d.zero_grad()
            fake = models["generator"](torch.randn(len(real), 4)).detach()
            mixed = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
            slope = torch.autograd.grad(models["critic"](mixed).sum(), mixed, create_graph=True)[0]
            penalty = 10 * (slope.norm(dim=1) - 1).square().mean()
            loss = models["critic"](fake).mean() - models["critic"](real).mean() + penalty
            loss.backward()
            loop.note(d, loss)
            d.step()
            if i % 3 == 2:
                g.zero_grad()
                loss = -models["critic"](models["generator"](torch.randn(len(real), 4))).mean()
                loss.backward()
                loop.note(g, loss)
                g.step()
    return models, g, d


@idiom
def several_losses_added(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            loss = loss_of(model, x, y) + 0.01 * sum(p.square().sum() for p in model.parameters())
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return model, optimizer


@idiom
def several_losses_with_a_backward_each(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            optimizer.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            decay = 0.01 * logits.square().mean()
            loss.backward(retain_graph=True)
            decay.backward()
            loop.note(optimizer, loss + decay, 2)
            optimizer.step()
    return model, optimizer


@idiom
def tasks_in_turn_with_an_optimizer_each(loop: Loop) -> object:
    """Two heads on one trunk; each optimizer has the trunk and its head, so zero_grad clears only some of the gradients."""
    trunk, heads = nn.Linear(6, 16), nn.ModuleList([nn.Linear(16, 3), nn.Linear(16, 3)])
    models = nn.ModuleDict({"trunk": trunk, "heads": heads})
    optimizers = [loop.adamw([*trunk.parameters(), *head.parameters()], lr=1e-3) for head in heads]
    with loop.watch(models, optimizers):
        for i, (x, y) in enumerate(loop.batches(2 * STEPS)):
            optimizer, head = optimizers[i % 2], heads[i % 2]
            optimizer.zero_grad()
            loss = F.cross_entropy(head(torch.tanh(trunk(x))), y)
            loss.backward()
            loop.note(optimizer, loss)
            optimizer.step()
    return models, optimizers


@idiom
def actor_and_critic(loop: Loop) -> object:
    """Two optimizers, two losses, both backward calls before both steps."""
    actor, critic = loop.model(), nn.Linear(6, 1)
    models = nn.ModuleDict({"actor": actor, "critic": critic})
    a, c = loop.adamw(actor.parameters(), lr=1e-3), loop.adamw(critic.parameters(), lr=1e-3)
    with loop.watch(models, [a, c]):
        for x, y in loop.batches():
            distribution = torch.distributions.Categorical(logits=actor(x))
            action = distribution.sample()
            reward = (action == y).float()
            value = critic(x).squeeze(1)
            actor_loss = -(distribution.log_prob(action) * (reward - value.detach())).mean()
            critic_loss = F.mse_loss(value, reward)
            a.zero_grad(), c.zero_grad()
            actor_loss.backward()
            critic_loss.backward()
            loop.note(a, actor_loss), loop.note(c, critic_loss)
            a.step(), c.step()
    return models, a, c


@idiom
def two_optimizers_for_one_loss(loop: Loop) -> object:
    """Matrices in one, the rest in another, as with Muon."""
    model = loop.model()
    matrices, rest = ([p for p in model.parameters() if (p.dim() > 1) == m] for m in (True, False))
    optimizers = [loop.adamw(matrices, lr=1e-3), loop.adamw(rest, lr=3e-3)]
    with loop.watch(model, optimizers):
        for x, y in loop.batches():
            loss = loss_of(model, x, y)
            loss.backward()
            for optimizer in optimizers:
                loop.note(optimizer, loss)
                optimizer.step()
            model.zero_grad()
    return model, optimizers


@idiom
def a_closure(loop: Loop) -> object:
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():

            def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, x, y)
                loss.backward()
                loop.note(optimizer, loss)
                return loss

            optimizer.step(closure)
    return model, optimizer


@idiom
def lbfgs_with_a_closure(loop: Loop) -> object:
    """The closure is called as often as the line search wants; the loss of such a step is none of them."""
    model = loop.model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    with loop.watch(model, optimizer):
        for x, y in loop.batches(size=64):

            def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, x, y)
                loss.backward()
                return loss

            loop.note(optimizer, math.nan, -1, math.nan)
            loop.truth[0][-1].used = math.nan
            optimizer.step(closure)
    return model, optimizer


@idiom
def sharpness_aware_minimisation(loop: Loop) -> object:
    """SAM: the gradient at the weights shifted uphill; the first gradient is cleared."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            loss_of(model, x, y).backward()
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            shifts = [0.05 * p.grad / norm for p in model.parameters()]
            with torch.no_grad():
                for p, shift in zip(model.parameters(), shifts, strict=True):
                    p.add_(shift)
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            with torch.no_grad():
                for p, shift in zip(model.parameters(), shifts, strict=True):
                    p.sub_(shift)
            loop.note(optimizer, loss)
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizer


@idiom
def gradients_by_autograd_grad(loop: Loop) -> object:
    """No backward is ever called: there is no loss to see."""
    model = loop.model()
    optimizer = loop.adamw(model.parameters())
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            gradients = torch.autograd.grad(loss_of(model, x, y), list(model.parameters()))
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p.grad = gradient
            loop.note(optimizer, math.nan, 0, math.nan)
            optimizer.step()
    return model, optimizer


@idiom
def meta_learning_with_an_inner_optimizer(loop: Loop) -> object:
    """Reptile: a copy of the model is trained by an optimizer of its own; the outer gradient is the way it went."""
    model = loop.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with loop.watch(model, optimizer):
        for x, y in loop.batches(STEPS):
            inner = copy.deepcopy(model)
            steps = loop.adamw(inner.parameters(), lr=1e-2)
            for _ in range(3):
                steps.zero_grad()
                loss_of(inner, x, y).backward()
                steps.step()
            optimizer.zero_grad()
            for p, q in zip(model.parameters(), inner.parameters(), strict=True):
                p.grad = (p - q).detach()
            loop.note(optimizer, math.nan, 0, math.nan)
            optimizer.step()
    return model
