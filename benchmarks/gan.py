"""A step of DF-GAN (discriminator with MA-GP, then generator): features reused, against every term by itself.

`python benchmarks/run.py gan`. Ours looks at the real batch once and at the drawn one once, mismatches captions on the
features of the first, takes the penalty from the same look and goes back once; the generator's turn uses the same
drawn pictures. The plain way runs forward and backward for each of the four terms, and draws again for the generator.
Both make the same step (`tests/test_benchmarks.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i.losses.text_gan import discriminator_loss, generator_loss, gradient_penalty
from t2i.nets.dfgan import DFDiscriminator, DFGenerator
from t2i.types import DiscriminatorLogits


class Round:
    """Both nets without Lightning around them.

    Args:
        mixed: bf16 but for the look at the real pictures that the penalty differentiates twice, else float32.
    """

    def __init__(self, quick: bool, mixed: bool) -> None:
        torch.manual_seed(0)
        self.size, self.batch, channels = (16, 2, 2) if quick else (64, 8, 32)
        self.generator, self.discriminator = DFGenerator(self.size, channels), DFDiscriminator(self.size, channels)
        self.image = torch.rand(self.batch, 3, self.size, self.size).mul(2).sub(1)
        self.noise, self.text = torch.randn(self.batch, 100), torch.randn(self.batch, 256)
        self.moved = [p for p in self.discriminator.parameters() if p.requires_grad]
        self.g = torch.optim.Adam(self.generator.parameters(), 1e-4, (0.0, 0.9))
        self.d = torch.optim.Adam(self.moved, 4e-4, (0.0, 0.9))
        self.mixed = mixed

    def faster(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.mixed)

    def draw(self) -> Tensor:
        with self.faster():
            return self.generator(self.noise, self.text).image

    def logits(self, image: Tensor, text: Tensor) -> DiscriminatorLogits:
        return self.discriminator.logits(self.discriminator.features(image), text)

    def for_generator(self, fake: Tensor) -> None:
        for parameter in self.moved:
            parameter.requires_grad_(False)
        with self.faster():
            loss = generator_loss(self.logits(fake, self.text), "hinge")
        for parameter in self.moved:
            parameter.requires_grad_(True)
        self.g.zero_grad()
        loss.backward()
        self.g.step()

    def reused(self) -> None:
        fake = self.draw()
        image, text = self.image.clone().requires_grad_(), self.text.clone().requires_grad_()
        seen = self.discriminator.features(image)
        real, wrong = self.discriminator.logits(seen, text), self.discriminator.logits(seen, self.text.roll(-1, 0))
        with self.faster():
            judged = self.logits(fake.detach(), self.text)
        loss = discriminator_loss(real, wrong, judged, "hinge") + gradient_penalty(real.conditional, image, text)
        self.d.zero_grad()
        loss.backward()
        self.d.step()
        self.for_generator(fake)

    def plain(self) -> None:
        self.d.zero_grad()
        torch.relu(1 - self.logits(self.image, self.text).conditional).mean().backward()
        (0.5 * torch.relu(1 + self.logits(self.image, self.text.roll(-1, 0)).conditional).mean()).backward()
        fake = self.draw().detach()
        with self.faster():
            judged = self.logits(fake, self.text).conditional.float()
        (0.5 * torch.relu(1 + judged).mean()).backward()
        image, text = self.image.clone().requires_grad_(), self.text.clone().requires_grad_()
        gradient_penalty(self.logits(image, text).conditional, image, text).backward()
        self.d.step()
        self.for_generator(self.draw())
