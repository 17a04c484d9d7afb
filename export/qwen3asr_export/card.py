"""The model card: what a bundle is, how to use it, and what was measured on it; ready for an upload to a hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3asr.bundle import CARD, Bundle
from qwen3asr.languages import ALIGNER_LANGUAGES, LANGUAGES
from qwen3asr.precisions import PRECISIONS

_USE = {
    "asr": """model = qwen3asr.load("{folder}")
print(model.transcribe("call.wav").text)""",
    "aligner": """aligner = qwen3asr.load_aligner("{folder}")
print(aligner.align("call.wav", "What is said in it."))""",
}


_MEASURED = "## Measured\n"


def update_card(bundle: Bundle) -> None:
    """Write a bundle's card; of one that is there, only what was measured, for the rest may have been edited."""
    path, card = bundle.folder / CARD, model_card(bundle)
    if path.is_file():
        before, heading, measured = path.read_text("utf-8").partition(_MEASURED)
        if not heading:  # left out on purpose
            return
        behind = measured.partition("\n## ")
        card = before + heading + card.partition(_MEASURED)[2] + "".join(behind[1:])
    path.write_text(card, "utf-8")


def model_card(bundle: Bundle) -> str:
    """Markdown with the front matter that hubs read."""
    manifest, kind = bundle.manifest, bundle.manifest.kind
    name, revision = manifest.source["name"], manifest.source.get("revision")
    source = f"`{name}`" + (f" at revision `{revision}`" if revision else "")
    precision = PRECISIONS[manifest.precision]
    known = LANGUAGES if kind == "asr" else ALIGNER_LANGUAGES
    what = "Speech recognition" if kind == "asr" else "Forced alignment: word times of a known text"
    folder = f"{name.rpartition('/')[2]}-{manifest.precision}"
    return f"""---
license: apache-2.0
library_name: qwen3asr
pipeline_tag: {"automatic-speech-recognition" if kind == "asr" else "audio-classification"}
{_base_model(name)}tags: [onnx, qwen3-asr, {manifest.precision}]
---

# {folder}

{what} in {", ".join(known)}.

ONNX graphs of {source}, made by [qwen3asr](https://pypi.org/project/qwen3asr/) for its torch-free runtime.

| | |
|---|---|
| precision | {manifest.precision}: {precision.summary} |
| runs on | {", ".join(precision.devices)} |
| dialect | {manifest.dialect}, opset {manifest.opset} |
| size | {bundle.bytes / 1e6:.0f} MB |
| exported with | {manifest.source["exported_with"]} |

```python
import qwen3asr

{_USE[kind].format(folder=folder)}
```

{_MEASURED}
{_measured(bundle)}
"""


def _base_model(name: str) -> str:
    return f"base_model: {name}\n" if "/" in name else ""


def _measured(bundle: Bundle) -> str:
    verified = bundle.manifest.verified
    if not verified:
        return "This export was not verified: run `qwen3asr verify` with the checkpoint."
    rows = [
        f"| {check['check']} | {_worst(check)} | {_bound(check)} | {check['unit']} | {check['comparisons']} |"
        for check in verified["checks"]
    ]
    return "\n".join(
        [
            f"Against {verified['reference']}, on synthetic clips of 0.3 to 60 s, with texts in eleven languages.",
            "Half-precision graphs were run on a CPU that rounds as they do. This compares numbers; what a precision",
            "does to your recordings, `qwen3asr eval` tells.",
            "",
            "| check | worst | allowed | unit | comparisons |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _worst(check: Mapping[str, Any]) -> str:
    return "not finite" if check["worst"] is None else f"{check['worst']:.2g}"


def _bound(check: Mapping[str, Any]) -> str:
    return "not judged" if check["bound"] is None else f"{check['bound']:g}"
