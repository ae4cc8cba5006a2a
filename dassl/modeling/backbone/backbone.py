"""What every backbone tells about itself."""

from __future__ import annotations

from torch import nn


class Backbone(nn.Module):
    """Base of backbones; a subclass sets `_out_features`, the width of its output."""

    _out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        """Width of the features, None where the subclass does not tell."""
        return self._out_features
