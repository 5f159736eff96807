"""The command line of the tools."""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from android_demo.tools import apk, models, modules, natives, resources, tests
from android_demo.tools.run import ToolError, building


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m android_demo.tools", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("model", help="export the demo model for both runtimes")
    commands.add_parser("natives", help="build the native libraries for this machine")
    commands.add_parser("android-natives", help="build the native libraries for Android")
    commands.add_parser("resources", help="link the app's resources and assets")
    commands.add_parser("apk", help="build the signed APK")
    for name, text in [("compile", "compile a module and its tests"), ("test", "run a module's tests")]:
        command = commands.add_parser(name, help=text)
        command.add_argument("module", nargs="?", choices=[module.name for module in modules.MODULES], help="(all)")
        if name == "test":
            command.add_argument("--only", metavar="NAME", help="only classes with this in their names")
    arguments = parser.parse_args()
    chosen = [module for module in modules.MODULES if getattr(arguments, "module", None) in (None, module.name)]
    if arguments.command == "test":
        # One module is built while the tests of the one before run; all, also behind one that failed.
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(lambda module: tests.run_tests(module, arguments.only), chosen))
        return 0 if all(results) else 1
    with building():
        build(arguments.command, chosen)
    return 0


def build(command: str, chosen: list[modules.Module]) -> None:
    if command == "model":
        models.export_demo_model()
    elif command == "natives":
        natives.build_desktop()
    elif command == "android-natives":
        for abi in natives.ABIS:
            print(*natives.build_android(abi), sep="\n")
    elif command == "resources":
        resources.link()
    elif command == "compile":
        for module in chosen:
            modules.compile_tests(module)
    elif command == "apk":
        path = apk.build()
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ToolError as error:
        print(f"android: {error}", file=sys.stderr)
        sys.exit(1)
