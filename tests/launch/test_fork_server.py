"""The process that campaigns are forked from: without it every test of a campaign costs twice the time."""

import sys

from emulated_world import fork

from launch.packaging import bundle, closure


def _look_around() -> None:
    assert "warm" in sys.modules
    assert "kaggle" not in sys.modules  # it reads the environment when it is imported
    assert closure._read.cache_info().currsize > 50
    assert bundle._compressed.cache_info().currsize == 1


def test_a_forked_process_has_the_packages_and_what_the_builder_keeps():
    process = fork(_look_around)
    process.join(60)
    assert process.exitcode == 0
