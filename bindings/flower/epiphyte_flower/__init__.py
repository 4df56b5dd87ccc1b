"""Flower drives the rounds; `epiphyte` trains, signs, checks and averages."""

from .files import packed, unpacked
from .strategy import EpiphyteStrategy

__all__ = ["EpiphyteStrategy", "packed", "unpacked"]
