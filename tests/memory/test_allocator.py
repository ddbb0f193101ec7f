"""The simulated caching allocator against the rules of CUDA's, on sequences counted by hand."""

from __future__ import annotations

from peftlab.memory.allocator import CachingAllocator, slack_bytes

MIB = 2**20


def test_small_tensors_share_a_segment_of_two_mebibytes():
    allocator = CachingAllocator()
    for owner in range(4):
        allocator.allocate(owner, 1000)
    assert allocator.allocated == 4 * 1024
    assert allocator.reserved == 2 * MIB


def test_middle_sized_tensors_share_a_segment_of_twenty():
    allocator = CachingAllocator()
    allocator.allocate(0, 5 * MIB)
    allocator.allocate(1, 9 * MIB)
    assert allocator.reserved == 20 * MIB
    assert allocator.allocated == 14 * MIB


def test_large_tensors_get_their_own_segment_in_steps_of_two():
    allocator = CachingAllocator()
    allocator.allocate(0, 33 * MIB)
    assert allocator.reserved == 34 * MIB
    # What is left of the segment is too small to be split off.
    assert allocator.allocated == 34 * MIB


def test_neighbours_that_are_given_back_merge_but_segments_do_not():
    allocator = CachingAllocator()
    allocator.allocate(0, 8 * MIB)
    allocator.allocate(1, 8 * MIB)
    allocator.release(0)
    allocator.release(1)
    allocator.allocate(2, 16 * MIB)
    assert allocator.reserved == 20 * MIB
    allocator.allocate(3, 20 * MIB)
    allocator.release(2)
    allocator.release(3)
    allocator.allocate(4, 30 * MIB)
    assert allocator.reserved == 70 * MIB


def test_slack_is_what_cannot_be_released_beyond_the_most_in_use():
    events = [(0, 8 * MIB), (0, -8 * MIB), (1, 16 * MIB), (1, -16 * MIB)]
    assert slack_bytes(events) == 4 * MIB


def test_a_segment_without_a_tensor_is_no_slack_for_cuda_gives_it_back():
    """Two passing tensors of 30 and 60 MiB, never at once: the first's segment is free when the second needs one."""
    events = [(0, 30 * MIB), (0, -30 * MIB), (1, 60 * MIB), (1, -60 * MIB)]
    allocator = CachingAllocator()
    for owner, size in events[:3]:
        (allocator.allocate(owner, size) if size > 0 else allocator.release(owner))
    assert (allocator.reserved, allocator.held, allocator.allocated) == (90 * MIB, 60 * MIB, 60 * MIB)
    assert slack_bytes(events) == 0


def test_one_small_tensor_keeps_its_whole_segment():
    """2 MiB of a segment of 20 remain in use, so that none of the 20 can be released for the 30."""
    events = [(0, 2 * MIB), (1, 9 * MIB), (2, 9 * MIB), (1, -9 * MIB), (2, -9 * MIB), (3, 30 * MIB)]
    assert slack_bytes(events) == 20 * MIB + 30 * MIB - 32 * MIB
