"""Install a ``tensorrt`` module that parses graphs and builds engines without a GPU, for tests only.

The ``tensorrt`` package needs NVIDIA's own index and a GPU. NVIDIA's Python bindings and the libraries of TensorRT-RTX
(builder, ONNX parser and runtime, which ship inside an ONNX Runtime provider's package) are ordinary packages, and the
bindings load those libraries under TensorRT's names.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGES = ("tensorrt_cu13_bindings==11.4.0.106", "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0")
LINKS = {  # the name that the bindings ask for: the library that serves it
    "libnvinfer.so.11": "libtensorrt_rtx.so",
    "libtensorrt_rtx.so.1": "libtensorrt_rtx.so",
    "libnvonnxparser.so.11": "libtensorrt_onnxparser_rtx.so",
    "libcudart.so.13": "libcudart.so",
}
PLUGINS = (
    "int initLibNvInferPlugins(void *logger, const char *space) { return 1; }\n"  # the bindings ask for this alone
)
CHECK = """
import tensorrt as trt
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
network = builder.create_network(0)
layer = network.add_activation(network.add_input("x", trt.float32, (1, 8)), trt.ActivationType.RELU)
network.mark_output(layer.get_output(0))
if builder.build_serialized_network(network, builder.create_builder_config()) is None:
    raise SystemExit("tensorrt builds no engine")
print("tensorrt", trt.__version__, "builds engines")
"""


def main() -> None:
    """Install into the running interpreter's site-packages, and build a one-layer engine to see that it works."""
    if subprocess.run([sys.executable, "-c", CHECK], check=False, capture_output=True).returncode == 0:
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *PACKAGES], check=True)
    site = Path(sysconfig.get_paths()["platlib"])
    bindings = site / "tensorrt_bindings"
    for name, stem in LINKS.items():
        libraries = (path for path in sorted((site / "onnxruntime_ep_nv_tensorrt_rtx").iterdir()))
        target = next(path for path in libraries if path.name.startswith(stem))
        (bindings / name).unlink(missing_ok=True)
        (bindings / name).symlink_to(Path("..") / target.parent.name / target.name)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "plugins.c", bindings / "libnvinfer_plugin.so.11"
        source.write_text(PLUGINS, "utf-8")
        name = f"-Wl,-soname,{library.name}"
        subprocess.run(["cc", "-shared", "-fPIC", name, "-o", str(library), str(source)], check=True)
    face = site / "tensorrt"
    face.mkdir(exist_ok=True)
    imports = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    (face / "__init__.py").write_text(imports, "utf-8")
    subprocess.run([sys.executable, "-c", CHECK], check=True)


if __name__ == "__main__":
    main()
