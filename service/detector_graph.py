"""RetinaFace (MobileNet 0.25) in fewer operations, which compute the same.

The network was exported layer by layer: an eighth of its time goes into the sizes of what it
enlarges, into nine small heads side by side, and into channels that the CPU's vectors have twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Float32 = NDArray[np.float32]

# In the order of a cell's numbers, and how many each anchor has of them.
HEADS = {"class_head": 2, "bbox_head": 4, "landmark_head": 10}
OUTPUTS = ("conf", "loc", "landmarks")
ANCHORS = 2
LEVELS = 3
# What AVX-512 works on at a time.
CHANNELS = 16


def simplify(model: onnx.ModelProto) -> None:
    """Rewrite the network in place, at opset 13; canvases have sides that 32 divides, then.

    Raises KeyError where it is another network.
    """
    graph = _Graph(model)
    graph.join_heads()  # first: another network has no such heads
    graph.widen_first_layers()
    graph.enlarge_by_two()
    graph.keep_what_is_read()


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self._onnx = onnx
        self._graph = model.graph
        self._arrays: dict[str, NDArray[np.generic]] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self._nodes = list(model.graph.node)

    def widen_first_layers(self) -> None:
        """Eight channels more of zeros: those of the first two layers are computed by sixteens."""
        first, each, last = [node for node in self._nodes if node.op_type == "Conv"][:3]
        for node in (first, each):
            for name in node.input[1:]:
                self._pad(name, axis=0)
        self._pad(last.input[1], axis=1)
        [group] = [a for a in each.attribute if a.name == "group"]
        group.i = CHANNELS

    def _pad(self, name: str, *, axis: int) -> None:
        array = self._arrays[name]
        room = [(0, 0)] * array.ndim
        room[axis] = (0, CHANNELS - array.shape[axis])
        self._arrays[name] = np.pad(array, room)

    def enlarge_by_two(self) -> None:
        """Whatever the canvas, a level of the pyramid has twice the sides of the next."""
        self._arrays["twice"] = np.array((1, 1, 2, 2), np.float32)
        for node in self._nodes:
            if node.op_type == "Resize":
                node.input[:] = [node.input[0], "", "twice"]

    def join_heads(self) -> None:
        """One convolution a level in place of three, and a sigmoid in place of the softmax.

        Of two classes, the softmax of one is the sigmoid of how much it is above the other.
        """
        make = self._onnx.helper.make_node
        self._nodes = [node for node in self._nodes if not set(node.output) & set(OUTPUTS)]
        self._arrays["/heads/shape"] = np.array((0, -1, sum(HEADS.values())), np.int64)
        self._arrays["/heads/sizes"] = np.array(tuple(HEADS.values()), np.int64)
        rows = []
        for level in range(LEVELS):
            name = f"/heads/{level}"
            for part in ("weight", "bias"):
                self._arrays[f"{name}/{part}"] = self._joined(level, part)
            given = [f"/ssh{level + 1}/Relu_output_0", f"{name}/weight", f"{name}/bias"]
            rows.append(f"{name}/rows")
            self._nodes += [
                make("Conv", given, [name], name, kernel_shape=[1, 1]),
                make("Transpose", [name], [f"{name}/cells"], perm=[0, 2, 3, 1]),
                make("Reshape", [f"{name}/cells", "/heads/shape"], rows[-1:]),
            ]
        parts = ["/heads/class", *OUTPUTS[1:]]
        self._nodes += [
            make("Concat", rows, ["/heads/rows"], axis=1),
            make("Split", ["/heads/rows", "/heads/sizes"], parts, axis=2),
            make("Sigmoid", parts[:1], ["conf"]),
        ]

    def _joined(self, level: int, part: str) -> Float32:
        """Weights [32,64,1,1] or biases [32] of a level's heads, each anchor's together."""
        parts = []
        for head, values in HEADS.items():
            array = np.asarray(self._arrays[f"{head}.{head}.{level}.{part}"], np.float32)
            array = array.reshape(ANCHORS, values, *array.shape[1:])
            parts.append(array - array[:, ::-1] if head == "class_head" else array)
        joined = np.concatenate(parts, 1)
        return joined.reshape(-1, *joined.shape[2:])

    def keep_what_is_read(self) -> None:
        """Write the nodes that an output needs, in the order of their work, and their arrays."""
        makers = {name: node for node in self._nodes for name in node.output}
        kept: dict[str, onnx.NodeProto] = {}  # by their first output

        def keep(name: str) -> None:
            node = makers.get(name)
            if node is not None and node.output[0] not in kept:
                for given in node.input:
                    keep(given)
                kept[node.output[0]] = node

        for output in OUTPUTS:
            keep(output)
        copies = self._onnx.GraphProto(node=kept.values())  # those of the graph go now
        read = {name for node in copies.node for name in node.input}
        del self._graph.node[:]
        self._graph.node.extend(copies.node)
        del self._graph.initializer[:]
        self._graph.initializer.extend(
            self._onnx.numpy_helper.from_array(array, name)
            for name, array in self._arrays.items()
            if name in read
        )
        del self._graph.value_info[:]  # shapes of before
