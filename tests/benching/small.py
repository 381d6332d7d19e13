"""Measurements that take a moment, and what is asked of their checks."""

from __future__ import annotations

from openai_server import by_chance

FEW = {"concurrency": [1], "content": ["chat"], "prompts": 4, "generate": 24}
WORDS = ("--concurrency", "1", "--content", "chat", "--prompts", "4", "--generate", "24")
HEALTHY = by_chance(0.84, 0.66, 0.49)


def checks(found) -> dict[str, str]:
    return {check.name: check.verdict for check in found.checks}


def detail(found, name: str) -> str:
    return next(check.detail for check in found.checks if check.name == name)


ENOUGH = FEW | {"generate": 120}  # 100 rounds and more
