"""Bundles and packs that come, change and go while requests are answered; and files that are bad."""

import shutil
import statistics
import time
from pathlib import Path

import pytest
from packed import pack_of, variant
from soaking import Clients, Server, ask, server, wait_for
from tiny import sample

from ptexport.runtime.bundle.folder import WEIGHTS

SOON_S = 2.0
"""From a file's arrival to its first answer."""


@pytest.fixture(scope="module")
def llama_pack(llama_bundle: Path, llama_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of `llama_bundle`."""
    return pack_of(llama_bundle, llama_run, tmp_path_factory.mktemp("packs") / "task.ptpack")


def bias_of(running: Server, task: str) -> float | None:
    """Return the first logit of a text, or None if there is no such task."""
    status, answer = ask(running.url, "POST", "/predict", {"texts": ["slow"], "task": task, "raw_scores": True})
    if status == 404:
        return None
    assert status == 200, answer
    return next(iter(answer["predictions"][0]["logits"].values()))  # type: ignore[no-any-return]


@pytest.mark.parametrize("times", sample([3, 100], 3))
def test_packs_that_come_change_and_go_under_load_lose_no_request(
    llama_bundle: Path, llama_pack: Path, tmp_path: Path, times: int
) -> None:
    watched, file = tmp_path / "watched", tmp_path / "watched" / "tips.ptpack"
    watched.mkdir()
    took: list[float] = []
    longest: list[float] = []
    with server(llama_bundle, "--watch", watched) as running, Clients(running.url, 4) as clients:
        wait_for(lambda: len(clients.took) > 100)
        time.sleep(1)
        calm = [seconds for _, seconds in clients.took]
        for number in range(times):
            begun = time.monotonic()
            variant(llama_pack, llama_bundle, file, 100.0, name="tips")
            took.append(wait_for(lambda: (bias_of(running, "tips") or 0) > 50))
            variant(llama_pack, llama_bundle, file, 200.0 + number, name="tips")
            took.append(wait_for(lambda: (bias_of(running, "tips") or 0) > 150))
            longest.append(max(seconds for end, seconds in clients.took if end > begun))
            file.unlink()
            wait_for(lambda: bias_of(running, "tips") is None)
        clients.stop()
        assert clients.outcomes.keys() == {200}, (clients.outcomes, clients.errors[:3])
        for event in ("model-loaded", "model-swapped", "model-removed"):
            wait_for(lambda event=event: len(running.logged(event)) == times)
        assert not running.logged("error")
        running.process.terminate()
        assert running.wait() == 0
        (stopped,) = running.logged("stopped")
    print(f"answers after {statistics.median(took):.2f} s, at most {max(took):.2f} s")
    print(f"other requests: median {statistics.median(calm) * 1e3:.1f} ms, longest {max(calm) * 1e3:.1f} ms before")
    print(f"and {statistics.median(longest) * 1e3:.1f} ms while packs came and changed, in the median of all times")
    assert statistics.median(took) < SOON_S
    assert stopped["answered"] >= clients.outcomes[200]


@pytest.mark.parametrize("times", sample([3, 100], 3))
def test_bundles_that_are_swapped_under_load_lose_no_request(
    llama_bundle: Path, llama_pack: Path, tmp_path: Path, times: int
) -> None:
    """Another bundle takes the place of the one that is asked, and drains it, by two renames."""
    watched, place = tmp_path / "watched", tmp_path / "watched" / "reviews"
    shutil.copytree(llama_bundle, place)
    with server("--watch", watched) as running, Clients(running.url, 4) as clients:
        wait_for(lambda: len(clients.took) > 20)
        for number in range(times):
            spare, old = tmp_path / f"spare{number}", tmp_path / f"old{number}"
            shutil.copytree(place, spare)
            place.rename(old)
            spare.rename(place)
            wait_for(lambda n=number: len(running.logged("model-swapped")) == n + 1)
            shutil.rmtree(old)
        clients.stop()
        assert clients.outcomes.keys() == {200}, (clients.outcomes, clients.errors[:3])


def test_files_that_are_cut_off_are_refused_and_the_old_ones_stay(
    llama_bundle: Path, llama_pack: Path, tmp_path: Path
) -> None:
    """The control is that a whole file is served then."""
    watched, file = tmp_path / "watched", tmp_path / "watched" / "tips.ptpack"
    watched.mkdir()
    whole = variant(llama_pack, llama_bundle, tmp_path / "whole.ptpack", 100.0, name="tips")
    cut = tmp_path / "cut"
    shutil.copytree(llama_bundle, cut)
    weights = cut / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])
    with server(llama_bundle, "--watch", watched) as running, Clients(running.url, 2) as clients:
        part = tmp_path / "part"
        part.write_bytes(whole.read_bytes()[:-1000])
        part.rename(file)
        cut.rename(watched / "cut")
        wait_for(lambda: len(running.logged("model-refused")) == 2)
        assert bias_of(running, "tips") is None
        whole.rename(file)
        wait_for(lambda: bias_of(running, "tips") is not None)
        part.write_bytes(file.read_bytes()[:100])
        part.rename(file)
        wait_for(lambda: len(running.logged("model-refused")) == 3)
        assert (bias_of(running, "tips") or 0) > 50, "the old one stays"
        clients.stop()
        assert clients.outcomes.keys() == {200}, (clients.outcomes, clients.errors[:3])
