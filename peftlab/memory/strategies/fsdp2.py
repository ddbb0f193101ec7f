"""FSDP 2: every device has a part of all, and gathers it layer by layer, in the order of torch's `fully_shard`.

Source: torch/distributed/fsdp/_fully_shard of 2.13. Measured with two processes on the CPU within 2 %.
"""

from __future__ import annotations

import numpy as np

from peftlab.memory.strategies.division import Division, scaled
from peftlab.memory.strategies.strategy import FROZEN, GRADIENTS, STATES, TRAINABLE, WORKSPACE, Strategy


class Fsdp2(Strategy):
    def added_bytes(self, part: np.ndarray, number: int, place: tuple, division: Division) -> np.ndarray | int:
        """What is gathered: weights into one buffer, then into tensors of their own; gradients until they are sent.

        In the forward pass a layer's buffer remains until the next layer's weights are there. In the backward pass the
        next layer's buffer is filled meanwhile. What is in no layer is whole from the first layer to the end of a pass.
        """
        layer, outside = division.layer, division.outside
        first, name = place[-2:] == (0, 0), place[0]
        if name == "step":
            return scaled(-part[WORKSPACE], division.whole(True) - division.part(True), division.whole(True))
        gathered = {
            "embedding": 2 * outside,
            "forward_gathering": 2 * outside + 2 * layer if first else outside + 3 * layer,
            "forward": outside + 2 * layer,
            "head": outside + layer,
            "head_gathering": max(2 * outside, outside + layer),
            "head_backward": outside + layer,
            "last_backward_gathering": outside + 2 * layer,
            "backward_gathering": outside + 2 * layer,
            "last_backward": outside + 2 * layer,
            "backward": outside + (1 if first else 2) * layer,
            "embedding_backward": outside,
        }.get(name, 0)
        return gathered + (self._whole_gradients(part, number, place, division) if "backward" in name else 0)

    def _whole_gradients(self, part: np.ndarray, number: int, place: tuple, division: Division) -> np.ndarray | int:
        """Return what gradients have beyond this device's part of them: those of this place, and the last ones sent.

        From the second pass on one device alone adds each gradient to the former one and keeps no second of it. Of the
        last layer nothing was sent before.
        """
        name, again = place[0], number > 1
        new = part[GRADIENTS] - part[GRADIENTS, 0]
        present = new - scaled(new, division.part(True), division.whole(True))
        if name.startswith("head"):
            return present
        if again and name in ("backward", "last_backward"):
            present = np.linspace(0, division.layer_trained, len(new)).astype(np.int64)
        sent = 0 if name.startswith("last_backward") else division.layer_trained
        if again and name == "backward_gathering":  # this device's part of what was sent, before it is added
            sent += division.layer_trained // division.devices
        early = division.early_trained
        return present + sent + (early if again else early * (division.devices - 1) // division.devices)

    def saving_bytes(self, division: Division, everything: bool) -> int:
        """Each weight is gathered, with two more copies of it meanwhile, and remains until all are written."""
        peak = saved = 0
        for gathered in (division.gathered(one) for one in division.weights if one.trains or everything):
            peak = max(peak, saved + 3 * gathered)
            saved += gathered
        return peak

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Weights are gathered for every pass, gradients divided after every backward pass."""
        return sent_by_parts(division, micro_batches)


class Fsdp2Offload(Fsdp2):
    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        """Weights, gradients and states are in the host's memory where that is another one than the device's."""
        shared = super().share(part, key, division)
        if division.beside_host:
            for row, trains in ((FROZEN, False), (TRAINABLE, True)):
                shared[row] -= division.part(trains)
            shared[[GRADIENTS, STATES]] = 0
            shared[WORKSPACE] += 0 if key == ("state",) else division.layer // division.devices
        return shared


def sent_by_parts(division: Division, micro_batches: int) -> dict[str, int]:
    """Return what a device sends that gathers weights for every pass, and whose gradients are divided after it."""
    forward, backward = division.all_gathered, division.gathered_backward
    return {
        "weights": micro_batches * division.all_but_one(forward + backward),
        "gradients": micro_batches * division.all_but_one(division.trained_gathered),
    }
