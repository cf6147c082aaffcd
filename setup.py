"""What pyproject.toml cannot say: a wheel has the studies of projects/, so that `ehrtrack demo` needs no checkout."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithProjects(build_py):
    """Copies the files of each study into the package; an editable installation reads them where they lie."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for file in sorted(file for file in Path("projects").glob("*/*") if file.suffix in (".toml", ".md")):
            copy = Path(self.build_lib, "ehrtrack", file)
            self.mkpath(str(copy.parent))
            self.copy_file(str(file), str(copy))


setup(cmdclass={"build_py": WithProjects})
