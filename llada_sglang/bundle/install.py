"""Install llada-sglang and everything it needs from this directory, without a network.

    python3 install.py --venv DIR       into a virtual environment, made if it is not there
    python3 install.py                  into the environment of this interpreter
    python3 install.py --check          only verify the parts

Joins the parts into wheels, compares every part and every wheel with its SHA-256, and hands them to
the pip that is in the bundle. Needs a CPython and nothing else; runs, to say what is wrong, on any
since 3.6, which is why it is written in an older style.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    Json = dict[str, Any]

FORMAT = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
_CHUNK = 1 << 20
_PROBE = """
import json, platform, sys
libc, glibc = platform.libc_ver()
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "implementation": sys.implementation.name,
    "system": platform.system(),
    "machine": platform.machine(),
    "glibc": glibc if libc == "glibc" else None,
    "packages": __import__("sysconfig").get_path("purelib"),
}))
"""


class BundleError(Exception):
    """A bundle cannot be written, verified or installed; the message says what to do."""


def main(arguments: "list[str] | None" = None) -> int:
    """Run the installer: 0 done, 1 refused or failed with one message, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        run(os.path.dirname(os.path.abspath(__file__)), options)
    except BundleError as error:
        sys.stderr.write(f"install.py: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninstall.py: interrupted; run it again to go on\n")
        return 130
    return 0


def run(bundle: str, options: argparse.Namespace) -> None:
    """Verify, join and install the bundle in directory `bundle`. Raises BundleError."""
    manifest = read_manifest(bundle)
    if options.check:
        check_parts(bundle, manifest)
        for part in manifest["parts"]:
            verify_part(bundle, part)
        _say(f"{len(manifest['parts'])} parts, all of them right")
        return
    python = _interpreter(options)
    facts = probe(python)
    check_target(manifest["target"], facts, python)
    check_parts(bundle, manifest)
    wheels = os.path.abspath(options.wheels or os.path.join(bundle, "wheels"))
    os.makedirs(wheels, exist_ok=True)
    destination = facts["packages"]
    if options.venv and not _is_venv(options.venv):
        destination = options.venv
    _check_space(manifest, wheels, destination)

    began = time.time()
    _say(f"joining {len(manifest['parts'])} parts, {manifest['total_bytes'] / 1e9:.2f} GB")
    join(bundle, manifest, wheels)
    _say(f"{len(manifest['files'])} wheels joined and verified in {time.time() - began:.0f} s")

    requirements = list(manifest["requirements"])
    if options.venv:
        if not _is_venv(options.venv):
            _call([python, "-m", "venv", "--without-pip", options.venv])
            requirements.append(manifest["pip"])
        python = _venv_python(options.venv)
    began = time.time()
    _say(f"installing {len(requirements)} packages for {python}, which takes minutes")
    install(python, manifest, wheels, requirements)
    _say(f"{len(requirements)} packages installed in {time.time() - began:.0f} s")
    if not options.keep_wheels:
        for file in manifest["files"]:
            os.remove(os.path.join(wheels, file["name"]))
        with contextlib.suppress(OSError):
            os.rmdir(wheels)
    toolkit = link_toolkit(probe(python)["packages"])
    if toolkit:
        _say(f"next: export CUDA_HOME={toolkit}")
    _say(f"next: {os.path.join(os.path.dirname(python), 'llada-sglang')} doctor")


def read_manifest(bundle: str) -> "Json":
    """The manifest of a bundle, compared with SHA256SUMS.

    Keys: format; version: of llada-sglang; target: python, implementation, system, machine, glibc;
    requirements: every pin `name==version`; pip: the pin of pip; cuda: of the wheels, or null;
    part_size, total_bytes, installed_bytes; files: name, size, sha256 of every wheel, in the order
    of the joined stream; parts: name, size, sha256 of its consecutive pieces. Sizes in bytes.
    """
    path = os.path.join(bundle, MANIFEST)
    raw = b""
    try:
        with open(path, "rb") as file:
            raw = file.read()
        manifest = json.loads(raw.decode("utf-8"))
    except OSError:
        raise BundleError(f"{path} is missing; copy the bundle again.") from None
    except ValueError:
        raise BundleError(f"{path} is corrupted; copy it again.") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise BundleError(
            f"{path} must have format {FORMAT}, got {found!r}; use the install.py it came with."
        )
    sums = os.path.join(bundle, SUMS)
    if os.path.isfile(sums):
        with open(sums, encoding="utf-8") as text:
            listed = {line[66:].rstrip("\n"): line[:64] for line in text}
        if listed.get(MANIFEST) != hashlib.sha256(raw).hexdigest():
            raise BundleError(f"{path} is not the one {SUMS} lists; copy both again.")
    return dict(manifest)


def check_target(target: "dict[str, str]", facts: "dict[str, str]", python: str) -> None:
    """Raise BundleError unless the wheels of `target` run on the interpreter of these `facts`."""
    wanted = "{implementation} {python} on {system} {machine}".format(**target)
    found = "{implementation} {python} on {system} {machine}".format(**facts)
    if wanted != found:
        raise BundleError(
            f"this bundle is for {wanted}, {python} is {found}. Give another interpreter with "
            "--python, or make a bundle for this one (llada-sglang bundle --help)."
        )
    least = target.get("glibc")
    if least and (not facts.get("glibc") or _numbers(facts["glibc"]) < _numbers(least)):
        raise BundleError(
            f"this bundle needs glibc {least} or newer, this system has "
            f"{facts.get('glibc') or 'another C library'}. Use a newer system or a container."
        )


def check_parts(bundle: str, manifest: "Json") -> None:
    """Raise BundleError naming every part that is missing or has another size; reads no data."""
    missing, wrong = [], []
    for part in manifest["parts"]:
        path = os.path.join(bundle, part["name"])
        if not os.path.isfile(path):
            missing.append(part["name"])
        elif os.path.getsize(path) != part["size"]:
            wrong.append(f"{part['name']} ({os.path.getsize(path)} bytes, not {part['size']})")
    if missing:
        count = len(manifest["parts"])
        raise BundleError(
            f"{len(missing)} of {count} parts are missing: {_some(missing)}. Copy them to {bundle}."
        )
    if wrong:
        raise BundleError(f"parts are incomplete: {_some(wrong)}. Copy them again.")


def verify_part(bundle: str, part: "Json") -> None:
    """Raise BundleError if the bytes of a part are not those it was written with."""
    path = os.path.join(bundle, part["name"])
    if sha256_of(path) != part["sha256"]:
        raise BundleError(
            f"{path} is corrupted: its SHA-256 is not {part['sha256']}. Copy it again."
        )


def join(bundle: str, manifest: "Json", wheels: str) -> None:
    """Write every wheel that is not already right into directory `wheels`, from verified parts."""
    part_size, verified = manifest["part_size"], set()
    start = 0
    for file in manifest["files"]:
        path = os.path.join(wheels, file["name"])
        first, last = start // part_size, (start + max(file["size"], 1) - 1) // part_size
        if not is_right(path, file):
            for part in manifest["parts"][first : last + 1]:
                if part["name"] not in verified:
                    verify_part(bundle, part)
                    verified.add(part["name"])
            _assemble(bundle, manifest, file, start, path)
        start += file["size"]


def _assemble(bundle: str, manifest: "Json", file: "Json", start: int, path: str) -> None:
    part_size, digest, left = manifest["part_size"], hashlib.sha256(), file["size"]
    with open(path + ".partial", "wb") as out:
        while left:
            index, offset = divmod(start, part_size)
            take = min(left, part_size - offset)
            with open(os.path.join(bundle, manifest["parts"][index]["name"]), "rb") as part:
                part.seek(offset)
                for chunk in pieces(part, take):
                    digest.update(chunk)
                    out.write(chunk)
            start, left = start + take, left - take
    if digest.hexdigest() != file["sha256"]:
        raise BundleError(f"{file['name']} does not come out of its parts; make the bundle again.")
    os.replace(path + ".partial", path)


def install(python: str, manifest: "Json", wheels: str, requirements: "list[str]") -> None:
    """Install pinned requirements with the pip of the bundle; no index, no network, no settings."""
    name = "pip-{}-".format(manifest["pip"].split("==")[1])
    pip = next(file["name"] for file in manifest["files"] if file["name"].startswith(name))
    command = [python, os.path.join(wheels, pip, "pip"), "install", "--isolated", "--no-index"]
    command += ["--find-links", wheels, "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-warn-script-location"]
    _call(command + requirements)


def link_toolkit(packages: str) -> "str | None":
    """Make the CUDA wheels in directory `packages` a toolkit to link with; return where it is.

    Wheels hold lib/libcudart.so.13 alone; kernels are linked with lib64/libcudart.so.
    None where no wheel brought nvcc.
    """
    pattern = os.path.join(glob.escape(packages), "nvidia", "cu[0-9]*", "bin", "nvcc")
    for nvcc in sorted(glob.glob(pattern), reverse=True):
        root = os.path.dirname(os.path.dirname(nvcc))
        _link("lib", os.path.join(root, "lib64"))
        for library in glob.glob(os.path.join(glob.escape(root), "lib", "*.so.*")):
            _link(os.path.basename(library), library[: library.rindex(".so.")] + ".so")
        return root
    return None


def _link(target: str, path: str) -> None:
    if os.path.islink(path):
        os.remove(path)
    if not os.path.exists(path):
        os.symlink(target, path)


def is_right(path: str, file: "Json") -> bool:
    """Whether a file is there with the size and the SHA-256 of its entry in the manifest."""
    if not os.path.isfile(path) or os.path.getsize(path) != file["size"]:
        return False
    return sha256_of(path) == file["sha256"]


def sha256_of(path: str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in pieces(file, os.path.getsize(path)):
            digest.update(chunk)
    return digest.hexdigest()


def pieces(file: "IO[bytes]", count: int) -> "Iterator[bytes]":
    """The next `count` bytes of an open file, in chunks. Raises BundleError where it ends early."""
    while count:
        chunk = file.read(min(_CHUNK, count))
        if not chunk:
            raise BundleError(f"{file.name} ends {count} bytes too early; copy it again.")
        count -= len(chunk)
        yield chunk


def probe(python: str) -> "dict[str, str]":
    """What an interpreter is: python, implementation, system, machine, glibc, packages."""
    try:
        return dict(json.loads(subprocess.check_output([python, "-c", _PROBE]).decode("utf-8")))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise BundleError(f"{python} is no Python that runs: {error}.") from None


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _interpreter(options: argparse.Namespace) -> str:
    if options.venv and _is_venv(options.venv):
        return _venv_python(options.venv)
    if options.venv and os.path.isdir(options.venv) and os.listdir(options.venv):
        raise BundleError(
            f"{options.venv} is neither empty nor a virtual environment. Give another directory."
        )
    return str(options.python or sys.executable)


def _is_venv(directory: str) -> bool:
    return os.path.isfile(os.path.join(directory, "pyvenv.cfg"))


def _venv_python(directory: str) -> str:
    return os.path.join(os.path.abspath(directory), "bin", "python")


def _check_space(manifest: "Json", wheels: str, destination: str) -> None:
    joined = sum(
        file["size"]
        for file in manifest["files"]
        if not os.path.isfile(os.path.join(wheels, file["name"]))
    )
    needs = [(wheels, joined), (destination, manifest["installed_bytes"])]
    by_device: dict[int, tuple[str, int]] = {}
    for directory, count in needs:
        while not os.path.isdir(directory):
            directory = os.path.dirname(os.path.abspath(directory))
        device = os.stat(directory).st_dev
        by_device[device] = (directory, by_device.get(device, ("", 0))[1] + count)
    for directory, count in by_device.values():
        free = shutil.disk_usage(directory).free
        if free < count:
            raise BundleError(
                f"{count / 1e9:.1f} GB are needed at {directory}, {free / 1e9:.1f} GB are free. "
                "Make room, or put the joined wheels on another disk with --wheels DIR."
            )


def _call(command: "list[str]") -> None:
    try:
        status = subprocess.call(command)
    except OSError as error:
        raise BundleError(f"{command[0]} cannot be run: {error}.") from None
    if status:
        raise BundleError(f"{' '.join(command[:4])} ... failed with status {status}; see above.")


def _numbers(version: str) -> "tuple[int, ...]":
    return tuple(int(number) for number in version.split(".")[:2])


def _some(names: "list[str]") -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Install llada-sglang and all it needs from this directory, without a network."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--venv", metavar="DIR", help="virtual environment, made if it is not there")
    where.add_argument("--check", action="store_true", help="only verify the parts")
    parser.add_argument(
        "--python", metavar="EXE", help="interpreter to install for (default: this one)"
    )
    parser.add_argument("--wheels", metavar="DIR", help="where to join the wheels (default: here)")
    parser.add_argument("--keep-wheels", action="store_true", help="leave the joined wheels there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
