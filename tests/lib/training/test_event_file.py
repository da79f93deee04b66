"""TensorBoard event files: their bytes, and what TensorBoard reads in them where it is installed."""

import math
import struct
from pathlib import Path

import pytest

from lib.training.event_file import TAGS, crc32c, event_file, event_records

HISTORY = [
    {"epoch": 1, "loss": 0.5, "learning_rate": 3e-4, "skipped": 0},
    {"epoch": 300, "loss": 0.25, "learning_rate": 1e-4, "skipped": 0, "validation_auc": 0.875},
]


@pytest.mark.parametrize(
    ("content", "checksum"),
    [(b"\x00" * 32, 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_the_checksum_is_that_of_the_standard(content: bytes, checksum: int) -> None:
    """The examples of RFC 3720, B.4."""
    assert crc32c(content) == checksum


def messages(content: bytes) -> list[bytes]:
    """The messages of an event file, each held against the checksums around it."""
    found = []
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        parts = (content[:8], content[8:12], content[12 : 12 + length], content[12 + length : 16 + length])
        for part, checksum in (parts[:2], parts[2:]):
            rotated = (struct.unpack("<I", checksum)[0] - 0xA282EAD8) & 0xFFFFFFFF
            assert (rotated << 15 | rotated >> 17) & 0xFFFFFFFF == crc32c(part)
        found.append(parts[2])
        content = content[16 + length :]
    return found


def test_an_epoch_is_one_event_with_its_scalars() -> None:
    version, first, second = messages(event_file(HISTORY, series="member-0"))
    assert version.endswith(b"brain.Event:2")
    assert b"validation_auc/member-0" not in first and b"validation_auc/member-0" in second
    assert second[9:12] == b"\x10\xac\x02"  # step = 300, a varint
    assert second[-4:] == struct.pack("<f", 0.875)
    assert first.count(b"/member-0") == 2


def test_a_file_that_grows_epoch_by_epoch_is_the_whole_file() -> None:
    grown = event_file([], series="m") + b"".join(event_records([line], series="m") for line in HISTORY)
    assert grown == event_file(HISTORY, series="m")


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "events.out.tfevents.0").write_bytes(event_file(HISTORY, series="member-1"))
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == [f"{tag}/member-1" for tag in TAGS]
    for tag in TAGS:
        read = [(event.step, event.value) for event in events.Scalars(f"{tag}/member-1")]
        expected = [(line["epoch"], line[tag]) for line in HISTORY if tag in line]
        assert [step for step, _ in read] == [step for step, _ in expected]
        assert all(
            math.isclose(one[1], other[1], rel_tol=1e-6) for one, other in zip(read, expected, strict=True)
        )
