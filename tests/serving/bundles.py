"""Small real bundles for the tests of versions."""

import dataclasses
from pathlib import Path

import shop
from tesserec.bundle import Bundle, publish, save_manifest


def shop_bundle(folder: Path, day: int = 1) -> Path:
    """The shop of ``tests/shop.py`` as a bundle that was made on this day of November."""
    bundle = publish(folder, shop.contents())
    save_manifest(folder, dataclasses.replace(bundle.manifest, created=f"2026-11-{day:02}T08:00:00+00:00"))
    Bundle.open(folder)
    return folder


def damage(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
