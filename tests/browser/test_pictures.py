"""The script that takes the README's pictures, on a run of the smallest preset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.browser.driver import WIDTH
from tests.browser.pictures import MAX_BYTES, take_pictures
from tests.serving import Served

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_the_pictures_of_a_finished_run_show_something(page: Page, served: Served, tmp_path: Path) -> None:
    parameters = {"preset": "smoke", "rounds": 1, "overrides": ['methods=[{"name": "std"}, {"name": "mot"}]']}
    served.ends(served.submit("experiment/experiment", parameters), "COMPLETED")
    taken = take_pictures(page, served.prefect, served.mlflow, tmp_path)
    assert {"prefect-form", "prefect-run", "prefect-scores"} < set(taken)
    assert any(name.startswith("mlflow-") for name in taken)
    for name, path in taken.items():
        assert path == tmp_path / f"{name}.png"
        assert 5_000 < path.stat().st_size <= MAX_BYTES, name
        with Image.open(path) as picture:
            assert picture.width == (1036 if name.startswith("mlflow") else WIDTH) and picture.height >= 700
            grey = np.asarray(picture.convert("L"), dtype=float)
        assert grey.std() > 5.0, name
        # The upper half of what is beside the menu: a page that only has its frame is empty there.
        assert grey[: grey.shape[0] // 2, grey.shape[1] // 4 :].std() > 2.0, name
