"""Builds, signs and tests the Android app with a JDK, Maven, Clang and Debian's Android tools: no SDK, no NDK, no Gradle.

`python -m android_demo.tools --help`, from the repository's root, with any Python from 3.11 on. Only the export of the demo model
needs the project's own environment (`make build`).
"""
