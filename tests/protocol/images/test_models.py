"""The sizes that models make, and the nearest ones."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_wsgi.protocol.images.models import Road, image_model
from qwen_wsgi.protocol.media import Size


@pytest.mark.parametrize(
    ("model", "wanted", "snapped"),
    [
        ("qwen-image-3.0", "1024x1024", "1024x1024"),
        ("qwen-image-3.0", "1024x1536", "1024x1536"),
        ("qwen-image-3.0", "256x256", "512x512"),
        ("qwen-image-3.0", "4096x4096", "2048x2048"),
        ("qwen-image-max", "1024x1024", "1328x1328"),
        ("qwen-image-max", "1792x1024", "1664x928"),
        ("qwen-image-plus", "1024x1792", "928x1664"),
        ("qwen-image", "1536x1024", "1472x1104"),
        ("qwen-image-edit-plus", "1024x1024", "1024x1024"),
        ("qwen-image-edit-plus", "256x256", "512x512"),
        ("qwen-image-edit-plus", "4096x2048", "2048x1024"),
        ("wan2.7-image-pro", "4096x4096", "4096x4096"),
        ("wan2.7-image", "4096x4096", "2048x2048"),
        ("wan2.6-t2i", "1024x1024", "1280x1280"),
        ("qwen-image-9.9", "1024x1024", "1328x1328"),
        ("another", "10000x10", "10000x10"),
    ],
)
def test_the_nearest_size(model: str, wanted: str, snapped: str) -> None:
    snap = image_model(model).snap
    assert snap is not None
    width, height = map(int, wanted.split("x"))
    assert str(snap(Size(width, height))) == snapped


@example("qwen-image-3.0", 109, 2405)  # just above the least, and below it once it is narrower
@given(
    model=st.sampled_from(["qwen-image-3.0", "z-image-turbo", "wan2.7-image", "wan2.6-t2i"]),
    width=st.integers(1, 100_000),
    height=st.integers(1, 100_000),
)
def test_any_size_becomes_one_that_the_model_makes(model: str, width: int, height: int) -> None:
    bounds = {
        "qwen-image-3.0": (512**2, 2048**2, 8),
        "z-image-turbo": (512**2, 2048**2, 8),
        "wan2.7-image": (768**2, 2048**2, 8),
        "wan2.6-t2i": (1280**2, 1440**2, 4),
    }
    least, most, widest = bounds[model]
    snap = image_model(model).snap
    assert snap is not None

    size = snap(Size(width, height))

    assert least <= size.pixels <= most
    assert abs(math.log(size.ratio)) <= math.log(widest) + 1e-9
    assert snap(size) == size


def test_old_models_are_asked_by_tasks() -> None:
    assert image_model("wan2.5-t2i-preview").road is Road.TEXT_TASK
    assert image_model("wanx2.1-t2i-turbo").road is Road.TEXT_TASK
    assert image_model("wan2.5-i2i-preview").road is Road.EDIT_TASK
    assert image_model("wan2.6-t2i").road is Road.SYNC
    assert image_model("Qwen/Qwen-Image-3.0").most == 6
