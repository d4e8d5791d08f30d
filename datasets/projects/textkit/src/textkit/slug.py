"""Slugs for addresses."""

import re


def make_slug(title: str, limit: int = 40) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return slug[:limit]


def is_slug(text: str) -> bool:
    return re.fullmatch(r"[a-z0-9-]+", text)
