#!/usr/bin/env python3
"""Trains on Kubernetes: renders a JobSet for TPUs or GPUs and passes it to kubectl.

launch/kubernetes.py tpu --name kdjax --image IMAGE --processes 4 --chips 4 \
    --accelerator tpu-v5-lite-podslice --topology 4x4 -- --config configs/X.py --workdir gs://B/RUN
launch/kubernetes.py gpu --name kdjax --image IMAGE --processes 2 --chips 8 -- --config ...

`--dry-run` prints the manifest. The cluster needs JobSet 0.6 or newer, https://jobset.sigs.k8s.io.
This script uses only the standard library, so it runs wherever kubectl does.
"""

import argparse
import json
import pathlib
import re
import string
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
COORDINATOR_PORT = 8476


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"it is {text!r}; give a whole number, 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"it is {text!r}; give a whole number, 1 or more")
    return int(text)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses this script's options, and returns the words after `--` for kdjax train."""
    own, train = argv, []
    if "--" in argv:
        own, train = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(description="Trains on Kubernetes.")
    parser.add_argument("kind", choices=("tpu", "gpu"))
    parser.add_argument("--name", required=True, help="name of the JobSet")
    parser.add_argument("--image", required=True, help="image, built from launch/Dockerfile.*")
    parser.add_argument("--processes", type=_positive, required=True, help="pods, one per node")
    parser.add_argument("--chips", type=_positive, required=True, help="accelerators per pod")
    parser.add_argument("--accelerator", help="GKE's name of the TPU: tpu-v5-lite-podslice")
    parser.add_argument("--topology", help="topology of the TPU slice, such as 4x4")
    parser.add_argument("--restarts", type=_natural, default=100, help="after preemptions, at most")
    parser.add_argument("--dry-run", action="store_true", help="print the manifest")
    options = parser.parse_args(own)
    if not train:
        parser.error("the arguments of kdjax train are missing: -- --config X --workdir DIR")
    if options.kind == "tpu" and not (options.accelerator and options.topology):
        parser.error("tpu needs --accelerator and --topology")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
        parser.error(f"--name {options.name}: use a to z, 0 to 9 and -, 40 characters at most")
    return options, train


def render(options: argparse.Namespace, train: list[str]) -> str:
    """Returns the manifest."""
    if options.kind == "gpu":
        # The first pod of the first job, with the name that JobSet gives it.
        coordinator = f"{options.name}-workers-0-0.{options.name}:{COORDINATOR_PORT}"
        train = [*train, "--coordinator", coordinator]
        train += ["--num_processes", str(options.processes), "--process_id", "$(PROCESS_ID)"]
    template = string.Template((HERE / f"jobset_{options.kind}.yaml").read_text())
    # JSON is valid YAML, and quotes values if necessary.
    quoted = {key: json.dumps(value) for key, value in vars(options).items()}
    return template.safe_substitute(quoted, arguments=json.dumps(train))


def main() -> int:
    """Applies the manifest, or prints it."""
    options, train = parse(sys.argv[1:])
    manifest = render(options, train)
    if options.dry_run:
        print(f"# kubectl apply -f - <<EOF\n{manifest}# EOF")
        return 0
    try:
        return subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True).returncode
    except FileNotFoundError:
        print("launch/kubernetes.py: kubectl is not installed", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
