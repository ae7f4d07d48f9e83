"""The most memory that a call holds at once, by torch's own count."""

import torch


def most_bytes(call) -> int:
    """Bytes of tensors above what was held before, at the highest point of ``call``."""
    with torch.profiler.profile(profile_memory=True) as seen:
        call()
    # An operation's own share, without what it calls; what is freed outside of one is an event of its own.
    events = sorted(seen.events(), key=lambda event: event.time_range.end)
    running = peak = 0
    for event in events:
        free = event.name == "[memory]"
        running += event.cpu_memory_usage if free else event.self_cpu_memory_usage
        peak = max(peak, running)
    assert peak, "torch reported no allocation: count in another way"
    return peak
