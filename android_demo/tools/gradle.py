"""Build scripts compiled against the interfaces of Gradle and of the Android plugin, where neither can be run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from android_demo.tools import maven
from android_demo.tools.modules import COMPILER
from android_demo.tools.paths import BUILD, CATALOG, PROJECT
from android_demo.tools.run import empty, run

# Each script and the type that its lines are members of.
SCRIPTS = {
    "settings.gradle.kts": "org.gradle.api.initialization.Settings",
    "build.gradle.kts": "org.gradle.api.Project",
    "engine/build.gradle.kts": "LibraryProject",
    "app/build.gradle.kts": "ApplicationProject",
}
PRELUDE = Path(__file__).with_name("gradle_prelude.kt")
PACKAGE = "package org.mote.gradle"
# What Gradle imports into every script, as far as ours use it.
IMPORTS = (
    "java.io.*",
    "org.gradle.api.*",
    "org.gradle.api.file.*",
    "org.gradle.api.initialization.resolve.*",
    "org.gradle.api.tasks.*",
)
# In scripts the block of an Action is one of its receiver's, and properties are assigned to: two plugins of the compiler.
PLUGINS = {
    "kotlin-receiver-plugin": ("org.jetbrains.kotlin.samWithReceiver", "org.gradle.api.HasImplicitReceiver"),
    "kotlin-assignment-plugin": (
        "org.jetbrains.kotlin.assignment",
        "org.gradle.api.SupportsKotlinAssignmentOverloading",
    ),
}

# A table of the catalog: what its names begin with in scripts, and what they are providers of.
CATALOG_TYPES = {
    "versions": (["versions"], "String"),
    "libraries": ([], "org.gradle.api.artifacts.MinimalExternalModuleDependency"),
    "plugins": (["plugins"], "org.gradle.plugin.use.PluginDependency"),
}


def check_scripts(texts: Mapping[str, str] | None = None) -> None:
    """Compiles the scripts, or `texts` in place of some of them; ToolError with the compiler's words if it refuses one."""
    texts = {name: (PROJECT / name).read_text() for name in SCRIPTS} | dict(texts or {})
    folder = empty(BUILD / "gradle")
    sources = [PRELUDE, folder / "libs.kt", *(folder / f"{index}.kt" for index in range(len(SCRIPTS)))]
    sources[1].write_text(_accessors())
    for source, (name, receiver) in zip(sources[2:], SCRIPTS.items(), strict=True):
        source.write_text(_as_function(f"script{source.stem}", texts[name], receiver))
    options = ["-no-stdlib", "-no-reflect", "-jvm-target", "17", "-d", str(folder / "classes")]
    for library, (plugin, annotation) in PLUGINS.items():
        options += [f"-Xplugin={maven.jar(library)}", "-P", f"plugin:{plugin}:annotation={annotation}"]
    compiler = ":".join(map(str, maven.class_path("kotlin-compiler")))
    interfaces = ":".join(map(str, maven.class_path("agp-api", "gradle-api", "kotlin-stdlib")))
    run("java", "-Xmx2g", "-XX:+UseSerialGC", "-cp", compiler, COMPILER, "-cp", interfaces, *options, *sources)


def _as_function(name: str, script: str, receiver: str) -> str:
    """The script as the body of a function, with its imports before it."""
    imports = re.findall(r"^import .*$", script, re.MULTILINE) + [f"import {name}" for name in IMPORTS]
    body = re.sub(r"^import .*$", "", script, flags=re.MULTILINE)
    return "\n".join([PACKAGE, *imports, f"fun {receiver}.{name}() {{", body, "}", ""])


def _accessors() -> str:
    """`libs`, which Gradle makes of the catalog: each part of a name between dashes is a property of the one before it."""
    root: Node = Node()
    for table, (prefix, kind) in CATALOG_TYPES.items():
        for name in CATALOG[table]:
            root.add([*prefix, *name.split("-")], f"org.gradle.api.provider.Provider<{kind}>")
    return "\n".join([PACKAGE, *root.declare("Libs"), "val libs: Libs get() = TODO()", ""])


@dataclass
class Node:
    """A name of the catalog, or the beginning of some, or both."""

    kind: str | None = None
    children: dict[str, "Node"] = field(default_factory=dict)

    def add(self, parts: list[str], kind: str) -> None:
        if parts:
            self.children.setdefault(parts[0], Node()).add(parts[1:], kind)
        else:
            self.kind = kind

    def declare(self, name: str) -> list[str]:
        """Interfaces for this node and those below it."""
        properties, others = [], []
        for part, child in self.children.items():
            properties.append(f"    val {part}: {name}_{part}")
            others += child.declare(f"{name}_{part}")
        return [f"interface {name}{f' : {self.kind}' if self.kind else ''} {{", *properties, "}", *others]
