"""The demo's model: a small CNN for 8x8 grey images of handwritten digits."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsNet(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Two convolutions and two linear layers; 38 thousand parameters.

    Input: float32 [N, 1, 8, 8] in [0, 1]. Output: float32 [N, 10], one logit per digit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.layers(images)
        return logits
