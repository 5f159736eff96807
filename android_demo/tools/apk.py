"""The app as a signed APK."""

import struct
import zipfile
from pathlib import Path

from android_demo.tools import dex as dex_files
from android_demo.tools import natives, onnxruntime, resources
from android_demo.tools.paths import BUILD, CACHE, VERSIONS
from android_demo.tools.run import Step, files_below, note, run

APK = BUILD / "mote-demo.apk"
PAGE = 16384  # libraries are mapped from where they lie, in pages of up to this size
WORD = 4  # what Android wants of resources.arsc
ALIGNMENT_FIELD = 0xD935  # the extra field by which Android's zipalign pads
LOCAL_HEADER = 30  # bytes before an entry's name
EXTRA_HEADER = 6  # of the field: its name, its size, the alignment
FIRST_DAY = (1980, 1, 1, 0, 0, 0)
KEY_PASSWORD = "android"  # as of all debug keys


def build() -> Path:
    """Builds whatever changed; the path of the APK."""
    resources.collect_assets()
    dex = [*dex_files.of_ours(), *dex_files.of_libraries()]
    libraries = {abi: _libraries(abi) for abi in natives.ABIS}
    files = [
        resources.linked(),
        *dex,
        *files_below(resources.ASSETS, "*"),
        *(file for abi in libraries.values() for file in abi),
    ]
    step = Step(APK.with_suffix(".stamp"), [*files, Path(__file__)])
    if step.is_due() or not APK.is_file():
        note("packing and signing the APK")
        unsigned = APK.with_suffix(".unsigned")
        _pack(unsigned, dex, libraries)
        _sign(unsigned, APK)
        step.done()
    return APK


def _libraries(abi: str) -> list[Path]:
    return [*onnxruntime.libraries(abi), *natives.build_android(abi)]


def _pack(apk: Path, dex: list[Path], libraries: dict[str, list[Path]]) -> None:
    """Writes the entries, always in the same order and with the same time, so that the same files give the same bytes."""
    with zipfile.ZipFile(apk, "w") as archive, zipfile.ZipFile(resources.linked()) as linked:
        for entry in linked.infolist():
            _add(archive, entry.filename, linked.read(entry), entry.compress_type, alignment=WORD)
        for number, file in enumerate(dex, start=1):
            name = "classes.dex" if number == 1 else f"classes{number}.dex"
            _add(archive, name, file.read_bytes(), zipfile.ZIP_DEFLATED)
        for abi, files in libraries.items():
            for file in files:
                _add(archive, f"lib/{abi}/{file.name}", file.read_bytes(), zipfile.ZIP_STORED, alignment=PAGE)
        for file in files_below(resources.ASSETS, "*"):
            _add(archive, f"assets/{file.relative_to(resources.ASSETS)}", file.read_bytes(), zipfile.ZIP_DEFLATED)


def _add(archive: zipfile.ZipFile, name: str, content: bytes, compression: int, alignment: int = 1) -> None:
    """Adds an entry; the content of a stored one begins at a multiple of `alignment`."""
    entry = zipfile.ZipInfo(name, FIRST_DAY)
    entry.compress_type = compression
    entry.external_attr = 0o644 << 16
    if compression == zipfile.ZIP_STORED and alignment > 1:
        assert archive.fp is not None
        padding = -(archive.fp.tell() + LOCAL_HEADER + len(name.encode()) + EXTRA_HEADER) % alignment
        entry.extra = struct.pack("<HHH", ALIGNMENT_FIELD, 2 + padding, alignment) + bytes(padding)
    archive.writestr(entry, content)


def _sign(unsigned: Path, signed: Path) -> None:
    """Schemes 2 and 3, which all of Android from 26 on knows, with a key that stays the same, so that an update is one."""
    key = CACHE / "android-debug.keystore"
    if not key.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        run(
            *(
                "keytool",
                "-genkeypair",
                "-keystore",
                key,
                "-alias",
                "androiddebugkey",
                "-keyalg",
                "RSA",
                "-keysize",
                "2048",
            ),
            *("-storepass", KEY_PASSWORD, "-keypass", KEY_PASSWORD, "-validity", "10000"),
            *("-dname", "CN=Android Debug, O=Android, C=US"),
        )
    run(
        *(
            "apksigner",
            "sign",
            "--ks",
            key,
            "--ks-pass",
            f"pass:{KEY_PASSWORD}",
            "--min-sdk-version",
            VERSIONS["min-sdk"],
        ),
        *("--v1-signing-enabled", "false", "--v2-signing-enabled", "true", "--v3-signing-enabled", "true"),
        *("--out", signed, unsigned),
    )
    unsigned.unlink()
