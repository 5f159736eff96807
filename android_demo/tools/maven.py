"""Libraries by Maven's own client, which keeps them in ~/.m2 and checks their sums."""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from android_demo.tools.paths import BUILD, coordinates
from android_demo.tools.run import Step, note, run

PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:build-classpath"
# Robolectric's own libraries of androidx come as Android archives, which Maven's client does not put on a class path by itself:
# two are enough, without what they depend on in turn.
ANDROIDX_OF_ROBOLECTRIC = (
    "androidx.test:monitor:1.8.0:aar",
    "androidx.tracing:tracing:1.1.0:aar",
    "androidx.annotation:annotation-jvm:1.11.0",
)


def class_path(*libraries: str) -> list[Path]:
    """The jars of libraries of the catalog and of all that they need, in an order that java takes."""
    wanted = [coordinates(library) for library in libraries]
    if "robolectric" in libraries:
        wanted += ANDROIDX_OF_ROBOLECTRIC
    folder = BUILD / "maven" / "+".join(libraries)
    listing = folder / "class-path"
    step = Step(folder / "stamp", [], wanted)
    if step.is_due() or not all(path.is_file() for path in _read(listing)):
        note(f"resolving {', '.join(wanted)}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pom.xml").write_text(_pom(wanted))
        run("mvn", "-q", "-B", "-f", folder / "pom.xml", PLUGIN, f"-Dmdep.outputFile={listing}")
        step.done()
    return [_classes(path) for path in _read(listing) if path.suffix != ".pom"]


def jar(library: str) -> Path:
    """The jar of one library of the catalog."""
    artifact, version = coordinates(library).split(":")[1:]
    return next(path for path in class_path(library) if path.name == f"{artifact}-{version}.jar")


def _read(listing: Path) -> list[Path]:
    return [Path(name) for name in listing.read_text().strip().split(":")]


def _pom(wanted: Iterable[str]) -> str:
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>org.mote</groupId><artifactId>class-path</artifactId><version>1</version>"
        f"<dependencies>{''.join(map(_dependency, wanted))}</dependencies></project>\n"
    )


def _dependency(coordinate: str) -> str:
    group, artifact, version, *packaging = map(escape, coordinate.split(":"))
    excluded = "*" if packaging else "androidx.test"
    return (
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        f"<type>{packaging[0] if packaging else 'jar'}</type><exclusions><exclusion><groupId>{excluded}</groupId>"
        "<artifactId>*</artifactId></exclusion></exclusions></dependency>"
    )


def _classes(path: Path) -> Path:
    """The path itself, or the classes.jar of an Android archive."""
    if path.suffix != ".aar":
        return path
    classes = BUILD / "maven" / "aar" / f"{path.stem}.jar"
    if not classes.is_file():
        classes.parent.mkdir(parents=True, exist_ok=True)
        classes.write_bytes(zipfile.ZipFile(path).read("classes.jar"))
    return classes
