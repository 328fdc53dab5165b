"""What pyproject.toml cannot say: a wheel has, in t2i/root/, what a clone has at its root (`t2i.config.places`)."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

APPS = ("train.py", "sample.py", "evaluate.py", "prepare.py")


class WithRoot(build_py):
    """An editable install needs nothing: it runs out of the clone."""

    def root_files(self) -> list[str]:
        configs = (path for top in ("conf", "experiments") for path in Path(top).rglob("*.yaml"))
        return [*APPS, *sorted(path.as_posix() for path in configs)]

    def places(self) -> dict[str, str]:
        return {str(Path(self.build_lib) / "t2i/root" / name): name for name in self.root_files()}

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for target, source in self.places().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target, preserve_mode=False)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self.root_files()]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self.places())]


setup(cmdclass={"build_py": WithRoot})
