"""Transcribe with the installed wheel and the ``cpu`` extra only: no torch, right words, sizes printed."""

import json
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import qwen3asr

asr, aligner, recordings = (Path(argument) for argument in sys.argv[1:])
for name in ("torch", "transformers", "onnx"):
    if find_spec(name) is not None:
        sys.exit(f"{name} is installed: this environment is not bare")
site = Path(sysconfig.get_paths()["purelib"])
if not Path(qwen3asr.__file__).is_relative_to(site):
    sys.exit("qwen3asr was not imported from the wheel")

model = qwen3asr.load(asr, aligner=aligner)
wanted = json.loads((recordings / "manifest.json").read_text("utf-8"))
for entry in wanted:
    result = model.transcribe(recordings / entry["audio"], timestamps="word")
    if (result.text, result.language) != (entry["text"], entry["language"]):
        sys.exit(f"{entry['audio']}: {result.language} {result.text!r}, not {entry['language']} {entry['text']!r}")
command = [
    str(Path(sys.executable).with_name("qwen3asr")),
    "transcribe",
    str(asr),
    str(recordings / wanted[0]["audio"]),
]
printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
if printed != wanted[0]["text"]:
    sys.exit(f"the command printed {printed!r}")
missing = subprocess.run([command[0], "export", "x", "y"], check=False, capture_output=True, text=True)
if missing.returncode == 0 or "qwen3asr[export]" not in missing.stderr:
    sys.exit(f"export without torch does not name its extra: {missing.stderr}")

size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
wheel = next(Path("dist").glob("*.whl")).stat().st_size
print(f"bare install: {len(wanted)} recordings right, site-packages {size / 1e6:.0f} MB, wheel {wheel / 1e3:.0f} kB")
