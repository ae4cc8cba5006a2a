"""Whole networks; none is registered here, the registry is for yours."""

from .build import NETWORK_REGISTRY, build_network

__all__ = ["NETWORK_REGISTRY", "build_network"]
