"""A picture as a net from coordinates to colours, with sines between its layers.

Paper: Implicit Neural Representations with Periodic Activation Functions, arXiv 2006.09661; initialised as there,
section 3.2. Both coordinates run over [-1, 1], whatever the picture's shape.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.generation.clip_guided.image_parameters import ParametersBase

FIT_STEPS = 300
FIT_PIXELS = 8192  # a step
FIT_RATE = 1e-3


class SirenParameters(ParametersBase):
    """Coordinates through `layers` layers of `hidden` sines, sin(w0 (W x + b)), and a linear one to RGB.

    Its parameters move little: learning rates are a hundredth of those for pixels.
    """

    places: Tensor

    def __init__(
        self, height: int, width: int, hidden: int = 256, layers: int = 8, w0: float = 30.0, *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(height, width)
        if hidden < 1 or layers < 1:
            raise ValueError(f"hidden={hidden}, layers={layers}: whole numbers from 1 are needed")
        if not 0 < w0 < float("inf"):
            raise ValueError(f"w0={w0}: a number above 0 is needed")
        self.w0 = w0
        self.layers = nn.ModuleList([nn.Linear(2 if i == 0 else hidden, hidden) for i in range(layers)])
        self.head = nn.Linear(hidden, 3)
        with torch.no_grad():
            for i, layer in enumerate([*self.layers, self.head]):
                inputs = layer.weight.shape[1]
                bound = 1 / inputs if i == 0 else math.sqrt(6 / inputs) / w0
                layer.weight.copy_(_uniform(layer.weight, bound, generator))
                layer.bias.copy_(_uniform(layer.bias, 1 / math.sqrt(inputs), generator))
            self.head.bias.zero_()  # the start is grey
        axes = [torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1) for side in (height, width)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 2)
        self.register_buffer("places", places, persistent=False)

    def forward(self) -> Float[Tensor, "1 3 h w"]:
        return self._colours(self.places).T.reshape(1, 3, self.height, self.width)

    def start_from(self, image: Float[Tensor, "1 3 h w"]) -> None:
        """Fitted to the picture by `FIT_STEPS` steps of Adam on as many as `FIT_PIXELS` pixels at a time."""
        wanted = self.checked(image).to(self.places).flatten(2)[0].T  # (h w, 3)
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(self.parameters(), FIT_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
        with torch.enable_grad():
            for _ in range(FIT_STEPS):
                places, colours = self.places, wanted
                if len(wanted) > FIT_PIXELS:
                    chosen = torch.randint(len(wanted), (FIT_PIXELS,), generator=generator).to(wanted.device)
                    places, colours = places[chosen], colours[chosen]
                optimizer.zero_grad()
                F.mse_loss(self._colours(places), colours).backward()
                optimizer.step()
                schedule.step()
        optimizer.zero_grad()

    def _colours(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
        for layer in self.layers:
            x = torch.sin(self.w0 * layer(x))
        return self.head(x)


def _uniform(like: Tensor, bound: float, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=generator.device).mul(2).sub(1).mul(bound)
