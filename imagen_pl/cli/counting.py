"""Counts in messages: "1 prompt", "1,200 prompts"."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1.

    Args:
        number: 0 or more.
        noun: in the singular; its plural ends in s.
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
