"""Our code names nothing that the oldest Android has not, but for a few places that ask for its version first."""

import pytest
from android import built
from android_classes import Dex, Member, Platform

from android_demo.tools import dex, maven
from android_demo.tools.run import java_home

PLATFORM = ("android/", "dalvik/", "java/", "javax/", "org/json/", "org/xml/")
# Beginnings of what is newer than API 26, and since when it is there. Each is behind a comparison with Build.VERSION.SDK_INT.
NEWER = {
    "android/graphics/ImageDecoder": 28,
    "android/view/DisplayCutout.": 28,
    "android/view/WindowInsets.getDisplayCutout()": 28,
    "android/view/Window.setDecorFitsSystemWindows(Z)": 30,
    "android/view/WindowInsets$Type.": 30,
    "android/view/WindowInsets.getInsets(I)": 30,
}


@pytest.fixture(scope="module")
def named() -> set[Member]:
    found = set[Member]().union(*(Dex(path).references() for path in built(dex.of_ours)))
    named = {member for member in found if member.owner.startswith(PLATFORM)}
    assert {"onCreate", "findViewById", "getAssets"} <= {member.name for member in named}, "the table was read"
    return named


@pytest.mark.slow
def test_what_is_named_is_in_the_oldest_android(named: set[Member]) -> None:
    oldest = Platform(built(lambda: maven.jar("oldest-android-all")), java_home())
    absent = {str(member) for member in named if not oldest.has(member)}
    assert not {name for name in absent if not name.startswith(tuple(NEWER))}
    unused = {beginning for beginning in NEWER if not any(name.startswith(beginning) for name in absent)}
    assert not unused, "the list has nothing that is not needed"


@pytest.mark.slow
def test_what_is_named_is_in_the_android_it_is_made_for(named: set[Member]) -> None:
    newest = Platform(built(lambda: maven.jar("android-all")), java_home())
    assert not {str(member) for member in named if not newest.has(member)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "absent",
    [
        Member("java/lang/String", "strip", "()Ljava/lang/String;"),  # Java 11
        Member("java/nio/FloatBuffer", "position", "(I)Ljava/nio/FloatBuffer;"),  # Java 9; before, of Buffer
        Member("java/util/List", "removeFirst", "()Ljava/lang/Object;"),  # Java 21
        Member("android/view/WindowInsets", "getInsets", "(I)Landroid/graphics/Insets;"),
        Member("android/view/View", "setOnClickListener", "()V"),
        Member("android/view/NoView", "getId", "()I"),
    ],
    ids=str,
)
def test_the_comparison_notices_what_is_absent(absent: Member) -> None:
    oldest = Platform(built(lambda: maven.jar("oldest-android-all")), java_home())
    assert not oldest.has(absent)


@pytest.mark.slow
def test_what_is_inherited_is_there() -> None:
    oldest = Platform(built(lambda: maven.jar("oldest-android-all")), java_home())
    assert oldest.has(Member("android/app/Activity", "getAssets", "()Landroid/content/res/AssetManager;"))
    assert oldest.has(Member("android/util/JsonToken", "ordinal", "()I"))
    assert oldest.has(Member("java/nio/FloatBuffer", "position", "(I)Ljava/nio/Buffer;"))
