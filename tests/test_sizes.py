from __future__ import annotations

import pytest

from peftlab.errors import UsageError
from peftlab.quantities import format_bytes
from peftlab.sizes import GPUS, parse_budget


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24 GiB", 24 * 2**30),
        ("24G", 24 * 2**30),
        ("24gb", 24 * 10**9),
        ("1.5TiB", 3 * 2**39),
        ("512MiB", 2**29),
        ("16_384 MiB", 2**34),
    ],
)
def test_sizes_mean_what_their_units_say(text, size):
    assert parse_budget(text).bytes == size
    assert parse_budget(text).gpu is None


@pytest.mark.parametrize("text", ["RTX 4090", "rtx-4090", "NVIDIA RTX4090"])
def test_a_gpu_is_known_however_it_is_spelt(text):
    assert parse_budget(text).gpu == "RTX-4090"
    assert parse_budget(text).bytes == GPUS["RTX-4090"].bytes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("24", "has no unit; write 24GiB or 24MiB"),
        ("16000", "has no unit; write 16000MiB"),
        ("17179869184", "has no unit; write 17179869184B"),
        ("0", "more than zero"),
        ("-3GiB", "more than zero"),
        ("0.1B", "less than a byte"),
        ("0GiB", "more than zero"),
        ("24 bananas", "unknown unit 'bananas'"),
        ("plenty", "neither a size such as 24GiB nor a known GPU"),
        ("RTX-4099", "did you mean 'RTX-4090'"),
        ("", "neither a size"),
    ],
)
def test_nonsense_is_told_in_one_line(text, told):
    with pytest.raises(UsageError) as error:
        parse_budget(text)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "largest"), [("8", 2**33), ("16000", 16000 * 2**20), ("17179869184", 2**34), ("-1", 2**33)]
)
def test_the_remedy_is_a_size_that_can_be_meant(text, largest):
    """A machine of 8, of 16,000 or of 17,179,869,184 has GiB, MiB or bytes."""
    with pytest.raises(UsageError) as error:
        parse_budget(text)
    sizes = [parse_budget(one).bytes for one in str(error.value).partition("; write ")[2].split(" or ")]
    assert max(sizes) == largest


def test_bytes_are_shown_in_the_unit_that_they_fill():
    assert [format_bytes(n) for n in (12, 2048, 3 * 2**29, 2**41)] == ["12 B", "2.0 KiB", "1.5 GiB", "2.00 TiB"]
