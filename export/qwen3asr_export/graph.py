"""Writing ONNX graphs layer by layer, with the weights streamed to one external data file.

Nothing is traced: a graph is what the builder functions say it is, tensor by tensor, so memory stays at
one tensor and the nodes read like the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from qwen3asr_export.numerics import Numerics

Array: TypeAlias = npt.NDArray[Any]
Dim: TypeAlias = int | str

CONTRIB = "com.microsoft"
PRODUCER = "qwen3asr"
_ALIGN = 4096  # page-aligned tensors can be memory-mapped by ONNX Runtime

FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
FLOAT16, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
BITS: dict[int, int] = {FLOAT: 32, FLOAT16: 16, BFLOAT16: 16}


class WeightFile:
    """The external data file of one graph; each tensor is appended once and then dropped.

    Args:
        path: the file to write, e.g. ``onnx/decoder.onnx.data``.
        progress: called with the bytes just written.
    """

    def __init__(self, path: Path, progress: Callable[[int], None] = lambda _: None) -> None:
        self._path, self._progress = path, progress
        self._file = path.open("wb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, array: Array) -> TensorProto:
        """Append a tensor and return the initializer that points at its bytes."""
        self._file.write(b"\0" * (-self._file.tell() % _ALIGN))
        offset = self._file.tell()
        data = np.ascontiguousarray(array)
        self._file.write(data.reshape(-1).view(np.uint8).data)
        self._progress(data.nbytes)
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(data.dtype), dims=data.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._path.name), ("offset", offset), ("length", data.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class Graph:
    """An ONNX graph under construction. Tensors are known by their names (``str``).

    Args:
        name: of the graph.
        weights: where its weights go.
        numerics: what it computes in.
        opset: version of the standard operators.

    Attributes:
        spread: tensors whose rows are of mean square one and have no loud entry; see :meth:`normed`.
    """

    def __init__(self, name: str, weights: WeightFile, numerics: Numerics, opset: int) -> None:
        self.spread: set[str] = set()
        self._name, self._weights, self._opset = name, weights, opset
        self.numerics, self.activation = numerics, numerics.activation
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._casts: dict[tuple[str, int], str] = {}
        self._made: dict[tuple[str, str], tuple[str, ...]] = {}

    def input(self, name: str, dtype: int, shape: Sequence[Dim]) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[Dim]) -> None:
        """Declare an existing tensor a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def weight(self, name: str, array: Array) -> str:
        """Store a weight in the external data file."""
        if name in self._initializers:
            raise ValueError(f"weight {name} is stored already")
        self._initializers[name] = self._weights.add(name, array)
        return name

    def const(self, value: Any, dtype: npt.DTypeLike = np.int64) -> str:
        """A small constant inside the graph; equal ones are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self._constants[key] = name
            self._initializers[name] = onnx.numpy_helper.from_array(array, name)
        return self._constants[key]

    def op(self, kind: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return it; ``out`` names it."""
        return self.ops(kind, *inputs, outs=[out or f"{kind}_{len(self._nodes)}"], domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outs: Sequence[str], domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with the named outputs (``""``: not wanted) and return them."""
        name = next(out for out in outs if out)
        self._nodes.append(helper.make_node(kind, list(inputs), list(outs), name=name, domain=domain, **attributes))
        return list(outs)

    def real(self, value: float) -> str:
        """A scalar of the activations' type."""
        return self.const(value, helper.tensor_dtype_to_np_dtype(self.activation))

    def vector(self, name: str, array: Array) -> str:
        """Store a small weight (norm, bias, kernel) in the activations' type."""
        return self.weight(name, array.astype(helper.tensor_dtype_to_np_dtype(self.activation)))

    def cast(self, x: str, dtype: int, source: int | None = None) -> str:
        """``x`` in another element type; ``source`` is its own, by default the activations'.

        Nothing is cast twice, and a cast back to where it came from is undone.
        """
        source = self.activation if source is None else source
        if dtype == source:
            return x
        if (x, dtype) not in self._casts:
            self._casts[x, dtype] = y = self.op("Cast", x, to=dtype)
            if BITS[dtype] > BITS[source]:  # widening loses nothing, so the way back is known
                self._casts[y, source] = x
        return self._casts[x, dtype]

    def once(self, what: str, x: str, make: Callable[[str], tuple[str, ...]]) -> tuple[str, ...]:
        """What ``make`` makes of a tensor, made once however many ask; ``what`` tells one use from another."""
        if (what, x) not in self._made:
            self._made[what, x] = make(x)
        return self._made[what, x]

    def normed(self, x: str) -> str:
        """``x``, which comes from a norm of the residual stream without gain or bias, if that is mixed."""
        if self.numerics.mixed:
            self.spread.add(x)
        return x

    def linear(self, x: str, name: str, weight: Array, bias: Array | None = None) -> str:
        """``x @ weight.T + bias`` with a float32 weight as PyTorch keeps it, ``[out, in]``."""
        y = self.numerics.matrices.linear(self, x, name, weight)
        return y if bias is None else self.op("Add", y, self.vector(f"{name}.bias", bias), out=f"{name}.out")

    def dim(self, x: str, axis: int) -> str:
        """Size of an axis as an int64 tensor of shape ``[1]``."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def reshape(self, x: str, *shape: int | str) -> str:
        """Reshape; dimensions are ints (0 copies, -1 infers) or names of ``[1]`` tensors."""
        if all(isinstance(size, int) for size in shape):
            return self.op("Reshape", x, self.const(shape))
        parts = [self.const([size]) if isinstance(size, int) else size for size in shape]
        return self.op("Reshape", x, self.op("Concat", *parts, axis=0))

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._initializers.values())
        )  # fmt: skip
        used = {node.domain for node in self._nodes}
        opsets = [helper.make_opsetid("", self._opset)] + ([helper.make_opsetid(CONTRIB, 1)] if CONTRIB in used else [])
        ir_version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)  # older runtimes refuse newer ones
        model = helper.make_model(graph, opset_imports=opsets, producer_name=PRODUCER, ir_version=ir_version)
        helper.set_model_props(model, metadata)
        return model
